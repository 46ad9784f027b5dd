"""How far a conditional over a few categorical sites is from a joint that is known, by enumeration."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from flexgen.conditional import HasMarginals
from flexgen.query import Query

__all__ = ["excess"]


@torch.no_grad()
def excess(conditional: HasMarginals, p: Tensor) -> float:
    """E KL(p(x_i | x_C) || answer), nats: |C| uniform on 0..N-1, then C, then i outside C.

    Args:
        p: the joint, float64 ``[num_states]``, in the order of ``Space.states``.
    """
    space, states = conditional.space, conditional.space.states()
    num_sites, table = space.num_sites, p.view(space.num_categories)

    def marginal(kept: set[int]) -> Tensor:
        """p of the kept sites at every state, ``[num_states]``."""
        summed = [i for i in range(num_sites) if i not in kept]
        return (table.sum(summed, keepdim=True) if summed else table).expand_as(table).flatten()

    total = 0.0
    for size in range(num_sites):
        for given in itertools.combinations(range(num_sites), size):
            hidden = sorted(set(range(num_sites)) - set(given))
            query = Query.of(hidden, given, num_sites=num_sites)
            answer = conditional.marginals(states.double(), query).log_prob(states).double()  # [num_states, N]
            for i in hidden:
                truth = (marginal({*given, i}) / marginal({*given})).log()
                chance = 1 / num_sites / math.comb(num_sites, size) / len(hidden)
                total += chance * float((p * (truth - answer[:, i])).sum())
    return total
