"""Counts and chains to test with."""

from __future__ import annotations

import torch
from torch import Tensor

from flexgen.rng import stream

# Arnold and Press's worked 3 x 3 table.
JOINT = torch.tensor([[1, 2, 3], [3, 2, 1], [1, 3, 4]], dtype=torch.float64) / 20


def gapped(gap: float) -> Tensor:
    """The same joint with every log odds ratio through the cell (0, 2) moved by `gap`."""
    p = JOINT.clone()
    p[0, 2] *= torch.tensor(gap).exp()
    return p / p.sum()


GAPPED = gapped(0.5)


def sample_counts(laws: list[Tensor], num_rows: int, replicates: int, seed: int) -> Tensor:
    """Counts of one sample from each joint, ``[R, N, V_0, ..]``: x_i given rest is read from the i-th."""
    tables = []
    for i, law in enumerate(laws):
        source = stream(seed, "counts", i)
        left = torch.full((replicates,), float(num_rows), dtype=torch.float64)
        mass, cells = 1.0, []
        for p in law.flatten().tolist():
            share = torch.full_like(left, min(p / mass, 1.0) if mass > 1e-12 else 0.0)
            cells.append(torch.binomial(left, share, generator=source))
            left, mass = left - cells[-1], mass - p
        tables.append(torch.stack(cells, -1).view(replicates, *law.shape))
    return torch.stack(tables, 1)
