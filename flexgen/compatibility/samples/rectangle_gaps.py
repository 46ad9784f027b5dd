"""Log odds ratios of counted conditionals, rectangle by rectangle, each with its standard error."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

__all__ = ["LogOddsGap", "gaps_of_counts"]

_TOGETHER = 1 << 20  # rectangles looked at at once


@dataclass(frozen=True)
class LogOddsGap:
    """How far two conditionals' log odds ratios are apart on a rectangle.

    Args:
        sites: (i, j).
        values: ((a, b), (c, d)): a against b at site i, c against d at site j.
        context: the values of all sites; those of i and j do not matter, and stand at a and c.
        gap: log odds ratio of p(x_i | rest) less that of p(x_j | rest), nats.
        standard_error: of the gap.
        where: the rectangle in words; empty: told by the numbers of sites and values.
    """

    sites: tuple[int, int]
    values: tuple[tuple[int, int], tuple[int, int]]
    context: tuple[int, ...]
    gap: float
    standard_error: float
    where: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        (i, j), ((a, b), (c, d)) = self.sites, self.values
        given = ", ".join(f"x{k}={v}" for k, v in enumerate(self.context) if k not in self.sites)
        where = f"x{i} in {{{a}, {b}}}, x{j} in {{{c}, {d}}}" + (f" given {given}" if given else "")
        return f"{self.gap:+.3f} ± {self.standard_error:.3f} ({self.where or where})"

    def __repr__(self) -> str:
        return str(self)


def gaps_of_counts(counts: Tensor, significance: float) -> tuple[LogOddsGap | None, float]:
    """The rectangle with the most standard errors, and how far any gap may reach. Every rectangle is looked at.

    None and 0 where fewer than two sites have two values, and so no rectangle is there.

    Args:
        counts: ``[N, V_0, ..]``, positive.
        significance: the reach is the largest |gap| + z standard errors with z of this one-sided significance. That all
            gaps are under a margin is claimed only if each is, so that no correction for their number is due
            (intersection-union).
    """
    z = float(stats.norm.isf(significance))
    worst: tuple[float, LogOddsGap] | None = None
    reach = 0.0
    shape = counts.shape[1:]
    for i, j in itertools.combinations(range(len(counts)), 2):
        if min(shape[i], shape[j]) < 2:
            continue
        of_i, of_j = _pairs(shape[i]), _pairs(shape[j])  # [2, pairs]
        rest = shape.numel() // (shape[i] * shape[j])
        for ends in torch.split(of_i, max(1, _TOGETHER // (of_j.shape[1] * rest)), dim=1):
            gap, variance = _differences(counts[i], i, j, ends, of_j)
            other_gap, other_variance = _differences(counts[j], i, j, ends, of_j)
            gap, error = gap - other_gap, (variance + other_variance).sqrt()  # [pairs of i, pairs of j, context]
            reach = max(reach, float((gap.abs() + z * error).max()))
            ratio = gap.abs() / error
            place = int(ratio.argmax())
            most = float(ratio.flatten()[place])
            if worst is None or most > worst[0]:
                first, second, context = (int(k) for k in torch.unravel_index(torch.tensor(place), gap.shape))
                at = _context(context, shape, i, j)
                (a, b), (c, d) = ends[:, first].tolist(), of_j[:, second].tolist()
                at[i], at[j] = a, c
                found = LogOddsGap(
                    (i, j),
                    ((a, b), (c, d)),
                    tuple(at),
                    float(gap[first, second, context]),
                    float(error[first, second, context]),
                )
                worst = most, found
    return None if worst is None else worst[1], reach


def _pairs(size: int) -> Tensor:
    """Every two values of a site, ``[2, pairs]``."""
    return torch.triu_indices(size, size, 1)


def _context(number: int, shape: torch.Size, i: int, j: int) -> list[int]:
    """The values of all sites in a context of the pair (i, j), those of i and j being 0."""
    sizes = [1 if k in (i, j) else size for k, size in enumerate(shape)]
    return [int(k) for k in torch.unravel_index(torch.tensor(number), sizes)]


def _differences(counts: Tensor, i: int, j: int, of_i: Tensor, of_j: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds ratios of a table of counts and their variances, ``[pairs of i, pairs of j, context]``."""
    table = counts.movedim((i, j), (0, 1)).flatten(2) if counts.ndim > 2 else counts[..., None]  # [V_i, V_j, context]
    (a, b), (c, d) = of_i, of_j
    logs, inverse = table.log(), 1 / table
    row = logs[a] - logs[b]  # [pairs of i, V_j, context]
    spread = inverse[a] + inverse[b]
    return row[:, c] - row[:, d], spread[:, c] + spread[:, d]
