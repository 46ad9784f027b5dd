"""Conditioning K Gaussians on a different set of sites in every row, in batched calls.

For each row the covariance is permuted to (C, P) and factored once, L Lᵀ = Σ[(C, P), (C, P)]. With z = L⁻¹ (x - μ),

* the leading |C| terms of -½ z² - log diag L - ½ log 2π sum to log p(x_C), and all of them to log p(x_C, x_P);
* L's trailing block is the Cholesky factor of the conditional covariance of P given C, and a joint draw of P is the
  tail of μ + L [z_C; ε].

Rows are grouped by the size |C| + |P|, so that nothing is padded and a row's factorisation does not depend on its
neighbours; rows that share a pattern share a factor; memory is bounded by chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen import rng
from flexgen.query import Query
from flexgen.rng import Randomness

__all__ = ["Components", "Factored", "draw", "factor_groups", "log_evidence", "log_evidences", "site_moments"]

_LOG_2PI = math.log(2 * math.pi)
_CHUNK_ENTRIES = 1 << 18  # float64 entries of [rows, K, n, n] held at once: 2 MiB, about a core's cache
_SHARED_ROWS = 4  # rows a set of sites must serve on average before it is factored on its own


@dataclass(frozen=True)
class Components:
    """K Gaussians over N sites, float64: means ``[K, N]``, covariances ``[K, N, N]``."""

    means: Tensor
    covariances: Tensor

    def to(self, device: torch.device | str) -> Components:
        return Components(self.means.to(device), self.covariances.to(device))


@dataclass(frozen=True)
class Factored:
    """Rows of a batch whose sites (C, P) are equally many, factored.

    Args:
        rows: int64 ``[b]``, their places in the batch.
        sites: int64 ``[b, n]``, the sites of C and then of P, row by row.
        num_observed: int64 ``[b]``, |C|.
        factor: lower triangular ``[G, K, n, n]``, with G = b, or G = 1 when all rows share one pattern.
        patterns: int64 ``[G, n]``, the sites of each factor.
    """

    rows: Tensor
    sites: Tensor
    num_observed: Tensor
    factor: Tensor
    patterns: Tensor

    @property
    def is_observed(self) -> Tensor:
        """bool ``[b, n]``: which of the permuted sites belong to C."""
        return torch.arange(self.sites.shape[1], device=self.sites.device) < self.num_observed[:, None]

    def whiten(self, residual: Tensor) -> Tensor:
        """z = L⁻¹ residual, both ``[b, K, n]``."""
        if len(self.factor) == 1:  # one factor for all rows: they are the right-hand sides
            columns = residual.permute(1, 2, 0)  # [b, K, n] -> [K, n, b]
            solved: Tensor = torch.linalg.solve_triangular(self.factor[0], columns, upper=False)
            return solved.permute(2, 0, 1)  # [K, n, b] -> [b, K, n]
        solved = torch.linalg.solve_triangular(self.factor, residual[..., None], upper=False)
        return solved[..., 0]

    def log_terms(self, z: Tensor) -> Tensor:
        """Each permuted site's term of the log density, ``[b, K, n]``."""
        log_diagonal = self.factor.diagonal(dim1=-2, dim2=-1).log()  # [G, K, n]
        return -0.5 * z.square() - log_diagonal - 0.5 * _LOG_2PI


def factor_groups(
    components: Components, first: Tensor, second: Tensor, *, component: Tensor | None = None
) -> Iterator[Factored]:
    """All rows, in groups of equal |first| + |second| and bounded memory.

    Args:
        components: the Gaussians.
        first: bool ``[B, N]``, the sites that come first (C).
        second: bool ``[B, N]``, those that follow (P), disjoint.
        component: int64 ``[B]``, the one Gaussian each row is about; default: all K for every row. With it, the
            groups' K is 1.
    """
    num_components = len(components.means) if component is None else 1
    chosen = torch.zeros_like(first[:, 0], dtype=torch.int64) if component is None else component
    num_first = first.sum(-1)
    size = num_first + second.sum(-1)
    rank = torch.where(first, 0, torch.where(second, 1, 2))
    order = rank.argsort(dim=-1, stable=True)  # [B, N]: first, second, the rest
    for n in torch.unique(size).tolist():
        rows = (size == n).nonzero()[:, 0]
        # Rows of one pattern become neighbours, to share a factor within their chunk.
        kind = torch.cat([order[rows, :n], num_first[rows, None], chosen[rows, None]], dim=-1)
        pattern, place = torch.unique(kind, dim=0, return_inverse=True)[1].sort(stable=True)
        rows = rows[place]
        chunk = max(1, _CHUNK_ENTRIES // max(1, num_components * n * n))
        for start in range(0, len(rows), chunk):
            some = rows[start : start + chunk]
            _, which, counts = torch.unique_consecutive(
                pattern[start : start + chunk], return_inverse=True, return_counts=True
            )
            heads = some[counts.cumsum(0) - counts]  # the first row of each pattern
            sites = order[heads, :n]  # [G, n]
            covariance = (
                _submatrices(components.covariances, sites)
                if component is None
                else components.covariances[component[heads, None, None], sites[:, :, None], sites[:, None, :]][:, None]
            )  # [G, K, n, n]
            factor = torch.linalg.cholesky(covariance)
            if 1 < len(heads) < len(some):
                factor, sites = factor[which], sites[which]
            yield Factored(some, order[some, :n], num_first[some], factor, sites)


def _submatrices(covariances: Tensor, sites: Tensor) -> Tensor:
    """Rows and columns `sites` ``[G, n]`` of each of ``[K, N, N]``: ``[G, K, n, n]``."""
    num_components, num_sites, _ = covariances.shape
    index = sites[:, :, None] * num_sites + sites[:, None, :]  # [G, n, n], places in a flattened covariance
    gathered = covariances.flatten(1).index_select(1, index.flatten())  # [K, N²] -> [K, G n n]
    return gathered.view(num_components, *index.shape).transpose(0, 1)  # [G, K, n, n]


def _residuals(x: Tensor, means: Tensor, group: Factored) -> Tensor:
    """x - μ at the permuted sites of a group, ``[b, K, n]``."""
    return x[group.rows[:, None], group.sites][:, None, :] - means[:, group.sites].transpose(0, 1)


def log_evidence(components: Components, x: Tensor, observed: Tensor) -> Tensor:
    """log p_k(x_observed) for every component, ``[B, K]``."""
    out = x.new_zeros(len(x), len(components.means))
    for group in factor_groups(components, observed, torch.zeros_like(observed)):
        z = group.whiten(_residuals(x, components.means, group))
        out[group.rows] = group.log_terms(z).sum(-1)
    return out


def log_evidences(components: Components, x: Tensor, observed: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """log p_k(x_C) and log p_k(x_C, x_P), each ``[B, K]``.

    One factorisation a row gives both. But where few sets C ∪ P occur, for example because all that is not observed is
    asked for, their factors are shared, and a second, smaller factorisation of C alone costs less.
    """
    union = observed | target
    if _SHARED_ROWS * len(torch.unique(union, dim=0)) <= len(x):
        return log_evidence(components, x, observed), log_evidence(components, x, union)
    before = x.new_zeros(len(x), len(components.means))
    after = torch.zeros_like(before)
    for group in factor_groups(components, observed, target):
        terms = group.log_terms(group.whiten(_residuals(x, components.means, group)))
        before[group.rows] = torch.where(group.is_observed[:, None, :], terms, 0.0).sum(-1)
        after[group.rows] = terms.sum(-1)
    return before, after


def site_moments(
    components: Components, x: Tensor, observed: Tensor, sites: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """log p_k(x_C) ``[B, K]``, and mean and variance of every site given x_C, each ``[B, K, N]``.

    At observed sites the mean is the value and the variance is one.

    Args:
        sites: int64 ``[S]`` or ``[B, S]``, the sites that are wanted, in place of N.
    """
    num_components = len(components.means)
    everywhere = torch.arange(x.shape[1], device=x.device)
    own = (everywhere if sites is None else sites).expand(len(x), -1)  # [B, S]
    shared = sites is None or sites.ndim == 1 or bool((own == own[:1]).all())
    log_p = x.new_zeros(len(x), num_components)
    mean = x.new_zeros(len(x), num_components, own.shape[1])
    variance = torch.zeros_like(mean)
    diagonal = components.covariances.diagonal(dim1=-2, dim2=-1)  # [K, N]
    each = own[:1] if shared else own
    means, prior = (part[:, each].transpose(0, 1) for part in (components.means, diagonal))  # [1 or B, K, S]
    for group in factor_groups(components, observed, torch.zeros_like(observed)):
        z = group.whiten(_residuals(x, components.means, group))  # [b, K, c]
        log_p[group.rows] = group.log_terms(z).sum(-1)
        factor, patterns, rows = group.factor, group.patterns, group.rows
        of_rows = slice(0, 1) if shared else rows
        columns = each[of_rows]  # [1 or b, S]
        if len(factor) == 1 and not shared:
            factor = factor.expand(len(rows), -1, -1, -1)
        cross = components.covariances[:, patterns[:, :, None], columns[:, None, :]].transpose(0, 1)  # Σ[C, sites]
        loading = torch.linalg.solve_triangular(factor, cross, upper=False)  # [G, K, c, S] = L⁻¹ Σ[C, sites]
        mean[rows] = means[of_rows] + (loading * z[..., None]).sum(-2)
        variance[rows] = prior[of_rows] - loading.square().sum(-2)
    tiny = (
        torch.finfo(x.dtype).eps * diagonal.min(0).values[each][:, None, :]
    )  # rounding must not make a variance vanish
    known = observed.gather(1, own)[:, None, :]
    mean = torch.where(known, x.gather(1, own)[:, None, :], mean)
    return log_p, mean, torch.where(known, 1.0, torch.maximum(variance, tiny))


def draw(components: Components, x: Tensor, query: Query, *, component: Tensor, generator: Randomness) -> Tensor:
    """x with the target drawn jointly given the observed sites, ``[B, N]``.

    Args:
        component: int64 ``[B]``, the Gaussian each row is drawn from.
        generator: gives one normal number a site, so that a row's draw depends on nothing but the row.
    """
    noise = rng.normal(x.shape, generator=generator, dtype=torch.float64)
    filled = x.to(torch.float64, copy=True)
    for group in factor_groups(components, query.observed, query.target, component=component):
        at = (group.rows[:, None], group.sites)  # the places of a permuted [b, n]
        mean = components.means[component[group.rows, None], group.sites]  # [b, n]
        z = group.whiten(torch.where(group.is_observed, filled[at] - mean, 0.0)[:, None, :])[:, 0]
        mixed = torch.where(group.is_observed, z, noise[at])
        filled[at] = mean + (group.factor[:, 0] * mixed[:, None, :]).sum(-1)  # μ + L [z_C; ε]
    return torch.where(query.target, filled.to(x.dtype), x)
