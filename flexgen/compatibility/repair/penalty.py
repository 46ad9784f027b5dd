"""A consistency penalty: squared rectangle or circulation gaps, estimated without bias at a few random places a row.

A gap is computed exactly from one-site answers, so its square at a random place is an unbiased estimate of the mean
square over all places, and so is its gradient. The mean vanishes if and only if the gaps do, in the contexts of the
data: there the network is compatible, whatever it predicts. A weight trades that against likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility.networks.circulation import subsets
from flexgen.compatibility.networks.sites import present_in
from flexgen.compatibility.networks.values import values_from_pool
from flexgen.conditional import CategoricalMarginals, HasMarginals, Marginals, absent_in
from flexgen.errors import DataError, FlexgenError, UnsupportedQueryError
from flexgen.networks.modes import evaluating
from flexgen.query import Query
from flexgen.rng import Randomness, Streams
from flexgen.training import MovingObjective, Objective
from flexgen.training.arguments import CheckingObjective
from flexgen.training.batches import Batch

__all__ = ["ConsistencyPenalty", "Penalised", "Places", "rectangle_gaps"]

Kind = Literal["rectangles", "circulations"]


class ConsistencyPenalty:
    """The mean squared gap of each row, nats², ``[B]``: a training `Objective`, by itself or in a `Penalised` one.

    Args:
        kind: ``"rectangles"`` compare complete conditionals (given all other entries of a row), which is what Gibbs
            sampling walks on; ``"circulations"`` compare two orders of the chain rule for two sites given a random
            subset, which is what any-order decoding and imputation walk on.
        num_pairs: random pairs of sites a row and step.
        pool: ``[R, N]``, rows that a rectangle's opposite corner is taken from (their present entries); None: drawn
            from the network's own answers, without gradient through the draw. The network's draws follow it to where it
            puts mass; the pool's distribution stays as it is.
        cap: gaps beyond so many nats count linearly, as 2 cap \\|gap\\| - cap² (Huber); None: squared throughout, and
            the gradient of a rare, impossible corner may be enormous.

    The network answers `marginals`, with gradients, over scalar sites of any kind; it is evaluated in eval mode, since
    dropout would make two answers differ for no reason. A batch is x ``[B, N]``, NaN where missing, or a mapping with
    ``"x"`` and ``"present"``. Sites that the network calls `absent` stay observed. Rows with fewer than two present
    sites have penalty 0.

    Cost: a step takes 4 rows a pair through the network for rectangles, in two batches, and 3 in one for circulations.

    Guarantee: without bias for the mean over all pairs, contexts and values (with ``cap``, of the capped gaps), given
    the distribution of the values; zero on all rows of a distribution with full support if and only if no gap is there.

    >>> penalty = ConsistencyPenalty("rectangles", num_pairs=2)
    >>> objective = Penalised(MaskedLikelihood(law), penalty, weight=0.3)  # doctest: +SKIP
    """

    def __init__(
        self,
        kind: Kind = "rectangles",
        *,
        num_pairs: int = 1,
        pool: Tensor | None = None,
        cap: float | None = None,
    ) -> None:
        if kind not in _GAPS:
            raise FlexgenError("kind", f"is {kind!r}", f"Choose one of {', '.join(map(repr, _GAPS))}.")
        if cap is not None and not cap > 0:
            raise FlexgenError("cap", f"is {cap}", "Pass a positive number of nats, or None.")
        if pool is not None and kind == "circulations":
            raise FlexgenError("pool", "is given, but circulations look at the row's own values", "Leave it out.")
        if pool is not None and (pool.ndim != 2 or not bool(present_in(pool).any(0).all())):
            raise DataError("pool", f"has shape {tuple(pool.shape)}", "Pass rows [R, N] with a value of every site.")
        self.kind = kind
        self.num_pairs = whole_number("num_pairs", num_pairs, 1)
        self.pool = pool
        self.cap = cap

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        gaps, row, num_rows = self._gaps(network, batch, generator)
        total = gaps.new_zeros(num_rows).index_add(0, row, self._sizes(gaps))
        return total / self.num_pairs

    def gaps(self, network: nn.Module, batch: Batch, *, generator: Randomness) -> Tensor:
        """The signed gaps of random places, nats, ``[G]``, without gradient."""
        with torch.no_grad():
            return self._gaps(network, batch, generator)[0]

    def _gaps(self, network: nn.Module, batch: Batch, generator: Randomness) -> tuple[Tensor, Tensor, int]:
        """Gaps ``[G]``, each one's row, and the number of rows."""
        if not isinstance(network, HasMarginals):
            raise UnsupportedQueryError(
                "network",
                f"{type(network).__name__} has no marginals",
                "Pass a masked network that answers marginals().",
            )
        if network.space.site_shape:
            raise UnsupportedQueryError("network", "has sites that are no scalars", "Pass one over scalar sites.")
        x, present = _unpacked(batch)
        absent = absent_in(network, x)
        x = torch.where(present, x, torch.zeros_like(x))  # NaN would reach gradients
        places, row = Places.drawn(x, present & ~absent, absent, self.num_pairs, generator=generator)
        if not len(places):
            return torch.zeros(0, device=x.device), row, len(x)
        with evaluating(network):
            gaps = _GAPS[self.kind](network, places, self._others(places))
        return gaps, row, len(x)

    def _sizes(self, gaps: Tensor) -> Tensor:
        if self.cap is None:
            return gaps.square()
        size = gaps.abs()
        return torch.where(size <= self.cap, gaps.square(), self.cap * (2 * size - self.cap))

    def _others(self, places: Places) -> Tensor | None:
        """For each place a row of values that other rows of the pool hold, ``[G, N]``."""
        if self.pool is None:
            return None
        pool = self.pool.to(places.x)
        present = present_in(pool)
        u = rng.uniform(places.x.shape, generator=places.streams("pool"), dtype=torch.float64)
        return values_from_pool(pool, present, torch.arange(pool.shape[1], device=pool.device), u.T).T  # [G, N]

    def __repr__(self) -> str:
        return f"ConsistencyPenalty({self.kind!r}, num_pairs={self.num_pairs}, cap={self.cap})"


class Penalised:
    """An objective plus a weighted penalty: ``objective + weight * penalty``, ``[B]``.

    Args:
        objective: what is minimised anyhow, such as `flexgen.training.MaskedLikelihood`; a moving one keeps moving.
        penalty: another objective, such as `ConsistencyPenalty`; nest to add a second.
        weight: nats of the objective that one unit of the penalty is worth.
        ramp: share of training over which the weight rises from zero, for networks trained from scratch.

    Validation uses the sum at full weight.
    """

    def __init__(self, objective: Objective, penalty: Objective, *, weight: float = 1.0, ramp: float = 0.0) -> None:
        if not weight >= 0:
            raise FlexgenError("weight", f"is {weight}", "Pass a number, 0 or more.")
        if not 0 <= ramp <= 1:
            raise FlexgenError("ramp", f"is {ramp}", "Pass a share of training, 0 to 1.")
        self.objective, self.penalty, self.weight, self.ramp = objective, penalty, weight, ramp

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        loss = self.objective(network, batch, generator)
        if self.weight == 0:
            return loss
        return loss + self.weight * self.penalty(network, batch, generator)

    def at(self, progress: float) -> Penalised:
        """The objective when so much of training is done; see `flexgen.training.MovingObjective`."""
        share = min(1.0, progress / self.ramp) if self.ramp else 1.0
        objective, penalty = (
            part.at(progress) if isinstance(part, MovingObjective) else part for part in (self.objective, self.penalty)
        )
        return Penalised(objective, penalty, weight=self.weight * share)

    def check(self, network: nn.Module, batch: Batch, *, argument: str = "data") -> None:
        """Whether the objective can score the network on such a batch, where that can be known."""
        if isinstance(self.objective, CheckingObjective):
            self.objective.check(network, batch, argument=argument)

    def __repr__(self) -> str:
        return f"Penalised({self.objective!r} + {self.weight:g} * {self.penalty!r})"


def _unpacked(batch: Batch) -> tuple[Tensor, Tensor]:
    """x ``[B, N]`` and which entries it holds, bool ``[B, N]``."""
    if isinstance(batch, Tensor):
        return batch, present_in(batch)
    if "x" not in batch:
        raise DataError("data", f"yields batches of {sorted(batch)}", "A penalty needs 'x' among them.")
    x = batch["x"]
    return x, batch["present"] if "present" in batch else present_in(x)


# One gap a row, differentiable: rectangles and circulations at sites and values drawn at random.
#
# Both read a network's one-site answers as they come, gradients and all. Everything random is named by a number a gap,
# so that a row's gaps depend on its own stream of random bits, not on the rows beside it.

_NAMES = 1 << 53  # whole numbers that a float64 holds


@dataclass(frozen=True)
class Places:
    """Where gaps are looked at: a data row and two of its sites each.

    Args:
        x: ``[G, N]``.
        i, j: int64 ``[G]``, two sites that the row holds.
        given: bool ``[G, N]``, the row's other entries.
        absent: bool ``[G, N]``, sites that count as observed in every context.
        names: int64 ``[G]``, of the random numbers.
    """

    x: Tensor
    i: Tensor
    j: Tensor
    given: Tensor
    absent: Tensor
    names: Tensor

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def drawn(
        cls, x: Tensor, eligible: Tensor, absent: Tensor, num_pairs: int, *, generator: Randomness
    ) -> tuple[Places, Tensor]:
        """`num_pairs` uniform pairs of eligible sites a row, independent of each other; and each one's row, ``[G]``.

        Args:
            x: ``[B, N]``.
            eligible: bool ``[B, N]``; rows with fewer than two get no pair.
        """
        num_rows, num_sites = eligible.shape
        u = rng.uniform((num_rows, num_pairs, num_sites), generator=generator, dtype=torch.float64)
        names = rng.integers(_NAMES, (num_rows, num_pairs), generator=generator)
        pairs = u.masked_fill(~eligible[:, None], -1.0).topk(2, dim=-1).indices  # [B, P, 2]
        enough = (eligible.sum(-1) >= 2)[:, None].expand(-1, num_pairs)  # [B, P]
        row = torch.arange(num_rows, device=x.device)[:, None].expand(-1, num_pairs)[enough]  # [G]
        i, j = pairs[enough].unbind(-1)
        given = eligible[row].scatter(1, pairs[enough], False)
        return cls(x[row], i, j, given, absent[row], names[enough]), row

    def moved(self, site: Tensor, values: Tensor) -> Tensor:
        """x with other values at one site each, ``[G, N]``."""
        return self.x.scatter(1, site[:, None], values[:, None].to(self.x.dtype))

    def observing(self, *sites: Tensor, given: Tensor | None = None) -> Tensor:
        """The context, the absent sites and some more, bool ``[G, N]``."""
        observed = self.absent | (self.given if given is None else given)
        for site in sites:
            observed = observed.scatter(1, site[:, None], True)
        return observed

    def streams(self, purpose: str) -> Streams:
        return Streams(rng.key(0, purpose), self.names)


class Answers:
    """One-site answers to several queries in one pass of the network."""

    def __init__(self, network: HasMarginals, queries: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Args: queries: x ``[G, N]``, observed ``[G, N]`` and targets, bool ``[G, N]``, of each."""
        x, observed, target = (torch.cat(part) for part in zip(*queries, strict=True))
        seen = torch.where(observed, x, torch.zeros_like(x))
        self.marginals: Marginals = network.marginals(seen, Query(target, observed))
        self.num_queries = len(queries)

    def log_prob(self, *values: Tensor) -> tuple[Tensor, ...]:
        """log p of x ``[G, N]`` under each query, at every site: ``[G, N]`` each."""
        return self.marginals.log_prob(torch.cat(values)).chunk(self.num_queries)


def rectangle_gaps(network: HasMarginals, places: Places, others: Tensor | None) -> Tensor:
    """Log cross-ratio of p(x_i | x_j, C) less that of p(x_j | x_i, C), nats, ``[G]``; 4 rows through the network each.

    One corner is the data row's own (a, b), the opposite one (a', b').

    Args:
        others: ``[G, N]``, rows that a' and b' are taken from; None: drawn from the network's own answers, other than
            the row's own value where a site is categorical.
    """
    x, i, j = places.x, places.i, places.j
    without_i, without_j = places.observing(j), places.observing(i)
    is_i, is_j = _only(i, x), _only(j, x)
    here = Answers(network, [(x, without_i, is_i), (x, without_j, is_j)])
    if others is None:
        drawn = _other_values(here.marginals, x, places)  # [2, G, N]
        others_i, others_j = drawn[0], drawn[1]
    else:
        others_i = others_j = others
    x_a = places.moved(i, _at(others_i, i))  # the row with a' in place of a
    x_b = places.moved(j, _at(others_j, j))
    there = Answers(network, [(x_b, without_i, is_i), (x_a, without_j, is_j)])

    # Each a pair: of p(x_i | ..) at i, of p(x_j | ..) at j. Corners: own and opposite value, in either context.
    own_here, other_here = here.log_prob(x, x), here.log_prob(x_a, x_b)
    own_there, other_there = there.log_prob(x, x), there.log_prob(x_a, x_b)
    ratio_i, ratio_j = (
        _at(own_here[side] + other_there[side] - other_here[side] - own_there[side], site)
        for side, site in enumerate((i, j))
    )
    return ratio_i - ratio_j


def circulation_gaps(network: HasMarginals, places: Places, others: Tensor | None) -> Tensor:  # noqa: ARG001
    """log p(a|C) p(b|C,a) / p(b|C) p(a|C,b) at the data row's own a and b, ``[G]``; 3 rows each.

    C is a random subset of the row's other entries: its size is uniform, then the set is.
    """
    x, i, j = places.x, places.i, places.j
    u = rng.uniform((len(x), 1 + x.shape[1]), generator=places.streams("contexts"), dtype=torch.float64)
    given = subsets(places.given, u)
    is_i, is_j = _only(i, x), _only(j, x)
    queries = [
        (x, places.observing(given=given), is_i | is_j),
        (x, places.observing(i, given=given), is_j),
        (x, places.observing(j, given=given), is_i),
    ]
    heads, given_a, given_b = Answers(network, queries).log_prob(x, x, x)
    return _at(heads, i) + _at(given_a, j) - _at(heads, j) - _at(given_b, i)


_GAPS = {"rectangles": rectangle_gaps, "circulations": circulation_gaps}


def _other_values(marginals: Marginals, x: Tensor, places: Places) -> Tensor:
    """Draws of the answers to two queries, ``[2, G, N]``, without gradient."""
    question = torch.arange(2, device=places.names.device).repeat_interleave(len(places.names))
    streams = Streams(rng.key(0, "values"), places.names.repeat(2)).fold_in(question)
    with torch.no_grad():
        if isinstance(marginals, CategoricalMarginals):
            own = torch.cat([x, x]).long().clamp(0, marginals.log_probs.shape[-1] - 1)[..., None]
            others = marginals.log_probs.detach().scatter(-1, own, -torch.inf)
            # A site with one possible value keeps it: its gap is zero, as it should be.
            alone = (others == -torch.inf).all(-1, keepdim=True)
            values = rng.categorical(torch.where(alone, marginals.log_probs, others), generator=streams)
        else:
            values = marginals.sample(generator=streams)
    return values.view(2, *x.shape)


def _at(values: Tensor, site: Tensor) -> Tensor:
    return values.gather(1, site[:, None])[:, 0]


def _only(site: Tensor, x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.bool).scatter(1, site[:, None], True)
