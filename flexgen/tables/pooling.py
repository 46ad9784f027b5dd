"""How much weight each member gets: maximum likelihood on rows that the member did not see."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pool_weights"]

_EM_STEPS = 200


def pool_weights(log_probs: Tensor, asked: Tensor, *, prior_entries: float = 100.0) -> Tensor:
    """log weights ``[M, N]`` of a linear pool, each column's shrunk towards those of the whole table.

    EM for the weights of a mixture with known components. First one set of weights for all columns, then each
    column's own with a Dirichlet prior of `prior_entries` entries centred there.

    Args:
        log_probs: ``[M, E, N]``, log p of held-out entries under each member.
        asked: bool ``[E, N]``, the entries that were asked for.
        prior_entries: strength of the prior.
    """
    num_members, _, num_columns = log_probs.shape
    if num_members == 1:
        return log_probs.new_zeros(1, num_columns)
    weights = log_probs.new_full((num_members,), 1.0 / num_members)
    together = log_probs[:, asked]  # [M, number asked]
    for _ in range(_EM_STEPS):
        shares = (together + weights.log()[:, None]).softmax(0).sum(1)
        weights = (shares + 0.5) / (shares.sum() + 0.5 * num_members)
    columns = []
    for j in range(num_columns):
        own, mine = log_probs[:, asked[:, j], j], weights
        for _ in range(_EM_STEPS):
            shares = (own + mine.log()[:, None]).softmax(0).sum(1)
            mine = (shares + prior_entries * weights) / (shares.sum() + prior_entries)
        columns.append(mine)
    return torch.stack(columns, 1).log()
