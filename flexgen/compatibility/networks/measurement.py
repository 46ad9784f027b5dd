"""The list of diagnostics, and the one loop that plans and measures them within the rows and time of a budget."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import operator
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of
from flexgen.compatibility.networks.blocks import BlockDiagnostic
from flexgen.compatibility.networks.circulation import CirculationDiagnostic
from flexgen.compatibility.networks.derivatives import DerivativeDiagnostic
from flexgen.compatibility.networks.diagnostic import Diagnostic, Example, Found, Plan, Subject
from flexgen.compatibility.networks.effects import Effect
from flexgen.compatibility.networks.orders import OrderDiagnostic
from flexgen.compatibility.networks.rectangles import RectangleDiagnostic
from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.errors import FlexgenError

__all__ = [
    "DEFAULT_FORWARDS",
    "DIAGNOSTICS",
    "Forecast",
    "Measured",
    "budget_of",
    "checked_diagnostics",
    "forwards_in",
    "least_forwards",
    "make_plans",
    "measure",
    "now",
]

DIAGNOSTICS: tuple[Diagnostic, ...] = (
    RectangleDiagnostic(),
    CirculationDiagnostic(),
    OrderDiagnostic(),
    DerivativeDiagnostic(),
    BlockDiagnostic(),
)
"""All of them, in the order in which a report shows them."""

DEFAULT_FORWARDS = 20_000
CHECKED_SHARE = 16  # of the budget, one part at most tests whether answers are conditionals at all
ROUNDING_SHARE = 4  # one part at most measures what rounding does
_UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_PILOT_ROWS = 256
_PILOT_SECONDS = 1.0
_FIRST_ROWS = 2  # of a diagnostic that is timed; each further piece has twice as many
_MOST_EXAMPLES = 5
_MOST_ROUNDS = 4  # of plans for what is left of the budget
_LEAST_LEFT = 16  # one part in so many is not worth another round


def now() -> float:
    """Seconds, by the clock that budgets of time are kept by."""
    return time.perf_counter()


def budget_of(budget: Any) -> tuple[int | None, float | None]:
    """(forwards, seconds), one of them None.

    >>> budget_of(5000), budget_of("30 s"), budget_of("2 min")
    ((5000, None), (None, 30.0), (None, 120.0))
    """
    fix = "Pass a whole number of forward passes, such as 20_000, or a time, such as '30 s' or '2 min'."
    if isinstance(budget, datetime.timedelta):
        budget = f"{budget.total_seconds()} s"
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([\d_.]+)\s*([a-z]+?)s?\s*", budget.lower())
        unit = match[2] if match else ""
        if not match or (unit not in _UNITS and unit not in ("forward", "row")):
            raise FlexgenError("budget", f"is {budget!r}", fix)
        try:
            number = float(match[1])
        except ValueError:
            raise FlexgenError("budget", f"is {budget!r}", fix) from None
        if number <= 0:
            raise FlexgenError("budget", f"is {budget!r}", fix)
        return (None, number * _UNITS[unit]) if unit in _UNITS else (max(int(number), 1), None)
    if isinstance(budget, bool) or not hasattr(budget, "__index__") or operator.index(budget) < 1:
        raise FlexgenError("budget", f"is {kind_of(budget)}", fix)
    return operator.index(budget), None


def checked_diagnostics(diagnostics: Any) -> tuple[Diagnostic, ...]:
    """The list to follow; all of them by default."""
    if diagnostics is None:
        return DIAGNOSTICS
    fix = "Pass a list such as [*fg.compatibility.DIAGNOSTICS, MyDiagnostic()]."
    given = tuple(diagnostics) if isinstance(diagnostics, Sequence) and not isinstance(diagnostics, str) else ()
    if not given or not all(isinstance(entry, Diagnostic) for entry in given):
        wrong = next((entry for entry in given if not isinstance(entry, Diagnostic)), diagnostics)
        raise FlexgenError("diagnostics", f"hold {kind_of(wrong)}" if given else f"are {kind_of(wrong)}", fix)
    names = [entry.name for entry in given]
    effects = [effect for entry in given for effect in entry.effects]
    for called in (names, effects):
        twice = next((name for name in called if called.count(name) > 1), None)
        if twice is not None:
            raise FlexgenError("diagnostics", f"hold {twice!r} twice", "Give each diagnostic and effect its own name.")
    wrong_share = next((entry for entry in given if not 0 < entry.share < math.inf), None)
    if wrong_share is not None:
        raise FlexgenError(
            "diagnostics", f"hold {wrong_share.name!r} of share {wrong_share.share}", "Pass one above 0."
        )
    return given


def make_plans(diagnostics: Sequence[Diagnostic], subject: Subject, forwards: float) -> dict[str, Plan]:
    """Name of every diagnostic that applies -> its plan. Together they take `forwards` rows at most.

    Each diagnostic draws from a stream of its own, so that another entry of the list changes none of its choices but
    their number.
    """
    there = [entry for entry in diagnostics if entry.applies(subject)]
    total = sum(entry.share for entry in there)
    return {
        entry.name: entry.plan(subject, forwards * entry.share / total, rng.stream(subject.seed, "plan", entry.name))
        for entry in there
    }


def least_forwards(
    diagnostics: Sequence[Diagnostic], subject: Subject, among: Sequence[str], rounding: tuple[int, int]
) -> int | None:
    """The smallest budget with which the first of some diagnostics can look at anything; None where none says.

    Args:
        diagnostics: the list.
        subject: the model and its data.
        among: names.
        rounding: the fewest and the most rows that measuring rounding takes.
    """
    there = [entry for entry in diagnostics if entry.applies(subject)]
    total = sum(entry.share for entry in there)
    needs = (entry.least(subject) * total / entry.share for entry in there if entry.name in among)
    need = next((need for need in needs if math.isfinite(need)), None)
    if need is None:
        return None
    fewest, most = rounding
    for forwards in itertools.count(max(math.ceil(need), ROUNDING_SHARE * fewest, 1)):
        left = forwards - forwards // CHECKED_SHARE
        if left - min(max(forwards // ROUNDING_SHARE, fewest), most) >= need:
            return forwards
    raise AssertionError


@dataclass
class Measured:
    """What was found.

    Attributes:
        effects: by name.
        extras: further numbers by name, for pictures.
        examples: the places with the largest gaps, largest first.
        skipped: what could not be measured, a sentence each.
        notes: further remarks of diagnostics.
    """

    effects: dict[str, Effect] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    plans: dict[str, list[Plan]] = field(default_factory=dict)

    def take(self, found: Found, rows: Tensor) -> None:
        """Adds what was found in these data rows, int64 ``[R']``."""
        for effect in found.effects:
            if len(effect):
                known = [self.effects[effect.name]] if effect.name in self.effects else []
                self.effects[effect.name] = Effect.joined([*known, effect.at_rows(rows)])
        for name, values in found.extras.items():
            self.extras[name] = torch.cat([self.extras.get(name, values[:0]), values])
        examples = [dataclasses.replace(example, row=int(rows[example.row])) for example in found.examples]
        each: dict[tuple[str, ...], Example] = {}  # the largest of each group of sites
        for example in sorted([*self.examples, *examples], key=lambda example: -abs(example.gap)):
            each.setdefault((example.effect, *example.sites), example)
        self.examples = list(each.values())[:_MOST_EXAMPLES]
        self.notes |= dict.fromkeys(found.notes)


def measure(
    diagnostics: Sequence[Diagnostic],
    subject: Subject,
    plans: Mapping[str, Plan],
    *,
    forwards: float = 0,
    deadline: float = math.inf,
) -> Measured:
    """Follows the plans, up to a deadline of the clock `now`, and spends what they leave on further data rows.

    Plans count rows before any is evaluated. Many turn out to be the same, and a diagnostic may find that the model
    refuses it: what is left of `forwards` rows (rounded down to a power of two, so that like models get like plans) is
    shared anew by those that can use it, in data rows that they have not seen.

    Where there is a deadline, data rows are taken in pieces of twice as many each time, until the next would end after
    the diagnostic's share of the time. An error of the model ends a diagnostic, and no more than that.
    """
    out = Measured()
    if len(subject.order):
        out.skipped += [
            f"Not measured: {name}. The budget is too small." for name, plan in plans.items() if not len(plan.rows)
        ]
    started, can = subject.answers.cost.forwards, set(plans)
    for number in range(_MOST_ROUNDS):
        planned = [entry for entry in diagnostics if entry.name in can & plans.keys() and len(plans[entry.name].rows)]
        for k, entry in enumerate(planned):
            share = entry.share / sum(other.share for other in planned[k:])
            until = deadline if deadline == math.inf else now() + (deadline - now()) * share
            try:
                _follow(entry, subject, plans[entry.name], until, deadline, out)
            except _Refused as error:
                can.discard(entry.name)
                out.skipped.append(f"Not measured: {entry.name}. The model refuses the query ({error}).")
                continue
            out.plans.setdefault(entry.name, []).append(plans[entry.name])
            if entry.if_nothing and not any(len(out.effects.get(name, ())) for name in entry.effects):
                can.discard(entry.name)
                out.skipped.append(f"Not measured: {entry.name}. {entry.if_nothing}")
        left = forwards - (subject.answers.cost.forwards - started)
        if left < max(forwards / _LEAST_LEFT, 1) or now() >= deadline:
            break
        again = [entry for entry in diagnostics if entry.extends and entry.name in out.plans and entry.name in can]
        plans = _further(again, subject, out.plans, 2.0 ** math.floor(math.log2(left)), number + 1)
    order = {name: place for place, name in enumerate(name for entry in diagnostics for name in entry.effects)}
    out.effects = dict(sorted(out.effects.items(), key=lambda item: order.get(item[0], len(order))))
    return out


class _Refused(Exception):
    """A model that does not answer a query."""


def _follow(entry: Diagnostic, subject: Subject, plan: Plan, until: float, deadline: float, out: Measured) -> None:
    before = subject.answers.cost.forwards
    try:
        for part in _pieces(len(plan.rows), until, deadline):
            rows = plan.rows[part]
            out.take(entry.measure(subject, subject.rows(rows), plan, part), rows)
    except FlexgenError as error:
        raise _Refused(f"{error.argument}: {error.problem}") from error
    if (spent := subject.answers.cost.forwards - before) > plan.forwards:
        problem = f"hold {entry.name!r}, which took {spent} rows through the network and had planned {plan.forwards}"
        raise FlexgenError("diagnostics", problem, "Let its plan() count every row, or look at less.")


def _further(
    diagnostics: Sequence[Diagnostic],
    subject: Subject,
    before: Mapping[str, Sequence[Plan]],
    forwards: float,
    number: int,
) -> dict[str, Plan]:
    """Plans for data rows that each diagnostic has not seen; none where it has seen all."""
    plans, there = {}, []
    for entry in diagnostics:
        seen = torch.cat([plan.rows for plan in before[entry.name]])
        order = subject.order[~torch.isin(subject.order, seen)]
        if len(order):
            there.append((entry, subject.among(order)))
    total = sum(entry.share for entry, _ in there)
    for entry, rest in there:
        source = rng.stream(subject.seed, "plan", entry.name, number)
        plans[entry.name] = entry.plan(rest, forwards * entry.share / total, source)
    return plans | {entry.name: Plan.nothing() for entry in diagnostics if entry.name not in plans}


def _pieces(num_rows: int, until: float, deadline: float) -> Iterator[slice]:
    """Slices of data rows, as many as there is time for; the first is taken while the deadline has not come."""
    begin, size, took = 0, num_rows if deadline == math.inf else _FIRST_ROWS, 0.0
    while begin < num_rows and now() + 2 * took < (until if begin else deadline):
        started, part = now(), slice(begin, min(begin + size, num_rows))
        yield part
        begin, size, took = part.stop, 2 * size, now() - started


def forwards_in(seconds: float, answers: SiteAnswers, x: Tensor, present: Tensor) -> int:
    """How many rows pass the network in so many seconds, by a pilot of at most a tenth of them."""
    return max(1, int(0.8 * _rate(answers, x, present, seconds / 20) * seconds))


def _rate(answers: SiteAnswers, x: Tensor, present: Tensor, seconds: float, most: float = math.inf) -> float:
    """Rows a second, by a pilot of larger and larger batches that ends soon after so many seconds."""
    cost, size, rate = answers.cost, 8, 1.0
    began = now()
    while size == 8 or (now() - began < seconds and size <= min(most, max(_PILOT_ROWS, answers.batch_size))):
        start = now()
        _pilot(answers, x, present, size)
        rate = size / max(now() - start, 1e-6)
        size *= 4
    answers.cost = cost
    return rate


def _pilot(answers: SiteAnswers, x: Tensor, present: Tensor, size: int) -> None:
    """So many complete conditionals."""
    row, site = present.nonzero(as_tuple=True)
    again = torch.arange(size, device=x.device) % max(len(row), 1)
    row, site = (row[again], site[again]) if len(row) else (row, site)

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        return x[row[some]], present[row[some]].scatter(1, site[some, None], False)

    answers.log_prob(Requests(site, make), x[row, site][:, None].double())


@dataclass(frozen=True)
class Forecast:
    """What a diagnosis would look at and take.

    Args:
        model: what it would examine.
        num_data: rows of the data given.
        forwards: rows that would pass the network, at most.
        seconds: inside the network, as a pilot on this machine has it.
        steps: of each diagnostic its name, rows through the network, and what it would look at.
        omitted: diagnostics for which the budget is too small.
    """

    model: str
    num_data: int
    forwards: int
    seconds: float
    steps: tuple[tuple[str, int, str], ...]
    omitted: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: str,
        num_data: int,
        plans: Mapping[str, Plan],
        answers: SiteAnswers,
        x: Tensor,
        present: Tensor,
        left: int,
    ) -> Forecast:
        """By the plans, and a pilot in the data rows x ``[R, N]``.

        What the checks took so far is counted. Of the `left` rows of the budget, those that no plan takes go to further
        data rows, if there are any.
        """
        taken = answers.cost
        steps = tuple((name, plan.forwards, plan.what) for name, plan in plans.items() if len(plan.rows))
        ahead = sum(forwards for _, forwards, _ in steps)
        rate = _rate(answers, x, present, _PILOT_SECONDS, most=max(ahead // 20, 8)) if ahead else math.inf
        omitted = tuple(name for name, plan in plans.items() if not len(plan.rows))
        most = left if ahead else 0
        return cls(model, num_data, taken.forwards + most, taken.seconds + most / rate, steps, omitted)

    def __str__(self) -> str:
        lines = [
            f"A diagnosis of {self.model} with {self.num_data:,} data rows would take at most {self.forwards:,} rows "
            f"through the network, about {self.seconds:.2g} s here:"
        ]
        width = max((len(name) for name, _, _ in self.steps), default=0)
        lines += [f"  {name:{width}}  {forwards:>9,}  {what}" for name, forwards, what in self.steps]
        others = self.forwards - sum(forwards for _, forwards, _ in self.steps)
        what = "whether answers are conditionals; what rounding does; further data rows with what is left"
        lines += [f"  {'others':{width}}  {others:>9,}  {what}"]
        lines += [f"  {name}: the budget is too small" for name in self.omitted]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)
