"""What rounding alone makes of a log-probability, and so of a statistic: the floating-point floor.

A statistic is a sum of log-probabilities L_k with coefficients c_k = +1 or -1. If each carries an error of at most e_k,
the statistic carries at most the sum of the e_k. That is its floor; no compatible network exceeds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexgen.conditional import Conditional, HasLogProb, HasMarginals
from flexgen.query import Query

__all__ = ["Rounding"]

_OPERATIONS = 16  # units in the last place that a log-probability may be off by


@dataclass(frozen=True)
class Rounding:
    """An answer L in nats is off by at most ``relative * (1 + |L|)``."""

    relative: float

    def of(self, log_probs: Tensor) -> Tensor:
        return self.relative * (1.0 + log_probs.abs())

    @classmethod
    def of_conditional(cls, conditional: Conditional, x: Tensor, observed: Tensor) -> Rounding:
        """From the precision in which the conditional computes."""
        return cls(_OPERATIONS * _unit(conditional, x, observed))


def _unit(conditional: Conditional, x: Tensor, observed: Tensor) -> float:
    dtype = torch.float64
    if isinstance(conditional, nn.Module):
        kinds = [p.dtype for p in conditional.parameters() if p.is_floating_point()]
        dtype = max(kinds, key=lambda kind: torch.finfo(kind).eps, default=dtype)
    if len(x):
        query = Query.complete(0, num_sites=x.shape[1], device=x.device).expand(1)
        query = Query(query.target, query.observed & observed[:1])
        row = x[:1].nan_to_num(0.0)
        with torch.no_grad():
            if isinstance(conditional, HasMarginals):
                answer = conditional.marginals(row, query).log_prob(row)
            else:
                assert isinstance(conditional, HasLogProb)
                answer = conditional.log_prob(row, query)
        dtype = max(dtype, answer.dtype, key=lambda kind: torch.finfo(kind).eps)
    return torch.finfo(dtype).eps / 2
