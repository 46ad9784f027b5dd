"""What training minimises. An objective is any callable ``objective(network, batch, generator) -> loss [B]``.

It draws whatever it needs (queries, noise, timesteps) from the generator it is given, which holds one stream a row:
the loss of a row depends on its key, not on the rows beside it or on how a batch is split over processes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from flexgen.conditional import HasMarginals
from flexgen.errors import DataError
from flexgen.laws import MaskDraw, MaskLaw
from flexgen.rng import Randomness
from flexgen.training.batches import Batch

__all__ = ["MaskedLikelihood", "Objective", "masked_likelihood"]


class Objective(Protocol):
    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        """The loss of each row, ``[B]``, differentiable in the network's weights; training minimises its mean."""
        ...


def masked_likelihood(network: HasMarginals, x: Tensor, draw: MaskDraw) -> Tensor:
    """``weight * sum over targets i of -log p(x_i | x_C)``, in nats, ``[B]``.

    With a uniform order law and its weights the mean is an upper bound, tight for a compatible network, on the
    negative log-likelihood of a row. Places in neither set are zeroed before the network sees them, so that NaN where
    data are missing reaches neither the loss nor its gradient.

    Args:
        network: one-site answers.
        x: ``[B, N, *site]``.
        draw: the queries and their weights.
    """
    query = draw.query.expand(len(x))
    read = query.target | query.observed  # [B, N]
    x = torch.where(read.view(*read.shape, *[1] * (x.ndim - 2)), x, torch.zeros_like(x))  # [B, N, *site]
    log_probs = network.marginals(x, query).log_prob(x)  # [B, N]
    return draw.weight * torch.where(query.target, -log_probs, 0.0).sum(-1)


class MaskedLikelihood:
    """`masked_likelihood` under a law: queries are drawn afresh each step.

    Args:
        law: draws the queries and their weights; the laws of ``samplers.laws`` all serve.

    A batch is x itself, in which NaN marks what is missing, or a mapping with ``"x"`` and, bool ``[B, N]``,
    ``"present"``.
    """

    def __init__(self, law: MaskLaw) -> None:
        self.law = law

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        x, present = _unpack(batch)
        draw = self.law.draw(present, generator=generator, x=x)
        return masked_likelihood(network, x, draw)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"MaskedLikelihood({self.law!r})"


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
