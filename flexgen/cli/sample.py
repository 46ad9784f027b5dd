"""``flexgen sample``: draws rows of the joint from a saved model, by the chain rule or by Gibbs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flexgen.cli.compose import build
from flexgen.cli.files import load_model, require_free, require_model, require_table, write_table
from flexgen.cli.parameters import read
from flexgen.errors import ConfigError
from flexgen.processes import Processes

__all__ = ["run"]


@dataclass(frozen=True)
class Sampler:
    """The keys of configs/sampler/."""

    scan: dict[str, Any] | None
    num_sweeps: int

    def __post_init__(self) -> None:
        if self.scan is None and self.num_sweeps != 0:
            raise ConfigError(
                "sampler.num_sweeps", f"is {self.num_sweeps} without a scan", "Choose one, sampler=gibbs_permutation."
            )
        if self.scan is not None and self.num_sweeps < 1:
            raise ConfigError("sampler.num_sweeps", f"is {self.num_sweeps}", "Pass at least 1, or sampler=chain.")


@dataclass(frozen=True)
class Parameters:
    """The keys of configs/sample.yaml."""

    model: Path
    output: Path
    num_rows: int
    given: dict[str, Any]
    seed: int
    batch_size: int
    progress: bool | None
    spreadsheet_safe: bool
    overwrite: bool
    sampler: dict[str, Any]

    def __post_init__(self) -> None:
        for name, least in (("num_rows", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(name, f"is {getattr(self, name)}", f"Pass at least {least}.")


def run(config: DictConfig) -> None:
    """Config: configs/sample.yaml."""
    processes, chosen = Processes(), read(Parameters, config)
    sampler = read(Sampler, config.sampler, at="sampler.")
    require_table(chosen.output, argument="output")
    processes.first(lambda: require_free(chosen.output, argument="output", overwrite=chosen.overwrite))
    require_model(chosen.model)
    scan = None
    if sampler.scan is not None:
        from samplers.scans import Scan

        scan = build(sampler.scan, at="sampler.scan", kind=Scan)
    model = load_model(chosen.model)
    rows = model.sample(
        chosen.num_rows,
        given=chosen.given,
        scan=scan,
        num_sweeps=sampler.num_sweeps,
        generator=chosen.seed,
        batch_size=chosen.batch_size,
        progress=processes.is_first and (sys.stderr.isatty() if chosen.progress is None else chosen.progress),
        processes=processes,
    )
    processes.first(lambda: write_table(rows, chosen.output, spreadsheet_safe=chosen.spreadsheet_safe))
    how = "the chain rule" if scan is None else f"{sampler.num_sweeps} Gibbs sweep(s), {scan}"
    print(f"drew {len(rows)} rows by {how}; saved to {chosen.output}")
