"""Counts and chains to test with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flexgen.exact import ConditionalTables
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


def gibbs_draws(
    tables: ConditionalTables, scan: Sequence[int] | str, *, chains: int, draws: int, warmup: int, seed: int
) -> Tensor:
    """Chains of single-site updates, int64 ``[chains, draws, N]``: an order of sites a sweep, or "random" sites."""
    source, shape = stream(seed, "gibbs", str(scan)), tables.shape
    x = torch.stack([torch.randint(size, (chains,), generator=source) for size in shape], 1)
    cdfs = [table.movedim(i, -1).cumsum(-1) for i, table in enumerate(tables.tables)]  # [others.., V_i]
    kept = []
    for sweep in range(warmup + draws):
        for site in torch.randint(len(shape), (len(shape),), generator=source).tolist() if scan == "random" else scan:
            others = tuple(x[:, j] for j in range(len(shape)) if j != site)
            u = torch.rand(chains, 1, generator=source, dtype=torch.float64)
            x[:, site] = (cdfs[site][others] < u).sum(-1).clamp_max(shape[site] - 1)
        if sweep >= warmup:
            kept.append(x.clone())
    return torch.stack(kept, 1)
