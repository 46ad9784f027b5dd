"""Exact families that compute in float32, from the inputs on: networks of which it is known that a joint exists."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexgen.conditional import CategoricalMarginals
from flexgen.exact import Gaussian, GaussianMixture, GaussianMixtureMarginals, JointTable
from flexgen.query import Query
from flexgen.space import Space

__all__ = ["Float32Mixture", "Float32Table", "LogProbOnly"]


class Float32Table:
    """p(x_i | x_C) of a joint table, by sums and logarithms in float32."""

    def __init__(self, law: JointTable) -> None:
        self.space = law.space
        self.p = law.p.float().flatten()  # [S]
        self.states = law.space.states()

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        observed = query.expand(len(x)).observed
        agrees = ((x[:, None].float() == self.states.float()) | ~observed[:, None]).all(-1)  # [B, S]
        weights = agrees.float() * self.p
        out = torch.full((len(x), self.space.num_sites, max(self.space.num_categories)), -math.inf)
        for site, size in enumerate(self.space.num_categories):
            for value in range(size):
                out[:, site, value] = (weights * (self.states[:, site] == value)).sum(-1).log()
        return CategoricalMarginals(out.log_softmax(-1))


class Float32Mixture:
    """p(x_i | x_C) of a Gaussian or a mixture of Gaussians, by Cholesky factors in float32."""

    def __init__(self, law: Gaussian | GaussianMixture) -> None:
        self.space = Space.real(law.space.num_sites)
        if isinstance(law, Gaussian):
            parts = torch.ones(1), law.mean[None], law.covariance[None]
        else:
            parts = law.weights, law.means, law.covariances
        self.weights, self.means, self.covariances = (part.float() for part in parts)

    def marginals(self, x: Tensor, query: Query) -> GaussianMixtureMarginals:
        observed = query.expand(len(x)).observed[:, None]  # [B, 1, N]
        residual = torch.where(observed, x.float()[:, None] - self.means, 0.0)  # [B, K, N]
        both = observed[..., :, None] & observed[..., None, :]
        covered = torch.where(both, self.covariances, torch.eye(x.shape[1]))  # [B, K, N, N]
        factor = torch.linalg.cholesky(covered)
        cross = torch.where(observed[..., None], self.covariances, 0.0)  # [B, K, N observed, N]
        solved = torch.cholesky_solve(cross, factor)
        mean = self.means + (solved * residual[..., None]).sum(-2)  # [B, K, N]
        variance = self.covariances.diagonal(dim1=-2, dim2=-1) - (cross * solved).sum(-2)
        variance = torch.where(observed, 1.0, variance)
        z = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
        evidence = -0.5 * z.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [B, K]
        log_weights = (self.weights.log() + evidence)[:, None]  # [B, 1, K]
        return GaussianMixtureMarginals(log_weights, mean.mT, variance.sqrt().mT)


class LogProbOnly:
    """A conditional with `log_prob` alone, of one that has marginals; one target a row."""

    def __init__(self, conditional: object) -> None:
        self.conditional = conditional
        self.space = conditional.space  # type: ignore[attr-defined]

    def log_prob(self, x: Tensor, query: Query) -> Tensor:
        query = query.expand(len(x))
        assert bool((query.target.sum(-1) <= 1).all())
        each = self.conditional.marginals(x, query).log_prob(x)  # type: ignore[attr-defined]
        return torch.where(query.target, each, 0.0).sum(-1)
