"""Missingness that depends on values: laws whose target is what a mechanism would hide.

Rubin's terms: missing completely at random needs no values (`Bernoulli`); at random (MAR) when the drivers are always
observed; not at random (MNAR) when a value drives its own absence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import entries, freeze, number, one_of, real_tensor, source, true_tensor, whole_numbers
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness
from samplers.laws.base import Law, Rows, Sets

__all__ = ["LogisticMissing", "QuantileMissing"]

_STANDARD = 1e-12  # a column flatter than this is constant


@dataclass(frozen=True)
class LogisticMissing(Law):
    """Site i is a target with probability sigmoid(intercept_i + sum_j weights_ij x_j), each on its own.

    Args:
        weights: ``N x N``; row i drives the absence of site i. Off the always observed sites: MAR. Diagonal: MNAR.
        intercepts: ``N``; minus infinity for a site that is always observed.
        means: ``N``; stands in for a driver that is missing itself.

    `mar` and `mnar` fit one to data at a given rate.
    """

    weights: Sequence[Sequence[float]]
    intercepts: Sequence[float]
    means: Sequence[float]

    def __post_init__(self) -> None:
        fix = "Pass an N x N matrix, N intercepts and N means."
        weights = tuple(_numbers("weights", row, fix) for row in entries("weights", self.weights, fix))
        intercepts, means = _numbers("intercepts", self.intercepts, fix, -math.inf), _numbers("means", self.means, fix)
        if len({len(weights), len(intercepts), len(means), *map(len, weights)}) != 1:
            raise FlexgenError(
                "weights",
                f"is {len(weights)} rows for {len(intercepts)} intercepts and {len(means)} means",
                "Pass an N x N matrix, N intercepts and N means.",
            )
        freeze(self, weights=weights, intercepts=intercepts, means=means)

    def probability(self, x: Tensor, present: Tensor) -> Tensor:
        """Of each site being a target, were it present: ``[B, N]``."""
        real_tensor("x", x, f"[B, {len(self.means)}]", ndim=2)
        true_tensor("present", present, (len(x), len(self.means)))
        weights, intercepts, means = (parameter.to(x.device) for parameter in self._parameters)
        return torch.sigmoid(torch.addmm(intercepts, torch.where(present, x.float(), means), weights.mT))

    @cached_property
    def _parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, intercepts and means as float32 tensors; tuples of numbers are slow to convert at each draw."""
        return torch.tensor(self.weights), torch.tensor(self.intercepts), torch.tensor(self.means)

    def draw_sets(self, rows: Rows) -> Sets:
        x = _values(rows, len(self.intercepts))
        target = rng.bernoulli(self.probability(x, rows.present), generator=rows.generator)
        return rows.rest(target & rows.present)

    @classmethod
    def mar(
        cls, x: Tensor, *, drivers: Sequence[int], rate: float, present: Tensor | None = None, generator: Randomness
    ) -> LogisticMissing:
        """Missing at random: `drivers` are always observed, the other columns go missing at `rate` on average over `x`.

        Each column's weights are normal, scaled so that its logit has unit variance over the data.
        """
        present, _ = _data(x, present), source("generator", generator)
        drivers = _columns(drivers, x.shape[1])
        drives = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        drives[list(drivers)] = True
        if not 0 < int(drives.sum()) < x.shape[1]:
            raise FlexgenError("drivers", f"is {drivers!r}", "Name at least one column, and leave at least one.")
        weights = rng.normal((x.shape[1], x.shape[1]), generator=_plain(generator), dtype=torch.float64)
        return cls._fit(x, present, weights * drives * ~drives[:, None], ~drives, rate)

    @classmethod
    def mnar(cls, x: Tensor, *, rate: float, slope: float = 1.0, present: Tensor | None = None) -> LogisticMissing:
        """Self-masked: large values of a column (small, for a negative slope) hide themselves, at `rate` on average."""
        present, slope = _data(x, present), number("slope", slope, -1e6, 1e6)
        everywhere = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        return cls._fit(
            x, present, slope * torch.eye(x.shape[1], dtype=torch.float64, device=x.device), everywhere, rate, slope
        )

    @classmethod
    def _fit(
        cls, x: Tensor, present: Tensor, weights: Tensor, affected: Tensor, rate: float, scale: float = 1.0
    ) -> LogisticMissing:
        """Scales each row of weights to logits of standard deviation |scale|, and finds intercepts by bisection."""
        number("rate", rate, 0.0, 1.0)
        count = present.sum(0).clamp_min(1)
        means = torch.where(present, x.double(), 0.0).sum(0) / count
        logits = torch.where(present, x.double(), means) @ weights.mT  # [B, N]
        spread = logits.std(0, correction=0)
        factor = torch.where(spread > _STANDARD, abs(scale) / spread.clamp_min(_STANDARD), 0.0)
        weights, logits = weights * factor[:, None], logits * factor
        low, high = -logits.amax(0) - 40.0, -logits.amin(0) + 40.0
        for _ in range(64):
            middle = 0.5 * (low + high)
            missing = torch.where(present, torch.sigmoid(logits + middle), 0.0).sum(0) / count
            low, high = torch.where(missing < rate, middle, low), torch.where(missing < rate, high, middle)
        intercepts = torch.where(affected, 0.5 * (low + high), -math.inf)
        return cls(weights.tolist(), intercepts.tolist(), means.tolist())


@dataclass(frozen=True)
class QuantileMissing(Law):
    """Site i is a target with probability `rate` where its driver is beyond a threshold, and never elsewhere.

    Args:
        drivers: ``N``; the site that drives the absence of each site, itself for MNAR, -1 for always observed.
        thresholds: ``N``, of the driver of each site.
        rate: probability beyond the threshold; the marginal rate is rate * (share of data beyond it).
        beyond: "above" or "below".

    `fit` takes the thresholds from data. A missing driver hides nothing.
    """

    drivers: Sequence[int]
    thresholds: Sequence[float]
    rate: float
    beyond: str = "above"

    def __post_init__(self) -> None:
        fix = "Give one threshold for each site."
        drivers, thresholds = _columns(self.drivers, least=-1), _numbers("thresholds", self.thresholds, fix)
        if len(drivers) != len(thresholds):
            raise FlexgenError(
                "thresholds", f"has {len(thresholds)} entries for {len(drivers)} drivers", "Give one for each site."
            )
        number("rate", self.rate, 0.0, 1.0)
        one_of("beyond", self.beyond, ("above", "below"))
        freeze(self, drivers=drivers, thresholds=thresholds)

    @classmethod
    def fit(
        cls, x: Tensor, *, drivers: Sequence[int], quantile: float, rate: float, beyond: str = "above"
    ) -> QuantileMissing:
        """Thresholds at a quantile of the values present (finite) in each driver's column."""
        number("quantile", quantile, 0.0, 1.0)
        _data(x, None)
        drivers = _columns(drivers, x.shape[1], least=-1)
        if len(drivers) != x.shape[1]:
            raise FlexgenError(
                "drivers", f"names {len(drivers)} for the {x.shape[1]} columns of x", "Give one for each column."
            )
        cut = torch.nanquantile(torch.where(_finite(x), x.double(), math.nan), quantile, dim=0).tolist()
        return cls(drivers, [cut[driver] for driver in drivers], rate, beyond)

    def draw_sets(self, rows: Rows) -> Sets:
        x = _values(rows, len(self.drivers))
        driver = torch.tensor(self.drivers, device=x.device)
        value, known = x[:, driver], rows.present[:, driver] & (driver >= 0)
        cut = torch.tensor(self.thresholds, dtype=torch.float64, device=x.device)
        hidden = known & ((value > cut) if self.beyond == "above" else (value < cut))
        u = rng.uniform(rows.present.shape, generator=rows.generator)
        return rows.rest(hidden & (u < self.rate) & rows.present)


def _columns(drivers: Any, num_columns: int | None = None, *, least: int = 0) -> tuple[int, ...]:
    """Column numbers, of as many columns as there are drivers by default; -1, where it is allowed, for none."""
    if not isinstance(drivers, Iterable):
        raise FlexgenError("drivers", f"is {drivers!r}", "Pass a list of column numbers.")
    chosen = entries("drivers", drivers, "Pass a list of column numbers.")
    num_columns = len(chosen) if num_columns is None else num_columns
    fix = f"Name columns by their numbers, 0 to {num_columns - 1}" + (", or -1 for none." if least < 0 else ".")
    return whole_numbers("drivers", chosen, fix, least=least, most=num_columns - 1)


def _numbers(argument: str, values: Any, fix: str, low: float | None = None) -> tuple[float, ...]:
    """Finite numbers, or `low`."""
    given = entries(argument, values, fix)
    return tuple(-math.inf if isinstance(v, float) and v == low else number(argument, v, fix=fix) for v in given)


def _data(x: Any, present: Any) -> Tensor:
    """Which entries of the data ``[B, N]`` are there."""
    real_tensor("x", x, "[B, N]", ndim=2)
    return _finite(x) if present is None else true_tensor("present", present, tuple(x.shape))


def _values(rows: Rows, num_sites: int) -> Tensor:
    if rows.x is None:
        raise FlexgenError("x", "is None, but this law depends on the values", "Call law.draw(present, x=x, ...).")
    if rows.x.ndim != 2 or rows.num_sites != num_sites:
        raise FlexgenError("x", f"has shape {tuple(rows.x.shape)}", f"This law takes scalar sites, [B, {num_sites}].")
    return rows.x


def _finite(x: Tensor) -> Tensor:
    return torch.isfinite(x) if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)


def _plain(generator: Randomness) -> torch.Generator:
    """Weights of a mechanism are no row's: they come from a generator, seeded by the streams where those are given."""
    if isinstance(generator, torch.Generator):
        return generator
    return rng.stream(rng.seed_from(generator), "weights", device=generator.device)
