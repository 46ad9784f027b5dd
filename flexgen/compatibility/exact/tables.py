"""Whether conditionals over finite sites have a joint: an exact verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexgen.compatibility.exact.cycles import check_graph, worst_rectangle
from flexgen.compatibility.exact.family import ConditionalFamily, Labels, Violation, as_family, check_tolerance
from flexgen.compatibility.exact.programmes import check_chain, check_linear, find_chain
from flexgen.exact import ConditionalTables, JointTable

__all__ = ["TableCheck", "check_tables"]

Verdict = Literal["compatible", "weakly compatible", "incompatible"]


@dataclass(frozen=True, eq=False)
class TableCheck:
    """An exact answer to: does a joint have these conditionals?

    Args:
        verdict: ``"compatible"``: a joint has all of them. ``"weakly compatible"``: a joint has them wherever it has
            mass, but no joint gives mass to all that the conditionals observe. ``"incompatible"``: neither.
        joint: such a joint; where there are several, the equal mixture of the extreme ones. None if incompatible.
        unique: whether it is the only one; None if incompatible.
        violation: the worst evidence against compatibility; None if compatible.
        log_odds_gap: nats; the largest |difference of log odds ratios| that two conditionals over the same sites give
            one rectangle of positive entries, 0 where there is no such rectangle. Decides compatibility of positive
            complete conditionals of single sites; with zeros, longer loops decide too.
        joints: int64 ``[V_0, .., V_{N-1}]``, for complete conditionals: the number of the extreme joint that a state
            belongs to, -1 where none. Any mixture of them is a joint. None for other families.
        tolerance: nats, what counted as rounding.
        method: ``"graph"``, ``"chain"`` or ``"linear programme"``.
    """

    verdict: Verdict
    joint: JointTable | None
    unique: bool | None
    violation: Violation | None
    log_odds_gap: float
    joints: Tensor | None
    tolerance: float
    method: str

    @property
    def is_compatible(self) -> bool:
        """Whether the verdict is ``"compatible"``."""
        return self.verdict == "compatible"

    def __str__(self) -> str:
        number = {True: "one joint", False: "more than one joint", None: "no joint"}[self.unique]
        lines = [f"{self.verdict}: {number}; {self._worst()}"]
        return "\n".join(lines if self.violation is None else [*lines, str(self.violation)])

    __repr__ = __str__

    def _worst(self) -> str:
        """The gap that decided: of a rectangle, or, where zeros leave none that is worse, what the violation says."""
        found = self.violation
        if found is not None and found.gap > self.log_odds_gap * (1 + 1e-9):
            if found.kind == "support":
                return "a possible move that another conditional rules out"
            if found.kind == "loop":
                return f"gap of {found.gap:.6g} nats round a loop of {len(found.states)} states"
        return f"largest log-odds gap {self.log_odds_gap:.6g} nats"


def check_tables(
    tables: ConditionalTables | ConditionalFamily, *, labels: Labels | None = None, tolerance: float = 1e-6
) -> TableCheck:
    """Decides exactly whether conditionals over finite sites have a joint.

    Args:
        tables: all complete conditionals, or any family of p(x_P | x_C); at most 2^16 states.
        labels: the users' words for sites and categories, as in `ConditionalFamily` (which carries its own).
        tolerance: nats; loops of log ratios that sum to no more than this count as rounding, or, of a family that
            marginalises sites out, differences of a joint's log conditionals from those stated (of linear programmes
            1e-8 at least, their accuracy). Tables rounded to d digits carry errors of about 10^-d over their smallest
            positive entry.

    Raises:
        FlexgenError: more than 2^16 states, a family that needs a linear programme that is too large, or a tolerance
            that is no finite number of zero or more.

    Complete conditionals are decided on the graph of their states (`flexgen.compatibility.exact.cycles`), zeros
    included: O(S) states and edges, no loop over them. Families that marginalise sites out are decided by the chain
    rule where some of them chain to a joint, else by linear programmes (`flexgen.compatibility.exact.programmes`): in
    exact arithmetic where entries are fractions, of up to 64 states; within the tolerance otherwise, up to 2^11 states.
    """
    family = as_family(tables, labels)
    check_tolerance(tolerance)
    if not family.is_complete:
        return _check_general(family, tolerance)
    found = check_graph(family, tolerance)
    verdict: Verdict = "compatible" if found.covers else "weakly compatible" if found.num_joints else "incompatible"
    return TableCheck(
        verdict,
        None if found.joint is None else JointTable.from_unnormalised(torch.from_numpy(found.joint).view(family.shape)),
        found.num_joints == 1 if found.num_joints else None,
        found.violation,
        found.rectangle.gap,
        torch.from_numpy(found.joints).view(family.shape),
        tolerance,
        "graph",
    )


def _check_general(family: ConditionalFamily, tolerance: float) -> TableCheck:
    """The verdict on a family that marginalises sites out."""
    chain = find_chain(family)
    found = check_linear(family, tolerance) if chain is None else check_chain(family, chain, tolerance)
    verdict: Verdict = "incompatible"
    if found.joint is not None:
        verdict = "compatible" if found.covers else "weakly compatible"
    return TableCheck(
        verdict,
        None if found.joint is None else JointTable.from_unnormalised(found.joint),
        None if found.joint is None else found.unique,
        found.violation,
        worst_rectangle(family).gap,
        None,
        tolerance,
        "linear programme" if chain is None else "chain",
    )
