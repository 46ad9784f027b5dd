"""``flexgen impute``: fills the missing entries of a table with a saved model."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from flexgen.cli.files import require_free, write_table
from flexgen.data.tables import read_table
from flexgen.table_model import TableModel

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Config: configs/impute.yaml."""
    output = require_free(Path(config.output), argument="output", overwrite=config.overwrite)
    model = TableModel.from_pretrained(config.model)
    df = read_table(config.input)
    filled = model.impute(
        df,
        method=config.method,
        num_draws=config.num_draws,
        generator=config.seed,
        batch_size=config.batch_size,
        progress=config.progress,
    )
    write_table(filled, output, index=config.num_draws > 1)
    print(f"filled {int(df[list(model.schema.names)].isna().sum().sum())} entries of {len(df)} rows; saved to {output}")
