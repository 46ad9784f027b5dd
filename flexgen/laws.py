"""What training needs of a law over queries; the laws themselves live in ``samplers.laws``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from flexgen.query import Query
from flexgen.rng import Randomness

__all__ = ["MaskDraw", "MaskLaw"]


@dataclass(frozen=True, eq=False)
class MaskDraw:
    """A batch of queries drawn from a law.

    Args:
        query: the queries, ``[B, N]``.
        weight: ``[B]``, the likelihood factor of each row, such that the loss of every law is
            ``sum(weight * -log p(x_P | x_C))`` with the marginals of the target summed.
    """

    query: Query
    weight: Tensor


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
