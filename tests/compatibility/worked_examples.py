"""Worked examples from the literature, and how to make more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flexgen.exact import ConditionalTables, JointTable


def table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def pair(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> ConditionalTables:
    """p(x | y) with columns that sum to one, and p(y | x) with rows that do."""
    return ConditionalTables([table(a), table(b)])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tables(shape: Sequence[int], seed: int, *, least: float = 0.05) -> ConditionalTables:
    """Conditionals that share no joint."""
    noise = torch.rand(len(shape), *shape, generator=generator(seed), dtype=torch.float64) + least
    return ConditionalTables([noise[site] / noise[site].sum(site, keepdim=True) for site in range(len(shape))])


def random_joint(shape: Sequence[int], seed: int) -> JointTable:
    return JointTable.random(shape, generator=generator(seed))


# Arnold & Press (1989): compatible; the joint is [[1, 2, 3], [3, 2, 1], [1, 3, 4]] / 20.
PRESS_JOINT = table([[1, 2, 3], [3, 2, 1], [1, 3, 4]]) / 20
PRESS = JointTable(PRESS_JOINT).conditional_tables()

# Arnold & Gokhale (1998): 2 x 2 products all agree, being zero on both sides; a loop of six states multiplies to 1/8.
SIX = pair(
    [[1 / 3, 2 / 3, 0], [0, 1 / 3, 2 / 3], [2 / 3, 0, 1 / 3]], [[1 / 2, 1 / 2, 0], [0, 1 / 2, 1 / 2], [1 / 2, 0, 1 / 2]]
)
# Its laws: where y was updated last its conditional is uniform, where x was it is 1/3, 2/3.
SIX_LAST_Y = table([[1, 1, 0], [0, 1, 1], [1, 0, 1]]) / 6
SIX_LAST_X = table([[1, 2, 0], [0, 1, 2], [2, 0, 1]]) / 9

# Emerson (arXiv 2608.31120), a path of seven states with weights 64, 32, .., 1.
PATH = pair(
    [[1, 2 / 3, 0, 0], [0, 1 / 3, 2 / 3, 0], [0, 0, 1 / 3, 2 / 3], [0, 0, 0, 1 / 3]],
    [[2 / 3, 1 / 3, 0, 0], [0, 2 / 3, 1 / 3, 0], [0, 0, 2 / 3, 1 / 3], [0, 0, 0, 1]],
)
PATH_JOINT = table([[64, 32, 0, 0], [0, 16, 8, 0], [0, 0, 4, 2], [0, 0, 0, 1]]) / 127

# Emerson, the smallest incompatible pair: x is a fair coin whatever y; y leans on x.
COIN = pair([[1 / 2, 1 / 2], [1 / 2, 1 / 2]], [[2 / 3, 1 / 3], [1 / 2, 1 / 2]])

# After Heckerman et al. (2000): x depends on y, but y not on x.
ONE_WAY = pair([[0.9, 0.2], [0.1, 0.8]], [[0.3, 0.7], [0.3, 0.7]])

# Two tables with log odds of opposite signs, 1.09 and -1.20.
CROSSED = pair(
    [[0.7567832843, 0.2993662633], [0.2432167157, 0.7006337367]],
    [[0.4100860406, 0.5899139594], [0.6978942741, 0.3021057259]],
)
