"""How far imputed entries are from the truth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from flexgen.errors import DataError
from flexgen.space import Space

__all__ = ["ImputationError"]


class ImputationError(Metric):
    """Normalised root mean squared error of numeric columns, accuracy of categorical ones, over the imputed entries.

    A column's NRMSE is its RMSE over the entries that were imputed, divided by the standard deviation of *all* its true
    entries (1 is what the column's mean reaches); columns are averaged with equal weight.

    Args:
        space: what each column is.
        options: of ``torchmetrics.Metric``, such as ``sync_on_compute=False`` for one process that computes alone.

    `compute` returns ``{"nrmse": ..., "accuracy": ...}``, NaN where no such column was imputed.
    """

    full_state_update = False
    higher_is_better = None

    # The states, float64 [N], that `add_state` makes.
    squares: Tensor
    hits: Tensor
    imputed: Tensor
    total: Tensor
    total_squares: Tensor
    entries: Tensor

    def __init__(self, space: Space, **options: Any) -> None:
        super().__init__(**options)
        self.space = space
        self.categorical = torch.tensor([site.kind == "categorical" for site in space.sites])
        for name in ("squares", "hits", "imputed", "total", "total_squares", "entries"):
            self.add_state(name, torch.zeros(space.num_sites, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, imputed: Tensor, truth: Tensor, where: Tensor) -> None:
        """Args: imputed and truth ``[B, N]``; where, bool ``[B, N]``, the entries that were imputed."""
        if imputed.shape != truth.shape or where.shape != truth.shape:
            raise DataError(
                "imputed",
                f"has shape {tuple(imputed.shape)}, truth {tuple(truth.shape)}, where {tuple(where.shape)}",
                "Pass three of one shape [B, N].",
            )
        known = ~truth.isnan()
        where = where & known
        if bool((imputed.isnan() & where).any()):
            row, column = (int(i) for i in (imputed.isnan() & where).nonzero()[0])
            raise DataError("imputed", f"is NaN at row {row}, column {column}", "Fill every entry that `where` marks.")
        truth, imputed = truth.double().nan_to_num(), imputed.double()
        self.squares += torch.where(where, (imputed - truth) ** 2, 0.0).sum(0)
        self.hits += (where & (imputed == truth)).sum(0)
        self.imputed += where.sum(0)
        self.total += truth.sum(0)
        self.total_squares += (truth**2).sum(0)
        self.entries += known.sum(0)

    def per_column(self) -> Tensor:
        """NRMSE or accuracy of each column, ``[N]``, NaN where nothing was imputed."""
        mean = self.total / self.entries
        sd = (self.total_squares / self.entries - mean**2).clamp_min(0).sqrt()
        nrmse = (self.squares / self.imputed).sqrt() / sd
        return torch.where(self.categorical.to(nrmse.device), self.hits / self.imputed, nrmse)

    def compute(self) -> dict[str, Tensor]:
        scores = self.per_column()
        # A column without spread has no normalised error.
        scores = torch.where(scores.isfinite(), scores, torch.nan)
        categorical = self.categorical.to(scores.device)
        return {"nrmse": scores[~categorical].nanmean(), "accuracy": scores[categorical].nanmean()}
