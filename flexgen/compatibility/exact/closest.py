"""The joint that comes closest to conditionals that have none, by four measures, with a proof of how close."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch

from flexgen.compatibility.exact.closest_entropy import ArnoldGokhale, Information
from flexgen.compatibility.exact.closest_linear import least_maximum, least_squares
from flexgen.compatibility.exact.family import ConditionalFamily, as_family
from flexgen.compatibility.exact.newton import minimise
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, JointTable

__all__ = ["ClosestJoint", "closest_joint", "product_of_conditionals"]

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
        joint: the law.
        objective: its distance from the conditionals, recomputed from the law.
        bound: a lower bound on the distance of every joint, from duality (``"AG"``: for tables that differ from those
            given by rounding, 1e-11 at most; 0 where none was found). For ``"I"`` it is the *certificate*: under
            whatever law p the data have, Σ_i E_p KL(p_i || q_i) is at least this many nats.
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
    """The law that comes closest to having the given conditionals.

    Args:
        tables: all complete conditionals, or any family (``"AG"``: complete conditionals only).
        kind: how distance is measured, summed over the conditionals q_i = q(x_i | rest) (likewise for p(x_P | x_C)):

            * ``"I"``: KL(r || r_{-i} q_i), nats. Convex. Its optimum is a certificate: a lower bound on the unary
              excess risk Σ_i E_p KL(p_i || q_i) of the conditionals under any law p. Infinite unless some state has
              positive probability from all conditionals. Up to 2^16 states.
            * ``"AG"``: KL(q_i(. | rest) || r(. | rest)), nats, every context alike (Arnold & Gokhale 1998). Up to 2^16.
            * ``"LP"``: the largest |r(x) - r_{-i}(x_{-i}) q_i|, a probability; zero iff weakly compatible. Up to 2^11.
            * ``"L2"``: the sum of the squares of these differences. Up to 2^11 states.

    Raises:
        FlexgenError: an unknown kind, too many states, ``"AG"`` for conditionals that marginalise sites out, or ``"I"``
            where no law has a finite distance.

    Where several joints are equally close (an incompatible family can split into parts that it never compares), each
    part has the same weight.
    """
    family = as_family(tables)
    if not isinstance(kind, str) or kind not in _MEASURES:
        raise FlexgenError("kind", f"is {kind!r}", "Choose 'I', 'AG', 'LP' or 'L2'.")
    if kind in ("LP", "L2"):
        solved, objective, bound = least_maximum(family) if kind == "LP" else least_squares(family)
        law = torch.from_numpy(solved)
    else:
        if kind == "AG" and not family.is_complete:
            raise FlexgenError(
                "tables", "marginalise sites out, where 'AG' is not convex", "Use kind='I', 'LP' or 'L2'."
            )
        problem = Information(family) if kind == "I" else ArnoldGokhale(family)
        if not problem.support.any():
            raise FlexgenError(
                "tables",
                "leave no state that all conditionals give mass: every law is infinitely far by kind 'I'",
                "Use kind='AG', 'LP' or 'L2'.",
            )
        point = minimise(problem, problem.start(), tolerance=1e-12, num_iterations=300)
        law, objective, bound = problem.optimum(point)
    joint = JointTable.from_unnormalised(law.view(family.shape))
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
    for law in family.conditionals:
        total = total + law.table.log()
    if not torch.isfinite(total).any():
        raise FlexgenError("tables", "have a product that is zero everywhere", "Use closest_joint(tables, kind='AG').")
    return JointTable.from_unnormalised((total - total.max()).exp())
