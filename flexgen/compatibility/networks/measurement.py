"""Every effect that a model can be asked for, within the rows and the time that a diagnosis may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flexgen import rng
from flexgen.compatibility.networks.blocks import exact_blocks
from flexgen.compatibility.networks.budget import SHARES, Plan
from flexgen.compatibility.networks.circulation import circulation
from flexgen.compatibility.networks.derivatives import derivative_gaps, spread_of
from flexgen.compatibility.networks.effects import Effect
from flexgen.compatibility.networks.orders import order_gaps
from flexgen.compatibility.networks.rectangles import rectangles
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.compatibility.networks.values import Values
from flexgen.errors import FlexgenError

__all__ = ["Measured", "forwards_in", "measure", "now"]

_PILOT_ROWS = 256
_FIRST_ROWS = 2  # of a diagnostic that is timed; each further piece has twice as many


def now() -> float:
    """Seconds, by the clock that budgets of time are kept by."""
    return time.perf_counter()


@dataclass
class Measured:
    """What was found.

    Attributes:
        effects: by name.
        skipped: what could not be measured, a sentence each.
        directions: the two directions' log cross-ratios of the rectangles.
        num_rows: data rows that rectangles were measured in.
    """

    effects: dict[str, Effect] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    directions: dict[str, Tensor] = field(default_factory=dict)
    num_rows: int = 0


def measure(
    answers: SiteAnswers,
    x: Tensor,
    plan: Plan,
    values: Values,
    rounding: Rounding,
    *,
    seed: int,
    deadline: float = math.inf,
) -> Measured:
    """Follows a plan, up to a deadline of the clock `now`.

    Where there is a deadline, data rows are taken in pieces of twice as many each time, until the next would end after
    the diagnostic's share of the time. An error of the model ends a diagnostic, and no more than that.
    """
    out = Measured(skipped=[f"Not measured: {name}. The budget is too small." for name in plan.omitted])
    device = x.device

    def some_rectangles(rows: Tensor, pairs: Tensor, first: int) -> Effect:
        result = rectangles(
            answers,
            rows,
            pairs=pairs,
            values=values,
            pool=x,
            rounding=rounding,
            generator=rng.key(seed, "r", first),
        )
        cells = result.valid.clone()
        cells[..., 0, :], cells[..., :, 0] = False, False
        for name, ratios in zip(("forward", "backward"), result.log_cross_ratios(), strict=True):
            out.directions[name] = torch.cat([out.directions.get(name, torch.zeros(0)), ratios[cells].cpu()])
        out.num_rows += len(rows)
        return result.effect()

    def of_rectangles(rows: Tensor, part: slice) -> list[Effect]:
        if isinstance(plan.pairs, Tensor):
            return [some_rectangles(rows, plan.pairs, part.start)]
        return [
            some_rectangles(rows[k : k + 1], pairs, part.start + k).at_rows(torch.tensor([k]))
            for k, pairs in enumerate(plan.pairs[part])
        ]

    def of_circulations(rows: Tensor, part: slice) -> list[Effect]:
        pairs, generator = plan.circulation_pairs[part].to(device), rng.key(seed, "c", part.start)
        result = circulation(answers, rows, pairs=pairs, values=values, pool=x, rounding=rounding, generator=generator)
        return list(result.effects())

    def of_orders(rows: Tensor, part: slice) -> list[Effect]:
        target, generator = plan.order_targets[part].to(device), rng.key(seed, "o", part.start)
        result = order_gaps(answers, rows, target=target, observed=~target, rounding=rounding, generator=generator)
        return [result.effect()]

    def of_derivatives(rows: Tensor, part: slice) -> list[Effect]:  # noqa: ARG001
        return [derivative_gaps(answers, rows, sites=plan.real_sites, spread=spread_of(x, answers.present_in(x)))]

    def of_blocks(rows: Tensor, part: slice) -> list[Effect]:
        return [exact_blocks(answers, rows, plan.blocks[part], rounding=rounding).effect()]

    jobs = {
        "rectangles": (plan.rectangle_rows, of_rectangles),
        "circulations": (plan.circulation_rows, of_circulations),
        "order gaps": (plan.order_rows, of_orders),
        "mixed derivatives": (plan.derivative_rows, of_derivatives),
        "exact blocks": (plan.block_rows, of_blocks),
    }
    left = {name: SHARES[name] for name, (rows, _) in jobs.items() if len(rows)}
    for name in list(left):
        rows, action = jobs[name]
        until = deadline if deadline == math.inf else now() + (deadline - now()) * left[name] / sum(left.values())
        del left[name]
        try:
            _in_pieces(x, rows, action, until, deadline, out)
        except FlexgenError as error:
            out.skipped.append(
                f"Not measured: {name}. The model refuses the question ({error.argument}: {error.problem})."
            )
            continue
        if name == "exact blocks" and not len(out.effects.get("block scan divergence", ())):
            out.skipped.append(f"Not measured: {name}. Scans of them settle in several classes of states.")
    return out


def _in_pieces(
    x: Tensor,
    rows: Tensor,
    action: Callable[[Tensor, slice], list[Effect]],
    until: float,
    deadline: float,
    out: Measured,
) -> None:
    """Effects of some data rows, or as many of them as there is time for; what is there when an error comes is kept."""
    begin, size, took = 0, len(rows) if deadline == math.inf else _FIRST_ROWS, 0.0
    while begin < len(rows) and now() + 2 * took < (until if begin else deadline):
        started, part = now(), slice(begin, min(begin + size, len(rows)))
        for effect in action(x[rows[part].to(x.device)], part):
            effect = effect.at_rows(rows[part])
            known = [out.effects[effect.name]] if effect.name in out.effects else []
            if len(effect):
                out.effects[effect.name] = Effect.joined([*known, effect])
        begin, size, took = part.stop, 2 * size, now() - started


def forwards_in(seconds: float, answers: SiteAnswers, x: Tensor, present: Tensor) -> int:
    """How many rows pass the network in so many seconds, by a pilot of at most a tenth of them."""
    cost, size, rate = answers.cost, 8, 1.0
    began = now()
    while now() - began < seconds / 20 and size <= max(_PILOT_ROWS, answers.batch_size):
        start = now()
        _pilot(answers, x, present, size)
        rate = size / max(now() - start, 1e-6)
        size *= 4
    answers.cost = cost
    return max(1, int(0.8 * rate * seconds))


def _pilot(answers: SiteAnswers, x: Tensor, present: Tensor, size: int) -> None:
    """So many complete conditionals."""
    row, site = present.nonzero(as_tuple=True)
    again = torch.arange(size, device=x.device) % max(len(row), 1)
    row, site = (row[again], site[again]) if len(row) else (row, site)

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        return x[row[some]], present[row[some]].scatter(1, site[some, None], False)

    answers.log_prob(Requests(site, make), x[row, site][:, None].double())
