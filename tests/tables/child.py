"""One fit in a process of its own, for the test that kills it: ``child.py DIR NAME``; ``resume`` keeps checkpoints."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from flexgen.table_model import TableModel
from flexgen.tables import fit as table_fit
from tests.tables.small import NETWORK, mixed_table


def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    whole = table_fit.TrainingSettings

    def often(**settings: object) -> object:
        return whole(**{**settings, "checkpoint_every": 3})

    class Slow(table_fit.TableLikelihood):
        def __call__(self, *arguments: object) -> torch.Tensor:
            time.sleep(0.005 if name == "resume" else 0.0)
            return super().__call__(*arguments)

    Slow.__qualname__ = table_fit.TableLikelihood.__qualname__  # a checkpoint knows its objective by name
    table_fit.TrainingSettings, table_fit.TableLikelihood = often, Slow
    model = TableModel.fit(
        mixed_table(80),
        settings=replace(NETWORK, num_steps=60),
        checkpoint_dir=directory / "checkpoints" if name == "resume" else None,
        resume=name == "resume",
        progress=False,
    )
    model.save_pretrained(directory / name)


if __name__ == "__main__":
    main()
