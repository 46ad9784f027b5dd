"""Families whose conditionals marginalise sites out: decided by the chain rule, or by a linear programme.

If some of the conditionals chain to a joint, p(x_P1) p(x_P2 | x_P1) .., that joint is the only candidate, and all
others are compared with it: exact, any size. For positive conditionals p(x_i | x_C) of single sites this is the
circulation criterion, p(i|C) p(j|C,i) = p(j|C) p(i|C,j) for every C, i and j.

Otherwise the joints are the solutions of linear equations in r >= 0. With A r the misfits r(x_P, x_C) - q r(x_C):

* a joint exists iff the least max |A r| over laws r is zero (*weakly compatible*);
* it gives mass to all that is observed iff the same holds over r with r(x_C) >= 1 for every x_C of every conditional
  (*compatible*). The least max |A r| is then at least the largest difference of a conditional of r from the one stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, hstack, vstack
from torch import Tensor

from flexgen.compatibility.closest_linear import least_maximum, misfit
from flexgen.compatibility.family import ConditionalFamily, ConditionalLaw
from flexgen.compatibility.graph import Floats, line_numbers
from flexgen.compatibility.violation import Violation

__all__ = ["GeneralCheck", "check_chain", "check_linear", "find_chain"]

LINEAR_TOLERANCE = 1e-8  # of probabilities; the solver's own accuracy is 1e-10
_SAME = 1e-6  # joints nearer than this, in a random linear functional, count as one


@dataclass(frozen=True)
class GeneralCheck:
    """What decides: whether a joint exists, whether it covers all that is observed, whether it is the only one."""

    joint: Tensor | None
    covers: bool
    unique: bool
    violation: Violation | None


def find_chain(family: ConditionalFamily) -> list[ConditionalLaw] | None:
    """Conditionals whose product is a joint, each observing exactly the targets of those before; None if none do."""
    steps: dict[frozenset[int], list[ConditionalLaw]] = {}
    for law in family.conditionals:
        steps.setdefault(frozenset(law.observed), []).append(law)
    start, everything = frozenset[int](), frozenset(range(family.num_sites))
    came: dict[frozenset[int], tuple[frozenset[int], ConditionalLaw] | None] = {start: None}
    waiting = [start]
    while waiting and everything not in came:
        known = waiting.pop()
        for law in steps.get(known, []):
            if law.sites not in came:
                came[law.sites] = (known, law)
                waiting.append(law.sites)
    if everything not in came:
        return None
    chain, link = [], came[everything]
    while link is not None:
        chain.append(link[1])
        link = came[link[0]]
    return chain[::-1]


def check_chain(family: ConditionalFamily, chain: list[ConditionalLaw], tolerance: float) -> GeneralCheck:
    """Compares all conditionals with the joint that `chain` multiplies to."""
    joint = torch.ones((), dtype=torch.float64)
    for law in chain:
        joint = joint * law.table
    covers, worst = True, None
    for law in family.conditionals:
        others = tuple(site for site in range(family.num_sites) if site not in law.sites)
        both = joint.sum(others, keepdim=True) if others else joint
        given = both.sum(law.target, keepdim=True)
        covers = covers and bool((given > 0).all())
        # nan: never observed, or impossible by both accounts
        off = ((both / given).log() - law.table.log()).abs().nan_to_num(nan=0.0, posinf=math.inf)
        gap = float(off.max())
        if gap > tolerance and (worst is None or gap > worst[0]):
            worst = (gap, law, int(off.argmax()), float((both / given).flatten()[off.argmax()]))
    if worst is None:
        return GeneralCheck(joint, covers, True, None if covers else _uncovered(family, joint))
    violation = _worst_circulation(family, tolerance) or _disagreement(family, chain, *worst)
    return GeneralCheck(None, False, False, violation)


def check_linear(family: ConditionalFamily) -> GeneralCheck:
    """Decides by linear programmes; families of up to `closest_linear.MAX_LINEAR_STATES` states."""
    law, nearest, bound = least_maximum(family)
    if nearest > LINEAR_TOLERANCE:
        text = (
            f"every law differs from some conditional by at least {bound:.6g} in a joint probability "
            "(shown by linear programming)."
        )
        return GeneralCheck(None, False, False, Violation("bound", math.nan, (), (), text))
    covering = _covering(family)
    joint = torch.from_numpy(law if covering is None else covering).view(family.shape)
    unique = _width(family, nearest) < _SAME
    violation = None if covering is not None else _uncovered(family, joint)
    return GeneralCheck(joint, covering is not None, unique, violation)


def _covering(family: ConditionalFamily) -> Floats | None:
    """A joint with mass wherever any conditional observes, or None."""
    matrix = misfit(family)
    contexts = []
    for law in family.conditionals:
        line, count = line_numbers(family.shape, [s for s in range(family.num_sites) if s not in law.observed])
        contexts.append(csr_matrix((np.ones(len(line)), (line, np.arange(len(line)))), shape=(count, len(line))))
    reach = vstack(contexts)
    ones, none = csr_matrix(np.ones((matrix.shape[0], 1))), csr_matrix((reach.shape[0], 1))
    found = linprog(
        np.append(np.zeros(family.num_states), 1.0),
        A_ub=vstack([hstack([matrix, -ones]), hstack([-matrix, -ones]), hstack([-reach, none])]),
        b_ub=np.concatenate([np.zeros(2 * matrix.shape[0]), -np.ones(reach.shape[0])]),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.x is None or found.x[-1] > LINEAR_TOLERANCE:
        return None
    weights = np.maximum(found.x[:-1], 0.0)
    return np.asarray(weights / weights.sum())


def _width(family: ConditionalFamily, nearest: float) -> float:
    """How far apart the joints lie in a random direction: zero iff there is one, with probability one."""
    matrix = misfit(family)
    direction = np.random.default_rng(0).standard_normal(family.num_states)
    slack = np.full(2 * matrix.shape[0], nearest + 1e-10)
    ends = []
    for sign in (1.0, -1.0):
        found = linprog(
            sign * direction,
            A_ub=vstack([matrix, -matrix]),
            b_ub=slack,
            A_eq=np.ones((1, family.num_states)),
            b_eq=[1.0],
            method="highs",
        )
        ends.append(float(direction @ found.x) if found.x is not None else 0.0)
    return ends[1] - ends[0]


def _uncovered(family: ConditionalFamily, joint: Tensor) -> Violation | None:
    """Something that a conditional observes and no joint gives mass."""
    for law in family.conditionals:
        others = tuple(site for site in range(family.num_sites) if site not in law.observed)
        given = joint.sum(others, keepdim=True) if others else joint
        if float(given.min()) <= LINEAR_TOLERANCE:
            code = np.unravel_index(int(given.argmin()), given.shape)
            state = [int(c) for c in code]
            event = family.event(law.observed, state)
            text = f"every joint gives {event} probability zero, but a conditional observes it."
            return Violation("support", math.inf, (family.labelled(state, frozenset(law.observed)),), (), text)
    return None


def _worst_circulation(family: ConditionalFamily, tolerance: float) -> Violation | None:
    """The worst p(i|C) p(j|C,i) against p(j|C) p(i|C,j), over all that the family states."""
    stated = {(law.observed, law.target): law for law in family.conditionals}
    worst: tuple[float, tuple[ConditionalLaw, ...], Tensor] | None = None
    for (given, i), first in stated.items():
        for (other, j), second in stated.items():
            if other != given or j <= i or set(i) & set(j):
                continue
            then_j = stated.get((tuple(sorted(given + i)), j))
            then_i = stated.get((tuple(sorted(given + j)), i))
            if then_i is None or then_j is None:
                continue
            off = (first.table.log() + then_j.table.log() - second.table.log() - then_i.table.log()).abs()
            off = torch.where(torch.isfinite(off), off, 0.0)
            if float(off.max()) > max(tolerance, worst[0] if worst else 0.0):
                worst = (float(off.max()), (first, then_j, second, then_i), off)
    if worst is None:
        return None
    gap, laws, off = worst
    state = [int(code) for code in np.unravel_index(int(off.argmax()), off.shape)]
    one, two = (
        f"{' '.join(family.question(law, state) for law in pair)} = {math.prod(law.at(state) for law in pair):.6g}"
        for pair in (laws[:2], laws[2:])
    )
    sites = laws[1].sites
    text = f"{one}, but {two} ({gap:.6g} nats): two ways to one probability."
    return Violation("chain", gap, (family.labelled(state, sites),), (), text)


def _disagreement(
    family: ConditionalFamily, chain: list[ConditionalLaw], gap: float, law: ConditionalLaw, entry: int, implied: float
) -> Violation:
    state = [int(code) for code in np.unravel_index(entry, tuple(law.table.shape))]
    parts = ", ".join(
        f"p({','.join(family.names[s] for s in link.target)}"
        f"{' | ' if link.observed else ''}{','.join(family.names[s] for s in link.observed)})"
        for link in chain
    )
    text = f"{family.question(law, state)} = {law.at(state):.6g}, but {parts} give {implied:.6g} ({gap:.6g} nats)."
    return Violation("chain", gap, (family.labelled(state, law.sites),), (), text)
