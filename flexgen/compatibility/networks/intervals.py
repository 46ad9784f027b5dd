"""Means over clusters, with intervals: what data rows that were drawn at random say about those that were not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

from flexgen.compatibility.networks.arguments import check_level
from flexgen.errors import FlexgenError

__all__ = ["Estimate", "IntervalMethod", "mean_by_clusters"]

IntervalMethod = Literal["t", "bootstrap"]


@dataclass(frozen=True)
class Estimate:
    """A mean absolute effect with its interval.

    Args:
        value: weighted mean of \\|value\\|.
        low, high: of the interval at `level`, clustered by data row; NaN where there are fewer than two rows.
        level: its nominal coverage.
        floor: what rounding alone could make of the mean, at most.
    """

    value: float
    low: float
    high: float
    level: float
    floor: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def mean_by_clusters(
    sizes: Tensor, weights: Tensor, floors: Tensor, rows: Tensor, level: float, method: IntervalMethod, seed: int
) -> Estimate:
    """The weighted mean of sizes ``[M]`` and of their floors; see `Effect.weighted` for the interval."""
    check_level(level)
    if method not in ("t", "bootstrap"):
        raise FlexgenError("method", f"is {method!r}", "Choose 't' or 'bootstrap'.")
    _, cluster = torch.unique(rows, return_inverse=True)
    num_clusters = int(cluster.max()) + 1 if len(cluster) else 0
    empty = torch.zeros(num_clusters, dtype=torch.float64)
    mass = empty.index_add(0, cluster, weights)  # [G]
    total = empty.index_add(0, cluster, weights * sizes)  # [G]
    floor = float((weights * floors).sum() / weights.sum()) if num_clusters else math.nan
    if num_clusters < 2:
        value = float(total.sum() / mass.sum()) if num_clusters else math.nan
        return Estimate(value, math.nan, math.nan, level, floor)
    value, error = (float(part) for part in _ratio(total[None], mass[None]))
    if method == "t":
        quantile = float(stats.t.ppf(0.5 + level / 2, num_clusters - 1))
        low, high = value - quantile * error, value + quantile * error
    else:
        low, high = _bootstrap_t(total, mass, value, error, level, seed)
    return Estimate(value, max(low, 0.0), high, level, floor)


def _ratio(total: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Σ total / Σ mass over clusters ``[.., G]``, and its linearised standard error."""
    num_clusters = total.shape[-1]
    value = total.sum(-1) / mass.sum(-1)
    residual = total - value[..., None] * mass
    variance = num_clusters / (num_clusters - 1) * residual.square().sum(-1) / mass.sum(-1).square()
    return value, variance.sqrt()


def _bootstrap_t(
    total: Tensor, mass: Tensor, value: float, error: float, level: float, seed: int
) -> tuple[float, float]:
    """Studentised bootstrap over clusters (Efron & Tibshirani 1993, chapter 12)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(total), (2000, len(total)), generator=generator)
    values, errors = _ratio(total[chosen], mass[chosen])
    pivots = ((values - value) / errors.clamp_min(1e-3 * error + 1e-300)).sort().values
    tail = (1 - level) / 2
    low, high = pivots[int(tail * len(pivots))], pivots[int((1 - tail) * len(pivots)) - 1]
    return value - float(high) * error, value - float(low) * error
