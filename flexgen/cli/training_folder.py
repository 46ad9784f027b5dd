"""A training's folder: begun, resumed with what it began with, or finished."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexgen.cli.files import require_free_folder
from flexgen.cli.plain import load_yaml
from flexgen.errors import ConfigError

__all__ = ["TrainingFolder"]

_RECORD = "train.yaml"

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
        is_begun = (self.path / _RECORD).is_file()
        if not resume and not overwrite and is_begun and self.checkpoints.is_dir():
            raise ConfigError(
                "output",
                f"{str(self.path)!r} holds a training that is not finished",
                "Go on with resume=true, or start anew with overwrite=true.",
            )
        require_free_folder(self.path, argument="output", overwrite=overwrite or (resume and is_begun))
        if not (resume and is_begun):
            return False
        before, now = _leaves(load_yaml(self.path / _RECORD, argument="output")), _leaves(config)
        for key in [*before, *(key for key in now if key not in before)]:
            if before.get(key) != now.get(key) and key not in _FREE_TO_CHANGE:
                raise ConfigError(
                    key,
                    f"is {now.get(key)!r}, but the training in {str(self.path)!r} began with {before.get(key)!r}",
                    "Resume with what it began with, or start anew with overwrite=true.",
                )
        return (self.path / self.finished_by).is_file() and not self.checkpoints.is_dir()

    def begin(self, config: DictConfig, *, overwrite: bool) -> None:
        """Makes the folder and records the configuration."""
        if overwrite:
            self.drop_checkpoints()
            (self.path / self.finished_by).unlink(missing_ok=True)  # else a killed training would pass for finished
        self.path.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, self.path / _RECORD)

    def drop_checkpoints(self) -> None:
        """A finished model needs none."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def _leaves(config: Any, at: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    if not OmegaConf.is_dict(config):
        return {at.removesuffix("."): OmegaConf.to_container(config) if OmegaConf.is_list(config) else config}
    return {key: value for name in config for key, value in _leaves(config[name], f"{at}{name}.").items()}
