"""One-site answers in latent space: what every member of a table model returns, and how members are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["LatentMarginals", "concatenated", "pool"]


@dataclass(frozen=True, eq=False)
class LatentMarginals:
    """A mixture of normals for the latent of each numeric column, probabilities for each categorical column.

    Args:
        log_weights, means, sds: ``[B, S, K]``, S numeric columns, K components; weights normalised over K.
        log_probs: ``[B, J, C]``, J categorical columns; normalised over C, -inf beyond a column's own categories.
    """

    log_weights: Tensor
    means: Tensor
    sds: Tensor
    log_probs: Tensor

    def double(self) -> LatentMarginals:
        return LatentMarginals(
            self.log_weights.double(), self.means.double(), self.sds.double(), self.log_probs.double()
        )


def concatenated(parts: Sequence[LatentMarginals]) -> LatentMarginals:
    """Answers to some rows, and to some more, as one."""
    if len(parts) == 1:
        return parts[0]
    return LatentMarginals(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(LatentMarginals)))


def pool(members: Sequence[LatentMarginals], log_weights: tuple[Tensor, Tensor]) -> LatentMarginals:
    """The linear opinion pool: the mixture of the members' answers, column by column.

    Args:
        members: M answers, float64.
        log_weights: ``[M, S]`` for numeric and ``[M, J]`` for categorical columns, normalised over M.
    """
    numeric, categorical = log_weights
    return LatentMarginals(
        torch.cat([m.log_weights + w[:, None] for m, w in zip(members, numeric, strict=True)], dim=-1),
        torch.cat([m.means for m in members], dim=-1),
        torch.cat([m.sds for m in members], dim=-1),
        torch.stack([m.log_probs + w[:, None] for m, w in zip(members, categorical, strict=True)]).logsumexp(0),
    )
