"""``flexgen train``: fits a `TableModel` to a table and saves it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from flexgen.cli.compose import build
from flexgen.cli.files import require_free
from flexgen.table_model import TableModel

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Config: configs/train.yaml."""
    output = require_free(Path(config.output), argument="output", overwrite=config.overwrite or config.resume)
    df = build(config.data)
    model = TableModel.fit(
        df,
        kinds=dict(config.kinds),
        settings=build(config.settings),
        law=build(config.law),
        seed=config.seed,
        progress=config.progress,
        checkpoint_dir=output / "checkpoints",
        resume=config.resume,
    )
    model.save_pretrained(output)
    print(model)
    print(f"saved to {output}")
