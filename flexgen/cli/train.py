"""``flexgen train``: fits a `TableModel` to a table and saves it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from flexgen.cli.compose import build
from flexgen.cli.files import read_source, require_free_folder
from flexgen.cli.parameters import read, table_settings
from flexgen.data.schema import TableSchema
from flexgen.errors import ConfigError

if TYPE_CHECKING:
    from flexgen.table_model import TableModel

__all__ = ["run"]

RECORD = "train.yaml"
CHECKPOINTS = "checkpoints"

# Keys that may differ between a training and its resumption: where, how shown, and when it stops.
_FREE_TO_CHANGE = ("output", "progress", "overwrite", "resume", "training.patience", "training.max_seconds")


@dataclass(frozen=True)
class Parameters:
    """The keys of configs/train.yaml."""

    output: Path
    kinds: dict[str, Any]
    seed: int
    progress: bool | None
    overwrite: bool
    resume: bool
    data: dict[str, Any]
    law: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]


def run(config: DictConfig) -> None:
    """Config: configs/train.yaml."""
    chosen = read(Parameters, config)
    settings = table_settings(config)
    law = build(config.law, at="law")
    output, checkpoints = chosen.output, chosen.output / CHECKPOINTS
    if _is_finished(chosen, config):
        print(f"{output} is finished already; train it anew with overwrite=true")
        return
    df = read_source(config.data)

    TableSchema.infer(df, chosen.kinds)  # what is wrong with the table is said before anything is written
    if chosen.overwrite:
        shutil.rmtree(checkpoints, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, output / RECORD)
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
        checkpoint_dir=checkpoints,
        resume=chosen.resume,
    )
    model.save_pretrained(output)
    shutil.rmtree(checkpoints, ignore_errors=True)  # a finished model needs none
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


def _is_finished(chosen: Parameters, config: DictConfig) -> bool:
    """Whether a training to be resumed has come to its end.

    Raises:
        ConfigError: it was begun with another configuration.
        DataError: the output is taken, or cannot be written.
    """
    output = chosen.output
    if chosen.resume and chosen.overwrite:
        raise ConfigError("resume", "is true together with overwrite", "Choose one of the two.")
    is_begun = (output / RECORD).is_file()
    if not chosen.resume and not chosen.overwrite and is_begun and (output / CHECKPOINTS).is_dir():
        raise ConfigError(
            "output",
            f"{str(output)!r} holds a training that is not finished",
            "Go on with resume=true, or start anew with overwrite=true.",
        )
    require_free_folder(output, argument="output", overwrite=chosen.overwrite or (chosen.resume and is_begun))
    if not (chosen.resume and is_begun):
        return False
    before, now = _leaves(OmegaConf.load(output / RECORD)), _leaves(config)
    for key in [*before, *(key for key in now if key not in before)]:
        if before.get(key) != now.get(key) and key not in _FREE_TO_CHANGE:
            raise ConfigError(
                key,
                f"is {now.get(key)!r}, but the training in {str(output)!r} began with {before.get(key)!r}",
                "Resume with what it began with, or start anew with overwrite=true.",
            )
    return (output / "config.json").is_file() and not (output / CHECKPOINTS).is_dir()


def _leaves(config: Any, at: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    if not OmegaConf.is_dict(config):
        return {at.removesuffix("."): OmegaConf.to_container(config) if OmegaConf.is_list(config) else config}
    return {key: value for name in config for key, value in _leaves(config[name], f"{at}{name}.").items()}
