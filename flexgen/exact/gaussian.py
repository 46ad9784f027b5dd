"""Multivariate normal distributions: conditionals and marginals in closed form, and the exact rate of Gibbs scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import as_numbers, entries, one_of, usable_device
from flexgen.conditional import take_at, target_sites
from flexgen.errors import FlexgenError
from flexgen.exact import _conditioning
from flexgen.exact.kernels import Block, as_block
from flexgen.exact.marginals import GaussianMixtureMarginals
from flexgen.query import Query, question
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = ["Gaussian", "checked_covariance"]

_SYMMETRY_TOLERANCE = 1e-8  # relative to the largest entry


class Gaussian:
    """N(mean, covariance) over real sites; answers every query, in float64.

    Args:
        mean: ``[N]``.
        covariance: ``[N, N]``, symmetric positive definite.

    Raises:
        FlexgenError: shapes that disagree, numbers that are not finite, or a covariance that is not symmetric or not
            positive definite (the message gives its smallest eigenvalue).

    Rows of a batch may have different queries; rows with the same pattern share one Cholesky factor, so that one query
    for a whole batch costs a single factorisation. A row's answer depends on the rest of its batch by rounding alone.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        mean = as_numbers("mean", mean)
        if mean.ndim != 1 or not torch.isfinite(mean).all():
            raise FlexgenError(
                "mean", f"has shape {tuple(mean.shape)} or is not finite", "Pass finite numbers, shape [N]."
            )
        self.mean = mean
        self.covariance = checked_covariance("covariance", covariance, len(mean))
        self.space = Space.real(len(mean))
        self._components = _conditioning.Components(self.mean[None], self.covariance[None])

    @classmethod
    def from_precision(cls, mean: Tensor, precision: Tensor) -> Gaussian:
        """The law whose inverse covariance is `precision` ``[N, N]``."""
        mean = as_numbers("mean", mean)
        if mean.ndim != 1:
            raise FlexgenError("mean", f"has shape {tuple(mean.shape)}", "Pass finite numbers, shape [N].")
        precision = checked_covariance("precision", precision, len(mean))
        return cls(mean, torch.cholesky_inverse(torch.linalg.cholesky(precision)))

    @property
    def precision(self) -> Tensor:
        """The inverse covariance ``[N, N]``."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.covariance))

    def to(self, device: torch.device | str) -> Gaussian:
        device = usable_device("device", device)
        return Gaussian(self.mean.to(device), self.covariance.to(device))

    def log_prob(self, x: Tensor, query: Query) -> Tensor:
        """Log density of x_P given x_C in nats, float64 ``[B]``."""
        query = question(x, query)
        self.space.validate(x, where=query.observed | query.target)
        before, after = _conditioning.log_evidences(self._components, x.double(), query.observed, query.target)
        return (after - before)[:, 0]

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        """x with the target drawn jointly from p(x_P | x_C); one normal number a site."""
        query = question(x, query)
        self.space.validate(x, where=query.observed)
        component = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return _conditioning.draw(self._components, x, query, component=component, generator=generator)

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> GaussianMixtureMarginals:
        """p(x_i | x_C) at every unobserved site, or at named ones alone: one normal distribution (K = 1).

        Args:
            sites: int64 ``[S]`` or ``[B, S]``; the answer is ``[B, S, 1]``. None: all, ``[B, N, 1]``.
        """
        query = question(x, query)
        self.space.validate(x, where=query.observed)
        _, mean, variance = _conditioning.site_moments(self._components, x.double(), query.observed, sites)  # [B, 1, N]
        mean, sd = mean.transpose(1, 2), variance.sqrt().transpose(1, 2)  # [B, N, 1]
        return GaussianMixtureMarginals(torch.zeros_like(mean), mean, sd)

    def start(self, x: Tensor, query: Query) -> _GaussianDecoder:
        """A decoder, to which each further site costs O(t N) for t known ones, where an evaluation factors anew."""
        query = query.expand(len(x))
        self.space.validate(x, where=query.observed)
        return _GaussianDecoder(self, x, query)

    def gibbs_matrix(self, scan: Literal["random"] | Sequence[Block]) -> Tensor:
        """M ``[N, N]`` such that one sweep takes the expected deviation from the mean, e, to M e.

        Args:
            scan: sites, or blocks of sites, in the order they are updated (any may recur or be left out); or
                ``"random"``: one step that updates one site chosen uniformly.

        For a permutation of the sites M is the Gauss-Seidel matrix -(D + L)^-1 U of the precision matrix, its sites in
        that order.
        """
        identity = torch.eye(len(self.mean), dtype=torch.float64, device=self.mean.device)
        precision = self.precision
        if isinstance(scan, str):
            one_of("scan", scan, ("random",))
            return identity - precision / precision.diagonal()[:, None] / len(self.mean)
        matrix = identity.clone()
        for block in entries("scan", scan, "Pass 'random', or a list of sites or blocks of sites.", most=1 << 16):
            sites = list(as_block(block, len(self.mean)))
            # E[e_A | e_-A] = e_A - Λ_AA^-1 (Λ e)_A
            matrix[sites] -= torch.linalg.solve(precision[sites][:, sites], precision[sites] @ matrix)
        return matrix

    def gibbs_rate(self, scan: Literal["random"] | Sequence[Block]) -> float:
        """The exact geometric rate at which Gibbs sampling with this scan forgets its start, per sweep.

        It is the spectral radius of `gibbs_matrix`: of means, and also in L2 (Roberts & Sahu 1997; Amit 1996). Two
        sites of correlation ρ give ρ² per systematic sweep, (1 + |ρ|) / 2 per randomly chosen update.
        """
        matrix = self.gibbs_matrix(scan)
        return float(torch.linalg.eigvals(matrix).abs().max()) if len(matrix) else 0.0

    def __repr__(self) -> str:
        return f"Gaussian({len(self.mean)} sites)"


class _GaussianDecoder:
    """An incremental Cholesky factorisation, its pivots the known sites in the order in which they came.

    With rows w_1, .., w_t of L⁻¹ Σ[C, :], the mean of all sites given C is μ + Σ_k z_k w_k, their variance
    diag Σ - Σ_k w_k². Rows of a batch that learn the same sites share them.
    """

    def __init__(self, law: Gaussian, x: Tensor, query: Query) -> None:
        self.covariance = law.covariance
        prior = law.covariance.diagonal()
        self.tiny = torch.finfo(torch.float64).eps * prior  # rounding must not make a variance vanish
        self.mean = law.mean.expand(len(x), -1).clone()  # [B, N]
        self.variance = prior[None].clone()  # [G, N]: G = 1 while all rows have learnt the same sites, else B
        self.rows = x.new_zeros(1, 0, len(prior), dtype=torch.float64)  # [G, t, N]
        sites, given = target_sites(Query._trusted(query.observed, query.target))
        if sites.shape[1]:
            self.append(sites, take_at(x, sites), given=given)

    def append(self, sites: Tensor, values: Tensor, *, given: Tensor | None = None) -> None:
        sites = sites.expand(len(self.mean), -1)
        for k in range(sites.shape[1]):
            new = None if given is None or bool(given[:, k].all()) else given[:, k]
            self._append_one(sites[:, k], values[:, k].double(), new)

    def _append_one(self, site: Tensor, value: Tensor, new: Tensor | None) -> None:
        if len(self.rows) == 1 and (new is not None or bool((site != site[0]).any())):
            self.rows = self.rows.expand(len(self.mean), -1, -1)
            self.variance = self.variance.expand(len(self.mean), -1)
        at = site[: len(self.rows), None]  # [G, 1]
        sd = self._variance(at).sqrt()  # [G, 1]
        loadings = self.rows.gather(2, at[:, None].expand(-1, self.rows.shape[1], 1))  # [G, t, 1]
        row = (self.covariance[at[:, 0]] - (loadings * self.rows).sum(1)) / sd  # [G, N]
        z = (value[:, None] - self.mean.gather(1, site[:, None])) / sd  # [B, 1]
        if new is not None:
            row, z = (torch.where(new[:, None], part, 0.0) for part in (row, z))
        self.mean = self.mean + z * row
        self.variance = self.variance - row.square()
        self.rows = torch.cat([self.rows, row[:, None]], 1)

    def marginals(self, sites: Tensor) -> GaussianMixtureMarginals:
        sites = sites.expand(len(self.mean), -1)
        mean = self.mean.gather(1, sites)[..., None]
        sd = self._variance(sites).sqrt()[..., None]
        return GaussianMixtureMarginals(torch.zeros_like(mean), mean, sd)

    def sample(self, sites: Tensor, *, generator: Randomness) -> Tensor:
        """Draws of one site a row, ``[B, 1]``, by the normal number that ``Gaussian.sample`` gives to the site."""
        noise = rng.normal(self.mean.shape, generator=generator, dtype=torch.float64)
        return self.mean.gather(1, sites) + self._variance(sites).sqrt() * noise.gather(1, sites)

    def _variance(self, sites: Tensor) -> Tensor:
        found = self.variance.expand(max(len(sites), len(self.variance)), -1)[: len(sites)].gather(1, sites)
        return torch.maximum(found, self.tiny[sites])


def checked_covariance(name: str, matrix: Tensor, num_sites: int) -> Tensor:
    """A float64 symmetric positive definite copy of ``[.., N, N]``.

    Raises:
        FlexgenError: if it is not; names the smallest eigenvalue (of the worst component).
    """
    matrix = as_numbers(name, matrix)
    if matrix.shape[-2:] != (num_sites, num_sites) or not torch.isfinite(matrix).all():
        raise FlexgenError(
            name,
            f"has shape {tuple(matrix.shape)} or is not finite",
            f"Pass finite numbers, {num_sites} rows and columns, as many as the mean has entries.",
        )
    if matrix.numel() == 0:
        return matrix
    asymmetry = float((matrix - matrix.mT).abs().max())
    if asymmetry > _SYMMETRY_TOLERANCE * float(matrix.abs().max()):
        raise FlexgenError(name, f"is not symmetric (off by {asymmetry:.3g})", "Pass (a + a.T) / 2.")
    matrix = (matrix + matrix.mT) / 2
    spectrum = torch.linalg.eigvalsh(matrix)  # [.., N], ascending
    # Below this an eigenvalue is zero up to rounding, and a Cholesky factorisation may fail.
    floor = num_sites * torch.finfo(torch.float64).eps * spectrum.abs().amax(-1)
    if (spectrum[..., 0] <= floor).any():
        smallest = float(spectrum[..., 0].min())
        raise FlexgenError(
            name,
            f"is not positive definite: its smallest eigenvalue is {smallest:.3g}",
            "Remove sites that are functions of others, or add a small ridge to the diagonal.",
        )
    return matrix
