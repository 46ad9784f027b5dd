"""One gap a row, differentiable: rectangles and circulations at sites and values drawn at random.

Both read a network's one-site answers as they come, gradients and all. Everything random is named by a number a gap, so
that a row's gaps depend on its own stream of random bits, not on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen import rng
from flexgen.compatibility.networks.circulation import subsets
from flexgen.conditional import CategoricalMarginals, HasMarginals, Marginals
from flexgen.query import Query
from flexgen.rng import Randomness, Streams

__all__ = ["Places", "circulation_gaps", "rectangle_gaps"]

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
    """One-site answers of several questions in one pass of the network."""

    def __init__(self, network: HasMarginals, asked: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Args: asked: x ``[G, N]``, observed ``[G, N]`` and the sites asked for, bool ``[G, N]``, of each question."""
        x, observed, target = (torch.cat(part) for part in zip(*asked, strict=True))
        seen = torch.where(observed, x, torch.zeros_like(x))
        self.marginals: Marginals = network.marginals(seen, Query(target, observed))
        self.num_questions = len(asked)

    def log_prob(self, *values: Tensor) -> tuple[Tensor, ...]:
        """log p of x ``[G, N]`` under each question, at every site: ``[G, N]`` each."""
        return self.marginals.log_prob(torch.cat(values)).chunk(self.num_questions)


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
    asked = [
        (x, places.observing(given=given), is_i | is_j),
        (x, places.observing(i, given=given), is_j),
        (x, places.observing(j, given=given), is_i),
    ]
    heads, given_a, given_b = Answers(network, asked).log_prob(x, x, x)
    return _at(heads, i) + _at(given_a, j) - _at(heads, j) - _at(given_b, i)


def _other_values(marginals: Marginals, x: Tensor, places: Places) -> Tensor:
    """Draws of the answers of two questions, ``[2, G, N]``, without gradient."""
    streams = Streams(rng.key(0, "values"), torch.cat([2 * places.names, 2 * places.names + 1]))
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
