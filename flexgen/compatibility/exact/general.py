"""Families whose conditionals marginalise sites out: decided by the chain rule, or by a linear programme.

If some of the conditionals chain to a joint, p(x_P1) p(x_P2 | x_P1) .., that joint is the only candidate, and all
others are compared with it: exact, any size. For positive conditionals p(x_i | x_C) of single sites this is the
circulation criterion, p(i|C) p(j|C,i) = p(j|C) p(i|C,j) for every C, i and j.

Otherwise the joints are the solutions r >= 0 of linear equations, r(x_P, x_C) = q(x_P | x_C) r(x_C), and one of them
has mass wherever any has: compatible iff that is everywhere, weakly compatible iff it is anywhere. Where something has
no mass is a question that a tolerance cannot answer: within one nat in 10^8 every impossible event has some. So tables
whose entries are fractions (every table that was typed in, or counted) are decided in exact arithmetic
(`flexgen.compatibility.exact.fractions`). Only tables that no joint has exactly, such as those computed in floating
point, are decided within a tolerance (`flexgen.compatibility.exact.cone`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexgen.compatibility.exact.closest_linear import least_maximum
from flexgen.compatibility.exact.cone import SOLVER_NATS, Cone
from flexgen.compatibility.exact.family import ConditionalFamily, ConditionalLaw
from flexgen.compatibility.exact.fractions import exact_laws
from flexgen.compatibility.exact.graph import Floats
from flexgen.compatibility.exact.violation import Violation

__all__ = ["GeneralCheck", "check_chain", "check_linear", "find_chain"]

_SHOWN_BOUND = 1e-8  # of probabilities; a smaller one may be the solver's error


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
        both = _sum_out(joint, law.sites)
        given = both.sum(law.target, keepdim=True)
        covers = covers and bool((given > 0).all())
        # nan: never observed, or impossible by both accounts
        off = ((both / given).log() - law.table.log()).abs().nan_to_num(nan=0.0, posinf=math.inf)
        gap = float(off.max())
        if gap > tolerance and (worst is None or gap > worst[0]):
            worst = (gap, law, int(off.argmax()), float((both / given).flatten()[off.argmax()]))
    if worst is None:
        return GeneralCheck(joint, covers, True, None if covers else _uncovered(family, joint))
    violation = _worst_circulation(family, joint, tolerance) or _disagreement(family, chain, *worst)
    return GeneralCheck(None, False, False, violation)


def check_linear(family: ConditionalFamily, tolerance: float) -> GeneralCheck:
    """Decides by programmes over the probabilities of states: exactly if it can, otherwise within the tolerance."""
    exact = exact_laws(family)
    if exact is not None and exact.dimension >= 0:
        law, unique = exact.law, exact.dimension == 0
    else:
        law, unique = _within(family, tolerance)
    if not law.any():
        return GeneralCheck(None, False, False, _no_law(family, tolerance))
    joint = torch.from_numpy(law).view(family.shape)
    covers = all(bool((_sum_out(joint, stated.observed) > 0).all()) for stated in family.conditionals)
    return GeneralCheck(joint, covers, unique, None if covers else _uncovered(family, joint))


def _within(family: ConditionalFamily, tolerance: float) -> tuple[Floats, bool]:
    """A law that has the conditionals within a tolerance (zero if none has), and whether it is the only one."""
    # Most families that have a joint have it to the solver's accuracy, which makes for a better joint.
    for nats in sorted({SOLVER_NATS, max(SOLVER_NATS, tolerance)}):
        cone = Cone(family, nats)
        cover = cone.cover()
        if bool(cover.covered[cone.possible].all()):
            break
    cover, unique = cone.settled(cover)
    if unique is None and cover.covered.any():
        # One joint: the laws of the cone differ as little as the tolerance; several: they differ as far as they can.
        unique = cone.width(cover) < math.sqrt(nats * family.num_states)
    return cover.law, bool(unique)


def _no_law(family: ConditionalFamily, tolerance: float) -> Violation:
    """What shows that no law has the conditionals."""
    _, _, bound = least_maximum(family)
    text = (
        f"every law differs from some conditional by at least {bound:.6g} in a joint probability"
        if bound > _SHOWN_BOUND
        else f"no law has all conditionals to within {max(tolerance, SOLVER_NATS):.6g} nats"
    )
    return Violation("bound", math.nan, (), (), f"{text} (shown by linear programming).")


def _uncovered(family: ConditionalFamily, joint: Tensor) -> Violation | None:
    """Something that a conditional observes and no joint gives mass."""
    for law in family.conditionals:
        given = _sum_out(joint, law.observed)
        if float(given.min()) == 0:
            state = _codes(given, int(given.argmin()))
            event = family.event(law.observed, state)
            text = f"every joint gives {event} probability zero, but a conditional observes it."
            return Violation("support", math.inf, (family.labelled(state, frozenset(law.observed)),), (), text)
    return None


def _worst_circulation(family: ConditionalFamily, joint: Tensor, tolerance: float) -> Violation | None:
    """The worst p(i|C) p(j|C,i) against p(j|C) p(i|C,j), over all that the family states and the joint observes."""
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
            # Anything may be said of what never happens, and the only joint in question tells what that is.
            off = torch.where(torch.isfinite(off) & (_sum_out(joint, given) > 0), off, 0.0)
            if float(off.max()) > max(tolerance, worst[0] if worst else 0.0):
                worst = (float(off.max()), (first, then_j, second, then_i), off)
    if worst is None:
        return None
    gap, laws, off = worst
    state = _codes(off, int(off.argmax()))
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
    state = _codes(law.table, entry)
    parts = ", ".join(
        f"p({','.join(family.names[s] for s in link.target)}"
        f"{' | ' if link.observed else ''}{','.join(family.names[s] for s in link.observed)})"
        for link in chain
    )
    text = f"{family.question(law, state)} = {law.at(state):.6g}, but {parts} give {implied:.6g} ({gap:.6g} nats)."
    return Violation("chain", gap, (family.labelled(state, law.sites),), (), text)


def _sum_out(joint: Tensor, kept: Collection[int]) -> Tensor:
    """The marginal of some sites; the other axes have size one."""
    others = tuple(site for site in range(joint.ndim) if site not in kept)
    return joint.sum(others, keepdim=True) if others else joint


def _codes(values: Tensor, place: int) -> list[int]:
    """Which code every site has at a place of a flattened table."""
    return [int(code) for code in np.unravel_index(place, tuple(values.shape))]
