"""Means over clusters, with intervals: what data rows that were drawn at random say about those that were not.

Effects may be sparse: zero in most contexts and large in few. Seven rows that all show zero then say little, and an
interval from their spread, such as Student's t, makes "nothing there" of "nothing seen". No interval from a sample can
bound a mean from above unless something bounds the variable (Bahadur and Savage 1956). So the bound is stated: in
contexts that were not seen a row's mean effect is at most B. Given it, Gaffke's interval (2005; Learned-Miller and
Thomas 2020: conjectured to hold for every distribution, and no counterexample is known) suits dense and sparse effects.
Of rows z_1, .., z_n its upper limit is a quantile of

    D_1 z_1 + .. + D_n z_n + D_(n+1) B,      D uniform on the simplex,

and the lower limit the same with 0 for B. Of zeros and ones it is Clopper and Pearson's interval (with nothing seen in
n rows, the rule of three: 3.7 B / n), of many rows without surprises it comes close to Student's t.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from flexgen.compatibility.networks.arguments import check_level
from flexgen.errors import FlexgenError

__all__ = ["FEWEST_ROWS", "MOST", "UNSEEN", "Estimate", "IntervalMethod", "mean_by_clusters", "rows_for"]

IntervalMethod = Literal["bounded", "t", "bootstrap"]

UNSEEN = {"nats": 2.0, "total variation": 1.0}
"""By unit: the mean effect that contexts out of sight are allowed to have (odds off by a factor of 7; all there is)."""
MOST = {"total variation": 1.0}
"""By unit: the largest that a value can be."""
FEWEST_ROWS = 30
"""Data rows without which no effect is called equivalent to none, whatever the interval."""
_BEYOND = 2.0  # what was not seen, to the largest that was
_DRAWS = 4000


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
    sizes: Tensor,
    weights: Tensor,
    floors: Tensor,
    rows: Tensor,
    level: float,
    method: IntervalMethod,
    seed: int,
    unseen: float = 0.0,
    most: float = math.inf,
) -> Estimate:
    """The weighted mean of sizes ``[M]`` and of their floors; see `Effect.weighted` for the interval."""
    check_level(level)
    if method not in ("bounded", "t", "bootstrap"):
        raise FlexgenError("method", f"is {method!r}", "Choose 'bounded', 't' or 'bootstrap'.")
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
    if method == "bounded":
        largest = float((total[mass > 0] / mass[mass > 0]).max()) if bool((mass > 0).any()) else math.nan
        low, high = _bounded(total, mass, level, min(max(_BEYOND * largest, unseen), most))
    elif method == "t":
        quantile = float(stats.t.ppf(0.5 + level / 2, num_clusters - 1))
        low, high = value - quantile * error, value + quantile * error
    else:
        low, high = _bootstrap_t(total, mass, value, error, level, seed)
    return Estimate(value, max(low, 0.0), high, level, floor)


def rows_for(margin: float, level: float, unseen: float) -> int:
    """Rows of which none may show anything for the upper limit of their mean to be within a margin.

    >>> rows_for(0.1, 0.95, 2.0), rows_for(1.5, 0.95, 2.0)
    (72, 30)
    """
    if not 0 < margin < unseen:
        return FEWEST_ROWS
    return max(FEWEST_ROWS, math.ceil(math.log((1 - level) / 2) / math.log1p(-margin / unseen)))


def _bounded(total: Tensor, mass: Tensor, level: float, bound: float) -> tuple[float, float]:
    """Gaffke's interval of the ratio of row totals ``[G]``, the row out of sight having a mean of 0 or of `bound`."""
    ours, others = _simplex(len(total))
    seen, known = others @ total.numpy(), others @ mass.numpy()  # [D]
    average = float(mass.mean())
    below, above = (
        np.quantile((ours * end * average + (1 - ours) * seen) / (ours * average + (1 - ours) * known), share)
        for end, share in ((0.0, (1 - level) / 2), (bound, (1 + level) / 2))
    )
    return float(below), float(above)


@functools.lru_cache(maxsize=8)
def _simplex(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform points of the simplex: the share of the row out of sight ``[D]``, at its quantiles, and of the rest what
    each row has ``[D, G]``."""
    others = np.random.default_rng(num_rows).standard_exponential((_DRAWS, num_rows))
    share = (np.arange(_DRAWS) + 0.5) / _DRAWS
    return -np.expm1(np.log1p(-share) / num_rows), others / others.sum(1, keepdims=True)


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
