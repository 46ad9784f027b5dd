"""``flexgen sample``: draws rows of the joint from a saved model, by the chain rule or by Gibbs."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from flexgen.cli.compose import build
from flexgen.cli.files import require_free, write_table
from flexgen.table_model import TableModel

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Config: configs/sample.yaml."""
    output = require_free(Path(config.output), argument="output", overwrite=config.overwrite)
    model = TableModel.from_pretrained(config.model)
    rows = model.sample(
        config.num_rows,
        given=dict(config.given),
        scan=build(config.sampler.scan),
        num_sweeps=config.sampler.num_sweeps,
        generator=config.seed,
        progress=config.progress,
    )
    write_table(rows, output)
    print(f"drew {len(rows)} rows; saved to {output}")
