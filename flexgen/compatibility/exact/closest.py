"""The joint that comes closest to conditionals that have none, by four measures, with a proof of how close."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from scipy.sparse import csr_matrix, hstack, vstack
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from flexgen.compatibility.exact.cycles import Floats, line_numbers
from flexgen.compatibility.exact.family import ConditionalFamily, StatedConditional, as_family
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, JointTable

__all__ = ["ClosestJoint", "closest_joint", "least_maximum", "misfit", "product_of_conditionals"]

Kind = Literal["I", "AG", "LP", "L2"]

_MEASURES = {
    "I": "sum of KL(r || r_{-i} q_i), nats",
    "AG": "sum over contexts of KL(q_i || r_i), nats",
    "LP": "largest |r - r_{-i} q_i|",
    "L2": "sum of (r - r_{-i} q_i)^2",
}


@dataclass(frozen=True, eq=False)
class ClosestJoint:
    """A closest joint, and a lower bound that no joint can beat.

    Args:
        kind: ``"I"``, ``"AG"``, ``"LP"`` or ``"L2"``.
        joint: the distribution.
        objective: its distance from the conditionals, recomputed from the distribution.
        bound: a lower bound on the distance of every joint, from duality (``"AG"``: for tables that differ from those
            given by rounding, 1e-11 at most; 0 where none was found). For ``"I"`` it is the *certificate*: under
            whatever distribution p the data have, Σ_i E_p KL(p_i || q_i) is at least this many nats.
        measure: what the distance is.
    """

    kind: str
    joint: JointTable
    objective: float
    bound: float
    measure: str

    @property
    def gap(self) -> float:
        """Objective less bound, zero or more: the joint's distance is at most this far from the least possible."""
        return max(0.0, self.objective - self.bound)

    def __str__(self) -> str:
        proof = f"optimal to within {self.gap:.2g}"
        if self.gap > 1e-9 and not self.bound:
            proof = "without a proof that no joint is closer"
        return f"closest joint ({self.kind}): {self.measure} = {self.objective:.6g}, {proof}"

    __repr__ = __str__


def closest_joint(tables: ConditionalTables | ConditionalFamily, kind: Kind = "I") -> ClosestJoint:
    """The distribution that comes closest to having the given conditionals.

    Args:
        tables: all complete conditionals, or any family (``"AG"``: complete conditionals only).
        kind: how distance is measured, summed over the conditionals q_i = q(x_i | rest) (likewise for p(x_P | x_C)):

            * ``"I"``: KL(r || r_{-i} q_i), nats. Convex. Its optimum is a certificate: a lower bound on the unary
              excess risk Σ_i E_p KL(p_i || q_i) of the conditionals under any distribution p. Infinite unless some
              state has positive probability from all conditionals. Up to 2^16 states.
            * ``"AG"``: KL(q_i(. | rest) || r(. | rest)), nats, every context alike (Arnold & Gokhale 1998). Up to 2^16.
            * ``"LP"``: the largest |r(x) - r_{-i}(x_{-i}) q_i|, a probability; zero iff weakly compatible. Up to 2^11.
            * ``"L2"``: the sum of the squares of these differences. Up to 2^11 states.

    Raises:
        FlexgenError: an unknown kind, too many states, ``"AG"`` for conditionals that marginalise sites out, or ``"I"``
            where no distribution has a finite distance.

    Where several joints are equally close (an incompatible family can split into parts that it never compares), each
    part has the same weight.
    """
    family = as_family(tables)
    if not isinstance(kind, str) or kind not in _MEASURES:
        raise FlexgenError("kind", f"is {kind!r}", "Choose 'I', 'AG', 'LP' or 'L2'.")
    if kind in ("LP", "L2"):
        solved, objective, bound = least_maximum(family) if kind == "LP" else least_squares(family)
        nearest = torch.from_numpy(solved)
    else:
        if kind == "AG" and not family.is_complete:
            raise FlexgenError(
                "tables", "marginalise sites out, where 'AG' is not convex", "Use kind='I', 'LP' or 'L2'."
            )
        problem = Information(family) if kind == "I" else ArnoldGokhale(family)
        if not problem.support.any():
            raise FlexgenError(
                "tables",
                "leave no state that all conditionals give mass: every distribution is infinitely far by kind 'I'",
                "Use kind='AG', 'LP' or 'L2'.",
            )
        point = minimise(problem, problem.start(), tolerance=1e-12, num_iterations=300)
        nearest, objective, bound = problem.optimum(point)
    joint = JointTable.from_unnormalised(nearest.view(family.shape))
    return ClosestJoint(kind, joint, max(0.0, objective), max(0.0, bound), _MEASURES[kind])


def product_of_conditionals(tables: ConditionalTables | ConditionalFamily) -> JointTable:
    """The normalised product of all conditionals, ∝ Π_i q(x_i | rest): not the joint, even where there is one.

    Some use it as the joint of a masked model ("MRF"). Each dependence is counted about once a conditional, so it is
    wrong already for compatible conditionals (total variation 0.13 on Arnold & Press's 3 x 3 example). It is here to
    be compared with, and says so in a `UserWarning`.
    """
    family = as_family(tables)
    warnings.warn(
        "product_of_conditionals is not the joint, even where the conditionals have one; "
        "use check_tables(...).joint or closest_joint(...).joint",
        UserWarning,
        stacklevel=2,
    )
    total = torch.zeros(family.shape, dtype=torch.float64)
    for conditional in family.conditionals:
        total = total + conditional.table.log()
    if not torch.isfinite(total).any():
        raise FlexgenError("tables", "have a product that is zero everywhere", "Use closest_joint(tables, kind='AG').")
    return JointTable.from_unnormalised((total - total.max()).exp())


# The two closest joints that are measured by relative entropy, as convex problems in log-probabilities.
#
# `Information`, the I-projection: the least f(r) = Σ_m KL(r || r_{-m} q_m) over distributions r. f is convex and
# homogeneous of degree one, so with G(x) = Σ_m log r(x_P | x_C) / q_m(x_P | x_C), its gradient,
#
#     f(p) >= E_p G >= min_x G(x)    for every distribution p, whatever r:
#
# a lower bound that anybody can check, equal to f(r) = E_r G at the optimum.
#
# `ArnoldGokhale`: the least Σ_m Σ_{x_C} KL(q_m(. | x_C) || P(. | x_C)) over distributions P, every context counting
# alike (Arnold & Gokhale 1998). Convex in log P. For any conditionals R_m with Σ_m R_m = Σ_m q_m at every state the
# objective is at least Σ_m Σ_{x_C} H(R_m) - H(q_m), and exceeds it by Σ_m Σ_{x_C} KL(R_m || P_m). R_m = P_m (1 - h +
# E_m h), h being Newton's step, is such a family. Rounding: R is one for tables that differ from those stated by
# 1e-11 at most.

_NEGLIGIBLE = (0.0, 1e-12, 1e-10, 1e-8, 1e-6)  # tried in turn until the gap is proved to be
_PROVED = 1e-10  # relative
_ROUNDING = 1e-11  # of sums of tables


class _Entropies:
    """What both problems share: a support, its connected parts, and conditionals of a distribution by its logarithm."""

    def __init__(self, family: ConditionalFamily, support: Tensor) -> None:
        self.family, self.support = family, support
        self.tables = [conditional.table for conditional in family.conditionals]
        self.others = [
            tuple(i for i in range(family.num_sites) if i not in conditional.sites)
            for conditional in family.conditionals
        ]
        self.part = self._parts()  # [S], the connected part of each state of the support
        self.num_parts = int(self.part.max()) + 1

    def _parts(self) -> Tensor:
        """Parts of the support that no conditional compares; a distribution may share its mass among them at will."""
        if not self.family.is_complete or bool(self.support.all()):
            return torch.zeros(self.family.num_states, dtype=torch.int64)
        member = self.support.flatten().numpy()
        source, sink, start = [], [], self.family.num_states
        for conditional in self.family.conditionals:
            line, count = line_numbers(self.family.shape, conditional.target)
            source.append(np.flatnonzero(member))
            sink.append(line[member] + start)
            start += count
        rows, columns = np.concatenate(source), np.concatenate(sink)
        edges = csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(start, start))
        label = connected_components(edges, directed=False)[1][: self.family.num_states]
        part = np.zeros(self.family.num_states, dtype=np.int64)
        part[member] = np.unique(label[member], return_inverse=True)[1]
        return torch.from_numpy(part)

    def start(self) -> Tensor:
        """The uniform distribution on the support, as logarithms."""
        return torch.where(self.support, 0.0, -torch.inf).double()

    def normalised(self, theta: Tensor) -> Tensor:
        """theta, each part a distribution of its own; shaped as a table."""
        flat = torch.where(self.support, theta, -torch.inf).flatten()
        if self.num_parts == 1:
            return (flat - flat.logsumexp(0)).view(self.family.shape)
        top = torch.full((self.num_parts,), -torch.inf, dtype=flat.dtype).scatter_reduce(0, self.part, flat, "amax")
        total = self.total((flat - top[self.part]).exp())
        return (flat - top[self.part] - total.log()[self.part]).view(self.family.shape)

    def total(self, values: Tensor) -> Tensor:
        """Sums over each part, ``[num_parts]``."""
        return torch.zeros(self.num_parts, dtype=values.dtype).index_add_(0, self.part, values.flatten())

    def log_conditionals(self, theta: Tensor) -> list[Tensor]:
        """log p(x_P | x_C) for every conditional of the family; zero where the distribution has no mass."""
        logs = []
        for conditional, others in zip(self.family.conditionals, self.others, strict=True):
            joint = theta.logsumexp(others, keepdim=True) if others else theta
            log = joint - joint.logsumexp(conditional.target, keepdim=True)
            logs.append(torch.where(joint > -torch.inf, log, 0.0))
        return logs


class Information(_Entropies):
    """min_r Σ_m KL(r || r_{-m} q_m), over distributions on the states that every conditional gives mass."""

    def __init__(self, family: ConditionalFamily) -> None:
        support = torch.ones(family.shape, dtype=torch.bool)
        for conditional in family.conditionals:
            support = support & (conditional.table > 0)
        super().__init__(family, support)
        self.log_tables = [torch.where(table > 0, table.log(), 0.0) for table in self.tables]

    def scores(self, theta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """G, and the log conditionals it is made of."""
        logs = self.log_conditionals(theta)
        score = torch.zeros(self.family.shape, dtype=torch.float64)
        for log, table in zip(logs, self.log_tables, strict=True):
            score = score + (log - table)
        return score, logs

    def at(self, theta: Tensor) -> Point:
        theta = self.normalised(theta)
        joint = theta.exp()
        score, logs = self.scores(theta)
        values = self.total(joint * score)  # [num_parts], f of each part
        lowest = torch.full_like(values, torch.inf).scatter_reduce(
            0, self.part, torch.where(self.support, score, torch.inf).flatten(), "amin"
        )
        gradient = joint * (score - values[self.part].view(self.family.shape))
        conditionals = [log.exp() for log in logs]
        mass = [joint.sum(others, keepdim=True) if others else joint for others in self.others]

        def curvature(direction: Tensor) -> Tensor:
            product = torch.zeros_like(direction)
            for stated, others, total, conditional in zip(
                self.family.conditionals, self.others, mass, conditionals, strict=True
            ):
                mean = direction
                if others:
                    mean = torch.where(total > 0, (joint * direction).sum(others, keepdim=True) / total, 0.0)
                product = product + (mean - (conditional * mean).sum(stated.target, keepdim=True))
            return joint * product

        off = float((values - lowest).max())
        return Point(theta, float(values.sum()), gradient, len(self.tables) * joint, off, curvature)

    def optimum(self, point: Point) -> tuple[Tensor, float, float]:
        """The distribution of the best parts, its objective and the lower bound."""
        joint = point.theta.exp()
        score, _ = self.scores(point.theta)
        values = self.total(joint * score)
        best = values <= values.min() + 1e-9
        joint = joint * best[self.part].view(self.family.shape)
        joint = joint / joint.sum()
        return joint, float((joint * score).sum()), float(score[self.support].min())


class ArnoldGokhale(_Entropies):
    """min_P Σ_m Σ_{x_C} KL(q_m(. | x_C) || P(. | x_C)), over states that some conditional gives mass."""

    def __init__(self, family: ConditionalFamily) -> None:
        support = torch.zeros(family.shape, dtype=torch.bool)
        for conditional in family.conditionals:
            support = support | (conditional.table > 0)
        super().__init__(family, support)
        self.entropies = [torch.special.entr(table).sum() for table in self.tables]

    def at(self, theta: Tensor) -> Point:
        theta = self.normalised(theta)
        objective = 0.0
        gradient = torch.zeros(self.family.shape, dtype=torch.float64)
        weight = torch.zeros_like(gradient)
        conditionals = []
        for log, table, entropy in zip(self.log_conditionals(theta), self.tables, self.entropies, strict=True):
            conditional = torch.where(self.support, log.exp(), 0.0)
            objective -= float((table * log).sum() + entropy)
            gradient = gradient + (conditional - table)
            weight = weight + conditional
            conditionals.append(conditional)

        def curvature(direction: Tensor) -> Tensor:
            product = torch.zeros_like(direction)
            for stated, conditional in zip(self.family.conditionals, conditionals, strict=True):
                product = product + conditional * self._deviation(stated, conditional, direction)
            return product

        return Point(theta, objective, gradient, weight, float(gradient.abs().sum()), curvature)

    def optimum(self, point: Point) -> tuple[Tensor, float, float]:
        """The distribution, its objective and the lower bound of the dual."""
        bound = 0.0  # no divergence is negative
        for share in _NEGLIGIBLE:
            bound = min(point.objective, max(bound, self._bound(point, share)))
            if point.objective - bound <= _PROVED * (1 + point.objective):
                break
        joint = point.theta.exp() / self.num_parts
        return joint / joint.sum(), point.objective, bound

    def _bound(self, point: Point, share: float) -> float:
        """The dual at R_m = P_m (1 - h + E_m h), P_m being zero where it is below `share` of the state's largest P_m.

        In the limit of the best distributions some contexts have no mass, but conditionals all the same. Near it P_m is
        tiny at the states that lead there, h is large and such an R_m may be negative; in the limit both are zero.
        """
        logs = self.log_conditionals(point.theta)
        whole = [torch.where(self.support, log.exp(), 0.0) for log in logs]
        least = share * torch.stack(whole).amax(0)
        kept = [torch.where(each >= least, each, 0.0) for each in whole]
        kept = [
            each / each.sum(conditional.target, keepdim=True)
            for conditional, each in zip(self.family.conditionals, kept, strict=True)
        ]
        weight = torch.stack(kept).sum(0)
        stated_sum = torch.stack(self.tables).sum(0)

        def curvature(direction: Tensor) -> Tensor:
            product = torch.zeros_like(direction)
            for stated, conditional in zip(self.family.conditionals, kept, strict=True):
                product = product + conditional * self._deviation(stated, conditional, direction)
            return product

        right, step = weight - stated_sum, torch.zeros_like(weight)
        largest = float(right.abs().max())
        if largest > _ROUNDING:  # steps beyond rounding go astray
            solving = replace(point, weight=weight, curvature=curvature)
            step = conjugate_gradients(solving, right, accuracy=min(0.1, max(1e-12, 0.1 * _ROUNDING / largest)))
        off, gap = -stated_sum, 0.0
        for stated, conditional, each in zip(self.family.conditionals, kept, whole, strict=True):
            answer = conditional * (1 - self._deviation(stated, conditional, step))
            if bool((answer < 0).any()):
                return 0.0
            off = off + answer
            gap += float((torch.special.xlogy(answer, answer / each.clamp_min(1e-300)) - answer + each).sum())
        if float(off.abs().max()) > _ROUNDING:  # no sum of the tables: it proves nothing
            return 0.0
        return point.objective - gap - abs(float(torch.where(self.support, off * point.theta, 0.0).sum()))

    @staticmethod
    def _deviation(stated: StatedConditional, conditional: Tensor, direction: Tensor) -> Tensor:
        """The direction less its conditional mean."""
        return direction - (conditional * direction).sum(stated.target, keepdim=True)


# Newton's method in log-probabilities, its steps solved by conjugate gradients: no S x S matrix.
#
# Both convex problems of `closest` have curvatures that are sums of conditional variances, so that a product with
# them costs a few passes over the states.

_LONGEST_STEP = 8.0  # of any log-probability
_ROUNDING = 1e-13  # of objectives, relative
_PATIENCE = 20  # steps that gain nothing but rounding


@dataclass(frozen=True, eq=False)
class Point:
    """A problem at one place.

    Args:
        theta: log-probabilities, ``[V_0, .., V_{N-1}]``, -inf outside the support.
        objective: nats.
        gradient: with respect to theta, zero outside the support.
        weight: the scale of each state in the curvature, a preconditioner.
        off: how far from optimal, in nats; zero at the optimum.
        curvature: the product of the (Gauss-Newton) Hessian with a direction.
    """

    theta: Tensor
    objective: float
    gradient: Tensor
    weight: Tensor
    off: float
    curvature: Callable[[Tensor], Tensor]


class Problem(Protocol):
    """A convex problem over distributions, stated in their log-probabilities."""

    def at(self, theta: Tensor) -> Point: ...

    """The problem at a place; theta need not be normalised."""


def minimise(problem: Problem, start: Tensor, *, tolerance: float, num_iterations: int) -> Point:
    """The best place found: `off` is at most tolerance (1 + |objective|), unless progress ended before."""
    now, stalls = problem.at(start), 0
    for _ in range(num_iterations):
        if now.off <= tolerance * (1 + abs(now.objective)):
            break
        rounding = _ROUNDING * (1 + abs(now.objective))
        then = _search(problem, now, conjugate_gradients(now, -now.gradient, accuracy=min(0.1, now.off)))
        falls = then is not None and now.objective - then.objective > rounding
        if not falls:
            # Newton's steps neglect states of little weight; those of mirror descent serve every state alike.
            other = _search(problem, now, -_preconditioned(now, now.gradient))
            then = min((each for each in (then, other) if each is not None), key=lambda each: each.off, default=None)
        if then is None:
            break
        stalls = 0 if falls or then.off < 0.5 * now.off else stalls + 1
        now = then
        if stalls == _PATIENCE:
            break
    return now


def _search(problem: Problem, now: Point, direction: Tensor) -> Point | None:
    """A place along the direction that is better, or None."""
    slope = float((now.gradient * direction).sum())
    if not slope < 0:
        return None
    step = min(1.0, _LONGEST_STEP / float(direction.abs().max()))
    theta = torch.where(now.weight > 0, now.theta, -torch.inf)
    # Where the objective changes by rounding alone, `off` decides.
    rounding = _ROUNDING * (1 + abs(now.objective))
    for _ in range(20):
        then = problem.at(theta + step * direction)
        if -step * slope > rounding and then.objective <= now.objective + 1e-4 * step * slope:
            break
        if then.off < now.off and then.objective <= now.objective + rounding:
            break
        step /= 2
    else:
        return None
    # States on their way to probability zero move by bounded steps: stretch them.
    while then.off > 0.5 * now.off and step * float(direction.abs().max()) < 50:
        step *= 2
        further = problem.at(theta + step * direction)
        if not (further.objective <= then.objective and further.off < then.off):
            break
        then = further
    return then


def _preconditioned(point: Point, vector: Tensor) -> Tensor:
    return torch.where(point.weight > 0, vector / point.weight, 0.0)


def conjugate_gradients(point: Point, right: Tensor, *, accuracy: float, num_iterations: int = 500) -> Tensor:
    """A direction d with curvature(d) = right, up to `accuracy` relative to it in the norm of the preconditioner."""
    solution = torch.zeros_like(right)
    rest = right
    scaled = _preconditioned(point, rest)
    direction = scaled
    size = start = float((rest * scaled).sum())
    for _ in range(num_iterations):
        if size <= accuracy**2 * start or size == 0:
            break
        product = point.curvature(direction)
        bend = float((direction * product).sum())
        if bend <= 1e-14 * float((direction.square() * point.weight).sum()):  # flat: nothing more to learn
            break
        solution = solution + (size / bend) * direction
        rest = rest - (size / bend) * product
        scaled = _preconditioned(point, rest)
        before, size = size, float((rest * scaled).sum())
        direction = scaled + (size / before) * direction
    return solution


# The two closest joints that are measured by differences of probabilities: a linear programme and least squares.
#
# Both look at A r, with entries r(x_P, x_C) - q(x_P | x_C) r(x_C): zero iff r has the conditionals where it has mass.
#
# LP:  min_r max |A r|.   For any y with Σ|y| <= 1 and every r: max |A r| >= y'A r >= min_x (A'y)(x), a lower bound.
# L2:  min_r |A r|².       With g = 2 A'A r: |A p|² >= |A r|² + g'(p - r) >= min_x g(x) - |A r|², a lower bound.

MAX_LINEAR_STATES = 1 << 11
_ROUNDING_OF_SQUARES = 1e-16  # eigenvalues below are zero


def misfit(family: ConditionalFamily) -> csr_matrix:
    """A: a row for every entry of every conditional, in the order of the tables; a column a state."""
    num_states = family.num_states
    states, blocks = np.arange(num_states), []
    for conditional in family.conditionals:
        sites = range(family.num_sites)
        entry, num_entries = line_numbers(family.shape, [site for site in sites if site not in conditional.sites])
        context, _ = line_numbers(family.shape, [site for site in sites if site not in conditional.observed])
        size = math.prod(family.shape[site] for site in conditional.target)
        order = [*conditional.target, *(site for site in sites if site not in conditional.target)]
        of_context = (
            np.arange(num_entries).reshape(conditional.table.shape).transpose(order).reshape(size, -1)
        )  # [V_P, V_C]
        rows = np.concatenate([entry, of_context[:, context].reshape(-1)])
        columns = np.concatenate([states, np.tile(states, size)])
        values = np.concatenate([np.ones(num_states), -conditional.table.numpy().reshape(-1)[rows[num_states:]]])
        blocks.append(csr_matrix((values, (rows, columns)), shape=(num_entries, num_states)))
    return csr_matrix(vstack(blocks))


def require_size(family: ConditionalFamily, what: str) -> None:
    """Refuses families that a solver would take hours for."""
    if family.num_states > MAX_LINEAR_STATES:
        raise FlexgenError(
            "tables",
            f"have {family.num_states} states, but {what} takes at most {MAX_LINEAR_STATES}",
            "Use kind='I' or 'AG', or blocks of fewer sites.",
        )


def least_maximum(family: ConditionalFamily) -> tuple[Floats, float, float]:
    """The distribution with the least max |A r|: distribution, objective and lower bound, both probabilities."""
    require_size(family, "the linear programme")
    matrix = misfit(family)
    count = matrix.shape[0]
    ones = csr_matrix(np.ones((count, 1)))
    found = linprog(
        np.append(np.zeros(family.num_states), 1.0),
        A_ub=vstack([hstack([matrix, -ones]), hstack([-matrix, -ones])]),
        b_ub=np.zeros(2 * count),
        A_eq=np.append(np.ones(family.num_states), 0.0)[None],
        b_eq=[1.0],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.x is None:
        raise FlexgenError("tables", f"are beyond the solver: {found.message}", "Use kind='I' or kind='AG'.")
    joint = np.maximum(found.x[:-1], 0.0)
    joint /= joint.sum()
    dual = found.ineqlin.marginals[count:] - found.ineqlin.marginals[:count]
    dual /= max(1.0, float(np.abs(dual).sum()))
    bound = max(0.0, float((matrix.T @ dual).min()))
    return joint, float(np.abs(matrix @ joint).max()), bound


def least_squares(family: ConditionalFamily) -> tuple[Floats, float, float]:
    """The distribution with the least |A r|²: distribution, objective and lower bound."""
    require_size(family, "least squares")
    matrix = misfit(family)
    hessian = (matrix.T @ matrix).toarray()
    # Over y >= 0 the minimum of |A y|² + (Σ y - 1)² has the direction of the answer: its value at the best scaling of a
    # distribution r is |A r|² / (1 + |A r|²). With
    # A'A + 11' = V diag(w) V' it is that of |diag(w)^½ V'y - diag(w)^-½ V'1|².
    values, vectors = np.linalg.eigh(hessian + 1.0)
    root = np.sqrt(np.maximum(values, _ROUNDING_OF_SQUARES))
    joint, _ = nnls(root[:, None] * vectors.T, vectors.sum(0) / root, maxiter=100 * family.num_states)
    joint /= joint.sum()
    gradient = 2 * (hessian @ joint)
    objective = float(np.square(matrix @ joint).sum())
    return joint, objective, max(0.0, float(gradient.min()) - objective)
