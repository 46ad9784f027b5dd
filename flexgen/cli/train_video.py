"""``flexgen train`` on videos: trains a `VideoBackbone` and saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig

from flexgen import saving
from flexgen.cli.compose import build
from flexgen.cli.parameters import TrainParameters, convert, read
from flexgen.cli.training_folder import TrainingFolder
from flexgen.errors import CheckpointError, ConfigError
from flexgen.laws import MaskLaw
from flexgen.processes import Processes, stays_here

__all__ = ["run"]

LOG = "training.jsonl"


def run(config: DictConfig) -> None:
    """Config: configs/train.yaml with data=videos, a law over frames, and a model and training for video."""
    from flexgen.networks.frame_unet import FrameUNet
    from flexgen.training import TrainingSettings
    from flexgen.video.fit import BackboneSettings

    chosen = read(TrainParameters, config)
    if chosen.kinds:
        raise ConfigError("kinds", f"is {chosen.kinds}, but the data are videos", "Leave it out.")
    try:
        settings = read(BackboneSettings, config.model, at="model.")
    except ConfigError as error:
        at = "" if error.argument.startswith("model.") else "model."
        raise ConfigError(at + error.argument, error.problem, error.fix) from error
    hints = get_type_hints(FrameUNet.__init__)
    for name, value in settings.network.items():
        convert(value, hints[name], f"model.network.{name}")
    start_from = convert(chosen.training.pop("start_from", None), Path | None, "training.start_from")
    training = read(TrainingSettings, {**chosen.training, "seed": chosen.seed}, at="training.")
    law = build(config.law, at="law", kind=MaskLaw)
    processes, folder = Processes(), TrainingFolder(chosen.output, finished_by="backbone.json")
    if processes.first(lambda: folder.is_finished(config, resume=chosen.resume, overwrite=chosen.overwrite)):
        print(f"{chosen.output} is finished already; train it anew with overwrite=true")
        return
    data, held_out = _videos(chosen.data)

    from flexgen.video.backbone import VideoBackbone
    from flexgen.video.fit import fit_backbone

    try:
        begun_from = None if start_from is None else VideoBackbone.from_pretrained(start_from)
    except CheckpointError as error:
        raise CheckpointError("training.start_from", error.problem, error.fix) from error
    processes.first(lambda: folder.begin(config, overwrite=chosen.overwrite))
    with stays_here():  # the others may be waiting for a gradient; torchrun ends them
        backbone, result = fit_backbone(
            data,
            law,
            settings,
            training,
            held_out=held_out,
            start_from=begun_from,
            directory=folder.checkpoints,
            resume=chosen.resume,
            progress=chosen.progress,
        )

    def save() -> None:
        backbone.save_pretrained(chosen.output)
        log = "".join(f"{json.dumps(record)}\n" for record in result.history)
        saving.update_folder(
            chosen.output, lambda new: (new / LOG).write_text(log, encoding="utf-8"), argument="output"
        )
        if result.stopped in ("finished", "patience"):
            folder.drop_checkpoints()

    processes.first(save)
    million = sum(weight.numel() for weight in backbone.network.parameters()) / 1e6
    loss = f", held-out loss {result.best_loss:.4f}" if held_out is not None else ""
    print(f"trained {million:.1f} M parameters for {result.step} steps in {result.seconds:.0f} s{loss}")
    print(f"saved to {chosen.output}")


def _videos(source: dict[str, Any]) -> tuple[Any, Any]:
    """The clips to train on and, where ``data.held_out`` names a folder, those to validate on."""
    from flexgen.data.videos import VideoFolder

    keys = {name: value for name, value in source.items() if name != "held_out"}
    data, held_out = build(keys, at="data", kind=VideoFolder), source.get("held_out")
    if held_out is None:
        return data, None
    return data, build({**keys, "folder": held_out}, at="data.held_out", kind=VideoFolder)
