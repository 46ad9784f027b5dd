"""``flexgen impute``: fills the missing entries of a table with a saved model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from flexgen.cli.files import (
    load_model,
    read_input,
    require_file,
    require_free,
    require_model,
    require_table,
    write_table,
)
from flexgen.cli.parameters import read
from flexgen.errors import ConfigError
from flexgen.processes import Processes

__all__ = ["run"]


@dataclass(frozen=True)
class Parameters:
    """The keys of configs/impute.yaml."""

    model: Path
    input: Path
    output: Path
    method: Literal["mean", "mode", "draw"]
    num_draws: int
    seed: int
    batch_size: int
    progress: bool | None
    spreadsheet_safe: bool
    overwrite: bool

    def __post_init__(self) -> None:
        if self.num_draws < 1 or (self.num_draws > 1 and self.method != "draw"):
            raise ConfigError("num_draws", f"is {self.num_draws} with method={self.method}", "Pass 1, or method=draw.")
        if self.batch_size < 1:
            raise ConfigError("batch_size", f"is {self.batch_size}", "Pass at least 1.")


def run(config: DictConfig) -> None:
    """Config: configs/impute.yaml."""
    processes, chosen = Processes(), read(Parameters, config)
    require_table(chosen.output, argument="output")
    processes.first(lambda: require_free(chosen.output, argument="output", overwrite=chosen.overwrite))
    require_model(chosen.model)
    require_file(chosen.input, argument="input")
    model = load_model(chosen.model)
    df = read_input(chosen.input, argument="input", model=model)
    filled = model.impute(
        df,
        method=chosen.method,
        num_draws=chosen.num_draws,
        generator=chosen.seed,
        batch_size=chosen.batch_size,
        progress=processes.is_first and (sys.stderr.isatty() if chosen.progress is None else chosen.progress),
        processes=processes,
    )
    if chosen.num_draws > 1:
        filled = filled.rename_axis(["draw", "row"])
    many, safe = chosen.num_draws > 1, chosen.spreadsheet_safe
    processes.first(lambda: write_table(filled, chosen.output, index=many, spreadsheet_safe=safe))
    gaps = df[[name for name in df.columns if str(name) in model.schema.names]].isna()
    count = f"filled {int(gaps.sum().sum())} entries in {int(gaps.any(axis=1).sum())} of {len(df)} rows"
    print(f"{count}{f', {chosen.num_draws} times' if chosen.num_draws > 1 else ''}; saved to {chosen.output}")
