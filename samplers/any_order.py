"""Any-order decoding: the chain rule, one site at a time, in orders of one's choice.

Guarantee: sampling with a given order draws from exactly the distribution of `log_prob` with that order, whatever the
conditionals. If these are compatible, every order gives the same distribution, the joint. If not, each order is a model
of its own, and random orders are their mixture, whose log-probability is the log of the *mean likelihood* over all N!
orders; `log_prob` with a few random orders estimates it (without bias as a likelihood, low by Jensen's inequality as a
log).

Sources: Uria, Murray & Larochelle (2014), *A deep and tractable density estimator*; Hoogeboom et al. (2022),
*Autoregressive diffusion models*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexgen import rng
from flexgen.answers import AnyQuery, answers_of, check_query
from flexgen.checks import instance, malformed, mapping, randomness, real_tensor, whole_number, whole_tensor
from flexgen.conditional import Conditional, HasDecoder, HasLogProb, HasMarginals, marginals_at, take_at
from flexgen.errors import FlexgenError, SpaceError, UnsupportedQueryError
from flexgen.query import Query, question
from flexgen.rng import Randomness
from samplers.schedule import SiteQuery, Walk, first_in_order, query_from_dict, query_to_dict, run

__all__ = ["AnyOrder", "energy", "log_prob", "sample"]


@dataclass(frozen=True, eq=False)
class AnyOrder:
    """The targets of a query, one at a time: a `Schedule`.

    Args:
        query: targets and observed sites, ``[N]`` or ``[B, N]``.
        order: int64 ``[N]`` or ``[B, N]``, permutations of all sites; None: a random one for each row.
    """

    query: Query
    order: Tensor | None = None

    def __post_init__(self) -> None:
        instance("query", self.query, Query, "Pass a flexgen.Query.")
        if self.order is not None:
            _check_order("order", self.order, self.query.num_sites)

    @property
    def only_adds(self) -> bool:
        """Each step knows what the step before knew and more, so that a decoder can remember."""
        return True

    @property
    def num_evaluations(self) -> int:
        return int(self.query.target.sum(-1).max()) if self.query.target.numel() else 0

    @property
    def critical_path(self) -> int:
        return self.num_evaluations

    def walk(self, x: Tensor, *, generator: Randomness) -> Walk:
        query = question(x, self.query)
        order = self.order
        if order is None:
            order = rng.permutation(len(x), query.num_sites, generator=generator)
        yield from _site_by_site(query, order)

    def to_dict(self) -> dict[str, Any]:
        return {"query": query_to_dict(self.query), "order": None if self.order is None else self.order.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AnyOrder:
        fix = "Pass what to_dict() gave."
        mapping("data", data, fix)
        with malformed("data", fix, FlexgenError):
            order = None if data["order"] is None else torch.tensor(data["order"], dtype=torch.int64)
            return cls(query_from_dict(data["query"]), order)

    def __repr__(self) -> str:
        how = "random orders" if self.order is None else "given order"
        return f"AnyOrder({self.query}, {how}, {self.num_evaluations} evaluations)"


def sample(
    conditional: Conditional,
    x: Tensor,
    query: Query,
    *,
    generator: Randomness | int | None,
    order: Tensor | None = None,
    progress: bool = False,
) -> Tensor:
    """x with the target drawn by the chain rule, ``[B, N]``; by default each row in a random order of its own."""
    refuse_missing(x, query)
    return run(conditional, x, AnyOrder(query, order), generator=generator, progress=progress)


def log_prob(
    conditional: Conditional,
    x: Tensor,
    query: Query | None = None,
    *,
    orders: int | Tensor = 1,
    generator: Randomness | int | None = None,
) -> Tensor:
    """log of the mean over orders of the chain-rule likelihood p(x_P | x_C), in nats, ``[B]``.

    Args:
        conditional: has marginals or log-probabilities.
        x: ``[B, N]``.
        query: targets and observed sites; default: all sites given nothing.
        orders: int64 ``[M, N]``, or ``[M, B, N]`` where rows differ; or a number M of random orders a row, which need
            a generator.
        generator: of the random orders.

    Cost: M evaluations for every target.
    """
    if query is None:
        real_tensor("x", x, "[B, N]", ndim=2, error=SpaceError)
        query = Query.rest(torch.zeros(x.shape[1], dtype=torch.bool, device=x.device))
    query = question(x, query)
    refuse_missing(x, query, targets=True)
    if not isinstance(orders, Tensor):
        orders = whole_number("orders", orders, most=1 << 20)
        if orders < 1:
            raise FlexgenError("orders", f"is {orders}", "Average over at least one order.")
        randomness("generator", generator)
        if generator is None:
            raise FlexgenError("generator", "is not given, but orders are to be drawn", "Pass one, or pass the orders.")
        source = rng.resolve(generator, x.device)
        num_orders = orders
        each: Iterator[Tensor] = (rng.permutation(len(x), x.shape[1], generator=source) for _ in range(num_orders))
    else:
        _check_order("orders", orders, x.shape[1])
        if orders.ndim == 1:
            orders = orders[None]
        num_orders = len(orders)
        each = iter(orders)
    if not isinstance(answers_of(conditional), AnyQuery):  # refuse before any evaluation
        chosen = list(each)
        for order in chosen:
            for step in _site_by_site(query, order):
                check_query(conditional, step, fix="Use orders that it answers, or scores of complete conditionals.")
        each = iter(chosen)
    terms = torch.stack([_one_order(conditional, x, query, order) for order in each])  # [M, B]
    return terms.logsumexp(0) - math.log(num_orders)


def energy(conditional: Conditional, orders: Tensor) -> Callable[[Tensor], Tensor]:
    """-log of the any-order likelihood over fixed orders ``[M, N]``, for `MetropolisSampler`."""
    if whole_tensor("orders", orders, "[N] or [M, N]").ndim not in (1, 2):
        raise FlexgenError("orders", f"has shape {tuple(orders.shape)}", "Pass fixed orders, [N] or [M, N].")
    return lambda x: -log_prob(conditional, x, orders=orders)


def refuse_missing(x: Tensor, query: Query, *, targets: bool = False) -> None:
    """Raises if a value that a query will read is NaN."""
    real_tensor("x", x, "[B, N]", error=SpaceError)
    if not x.is_floating_point():
        return
    read = query.observed | query.target if targets else query.observed
    missing = torch.isnan(x).reshape(*x.shape[:2], -1).any(-1)  # [B, N]
    missing = missing & read
    if missing.any():
        row, site = (int(i) for i in missing.nonzero()[0])
        raise SpaceError(
            "x",
            f"holds NaN at row {row}, site {site}, which the query {'reads' if targets else 'conditions on'}",
            "Leave missing entries out of the query, for example observed=~x.isnan().",
        )


def _site_by_site(query: Query, order: Tensor) -> Generator[SiteQuery, Tensor | None, None]:
    """The queries of ``query.chain(order)``, for a batched query, with the site's number along."""
    if order.ndim == 2 and len(order) not in (1, len(query.target)):
        raise FlexgenError(
            "order", f"has {len(order)} rows for {len(query.target)} rows of x", "Pass [N], or one a row."
        )
    sites, counts = first_in_order(query.target, order.to(query.device))  # [B, N], [B]
    num_steps, fewest = int(counts.max()), int(counts.min())
    observed = query.observed
    for step in range(num_steps):
        site = sites[:, step]
        asks = None if step < fewest else step < counts
        target = torch.zeros_like(observed).scatter_(1, site[:, None], True) & query.target  # [B, N]
        if asks is not None:
            target &= asks[:, None]
        yield SiteQuery.make(target, observed, site, asks)
        observed = observed | target


def _one_order(conditional: Conditional, x: Tensor, query: Query, order: Tensor) -> Tensor:
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    walk = _site_by_site(query, order)
    if isinstance(conditional, HasDecoder):
        decoder = conditional.start(x, query)
        for step in walk:
            values = take_at(x, step.sites)
            each = decoder.marginals(step.sites).log_prob(values)[:, 0]
            total = total + (each if step.asks is None else torch.where(step.asks, each, 0.0))
            decoder.append(step.sites, values, given=None if step.asks is None else step.asks[:, None])
        return total
    for step in walk:
        if isinstance(conditional, HasMarginals):
            each = marginals_at(conditional, x, step, step.sites).log_prob(take_at(x, step.sites))[:, 0]
            total = total + (each if step.asks is None else torch.where(step.asks, each, 0.0))
        elif isinstance(conditional, HasLogProb):
            total = total + conditional.log_prob(x, step)
        else:
            raise UnsupportedQueryError(
                "conditional",
                f"{type(conditional).__name__} has no density",
                "Pass one with log_prob() or marginals().",
            )
    return total


def _check_order(argument: str, order: Tensor, num_sites: int) -> None:
    whole_tensor(argument, order, f"of permutations of the {num_sites} sites")
    places = torch.arange(num_sites, device=order.device)
    if (
        order.ndim == 0
        or order.shape[-1] != num_sites
        or not torch.equal(order.sort(-1).values, places.expand(order.shape))
    ):
        raise FlexgenError(
            argument,
            f"holds rows that are no permutation of the {num_sites} sites (shape {tuple(order.shape)})",
            f"Every row names each of 0 to {num_sites - 1} once; targets are visited as they occur in it.",
        )
