"""Families whose conditionals marginalise sites out: decided by the chain rule, or by a linear programme.

If some of the conditionals chain to a joint, p(x_P1) p(x_P2 | x_P1) .., that joint is the only candidate, and all
others are compared with it: exact, any size. For positive conditionals p(x_i | x_C) of single sites this is the
circulation criterion, p(i|C) p(j|C,i) = p(j|C) p(i|C,j) for every C, i and j.

Otherwise the joints are the solutions r >= 0 of linear equations, r(x_P, x_C) = q(x_P | x_C) r(x_C), and one of them
has mass wherever any has: compatible iff that is everywhere, weakly compatible iff it is anywhere. Where something has
no mass is a question that a tolerance cannot answer: within one nat in 10^8 every impossible event has some. So tables
whose entries are fractions (every table that was typed in, or counted) are decided in exact arithmetic
(`exact_joints`). Only tables that no joint has exactly, such as those computed in floating point, are decided within a
tolerance (`Cone`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from scipy.optimize import OptimizeResult, linprog
from scipy.sparse import csr_matrix, diags, hstack, vstack
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from flexgen.compatibility.exact.closest import least_maximum, require_size
from flexgen.compatibility.exact.cycles import Bools, Floats, Ints, line_numbers
from flexgen.compatibility.exact.family import ConditionalFamily, StatedConditional, Violation
from flexgen.errors import FlexgenError

__all__ = ["Cone", "check_chain", "check_linear", "find_chain"]

_SHOWN_BOUND = 1e-8  # of probabilities; a smaller one may be the solver's error


@dataclass(frozen=True)
class GeneralCheck:
    """What decides: whether a joint exists, whether it covers all that is observed, whether it is the only one."""

    joint: Tensor | None
    covers: bool
    unique: bool
    violation: Violation | None


def find_chain(family: ConditionalFamily) -> list[StatedConditional] | None:
    """Conditionals whose product is a joint, each observing exactly the targets of those before; None if none do."""
    steps: dict[frozenset[int], list[StatedConditional]] = {}
    for conditional in family.conditionals:
        steps.setdefault(frozenset(conditional.observed), []).append(conditional)
    start, everything = frozenset[int](), frozenset(range(family.num_sites))
    came: dict[frozenset[int], tuple[frozenset[int], StatedConditional] | None] = {start: None}
    waiting = [start]
    while waiting and everything not in came:
        known = waiting.pop()
        for conditional in steps.get(known, []):
            if conditional.sites not in came:
                came[conditional.sites] = (known, conditional)
                waiting.append(conditional.sites)
    if everything not in came:
        return None
    chain, link = [], came[everything]
    while link is not None:
        chain.append(link[1])
        link = came[link[0]]
    return chain[::-1]


def check_chain(family: ConditionalFamily, chain: list[StatedConditional], tolerance: float) -> GeneralCheck:
    """Compares all conditionals with the joint that `chain` multiplies to."""
    joint = torch.ones((), dtype=torch.float64)
    for conditional in chain:
        joint = joint * conditional.table
    covers, worst = True, None
    for conditional in family.conditionals:
        both = _sum_out(joint, conditional.sites)
        given = both.sum(conditional.target, keepdim=True)
        covers = covers and bool((given > 0).all())
        # nan: never observed, or impossible by both accounts
        off = ((both / given).log() - conditional.table.log()).abs().nan_to_num(nan=0.0, posinf=math.inf)
        gap = float(off.max())
        if gap > tolerance and (worst is None or gap > worst[0]):
            worst = (gap, conditional, int(off.argmax()), float((both / given).flatten()[off.argmax()]))
    if worst is None:
        return GeneralCheck(joint, covers, True, None if covers else _uncovered(family, joint))
    violation = _worst_circulation(family, joint, tolerance) or _disagreement(family, chain, *worst)
    return GeneralCheck(None, False, False, violation)


def check_linear(family: ConditionalFamily, tolerance: float) -> GeneralCheck:
    """Decides by programmes over the probabilities of states: exactly if it can, otherwise within the tolerance."""
    exact = exact_joints(family)
    if exact is not None and exact.dimension >= 0:
        found, unique = exact.joint, exact.dimension == 0
    else:
        found, unique = _within(family, tolerance)
    if not found.any():
        return GeneralCheck(None, False, False, _no_law(family, tolerance))
    joint = torch.from_numpy(found).view(family.shape)
    covers = all(bool((_sum_out(joint, stated.observed) > 0).all()) for stated in family.conditionals)
    return GeneralCheck(joint, covers, unique, None if covers else _uncovered(family, joint))


def _within(family: ConditionalFamily, tolerance: float) -> tuple[Floats, bool]:
    """A distribution that has the conditionals within a tolerance (zero if none has); whether it is the only one."""
    # Most families that have a joint have it to the solver's accuracy, which makes for a better joint.
    for nats in sorted({SOLVER_NATS, max(SOLVER_NATS, tolerance)}):
        cone = Cone(family, nats)
        cover = cone.cover()
        if bool(cover.covered[cone.possible].all()):
            break
    cover, unique = cone.settled(cover)
    if unique is None and cover.covered.any():
        unique = cone.is_unique(cover, math.sqrt(nats * family.num_states))
    return cover.joint, bool(unique)


def _no_law(family: ConditionalFamily, tolerance: float) -> Violation:
    """What shows that no distribution has the conditionals."""
    _, _, bound = least_maximum(family)
    text = (
        f"every distribution differs from some conditional by at least {bound:.6g} in a joint probability"
        if bound > _SHOWN_BOUND
        else f"no distribution has all conditionals to within {max(tolerance, SOLVER_NATS):.6g} nats"
    )
    return Violation("bound", math.nan, (), (), f"{text} (shown by linear programming).")


def _uncovered(family: ConditionalFamily, joint: Tensor) -> Violation | None:
    """Something that a conditional observes and no joint gives mass."""
    for conditional in family.conditionals:
        given = _sum_out(joint, conditional.observed)
        if float(given.min()) == 0:
            state = _codes(given, int(given.argmin()))
            event = family.event(conditional.observed, state)
            text = f"every joint gives {event} probability zero, but a conditional observes it."
            return Violation("support", math.inf, (family.labelled(state, frozenset(conditional.observed)),), (), text)
    return None


def _worst_circulation(family: ConditionalFamily, joint: Tensor, tolerance: float) -> Violation | None:
    """The worst p(i|C) p(j|C,i) against p(j|C) p(i|C,j), over all that the family states and the joint observes."""
    stated = {(conditional.observed, conditional.target): conditional for conditional in family.conditionals}
    worst: tuple[float, tuple[StatedConditional, ...], Tensor] | None = None
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
    gap, conditionals, off = worst
    state = _codes(off, int(off.argmax()))
    one, two = (
        f"{' '.join(family.question(conditional, state) for conditional in pair)} = "
        f"{math.prod(conditional.at(state) for conditional in pair):.6g}"
        for pair in (conditionals[:2], conditionals[2:])
    )
    sites = conditionals[1].sites
    text = f"{one}, but {two} ({gap:.6g} nats): two ways to one probability."
    return Violation("chain", gap, (family.labelled(state, sites),), (), text)


def _disagreement(
    family: ConditionalFamily,
    chain: list[StatedConditional],
    gap: float,
    conditional: StatedConditional,
    entry: int,
    implied: float,
) -> Violation:
    state = _codes(conditional.table, entry)
    parts = ", ".join(
        f"p({','.join(family.names[s] for s in link.target)}"
        f"{' | ' if link.observed else ''}{','.join(family.names[s] for s in link.observed)})"
        for link in chain
    )
    text = f"{family.question(conditional, state)} = {conditional.at(state):.6g}"
    text += f", but {parts} give {implied:.6g} ({gap:.6g} nats)."
    return Violation("chain", gap, (family.labelled(state, conditional.sites),), (), text)


def _sum_out(joint: Tensor, kept: Collection[int]) -> Tensor:
    """The marginal of some sites; the other axes have size one."""
    others = tuple(site for site in range(joint.ndim) if site not in kept)
    return joint.sum(others, keepdim=True) if others else joint


def _codes(values: Tensor, place: int) -> list[int]:
    """Which code every site has at a place of a flattened table."""
    return [int(code) for code in np.unravel_index(place, tuple(values.shape))]


# The distributions that have a family's conditionals to within a tolerance: a cone, searched by linear programmes.
#
# A distribution r has q(x_P | x_C) to within τ nats iff exp(-τ) q r(x_C) <= r(x_P, x_C) <= exp(τ) q r(x_C). This
# is linear in r, and says the same of rare x_C as of common ones. Sums of such r are such r: one
# has mass wherever any has.
#
# Solvers know absolute errors only: they drop coefficients below 1e-9 and let rows be off by 1e-10. So every state is
# measured in a unit of its own, an upper bound on its probability that the tables imply: from r(x_C) <= 1, by turns
#
#     r(x) <= q(x_P | x_C) r(x_C)    and    r(x_C) <= r(x_P, x_C) / q(x_P | x_C) for every x_P.
#
# In these units the coefficients of a row sum to 1/S or more. Zeros spread by the same turns, and bounds that fall
# without end, where a loop of conditionals multiplies to less than one, are zeros too.

SOLVER_NATS = 1e-8  # the solver lets rows be off by 1e-10 and drops coefficients below 1e-9
_BOUND_ROUNDS = 200
_NONE = 1e-100  # probabilities that are certainly smaller are zero
_LARGEST = 1e4  # masses are sought between their unit and so many units
_FINER = 1e-4  # contexts that are not reached are sought in finer units, so many times
_RESCALINGS = 3
# Method, presolve, accuracy: now and then the solver gives up on a degenerate programme that it solves another way.
_WAYS = (
    ("highs", True, 1e-10),
    ("highs", False, 1e-10),
    ("highs-ipm", True, 1e-10),
    ("highs", True, 1e-9),
    ("highs-ds", False, 1e-8),
    ("highs-ipm", False, 1e-8),
)
_NEGLIGIBLE = 1e-12  # coefficients that no row would notice
_SETTLED_STATES = 1 << 10  # dense least squares beyond take minutes
_SETTLINGS = 6
_EPS = float(np.finfo(np.float64).eps)
_LEAST_FACTOR = 1e-3  # by which a mass may shrink in one of them
_CLEAR = 30.0  # what is so many times as large as the misfit was not made by it


@dataclass(frozen=True)
class Cover:
    """A distribution of the cone with as much covered as any has.

    Args:
        distribution: ``[S]``; sums to one, or all zero if the cone holds no distribution.
        covered: which contexts x_C have mass, of all conditionals one after the other.
        units: ``[S]``, the units it was found in; zero where no distribution of the cone has mass.
    """

    joint: Floats
    covered: Bools
    units: Floats


class Cone:
    """States, events (x_P, x_C) and contexts x_C of a family, the latter two numbered conditional by conditional.

    Args:
        family: of at most `closest_linear.MAX_LINEAR_STATES` states.
        tolerance: nats.

    Raises:
        FlexgenError: more states.
    """

    def __init__(self, family: ConditionalFamily, tolerance: float) -> None:
        require_size(family, "the linear programme")
        self.num_states, self.tolerance = family.num_states, tolerance
        event, context, of_event, first = [], [], [], [0]
        num_events = 0
        for conditional in family.conditionals:
            sites = range(family.num_sites)
            own_event, count = line_numbers(family.shape, [site for site in sites if site not in conditional.sites])
            own_context, width = line_numbers(
                family.shape, [site for site in sites if site not in conditional.observed]
            )
            parent = np.empty(count, dtype=np.int64)
            parent[own_event] = own_context
            event.append(own_event + num_events)
            context.append(own_context + first[-1])
            of_event.append(parent + first[-1])
            num_events, first = num_events + count, [*first, first[-1] + width]
        self.event: Ints = np.stack(event)  # [M, S]
        self.context: Ints = np.stack(context)  # [M, S]
        self.context_of_event: Ints = np.concatenate(of_event)
        self.first = first  # of each conditional's contexts
        self.q: Floats = np.concatenate([conditional.table.numpy().reshape(-1) for conditional in family.conditionals])
        self.bounds = self._bounds()  # [S]

    @property
    def num_contexts(self) -> int:
        return self.first[-1]

    @property
    def possible(self) -> Bools:
        """Which contexts may have mass, by the bounds."""
        return np.asarray(self._contexts(self.bounds) > 0)

    def cover(self) -> Cover:
        """The distribution, with mass in all contexts that a distribution of the cone has mass in."""
        units, live = self.bounds, self.possible
        joint, covered = np.zeros(self.num_states), np.zeros(self.num_contexts, dtype=bool)
        for attempt in range(_RESCALINGS + 1):
            try:
                found, reached = self._largest_cover(units, live)
            except FlexgenError:
                if attempt:  # in finer units programmes are hard, and most of what they look for is not there
                    break
                raise
            if reached.sum() > covered.sum() or not covered.any():
                joint, covered = found, reached
            if not reached.any() or bool(reached[live].all()):
                break
            missed = (live & ~reached)[self.context].any(0)
            units = np.where(missed, units * _FINER, units)
        joint = np.where(covered[self.context].all(0), joint, 0.0)
        total = float(joint.sum())
        units = np.where(covered[self.context].all(0), units, 0.0)
        return Cover(joint / total if total else joint, covered, units)

    def settled(self, cover: Cover) -> tuple[Cover, bool | None]:
        """The cover without mass that only the tolerance bought, and whether its distribution is the only one (None:
        not known).

        A context that must be impossible can be given mass of the size of the tolerance. Gauss-Newton steps on the
        misfits, in units of the distribution itself, take it away: such mass shrinks at every step, while a rare event
        of true mass settles. What settles then has to be clearly larger than the misfits that remain. One distribution:
        no direction but its own scale leaves the misfits as they are, by singular values.
        """
        joint, covered = cover.joint.copy(), cover.covered.copy()
        if not 0 < np.count_nonzero(joint) <= _SETTLED_STATES:
            return cover, None
        while True:
            keep = np.flatnonzero(joint)
            settled, start = joint[keep], self._contexts(joint)
            for _ in range(_SETTLINGS):
                matrix, scales = self._relative(keep, settled), self._scales(keep, settled)
                # Without mass there is no misfit: the mass of states that conditionals join is kept.
                right = np.concatenate([-matrix.sum(1), np.zeros(len(scales))])
                step = np.linalg.lstsq(np.vstack([matrix, scales]), right, rcond=len(keep) * _EPS)[0]
                settled = settled * np.clip(1.0 + step, _LEAST_FACTOR, None)
                settled /= settled.sum()
                if np.abs(step).max() < 1e-3:
                    break
            whole = np.zeros_like(joint)
            whole[keep] = settled
            matrix = self._relative(keep, settled)
            left = max(float(np.abs(matrix.sum(1)).max(initial=0.0)), len(keep) * _EPS)
            mass, most = self._contexts(whole), self._contexts(self.bounds)
            shrinks = np.zeros(self.num_states, dtype=bool)
            shrinks[keep] = step < -0.5
            lost = covered & (self._contexts(((whole > 0) & ~shrinks).astype(np.float64)) == 0)
            lost |= covered & (mass < _CLEAR * left * np.minimum(most, 1.0)) & (mass < start)
            if not lost.any():
                break
            covered &= ~lost
            joint = np.where(covered[self.context].all(0), joint, 0.0)
            covered &= self._contexts(joint) > 0
            if not joint.any():
                return Cover(joint, covered, joint), None
            joint /= joint.sum()
        if self.misfit(whole) <= max(self.misfit(joint), self.tolerance):
            joint = whole
        singular = np.linalg.svd(matrix, compute_uv=False)
        nullity = len(keep) - int((singular > _CLEAR * left * singular.max(initial=0.0)).sum())
        settled_cover = Cover(joint, covered, np.where(covered[self.context].all(0), cover.units, 0.0))
        if nullity > 1:
            return settled_cover, False
        # A vertex leaves states out that another distribution may need: only where there are none is the rank all.
        return settled_cover, None if np.count_nonzero(settled_cover.units) > np.count_nonzero(joint) else True

    def _scales(self, keep: Ints, joint: Floats) -> Floats:
        """The share of every state in the mass of the states that it is joined with by contexts, a row a component."""
        nodes = self.context[:, keep] + len(keep)
        ones, states = np.ones(nodes.size), np.tile(np.arange(len(keep)), len(nodes))
        size = len(keep) + self.num_contexts
        label = connected_components(csr_matrix((ones, (states, nodes.reshape(-1))), shape=(size, size)), False)[1]
        label = np.unique(label[: len(keep)], return_inverse=True)[1]
        rows = (label[None] == np.arange(label.max() + 1)[:, None]) * joint[None]
        return np.asarray(rows / rows.sum(1, keepdims=True))

    def _relative(self, keep: Ints, joint: Floats) -> Floats:
        """Misfits r(x_P, x_C) / q r(x_C) - 1 of events in contexts that have mass, by each state's relative change."""
        whole = np.zeros(self.num_states)
        whole[keep] = joint
        mass = self._contexts(whole)
        stated = (self.q > 0) & (mass[self.context_of_event] > 0)
        number, every = np.cumsum(stated) - 1, np.arange(len(keep))
        matrix = np.zeros((int(stated.sum()), len(keep)))
        expected = self.q * mass[self.context_of_event]
        for event in self.event[:, keep]:
            inside = stated[event]
            matrix[number[event[inside]], every[inside]] += joint[inside] / expected[event[inside]]
        own = self.context_of_event[stated]
        for context in self.context[:, keep]:
            matrix -= (own[:, None] == context[None]) * (joint / mass[context])[None]
        return matrix

    def misfit(self, joint: Floats) -> float:
        """The largest |log r(x_P | x_C) - log q|, nats, over contexts that have mass."""
        mass = self._contexts(joint)[self.context_of_event]
        stated, own = self.q * mass, self._events(joint)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.abs(np.log(own) - np.log(stated))
        return float(np.max(np.where((own == 0) & (stated == 0), 0.0, off)))

    def is_unique(self, cover: Cover, negligible: float) -> bool:
        """Whether the covering distributions differ, in their units, by no more than is negligible, in any direction
        tried.

        Another distribution has mass at a state where this one has none, or else the two differ in every direction but
        few.
        """
        keep = np.flatnonzero(cover.units)
        absent = (cover.joint[keep] == 0).astype(np.float64)
        rows = self._rows(
            cover.units, cover.covered, 2 * self.tolerance
        )  # so that the distribution found is well inside
        rest = np.zeros(rows[0].shape[1] - len(keep))
        total = csr_matrix(np.concatenate([np.full(len(keep), 1 / len(keep)), rest]))
        right = np.append(np.zeros(rows[1].shape[0]), 1.0)
        source = np.random.default_rng(0)
        for direction in (absent, source.standard_normal(len(keep)), source.standard_normal(len(keep))):
            padded = np.concatenate([direction, rest])
            ends = [
                float(padded @ _solve(sign * padded, rows[0], vstack([rows[1], total]), right, (0.0, None)).x)
                for sign in (1.0, -1.0)
            ]
            if ends[1] - ends[0] >= negligible:
                return False
        return True

    def _bounds(self) -> Floats:
        bound, slack = np.ones(self.num_states), math.exp(self.tolerance)
        stated = np.flatnonzero(self.q)
        for _ in range(_BOUND_ROUNDS):
            before = bound
            for k in range(len(self.event)):
                context = np.minimum(self._contexts(bound), 1.0)
                most = slack * self._events(bound)[stated] / self.q[stated]
                np.minimum.at(context, self.context_of_event[stated], most)
                bound = np.minimum(bound, slack * (self.q * context[self.context_of_event])[self.event[k]])
            bound = np.where(bound > _NONE, bound, 0.0)
            if bool((bound >= 0.5 * before).all()):
                break
        return bound

    def _largest_cover(self, units: Floats, live: Bools) -> tuple[Floats, Bools]:
        """The distribution (not normalised) with the most contexts at their unit or above."""
        keep, contexts = np.flatnonzero(units), np.flatnonzero(live)
        joint, reached = np.zeros(self.num_states), np.zeros(self.num_contexts, dtype=bool)
        if not len(keep):
            return joint, reached
        inequality, equality = self._rows(units, live, self.tolerance)
        count, none = len(contexts), csr_matrix((inequality.shape[0], len(contexts)))
        # One variable more a context: the least of its mass and its unit; their sum is maximised.
        at_most = hstack([csr_matrix((count, len(keep))), -diags(np.ones(count)), diags(np.ones(count))])
        found = _solve(
            np.concatenate([np.zeros(len(keep) + count), -np.ones(count)]),
            vstack([hstack([inequality, none]), at_most]),
            hstack([equality, csr_matrix((count, count))]),
            np.zeros(count),
            [(0.0, None)] * len(keep) + [(0.0, _LARGEST)] * count + [(0.0, 1.0)] * count,
        )
        joint[keep] = np.maximum(found.x[: len(keep)], 0.0) * units[keep]
        reached[contexts] = found.x[len(keep) + count :] > 0.5
        return joint, reached

    def _rows(self, units: Floats, live: Bools, tolerance: float) -> tuple[csr_matrix, csr_matrix]:
        """Inequalities of events and equations of contexts, over kept states and the masses of live contexts."""
        keep, contexts = np.flatnonzero(units), np.flatnonzero(live)
        scale = self._contexts(units)
        place = np.cumsum(live) - 1  # of a live context among them
        states = np.tile(np.arange(len(keep)), len(self.event))
        weight = np.tile(units[keep], len(self.event))
        rows = self.context[:, keep].reshape(-1)
        inside = live[rows]
        sums = csr_matrix(
            ((weight / np.where(live, scale, 1.0)[rows])[inside], (place[rows[inside]], states[inside])),
            shape=(len(contexts), len(keep)),
        )
        equality = hstack([sums, -diags(np.ones(len(contexts)))])
        stated = (self.q > 0) & live[self.context_of_event]
        number = np.cumsum(stated) - 1
        rows = self.event[:, keep].reshape(-1)
        inside = stated[rows]
        expected = np.where(stated, self.q * scale[self.context_of_event], 1.0)
        parts = csr_matrix(
            ((weight / expected[rows])[inside], (number[rows[inside]], states[inside])),
            shape=(int(stated.sum()), len(keep)),
        )
        parts.data[parts.data < _NEGLIGIBLE] = 0.0
        parts.eliminate_zeros()
        own = place[self.context_of_event[stated]]
        mass = csr_matrix((np.ones(len(own)), (np.arange(len(own)), own)), shape=(len(own), len(contexts)))
        above = hstack([parts, -math.exp(tolerance) * mass])
        below = hstack([-parts, math.exp(-tolerance) * mass])
        return csr_matrix(vstack([above, below])), csr_matrix(equality)

    def _events(self, joint: Floats) -> Floats:
        return np.asarray(sum(np.bincount(each, joint, minlength=len(self.q)) for each in self.event))

    def _contexts(self, joint: Floats) -> Floats:
        return np.asarray(sum(np.bincount(each, joint, minlength=self.num_contexts) for each in self.context))


def _solve(cost: Floats, inequality: csr_matrix, equality: csr_matrix, right: Floats, bounds: object) -> OptimizeResult:
    """The x of least cost with inequality x <= 0 and equality x = right."""
    for method, presolve, accuracy in _WAYS:
        found = linprog(
            cost,
            A_ub=inequality,
            b_ub=np.zeros(inequality.shape[0]),
            A_eq=equality,
            b_eq=right,
            bounds=bounds,
            method=method,
            options={
                "presolve": presolve,
                "primal_feasibility_tolerance": accuracy,
                "dual_feasibility_tolerance": accuracy,
            },
        )
        if found.x is not None:
            return found
    raise FlexgenError(
        "tables", f"are beyond the linear programme's solver: {found.message}", "Check blocks of fewer sites at a time."
    )


# Families of fractions, decided in exact arithmetic: which states a joint may give mass, and whether it is the only
# one.
#
# The joints are the r >= 0 with A r = 0, a row r(x_P, x_C) - q(x_P | x_C) r(x_C) for every entry of every table. Sums
# of such r are such r, so one of them has mass wherever any has. Gauss-Jordan elimination leaves r_B = -R r_F over
# few free states F, and the simplex method with Bland's rule finds distributions that cover more states until a last
# programme proves that no distribution covers any other. Nothing is rounded, so nothing is decided by a tolerance.
#
# A table is stated in floating point, and 0.1 is no binary fraction: an entry stands for the simplest fraction that
# rounds to it, if that is far simpler than what a number at random would have, and the entries of a distribution sum
# to one.

MAX_STATES = 64  # two seconds; 128 can take half a minute
_ROUNDINGS = 4  # an entry was divided by a sum that is one but for rounding
_CHANCE = 0.01  # expected number of fractions as simple that a number at random would be taken for
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class ExactJoints:
    """All joints of a family of fractions, in short.

    Args:
        distribution: ``[S]``, with mass wherever a joint has any; sums to one, or is zero where there is no joint.
        dimension: of the set of joints: 0 where there is one, -1 where there is none.
    """

    joint: Floats
    dimension: int


def exact_joints(family: ConditionalFamily) -> ExactJoints | None:
    """The joints of `family`, exactly; None if its tables are not of fractions, or of more than 64 states."""
    if family.num_states > MAX_STATES:
        return None
    rows: list[dict[int, Fraction]] = []
    dead = np.zeros(family.num_states, dtype=bool)
    for conditional in family.conditionals:
        tables = _fractions_of(conditional)
        if tables is None:
            return None
        sites = range(family.num_sites)
        event, _ = line_numbers(family.shape, [site for site in sites if site not in conditional.sites])
        context, _ = line_numbers(family.shape, [site for site in sites if site not in conditional.observed])
        for number, fraction in enumerate(tables):
            inside = np.flatnonzero(event == number)
            if not fraction:
                dead[inside] = True
                continue
            row = dict.fromkeys(np.flatnonzero(context == context[inside[0]]).tolist(), -fraction)
            for state in inside.tolist():
                row[state] += 1
            rows.append(row)
    live = np.flatnonzero(~dead)
    matrix = _reduced(rows, live)
    joint, covered = _cover(matrix, len(live))
    whole = np.zeros(family.num_states)
    whole[live] = joint
    if not covered.any():
        return ExactJoints(whole, -1)
    kept = np.flatnonzero(covered)
    place = {int(state): k for k, state in enumerate(kept)}
    inner = [{place[s]: v for s, v in row.items() if s in place} for row in matrix.values()]
    rank = len(_rref([row for row in inner if row], len(kept)))
    return ExactJoints(whole, len(kept) - rank - 1)


def _fractions_of(conditional: StatedConditional) -> list[Fraction] | None:
    """The entries of a conditional's table, flattened, as the fractions that they stand for."""
    num_targets = len(conditional.target)
    axes = [*conditional.target, *(axis for axis in range(conditional.table.ndim) if axis not in conditional.target)]
    values = (
        conditional.table.permute(axes)
        .reshape(math.prod(conditional.table.shape[axis] for axis in conditional.target), -1)
        .numpy()
    )
    places = np.arange(conditional.table.numel()).reshape(conditional.table.shape).transpose(axes).reshape(values.shape)
    assert num_targets
    out = [Fraction(0)] * conditional.table.numel()
    for column in range(values.shape[1]):
        entries = values[:, column].tolist()
        largest = max(range(len(entries)), key=entries.__getitem__)
        total = Fraction(0)
        for k, entry in enumerate(entries):
            if k != largest:
                fraction = _simplest(entry)
                if fraction is None:
                    return None
                out[places[k, column]] = fraction
                total += fraction
        rest = 1 - total
        if abs(float(rest) - entries[largest]) > _ROUNDINGS * _EPS * len(entries):
            return None
        out[places[largest, column]] = rest
    return out


def _simplest(value: float) -> Fraction | None:
    """The fraction of least denominator that rounds to `value`, if it is too simple to be there by chance."""
    if value == 0:
        return Fraction(0)
    exact = Fraction(value)
    width = exact * Fraction(_ROUNDINGS * _EPS)
    found = _simplest_between(exact - width, exact + width)
    return found if float(2 * width) * found.denominator**2 < _CHANCE else None


def _simplest_between(low: Fraction, high: Fraction) -> Fraction:
    """By continued fractions (Stern 1858): the fraction of least denominator in [low, high], 0 < low <= high."""
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    floor = math.floor(low)
    return floor + 1 / _simplest_between(1 / (high - floor), 1 / (low - floor))


def _reduced(rows: list[dict[int, Fraction]], live: np.ndarray) -> dict[int, dict[int, Fraction]]:
    """The reduced rows over live states: {basic state: {state: coefficient}}, each with 1 at its basic state."""
    place = {int(state): k for k, state in enumerate(live)}
    inside = [{place[s]: v for s, v in row.items() if s in place and v} for row in rows]
    return _rref([row for row in inside if row], len(live))


def _rref(rows: list[dict[int, Fraction]], num_columns: int) -> dict[int, dict[int, Fraction]]:
    from sympy import QQ  # slow to import
    from sympy.polys.matrices import DomainMatrix

    if not rows or not num_columns:
        return {}
    stated = {k: {s: QQ(v.numerator, v.denominator) for s, v in row.items()} for k, row in enumerate(rows)}
    reduced, pivots = DomainMatrix(stated, (len(rows), num_columns), QQ).rref()
    dense = reduced.rep.to_sdm()
    return {
        pivot: {int(s): Fraction(int(v.numerator), int(v.denominator)) for s, v in dense[k].items()}
        for k, pivot in enumerate(pivots)
    }


def _cover(matrix: dict[int, dict[int, Fraction]], num_states: int) -> tuple[Floats, Bools]:
    """A distribution with mass wherever any has, and where that is.

    The dictionary of the simplex method: basic states b in terms of free ones, r_b = -Σ_f R_bf r_f, and the slack
    1 - Σ r, which bounds the programme. At r = 0 it is feasible.
    """
    free = [state for state in range(num_states) if state not in matrix]
    basic = [*matrix, num_states]  # the slack comes last
    table = [[-row.get(f, Fraction(0)) for f in free] for row in matrix.values()]
    constant = [Fraction(0)] * len(matrix) + [Fraction(1)]
    table.append([-sum((row[k] for row in table), Fraction(1)) for k in range(len(free))])
    joint, covered = np.zeros(num_states), np.zeros(num_states, dtype=bool)
    while not covered.all():
        _maximise(table, constant, basic, free, [not covered[s] for s in range(num_states)] + [False])
        mass = {b: c for b, c in zip(basic, constant, strict=True) if b < num_states and c > 0}
        new = [state for state in mass if not covered[state]]
        if not new:
            break
        for state, value in mass.items():
            joint[state] += float(value)
            covered[state] = True
    total = joint.sum()
    return joint / total if total else joint, covered


def _maximise(
    table: list[list[Fraction]], constant: list[Fraction], basic: list[int], free: list[int], wanted: list[bool]
) -> None:
    """Pivots to the maximum of the mass of wanted states, by Bland's rule, which cannot cycle."""
    while True:
        gain = [
            sum((row[k] for row, b in zip(table, basic, strict=True) if wanted[b]), Fraction(int(wanted[f])))
            for k, f in enumerate(free)
        ]
        entering = min((f, k) for k, f in enumerate(free) if gain[k] > 0) if any(g > 0 for g in gain) else None
        if entering is None:
            return
        k = entering[1]
        limits = [(constant[i] / -row[k], basic[i], i) for i, row in enumerate(table) if row[k] < 0]
        i = min(limits)[2]  # there is one: the slack falls with every state
        row, pivot = table[i], table[i][k]
        # basic = constant + row . free, solved for the entering state
        solved = [-value / pivot for value in row]
        solved[k] = 1 / pivot
        start = -constant[i] / pivot
        for other, values in enumerate(table):
            if other == i or not values[k]:
                continue
            factor = values[k]
            constant[other] += factor * start
            table[other] = [
                factor * solved[c] if c == k else value + factor * solved[c] for c, value in enumerate(values)
            ]
        table[i], constant[i] = solved, start
        basic[i], free[k] = free[k], basic[i]
