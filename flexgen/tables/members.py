"""The exact members of a table model: a Gaussian of everything on everything, and mixtures of classes.

Both answer p(latent_i | observed) for any observed set in closed form, batched over rows, in float64. They carry small
tables; on large ones they are what the networks start from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexgen.tables.conditioning import NormalMixture
from flexgen.tables.features import FeatureLayout
from flexgen.tables.latents import LatentMarginals

__all__ = ["ClassMixture", "DenseGaussian"]

# A category keeps this share of its frequency, whatever the Gaussian says, whose conditional means leave [0, 1].
_LEAST_SHARE = 0.1
_LEAST_PROBABILITY = 1e-6
_LEAST_VARIANCE = 1e-8


class DenseGaussian(nn.Module):
    """One Gaussian over latents and one-hot codes: shrunk linear regression of everything on everything.

    A category's probability is its code's conditional mean, clipped and normalised (the linear probability model).

    Args:
        layout: the features.
        law: K = 1 over all F features.
    """

    def __init__(self, layout: FeatureLayout, law: NormalMixture) -> None:
        super().__init__()
        self.layout, self.law = layout, law

    def moments(self, y: Tensor, codes: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every feature given the observed ones, ``[B, F]`` each, float64.

        Args:
            y: latents ``[B, S]``; codes ``[B, J]``; both read where observed only.
            observed: bool ``[B, N]``.
        """
        z = torch.cat([y.double(), self.layout.one_hot(codes, dtype=torch.float64)], 1)
        _, means, variances = self.law.moments(z, torch.cat(self.layout.spread(observed), 1))
        return means[:, 0], variances[:, 0]

    def forward(self, y: Tensor, codes: Tensor, observed: Tensor) -> LatentMarginals:
        means, sds, shares = self.answer(y, codes, observed)
        log_probs = self.layout.normalise(shares.log())
        return LatentMarginals(torch.zeros_like(sds)[..., None], means[..., None], sds[..., None], log_probs)

    def answer(self, y: Tensor, codes: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and sd of the latents ``[B, S]``, unnormalised shares of the categories ``[B, F - S]``."""
        S = self.layout.num_numeric
        means, variances = self.moments(y, codes, observed)
        sds = (variances[:, :S] + self.layout.within).clamp_min(_LEAST_VARIANCE).sqrt()
        return (
            means[:, :S],
            sds,
            means[:, S:].maximum(_LEAST_SHARE * self.law.means[0, S:]).clamp_min(_LEAST_PROBABILITY),
        )


class ClassMixture(nn.Module):
    """A latent class model: given the class, latents are jointly normal and categories independent.

    Args:
        layout: the features.
        law: K classes over the S latents.
        log_tables: ``[K, F - S]``, log P(category | class).
    """

    log_tables: Tensor

    def __init__(self, layout: FeatureLayout, law: NormalMixture, log_tables: Tensor) -> None:
        super().__init__()
        self.layout, self.law = layout, law
        self.register_buffer("log_tables", log_tables)

    def log_joint(self, y: Tensor, codes: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `NormalMixture.condition`, over latents and categories."""
        numeric, coded = self.layout.spread(observed)
        log_joint, means, covariances, pattern = self.law.condition(y.double(), numeric)
        one_hot = self.layout.one_hot(codes, dtype=torch.float64) * coded
        return log_joint + one_hot @ self.log_tables.T, means, covariances, pattern

    def forward(self, y: Tensor, codes: Tensor, observed: Tensor) -> LatentMarginals:
        log_joint, means, covariances, pattern = self.log_joint(y, codes, observed)
        log_weights = log_joint.log_softmax(-1)
        variances = covariances.diagonal(dim1=-2, dim2=-1)[pattern]  # [B, K, S]
        sds = (variances + self.layout.within).clamp_min(_LEAST_VARIANCE).sqrt().transpose(1, 2)
        log_weights_per_site = log_weights[:, None].expand(-1, means.shape[2], -1)  # [B, S, K]
        shares = log_weights.exp() @ self.log_tables.exp()  # [B, F - S]
        return LatentMarginals(log_weights_per_site, means.transpose(1, 2), sds, self.layout.normalise(shares.log()))
