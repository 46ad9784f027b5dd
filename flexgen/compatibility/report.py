"""What a diagnosis found, to be read by a person: a table, a data frame, pictures, one HTML file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from flexgen.checks import did_you_mean
from flexgen.compatibility.effects import Cost, Effect, Estimate, Verdict
from flexgen.compatibility.network_arguments import check_margin
from flexgen.errors import FlexgenError

__all__ = ["Report", "Summary"]

MEANING = {
    "rectangle gap": "log cross-ratio of two sites given the rest: p(i|j) against p(j|i)",
    "derivative gap": "mixed derivative of log p(i|j) against that of log p(j|i), times both spreads",
    "circulation": "p(i|C) p(j|C,i) against p(j|C) p(i|C,j), C random",
    "circulation, interaction part": "the part of it that rectangles see (double-centred)",
    "circulation, marginal part": "the rest: p(i|C) and p(j|C) against the two-site conditionals",
    "order gap": "log p(row) by the chain rule in one order against another",
    "block scan divergence": "laws of Gibbs scans over a few sites, their order changed: total variation",
}


@dataclass(frozen=True, eq=False)
class Report:
    """Effects of a diagnosis, with what they rest on.

    Args:
        effects: what was measured, by name.
        names: of the sites.
        model: what was examined, in a word or two.
        num_data: rows of the data given; how many were used, each effect says.
        margin: of equivalence, in nats, or None.
        level: nominal coverage of the intervals.
        assumptions: sentences about what was looked at and how.
        caveats: sentences about what the result cannot tell.
        cost: of everything.
        directions: ``"forward"`` and ``"backward"``: log cross-ratios ``[M]`` of the rectangles, for the picture.
        others: further results by title (two-sample tests of scans, score asymmetry, impact): frozen dataclasses or
            effects, shown below the table; see `with_result`.

    In a notebook it shows itself; in a terminal ``print(report)`` does.
    """

    effects: Mapping[str, Effect]
    names: tuple[str, ...]
    model: str = "model"
    num_data: int = 0
    margin: float | None = None
    level: float = 0.95
    assumptions: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)
    directions: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Of all effects together: refuted if any refutes, equivalent if all are within the margin.

        A margin is in nats; where one is given, effects in another unit do not decide, and the summary says what they
        show.
        """
        asked = [name for name, effect in self.effects.items() if self.margin is None or effect.unit == "nats"]
        verdicts = {self.verdict_of(name) for name in asked} - {"not measured"}
        if not verdicts:
            return "not measured"
        if "refuted" in verdicts:
            return "refuted"
        return "equivalent within margin" if verdicts == {"equivalent within margin"} else "not refuted"

    def verdict_of(self, name: str) -> Verdict:
        """Of one effect, by its name."""
        effect = self._effect("name", name)
        return effect.verdict(self.margin if effect.unit == "nats" else None, level=self.level)

    def with_result(self, title: str, result: Any) -> Report:
        """The report with a further result under a title of its own."""
        if isinstance(result, Effect):
            return dataclasses.replace(self, effects={**self.effects, title: result}, cost=self.cost + result.cost)
        return dataclasses.replace(self, others={**self.others, title: result})

    def with_margin(self, margin: float | None) -> Report:
        """The same measurements, judged against another margin of equivalence, in nats (None: against none)."""
        check_margin(margin)
        return dataclasses.replace(self, margin=margin)

    def summary(self) -> Summary:
        """A table with a row for every effect, and what it means in words."""
        return Summary(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for every effect: estimates, intervals, floor, sample sizes, cost, verdict."""
        rows = []
        for name, effect in self.effects.items():
            row: dict[str, Any] = {"effect": name, "unit": effect.unit}
            for how in ("weighted", "uniform"):
                estimate: Estimate = getattr(effect, how)(level=self.level)
                row |= {how: estimate.value, f"{how}_low": estimate.low, f"{how}_high": estimate.high}
                row[f"{how}_floor"] = estimate.floor
            row |= {
                "share_above_floor": effect.share_above_floor,
                "num_infinite": effect.num_infinite,
                "num_values": len(effect),
                "num_rows": effect.num_rows,
                "forwards": effect.cost.forwards,
                "seconds": effect.cost.seconds,
                "verdict": self.verdict_of(name),
            }
            rows.append(row)
        return pd.DataFrame(rows)

    def pairs(self, effect: str = "rectangle gap") -> pd.DataFrame:
        """The effect of every pair (or group) of sites, by name, largest first."""
        found = self._effect("effect", effect)
        if not found.sites.shape[1]:
            raise FlexgenError(
                "effect", f"is {effect!r}, which is about whole rows", "Choose one about pairs of sites."
            )
        frame = found.by_sites()
        for column in [c for c in frame if str(c).startswith("site_")]:
            frame[column] = [self.names[site] for site in frame[column]]
        return frame.sort_values("weighted", ascending=False, ignore_index=True)

    def plot(self) -> Figure:
        """Pair heat map, the two directions against each other, order gaps, scans: what there is of them."""
        from flexgen.compatibility.report_plots import plot_report  # matplotlib is slow to import

        return plot_report(self)

    def to_html(self, path: str | Path) -> Path:
        """One self-contained file: the table, the pictures, the assumptions. Returns its path."""
        from flexgen.compatibility.report_html import write_html

        return write_html(self, Path(path))

    def _effect(self, argument: str, name: str) -> Effect:
        if name not in self.effects:
            there = ", ".join(self.effects) or "none"
            hint = did_you_mean(name, self.effects)
            raise FlexgenError(argument, f"is {name!r}, which was not measured", f"{hint}There are: {there}.")
        return self.effects[name]

    def __rich__(self) -> Group:
        return self.summary().__rich__()

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def __repr__(self) -> str:
        return repr(self.summary())


class Summary:
    """The report as a table: rich in a terminal, HTML in a notebook, text where it is printed."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def headline(self) -> str:
        """The result in a sentence or two."""
        report = self.report
        effects = [e for e in report.effects.values() if e.unit == "nats" and len(e)]
        if not effects:
            return "Nothing could be measured."
        first = effects[0]
        name = next(iter(n for n, e in report.effects.items() if e is first))
        estimate = first.weighted(level=report.level)
        size = f"mean {name} {number(estimate.value)} nats ({interval(estimate)})"
        above, values = sum(int(e._above.sum()) for e in effects), sum(map(len, effects))
        match report.verdict:
            case "refuted":
                said = f"Compatibility is refuted: no joint has these conditionals; {size}."
            case "equivalent within margin":
                said = f"Every effect measured in nats is below the margin of {report.margin:g} nats; {size}."
                if above:
                    said += f" Not zero: rounding does not explain {above:,} of {values:,} values."
            case _:
                said = (
                    f"Compatibility is not refuted by {first.num_rows} data rows; {size}. Samples can refute, never "
                    "prove it."
                )
        return " ".join([said, *self._beside_the_margin()])

    def _beside_the_margin(self) -> list[str]:
        """Refuted effects of which a margin in nats does not speak."""
        report = self.report
        others = [n for n, e in report.effects.items() if e.unit != "nats" and report.verdict_of(n) == "refuted"]
        if report.margin is None or report.verdict == "refuted":
            return []
        return [
            f"The margin is in nats and does not speak of the {name}, which is refuted: "
            f"{number(report.effects[name].weighted(level=report.level).value)} {report.effects[name].unit}."
            for name in others
        ]

    def table_rows(self) -> list[tuple[str, ...]]:
        report = self.report
        rows: list[tuple[str, ...]] = []
        for name, effect in report.effects.items():
            weighted, uniform = effect.weighted(level=report.level), effect.uniform(level=report.level)
            unit = "" if effect.unit == "nats" else f" [{effect.unit}]"
            rows.append(
                (
                    name + unit,
                    f"{number(weighted.value)} ({interval(weighted)})",
                    f"{number(uniform.value)} ({interval(uniform)})",
                    number(weighted.floor),
                    f"{100 * effect.share_above_floor:.0f} %",
                    f"{len(effect):,} / {effect.num_rows}",
                    f"{effect.cost.forwards:,}",
                    report.verdict_of(name),
                )
            )
        return rows

    @property
    def columns(self) -> tuple[str, ...]:
        level = f"{100 * self.report.level:g} %"
        return (
            "effect (mean size, nats)",
            f"by probability ({level})",
            f"uniform ({level})",
            "floor",
            "above",
            "values / rows",
            "forwards",
            "verdict",
        )

    def __rich__(self) -> Group:
        report = self.report
        table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for k, column in enumerate(self.columns):
            table.add_column(column, justify="left" if k in (0, 7) else "right", overflow="fold")
        for row in self.table_rows():
            table.add_row(*(Text(cell) for cell in row), style=_STYLE.get(row[-1]))
        parts: list[Any] = [Text(f"Compatibility of {report.model}", style="bold"), Text(self.headline()), table]
        for title, result in report.others.items():
            parts.append(Text(f"{title}: {told(result)}"))
        parts.append(Text("\n".join(f"· {line}" for line in self.words()), style="dim"))
        return Group(*parts)

    def words(self) -> list[str]:
        """Assumptions, sample sizes, cost and caveats, a sentence each."""
        report = self.report
        cost = f"{report.cost.forwards:,} rows through the network in {report.cost.batches:,} batches"
        return [*report.assumptions, f"Cost: {cost}, {report.cost.seconds:.1f} s.", *report.caveats]

    def _repr_html_(self) -> str:
        from flexgen.compatibility.report_html import summary_html

        return summary_html(self)

    def __repr__(self) -> str:
        console = Console(width=132, no_color=True, force_terminal=False, legacy_windows=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


_STYLE = {"refuted": "red", "equivalent within margin": "green"}


def number(value: float) -> str:
    """Three significant digits; tiny ones as powers of ten."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    return f"{value:.1e}"


def interval(estimate: Estimate) -> str:
    return f"{number(estimate.low)} to {number(estimate.high)}"


def told(result: Any) -> str:
    """A result of another part: as it tells itself, if it does, otherwise its numbers by name, in a line."""
    if not dataclasses.is_dataclass(result) or type(result).__str__ is not object.__str__:
        return str(result)
    numbers = []
    for part in dataclasses.fields(result):
        value, name = getattr(result, part.name), part.name.replace("_", " ")
        if isinstance(value, bool | int | str):
            numbers.append(f"{name} {value}")
        elif isinstance(value, float):
            numbers.append(f"{name} {number(value)}")
        elif isinstance(value, Estimate):
            numbers.append(f"{name} {number(value.value)} ({interval(value)})")
        elif isinstance(value, tuple) and value:
            numbers.append(f"{name} ({'; '.join(number(v) if isinstance(v, float) else told(v) for v in value)})")
    return ", ".join(numbers)
