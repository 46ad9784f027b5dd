"""`diagnose`: is this model compatible? Effect sizes, intervals, cost and a verdict, within a budget."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.answers import check_query
from flexgen.checks import kind_of
from flexgen.compatibility.exact.family import ConditionalFamily
from flexgen.compatibility.exact.gaussian import GaussianConditionals
from flexgen.compatibility.networks import measurement
from flexgen.compatibility.networks.arguments import check_level, check_margin, checked_seed
from flexgen.compatibility.networks.blocks import site_labels
from flexgen.compatibility.networks.diagnostic import Diagnostic, Plan, Subject
from flexgen.compatibility.networks.intervals import UNSEEN
from flexgen.compatibility.networks.measurement import (
    CHECKED_SHARE,
    DEFAULT_FORWARDS,
    ROUNDING_SHARE,
    Forecast,
    budget_of,
    checked_diagnostics,
    least_forwards,
    make_plans,
)
from flexgen.compatibility.networks.report import Report
from flexgen.compatibility.networks.rounding import Rounding, unit_roundoff
from flexgen.compatibility.networks.sites import SiteAnswers, check_answers, present_in
from flexgen.compatibility.networks.values import Values
from flexgen.conditional import Conditional
from flexgen.errors import DataError, FlexgenError
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Space
from flexgen.table_model import TableModel

if TYPE_CHECKING:
    from flexgen.compatibility.exact.family import Labels

__all__ = ["diagnose"]

_SAMPLE = 4096  # data rows at most that checks, pilots and draws of values look at; more would cost memory


@overload
def diagnose(
    model: TableModel | Conditional,
    data: pd.DataFrame | Tensor | np.ndarray | Sequence[str],
    *,
    budget: SupportsIndex | str | datetime.timedelta = ...,
    sites: Sequence[int | str] | None = ...,
    margin: float | None = ...,
    level: float = ...,
    names: Sequence[str] | None = ...,
    labels: Labels | None = ...,
    values: Values | None = ...,
    rounding: Rounding | float | None = ...,
    diagnostics: Sequence[Diagnostic] | None = ...,
    batch_size: int | None = ...,
    dry_run: Literal[False] = ...,
    generator: Randomness | int | None = ...,
) -> Report: ...


@overload
def diagnose(
    model: TableModel | Conditional,
    data: pd.DataFrame | Tensor | np.ndarray | Sequence[str],
    *,
    budget: SupportsIndex | str | datetime.timedelta = ...,
    sites: Sequence[int | str] | None = ...,
    margin: float | None = ...,
    level: float = ...,
    names: Sequence[str] | None = ...,
    labels: Labels | None = ...,
    values: Values | None = ...,
    rounding: Rounding | float | None = ...,
    diagnostics: Sequence[Diagnostic] | None = ...,
    batch_size: int | None = ...,
    dry_run: Literal[True],
    generator: Randomness | int | None = ...,
) -> Forecast: ...


def diagnose(
    model: TableModel | Conditional,
    data: pd.DataFrame | Tensor | np.ndarray | Sequence[str],
    *,
    budget: SupportsIndex | str | datetime.timedelta = DEFAULT_FORWARDS,
    sites: Sequence[int | str] | None = None,
    margin: float | None = None,
    level: float = 0.95,
    names: Sequence[str] | None = None,
    labels: Labels | None = None,
    values: Values | None = None,
    rounding: Rounding | float | None = None,
    diagnostics: Sequence[Diagnostic] | None = None,
    batch_size: int | None = None,
    dry_run: bool = False,
    generator: Randomness | int | None = 0,
) -> Report | Forecast:
    """Measures how far a model's conditionals are from having a joint, in the contexts of data rows.

    Args:
        model: a `TableModel`, or any `Conditional` with marginals or log-probabilities over scalar sites.
        data: rows: a data frame for a table model; otherwise ``[B, N]``, NaN where an entry is missing; a list of
            strings for a model of text, which encodes them. Held-out rows are the fairer choice.
        budget: whole number: rows that may pass the network, all included; or a time, such as ``"30 s"`` or
            ``"2 min"``, which a short pilot turns into such a number, and which is also kept by the clock: what is
            looked at then depends on the machine.
        sites: which to examine, by name or number; default: all.
        margin: nats below which an effect does not matter to you; the verdict may then be "equivalent within margin".
        level: nominal coverage of the intervals.
        names: of the sites in the report, N strings, such as ``"3 V"``; default: names of the space.
        labels: of their categories in the report: a sequence of them for each site, or a mapping of names to them.
            Default: the labels of a table model, tokens of a language model, codes otherwise.
        values: which values of the sites are looked at.
        rounding: of the answers, if you know it: `flexgen.compatibility.Rounding(1e-6)`, or that number. Default:
            measured, or what the conditional says itself, see `flexgen.compatibility.HasRoundoff`.
        diagnostics: what is measured; default: `flexgen.compatibility.DIAGNOSTICS`, to which you may add your own.
        batch_size: rows a call of the network; changes nothing but speed and memory.
        dry_run: return a `Forecast` instead: what would be looked at, in how many rows and seconds. It runs the checks
            of the model and a short pilot.
        generator: of rows, pairs, values and orders: a seed or a source. The same one gives the same report.

    Returns:
        A report with the effects that the model supports: rectangles from complete conditionals
        and exact blocks; circulations and order gaps where it answers p(x_i | x_C) for any C.

    Raises:
        DataError: data that are not the model's rows; fewer than two rows or sites.
        FlexgenError: options that are none; a budget that nothing can be measured with.
            A model whose answers do not sum to 1 over a site's categories, differ when a query is repeated, or change
            with the values at unobserved sites.
        UnsupportedQueryError: a model without densities, or one that declares not to answer p(x_i | rest), which every
            diagnostic needs.
    """
    check_margin(margin)
    check_level(level)
    exact_to = Rounding.given(rounding)
    follow = checked_diagnostics(diagnostics)
    forwards, seconds = budget_of(budget)
    started = measurement.now()
    conditional, x, title, device = _conditional(model, data)
    space = conditional.space
    called = _names(space, names)
    examined = _sites(called, sites)
    answers = SiteAnswers(conditional, batch_size=batch_size)
    for site in examined.tolist():
        check_query(
            conditional,
            Query.complete(site, num_sites=space.num_sites),
            fix="Compatibility is about conditionals that overlap: pass a model that answers p(x_i | rest).",
        )
    values = Values.or_default(values, answers)
    seed = checked_seed(generator)
    present = answers.present_in(x)
    chosen = slice(None) if len(x) <= _SAMPLE else _some_rows(len(x), seed)
    sample, there = x[chosen].to(device), present[chosen].to(device)
    if forwards is None:
        assert seconds is not None
        forwards = measurement.forwards_in(seconds, answers, sample, there)
    checked = check_answers(
        answers,
        sample,
        there & _only(examined, sample),
        unit=unit_roundoff(conditional),
        most=forwards // CHECKED_SHARE,
    )
    fewest, most = (0, 0) if exact_to else (Rounding.least(conditional, sample), Rounding.most(conditional, sample))
    if exact_to is None and forwards >= ROUNDING_SHARE * fewest:
        exact_to = Rounding.measured(answers, sample, there, most=forwards // ROUNDING_SHARE)
    left = forwards - answers.cost.forwards if exact_to else 0
    subject = Subject(
        answers,
        x,
        present,
        sample,
        examined,
        called,
        values,
        exact_to,
        seed,
        _label(model, conditional, labels, answers),
        _context(conditional),
    )
    plans = make_plans(follow, subject, left)

    def too_small(among: Iterable[str]) -> FlexgenError:
        enough = least_forwards(follow, subject, tuple(among), (fewest, most))
        what = f"is {budget!r}" + (f", {forwards} forward passes" if seconds else "")
        passes = "more forward passes" if enough is None else f"at least {enough} forward passes: nothing takes less"
        return FlexgenError("budget", what, f"Pass {passes}.")

    omitted = [name for name, plan in plans.items() if not len(plan.rows)]
    if len(omitted) == len(plans) and (exact_to is None or len(subject.order)):
        raise too_small(omitted)
    if dry_run:
        return Forecast.of(title, len(x), plans, answers, sample, there, left)
    deadline = math.inf if seconds is None else started + seconds
    found = measurement.measure(follow, subject, plans, forwards=left, deadline=deadline)
    if deadline == math.inf:
        assert answers.cost.forwards <= forwards
    if omitted and not found.effects and len(subject.order):
        raise too_small(omitted)
    caveats = (*found.skipped, *found.notes, *_caveats(subject))
    if not checked:
        caveats = ("Not checked: whether answers sum to 1, repeat, and leave unobserved sites unread.", *caveats)
    digests = {
        effect: _digest(subject, found.plans.get(entry.name, [plans[entry.name]]))
        for entry in follow
        if entry.name in plans
        for effect in entry.effects
    }
    return Report(
        found.effects,
        called,
        title,
        len(x),
        margin,
        level,
        _assumptions(subject, plans, found, budget, forwards),
        caveats,
        answers.cost,
        found.extras,
        num_pairs={
            next(iter(e.effects)): plans[e.name].num_pairs
            for e in follow
            if e.name in plans and plans[e.name].num_pairs
        },
        examples=tuple(found.examples),
        diagnostics=follow,
        settings={"seed": seed, "values": dataclasses.asdict(values), "plans": digests},
    )


def _conditional(model: Any, data: Any) -> tuple[Conditional, Tensor, str, torch.device]:
    """The conditional, the rows, the model's name, and its device."""
    if isinstance(model, TableModel):
        if not isinstance(data, pd.DataFrame):
            raise DataError("data", f"is {kind_of(data)}", "Pass a data frame with the columns of the table model.")
        conditional: Conditional = model.conditional()
        x = model.schema.encode(data)
    else:
        if not isinstance(model, Conditional):
            exact = isinstance(model, GaussianConditionals | ConditionalFamily)
            fix = (
                "Use check_gaussian or check_tables, which are exact."
                if exact
                else "Pass a TableModel or a Conditional."
            )
            raise FlexgenError("model", f"is {kind_of(model)}", fix)
        conditional = model
        x = _encoded(model, data) if _is_text(data) else _tensor(data)
    if len(x) < 2:
        raise DataError("data", f"has {len(x)} row(s)", "Pass at least two: intervals come from differences of rows.")
    device = model.device if isinstance(model, TableModel) else x.device
    if isinstance(conditional, nn.Module):
        place = next(iter([*conditional.parameters(), *conditional.buffers()]), None)
        device = device if place is None else place.device
    conditional.space.validate(x, where=present_in(x), argument="data")
    return conditional, x, type(model).__name__, device


def _is_text(data: Any) -> bool:
    """Whether these are strings: a list, tuple, array or series of them, or one alone."""
    if isinstance(data, str):
        return True
    rows = isinstance(data, Sequence | pd.Series) or (isinstance(data, np.ndarray) and data.ndim == 1)
    return rows and len(data) > 0 and all(isinstance(text, str) for text in data)


def _encoded(model: Any, texts: Any) -> Tensor:
    encode: Callable[[list[str]], Tensor] | None = getattr(model, "encode", None)
    if isinstance(texts, str):
        raise DataError("data", "is one string", "Pass a list of strings, one a row.")
    if encode is None:
        problem = f"holds strings, which {type(model).__name__} does not encode"
        raise DataError("data", problem, "Pass rows of codes [B, N], a column a site.")
    return encode(list(texts))


def _tensor(data: Any) -> Tensor:
    if isinstance(data, pd.DataFrame):
        try:
            data = data.to_numpy(dtype=float, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DataError("data", f"holds what is no number ({error})", "Encode categories as 0, 1, ..") from error
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(np.ascontiguousarray(data))
    if not isinstance(data, Tensor) or data.ndim != 2:
        what = f"has shape {tuple(data.shape)}" if isinstance(data, Tensor) else f"is {kind_of(data)}"
        raise DataError("data", what, "Pass rows [B, N], a column a site.")
    return data


def _names(space: Space, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return space.names
    given = () if isinstance(names, str) else tuple(names)
    if len(given) != space.num_sites or not all(isinstance(name, str) for name in given):
        problem = f"are {kind_of(names)}" if isinstance(names, str) else f"are {len(given)}, not all strings"
        raise FlexgenError("names", problem, f"Pass {space.num_sites} strings, one a site.")
    return given


def _sites(names: tuple[str, ...], sites: Sequence[int | str] | None) -> Tensor:
    if sites is None:
        chosen = list(range(len(names)))
    else:
        if isinstance(sites, str) or not isinstance(sites, Iterable):
            raise DataError("sites", f"is {kind_of(sites)}", "Pass a list of names or numbers of sites.")
        chosen = sorted({_site(names, site) for site in sites})
    if len(chosen) < 2:
        raise DataError("sites", f"are {len(chosen)}", "Compatibility is about two sites at least.")
    return torch.tensor(chosen)


def _site(names: tuple[str, ...], site: Any) -> int:
    if isinstance(site, str) and site in names:
        return names.index(site)
    if hasattr(site, "__index__") and not isinstance(site, bool) and 0 <= operator.index(site) < len(names):
        return operator.index(site)
    raise DataError("sites", f"names {site!r}", f"Choose among {', '.join(names[:20])}, or 0 to {len(names) - 1}.")


def _only(sites: Tensor, x: Tensor) -> Tensor:
    """Which columns these are, bool ``[N]``."""
    return torch.zeros(x.shape[1], dtype=torch.bool).index_fill(0, sites, True).to(x.device)


def _some_rows(num_rows: int, seed: int) -> Tensor:
    return torch.randperm(num_rows, generator=rng.stream(seed, "sample"))[:_SAMPLE].sort().values


def _label(
    model: Any, conditional: Conditional, labels: Labels | None, answers: SiteAnswers
) -> Callable[[int, float], str]:
    """The name of a site's value."""
    if labels is not None:
        categories = [part for _, part in site_labels(labels, answers)]
    elif isinstance(model, TableModel):
        categories = [column.levels for column in model.schema.columns]
    else:
        own: Callable[[int, float], str] | None = getattr(conditional, "label", None)
        if own is not None:
            return own
        categories = [()] * conditional.space.num_sites

    def label(site: int, value: float) -> str:
        return str(categories[site][int(value)]) if categories[site] else f"{value:.4g}"

    return label


def _context(conditional: Conditional) -> Callable[[Tensor], str]:
    """A data row in words, where the model can decode it."""
    decode: Callable[[Tensor], list[str]] | None = getattr(conditional, "decode", None)
    return (lambda _: "") if decode is None else (lambda row: decode(row[None])[0])


def _digest(subject: Subject, plans: Sequence[Plan]) -> str:
    """What was looked at: data rows, their values, and the plans' choices."""
    found = hashlib.blake2b(digest_size=16)
    for plan in plans:
        choices = plan.choices if isinstance(plan.choices, tuple) else (plan.choices,)
        for part in (plan.rows, subject.x[plan.rows.to(subject.x.device)], *choices):
            if isinstance(part, Tensor):
                found.update(repr((tuple(part.shape), part.dtype)).encode())
                found.update(part.cpu().contiguous().numpy().tobytes())
            else:
                found.update(repr(part).encode())
    return found.hexdigest()


def _assumptions(
    subject: Subject, plans: dict[str, Plan], found: measurement.Measured, budget: Any, forwards: int
) -> tuple[str, ...]:
    """What was looked at and how, a sentence each."""
    values, num_sites, enumerated = subject.values, len(subject.sites), len(subject.enumerated_sites)
    drawn = "draws from the model's conditional" if values.source == "model" else "values of other data rows"
    looked = [f"all categories at {_count(enumerated, 'site')}"] if enumerated else []
    if enumerated < num_sites:
        looked.append(f"the data's value and {values.num_others} {drawn} at {_count(num_sites - enumerated, 'site')}")
    rows = torch.cat([effect.rows for effect in found.effects.values()] or [torch.zeros(0, dtype=torch.int64)])
    num_rows, pairs = len(torch.unique(rows)), ""
    plan = plans.get("rectangles")
    if plan is not None and "rectangle gap" in found.effects:
        seen = len(torch.unique(found.effects["rectangle gap"].sites, dim=0))
        pairs = f" Pairs of sites: {seen} of {plan.num_pairs}"
        if not isinstance(plan.choices, Tensor):
            each = len(plan.choices[0])
            pairs += f", {each} in each row, drawn anew at random, so that intervals are about all {plan.num_pairs}"
        elif len(plan.choices) < plan.num_pairs:
            pairs += f", the cheapest: the interval of rectangle gaps is about that pair, not all {plan.num_pairs}"
        pairs += "."
    relative = subject.rounding.relative if subject.rounding else math.nan
    said = [
        f"Contexts: {num_rows} of {len(subject.x)} data rows, which count as a random sample.{pairs} "
        f"Values: {', '.join(looked)}.",
        "Intervals: for the mean, clustered by data row. The network's answers are not random, so one value above its "
        "floor shows that there is no joint. The data rows are random: the interval is for the mean over all rows like "
        f"these. Its upper limit allows for rows that were not seen: there the mean is at most {UNSEEN['nats']:g} "
        "nats, or twice the largest of the rows seen, whichever is more.",
        f"Floor: the largest gap that rounding can make, if log-probabilities are exact to {relative:.1g} (1 + |log p|)"
        " nats.",
    ]
    if isinstance(budget, str | datetime.timedelta):
        said.append(f"Budget: {budget}, which a pilot turned into {forwards:,} forward passes at most.")
    return tuple(said)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _caveats(subject: Subject) -> list[str]:
    said = ["Samples can refute compatibility, never prove it: 'not refuted' is about these contexts and values only."]
    if len(subject.real_sites):
        said.append(
            "Real sites: gaps of zero are necessary for a joint, not sufficient. What conditionals agree on may have "
            "no finite integral, and a network is not checked for that. (x | y ~ Exp(y) and y | x ~ Exp(x) agree, but "
            "have no proper joint.)"
        )
    return said
