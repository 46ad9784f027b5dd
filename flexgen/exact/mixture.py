"""A mixture of multivariate normal distributions: exact answers to every query, for data of any continuous shape."""

from __future__ import annotations

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import as_numbers, named_seed, number, real_tensor, usable_device, whole_number
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import _conditioning
from flexgen.exact.gaussian import checked_covariance
from flexgen.exact.marginals import GaussianMixtureMarginals
from flexgen.query import Query, question
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = ["GaussianMixture"]

_SUM_TOLERANCE = 1e-6
_ROWS_AT_ONCE = 4096  # bounds the [rows, K] and [rows, K, N] arrays of one call


class GaussianMixture:
    """Σ_k w_k N(mean_k, covariance_k) over real sites; answers every query, in float64.

    Args:
        weights: ``[K]``, non-negative, summing to one (within 1e-6; then divided by their sum).
        means: ``[K, N]``.
        covariances: ``[K, N, N]``, each symmetric positive definite.

    Raises:
        FlexgenError: as the parts require; a covariance that is not positive definite is named by its smallest
            eigenvalue.

    p(x_P | x_C) is a mixture again: weights w_k p_k(x_C), normalised, of the components' conditionals. Rows of a batch
    may have different queries, in one batched computation of bounded memory.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        weights, means = as_numbers("weights", weights), as_numbers("means", means)
        covariances = as_numbers("covariances", covariances)
        if means.ndim != 2 or not torch.isfinite(means).all():
            raise FlexgenError(
                "means", f"has shape {tuple(means.shape)} or is not finite", "Pass finite numbers, shape [K, N]."
            )
        total = float(weights.sum())
        if weights.shape != means.shape[:1] or not (weights >= 0).all() or not abs(total - 1) <= _SUM_TOLERANCE:
            raise FlexgenError(
                "weights",
                f"has shape {tuple(weights.shape)} and sums to {total:.6g}",
                f"Pass {len(means)} non-negative numbers that sum to 1, one a component.",
            )
        if covariances.shape[:-2] != weights.shape:
            raise FlexgenError(
                "covariances",
                f"has shape {tuple(covariances.shape)}",
                f"Pass one matrix a component, shape [{len(means)}, N, N].",
            )
        self.weights = weights / weights.sum()
        self.means = means
        self.covariances = checked_covariance("covariances", covariances, means.shape[1])
        self.space = Space.real(means.shape[1])
        self._components = _conditioning.Components(self.means, self.covariances)

    @classmethod
    def fit(
        cls, x: Tensor, num_components: int, *, generator: Randomness | int, ridge: float = 1e-6, max_iter: int = 200
    ) -> GaussianMixture:
        """Maximum likelihood by expectation-maximisation (scikit-learn's), from complete rows.

        Args:
            x: ``[B, N]``, finite.
            num_components: K, at most B.
            generator: what the starting responsibilities are drawn from, or a seed.
            ridge: added to the diagonals of the covariances.
            max_iter: most iterations.
        """
        from sklearn.mixture import GaussianMixture as Fitted  # a second to import

        real_tensor("x", x, "[B, N]")
        num_components = whole_number("num_components", num_components, 1, DataError)
        max_iter, ridge = whole_number("max_iter", max_iter, 1), number("ridge", ridge, 0.0, 1e100)
        if x.ndim != 2 or not len(x) or not x.shape[1] or not torch.isfinite(x).all():
            raise DataError(
                "x", f"has shape {tuple(x.shape)} or missing entries", "Pass complete rows of finite numbers, [B, N]."
            )
        if len(x) < 2 or num_components > len(x):
            raise DataError(
                "num_components", f"is {num_components} for {len(x)} rows", "Choose from 1 to the number of rows."
            )
        if float(x.double().abs().max()) > 1e100:
            raise DataError("x", f"holds {float(x.double().abs().max()):.3g}, too far for float64", "Rescale it.")
        seed = rng.seed_from(named_seed("generator", generator)) % (1 << 32)
        fitted = Fitted(num_components, reg_covar=ridge, max_iter=max_iter, random_state=seed)
        try:
            fitted.fit(x.detach().double().cpu().numpy())
        except ValueError as error:  # a covariance that is singular to rounding
            raise DataError("x", "spans fewer dimensions than it has columns", "Pass a larger ridge.") from error
        parts = (fitted.weights_, fitted.means_, fitted.covariances_)
        return cls(*(torch.as_tensor(part, dtype=torch.float64, device=x.device) for part in parts))

    @property
    def num_components(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device | str) -> GaussianMixture:
        device = usable_device("device", device)
        return GaussianMixture(self.weights.to(device), self.means.to(device), self.covariances.to(device))

    def log_prob(self, x: Tensor, query: Query) -> Tensor:
        """Log density of x_P given x_C in nats, float64 ``[B]``."""
        query = question(x, query)
        self.space.validate(x, where=query.observed | query.target)
        pieces = [x.new_zeros(0, dtype=torch.float64)]
        for rows in _row_slices(len(x)):
            before, after = _conditioning.log_evidences(
                self._components, x[rows].double(), query[rows].observed, query[rows].target
            )
            log_weights = self.weights.log()
            pieces.append((log_weights + after).logsumexp(-1) - (log_weights + before).logsumexp(-1))
        return torch.cat(pieces)

    def log_responsibilities(self, x: Tensor, query: Query) -> Tensor:
        """log p(component | x_C), ``[B, K]``."""
        query = question(x, query)
        self.space.validate(x, where=query.observed)
        evidence = _conditioning.log_evidence(self._components, x.double(), query.observed)
        return (self.weights.log() + evidence).log_softmax(-1)

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        """x with the target drawn jointly: one uniform number a row for the component, one normal number a site."""
        query = question(x, query)
        component = rng.categorical(self.log_responsibilities(x, query), generator=generator)  # [B]
        return _conditioning.draw(self._components, x, query, component=component, generator=generator)

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> GaussianMixtureMarginals:
        """p(x_i | x_C) at every unobserved site, or at named ones alone: a mixture of K normal distributions.

        Args:
            sites: int64 ``[S]`` or ``[B, S]``; the answer is ``[B, S, K]``. None: all, ``[B, N, K]``.
        """
        query = question(x, query)
        self.space.validate(x, where=query.observed)
        evidence, mean, variance = _conditioning.site_moments(self._components, x.double(), query.observed, sites)
        log_weights = (self.weights.log() + evidence)[:, None, :]  # [B, 1, K]
        return GaussianMixtureMarginals(log_weights, mean.transpose(1, 2), variance.sqrt().transpose(1, 2))

    def __repr__(self) -> str:
        return f"GaussianMixture({self.num_components} components, {self.space.num_sites} sites)"


def _row_slices(num_rows: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, num_rows, _ROWS_AT_ONCE)]
