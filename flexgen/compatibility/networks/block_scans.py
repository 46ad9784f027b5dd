"""The laws that Gibbs scans of one block settle in, and how far rounding of its tables could move them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen import rng
from flexgen.compatibility.exact.stationary import closed_classes, stationary
from flexgen.compatibility.networks.arguments import checked_seed
from flexgen.exact import ConditionalTables, kernels
from flexgen.rng import Randomness

__all__ = ["ScanLaw", "orders_of", "scan_law"]

_EXACT_STATES = 256  # up to here `stationary` is accurate in every entry
_RESIDUAL = 1e-12  # total variation of one sweep; above that many states
_FINE = 1e-3  # a floor below this needs no better bound
_ENTRIES = 1 << 24  # of the kernels of sweeps that are formed for one: 128 MiB
_MOST_SWEEPS = 8


@dataclass(frozen=True, eq=False)
class ScanLaw:
    """Where a scan that starts at a data row's state settles.

    Args:
        law: ``[K_1, .., K_k]``; NaN where several closed classes can be met.
        floor: total variation by which rounding may have moved it, 0 to 1.
    """

    law: Tensor
    floor: float


def orders_of(num_sites: int, most: int, generator: Randomness | int) -> list[tuple[int, ...]]:
    """All orders of the sites, or, if they are more than `most`, as many random ones: each beside its reverse."""
    if math.factorial(num_sites) <= most:
        return list(itertools.permutations(range(num_sites)))
    source, seed = torch.Generator(), checked_seed(generator)
    source.manual_seed(rng.key(seed, "orders"))
    chosen: dict[tuple[int, ...], None] = {}
    order = tuple(range(num_sites))
    while len(chosen) < most:
        chosen |= dict.fromkeys((order, order[::-1]))
        order = tuple(torch.randperm(num_sites, generator=source).tolist())
    return list(chosen)[:most]


def scan_law(
    tables: ConditionalTables, order: tuple[int, ...], start: Sequence[int] | None, relative: float
) -> ScanLaw:
    """The law at the end of a sweep in this order, of a scan that starts at a state.

    Args:
        tables: of the block.
        order: of its sites.
        start: a code a site; None: unknown, which is enough where there is one closed class.
        relative: rounding of the tables' entries, relative.

    The floor. Let entries change by factors between 1/f and f, f = exp(relative). A sweep's entries, sums of products
    of k of them, then change by factors within f^k: one sweep from a law goes wrong by at most (f^k - 1) / 2 in total
    variation, and the stationary law by at most n / (1 - t_n) times that, where t_n is the largest total variation
    between sweeps' laws from two states after n of them. Also, without t_n: it changes by factors within
    f^(2 k (S - 1)), S states, being a ratio of sums of products of S - 1 entries (Markov chain tree theorem).
    """
    classes = closed_classes(tables, order)
    own = -1 if start is None else int(classes[tuple(start)])
    if own < 0 and int(classes.max()) > 0:
        return ScanLaw(torch.full(tables.shape, torch.nan, dtype=torch.float64), 1.0)
    own = max(own, 0)
    members = (classes == own).nonzero()  # [S, k]
    law = stationary(tables, order, closed_class=own)
    # A total variation is half of what all entries change by.
    tree = math.expm1(min(2.0 * (len(members) - 1) * len(order) * relative, 1.0)) / 2
    if len(members) <= _EXACT_STATES and tree <= _FINE:
        return ScanLaw(law, tree)
    residual = 0.0 if len(members) <= _EXACT_STATES else _RESIDUAL
    error = math.expm1(min(len(order) * relative, 1.0)) / 2 + residual
    floor = error * _memory(tables, order, members)
    return ScanLaw(law, min(floor if residual else min(floor, tree), 1.0))


def _memory(tables: ConditionalTables, order: tuple[int, ...], members: Tensor) -> float:
    """n / (1 - t_n), the least for 1, 2, 4 and 8 sweeps; 1 - t_n is at least what the laws from all states share."""
    first = members.clone()
    first[:, order[0]] = 0  # which is drawn anew: states that differ there alone move alike
    _, group = torch.unique(first, dim=0, return_inverse=True)
    starts = members[torch.zeros_like(group).scatter_(0, group, torch.arange(len(group)))[: int(group.max()) + 1]]
    num_states = math.prod(tables.shape)
    if len(starts) * num_states > _ENTRIES:
        return math.inf
    laws = torch.zeros(len(starts), *tables.shape, dtype=torch.float64)
    laws[(torch.arange(len(starts)), *starts.unbind(-1))] = 1.0
    best, sweeps = math.inf, 0
    while sweeps < _MOST_SWEEPS:
        for _ in range(max(sweeps, 1)):
            laws = kernels.sweep(laws, tables, order)
        sweeps = max(2 * sweeps, 1)
        shared = float(laws.amin(0).sum())
        best = min(best, sweeps / shared) if shared > 0 else best
        if shared > 0.5:
            break
    return best
