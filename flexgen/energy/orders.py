"""Joints made of orders: the chain rule in one order is a joint, and so is the average over several."""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

from flexgen import rng
from flexgen.answers import CompleteConditionals, Whole
from flexgen.checks import MOST_ENTRIES, instance, kind_of, named_seed, whole_number
from flexgen.conditional import CanSample, Conditional, HasLogProb, HasMarginals
from flexgen.energy.joints import FiniteJoint
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query, question
from flexgen.rng import Randomness

__all__ = ["OrderEnsemble"]


class OrderEnsemble(FiniteJoint):
    """p(x) = 1/M sum over M fixed orders o of prod_t q(x_{o_t} | x_{o_1}, .., x_{o_{t-1}}).

    Whatever the conditionals q, each order's product is a joint, normalised, and so is their mixture; with one order it
    is the fixed-order chain. Draws and log-probabilities agree exactly, and no training is needed. Averaging pays: the
    mean likelihood is at least the geometric mean of the orders' likelihoods, that is log p(x) is at least the mean of
    the orders' log-probabilities, by as much as the orders disagree.

    Args:
        conditional: answers p(x_i | x_C) for any C; any scalar sites (complete conditionals of the mixture, which are
            found by enumeration, need finite ones).
        orders: int64 ``[N]`` or ``[M, N]``, permutations of the sites.

    What stays: the network's answers along the orders. What changes: answers to other queries, such as
    p(x_i | rest), now those of the joint.

    Cost: a draw takes N rows through the network, a log-probability M N, a complete conditional M N K.
    """

    answers = CompleteConditionals() | Whole()

    def __init__(self, conditional: Conditional, orders: Tensor) -> None:
        super().__init__(conditional.space)
        instance("conditional", conditional, Conditional, "Pass one with marginals().", UnsupportedQueryError)
        if not isinstance(conditional, HasMarginals) and not (
            isinstance(conditional, HasLogProb) and isinstance(conditional, CanSample)
        ):
            raise UnsupportedQueryError(
                "conditional", f"{type(conditional).__name__} has no density", "Pass one with marginals()."
            )
        if not isinstance(orders, Tensor) or orders.is_floating_point() or orders.dtype == torch.bool:
            what = f"of {orders.dtype}" if isinstance(orders, Tensor) else kind_of(orders)
            raise FlexgenError("orders", f"is {what}", "Pass an int64 tensor, [N] or [M, N].")
        orders = orders[None] if orders.ndim == 1 else orders
        sites = torch.arange(self.space.num_sites, device=orders.device)
        if (
            orders.ndim != 2
            or not len(orders)
            or not torch.equal(orders.sort(-1).values, sites.expand(len(orders), -1))
        ):
            raise FlexgenError(
                "orders",
                f"has shape {tuple(orders.shape)} and rows that are no permutation of the {len(sites)} sites",
                "Pass [N] or [M, N]; every row names each site once.",
            )
        self.conditional = conditional
        self.orders = orders

    @classmethod
    def random(cls, conditional: Conditional, num_orders: int, *, generator: Randomness | int) -> OrderEnsemble:
        """An ensemble over random orders, drawn once."""
        instance("conditional", conditional, Conditional, "Pass one with marginals().", UnsupportedQueryError)
        source = rng.resolve(named_seed("generator", generator))
        count = whole_number("num_orders", num_orders, 1, most=1 << 20)
        return cls(conditional, rng.permutation(count, conditional.space.num_sites, generator=source))

    def log_probs_by_order(self, x: Tensor) -> Tensor:
        """log p of every order's chain, nats float64 ``[M, B]``."""
        self.space.validate(x)
        num_orders = len(self.orders)
        order = repeat(self.orders.to(x.device), "m n -> (m b) n", b=len(x))
        rows = repeat(x, "b n -> (m b) n", m=num_orders)
        everything = torch.ones(self.space.num_sites, dtype=torch.bool, device=x.device)
        total = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
        for step in Query(everything, ~everything).chain(order):
            total = total + self._term(rows, step)
        by_order: Tensor = rearrange(total, "(m b) -> m b", m=num_orders)
        return by_order

    def log_weight(self, x: Tensor) -> Tensor:
        """log p(x), ``[B]``: the mixture is normalised."""
        return self.log_probs_by_order(x).logsumexp(0) - math.log(len(self.orders))

    def log_normaliser(self) -> float:
        return 0.0

    def draw(self, num_rows: int, *, generator: Randomness | int, dtype: torch.dtype | None = None) -> Tensor:
        """Independent draws of the joint, ``[num_rows, N]``: each row by a random one of the orders.

        Args:
            dtype: of the draws; default: int64 where all sites are categorical, else float64.
        """
        source, num_rows = (
            rng.resolve(named_seed("generator", generator)),
            whole_number("num_rows", num_rows, most=MOST_ENTRIES),
        )
        if dtype is not None:
            instance("dtype", dtype, torch.dtype, "Pass a dtype of torch, or None.")
        dtype = dtype or (torch.int64 if self.space.is_finite else torch.float64)
        x = torch.zeros(num_rows, self.space.num_sites, dtype=dtype, device=source.device)
        chosen = rng.integers(len(self.orders), (num_rows,), generator=source)
        order = self.orders.to(x.device)[chosen]  # [B, N]
        everything = torch.ones(self.space.num_sites, dtype=torch.bool, device=x.device)
        with torch.no_grad():
            for step in Query(everything, ~everything).chain(order):
                x = self._drawn(x, step, source)
        return x

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        """x with all sites drawn given nothing, or each row's one target given all others."""
        query = question(x, query)
        if len(x) and bool(query.target.all()):
            return self.draw(len(x), generator=generator, dtype=x.dtype)
        return super().sample(x, query, generator=generator)

    def _term(self, x: Tensor, step: Query) -> Tensor:
        if isinstance(self.conditional, HasMarginals):
            log_probs = self.conditional.marginals(x, step).log_prob(x).double()
            return torch.where(step.target, log_probs, 0.0).sum(-1)
        assert isinstance(self.conditional, HasLogProb)
        return self.conditional.log_prob(x, step).double()

    def _drawn(self, x: Tensor, step: Query, generator: Randomness) -> Tensor:
        if isinstance(self.conditional, HasMarginals):
            values = self.conditional.marginals(x, step).sample(generator=generator)
            return torch.where(step.target, values.to(x.dtype), x)
        assert isinstance(self.conditional, CanSample)
        return self.conditional.sample(x, step, generator=generator)

    def __repr__(self) -> str:
        return f"OrderEnsemble({type(self.conditional).__name__}, {len(self.orders)} order(s))"
