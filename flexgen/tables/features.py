"""A table as numbers: latents of the numeric columns and one-hot codes of the categorical ones, side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["FeatureLayout"]


class FeatureLayout(nn.Module):
    """F = S + sum of the numbers of categories features: S latents, then the one-hot codes column by column.

    Args:
        numeric: int64 ``[S]``, sites of the numeric columns.
        categorical: int64 ``[J]``, sites of the categorical columns.
        num_categories: of each categorical column.
        within: ``[S]``, variance of each latent that its cells hide. Latents are encoded as the means of their
            cells; members that model these means add it to what they predict.
    """

    numeric: Tensor
    categorical: Tensor
    column_of: Tensor
    code_of: Tensor
    within: Tensor

    def __init__(
        self, numeric: Tensor, categorical: Tensor, num_categories: tuple[int, ...], within: Tensor | None = None
    ) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.register_buffer("numeric", numeric, persistent=False)
        self.register_buffer("categorical", categorical, persistent=False)
        hidden = torch.zeros(len(numeric), dtype=torch.float64) if within is None else within
        self.register_buffer("within", hidden, persistent=False)
        owner = [j for j, k in enumerate(num_categories) for _ in range(k)]
        code = [c for k in num_categories for c in range(k)]
        self.register_buffer(
            "column_of", torch.tensor(owner, dtype=torch.int64), persistent=False
        )  # [F - S], which categorical column
        self.register_buffer(
            "code_of", torch.tensor(code, dtype=torch.int64), persistent=False
        )  # [F - S], which of its codes

    @property
    def num_numeric(self) -> int:
        return len(self.numeric)

    @property
    def num_features(self) -> int:
        return len(self.numeric) + len(self.column_of)

    @property
    def most_categories(self) -> int:
        return max(self.num_categories, default=1)

    def one_hot(self, codes: Tensor, *, dtype: torch.dtype) -> Tensor:
        """``[B, F - S]`` from codes ``[B, J]``; zeros where a code is NaN."""
        return (codes[:, self.column_of] == self.code_of).to(dtype)

    def spread(self, sites: Tensor) -> tuple[Tensor, Tensor]:
        """A boolean of sites ``[B, N]`` as one of numeric columns ``[B, S]`` and one of codes ``[B, F - S]``."""
        return sites[:, self.numeric], sites[:, self.categorical][:, self.column_of]

    def normalise(self, scores: Tensor) -> Tensor:
        """Log-probabilities ``[B, J, C]`` from unnormalised logs ``[B, F - S]``; -inf beyond a column's categories."""
        out = scores.new_full((len(scores), len(self.num_categories), self.most_categories), -torch.inf)
        out[:, self.column_of, self.code_of] = scores
        return out.log_softmax(-1)
