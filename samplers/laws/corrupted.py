"""Corrupted input: targets that a network is shown all the same, or falsely."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from flexgen import rng
from flexgen.checks import number
from flexgen.errors import FlexgenError
from flexgen.laws import MaskDraw
from flexgen.rng import Randomness
from samplers.laws.base import Law, as_law

__all__ = ["Corrupted"]


@dataclass(frozen=True)
class Corrupted:
    """The law, whose targets are at times shown to the network with a random value, or as they are (BERT's 80/10/10).

    Such a draw is no query alone: a kept token is *visible but scored*. So its query is the law's, and the draw says
    besides which targets are `kept` and which are `replaced`; `MaskDraw.shown` turns them into what a network is fed.
    The loss over them is BERT's, not a likelihood: the answer of a kept target is in its input. This goes outermost.

    Args:
        law: the law over queries.
        replace: probability that a target is shown with a random value.
        keep: probability that it is shown as it is. The others, 1 - replace - keep, are hidden.
    """

    law: Law
    replace: float = 0.1
    keep: float = 0.1

    def __post_init__(self) -> None:
        as_law("law", self.law)
        number("replace", self.replace, 0.0, 1.0)
        number("keep", self.keep, 0.0, 1.0)
        if self.replace + self.keep > 1 + 1e-9:
            raise FlexgenError("keep", f"is {self.keep} beside replace={self.replace}", "Let them sum to at most 1.")

    def draw(
        self, present: Tensor, *, generator: Randomness, x: Tensor | None = None, groups: Tensor | None = None
    ) -> MaskDraw:
        """As `Law.draw`, with the targets `kept` and `replaced`."""
        drawn = self.law.draw(present, generator=generator, x=x, groups=groups)
        u, target = rng.uniform(present.shape, generator=generator), drawn.query.target
        replaced = target & (u < self.replace)
        kept = target & ~replaced & (u < self.replace + self.keep)
        return replace(drawn, kept=kept, replaced=replaced)
