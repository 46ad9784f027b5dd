"""``flexgen train``: fits a `TableModel` to a table and saves it; videos go to `train_video`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from flexgen.cli.compose import build
from flexgen.cli.files import read_source
from flexgen.cli.parameters import TrainParameters, read, table_settings
from flexgen.cli.training_folder import TrainingFolder
from flexgen.data.schema import TableSchema
from flexgen.laws import MaskLaw
from flexgen.processes import Processes

if TYPE_CHECKING:
    from flexgen.table_model import TableModel

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Config: configs/train.yaml."""
    chosen = read(TrainParameters, config)
    if str(chosen.data.get("_target_", "")).startswith("flexgen.data.videos."):
        from flexgen.cli import train_video

        train_video.run(config)
        return
    settings = table_settings(config)
    law = build(config.law, at="law", kind=MaskLaw)
    output = chosen.output
    processes, folder = Processes(), TrainingFolder(output, finished_by="config.json")
    if processes.first(lambda: folder.is_finished(config, resume=chosen.resume, overwrite=chosen.overwrite)):
        print(f"{output} is finished already; train it anew with overwrite=true")
        return
    df = read_source(config.data)

    TableSchema.infer(df, chosen.kinds)  # what is wrong with the table is said before anything is written
    processes.first(lambda: folder.begin(config, overwrite=chosen.overwrite))
    # Imported late: what is wrong with the arguments is said at once.
    from flexgen.table_model import TableModel

    began = time.monotonic()
    model = TableModel.fit(
        df,
        kinds=chosen.kinds,
        settings=settings,
        law=law,
        seed=chosen.seed,
        progress=chosen.progress,
        checkpoint_dir=folder.checkpoints,
        resume=chosen.resume,
    )
    processes.first(lambda: model.save_pretrained(output))
    processes.first(folder.drop_checkpoints)
    print(f"fitted {len(df)} rows of {len(model.schema.columns)} columns in {time.monotonic() - began:.0f} s")
    _show_report(model)
    print(f"saved to {output}")


def _show_report(model: TableModel) -> None:
    report = model.report
    if report.held_out:
        scores = ", ".join(f"{name} {score:.3f}" for name, score in report.held_out.items())
        print(f"held-out log-likelihood, nats an entry: {scores}")
    if report.weights:
        print(f"weights: {', '.join(f'{name} {weight:.0%}' for name, weight in report.weights.items())}")
