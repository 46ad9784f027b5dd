"""Effect sizes: how large an incompatibility is, how sure that is, what rounding alone would make, what it cost.

A network is a fixed function: nothing about its answers at one data row is random, so that one value which rounding
cannot explain refutes compatibility. What is sampled are the data rows (and with them the contexts): how large the mean
effect is has an interval, clustered by row. Values of one row count as one observation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from flexgen.checks import is_number, kind_of
from flexgen.compatibility.networks.arguments import check_margin, numbers, tensor
from flexgen.compatibility.networks.intervals import (
    MOST,
    UNSEEN,
    Estimate,
    IntervalMethod,
    mean_by_clusters,
    rows_for,
)
from flexgen.errors import DataError, FlexgenError

__all__ = ["Cost", "Effect", "Estimate", "Verdict"]

Verdict = Literal["refuted", "not refuted", "equivalent within margin", "not measured"]


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

    Raises:
        DataError: parts that are no tensors, of other lengths, or weights and floors that are negative or not finite.
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
    _weights_total: float = field(default=1.0, init=False, repr=False)
    _uniform_weights_total: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        values = numbers("values", self.values)
        size = len(values)
        floor = self.floor if isinstance(self.floor, Tensor) else torch.tensor(float(self.floor))
        uniform = torch.ones(size) if self.uniform_weights is None else self.uniform_weights
        parts = {
            "values": values,
            "weights": numbers("weights", self.weights, size),
            "rows": tensor("rows", self.rows).cpu(),
            "sites": tensor("sites", self.sites).cpu(),
            "floor": numbers("floor", floor.expand(size) if floor.ndim == 0 else floor, size),
            "uniform_weights": numbers("uniform_weights", uniform, size),
        }
        for name, dimensions in (("rows", 1), ("sites", 2)):
            part = parts[name]
            if part.ndim != dimensions or len(part) != size:
                raise DataError(name, f"have shape {tuple(part.shape)}", f"Pass {size} entries, one a value.")
        known = ~values.isnan()  # where both routes are impossible, floors are not numbers either
        for name, part in parts.items():
            part = part if bool(known.all()) else part[known]
            bad = ~(part >= 0) | (part.isinf() if name != "floor" else torch.tensor(False))
            if name in ("weights", "uniform_weights", "floor") and bool(bad.any()):
                raise DataError(name, f"hold {float(part[bad][0]):g}", "Pass numbers of zero or more, weights finite.")
            if name.endswith("weights"):
                total = float(part.sum())
                object.__setattr__(self, f"_{name}_total", total)
                part = part / max(total, torch.finfo(torch.float64).tiny)
            object.__setattr__(self, name, part)

    @classmethod
    def joined(cls, parts: Sequence[Effect]) -> Effect:
        """Effects of different data rows as one; every value keeps the weight it was given."""
        first = parts[0]

        def together(name: str) -> Tensor:
            return torch.cat([getattr(part, name) * getattr(part, f"_{name}_total", 1) for part in parts])

        return cls(
            first.name,
            together("values"),
            together("weights"),
            together("rows"),
            together("sites"),
            together("floor"),
            cost=sum((part.cost for part in parts), Cost()),
            unit=first.unit,
            uniform_weights=together("uniform_weights"),
        )

    def at_rows(self, numbers: Tensor) -> Effect:
        """The same with rows 0, 1, .. called by these numbers, int64 ``[R]``."""
        total, uniform_total = self._weights_total, self._uniform_weights_total
        assert self.uniform_weights is not None
        return dataclasses.replace(
            self,
            rows=numbers.cpu()[self.rows],
            weights=self.weights * total,
            uniform_weights=self.uniform_weights * uniform_total,
        )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        if not len(self):
            return f"Effect {self.name!r}: no values"
        mean, above = self.weighted(), f"{100 * self.share_above_floor:.0f} %"
        return (
            f"Effect {self.name!r}: weighted mean {mean} {self.unit}, floor {mean.floor:.2g}; {self.verdict()}\n"
            f"{len(self):,} values in {self.num_rows:,} data rows, {above} above the floor; "
            f"{self.cost.forwards:,} forwards"
        )

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
        return float(self._above.double().mean()) if len(self) else 0.0

    @property
    def _above(self) -> Tensor:
        """Which values these are, bool ``[M]``."""
        return (self.values.abs() > self.floors) | self.values.isinf()

    def uniform(
        self,
        *,
        level: float = 0.95,
        method: IntervalMethod = "bounded",
        seed: int = 0,
        unseen: float | None = None,
    ) -> Estimate:
        """The mean absolute effect, everything counted alike; see `weighted`."""
        assert self.uniform_weights is not None
        return self._estimate(self.uniform_weights, level, method, seed, unseen)

    def weighted(
        self,
        *,
        level: float = 0.95,
        method: IntervalMethod = "bounded",
        seed: int = 0,
        unseen: float | None = None,
    ) -> Estimate:
        """The mean absolute effect, weighted by probability.

        Args:
            level: nominal coverage of the interval.
            method: ``"bounded"``: Gaffke's interval over data rows, right for sparse effects and few rows, see
                `intervals`; ``"t"``: the linearised (cluster-robust) standard error of a ratio of row totals, with
                Student's t of rows - 1 degrees of freedom, and ``"bootstrap"``: 2000 resamples of whole rows,
                studentised: both for effects of which every row has a share, and many rows.
            seed: of the bootstrap.
            unseen: the most that a row's mean effect is in contexts that were not seen, for the upper limit of
                ``"bounded"``; twice the largest seen, if that is more. Default: 2 nats; 1 for a total variation.
        """
        return self._estimate(self.weights, level, method, seed, unseen)

    def rows_for(self, margin: float, *, level: float = 0.95, unseen: float | None = None) -> int:
        """Data rows without which the effect cannot be called equivalent to none within a margin: 30 or more."""
        check_margin(margin, self.unit)
        return rows_for(margin, level, UNSEEN.get(self.unit, 0.0) if unseen is None else unseen)

    def verdict(self, margin: float | None = None, *, level: float = 0.95, unseen: float | None = None) -> Verdict:
        """What may be said.

        * ``"not measured"``: there is no value;
        * ``"equivalent within margin"``: a margin is given, and the whole interval is below it, of the
          probability-weighted and of the uniform mean; never from fewer than 30 data rows, nor from fewer than
          `rows_for` says, which cannot tell that few contexts do not have a large effect;
        * ``"refuted"``: some value lies above its floor: these conditionals have no joint. One is enough, since nothing
          about a network's answers is random. The interval says how large the effect is elsewhere;
        * ``"not refuted"``: none does. Values can refute compatibility, never prove it.
        """
        check_margin(margin, self.unit)
        if not len(self):
            return "not measured"
        if (
            margin is not None
            and not self.num_infinite
            and self.num_rows >= self.rows_for(margin, level=level, unseen=unseen)
            and all(mean(level=level, unseen=unseen).high <= margin for mean in (self.weighted, self.uniform))
        ):
            return "equivalent within margin"
        return "refuted" if bool(self._above.any()) else "not refuted"

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

    def _estimate(
        self, weights: Tensor, level: float, method: IntervalMethod, seed: int, unseen: float | None
    ) -> Estimate:
        if unseen is not None and (not is_number(unseen) or not 0 <= unseen < math.inf):
            raise FlexgenError("unseen", f"is {kind_of(unseen)}", f"Pass a number of {self.unit}, 0 or more.")
        finite = self.values.isfinite()
        sizes, floors = self.values[finite].abs(), self.floors[finite]
        bound = UNSEEN.get(self.unit, 0.0) if unseen is None else float(unseen)
        most = MOST.get(self.unit, math.inf)
        return mean_by_clusters(sizes, weights[finite], floors, self.rows[finite], level, method, seed, bound, most)
