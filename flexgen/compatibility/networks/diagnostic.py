"""What a diagnostic is: two routes of queries to the same quantity, with a name, a cost, a plan and a picture.

One file holds one diagnostic (`rectangles`, `circulation`, `orders`, `derivatives`, `blocks`), and the list
`measurement.DIAGNOSTICS` holds them all. The budget, the measurement, the report, its explanations and its pictures
follow that list, so that a diagnostic of your own is a class and an entry::

    class SelfConsistency(Diagnostic):
        name = "my check"
        effects = {"my gap": "one route against another"}
        share = 0.1

        def plan(self, subject, forwards, source):
            rows = subject.order[: int(forwards / 2)]  # two rows through the network for each data row
            return Plan(rows, 2 * len(rows), f"{len(rows)} data rows")

        def measure(self, subject, x, plan, part):
            return Found([my_effect(subject.answers, x)])  # an `Effect` named "my gap"

    fg.diagnose(model, data, diagnostics=[*fg.compatibility.DIAGNOSTICS, SelfConsistency()])
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from flexgen import rng
from flexgen.compatibility.networks.effects import Effect
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import SiteAnswers
from flexgen.compatibility.networks.values import Values

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.axes import Axes

__all__ = ["Diagnostic", "Example", "Found", "Panel", "Plan", "Results", "Subject", "histogram"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the data rows in whose contexts it is diagnosed.

    Args:
        answers: of the model.
        x: ``[num_data, N]``, NaN where an entry is missing.
        present: bool ``[num_data, N]``, the entries that a query may target.
        pool: ``[.., N]``, on the model's device, a random sample of the rows, all where they are few: values and
            spreads are taken from it.
        sites: int64 ``[S]``, those that are examined, at least two.
        names: of all N sites.
        values: how values of sites are chosen.
        rounding: of the answers.
        seed: of all choices and draws.
        label: of a value of a site, such as a token or a category's name.
        context: a data row ``[N]`` in words, where the model has any.
        further: whether other data rows were measured before, and these take what is left of the budget.
    """

    answers: SiteAnswers
    x: Tensor
    present: Tensor
    pool: Tensor
    sites: Tensor
    names: tuple[str, ...]
    values: Values
    rounding: Rounding | None
    seed: int
    label: Callable[[int, float], str] = lambda _, value: f"{value:.4g}"
    context: Callable[[Tensor], str] = lambda _: ""
    further: bool = False

    def rows(self, numbers: Tensor) -> Tensor:
        """The data rows of these numbers, on the model's device."""
        return self.x[numbers.to(self.x.device)].to(self.pool.device)

    def among(self, order: Tensor) -> Subject:
        """The same with these data rows alone, int64, in this order; choices and draws are others."""
        other = dataclasses.replace(self, seed=rng.key(self.seed, "among", int(order[0])), further=True)
        other.__dict__["order"] = order  # as the cached property keeps it
        return other

    @functools.cached_property
    def order(self) -> Tensor:
        """The data rows that hold two examined sites or more, int64, in random order: take the first of them."""
        order = torch.randperm(len(self.present), generator=rng.stream(self.seed, "plan"))
        return order[self.present.cpu()[order][:, self.sites].sum(-1) >= 2]

    @functools.cached_property
    def pairs(self) -> Tensor:
        """Every two examined sites, int64 ``[P, 2]``."""
        return self.sites[torch.combinations(torch.arange(len(self.sites)), 2)]

    @functools.cached_property
    def real_sites(self) -> Tensor:
        """The examined sites that are real, int64."""
        kinds = self.answers.conditional.space.sites
        return self.sites[torch.tensor([kinds[site].kind == "real" for site in self.sites.tolist()])]

    @functools.cached_property
    def enumerated_sites(self) -> Tensor:
        """The examined sites whose categories are all looked at, int64."""
        counts = self.answers.num_categories
        return self.sites[torch.tensor([0 < counts[s] <= self.values.max_categories for s in self.sites.tolist()])]

    @functools.cached_property
    def widths(self) -> Tensor:
        """How many values of each site are looked at, float64 ``[N]``."""
        return self.values.widths(self.answers.num_categories).double()

    @functools.cached_property
    def readings(self) -> Tensor:
        """Rows through the network that all these values of a site take in one context, float64 ``[N]``.

        One where the model has marginals; with `log_prob` alone each value is a row of its own.
        """
        return torch.ones_like(self.widths) if self.answers.has_marginals else self.widths


@dataclass(frozen=True, eq=False)
class Plan:
    """What a diagnostic will look at, known before anything is evaluated.

    Args:
        rows: int64 ``[R]``, numbers of data rows, in the order in which they are taken; none: it does not fit.
        forwards: rows through the network that this takes at most.
        what: the same in words.
        choices: the diagnostic's own, such as pairs or targets of each row.
        num_pairs: how many pairs of sites there are, if it looks at chosen ones; 0: it does not.
    """

    rows: Tensor
    forwards: int = 0
    what: str = ""
    choices: Any = None
    num_pairs: int = 0

    @classmethod
    def nothing(cls) -> Plan:
        return cls(torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class Example:
    """One value at which two routes disagree, in words.

    Args:
        effect: whose value it is.
        row: number of the data row.
        sites: names of the sites.
        values: of each site the data's value and the other one that was looked at.
        routes: the quantity by the first route and by the second, in the effect's unit.
        context: the data row in words, where the model has any.
    """

    effect: str
    row: int
    sites: tuple[str, ...]
    values: tuple[tuple[str, str], ...]
    routes: tuple[float, float]
    context: str = ""

    @property
    def gap(self) -> float:
        return self.routes[0] - self.routes[1]


@dataclass(frozen=True, eq=False)
class Found:
    """What a diagnostic found in some data rows.

    Args:
        effects: one or more; their rows are numbered as in the x that was measured.
        extras: further numbers by name, ``[M]``, for pictures; those of all pieces are joined.
        examples: the values at which the routes disagree most.
        notes: sentences that the report should print as caveats.
    """

    effects: Sequence[Effect]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    notes: Sequence[str] = ()


class Results(Protocol):
    """What a picture is drawn from: a `Report`."""

    @property
    def effects(self) -> Mapping[str, Effect]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def margin(self) -> float | None: ...
    @property
    def level(self) -> float: ...
    @property
    def directions(self) -> Mapping[str, Tensor]: ...


Panel: TypeAlias = "Callable[[Axes, Results], None]"


class Diagnostic(abc.ABC):
    """Two routes of queries to the same quantity.

    Attributes:
        name: used in budgets and caveats.
        effects: name of each effect that it reports -> its meaning in one sentence.
        share: its part of the budget, relative to that of the others.
        extends: whether what it finds in further data rows can be added to what it found before.
        if_nothing: why it may find no value although it was planned; a sentence for the report.
    """

    name: ClassVar[str]
    effects: ClassVar[Mapping[str, str]]
    share: ClassVar[float] = 0.1
    extends: ClassVar[bool] = True
    if_nothing: ClassVar[str] = ""

    def applies(self, subject: Subject) -> bool:  # noqa: ARG002
        """Whether it can be measured on this model and these sites."""
        return True

    def least(self, subject: Subject) -> float:  # noqa: ARG002
        """Rows through the network below which `plan` finds no room; infinite: unknown."""
        return math.inf

    @abc.abstractmethod
    def plan(self, subject: Subject, forwards: float, source: torch.Generator) -> Plan:
        """What to look at with so many rows through the network, never more.

        Args:
            subject: the model and its data.
            forwards: rows that may pass the network.
            source: of random choices.
        """

    @abc.abstractmethod
    def measure(self, subject: Subject, x: Tensor, plan: Plan, part: slice) -> Found:
        """The effects in some of the planned rows.

        Args:
            subject: the model and its data.
            x: ``[R', N]``, the data rows ``plan.rows[part]``.
            plan: what `plan` returned.
            part: which of its rows these are.
        """

    def panels(self, results: Results) -> Sequence[Panel]:  # noqa: ARG002
        """Functions that draw what was found, each on axes of its own."""
        return ()


def histogram(ax: Axes, results: Results, name: str, *, title: str, across: str, count: str) -> None:
    """Sizes of an effect's values, with their mean, its interval, the floor of rounding and the margin."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    from flexgen.plots import REAL, SAMPLED

    effect = results.effects[name]
    sizes = effect.values[effect.values.isfinite()].abs().numpy()
    estimate = effect.weighted(level=results.level)
    top = float(np.percentile(sizes, 99)) if len(sizes) else 1.0
    top = 1.05 * max(top, estimate.value if math.isfinite(estimate.value) else 0.0) or 1.0
    ax.hist(sizes.clip(max=top), bins=np.linspace(0, top, 31).tolist(), color=REAL, alpha=0.4)
    ax.axvline(estimate.value, color=SAMPLED, lw=1.5, label="mean, with its interval")
    ax.axvspan(estimate.low, estimate.high, color=SAMPLED, alpha=0.2, lw=0)
    marks = [("floor of rounding", estimate.floor, "#3a7ca5", "--")]
    if results.margin is not None and effect.unit == "nats":
        marks.append(("margin", results.margin, "#1b7f4b", ":"))
    for mark, where, colour, style in marks:
        if where <= 0.003 * top:
            continue
        if where <= 1.5 * top:
            ax.axvline(where, color=colour, lw=1.5, ls=style, label=mark)
            top = max(top, 1.05 * where)
        else:  # so far out that the data would be a sliver
            ax.plot([], [], color=colour, lw=1.5, ls=style, label=f"{mark}: {where:.2g}, beyond the axis")
    ax.set_xlim(0, top)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)  # hides nothing
    ax.set_xlabel(across, fontsize=8)
    ax.set_ylabel(count, fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title, fontsize=9, loc="left")
