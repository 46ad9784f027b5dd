"""What refutes compatibility, told in the users' category labels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from flexgen.compatibility.exact.family import ConditionalFamily, ConditionalLaw

__all__ = ["Step", "Violation", "loop_violation", "support_violation"]

_SHOWN_STEPS = 12


@dataclass(frozen=True)
class Step:
    """One move round a loop: `forward` is the probability of moving, `backward` of moving back.

    Args:
        forward: p(what the move leads to | what stays), and `forward_question` says which entry that is.
        backward: p(what it came from | what stays), and `backward_question` likewise.
    """

    forward_question: str
    forward: float
    backward_question: str
    backward: float

    def __str__(self) -> str:
        return f"{self.forward_question} = {self.forward:.6g}, back {self.backward_question} = {self.backward:.6g}"


@dataclass(frozen=True)
class Violation:
    """The worst evidence that no joint has the conditionals.

    Args:
        kind: ``"loop"``: products of conditionals round a loop of states differ by direction, which for a joint they
            cannot; ``"support"``: one conditional gives a state probability zero and another does not; ``"chain"``: two
            routes of the chain rule to one probability disagree; ``"bound"``: a linear programme shows that no law
            comes nearer than a distance.
        gap: nats, |log of the products' ratio|; infinite where one of them is zero, nan for ``"bound"``.
        states: the states passed, each a tuple of category labels, one a site (None where a site plays no part).
        steps: the moves, for a loop.
        explanation: one sentence.
    """

    kind: str
    gap: float
    states: tuple[tuple[Hashable, ...], ...]
    steps: tuple[Step, ...]
    explanation: str

    @property
    def ratio(self) -> float:
        """The smaller product over the larger, at most 1: exp(-gap)."""
        return math.exp(-self.gap)

    def __str__(self) -> str:
        shown = [f"  {step}" for step in self.steps[:_SHOWN_STEPS]]
        if len(self.steps) > _SHOWN_STEPS:
            shown.append(f"  .. and {len(self.steps) - _SHOWN_STEPS} more steps")
        return "\n".join([self.explanation, *shown])


def loop_violation(family: ConditionalFamily, states: Sequence[int], laws: Sequence[ConditionalLaw]) -> Violation:
    """A loop of states s_0, s_1, .., s_0, the k-th move (s_k to s_{k+1}) made by the k-th of `laws`.

    It is told in the direction in which the chain prefers to run.
    """
    codes = [tuple(int(c) for c in np.unravel_index(state, family.shape)) for state in states]
    involved = frozenset[int]().union(*(law.sites for law in laws))
    held = involved - frozenset[int]().union(*(law.target for law in laws))
    steps = []
    for k, law in enumerate(laws):
        here, there = codes[k], codes[(k + 1) % len(codes)]
        forth, back = (family.question(law, code, held=held) for code in (there, here))
        steps.append(Step(forth, law.at(there), back, law.at(here)))
    log_ratio = math.fsum(math.log(step.forward) - math.log(step.backward) for step in steps)
    if log_ratio < 0:
        steps = [Step(s.backward_question, s.backward, s.forward_question, s.forward) for s in reversed(steps)]
        codes = [codes[0], *reversed(codes[1:])]
    gap = abs(log_ratio)
    given = f"given {family.event(sorted(held), codes[0])}, " if held else ""
    factor = f"{math.exp(gap):.6g}" if gap < 500 else f"exp({gap:.6g})"
    explanation = (
        f"{given}round a loop of {len(codes)} states the conditionals multiply to {factor} times as much one way as "
        f"the other ({gap:.6g} nats); for a joint both ways are equal:"
    )
    labelled = tuple(family.labelled(code, involved) for code in codes)
    return Violation("loop", gap, labelled, tuple(steps), explanation)


def support_violation(
    family: ConditionalFamily, state: int, positive: ConditionalLaw, zero: ConditionalLaw
) -> Violation:
    """A state that one conditional moves to and another never does: an edge without a reverse."""
    code = tuple(int(c) for c in np.unravel_index(state, family.shape))
    return Violation(
        "support",
        math.inf,
        (family.labelled(code, positive.sites | zero.sites),),
        (),
        f"{family.question(positive, code)} = {positive.at(code):.6g}, but {family.question(zero, code)} = 0: "
        "a move without a way back.",
    )
