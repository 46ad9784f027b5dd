"""K normal laws conditioned on a different set of features in every row, by the precision of what is not observed.

With precision Λ and M the features not observed, Var[z_M | z_C] = (Λ_MM)^-1 and E[z_M | z_C] = μ_M - (Λ_MM)^-1 Λ_MC
(z_C - μ_C). Padding Λ_MM with the identity on C makes rows of any pattern one batched factorisation. Where
``flexgen.exact`` gives joint answers, this gives what training and EM repeat most: moments of all that is missing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["NormalMixture", "distinct_rows"]

_LOG_2PI = math.log(2 * math.pi)


class NormalMixture(nn.Module):
    """Weights ``[K]``, means ``[K, F]`` and covariances ``[K, F, F]`` of normal laws over features; float64 buffers."""

    weights: Tensor
    means: Tensor
    precisions: Tensor
    log_det: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__()
        factor = torch.linalg.cholesky(covariances)
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("precisions", torch.cholesky_inverse(factor))
        self.register_buffer("log_det", 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))

    @classmethod
    def empty(cls, num_components: int, num_features: int) -> NormalMixture:
        """Of the right shapes, to load weights into."""
        identity = torch.eye(num_features, dtype=torch.float64).repeat(num_components, 1, 1)
        return cls(identity.new_ones(num_components), identity.new_zeros(num_components, num_features), identity)

    def missing_covariances(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances of the missing, zero elsewhere, ``[U, K, F, F]``; log det of the observed blocks ``[U, K]``.

        Args:
            observed: bool ``[U, F]``, distinct patterns.
        """
        missing = (~observed).to(self.means.dtype)[:, None]  # [U, 1, F]
        both = missing[..., :, None] * missing[..., None, :]
        factor = torch.linalg.cholesky(self.precisions * both + torch.diag_embed(1 - missing))
        # log |Σ_CC| = log |Σ| + log |Λ_MM|
        log_det = self.log_det + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.cholesky_inverse(factor) * both, log_det

    def condition(self, z: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every row's answer.

        Args:
            z: ``[B, F]``; read where observed only.
            observed: bool ``[B, F]``.

        Returns:
            log p(z_C, k) ``[B, K]``; E[z | z_C, k] ``[B, K, F]``, the value itself where observed; the covariances
            of the missing for each distinct pattern, ``[U, K, F, F]``; and each row's pattern, ``[B]``.
        """
        patterns, pattern = distinct_rows(observed)
        covariances, log_det = self.missing_covariances(patterns)
        seen = observed.to(z.dtype)[:, None]  # [B, 1, F]
        residual = (torch.where(observed, z, 0.0)[:, None] - self.means) * seen  # [B, K, F]
        pulled = torch.einsum("kij,bkj->bki", self.precisions, residual)
        if len(patterns) == 1:
            lift = torch.einsum("kij,bkj->bki", covariances[0], pulled * (1 - seen))
        else:
            lift = (covariances[pattern] @ (pulled * (1 - seen))[..., None]).squeeze(-1)
        means = torch.where(observed[:, None], z[:, None], self.means - lift)
        quadratic = (residual * pulled).sum(-1) - (pulled * (1 - seen) * lift).sum(-1)
        log_joint = self.weights.log() - 0.5 * (quadratic + log_det[pattern] + seen.sum(-1) * _LOG_2PI)
        return log_joint, means, covariances, pattern

    def moments(self, z: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(z_C, k) ``[B, K]``, means and variances ``[B, K, F]``."""
        log_joint, means, covariances, pattern = self.condition(z, observed)
        return log_joint, means, covariances.diagonal(dim1=-2, dim2=-1)[pattern]


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of a boolean ``[B, F]``, and the number of each row among them, ``[B]``."""
    if rows.shape[1] > 62:
        return torch.unique(rows, dim=0, return_inverse=True)
    places = torch.arange(rows.shape[1], device=rows.device)
    codes, number = torch.unique((rows.long() << places).sum(1), return_inverse=True)
    return (codes[:, None] >> places) & 1 > 0, number
