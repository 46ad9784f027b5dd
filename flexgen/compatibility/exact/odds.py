"""Rectangles of log odds: the local test of two conditionals against each other.

p(x_P | x_C) and p(x_P' | x_C') over the same sites (P ∪ C = P' ∪ C', P and P' disjoint) share their odds ratios

    log p(a | b) + log p(a' | b') - log p(a' | b) - log p(a | b')

whenever a joint has both: with positive entries and all else fixed these are the loops of length 4. For positive
complete conditionals of single sites they decide compatibility; their rank is `rectangle_rank`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.exact.family import ConditionalFamily, ConditionalLaw
from flexgen.compatibility.exact.graph import Floats
from flexgen.errors import FlexgenError

__all__ = ["Rectangle", "rectangle_rank", "worst_rectangle"]


@dataclass(frozen=True)
class Rectangle:
    """The rectangle in which two conditionals' log odds ratios differ most.

    Args:
        gap: nats.
        states: its four corners as state numbers, (a, b), (a', b), (a', b'), (a, b'); `first` moves a, `second` b.
        laws: `first` and `second`; none where no two conditionals share a rectangle of positive entries (`gap` is 0).
    """

    gap: float = 0.0
    states: tuple[int, ...] = ()
    laws: tuple[ConditionalLaw, ...] = ()


def rectangle_rank(shape: Sequence[int]) -> int:
    """How many independent rectangle constraints all complete conditionals over `shape` must satisfy.

    Σ_i (V_i - 1) Π_{j≠i} V_j - (Π V - 1): the free parameters of the conditionals less those of a joint; for N sites of
    V categories N V^(N-1) (V-1) - (V^N - 1). The degrees of freedom of tests of compatibility.

    Raises:
        FlexgenError: a shape that is not one size a site, each at least one.
    """
    if not hasattr(shape, "__len__") or isinstance(shape, str | bytes):
        raise FlexgenError("shape", f"is {kind_of(shape)}", "Pass the number of categories of every site: (2, 3).")
    shape = [whole_number("shape", size, 1) for size in shape]
    num_states = math.prod(shape)
    return sum(num_states // size * (size - 1) for size in shape) - (num_states - 1)


def worst_rectangle(family: ConditionalFamily) -> Rectangle:
    """The largest |difference of log odds ratios| over all rectangles of positive entries."""
    worst = Rectangle()
    laws = family.conditionals
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.log(law.table.numpy()) for law in laws]
        for k, first in enumerate(laws):
            for other in range(k):
                if first.sites == laws[other].sites and not set(first.target) & set(laws[other].target):
                    worst = _worst_of(family, (first, logs[k]), (laws[other], logs[other]), worst)
    return worst


def _worst_of(
    family: ConditionalFamily,
    one: tuple[ConditionalLaw, Floats],
    two: tuple[ConditionalLaw, Floats],
    worst: Rectangle,
) -> Rectangle:
    """The worse of `worst` and the worst rectangle of two conditionals."""
    if math.prod(family.shape[i] for i in one[0].target) > math.prod(family.shape[i] for i in two[0].target):
        one, two = two, one  # the loop below runs over the categories of the first
    (first, log_first), (second, log_second) = one, two
    targets = (*first.target, *second.target)
    axes = [site for site in range(family.num_sites) if site not in targets] + list(targets)
    num_a = math.prod(family.shape[site] for site in first.target)
    num_b = math.prod(family.shape[site] for site in second.target)
    # Where either is zero the difference is infinite or nan; fmax and fmin skip nan.
    difference = log_first - log_second
    difference = np.where(np.isfinite(difference), difference, np.nan).transpose(axes).reshape(-1, num_a, num_b)
    for a in range(num_a - 1):
        rows = difference[:, a + 1 :] - difference[:, a, None]  # [rest, a' > a, b]
        spread = np.fmax.reduce(rows, -1) - np.fmin.reduce(rows, -1)  # [rest, a' > a]
        gap = float(np.fmax.reduce(spread, None))
        if gap > worst.gap:
            rest, step = (int(k) for k in np.unravel_index(np.nanargmax(spread), spread.shape))
            low, high = int(np.nanargmin(rows[rest, step])), int(np.nanargmax(rows[rest, step]))
            corners = np.array([(a, low), (a + 1 + step, low), (a + 1 + step, high), (a, high)])
            flat = (rest * num_a + corners[:, 0]) * num_b + corners[:, 1]
            codes = np.empty((family.num_sites, 4), dtype=np.int64)
            codes[axes] = np.unravel_index(flat, [first.table.shape[site] for site in axes])
            states = tuple(np.asarray(np.ravel_multi_index(tuple(codes), family.shape)).tolist())
            worst = Rectangle(gap, states, (first, second))
    return worst
