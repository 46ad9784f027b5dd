"""Two reports side by side: how much an effect changed, by a repair or more training, and how sure that is.

Where both looked at the same places (same data rows, seed and plan), each data row gives a difference of its own, and
most of what makes rows differ cancels: the interval is *paired*. Otherwise the two samples of rows are taken as
independent, and the interval is Welch's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Tensor

from flexgen.checks import kind_of
from flexgen.compatibility.networks.arguments import check_level
from flexgen.compatibility.networks.effects import Effect, Estimate
from flexgen.compatibility.networks.report import Report, interval, number
from flexgen.errors import FlexgenError

__all__ = ["Comparison", "EffectChange", "compare"]


@dataclass(frozen=True)
class EffectChange:
    """An effect in two reports.

    Args:
        effect: its name.
        unit: of all numbers.
        before, after: weighted means of absolute values, each with its own interval.
        change: after less before.
        low, high: interval of the change at `level`; NaN where a report has fewer than two data rows.
        level: nominal coverage.
        paired: whether both looked at the same places of the same data rows.
        num_rows: data rows of each.
        num_infinite: values of each that are infinite, which no mean holds.
    """

    effect: str
    unit: str
    before: Estimate
    after: Estimate
    change: float
    low: float
    high: float
    level: float
    paired: bool
    num_rows: tuple[int, int]
    num_infinite: tuple[int, int]

    @property
    def direction(self) -> str:
        """``"smaller"`` or ``"larger"`` where the interval leaves zero out, otherwise ``"not told apart"``."""
        return "smaller" if self.high < 0 else "larger" if self.low > 0 else "not told apart"


@dataclass(frozen=True)
class Comparison:
    """What changed between two reports; prints as a table.

    Args:
        changes: of every effect that both measured.
        missing: effects that one of them lacks.
        verdicts: of both.
    """

    changes: tuple[EffectChange, ...]
    missing: tuple[str, ...]
    verdicts: tuple[str, str]

    def __getitem__(self, effect: str) -> EffectChange:
        found = next((change for change in self.changes if change.effect == effect), None)
        if found is None:
            there = ", ".join(change.effect for change in self.changes)
            raise FlexgenError("effect", f"is {effect!r}, which is not in both reports", f"There are: {there}.")
        return found

    def to_dataframe(self) -> pd.DataFrame:
        """A row for every effect."""
        return pd.DataFrame(
            [
                {
                    "effect": c.effect,
                    "unit": c.unit,
                    "before": c.before.value,
                    "after": c.after.value,
                    "change": c.change,
                    "low": c.low,
                    "high": c.high,
                    "paired": c.paired,
                    "direction": c.direction,
                }
                for c in self.changes
            ]
        )

    def __rich__(self) -> Table:
        level = f"{100 * self.changes[0].level:g} %"
        table = Table(
            box=box.SIMPLE_HEAD,
            title_justify="left",
            pad_edge=False,
            title="before: {}, after: {}".format(*self.verdicts),
        )
        for k, column in enumerate(
            ("effect (weighted mean, nats)", "before", "after", f"change ({level})", "", "rows")
        ):
            table.add_column(column, justify="right" if k in (1, 2, 3) else "left")
        for c in self.changes:
            infinite = (
                f", {c.num_infinite[0]} and {c.num_infinite[1]} infinite values aside" if any(c.num_infinite) else ""
            )
            table.add_row(
                c.effect + ("" if c.unit == "nats" else f" ({c.unit})"),
                number(c.before.value),
                number(c.after.value),
                f"{number(c.change)} ({interval(c)})",
                c.direction + infinite,
                f"{c.num_rows[0]}, paired" if c.paired else f"{c.num_rows[0]} and {c.num_rows[1]}",
            )
        return table

    def __repr__(self) -> str:
        console = Console(
            width=120, force_jupyter=False, force_terminal=False, color_system=None, no_color=True, legacy_windows=False
        )
        with console.capture() as captured:
            console.print(self)
        text = "\n".join(line.rstrip() for line in captured.get().splitlines())
        return text + (f"\nIn one report only: {', '.join(self.missing)}." if self.missing else "")


def compare(before: Report, after: Report, *, level: float | None = None) -> Comparison:
    """How effects changed from one report to another.

    Args:
        before, after: of two models with the same sites, such as a network before and after a repair. Diagnose both
            with the same data, budget and seed: differences are then paired, which makes intervals much shorter.
        level: nominal coverage of the intervals; default: that of `before`.

    Raises:
        FlexgenError: reports on other sites, with values chosen otherwise, or without an effect in common.

    Paired: mean effects are ratios Σ t_g / Σ m_g over data rows g, of weighted sizes t and weights m. Their difference
    has the linearised residuals (t'_g - r' m'_g) / M' - (t_g - r m_g) / M, whose spread over rows gives a standard
    error, with Student's t of rows - 1 degrees of freedom.
    """
    for name, report in (("before", before), ("after", after)):
        if not isinstance(report, Report):
            raise FlexgenError(name, f"is {kind_of(report)}", "Pass what fg.diagnose or Report.load returned.")
    level = before.level if level is None else level
    check_level(level)
    if before.names != after.names:
        raise FlexgenError(
            "after",
            f"is about other sites than before ({_differ(before.names, after.names)})",
            "Diagnose the same sites.",
        )
    values = [report.settings.get("values") for report in (before, after)]
    if None not in values and values[0] != values[1]:
        raise FlexgenError(
            "after", f"looked at values chosen by {values[1]}, before by {values[0]}", "Pass the same values to both."
        )
    both = [n for n, e in before.effects.items() if len(e) and n in after.effects and len(after.effects[n])]
    if not both:
        there = " and ".join(", ".join(report.effects) or "none" for report in (before, after))
        raise FlexgenError("after", f"has no effect in common with before (they have {there})", "Measure the same.")
    for name in both:
        units = before.effects[name].unit, after.effects[name].unit
        if units[0] != units[1]:
            raise FlexgenError("after", f"has {name!r} in {units[1]}, before in {units[0]}", "Use one unit.")
    return Comparison(
        tuple(_change(name, before, after, level) for name in both),
        tuple(dict.fromkeys(name for report in (before, after) for name in report.effects if name not in both)),
        (before.verdict, after.verdict),
    )


def _change(name: str, before: Report, after: Report, level: float) -> EffectChange:
    one, other = before.effects[name], after.effects[name]
    paired = _same_places(name, before, after)
    means = one.weighted(level=level), other.weighted(level=level)
    rows = torch.unique(torch.cat([one.rows, other.rows])) if paired else None
    residuals = [_residuals(effect, rows) for effect in (one, other)]
    counts = [len(part) for part in residuals]
    change = means[1].value - means[0].value
    if min(counts) < 2:
        error, freedom = math.nan, 1.0
    elif paired:
        error, freedom = _error(residuals[1] - residuals[0]), counts[0] - 1.0
    else:
        errors = [_error(part) for part in residuals]
        error = math.hypot(*errors)
        below = sum(e**4 / (n - 1) for e, n in zip(errors, counts, strict=True))
        freedom = error**4 / below if below else math.inf  # Welch and Satterthwaite
    reach = float(stats.t.ppf(0.5 + level / 2, freedom)) * error
    return EffectChange(
        name,
        one.unit,
        *means,
        change,
        change - reach,
        change + reach,
        level,
        paired,
        (one.num_rows, other.num_rows),
        (one.num_infinite, other.num_infinite),
    )


def _same_places(name: str, before: Report, after: Report) -> bool:
    """Whether an effect was measured in the same data rows, at the same pairs or targets of each."""
    digests = [report.settings.get("plans", {}).get(name) for report in (before, after)]
    seeds = [report.settings.get("seed") for report in (before, after)]
    if digests[0] is None or digests[0] != digests[1] or seeds[0] != seeds[1]:
        return False
    one, other = before.effects[name], after.effects[name]
    return torch.equal(torch.unique(one.rows), torch.unique(other.rows))


def _residuals(effect: Effect, rows: Tensor | None) -> Tensor:
    """(t_g - r m_g) / M of every data row (those given, if any), float64 ``[G]``; they sum to zero."""
    finite = effect.values.isfinite()
    weights, sizes = effect.weights[finite], effect.values[finite].abs()
    known = torch.unique(effect.rows[finite]) if rows is None else rows
    cluster = torch.searchsorted(known, effect.rows[finite])
    empty = torch.zeros(len(known), dtype=torch.float64)
    total, mass = empty.index_add(0, cluster, weights * sizes), empty.index_add(0, cluster, weights)
    return (total - total.sum() / mass.sum() * mass) / mass.sum()


def _error(residuals: Tensor) -> float:
    return math.sqrt(len(residuals) / (len(residuals) - 1) * float(residuals.square().sum()))


def _differ(one: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} sites"
    first = next(k for k, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return f"site {first} is {one[first]!r} and {other[first]!r}"
