"""`diagnose`: is this model compatible? Effect sizes, intervals, cost and a verdict, within a budget."""

from __future__ import annotations

import datetime
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.checks import kind_of
from flexgen.compatibility.exact.family import ConditionalFamily
from flexgen.compatibility.exact.gaussian import GaussianConditionals
from flexgen.compatibility.networks import measurement
from flexgen.compatibility.networks.answer_checks import check_answers
from flexgen.compatibility.networks.arguments import check_level, check_margin, checked_seed
from flexgen.compatibility.networks.budget import DEFAULT_FORWARDS, Plan, budget_of, make_plan
from flexgen.compatibility.networks.report import Report
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import SiteAnswers, present_in
from flexgen.compatibility.networks.values import Values
from flexgen.conditional import Conditional
from flexgen.errors import DataError, FlexgenError
from flexgen.rng import Randomness
from flexgen.space import Space
from flexgen.table_model import TableModel

__all__ = ["diagnose"]

_CHECKED_SHARE = 16  # of the budget, one part at most asks whether answers are conditionals at all


def diagnose(
    model: TableModel | Conditional,
    data: pd.DataFrame | Tensor | np.ndarray,
    *,
    budget: SupportsIndex | str | datetime.timedelta = DEFAULT_FORWARDS,
    sites: Sequence[int | str] | None = None,
    margin: float | None = None,
    level: float = 0.95,
    names: Sequence[str] | None = None,
    values: Values | None = None,
    batch_size: int | None = None,
    generator: Randomness | int | None = 0,
) -> Report:
    """Measures how far a model's conditionals are from having a joint, in the contexts of data rows.

    Args:
        model: a `TableModel`, or any `Conditional` with marginals or log-probabilities over scalar sites.
        data: rows: a data frame for a table model; otherwise ``[B, N]``, NaN where an entry is missing. Rows the model
            was not fitted to are the fairer choice.
        budget: whole number: rows that may pass the network, all included; or a time, such as ``"30 s"`` or
            ``"2 min"``, which a short pilot turns into such a number, and which is also kept by the clock: what is
            looked at then depends on the machine.
        sites: which to examine, by name or number; default: all.
        margin: nats below which an effect does not matter to you; the verdict may then be "equivalent within margin".
        level: nominal coverage of the intervals.
        names: what the report calls the sites, N strings, such as ``"3 V"``; default: names of the space.
        values: which values of the sites are looked at.
        batch_size: rows a call of the network; changes nothing but speed and memory.
        generator: of rows, pairs, values and orders: a seed or a source. The same one gives the same report.

    Returns:
        A report with the effects that the model can be asked about: rectangles from complete conditionals
        and exact blocks; circulations and order gaps where it answers p(x_i | x_C) for any C.

    Raises:
        DataError: data that are not the model's rows; fewer than two rows or sites.
        FlexgenError: options that are none; a budget that nothing can be measured with.
            A model whose answers do not sum to 1 over a site's categories, differ when asked again, or change with
            the values at unobserved places.
        UnsupportedQueryError: a model without densities.
    """
    check_margin(margin)
    check_level(level)
    forwards, seconds = budget_of(budget)
    started = measurement.now()
    conditional, x, title = _subject(model, data)
    space = conditional.space
    called = _names(space, names)
    examined = _sites(called, sites)
    answers = SiteAnswers(conditional, batch_size=batch_size)
    values = Values.wanted(values, answers)
    seed = checked_seed(generator)
    present = answers.present_in(x)
    if forwards is None:
        assert seconds is not None
        forwards = measurement.forwards_in(seconds, answers, x, present)
    checked = check_answers(answers, x, present & _only(examined, x), most=forwards // _CHECKED_SHARE)
    least = Rounding.least(conditional)
    # A quarter at most is spent on what rounding does.
    rounding = Rounding.measured(answers, x, present, most=forwards // 4) if forwards >= 4 * least else None
    plan = make_plan(
        space,
        answers.num_categories,
        present.cpu(),
        examined,
        forwards=forwards - answers.cost.forwards,
        values=values,
        per_value=not answers.has_marginals,
        seed=rng.key(seed, "plan"),
    )
    if rounding is None or set(plan.omitted) >= {"rectangles", "circulations", "order gaps"}:
        least = max(4 * least, plan.least + least)
        least += math.ceil(least / (_CHECKED_SHARE - 1))  # what the check of answers takes of that
        what = f"is {budget!r}" + (f", {forwards} forward passes" if seconds else "")
        raise FlexgenError("budget", what, f"Pass at least {least} forward passes: nothing takes less.")
    deadline = math.inf if seconds is None else started + seconds
    found = measurement.measure(answers, x, plan, values, rounding, seed=seed, deadline=deadline)
    if deadline == math.inf:
        assert answers.cost.forwards <= forwards
    assumptions, caveats = _words(answers, examined, plan, values, rounding, found, budget, forwards, len(x))
    num_real = sum(space.sites[site].kind == "real" for site in examined.tolist())
    if not checked:
        caveats = ("Not checked: whether answers sum to 1, repeat, and leave unobserved places unread.", *caveats)
    return Report(
        found.effects,
        called,
        title,
        len(x),
        margin,
        level,
        assumptions,
        caveats,
        answers.cost,
        found.directions,
        num_pairs={"rectangle gap": plan.num_pairs, "derivative gap": math.comb(num_real, 2)},
    )


def _subject(model: Any, data: Any) -> tuple[Conditional, Tensor, str]:
    """The conditional, the rows on its device, and what to call it."""
    if isinstance(model, TableModel):
        if not isinstance(data, pd.DataFrame):
            raise DataError("data", f"is {kind_of(data)}", "Pass a data frame with the columns of the table model.")
        conditional: Conditional = model.conditional()
        x = model.schema.encode(data).to(model.device)
    else:
        if not isinstance(model, Conditional):
            exact = isinstance(model, GaussianConditionals | ConditionalFamily)
            fix = "Ask check_gaussian or check_tables: it is exact." if exact else "Pass a TableModel or a Conditional."
            raise FlexgenError("model", f"is {kind_of(model)}", fix)
        conditional = model
        x = _tensor(data)
    if len(x) < 2:
        raise DataError("data", f"has {len(x)} row(s)", "Pass at least two: intervals come from differences of rows.")
    if isinstance(conditional, nn.Module):
        place = next(iter([*conditional.parameters(), *conditional.buffers()]), None)
        x = x if place is None else x.to(place.device)
    conditional.space.validate(x, where=present_in(x), argument="data")
    return conditional, x, type(model).__name__


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


def _words(
    answers: SiteAnswers,
    sites: Tensor,
    plan: Plan,
    values: Values,
    rounding: Rounding,
    found: measurement.Measured,
    budget: Any,
    forwards: int,
    num_data: int,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    enumerated = sum(0 < answers.num_categories[s] <= values.max_categories for s in sites.tolist())
    drawn = "draws of the model's own answers" if values.source == "model" else "values of other data rows"
    looked = [f"all categories of {enumerated} sites" if enumerated else ""]
    looked.append(f"the data's value and {values.num_others} {drawn} at {len(sites) - enumerated} sites")
    which = [part for part, there in zip(looked, (enumerated, enumerated < len(sites)), strict=True) if there]
    seen = found.effects["rectangle gap"].sites if "rectangle gap" in found.effects else torch.zeros(0, 2)
    num_seen, chosen = len(torch.unique(seen, dim=0)), ""
    if not isinstance(plan.pairs, Tensor):
        each = len(plan.pairs[0])
        chosen = f", {each} a row, drawn at random anew in each, so that intervals tell of all {plan.num_pairs}"
    elif len(plan.pairs) < plan.num_pairs:
        chosen = f", the cheapest: the interval of rectangle gaps is of that pair, not of all {plan.num_pairs}"
    assumptions = [
        f"Contexts: {found.num_rows} of {num_data} data rows, taken as a random sample of the population; "
        f"pairs: {num_seen} of {plan.num_pairs}{chosen}; values: {' and '.join(which)}.",
        "Intervals: of the mean effect, Student's t, clustered by data row; a network has no sampling noise, its "
        "contexts have. So one value above its floor refutes.",
        f"Floor: answers are taken to be exact to {rounding.relative:.1g} (1 + |log p|) nats; a gap below its floor is "
        "nothing.",
    ]
    if isinstance(budget, str | datetime.timedelta):
        assumptions.append(f"Budget: {budget}, which a pilot turned into {forwards:,} forward passes at most.")
    caveats = [
        *found.skipped,
        "Samples can refute compatibility, never prove it: 'not refuted' speaks of these contexts and values only.",
    ]
    return tuple(assumptions), tuple(caveats)
