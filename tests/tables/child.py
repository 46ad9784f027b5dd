"""One slow fit in a process of its own, for the test that kills it: ``child.py CHECKPOINTS``."""

from __future__ import annotations

import sys
import time

import torch

from flexgen.table_model import TableModel
from flexgen.tables import fit as table_fit
from tests.tables.small import LONGER, mixed_table


def main() -> None:
    torch.set_num_threads(1)
    settings, likelihood = table_fit.TrainingSettings, table_fit.TableLikelihood.__call__

    def with_checkpoints(**options: object) -> object:
        return settings(**{**options, "checkpoint_every": 3})

    def slowly(*arguments: object) -> torch.Tensor:
        time.sleep(0.01)
        return likelihood(*arguments)

    table_fit.TrainingSettings, table_fit.TableLikelihood.__call__ = with_checkpoints, slowly
    TableModel.fit(mixed_table(80), settings=LONGER, checkpoint_dir=sys.argv[1], resume=True, progress=False)


if __name__ == "__main__":
    main()
