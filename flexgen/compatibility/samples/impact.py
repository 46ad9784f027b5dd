"""What an incompatibility does to what the user wants: the law of a block of sites, a statistic, the fit to data.

A diagnostic says that conditionals disagree; these say how much it matters. Draws come from chains that have converged,
one set for each scan; all errors are those of independent units, see `units`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from flexgen.compatibility.networks.effects import Verdict
from flexgen.compatibility.samples.arguments import (
    DrawsOfScans,
    check_callable,
    check_confidence,
    check_margin,
    checked_draws,
    checked_unit,
    numbers,
)
from flexgen.compatibility.samples.units import Unit, Units, cut
from flexgen.errors import DataError

__all__ = ["Change", "ScanMean", "StatisticChange", "statistic_change"]


@dataclass(frozen=True)
class ScanMean:
    """A statistic under one scan.

    Args:
        scan: its name.
        value: of the statistic.
        mcse: its Monte Carlo standard error.
        ess: effective draws: independent ones that would give this error; NaN for statistics that are no means.
    """

    scan: str
    value: float
    mcse: float
    ess: float

    def __str__(self) -> str:
        ess = "" if math.isnan(self.ess) else f" ({self.ess:.0f} effective draws)"
        return f"{self.scan}: {self.value:.4g} ± {self.mcse:.2g}{ess}"

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Change:
    """A statistic under the second scan less that under the first.

    Args:
        first, second: the scans.
        value: the change.
        mcse: its Monte Carlo standard error.
        low, high: its interval, at the level of all pairs together (Bonferroni).
        in_sds: the change in standard deviations of the statistic over draws; NaN for statistics that are no means.
    """

    first: str
    second: str
    value: float
    mcse: float
    low: float
    high: float
    in_sds: float

    def __str__(self) -> str:
        sds = "" if math.isnan(self.in_sds) else f", {self.in_sds:+.3f} sd"
        return f"{self.first} -> {self.second}: {self.value:+.4g} ({self.low:+.4g} to {self.high:+.4g}{sds})"

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class StatisticChange:
    """How a statistic changes from scan to scan.

    Args:
        name: of the statistic.
        scans, changes: of each scan, and of every two.
        confidence: of all intervals together.
        unit, num_units: what the errors rest on.
        margin: a change that the user holds negligible, if one was given.
        verdict: "refuted": some interval excludes 0, the scans have no common law; "equivalent within margin": every
            interval lies within the margin (also where it excludes 0); else "not refuted".
    """

    name: str
    scans: tuple[ScanMean, ...]
    changes: tuple[Change, ...]
    confidence: float
    unit: str
    num_units: tuple[int, ...]
    margin: float | None
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        units = ", ".join(map(str, self.num_units))
        lines = [
            f"{self.name} across scans: {self.verdict} (± one Monte Carlo standard error, in brackets intervals of "
            f"{self.confidence:.0%} over all pairs; {units} {self.unit})",
            *(f"  {scan}" for scan in self.scans),
            *(f"  {change}" for change in self.changes),
        ]
        if self.margin is not None:
            lines.append(f"  margin: {self.margin:g}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def statistic_change(
    draws: DrawsOfScans,
    statistic: Callable[[Tensor], Tensor],
    *,
    per_draw: bool = True,
    name: str | None = None,
    unit: Unit = "auto",
    margin: float | None = None,
    confidence: float = 0.95,
) -> StatisticChange:
    """How a statistic of the user changes from scan to scan, with Monte Carlo errors and intervals.

    Args:
        draws: name of a scan -> ``[chains, draws, N]``, or what a sampler's run returned (anything with `.draws`,
            ``[draws, chains, N]``); of chains that have converged. Run every scan with a seed of its own: equal seeds
            make chains of two scans alike, and the error of a change is that of independent ones.
        statistic: of draws ``[n, N]``. With `per_draw` it gives one number a draw, ``[n]``, whose mean is looked at: an
            indicator for a probability, a product for a moment. Without, it gives one number for all draws: a
            correlation, a fitted slope; it should be smooth in the draws' law (the jackknife fails for a median).
        name: of the statistic, for reading.
        unit: whole chains, or blocks; see docs/compatibility/draws.md.
        margin: a change that is negligible; adds the verdict "equivalent within margin".
        confidence: of the intervals of all pairs together.

    Means have the error of their units' means, other statistics that of the jackknife over units. Intervals are
    Welch's.

    Raises:
        DataError: bad draws, or a statistic of another shape or with values that are not finite.
        FlexgenError: options that cannot be used.
    """
    check_callable("statistic", statistic, "Pass a function of draws [n, N].")
    check_confidence(confidence)
    check_margin(margin, "change")
    units = cut(checked_draws(draws), checked_unit(unit))
    scans, spreads = [], []
    for scan, values in units.draws.items():
        if per_draw:
            mean, mcse, sd = _mean(statistic, scan, values)
            ess = (sd / mcse) ** 2 if mcse > 0 else float(values.shape[0] * values.shape[1])
            scans.append(ScanMean(scan, mean, mcse, ess))
            spreads.append(sd)
        else:
            value, mcse = _jackknife(statistic, scan, values)
            scans.append(ScanMean(scan, value, mcse, math.nan))
            spreads.append(math.nan)
    changes = _changes(units, scans, spreads, confidence)
    verdict: Verdict = "not refuted"
    if margin is not None and all(-margin < change.low and change.high < margin for change in changes):
        verdict = "equivalent within margin"
    elif any(change.low > 0 or change.high < 0 for change in changes):
        verdict = "refuted"
    numbers = tuple(len(values) for values in units.draws.values())
    label = name or getattr(statistic, "__name__", "statistic").replace("<lambda>", "statistic")
    return StatisticChange(label, tuple(scans), changes, confidence, units.kind, numbers, margin, verdict)


def _changes(
    units: Units, scans: Sequence[ScanMean], spreads: Sequence[float], confidence: float
) -> tuple[Change, ...]:
    pairs = list(itertools.combinations(range(len(scans)), 2))
    changes = []
    for a, b in pairs:
        variances = [scans[k].mcse ** 2 for k in (a, b)]
        sizes = [len(units.draws[scans[k].scan]) - 1 for k in (a, b)]
        error = math.sqrt(sum(variances))
        spent = sum(v**2 / n for v, n in zip(variances, sizes, strict=True))
        degrees = sum(variances) ** 2 / spent if spent > 0 else math.inf
        reach = float(stats.t.isf((1 - confidence) / (2 * len(pairs)), degrees)) * error
        value = scans[b].value - scans[a].value
        sd = math.sqrt((spreads[a] ** 2 + spreads[b] ** 2) / 2)
        in_sds = value / sd if sd > 0 else math.nan
        changes.append(Change(scans[a].scan, scans[b].scan, value, error, value - reach, value + reach, in_sds))
    return tuple(changes)


def _mean(statistic: Callable[[Tensor], Tensor], scan: str, draws: Tensor) -> tuple[float, float, float]:
    """Mean, its error and the standard deviation over draws, of ``[U, L, N]``."""
    num_units, length = draws.shape[:2]
    fix = "Return one number a draw, or pass per_draw=False for one number of all draws."
    values = numbers("statistic", statistic(draws.flatten(0, 1)), fix)
    if values.shape != (num_units * length,):
        raise DataError("statistic", f"maps draws [{num_units * length}, N] to shape {tuple(values.shape)}", fix)
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise DataError(
            "statistic",
            f"is not finite at {wrong} of {len(values)} draws of scan {scan!r}",
            "Leave such draws out of the statistic, or bound it: a mean cannot hold them.",
        )
    table = values.to("cpu", torch.float64).view(num_units, length)
    means = table.mean(1)
    return float(means.mean()), float(means.std()) / num_units**0.5, float(table.std())


def _jackknife(statistic: Callable[[Tensor], Tensor], scan: str, draws: Tensor) -> tuple[float, float]:
    """A statistic of all draws and its error, leaving out one unit at a time."""

    def value(part: Tensor) -> float:
        fix = "Return one number, or pass per_draw=True for one number a draw."
        answer = numbers("statistic", statistic(part.flatten(0, 1)), fix)
        if answer.numel() != 1:
            raise DataError("statistic", f"maps all draws to shape {tuple(answer.shape)}", fix)
        if not math.isfinite(answer):
            raise DataError(
                "statistic",
                f"is {float(answer)} for {len(part)} of {num_units} units of scan {scan!r}",
                "It must exist without any one unit: run more chains, or choose a statistic that does.",
            )
        return float(answer)

    num_units = len(draws)
    keep = ~torch.eye(num_units, dtype=torch.bool)
    whole = value(draws)
    without = torch.tensor([value(draws[row]) for row in keep], dtype=torch.float64)
    variance = (num_units - 1) / num_units * ((without - without.mean()) ** 2).sum()
    return whole, float(variance.sqrt())
