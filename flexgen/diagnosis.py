"""`diagnose`: is this model compatible? Effect sizes, intervals, cost and a verdict, within a budget."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.checks import kind_of, randomness
from flexgen.compatibility.blocks import exact_blocks
from flexgen.compatibility.budget import DEFAULT_FORWARDS, Plan, budget_of, make_plan
from flexgen.compatibility.derivatives import derivative_gaps
from flexgen.compatibility.effects import Effect
from flexgen.compatibility.network_arguments import check_level, check_margin
from flexgen.compatibility.network_circulation import circulation
from flexgen.compatibility.network_rectangles import rectangles
from flexgen.compatibility.orders import order_gaps
from flexgen.compatibility.report import Report
from flexgen.compatibility.rounding import Rounding
from flexgen.compatibility.sites import Requests, SiteAnswers, present_in
from flexgen.compatibility.values import Values
from flexgen.conditional import Conditional
from flexgen.errors import DataError, FlexgenError, UnsupportedQueryError
from flexgen.rng import Randomness
from flexgen.space import Space
from flexgen.table_model import TableModel

__all__ = ["diagnose"]

_PILOT_ROWS = 256


def diagnose(
    model: TableModel | Conditional,
    data: pd.DataFrame | Tensor | np.ndarray,
    *,
    budget: int | str | datetime.timedelta = DEFAULT_FORWARDS,
    sites: Sequence[int | str] | None = None,
    margin: float | None = None,
    level: float = 0.95,
    values: Values | None = None,
    batch_size: int | None = None,
    generator: Randomness | int | None = 0,
) -> Report:
    """Measures how far a model's conditionals are from having a joint, in the contexts of data rows.

    Args:
        model: a `TableModel`, or any `Conditional` with marginals or log-probabilities over scalar sites.
        data: rows: a data frame for a table model; otherwise ``[B, N]``, NaN where an entry is missing. Rows the model
            was not fitted to are the fairer choice.
        budget: whole number: rows that may pass the network; or a time, such as ``"30 s"`` or ``"2 min"``, which a
            short pilot turns into such a number (and which therefore depends on the machine).
        sites: which to examine, by name or number; default: all.
        margin: nats below which an effect does not matter to you; the verdict may then be "equivalent within margin".
        level: nominal coverage of the intervals.
        values: which values of the sites are looked at.
        batch_size: rows a call of the network; changes nothing but speed and memory.
        generator: of rows, pairs, values and orders: a seed or a source. The same one gives the same report.

    Returns:
        A report with the effects that the model can be asked about: rectangles from complete conditionals
        and exact blocks; circulations and order gaps where it answers p(x_i | x_C) for any C.

    Raises:
        DataError: data that are not the model's rows; fewer than two rows or sites.
        UnsupportedQueryError: a model without densities.
    """
    check_margin(margin)
    check_level(level)
    forwards, seconds = budget_of(budget)
    conditional, x, title = _subject(model, data)
    space = conditional.space
    examined = _sites(space, sites)
    answers = SiteAnswers(conditional, batch_size=batch_size)
    values = values or Values("model" if answers.has_marginals else "data")
    seed = rng.seed_from(randomness("generator", generator))
    present = present_in(x)
    rounding = Rounding.measured(answers, x, present)
    if forwards is None:
        assert seconds is not None
        forwards = _forwards_in(seconds, answers, x, present)
    plan = make_plan(
        space,
        present.cpu(),
        examined,
        forwards=forwards,
        values=values,
        per_value=not answers.has_marginals,
        seed=rng.key(seed, "plan"),
    )
    effects, skipped, directions = _measured(answers, x, plan, values, rounding, seed)
    assumptions, caveats = _words(space, examined, plan, values, rounding, skipped, budget, forwards, len(x))
    return Report(
        effects,
        space.names,
        title,
        len(x),
        margin,
        level,
        assumptions,
        caveats,
        answers.cost,
        directions,
    )


def _measured(
    answers: SiteAnswers, x: Tensor, plan: Plan, values: Values, rounding: Rounding, seed: int
) -> tuple[dict[str, Effect], list[str], dict[str, Any]]:
    """Every effect that can be asked for; what could not; the two directions' log cross-ratios."""
    present = present_in(x)
    found: dict[str, Effect] = {}
    skipped: list[str] = []
    directions: dict[str, Any] = {}

    def attempt(name: str, rows: Tensor, measure: Callable[[Tensor], list[Effect]]) -> None:
        if len(rows) == 0:
            return
        try:
            effects = measure(x[rows.to(x.device)])
        except UnsupportedQueryError as error:
            skipped.append(f"Not measured: {name}. The model refuses the question ({error.argument}: {error.problem}).")
            return
        for effect in effects:
            if len(effect):
                found[effect.name] = dataclasses.replace(effect, rows=rows[effect.rows])

    def of_rectangles(rows: Tensor) -> list[Effect]:
        result = rectangles(
            answers, rows, pairs=plan.pairs, values=values, pool=x, rounding=rounding, generator=rng.key(seed, "r")
        )
        one, other = result.log_cross_ratios()
        cells = result.valid.clone()
        cells[..., 0, :], cells[..., :, 0] = False, False
        directions["forward"], directions["backward"] = one[cells].cpu(), other[cells].cpu()
        return [result.effect()]

    def of_circulations(rows: Tensor) -> list[Effect]:
        result = circulation(
            answers,
            rows,
            pairs=plan.circulation_pairs.to(x.device),
            values=values,
            pool=x,
            rounding=rounding,
            generator=rng.key(seed, "c"),
        )
        return list(result.effects())

    def of_orders(rows: Tensor) -> list[Effect]:
        target = plan.order_targets.to(x.device)
        result = order_gaps(
            answers, rows, target=target, observed=~target, rounding=rounding, generator=rng.key(seed, "o")
        )
        return [result.effect()]

    def of_derivatives(rows: Tensor) -> list[Effect]:
        return [derivative_gaps(answers, rows, sites=plan.real_sites, spread=_spread(x, present))]

    attempt("rectangles", plan.rectangle_rows, of_rectangles)
    attempt("circulations", plan.circulation_rows, of_circulations)
    attempt("order gaps", plan.order_rows, of_orders)
    attempt("mixed derivatives", plan.derivative_rows, of_derivatives)
    attempt("exact blocks", plan.block_rows, lambda rows: [exact_blocks(answers, rows, plan.blocks).effect()])
    return found, skipped, directions


def _subject(model: Any, data: Any) -> tuple[Conditional, Tensor, str]:
    """The conditional, the rows on its device, and what to call it."""
    if isinstance(model, TableModel):
        if not isinstance(data, pd.DataFrame):
            raise DataError("data", f"is {kind_of(data)}", "Pass a data frame with the columns of the table model.")
        conditional: Conditional = model.conditional()
        x = model.schema.encode(data).to(model.device)
    else:
        if not isinstance(model, Conditional):
            raise FlexgenError("model", f"is {kind_of(model)}", "Pass a TableModel or a Conditional.")
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
        data = data.to_numpy(dtype=float, na_value=np.nan)
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(np.ascontiguousarray(data))
    if not isinstance(data, Tensor) or data.ndim != 2:
        what = f"has shape {tuple(data.shape)}" if isinstance(data, Tensor) else f"is {kind_of(data)}"
        raise DataError("data", what, "Pass rows [B, N], a column a site.")
    return data


def _sites(space: Space, sites: Sequence[int | str] | None) -> Tensor:
    names = list(space.names)
    if sites is None:
        chosen = list(range(space.num_sites))
    else:
        unknown = [s for s in sites if (s not in names if isinstance(s, str) else not 0 <= s < len(names))]
        if unknown:
            raise DataError("sites", f"names {unknown[0]!r}", f"Choose among {', '.join(names[:20])}.")
        chosen = sorted({names.index(s) if isinstance(s, str) else int(s) for s in sites})
    if len(chosen) < 2:
        raise DataError("sites", f"are {len(chosen)}", "Compatibility is about two sites at least.")
    return torch.tensor(chosen)


def _forwards_in(seconds: float, answers: SiteAnswers, x: Tensor, present: Tensor) -> int:
    """How many rows pass the network in so many seconds, by a pilot of at most a tenth of them."""
    cost, size, rate = answers.cost, 8, 1.0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds / 20 and size <= max(_PILOT_ROWS, answers.batch_size):
        start = time.perf_counter()
        _pilot(answers, x, present, size)
        rate = size / max(time.perf_counter() - start, 1e-6)
        size *= 4
    answers.cost = cost
    return max(1, int(0.8 * rate * seconds))


def _spread(x: Tensor, present: Tensor) -> Tensor:
    """Standard deviation of every column's present entries, ``[N]``."""
    count = present.sum(0).clamp_min(2)
    mean = x.nan_to_num(0.0).double().sum(0) / count
    return (torch.where(present, (x.double() - mean).square(), 0.0).sum(0) / (count - 1)).sqrt()


def _pilot(answers: SiteAnswers, x: Tensor, present: Tensor, size: int) -> None:
    """So many complete conditionals."""
    number = torch.arange(size, device=x.device)
    row, site = number % len(x), (number // len(x)) % x.shape[1]

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        return x[row[some]], present[row[some]].scatter(1, site[some, None], False)

    answers.log_prob(Requests(site, make), x[row, site][:, None].double().nan_to_num(0.0))


def _words(
    space: Space,
    sites: Tensor,
    plan: Plan,
    values: Values,
    rounding: Rounding,
    skipped: list[str],
    budget: Any,
    forwards: int,
    num_data: int,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    enumerated = sum(0 < space.num_categories[s] <= values.max_categories for s in sites.tolist())
    drawn = "draws of the model's own answers" if values.source == "model" else "values of other data rows"
    looked = [f"all categories of {enumerated} sites" if enumerated else ""]
    looked.append(f"the data's value and {values.num_others} {drawn} at {len(sites) - enumerated} sites")
    which = [part for part, there in zip(looked, (enumerated, enumerated < len(sites)), strict=True) if there]
    assumptions = [
        f"Contexts: {len(plan.rectangle_rows)} of {num_data} data rows, taken as a random sample of the population; "
        f"pairs: {len(plan.pairs)} of {plan.num_pairs}; values: {' and '.join(which)}.",
        "Intervals: Student's t, clustered by data row; a network has no sampling noise, its contexts have.",
        f"Floor: answers are taken to be exact to {rounding.relative:.1g} (1 + |log p|) nats; a gap below its floor is "
        "nothing.",
    ]
    if isinstance(budget, str | datetime.timedelta):
        assumptions.append(f"Budget: {budget}, which a pilot turned into {forwards:,} forward passes.")
    caveats = [
        *skipped,
        "Samples can refute compatibility, never prove it: 'not refuted' speaks of these contexts and values only.",
    ]
    return tuple(assumptions), tuple(caveats)
