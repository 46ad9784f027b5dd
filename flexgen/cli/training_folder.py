"""A training's folder: begun, resumed with what it began with, or finished."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen import saving
from flexgen.cli.files import require_free_folder
from flexgen.cli.plain import load_yaml
from flexgen.errors import ConfigError, DataError, FlexgenError

__all__ = ["MODEL_FILES", "TrainingFolder"]

_RECORD = "train.yaml"

# What trainings leave, of tables and of videos: the one may overwrite the other.
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "backbone.json",
    "network/config.json",
    "network/diffusion_pytorch_model.safetensors",
    "training.jsonl",
)

# Keys that may differ between a training and its resumption: where, how shown, and when it stops.
_FREE_TO_CHANGE = ("output", "progress", "overwrite", "resume", "training.patience", "training.max_seconds")


@dataclass(frozen=True)
class TrainingFolder:
    """Where a training puts its model, and meanwhile its checkpoints and the configuration that it began with.

    Args:
        path: the folder.
        finished_by: the file that only a finished model has.
    """

    path: Path
    finished_by: str

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def is_finished(self, config: DictConfig, *, resume: bool, overwrite: bool) -> bool:
        """Whether a training to be resumed has come to its end.

        Raises:
            ConfigError: it was begun with another configuration.
            DataError: the output is taken, or cannot be written.
        """
        if resume and overwrite:
            raise ConfigError("resume", "is true together with overwrite", "Choose one of the two.")
        saving.settle(self.path, argument="output")
        is_begun, has_model = (self.path / _RECORD).is_file(), (self.path / self.finished_by).is_file()
        is_stopped = self._has_checkpoints() or (self.checkpoints.is_dir() and not has_model)
        if not resume and not overwrite and is_begun and is_stopped:
            raise ConfigError(
                "output",
                f"{str(self.path)!r} holds a training that is not finished",
                "Go on with resume=true, or start anew with overwrite=true.",
            )
        # A training that ended before its first checkpoint has left its record, and nothing to lose.
        is_empty = is_begun and {path.name for path in self.path.iterdir()} <= {_RECORD, saving.MANIFEST}
        require_free_folder(self.path, argument="output", overwrite=overwrite or is_empty or (resume and is_begun))
        if not (resume and is_begun):
            self._require_ours()
            return False
        before, now = _leaves(load_yaml(self.path / _RECORD, argument="output")), _leaves(config)
        for key in [*before, *(key for key in now if key not in before)]:
            if before.get(key) != now.get(key) and key not in _FREE_TO_CHANGE:
                raise ConfigError(
                    key,
                    f"is {now.get(key)!r}, but the training in {str(self.path)!r} began with {before.get(key)!r}",
                    "Resume with what it began with, or start anew with overwrite=true.",
                )
        self._require_ours()
        return has_model and not self._has_checkpoints()

    def begin(self, config: DictConfig, *, overwrite: bool) -> None:
        """Makes the folder and records the configuration; the model and the checkpoints that were there go."""

        def write(new: Path) -> None:
            OmegaConf.save(config, new / _RECORD)

        # Without the model, else a killed training would pass for finished.
        going = MODEL_FILES if overwrite else ()
        saving.update_folder(self.path, write, remove=going, earlier=_earlier_files, argument="output")
        if overwrite:  # last: where the folder cannot be written, all is as it was
            self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        """A finished model needs none. What else lies in their folder stays."""
        from flexgen.training.checkpoint import remove_checkpoints

        remove_checkpoints(self.checkpoints)

    def _has_checkpoints(self) -> bool:
        return any(self.checkpoints.glob("step-*")) or any(self.checkpoints.glob("network-*/step-*"))

    def _require_ours(self) -> None:
        """Nothing foreign stands where this training will write."""
        saving.refuse_links(self.path, [f"{self.checkpoints.name}/step"], "output", DataError)
        names = [_RECORD, *MODEL_FILES]
        saving.require_ours(self.path, names, earlier=_earlier_files, argument="output", error=DataError)


def _earlier_files(folder: Path) -> Iterable[str]:
    """What a training left before there were manifests: a model, known by itself, and the record of its keys."""
    from flexgen.tables.checkpoint import earlier_table_files
    from flexgen.video.backbone import earlier_backbone_files

    found = [*earlier_table_files(folder), *(backbone := earlier_backbone_files(folder))]
    try:
        keys = load_yaml(folder / _RECORD, argument="output").keys() if (folder / _RECORD).is_file() else ()
    except FlexgenError:
        keys = ()
    if {"output", "seed", "data", "law", "model", "training"} <= set(keys):
        found += [_RECORD, *(["training.jsonl"] if backbone else [])]
    return found


def _leaves(config: Any, at: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    if not OmegaConf.is_dict(config):
        return {at.removesuffix("."): OmegaConf.to_container(config) if OmegaConf.is_list(config) else config}
    return {key: value for name in config for key, value in _leaves(config[name], f"{at}{name}.").items()}
