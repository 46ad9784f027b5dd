"""Held-out rows with fixed questions: where candidates are compared and members weighed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.laws import MaskLaw
from flexgen.tables.features import FeatureLayout
from flexgen.tables.latents import LatentMarginals
from flexgen.tables.maps import cell_log_prob
from flexgen.tables.objective import LatentRows

__all__ = ["Exam", "Fold", "cut_folds"]

_SMALL_FOLDS = 5
_HELD_OUT_SHARE = 0.05  # of a large table, a fold
_DRAWS = 4  # questions a held-out row
_MOST_ROWS = 2000  # held-out rows of a fold that are asked
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Fold:
    """Rows to learn from and rows held out, int64."""

    learn: Tensor
    held_out: Tensor


def cut_folds(num_rows: int, *, is_small: bool, num_folds: int, seed: int) -> list[Fold]:
    """Five folds that cover all rows of a small table; `num_folds` disjoint small held-out parts of a large one."""
    order = torch.randperm(num_rows, generator=rng.stream(seed, "folds"))
    if is_small:
        parts = order.tensor_split(_SMALL_FOLDS)
    else:
        size = max(1, int(_HELD_OUT_SHARE * num_rows))
        parts = order[: size * num_folds].split(size)
    everyone = torch.ones(num_rows, dtype=torch.bool)
    folds = []
    for part in parts:
        learn = everyone.clone()
        learn[part] = False
        folds.append(Fold(learn.nonzero()[:, 0], part.sort().values))
    return folds


@dataclass(frozen=True)
class Exam:
    """The held-out rows of a fold, each with a few questions.

    Args:
        rows: repeated, once a question.
        observed, target: bool ``[E, N]``.
    """

    rows: LatentRows
    observed: Tensor
    target: Tensor

    @classmethod
    def of(cls, rows: LatentRows, law: MaskLaw, *, seed: int, fold: int) -> Exam:
        rows = rows[torch.arange(min(len(rows), _MOST_ROWS)).repeat(_DRAWS)]
        streams = rng.Streams(rng.key(seed, "exam", fold), len(rows))
        draw = law.draw(rows.present, generator=streams, x=rows.x)
        return cls(rows, draw.query.observed, draw.query.target)

    @torch.no_grad()
    def log_probs(self, layout: FeatureLayout, members: Sequence[nn.Module]) -> Tensor:
        """log p of every entry under the mean of the members, in latent space, ``[E, N]``."""
        parts = []
        for some in torch.arange(len(self.rows)).split(_ROWS_AT_ONCE):
            rows = self.rows[some]
            each = []
            for member in members:
                answer: LatentMarginals = member(rows.y.nan_to_num(0.0), rows.codes, self.observed[some])
                answer = answer.double()
                out = torch.zeros(len(some), rows.present.shape[1], dtype=torch.float64)
                out[:, layout.numeric] = cell_log_prob(
                    rows.lower.nan_to_num(0.0, torch.inf, -torch.inf),
                    rows.upper.nan_to_num(0.0, torch.inf, -torch.inf),
                    answer.log_weights,
                    answer.means,
                    answer.sds,
                )
                codes = rows.codes.nan_to_num(0.0).long()[..., None]
                out[:, layout.categorical] = answer.log_probs.gather(-1, codes).squeeze(-1)
                each.append(out)
            parts.append(torch.stack(each).logsumexp(0) - math.log(len(each)))
        return torch.cat(parts)
