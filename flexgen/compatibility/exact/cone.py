"""The laws that have a family's conditionals to within a tolerance: a cone, searched by linear programmes.

A law r has q(x_P | x_C) to within τ nats iff exp(-τ) q r(x_C) <= r(x_P, x_C) <= exp(τ) q r(x_C). This is linear in
r, and says the same of rare x_C as of common ones. Sums of such r are such r: one has mass wherever any has.

Solvers know absolute errors only: they drop coefficients below 1e-9 and let rows be off by 1e-10. So every state is
measured in a unit of its own, an upper bound on its probability that the tables imply: from r(x_C) <= 1, by turns

    r(x) <= q(x_P | x_C) r(x_C)    and    r(x_C) <= r(x_P, x_C) / q(x_P | x_C) for every x_P.

In these units the coefficients of a row sum to 1/S or more. Zeros spread by the same turns, and bounds that fall
without end, where a loop of conditionals multiplies to less than one, are zeros too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import OptimizeResult, linprog
from scipy.sparse import csr_matrix, diags, hstack, vstack
from scipy.sparse.csgraph import connected_components

from flexgen.compatibility.exact.closest_linear import require_size
from flexgen.compatibility.exact.family import ConditionalFamily
from flexgen.compatibility.exact.graph import Bools, Floats, Ints, line_numbers
from flexgen.errors import FlexgenError

__all__ = ["SOLVER_NATS", "Cone", "Cover"]

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
    """A law of the cone with as much covered as any has.

    Args:
        law: ``[S]``; sums to one, or all zero if the cone holds no law.
        covered: which contexts x_C have mass, of all conditionals one after the other.
        units: ``[S]``, the units it was found in; zero where no law of the cone has mass.
    """

    law: Floats
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
        for law in family.conditionals:
            sites = range(family.num_sites)
            own_event, count = line_numbers(family.shape, [site for site in sites if site not in law.sites])
            own_context, width = line_numbers(family.shape, [site for site in sites if site not in law.observed])
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
        self.q: Floats = np.concatenate([law.table.numpy().reshape(-1) for law in family.conditionals])
        self.bounds = self._bounds()  # [S]

    @property
    def num_contexts(self) -> int:
        return self.first[-1]

    @property
    def possible(self) -> Bools:
        """Which contexts may have mass, by the bounds."""
        return np.asarray(self._contexts(self.bounds) > 0)

    def cover(self) -> Cover:
        """The law, with mass in all contexts that a law of the cone has mass in."""
        units, live = self.bounds, self.possible
        law, covered = np.zeros(self.num_states), np.zeros(self.num_contexts, dtype=bool)
        for attempt in range(_RESCALINGS + 1):
            try:
                found, reached = self._largest_cover(units, live)
            except FlexgenError:
                if attempt:  # in finer units programmes are hard, and most of what they look for is not there
                    break
                raise
            if reached.sum() > covered.sum() or not covered.any():
                law, covered = found, reached
            if not reached.any() or bool(reached[live].all()):
                break
            missed = (live & ~reached)[self.context].any(0)
            units = np.where(missed, units * _FINER, units)
        law = np.where(covered[self.context].all(0), law, 0.0)
        total = float(law.sum())
        units = np.where(covered[self.context].all(0), units, 0.0)
        return Cover(law / total if total else law, covered, units)

    def settled(self, cover: Cover) -> tuple[Cover, bool | None]:
        """The cover without mass that only the tolerance bought, and whether its law is the only one (None: not known).

        A context that must be impossible can be given mass of the size of the tolerance. Gauss-Newton steps on the
        misfits, in units of the law itself, take it away: such mass shrinks at every step, while a rare event of true
        mass settles. What settles then has to be clearly larger than the misfits that remain. One law: no direction
        but its own scale leaves the misfits as they are, by singular values.
        """
        law, covered = cover.law.copy(), cover.covered.copy()
        if not 0 < np.count_nonzero(law) <= _SETTLED_STATES:
            return cover, None
        while True:
            keep = np.flatnonzero(law)
            settled, start = law[keep], self._contexts(law)
            for _ in range(_SETTLINGS):
                matrix, scales = self._relative(keep, settled), self._scales(keep, settled)
                # Without mass there is no misfit: the mass of states that conditionals join is kept.
                right = np.concatenate([-matrix.sum(1), np.zeros(len(scales))])
                step = np.linalg.lstsq(np.vstack([matrix, scales]), right, rcond=len(keep) * _EPS)[0]
                settled = settled * np.clip(1.0 + step, _LEAST_FACTOR, None)
                settled /= settled.sum()
                if np.abs(step).max() < 1e-3:
                    break
            whole = np.zeros_like(law)
            whole[keep] = settled
            matrix = self._relative(keep, settled)
            left = max(float(np.abs(matrix.sum(1)).max(initial=0.0)), len(keep) * _EPS)
            mass, most = self._contexts(whole), self._contexts(self.bounds)
            shrinks = np.zeros(self.num_states, dtype=bool)
            shrinks[keep] = step < -0.5
            lost = covered & (self._contexts((whole > 0) & ~shrinks) == 0)
            lost |= covered & (mass < _CLEAR * left * np.minimum(most, 1.0)) & (mass < start)
            if not lost.any():
                break
            covered &= ~lost
            law = np.where(covered[self.context].all(0), law, 0.0)
            covered &= self._contexts(law) > 0
            if not law.any():
                return Cover(law, covered, law), None
            law /= law.sum()
        if self.misfit(whole) <= max(self.misfit(law), self.tolerance):
            law = whole
        singular = np.linalg.svd(matrix, compute_uv=False)
        nullity = len(keep) - int((singular > _CLEAR * left * singular.max(initial=0.0)).sum())
        settled_cover = Cover(law, covered, np.where(covered[self.context].all(0), cover.units, 0.0))
        if nullity > 1:
            return settled_cover, False
        # A vertex leaves states out that another law may need: only where there are none is the rank all.
        return settled_cover, None if np.count_nonzero(settled_cover.units) > np.count_nonzero(law) else True

    def _scales(self, keep: Ints, law: Floats) -> Floats:
        """The share of every state in the mass of the states that it is joined with by contexts, a row a component."""
        nodes = self.context[:, keep] + len(keep)
        ones, states = np.ones(nodes.size), np.tile(np.arange(len(keep)), len(nodes))
        size = len(keep) + self.num_contexts
        label = connected_components(csr_matrix((ones, (states, nodes.reshape(-1))), shape=(size, size)), False)[1]
        label = np.unique(label[: len(keep)], return_inverse=True)[1]
        rows = (label[None] == np.arange(label.max() + 1)[:, None]) * law[None]
        return np.asarray(rows / rows.sum(1, keepdims=True))

    def _relative(self, keep: Ints, law: Floats) -> Floats:
        """Misfits r(x_P, x_C) / q r(x_C) - 1 of the events of a law's contexts, by the relative change of each state."""
        whole = np.zeros(self.num_states)
        whole[keep] = law
        mass = self._contexts(whole)
        stated = (self.q > 0) & (mass[self.context_of_event] > 0)
        number, every = np.cumsum(stated) - 1, np.arange(len(keep))
        matrix = np.zeros((int(stated.sum()), len(keep)))
        expected = self.q * mass[self.context_of_event]
        for event in self.event[:, keep]:
            inside = stated[event]
            matrix[number[event[inside]], every[inside]] += law[inside] / expected[event[inside]]
        own = self.context_of_event[stated]
        for context in self.context[:, keep]:
            matrix -= (own[:, None] == context[None]) * (law / mass[context])[None]
        return matrix

    def misfit(self, law: Floats) -> float:
        """The largest |log r(x_P | x_C) - log q|, nats, over contexts that have mass."""
        mass = self._contexts(law)[self.context_of_event]
        stated, own = self.q * mass, self._events(law)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.abs(np.log(own) - np.log(stated))
        return float(np.max(np.where((own == 0) & (stated == 0), 0.0, off)))

    def width(self, cover: Cover) -> float:
        """How far apart the covering laws lie in a random direction, in their units: zero iff there is one."""
        keep = np.flatnonzero(cover.units)
        rows = self._rows(cover.units, cover.covered, 2 * self.tolerance)  # so that the law found is well inside
        direction = np.random.default_rng(0).standard_normal(len(keep))
        padded = np.concatenate([direction, np.zeros(rows[0].shape[1] - len(keep))])
        total = np.concatenate([np.full(len(keep), 1 / len(keep)), np.zeros(rows[0].shape[1] - len(keep))])
        ends = []
        for sign in (1.0, -1.0):
            right = np.append(np.zeros(rows[1].shape[0]), 1.0)
            found = _solve(sign * padded, rows[0], vstack([rows[1], csr_matrix(total)]), right, (0.0, None))
            ends.append(float(padded @ found.x))
        return ends[1] - ends[0]

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
        """The law (not normalised) with the most contexts at their unit or above."""
        keep, contexts = np.flatnonzero(units), np.flatnonzero(live)
        law, reached = np.zeros(self.num_states), np.zeros(self.num_contexts, dtype=bool)
        if not len(keep):
            return law, reached
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
        law[keep] = np.maximum(found.x[: len(keep)], 0.0) * units[keep]
        reached[contexts] = found.x[len(keep) + count :] > 0.5
        return law, reached

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

    def _events(self, law: Floats) -> Floats:
        return np.asarray(sum(np.bincount(each, law, minlength=len(self.q)) for each in self.event))

    def _contexts(self, law: Floats) -> Floats:
        return np.asarray(sum(np.bincount(each, law, minlength=self.num_contexts) for each in self.context))


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
