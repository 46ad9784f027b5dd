"""What training needs of a law over queries; the laws themselves live in ``samplers.laws``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flexgen.query import Query
from flexgen.rng import Randomness

__all__ = ["MaskDraw", "MaskLaw", "MovingLaw"]


@dataclass(frozen=True, eq=False)
class MaskDraw:
    """A batch of queries drawn from a law.

    Args:
        query: the queries, ``[B, N]``.
        weight: ``[B]``, the likelihood factor of each row, such that the loss of every law is
            ``sum(weight * -log p(x_P | x_C))`` with the marginals of the target summed.
        kept: bool ``[B, N]`` or None: targets that the network is shown all the same (a tenth of BERT's).
        replaced: bool ``[B, N]`` or None: targets that it is shown with a random value instead (another tenth).

    The last two are for laws that corrupt what the network sees. Such a loss is no likelihood: a kept target is
    visible but scored. A loop that ignores both trains on the queries alone.
    """

    query: Query
    weight: Tensor
    kept: Tensor | None = None
    replaced: Tensor | None = None

    def shown(self, x: Tensor, random_values: Tensor) -> tuple[Tensor, Tensor]:
        """A network's input: values like `x`, and bool ``[B, N]``, the sites at which they may be read.

        Args:
            x: ``[B, N, ...]``, the data.
            random_values: like x, the values of the sites to be replaced.
        """
        visible = self.query.observed
        if self.kept is not None:
            visible = visible | self.kept
        if self.replaced is None:
            return x, visible
        event = (1,) * (x.ndim - 2)
        values = torch.where(self.replaced.view(*self.replaced.shape, *event), random_values, x)
        return values, visible | self.replaced


@runtime_checkable
class MaskLaw(Protocol):
    """A distribution over queries."""

    def draw(self, present: Tensor, *, generator: Randomness, x: Tensor | None = None) -> MaskDraw:
        """One query a row.

        Args:
            present: bool ``[B, N]``, the entries that the data hold; the others are neither observed nor target.
            x: ``[B, N, ...]``, the data, for laws that depend on values (missing at random, or not at random).
        """
        ...


class MovingLaw(Protocol):
    """A law that changes while training goes on."""

    def at(self, progress: float) -> MaskLaw:
        """The law when so much of training is done, from 0 to 1; a pure function, so that runs can be resumed."""
        ...
