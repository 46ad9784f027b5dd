"""What a report says: its headline, its table, and the sentences below, as text."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from flexgen.compatibility.networks.effects import Effect, Estimate

if TYPE_CHECKING:
    from flexgen.compatibility.networks.report import Report

__all__ = ["MEANING", "Summary", "interval", "number", "told"]

MEANING = {
    "rectangle gap": "log cross-ratio of two sites given the rest: p(i|j) against p(j|i)",
    "derivative gap": "mixed derivative of log p(i|j) against that of log p(j|i), times both spreads",
    "circulation": "p(i|C) p(j|C,i) against p(j|C) p(i|C,j), C random",
    "circulation, interaction part": "the part of it that rectangles see (double-centred)",
    "circulation, marginal part": "the rest: p(i|C) and p(j|C) against the two-site conditionals",
    "order gap": "log p(row) by the chain rule in one order against another",
    "block scan divergence": "laws of Gibbs scans over a few sites, their order changed: total variation",
}


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
        name, first = self._quoted()
        estimate = first.weighted(level=report.level)
        size = f"mean {name} {number(estimate.value)} {first.unit} ({interval(estimate)}){self._over(name, ' over ')}"
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

    def _quoted(self) -> tuple[str, Effect]:
        """The effect that shows the verdict: the first that refutes in the mean, or the furthest above its floor."""
        report = self.report
        some = {n: e for n, e in report.effects.items() if len(e) and (e.unit == "nats" or report.margin is None)}
        refuting = [name for name in some if report.verdict_of(name) == "refuted"]
        if report.verdict == "refuted" and refuting:
            name = next(filter(self._plainly, refuting), max(refuting, key=self._above_floor))
        elif report.verdict == "equivalent within margin":
            name = max(some, key=lambda n: some[n].weighted(level=report.level).value)
        else:
            name = next(n for n, e in some.items() if e.unit == "nats")
        return name, some[name]

    def _plainly(self, name: str) -> bool:
        """Whether the interval of an effect lies above its floor."""
        estimate = self.report.effects[name].weighted(level=self.report.level)
        return estimate.low > estimate.floor

    def _above_floor(self, name: str) -> float:
        """How many times its floor an effect is; without limit where values are infinite, or the floor is zero."""
        effect = self.report.effects[name]
        estimate = effect.weighted(level=self.report.level)
        return math.inf if effect.num_infinite or estimate.floor == 0 else estimate.value / estimate.floor

    def _over(self, name: str, before: str) -> str:
        """On how many of the pairs an effect rests, where they are not all."""
        pairs = self.report.pairs_of(name)
        return "" if pairs is None else f"{before}{pairs[0]:,} of {pairs[1]:,} pairs"

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
                    name + unit + self._over(name, ", over "),
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
            side: JustifyMethod = "left" if k in (0, 7) else "right"
            table.add_column(column, justify=side, overflow="fold", no_wrap=k in (1, 2))  # the name gives way first
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
        means = "By probability: what data frames and functions call weighted."
        return [*report.assumptions, means, f"Cost: {cost}, {report.cost.seconds:.1f} s.", *report.caveats]

    def _repr_html_(self) -> str:
        from flexgen.compatibility.networks.report_html import summary_html

        return summary_html(self)

    def __repr__(self) -> str:
        # Said to rich in so many words: in a Jupyter kernel it would write to the cell's output, with colours.
        console = Console(
            width=132, force_jupyter=False, force_terminal=False, color_system=None, no_color=True, legacy_windows=False
        )
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
