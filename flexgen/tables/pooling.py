"""How much weight each member gets: maximum likelihood on rows that the member did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["pool_weights"]

_EM_STEPS = 200


def pool_weights(
    log_probs: Tensor, asked: Tensor, *, kinds: Sequence[Tensor] | None = None, prior_entries: float = 100.0
) -> Tensor:
    """log weights ``[M, N]`` of a linear pool, each column's shrunk towards those of its kind of column.

    EM for the weights of a mixture with known components. First one set of weights for all columns of a kind, then each
    column's own with a Dirichlet prior of `prior_entries` entries centred there.

    Args:
        log_probs: ``[M, E, N]``, log p of held-out entries under each member.
        asked: bool ``[E, N]``, the entries that were asked for.
        kinds: int64 column numbers of each kind; default: all columns are of one.
        prior_entries: strength of the prior.
    """
    num_members, _, num_columns = log_probs.shape
    if kinds is None:
        kinds = [torch.arange(num_columns)]
    log_weights = log_probs.new_full((num_members, num_columns), -math.log(num_members))
    for columns in kinds:
        chosen = log_probs[:, :, columns][:, asked[:, columns]]  # [M, number asked]
        centre = _mixture_weights(chosen, log_probs.new_full((num_members,), 0.5))
        for j in columns.tolist():
            own = log_probs[:, asked[:, j], j]
            log_weights[:, j] = _mixture_weights(own, prior_entries * centre).log()
    return log_weights


def _mixture_weights(log_probs: Tensor, prior_counts: Tensor) -> Tensor:
    """EM for mixture weights ``[M]`` under ``[M, n]`` component log-probabilities and Dirichlet pseudo-counts."""
    weights = torch.full_like(prior_counts, 1.0 / len(prior_counts))
    for _ in range(_EM_STEPS):
        counts = (log_probs + weights.log()[:, None]).softmax(0).sum(1) + prior_counts
        weights = counts / counts.sum()
    return weights
