"""What a diagnosis found, to be read by a person: text, a table, pictures, one HTML file, and a file to keep it in.

A report answers two questions. *Is there a joint?* A network's answers are not random: one value that rounding cannot
explain shows that there is none, and says nothing of size. *How far from one?* The mean effect with its interval, in a
size class on a practical scale (`SCALES`): a gap of g nats means that odds, by one route and by the other, differ by a
factor e^g.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import torch
from rich import box
from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from typing_extensions import deprecated

from flexgen import saving
from flexgen.checks import did_you_mean
from flexgen.compatibility.networks.arguments import check_margin
from flexgen.compatibility.networks.diagnostic import Diagnostic, Example
from flexgen.compatibility.networks.effects import Cost, Effect, Estimate, Verdict
from flexgen.compatibility.networks.measurement import DIAGNOSTICS
from flexgen.errors import CheckpointError, FlexgenError

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

__all__ = ["SCALES", "Report", "Summary", "as_text", "interval", "number"]

SCALES: dict[str, tuple[float, float, float]] = {"nats": (0.01, 0.1, 1.0), "total variation": (0.01, 0.05, 0.2)}
"""By unit: where an effect stops being negligible, where small, and where moderate; above that it is large."""
SIZES = ("negligible", "small", "moderate", "large")

_FORMAT = "flexgen compatibility report 1"
_COLOURS = {"moderate": "#9a6700", "large": "#b3261e", "equivalent": "#1b7f4b"}
_STYLES = {"moderate": "yellow", "large": "red", "equivalent": "green"}
_EXAMPLES_PRINTED, _PAIRS_PRINTED, _PAIRS_ON_PAGE = 2, 3, 12


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
        caveats: sentences about what the result does not show.
        cost: of everything.
        directions: ``"forward"`` and ``"backward"``: log odds ratios ``[M]`` of the rectangles, for the picture.
        others: further results by title (two-sample tests of scans, score asymmetry, impact): frozen dataclasses or
            effects, shown below the table; see `with_result`.
        num_pairs: of sites there are, by the name of an effect that looks at chosen pairs; where it saw fewer, the
            summary says so.
        examples: the largest single gaps, in words.
        diagnostics: the list that was followed: it explains the effects and draws the pictures.
        settings: what makes two reports comparable: seed, values, and a digest of the rows and choices of each effect.

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
    num_pairs: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    diagnostics: Sequence[Diagnostic] = DIAGNOSTICS
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Of all effects together: refuted if any refutes, equivalent if all are within the margin.

        A margin is in nats; where one is given, effects in another unit do not decide, and the summary says what they
        show. How far from a joint the model is, `size` says.
        """
        judged = [name for name, effect in self.effects.items() if self.margin is None or effect.unit == "nats"]
        verdicts = {self.verdict_of(name) for name in judged} - {"not measured"}
        if not verdicts:
            return "not measured"
        if "refuted" in verdicts:
            return "refuted"
        return "equivalent within margin" if verdicts == {"equivalent within margin"} else "not refuted"

    def verdict_of(self, name: str) -> Verdict:
        """Of one effect, by its name."""
        effect = self._effect("name", name)
        return effect.verdict(self.margin if effect.unit == "nats" else None, level=self.level)

    @property
    def size(self) -> str:
        """The largest size of all effects: ``"negligible"``, ``"small"``, ``"moderate"`` or ``"large"``.

        ``"within rounding"`` where no value is above its floor, ``"not measured"`` where there is none.
        """
        order = ("not measured", "", "within rounding", *SIZES)
        return max((self.size_of(name) for name in self.effects), key=order.index, default="not measured")

    def size_of(self, name: str) -> str:
        """The size class of an effect's weighted mean, on the scale of `SCALES`.

        An effect with infinite values, where one route calls impossible what the other does not, is large. Units
        without a scale have no size: ``""``.
        """
        effect = self._effect("name", name)
        if not len(effect):
            return "not measured"
        if effect.share_above_floor == 0:
            return "within rounding"
        if effect.num_infinite:
            return "large"
        if effect.unit not in SCALES:
            return ""
        mean = effect.weighted(level=self.level).value
        return SIZES[sum(mean >= bound for bound in SCALES[effect.unit])]

    def pairs_of(self, name: str) -> tuple[int, int] | None:
        """How many pairs of sites an effect saw, of how many there are; None if all."""
        effect = self._effect("name", name)
        if name not in self.num_pairs or not len(effect):
            return None
        seen, there = len(torch.unique(effect.sites, dim=0)), self.num_pairs[name]
        return (seen, there) if seen < there else None

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
        """A row for every effect: estimates, intervals, floor, sample sizes, cost, size, verdict."""
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
                "size": self.size_of(name),
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

    def largest_gaps(self) -> pd.DataFrame:
        """The largest single gaps in words: a row each, with both routes' numbers."""
        return pd.DataFrame(
            [
                {
                    "effect": e.effect,
                    "row": e.row,
                    "sites": ", ".join(e.sites),
                    "values": "; ".join(f"{own} or {other}" for own, other in e.values),
                    "first_route": e.routes[0],
                    "second_route": e.routes[1],
                    "gap": e.gap,
                    "context": e.context,
                }
                for e in self.examples
            ],
            columns=["effect", "row", "sites", "values", "first_route", "second_route", "gap", "context"],
        )

    @deprecated("Report.places is now called Report.largest_gaps.")
    def places(self) -> pd.DataFrame:
        """Old name of `largest_gaps`."""
        return self.largest_gaps()

    # Pictures, and the file that holds everything for a reader.

    def plot(self) -> Figure:
        """Pair heat map, the two directions against each other, order gaps, scans: what there is of them."""
        from flexgen.plots import Picture

        panels = self._panels()
        columns, lines = min(len(panels), 2) or 1, math.ceil(len(panels) / 2) or 1
        figure = Picture(figsize=(5.2 * columns, 4.3 * lines + 0.4), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            panel(ax, self)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.suptitle(f"{self.model}: {self._judged()}", fontsize=12, x=0.01, ha="left")
        return figure

    def to_html(self, path: str | Path) -> Path:
        """One self-contained page for any screen: effects, worst pairs, pictures, assumptions. Returns its path."""
        path = _writable(path, (".html", ".htm"), "report.html", "plot() saves pictures.")
        page = _page(self)
        with saving.writing("path", path, FlexgenError), saving.replacing(path) as partial:
            partial.write_text(page, encoding="utf-8")
        return path

    def _panels(self) -> list[Callable[[Any, Any], None]]:
        return [panel for entry in self.diagnostics for panel in entry.panels(self)]

    def _judged(self) -> str:
        """The verdict, and the size where something was refuted."""
        return f"{self.verdict}, {self.size}" if self.verdict == "refuted" and self.size in SIZES else self.verdict

    # Files that `load` reads.

    def save(self, path: str | Path) -> Path:
        """Keeps all numbers in one ``.safetensors`` file, in place only once it is whole. Returns its path.

        Further results that are no effects are kept as the text that they print.
        """
        path = _writable(path, (".safetensors",), "report.safetensors", "to_html() writes a page.")
        tensors, effects = {}, []
        for k, (name, effect) in enumerate(self.effects.items()):
            for part, values in _parts(effect).items():
                tensors[f"effects.{k}.{part}"] = values.contiguous()
            effects.append(
                {"key": name, "name": effect.name, "unit": effect.unit, "cost": dataclasses.asdict(effect.cost)}
            )
        for name, values in self.directions.items():
            tensors[f"directions.{name}"] = torch.as_tensor(values).contiguous()
        described = {
            "format": _FORMAT,
            "effects": effects,
            "others": {title: as_text(result) for title, result in self.others.items()},
            "cost": dataclasses.asdict(self.cost),
            "examples": [dataclasses.asdict(example) for example in self.examples],
            "num_pairs": dict(self.num_pairs),
            "settings": dict(self.settings),
            **{name: getattr(self, name) for name in _PLAIN},
        }
        with saving.writing("path", path, FlexgenError), saving.replacing(path) as partial:
            save_file(tensors, partial, {"report": json.dumps(described)})
        return path

    @classmethod
    def load(cls, path: str | Path, *, diagnostics: Sequence[Diagnostic] = DIAGNOSTICS) -> Report:
        """What `save` wrote. Nothing in the file is executed.

        Args:
            path: of the file.
            diagnostics: the list, if it held your own: they explain and draw their effects.

        Raises:
            CheckpointError: no such file, or one that holds no report.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError("path", f"{str(path)!r} is no file", "Name a file that Report.save wrote.")
        fix = "Name a file that Report.save of this version wrote."
        try:
            with safe_open(path, framework="pt") as file:
                described = json.loads((file.metadata() or {}).get("report", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError("path", f"{str(path)!r} holds no report ({error})", fix) from error
        if described.get("format") != _FORMAT:
            raise CheckpointError("path", f"{str(path)!r} holds {described.get('format', 'no report')}", fix)
        try:
            return _from_file(described, tensors, diagnostics)
        except (KeyError, TypeError, AttributeError, FlexgenError) as error:
            raise CheckpointError("path", f"{str(path)!r} holds a broken report ({error!r})", fix) from error

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


_PLAIN = ("names", "model", "num_data", "margin", "level", "assumptions", "caveats")


def _parts(effect: Effect) -> dict[str, torch.Tensor]:
    """The tensors that make an effect, its weights as they were given."""
    assert effect.uniform_weights is not None
    return {
        "values": effect.values,
        "weights": effect.weights * effect._weights_total,
        "rows": effect.rows,
        "sites": effect.sites,
        "floor": effect.floors,
        "uniform_weights": effect.uniform_weights * effect._uniform_weights_total,
    }


def _from_file(
    described: dict[str, Any], tensors: dict[str, torch.Tensor], diagnostics: Sequence[Diagnostic]
) -> Report:
    effects = {}
    for k, entry in enumerate(described["effects"]):
        start = f"effects.{k}."
        parts = {name.removeprefix(start): values for name, values in tensors.items() if name.startswith(start)}
        effects[entry["key"]] = Effect(entry["name"], cost=Cost(**entry["cost"]), unit=entry["unit"], **parts)
    examples = (
        Example(
            **{
                **entry,
                "sites": tuple(entry["sites"]),
                "values": tuple((own, other) for own, other in entry["values"]),
                "routes": (entry["routes"][0], entry["routes"][1]),
            }
        )
        for entry in described["examples"]
    )
    plain = {name: described[name] for name in _PLAIN}
    plain |= {name: tuple(plain[name]) for name in ("names", "assumptions", "caveats")}
    return Report(
        effects,
        **plain,
        cost=Cost(**described["cost"]),
        directions={name[11:]: values for name, values in tensors.items() if name.startswith("directions.")},
        others=described["others"],
        num_pairs=described["num_pairs"],
        examples=tuple(examples),
        diagnostics=diagnostics,
        settings=described["settings"],
    )


def _writable(path: str | Path, suffixes: tuple[str, ...], example: str, otherwise: str) -> Path:
    path = Path(path)
    if path.is_dir():
        raise FlexgenError("path", f"{str(path)!r} is a folder", f"Name a file, such as {example}.")
    if path.suffix.lower() not in suffixes:
        fix = f"Name {'an' if suffixes[0] == '.html' else 'a'} {suffixes[0]} file; {otherwise}"
        raise FlexgenError("path", f"{str(path)!r} does not end in {suffixes[0]}", fix)
    if not path.parent.is_dir():
        raise FlexgenError("path", f"{str(path)!r} is in a folder that is not there", "Make the folder first.")
    return path


class Summary:
    """The report as a table: rich in a terminal, HTML in a notebook, text where it is printed."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def headline(self) -> str:
        """The result in a few sentences: is there a joint, and how far from one is the model?"""
        return " ".join(part for part in (self.joint(), self.distance()) if part)

    def joint(self) -> str:
        """Is there a joint with these conditionals?"""
        report = self.report
        effects = [e for e in report.effects.values() if e.unit == "nats" and len(e)]
        if not effects:
            return "Nothing could be measured."
        name, _ = self._quoted()
        above, values = sum(int(e._above.sum()) for e in effects), sum(map(len, effects))
        match report.verdict:
            case "refuted":
                effect = report.effects[name]
                return (
                    "Compatibility is refuted: no joint has these conditionals. Rounding does not explain "
                    f"{int(effect._above.sum()):,} of {len(effect):,} values of the {name}."
                )
            case "equivalent within margin":
                said = f"Every effect measured in nats is below the margin of {report.margin:g} nats."
                if above:
                    said += f" Not zero: rounding does not explain {above:,} of {values:,} values."
                return " ".join([said, *self._beside_the_margin()])
            case _:
                rows = max(e.num_rows for e in effects)
                return f"Compatibility is not refuted by {rows} data rows. Samples can refute, never prove it."

    def distance(self) -> str:
        """How far from a joint: the mean of an effect with its interval, its size class, and what that means."""
        report = self.report
        if not any(e.unit == "nats" and len(e) for e in report.effects.values()):
            return ""
        name, effect = self._quoted()
        size, estimate = report.size_of(name), effect.weighted(level=report.level)
        said = f"{size[:1].upper()}{size[1:]}: m" if size else "M"
        said += f"ean {name} {number(estimate.value)} {effect.unit} ({interval(estimate)}){self._over(name, ' over ')}"
        if size in SIZES and effect.num_infinite:
            said += f"; {effect.num_infinite:,} values are infinite, impossible by one route only"
        elif size in SIZES and effect.unit == "nats":
            said += f": by the two routes, odds differ by a factor of {_odds(estimate.value)} on average"
        said += "."
        if report.size != size and report.size in SIZES:
            larger = next(other for other in report.effects if report.size_of(other) == report.size)
            other = report.effects[larger].weighted(level=report.level).value
            said += f" The {larger} is {report.size}: {number(other)} {report.effects[larger].unit}."
        return " ".join([said, *self._too_few_rows()])

    def _too_few_rows(self) -> list[str]:
        """Effects whose mean is within the margin, from so few rows that nothing follows."""
        report, said = self.report, []
        for name, effect in report.effects.items():
            if report.margin is None or effect.unit != "nats" or not len(effect):
                continue
            needed = effect.rows_for(report.margin, level=report.level)
            if effect.num_rows < needed and effect.weighted(level=report.level).value <= report.margin:
                said.append(f"{name} ({effect.num_rows} of {needed})")
        if not said:
            return []
        return [f"Too few data rows to say whether these are within {report.margin:g} nats: {', '.join(said)}."]

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

    def answers(self) -> list[tuple[str, str]]:
        """The two questions, each with its answer."""
        both = (("Is there a joint?", self.joint()), ("How far from one?", self.distance()))
        return [(question, answer) for question, answer in both if answer]

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
                    f"{effect.cost.forwards:,}" if effect.cost.forwards else "–",  # read off another effect's rows
                    report.verdict_of(name) + self._sized(name),
                )
            )
        return rows

    @property
    def columns(self) -> tuple[str, ...]:
        level = f"{100 * self.report.level:g} %"
        return (
            "effect, nats",
            f"weighted mean ({level})",
            f"uniform mean ({level})",
            "floor",
            "above floor",
            "values, rows",
            "forwards",
            "verdict, size",
        )

    def _sized(self, name: str) -> str:
        """The size class of an effect that is refuted, to be read behind its verdict."""
        size = self.report.size_of(name)
        return f", {size}" if self.report.verdict_of(name) == "refuted" and size in SIZES else ""

    def colour_of(self, name: str) -> str:
        """What colours an effect: its size class if it is refuted, ``"equivalent"``, or nothing."""
        verdict = self.report.verdict_of(name)
        return "equivalent" if verdict.startswith("equivalent") else self._sized(name).removeprefix(", ")

    def worst(self) -> list[str]:
        """Where the routes disagree most, in words: pairs of sites on average, then single values."""
        report, lines = self.report, []
        gaps = report.effects.get("rectangle gap")
        if gaps is not None and gaps.share_above_floor > 0:
            frame = report.pairs().head(_PAIRS_PRINTED)
            each = [
                f"{_called(one)} and {_called(other)}, {number(gap)} nats (odds ×{_odds(gap)})"
                for one, other, gap in zip(frame["site_0"], frame["site_1"], frame["weighted"], strict=True)
            ]
            lines.append(f"Pairs with the largest mean gaps: {'; '.join(each)}.")
        return [*lines, *(_place(example) for example in report.examples[:_EXAMPLES_PRINTED])]

    def words(self) -> list[str]:
        """Assumptions, what sizes mean, cost and caveats, a sentence each."""
        report = self.report
        cost = f"{report.cost.forwards:,} rows through the network in {report.cost.batches:,} batches"
        means = (
            "Means are of absolute values. Weighted mean: a value counts by its probability under the model. Uniform "
            "mean: all values count alike."
        )
        low, middle, high = SCALES["nats"]
        tv = ", ".join(f"{bound:g}" for bound in SCALES["total variation"])
        sizes = (
            f"Size, of the weighted mean in nats: negligible below {low:g} (odds differ by a factor of {_odds(low)}), "
            f"small below {middle:g} ({_odds(middle)}), moderate below {high:g} ({_odds(high)}), large above. Bounds "
            f"for a total variation: {tv}. A model that is refuted by little may still serve you well."
        )
        return [*report.assumptions, means, sizes, f"Cost: {cost}, {report.cost.seconds:.1f} s.", *report.caveats]

    def meaning(self, name: str) -> str:
        """What an effect is, in a sentence; nothing for one that no diagnostic reports."""
        return next((entry.effects[name] for entry in self.report.diagnostics if name in entry.effects), "")

    def __rich__(self) -> Group:
        report = self.report
        table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)
        for k, column in enumerate(_BROKEN.get(column, column) for column in self.columns):
            side: JustifyMethod = "left" if k in _LEFT else "right"
            whole = k in (1, 2)  # others give way first
            table.add_column(column, justify=side, overflow="fold", no_wrap=whole, width=21 if k == 0 else None)
        for name, row in zip(report.effects, self.table_rows(), strict=True):
            table.add_row(*(Text(cell) for cell in row), style=_STYLES.get(self.colour_of(name)))
        parts: list[Any] = [Text(f"Compatibility of {report.model}", style="bold")]
        parts += [Text.assemble((question, "bold"), f" {answer}") for question, answer in self.answers()]
        parts.append(table)
        parts += [Text(line) for line in self.worst()]
        for title, result in report.others.items():
            parts.append(Text(f"{title}: {as_text(result)}"))
        parts.append(Text("\n".join(f"· {line}" for line in self.words()), style="dim"))
        return Group(*parts)

    def _repr_html_(self) -> str:
        return _fragment(self)

    def __repr__(self) -> str:
        # Said to rich in so many words: in a Jupyter kernel it would write to the cell's output, with colours.
        console = Console(
            width=132, force_jupyter=False, force_terminal=False, color_system=None, no_color=True, legacy_windows=False
        )
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


_BROKEN = {"above floor": "above\nfloor", "values, rows": "values,\nrows", "verdict, size": "verdict,\nsize"}
_LEFT = (0, 7)  # columns of the table that hold words


def _place(example: Example) -> str:
    """An example as a sentence."""
    first, second = map(_called, example.sites)
    own = ", ".join(
        f"{site} = {values[0]} or {values[1]}" for site, values in zip((first, second), example.values, strict=True)
    )
    where = f"row {example.row}" + (f" “{example.context}”" if example.context else "")
    one, other = (number(route) for route in example.routes)
    return (
        f"Large gap in {where}, {own}: the log odds ratio is {one} nats by p({first} | {second}, rest), {other} nats "
        f"by p({second} | {first}, rest)."
    )


def _called(site: str) -> str:
    """A site's name in a sentence; a mere number says that it is a site."""
    return f"site {site}" if site.isdecimal() else site


def _odds(nats: float) -> str:
    """e^nats, the factor between odds, with as many digits as show that it is not 1."""
    if not math.isfinite(nats) or nats > 20:
        return "e^" + number(nats)
    factor = math.exp(nats)
    digits = max(2, 1 - math.floor(math.log10(factor - 1))) if factor > 1 else 0
    return f"{factor:.{min(digits, 9)}f}" if factor < 100 else f"{factor:.3g}"


class Interval(Protocol):
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def number(value: float) -> str:
    """Three significant digits; tiny ones as powers of ten."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if 1e3 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:.1e}"


def interval(estimate: Interval) -> str:
    """Its ends."""
    return f"{number(estimate.low)} to {number(estimate.high)}"


def as_text(result: Any) -> str:
    """A further result as text: its own `str`, or else its numbers by name."""
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
            numbers.append(f"{name} ({'; '.join(number(v) if isinstance(v, float) else as_text(v) for v in value)})")
    return ", ".join(numbers)


# HTML.

_STYLE = """
:root{color-scheme:light}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:#222}
body{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:.2em 0 .5em}h2{font-size:1.15rem;margin:2em 0 .6em}
p,li{max-width:75ch;overflow-wrap:anywhere}ul{padding-left:1.1rem}
.answer{font-size:1.05rem;margin:.5em 0}
.badge{display:inline-block;border-radius:1rem;padding:.1rem .7rem;font-weight:600;color:#fff;background:#555}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.4em .8em .4em 0;vertical-align:top;text-align:left}
td{overflow-wrap:anywhere}
th{border-bottom:1px solid #888;font-weight:600}
td{border-bottom:1px solid #e4e4e4}small{color:#666;font-size:.85em}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
img{width:100%;height:auto}.notes{color:#444;font-size:.9rem}
@media(min-width:60rem){th{white-space:nowrap}td:nth-child(n+2):nth-child(-n+7){white-space:nowrap}}
@media(max-width:60rem){
#T_effects tbody,#T_effects td{display:block;width:auto}#T_effects,#T_effects tr{display:flex;flex-direction:column}
#T_effects thead{display:none}#T_effects .col0{order:-2}#T_effects .col7{order:-1}
#T_effects tr{border:1px solid #ddd;border-radius:.5rem;padding:.5rem .8rem;margin:.35rem 0}
#T_effects td{border:0;padding:.12rem 0;display:flex;justify-content:space-between;gap:1rem;text-align:right}
#T_effects td::before{content:attr(data-label);color:#666;text-align:left;font-weight:400;white-space:normal}

#T_effects .col0{display:block;text-align:left;font-weight:600}#T_effects .col0::before{content:none}
#T_effects small{display:block;font-weight:400}#T_effects .col1,#T_effects .col2{white-space:nowrap}
#T_effects .col6{display:none}
#T_pairs .col3,#T_pairs .col4,#T_pairs .col5,#T_pairs .col6{display:none}
}
"""


def _styled(frame: pd.DataFrame, uuid: str) -> Styler:
    """A frame as HTML without its index; text is escaped."""
    styler = frame.style.hide(axis="index").set_uuid(uuid)
    return styler.format(escape="html").format_index(escape="html", axis=1)


def _effects_table(summary: Summary) -> str:
    """The table of effects, each with its meaning below its name."""
    rows, names = summary.table_rows(), list(summary.report.effects)
    frame = pd.DataFrame(rows, columns=list(summary.columns))

    styles = pd.DataFrame("", frame.index, frame.columns)
    for k, name in enumerate(names):
        colour = _COLOURS.get(summary.colour_of(name))
        styles.iloc[k, 7] = "" if colour is None else f"color:{colour};font-weight:600"

    meanings = {row[0]: escape(summary.meaning(name)) for name, row in zip(names, rows, strict=True)}

    def named(cell: object) -> str:
        meaning = meanings[str(cell)]
        return escape(str(cell)) + (f"<br><small>{meaning}</small>" if meaning else "")

    styler = _styled(frame, "effects").apply(lambda _: styles, axis=None).format(named, subset=[frame.columns[0]])
    return styler.to_html()


def _fragment(summary: Summary, *, title: bool = True) -> str:
    """The headline, the table and the words, for a notebook."""
    report = summary.report
    name = f"<b>Compatibility of {escape(report.model)}.</b> " if title else ""
    worst = "".join(f"<p>{escape(line)}</p>" for line in summary.worst())
    others = "".join(f"<p><b>{escape(t)}</b>: {_lines(as_text(r))}</p>" for t, r in report.others.items())
    words = "".join(f"<li>{escape(line)}</li>" for line in summary.words())
    answers = "<br>".join(f"<b>{question}</b> {escape(answer)}" for question, answer in summary.answers())
    return (
        f"<div><p>{name}</p><p>{answers}</p>{_effects_table(summary)}{worst}{others}"
        f'<ul style="opacity:.8;font-size:.9em">{words}</ul></div>'
    )


def _page(report: Report) -> str:
    """The whole report as a page that needs nothing beside it, on a phone too."""
    summary = report.summary()
    title = f"Compatibility of {escape(report.model)}"
    colour = _COLOURS.get("equivalent" if report.verdict.startswith("equivalent") else report.size, "#555")
    badges = f'<span class="badge" style="background:{colour}">{escape(report._judged())}</span>'
    others = "".join(f"<h2>{escape(t)}</h2><p>{_lines(as_text(r))}</p>" for t, r in report.others.items())
    words = "".join(f"<li>{escape(line)}</li>" for line in summary.words())
    pictures = "".join(
        f'<img alt="Picture {k + 1} of the report" src="data:image/png;base64,{_png(report, panel)}">'
        for k, panel in enumerate(report._panels())
    )
    parts = [
        f"<h1>{title}</h1><p>{badges}</p>",
        *(f'<p class="answer"><b>{q}</b> {escape(answer)}</p>' for q, answer in summary.answers()),
        f"<h2>Effects</h2>{_labelled(_effects_table(summary), summary.columns)}",
        _disagreements(report),
        others,
        f'<h2>Pictures</h2><div class="pictures">{pictures}</div>' if pictures else "",
        f'<h2>How this was measured</h2><ul class="notes">{words}</ul>',
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _disagreements(report: Report) -> str:
    """The pairs that disagree most on average, and the largest single gaps."""
    if "rectangle gap" not in report.effects:
        return ""
    frame = report.pairs().head(_PAIRS_ON_PAGE)
    sites = [f"{_called(one)}, {_called(other)}" for one, other in zip(frame["site_0"], frame["site_1"], strict=True)]
    table = pd.DataFrame(
        {
            "pair": sites,
            "mean gap, nats": frame["weighted"].map(number),
            "odds differ": frame["weighted"].map(lambda gap: f"×{_odds(gap)}"),
            "uniform mean": frame["uniform"].map(number),
            "largest": frame["largest"].map(number),
            "floor": frame["floor"].map(number),
            "values": frame["num_values"].map("{:,}".format),
        }
    )
    places = "".join(f"<li>{escape(_place(example))}</li>" for example in report.examples)
    return f"<h2>Where it disagrees most</h2>{_styled(table, 'pairs').to_html()}" + (
        f"<h2>Largest single gaps</h2><ul>{places}</ul>" if places else ""
    )


def _labelled(table: str, columns: Iterable[str]) -> str:
    """The table with its column's name in every cell, which a narrow screen shows beside the value."""
    for k, column in enumerate(columns):
        table = table.replace(f'col{k}" >', f'col{k}" data-label="{escape(column, quote=True)}">')
    return table


def _png(report: Report, panel: Callable[[Any, Any], None]) -> str:
    from flexgen.plots import Picture

    figure = Picture(figsize=(4.2, 3.7), layout="constrained")  # no larger: a phone shows it 3.6 inches wide
    panel(figure.subplots(), report)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=200)
    return base64.b64encode(picture.getvalue()).decode()


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")
