"""What training needs of a law over queries; the laws themselves live in ``samplers.laws``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flexgen.checks import instance, kind_of, real_tensor
from flexgen.errors import FlexgenError
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

    def __post_init__(self) -> None:
        instance("query", self.query, Query, "Pass a flexgen.Query, a row an item.")
        for name in ("weight", "kept", "replaced"):
            given = getattr(self, name)
            if given is None and name != "weight":
                continue
            shape = tuple(self.query.target.shape[: self.query.target.ndim - 1 if name == "weight" else 2])
            known = (shape, (), (1,)) if name == "weight" else (shape,)
            is_tensor = isinstance(given, Tensor) and not given.is_complex()
            one_query = is_tensor and name == "weight" and not shape and given.ndim == 1  # of all rows of the data
            if not is_tensor or (tuple(given.shape) not in known and not one_query):
                told = f"has shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"is {kind_of(given)}"
                raise FlexgenError(name, told, f"Pass a tensor of shape {shape}, as the query has it.")
            if name != "weight" and given.dtype != torch.bool:
                raise FlexgenError(name, f"is {kind_of(given)}", "Pass True and False.")

    def shown(self, x: Tensor, random_values: Tensor) -> tuple[Tensor, Tensor]:
        """A network's input: values like `x`, and bool ``[B, N]``, the sites at which they may be read.

        Args:
            x: ``[B, N, ...]``, the data.
            random_values: like x, the values of the sites to be replaced.
        """
        for name, given in (("x", x), ("random_values", random_values)):
            real_tensor(name, given, "[B, N, ...]")
            if given.shape[:2] != self.query.observed.shape or (name == "random_values" and given.shape != x.shape):
                fix = f"Pass the rows of the query, {tuple(self.query.observed.shape)}."
                raise FlexgenError(name, f"has shape {tuple(given.shape)}", fix)
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
