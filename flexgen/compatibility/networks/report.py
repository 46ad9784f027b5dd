"""What a diagnosis found, to be read by a person: a table, a data frame, pictures, one HTML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Group

from flexgen.checks import did_you_mean
from flexgen.compatibility.networks.arguments import check_margin
from flexgen.compatibility.networks.effects import Cost, Effect, Estimate, Verdict
from flexgen.compatibility.networks.report_summary import Summary
from flexgen.errors import FlexgenError

__all__ = ["Report", "Summary"]


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
        num_pairs: of sites there are, by the name of an effect that looks at chosen pairs; where it saw fewer, the
            summary says so.

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
        from flexgen.compatibility.networks.report_plots import plot_report  # matplotlib is slow to import

        return plot_report(self)

    def to_html(self, path: str | Path) -> Path:
        """One self-contained file: the table, the pictures, the assumptions. Returns its path."""
        from flexgen.compatibility.networks.report_html import write_html

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
