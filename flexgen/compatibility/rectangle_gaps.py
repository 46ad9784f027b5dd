"""Log odds ratios of counted conditionals, rectangle by rectangle, each with its standard error."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

__all__ = ["LogOddsGap", "gaps_of_counts"]

_MAX_ENTRIES = 1 << 21  # rectangles of a pair of sites; with more, those of neighbouring values stand for all


@dataclass(frozen=True)
class LogOddsGap:
    """How far two conditionals' log odds ratios are apart on a rectangle.

    Args:
        sites: (i, j).
        values: ((a, b), (c, d)): a against b at site i, c against d at site j.
        context: the values of all sites; those of i and j do not matter, and stand at a and c.
        gap: log odds ratio of p(x_i | rest) less that of p(x_j | rest), nats.
        standard_error: of the gap.
    """

    sites: tuple[int, int]
    values: tuple[tuple[int, int], tuple[int, int]]
    context: tuple[int, ...]
    gap: float
    standard_error: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        (i, j), ((a, b), (c, d)) = self.sites, self.values
        given = ", ".join(f"x{k}={v}" for k, v in enumerate(self.context) if k not in self.sites)
        where = f"x{i} in {{{a}, {b}}}, x{j} in {{{c}, {d}}}" + (f" given {given}" if given else "")
        return f"{self.gap:+.3f} ± {self.standard_error:.3f} ({where})"


def gaps_of_counts(counts: Tensor, level: float) -> tuple[LogOddsGap, float]:
    """The rectangle with the most standard errors, and how far any gap may reach.

    Args:
        counts: ``[N, V_0, ..]``, positive.
        level: the reach is the largest |gap| + z standard errors with z of one-sided `level`. That all gaps are under a
            margin is claimed only if each is, so that no correction for their number is due (intersection-union).
    """
    z = float(stats.norm.isf(level))
    worst: tuple[float, LogOddsGap] | None = None
    reach = 0.0
    for i, j in itertools.combinations(range(len(counts)), 2):
        shape = counts.shape[1:]
        ends = [_ends(size, shape, i, j) for size in (shape[i], shape[j])]
        gap, variance = _differences(counts[i], i, j, ends)
        other_gap, other_variance = _differences(counts[j], i, j, ends)
        gap, error = gap - other_gap, (variance + other_variance).sqrt()  # [pairs of i, pairs of j, context]
        reach = max(reach, float((gap.abs() + z * error).max()))
        ratio = (gap.abs() / error).flatten()
        place = int(ratio.argmax())
        if worst is None or float(ratio[place]) > worst[0]:
            first, second, rest = (int(k) for k in torch.unravel_index(torch.tensor(place), gap.shape))
            (a, b), (c, d) = (ends[0][0][first], ends[0][1][first]), (ends[1][0][second], ends[1][1][second])
            others = [size for k, size in enumerate(shape) if k not in (i, j)]
            at = [int(k) for k in torch.unravel_index(torch.tensor(rest), others)] if others else []
            at.insert(i, int(a))
            at.insert(j, int(c))
            values = ((int(a), int(b)), (int(c), int(d)))
            found = LogOddsGap(
                (i, j), values, tuple(at), float(gap[first, second, rest]), float(error.flatten()[place])
            )
            worst = float(ratio[place]), found
    assert worst is not None
    return worst[1], reach


def _ends(size: int, shape: torch.Size, i: int, j: int) -> tuple[Tensor, Tensor]:
    """Pairs of values to compare: all, or neighbours where all would be too many."""
    all_pairs = shape.numel() * (shape[i] - 1) * (shape[j] - 1) // 4 <= _MAX_ENTRIES
    first, second = torch.triu_indices(size, size, 1) if all_pairs else torch.arange(size).unfold(0, 2, 1).T
    return first, second


def _differences(counts: Tensor, i: int, j: int, ends: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Log odds ratios of a table of counts and their variances, ``[pairs of i, pairs of j, context]``."""
    table = counts.movedim((i, j), (0, 1)).flatten(2) if counts.ndim > 2 else counts[..., None]  # [V_i, V_j, context]
    (a, b), (c, d) = ends
    logs, inverse = table.log(), 1 / table
    ratio = logs[a][:, c] - logs[a][:, d] - logs[b][:, c] + logs[b][:, d]
    return ratio, inverse[a][:, c] + inverse[a][:, d] + inverse[b][:, c] + inverse[b][:, d]
