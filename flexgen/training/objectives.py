"""What training minimises. An objective is any callable ``objective(network, batch, generator) -> loss [B]``.

It draws whatever it needs (queries, noise, timesteps) from the generator it is given, which holds one stream a row:
the loss of a row depends on its key, not on the rows beside it or on how a batch is split over processes.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.answers import AnyQuery, answers_of, check_query
from flexgen.checks import kind_of
from flexgen.conditional import HasMarginals, check_marginals, marginals_at, take_at, takes_sites, target_sites
from flexgen.errors import DataError, UnsupportedQueryError
from flexgen.laws import MaskDraw, MaskLaw
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Space
from flexgen.training.batches import Batch

_CHECKED_ROWS = 256  # whose queries are looked at before training begins

__all__ = ["MaskedLikelihood", "MovingObjective", "Objective", "masked_likelihood"]


class Objective(Protocol):
    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        """The loss of each row, ``[B]``, differentiable in the network's weights; training minimises its mean."""
        ...


@runtime_checkable
class MovingObjective(Objective, Protocol):
    """An objective that changes while training goes on; called by itself, as for validation, it is that of the end."""

    def at(self, progress: float) -> Objective:
        """The objective when so much of training is done, from 0 to 1: a pure function, so that runs can be resumed."""
        ...


def masked_likelihood(
    network: HasMarginals, x: Tensor, draw: MaskDraw, *, random_values: Tensor | None = None
) -> Tensor:
    """``weight * sum over targets i of -log p(x_i | x_C)``, in nats, ``[B]``.

    With the queries and weights of a uniform order the mean is an upper bound on a row's negative log-likelihood,
    tight where the network's answers are compatible. Places in neither set are zeroed before the network sees them,
    so that NaN where data are missing reaches neither the loss nor its gradient.

    Args:
        network: one-site answers. A law that shows some targets all the same (BERT's) needs a network whose answers
            have a meaning at the sites it sees, too; the loss is then no likelihood.
        x: ``[B, N, *site]``.
        draw: the queries and their weights.
        random_values: like x, for a draw that replaces values.
    """
    query = draw.query.expand(len(x))
    read = query.target | query.observed  # [B, N]
    x = torch.where(read.view(*read.shape, *[1] * (x.ndim - 2)), x, torch.zeros_like(x))  # [B, N, *site]
    shown, query_shown = x, query
    if draw.kept is not None or draw.replaced is not None:
        shown, visible = draw.shown(x, x if random_values is None else random_values)
        query_shown = Query(query.target & ~visible, visible)
    if takes_sites(network):
        sites, is_target = target_sites(query)  # [B, S]
        log_probs = marginals_at(network, shown, query_shown, sites).log_prob(take_at(x, sites))
        return draw.weight * torch.where(is_target, -log_probs, 0.0).sum(-1)
    marginals = network.marginals(shown, query_shown)
    check_marginals(marginals, x, network)
    log_probs = marginals.log_prob(x)  # [B, N]
    return draw.weight * torch.where(query.target, -log_probs, 0.0).sum(-1)


class MaskedLikelihood:
    """`masked_likelihood` under a law: queries are drawn afresh each step.

    Args:
        law: draws the queries and their weights; the laws of ``samplers.laws`` all serve.

    A batch is x itself, in which NaN marks what is missing, or a mapping with ``"x"`` and, bool ``[B, N]``,
    ``"present"``. A law that replaces values draws them uniformly from each site's categories. Where the network has a
    `space`, `train` lets `check` look at the data before the first step: all of them in memory, else a batch.
    """

    def __init__(self, law: MaskLaw) -> None:
        self.law = law

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        x, present = _unpack(batch)
        draw = self.law.draw(present, generator=generator, x=x)
        values = None if draw.replaced is None else _random_categories(network.space, x, generator)  # type: ignore[arg-type]
        return masked_likelihood(network, x, draw, random_values=values)  # type: ignore[arg-type]

    def check(self, network: nn.Module, batch: Batch, *, argument: str = "data") -> None:
        """Raises unless the network has marginals, and what the batch holds belongs to its space, if it has one.

        Raises:
            UnsupportedQueryError: a network without marginals, or a law whose queries it declares not to answer.
            SpaceError: a value outside the space, such as a category that does not exist, or a row of another length.
        """
        if not hasattr(network, "marginals"):
            raise UnsupportedQueryError(
                "network",
                f"is {kind_of(network)}, which has no marginals",
                "Give it marginals(x, query); flexgen.conditional.MarginalConditional is the base for that.",
            )
        x, present = _unpack(batch)
        space = getattr(network, "space", None)
        if isinstance(space, Space):
            space.validate(x, where=present, argument=argument)
        if not isinstance(answers_of(network), AnyQuery):
            some, there = x[:_CHECKED_ROWS], present[:_CHECKED_ROWS]
            draw = self.law.draw(there, generator=rng.Streams(0, len(some), device=x.device), x=some)
            check_query(network, draw.query, fix="Train it under a law that draws such queries.")

    def __repr__(self) -> str:
        return f"MaskedLikelihood({self.law!r})"


def _random_categories(space: Space, x: Tensor, generator: Randomness) -> Tensor:
    """Codes uniform over each site's categories, like x."""
    if not space.is_finite:
        raise UnsupportedQueryError(
            "law", f"replaces values, but {space} is not categorical throughout", "Use a law without replacement."
        )
    num_categories = torch.tensor(space.num_categories, device=x.device)
    return (rng.uniform(x.shape, generator=generator) * num_categories).floor().to(x.dtype)


def _unpack(batch: Batch) -> tuple[Tensor, Tensor]:
    """x ``[B, N, *site]`` and which entries it holds, bool ``[B, N]``."""
    present = None
    if isinstance(batch, Tensor):
        x = batch
    elif "x" in batch:
        x, present = batch["x"], batch.get("present")
    else:
        raise DataError("data", f"yields batches of {sorted(batch)}", "A masked objective needs 'x' among them.")
    if present is None:
        present = ~x.isnan() if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)
        present = present.flatten(2).all(-1) if x.ndim > 2 else present  # [B, N]: an event is there in full or not
    return x, present
