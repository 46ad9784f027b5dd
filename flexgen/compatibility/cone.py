"""The laws that have a family's conditionals to within a tolerance: a cone, searched by linear programmes.

A law r has q(x_P | x_C) to within τ nats iff exp(-τ) q r(x_C) <= r(x_P, x_C) <= exp(τ) q r(x_C). This is linear in r and
says the same of rare x_C as of common ones. Sums of such r are such r, so one of them has mass wherever any has.

Solvers know absolute errors only: they drop coefficients below 1e-9 and let rows be off by 1e-10. So every state is
measured in a unit of its own, an upper bound on its probability that follows from the tables: from r(x_C) <= 1, by turns

    r(x) <= q(x_P | x_C) r(x_C)    and    r(x_C) <= r(x_P, x_C) / q(x_P | x_C) for every x_P.

In these units all coefficients of a row are within a factor of S. Bounds of zero are the zeros that supports force.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult, linprog
from scipy.sparse import csr_matrix, diags, hstack, vstack

from flexgen.compatibility.closest_linear import require_size
from flexgen.compatibility.family import ConditionalFamily
from flexgen.compatibility.graph import Bools, Floats, Ints, line_numbers
from flexgen.errors import FlexgenError

__all__ = ["SOLVER_NATS", "Cone", "Cover"]

SOLVER_NATS = 1e-8  # the solver lets rows be off by 1e-10 and drops coefficients below 1e-9
_BOUND_ROUNDS = 100
_LARGEST = 1e4  # masses are sought between their unit and so many units
_FINER = 1e-4  # contexts that are not reached are sought in finer units, so many times
_RESCALINGS = 3
_ACCURATE = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
# Now and then one of the solver's methods gives up on a degenerate programme that another solves.
_SOLVERS: tuple[dict[str, Any], ...] = (
    {"method": "highs", "options": _ACCURATE},
    {"method": "highs-ds", "options": {**_ACCURATE, "presolve": False}},
    {"method": "highs-ipm", "options": _ACCURATE},
)


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
    """States, events (x_P, x_C) and contexts x_C of a family; events and contexts are numbered conditional by conditional.

    Args:
        family: of at most `closest_linear.MAX_LINEAR_STATES` states.

    Raises:
        FlexgenError: more states.

    `bounds` ``[S]`` are upper bounds on the probabilities of all states, good to a factor; zero where supports force it.
    """

    def __init__(self, family: ConditionalFamily) -> None:
        require_size(family, "the linear programme")
        self.num_states = family.num_states
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
        self.bounds = self._bounds()

    @property
    def num_contexts(self) -> int:
        return self.first[-1]

    @property
    def possible(self) -> Bools:
        """Which contexts the supports leave any state."""
        return np.asarray(self._contexts(self.bounds) > 0)

    def cover(self, tolerance: float) -> Cover:
        """A law within `tolerance` nats of all conditionals, or of as many of their contexts as can be."""
        units, live = self.bounds, self.possible
        law, covered = np.zeros(self.num_states), np.zeros(self.num_contexts, dtype=bool)
        for _ in range(_RESCALINGS + 1):
            found, reached = self._largest_cover(units, live, tolerance)
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

    def misfit(self, law: Floats) -> float:
        """The largest |log r(x_P | x_C) - log q|, nats, over contexts that have mass."""
        mass = self._contexts(law)[self.context_of_event]
        stated, own = self.q * mass, self._events(law)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.abs(np.log(own) - np.log(stated))
        return float(np.max(np.where((own == 0) & (stated == 0), 0.0, off)))

    def width(self, cover: Cover, tolerance: float) -> float:
        """How far apart the covering laws lie in a random direction, in their units: zero iff there is one."""
        keep = np.flatnonzero(cover.units)
        rows = self._rows(cover.units, cover.covered, tolerance)
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
        bound = np.ones(self.num_states)
        stated = np.flatnonzero(self.q)
        for _ in range(_BOUND_ROUNDS):
            before = bound
            for k in range(len(self.event)):
                context = np.minimum(self._contexts(bound), 1.0)
                np.minimum.at(context, self.context_of_event[stated], self._events(bound)[stated] / self.q[stated])
                bound = np.minimum(bound, (self.q * context[self.context_of_event])[self.event[k]])
            bound = np.where(bound > 0, np.maximum(bound, 1e-280), 0.0)  # only supports make zeros
            if bool((bound >= 0.5 * before).all()):
                break
        return bound

    def _largest_cover(self, units: Floats, live: Bools, tolerance: float) -> tuple[Floats, Bools]:
        """The law (not normalised) with the most contexts at their unit or above."""
        keep, contexts = np.flatnonzero(units), np.flatnonzero(live)
        law, reached = np.zeros(self.num_states), np.zeros(self.num_contexts, dtype=bool)
        if not len(keep):
            return law, reached
        inequality, equality = self._rows(units, live, tolerance)
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
        """Inequalities of events and equations of contexts, over the kept states and the masses of the live contexts."""
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
    for options in _SOLVERS:
        found = linprog(
            cost, A_ub=inequality, b_ub=np.zeros(inequality.shape[0]), A_eq=equality, b_eq=right, bounds=bounds, **options
        )
        if found.x is not None:
            return found
    raise FlexgenError(
        "tables", f"are beyond the linear programme's solver: {found.message}", "Check blocks of fewer sites at a time."
    )
