"""Effect sizes: how large an incompatibility is, how sure that is, what rounding alone would make, what it cost.

A network is a fixed function: nothing about its answers at one data row is random. What is sampled are the data rows
(and with them the contexts), so intervals are clustered by row: values of one row count as one observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from flexgen.errors import FlexgenError

__all__ = ["Cost", "Effect", "Estimate", "Verdict", "check_level", "check_margin"]

Verdict = Literal["refuted", "not refuted", "equivalent within margin"]
IntervalMethod = Literal["t", "bootstrap"]


@dataclass(frozen=True)
class Cost:
    """What a measurement took.

    Args:
        forwards: rows that passed the network, each with its own set of observed sites.
        batches: calls of the network.
        seconds: wall clock inside the network.
        needed: the fewest rows that hold the answers it reads: distinct (observed sites, their values).
    """

    forwards: int = 0
    batches: int = 0
    seconds: float = 0.0
    needed: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards,
            self.batches + other.batches,
            self.seconds + other.seconds,
            self.needed + other.needed,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards - other.forwards,
            self.batches - other.batches,
            self.seconds - other.seconds,
            self.needed - other.needed,
        )


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


@dataclass(frozen=True, eq=False)
class Effect:
    """Signed effects, one a place that was looked at; zero everywhere if and only if no incompatibility is there.

    Args:
        name: what was measured.
        values: float64 ``[M]``, signed, in `unit`; infinite where one route calls impossible what the other does not.
        weights: float64 ``[M]``, probability weights; they are divided by their sum.
        rows: int64 ``[M]``, the data row of each; the clusters.
        sites: int64 ``[M, k]``, which sites each is about.
        floor: the most that rounding alone can make of each value, ``[M]`` or one number for all.
        cost: what measuring took.
        unit: ``"nats"`` unless said otherwise.
        uniform_weights: weights that count everything alike, ``[M]``; default: equal ones.

    Values that are NaN (both routes call the place impossible) are left out.
    """

    name: str
    values: Tensor
    weights: Tensor
    rows: Tensor
    sites: Tensor
    floor: Tensor | float = 0.0
    cost: Cost = field(default_factory=Cost)
    unit: str = "nats"
    uniform_weights: Tensor | None = None

    def __post_init__(self) -> None:
        values = self.values.detach().to("cpu", torch.float64)
        size = len(values)
        floor = torch.as_tensor(self.floor, dtype=torch.float64).cpu().expand(size)
        uniform = torch.ones(size) if self.uniform_weights is None else self.uniform_weights
        parts = {
            "values": values,
            "weights": self.weights.detach().to("cpu", torch.float64),
            "rows": self.rows.cpu(),
            "sites": self.sites.cpu(),
            "floor": floor,
            "uniform_weights": uniform.detach().to("cpu", torch.float64),
        }
        wrong = [name for name, part in parts.items() if len(part) != size]
        if wrong:
            raise FlexgenError(wrong[0], f"has {len(parts[wrong[0]])} entries", f"Pass {size}, one a value.")
        if bool((parts["weights"] < 0).any() | (parts["uniform_weights"] < 0).any()):
            raise FlexgenError("weights", "holds a negative number", "Weights are probabilities.")
        known = ~values.isnan()
        for name, part in parts.items():
            part = part if bool(known.all()) else part[known]
            if name.endswith("weights"):
                part = part / part.sum().clamp_min(torch.finfo(torch.float64).tiny)
            object.__setattr__(self, name, part)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def floors(self) -> Tensor:
        """The floor of every value, float64 ``[M]``."""
        return torch.as_tensor(self.floor)

    @property
    def num_rows(self) -> int:
        """How many data rows there are: the sample size of the intervals."""
        return len(torch.unique(self.rows))

    @property
    def num_infinite(self) -> int:
        """Places that one route calls impossible and the other does not; each refutes by itself, no mean holds it."""
        return int(self.values.isinf().sum())

    @property
    def share_above_floor(self) -> float:
        """Share of the values that rounding cannot explain."""
        return float((self.values.abs() > self.floors).double().mean()) if len(self) else 0.0

    def uniform(self, *, level: float = 0.95, method: IntervalMethod = "t", seed: int = 0) -> Estimate:
        """The mean absolute effect, everything counted alike; see `weighted`."""
        assert self.uniform_weights is not None
        return self._estimate(self.uniform_weights, level, method, seed)

    def weighted(self, *, level: float = 0.95, method: IntervalMethod = "t", seed: int = 0) -> Estimate:
        """The mean absolute effect, weighted by probability.

        Args:
            level: nominal coverage of the interval.
            method: ``"t"``: the linearised (cluster-robust) standard error of a ratio of row totals, with Student's t
                of rows - 1 degrees of freedom; ``"bootstrap"``: 2000 resamples of whole rows, studentised, which is
                better where few rows make most of the effect.
            seed: of the bootstrap.
        """
        return self._estimate(self.weights, level, method, seed)

    def verdict(self, margin: float | None = None, *, level: float = 0.95) -> Verdict:
        """What may be said.

        * ``"equivalent within margin"``: a margin is given, and the whole interval is below it;
        * ``"refuted"``: the whole interval lies above the floor: these conditionals have no joint;
        * ``"not refuted"``: neither. Samples can refute compatibility, never prove it.

        Both the probability-weighted and the uniform interval must be below the margin; either refutes.
        """
        check_margin(margin, self.unit)
        estimates = (self.weighted(level=level), self.uniform(level=level))
        if margin is not None and not self.num_infinite and all(e.high <= margin for e in estimates):
            return "equivalent within margin"
        return "refuted" if self.num_infinite or any(e.low > e.floor for e in estimates) else "not refuted"

    def by_sites(self) -> pd.DataFrame:
        """A row for every group of sites: mean absolute effects, floor, and how many values and rows they rest on."""
        groups, of = torch.unique(self.sites, dim=0, return_inverse=True)
        finite = self.values.isfinite()
        size = self.values.abs().where(finite, 0.0)

        def mean(what: Tensor, weights: Tensor) -> Tensor:
            total = torch.zeros(len(groups), dtype=torch.float64)
            return total.index_add(0, of, what * weights) / total.index_add(0, of, weights * finite)

        assert self.uniform_weights is not None
        frame = pd.DataFrame(groups.numpy(), columns=[f"site_{k}" for k in range(groups.shape[1])])
        frame["uniform"] = mean(size, self.uniform_weights).numpy()
        frame["weighted"] = mean(size, self.weights).numpy()
        frame["floor"] = mean(self.floors.where(finite, 0.0), self.uniform_weights).numpy()
        frame["largest"] = torch.zeros(len(groups), dtype=torch.float64).scatter_reduce(0, of, size, "amax").numpy()
        frame["num_values"] = torch.bincount(of, minlength=len(groups)).numpy()
        return frame

    def to_dataframe(self) -> pd.DataFrame:
        """A row for every value."""
        sites = {f"site_{k}": self.sites[:, k].numpy() for k in range(self.sites.shape[1])}
        parts: dict[str, Any] = {"value": self.values, "floor": self.floors, "weight": self.weights, "row": self.rows}
        return pd.DataFrame({"effect": self.name, **sites, **{name: part.numpy() for name, part in parts.items()}})

    def _estimate(self, weights: Tensor, level: float, method: IntervalMethod, seed: int) -> Estimate:
        check_level(level)
        if method not in ("t", "bootstrap"):
            raise FlexgenError("method", f"is {method!r}", "Choose 't' or 'bootstrap'.")
        finite = self.values.isfinite()
        weights = weights[finite]
        _, cluster = torch.unique(self.rows[finite], return_inverse=True)
        num_clusters = int(cluster.max()) + 1 if len(cluster) else 0
        empty = torch.zeros(num_clusters, dtype=torch.float64)
        mass = empty.index_add(0, cluster, weights)  # [G]
        total = empty.index_add(0, cluster, weights * self.values[finite].abs())  # [G]
        floor = float((weights * self.floors[finite]).sum() / weights.sum()) if num_clusters else math.nan
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


def check_margin(margin: float | None, unit: str = "nats") -> None:
    """Refuses what is no margin of equivalence."""
    if margin is not None and not margin > 0:
        raise FlexgenError("margin", f"is {margin}", f"Pass a positive number of {unit}, or None.")


def check_level(level: float) -> None:
    """Refuses what is no coverage of an interval."""
    if not 0 < level < 1:
        raise FlexgenError("level", f"is {level}", "Pass a coverage between 0 and 1, such as 0.95.")


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
