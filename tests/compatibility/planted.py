"""A conditional with an incompatibility of known size: what the diagnostics must recover."""

from __future__ import annotations

import torch
from torch import Tensor

from flexgen.conditional import CategoricalMarginals
from flexgen.exact import JointTable
from flexgen.query import Query

__all__ = ["Counted", "Planted"]


class Planted:
    """Binary sites; p(x_i | x_C) of a joint, times exp(theta (1 + tilt d) s_i sum of s_j over observed j < i).

    s is +1 or -1, and d a weighted mean of s over the last sites, the dials, which are left alone. The log cross-ratio
    of p(x_i | rest) with j < i changes by 4 theta (1 + tilt d), that of p(x_j | rest) not at all: every gap of two
    sites that are no dials is that number.
    """

    def __init__(self, law: JointTable, theta: float, tilt: float = 0.0, num_dials: int = 1) -> None:
        self.law, self.theta, self.tilt, self.space = law, theta, tilt, law.space
        self.num_dials = num_dials
        share = 2.0 ** -torch.arange(num_dials, dtype=torch.float64)
        self.share = share / share.sum()

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        query = query.expand(len(x))
        base = self.law.marginals(x, query).log_probs
        signs = torch.where(query.observed, 2.0 * x.double() - 1.0, 0.0)  # [B, N]
        pull = signs.cumsum(-1) - signs  # sum over observed j < i
        pull[:, -self.num_dials :] = 0.0
        strength = self.theta * (1.0 + self.tilt * signs[:, -self.num_dials :] @ self.share)[:, None]
        own = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        return CategoricalMarginals((base + (strength * pull)[..., None] * own).log_softmax(-1))

    def gap(self, x: Tensor) -> Tensor:
        """|gap| of every pair of sites that are no dials, in the context of each row, ``[B]``."""
        return 4 * self.theta * (1 + self.tilt * (2.0 * x[:, -self.num_dials :].double() - 1.0) @ self.share)


class Counted:
    """A conditional that remembers every row it was shown, as text: the observed values by site."""

    def __init__(self, conditional: object) -> None:
        self.conditional, self.space = conditional, conditional.space  # type: ignore[attr-defined]
        self.rows: list[tuple[object, ...]] = []
        self.batches: list[int] = []

    def marginals(self, x: Tensor, query: Query) -> object:
        observed = query.expand(len(x)).observed
        for row, known in zip(x.tolist(), observed.tolist(), strict=True):
            self.rows.append(tuple(v if o else None for v, o in zip(row, known, strict=True)))
        self.batches.append(len(x))
        return self.conditional.marginals(x, query)  # type: ignore[attr-defined]
