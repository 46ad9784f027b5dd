"""Order gap: the chain rule gives log p(x_P | x_C) once for every order of the sites in P, and all must agree.

The gap between two orders is a sum of circulations along the swaps that turn one into the other, so it is zero for all
rows and orders if and only if every circulation is. It is by how many nats an any-order likelihood depends on the
arbitrary choice of an order.

Cost: at most one row a target and order; orders that begin alike share rows (given nothing, all data rows do).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility.networks.arguments import checked_observed, checked_rows, checked_seed
from flexgen.compatibility.networks.diagnostic import Diagnostic, Found, Panel, Plan, Results, Subject, histogram
from flexgen.compatibility.networks.effects import Cost, Effect
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness

__all__ = ["OrderDiagnostic", "OrderGaps", "order_gaps"]


@dataclass(frozen=True, eq=False)
class OrderGaps:
    """Log-probabilities of data rows by the chain rule in several orders.

    Args:
        orders: int64 ``[R, m, N]``, permutations of all sites; the targets are visited as they occur in it.
        log_probs: float64 ``[R, m]``, nats.
        noise: float64 ``[R, m]``, the most that rounding makes of each.
        num_targets: int64 ``[R]``.
        cost: what it took.
    """

    orders: Tensor
    log_probs: Tensor
    noise: Tensor
    num_targets: Tensor
    cost: Cost

    def __repr__(self) -> str:
        return f"OrderGaps of {len(self.num_targets):,} data rows in {self.log_probs.shape[1]} orders; see effect()"

    def effect(self) -> Effect:
        """The difference of every two orders of a row, in nats of the whole target.

        Rows with fewer than two targets, which have but one order, are left out.
        """
        several = (self.num_targets > 1).nonzero()[:, 0]
        num_orders = self.log_probs.shape[1]
        first, second = torch.combinations(torch.arange(num_orders), 2).unbind(1)
        log_probs, noise = self.log_probs[several], self.noise[several]
        values = (log_probs[:, first] - log_probs[:, second]).flatten()
        floor = (noise[:, first] + noise[:, second]).flatten()
        rows = several.repeat_interleave(len(first))
        nothing = torch.zeros(len(rows), 0, dtype=torch.int64)
        return Effect("order gap", values, torch.ones_like(values), rows, nothing, floor, self.cost)


def order_gaps(
    conditional: Conditional | SiteAnswers,
    x: Tensor,
    *,
    orders: int | Tensor = 2,
    target: Tensor | None = None,
    observed: Tensor | None = None,
    rounding: Rounding | None = None,
    generator: Randomness | int = 0,
) -> OrderGaps:
    """log p(x_P | x_C) of data rows by the chain rule, in several orders.

    Args:
        conditional: answers p(x_i | x_C) for any C (or `SiteAnswers` of one).
        x: ``[R, N]``, data rows, NaN where an entry is missing; missing entries are left out of both sets.
        orders: so many random orders a row, of which the first two are each other's reverse; or int64 ``[m, N]`` or
            ``[R, m, N]``, permutations of the sites.
        target: bool ``[N]`` or ``[R, N]``, P; default: all present entries that are not observed.
        observed: likewise, C; default: nothing.
        rounding: of the answers; default: measured on these rows.
        generator: of the random orders.
    """
    answers = conditional if isinstance(conditional, SiteAnswers) else SiteAnswers(conditional)
    x = checked_rows("x", x, answers.conditional.space.num_sites)
    (num_rows, num_sites), device = x.shape, x.device
    present = answers.present_in(x)
    given = torch.zeros_like(present) if observed is None else checked_observed("observed", observed, present)
    targets = checked_observed("target", target, present) & ~given
    rounding = rounding or Rounding.measured(answers, x, present)
    before = answers.cost
    order = _orders(orders, num_rows, num_sites, generator).to(device)  # [R, m, N]
    rank = order.argsort(-1)  # [R, m, N], place of every site
    num_orders = order.shape[1]

    row, which, site = targets[:, None].expand(-1, num_orders, -1).nonzero(as_tuple=True)

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        r, places = row[some], rank[row[some], which[some]]  # [b, N]
        earlier = places < places.gather(1, site[some, None])
        return x[r], given[r] | (targets[r] & earlier)

    terms = answers.log_prob(Requests(site, make), x[row, site][:, None].double())[:, 0]  # [M]
    totals = torch.zeros(2, num_rows, num_orders, dtype=torch.float64, device=device)
    totals[0].index_put_((row, which), terms, accumulate=True)
    totals[1].index_put_((row, which), rounding.of(terms), accumulate=True)
    return OrderGaps(order.cpu(), totals[0].cpu(), totals[1].cpu(), targets.sum(-1).cpu(), answers.cost - before)


def _orders(orders: int | Tensor, num_rows: int, num_sites: int, generator: Randomness | int) -> Tensor:
    """Permutations ``[R, m, N]``."""
    if isinstance(orders, Tensor):
        given = orders[None].expand(num_rows, -1, -1) if orders.ndim == 2 else orders
        places = torch.arange(num_sites, device=orders.device)
        if given.ndim != 3 or len(given) != num_rows or not torch.equal(given.sort(-1).values, places.expand_as(given)):
            raise FlexgenError(
                "orders",
                f"has shape {tuple(orders.shape)} or rows that are no permutation",
                f"Pass [m, {num_sites}] or [{num_rows}, m, {num_sites}]; each names 0 to {num_sites - 1} once.",
            )
        if given.shape[1] < 2:
            raise FlexgenError("orders", "holds one order", "A gap needs two.")
        return given
    orders = whole_number("orders", orders, 1)
    if orders < 2:
        raise FlexgenError("orders", f"is {orders}", "A gap needs at least 2 orders.")
    streams = rng.Streams(checked_seed(generator), num_rows)
    drawn = rng.uniform((num_rows, orders - 1, num_sites), generator=streams, dtype=torch.float64).argsort(-1)
    return torch.cat([drawn[:, :1], drawn[:, :1].flip(-1), drawn[:, 1:]], dim=1)


_MOST_TARGETS, _MOST_ROWS = 16, 1024
_TITLE, _ACROSS = "order gap of the chain rule", "|log p by one order - by another|, nats a row"


class OrderDiagnostic(Diagnostic):
    """Two orders of the chain rule, each other's reverse, over up to 16 sites of a data row given the others."""

    name = "order gaps"
    effects: ClassVar[Mapping[str, str]] = {"order gap": "log p(row) by the chain rule in one order against another"}
    share = 0.2

    def least(self, subject: Subject) -> float:  # noqa: ARG002
        return 4.0  # two orders of two sites

    def plan(self, subject: Subject, forwards: float, source: torch.Generator) -> Plan:
        sites = subject.sites
        number = min(_MOST_TARGETS, len(sites), int(forwards / 2 + 1e-9))
        if number < 2:
            return Plan.nothing()
        rows = subject.order[: min(_MOST_ROWS, int(forwards / (2 * number) + 1e-9))]
        target = torch.zeros(len(rows), subject.x.shape[1], dtype=torch.bool)
        target[:, sites] = torch.rand(len(rows), len(sites), generator=source).argsort(-1) < number
        what = f"two orders of {number} sites in each of {len(rows)} data rows"
        return Plan(rows, 2 * number * len(rows), what, target)

    def measure(self, subject: Subject, x: Tensor, plan: Plan, part: slice) -> Found:
        target, seed = plan.choices[part].to(x.device), rng.key(subject.seed, "o", part.start)
        result = order_gaps(
            subject.answers, x, target=target, observed=~target, rounding=subject.rounding, generator=seed
        )
        return Found([result.effect()])

    def panels(self, results: Results) -> Sequence[Panel]:
        if "order gap" not in results.effects:
            return ()
        return [partial(histogram, name="order gap", title=_TITLE, across=_ACROSS, count="pairs of orders")]
