"""Fitting the exact members by expectation-maximisation, entries missing at random included."""

from __future__ import annotations

import torch
from torch import Tensor

from flexgen import rng
from flexgen.rng import Randomness
from flexgen.tables.conditioning import NormalMixture
from flexgen.tables.features import FeatureLayout
from flexgen.tables.members import ClassMixture, DenseGaussian

__all__ = ["fit_class_mixture", "fit_dense_gaussian"]

_LEAST_VARIANCE = 1e-6
_DENSE_STEPS, _DENSE_TOLERANCE = 20, 1e-3  # EM; largest change of a mean or covariance, in standard deviations
_CLASS_STEPS, _CLASS_TOLERANCE = 100, 1e-3  # EM; gain in nats a row
_MARGINALISED_STEPS = 10  # of EM, where entries are missing
_LLOYD_STEPS = 10
_SMOOTHING = 1.0  # rows' worth of the overall category shares, added to each class
_CLASS_RIDGE = 1e-2  # of the pooled variances


def fit_dense_gaussian(layout: FeatureLayout, y: Tensor, codes: Tensor, *, ridge: float) -> DenseGaussian:
    """Maximum likelihood with ``ridge`` times the variances added to the diagonal.

    Args:
        layout: the features.
        y: latents ``[n, S]``, NaN where missing.
        codes: ``[n, J]``, NaN where missing.
        ridge: shrinks every regression towards the mean.
    """
    z, observed = _features(layout, y, codes)
    one = z.new_ones(1)
    everyone = z.new_ones(len(z), 1)
    mean, covariance = _complete_moments(z, observed)
    if not bool(observed.all()):
        for _ in range(_DENSE_STEPS):
            law = NormalMixture(one, mean, _ridged(covariance, max(ridge, 1e-3)))
            _, filled, missing, pattern = law.condition(z, observed)
            _, new_mean, new_covariance = _weighted_moments(filled, everyone, (missing, pattern))
            scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(_LEAST_VARIANCE).sqrt()  # [1, F]
            shift = ((new_mean - mean) / scale).abs().max()
            turn = ((new_covariance - covariance) / (scale[..., None] * scale[:, None])).abs().max()
            mean, covariance = new_mean, new_covariance
            if max(shift, turn) < _DENSE_TOLERANCE:
                break
    return DenseGaussian(layout, NormalMixture(one, mean, _ridged(covariance, ridge)))


def fit_class_mixture(
    layout: FeatureLayout, y: Tensor, codes: Tensor, num_classes: int, *, strength: float, generator: Randomness
) -> ClassMixture:
    """EM from a k-means++ start; each class's covariance is shrunk towards the pooled one.

    Covariance of class k: (n_k S_k + m S_pooled) / (n_k + m) with m = strength (S + 1) pseudo-rows. Missing entries are
    first drawn from a Gaussian, which makes most steps cheap, and marginalised exactly in the last ones.

    Args:
        layout: the features.
        y, codes: ``[n, S]`` and ``[n, J]``, NaN where missing.
        num_classes: K.
        strength: of the shrinkage.
        generator: of the start.
    """
    z, observed = _features(layout, y, codes)
    S = layout.num_numeric
    latents, counted = z[:, :S], z[:, S:]  # a missing code counts for no category
    shares = _column_shares(layout, counted.sum(0) + 0.5)  # [F - S]
    sites = _as_sites(layout, torch.cat([~y.isnan(), ~codes.isnan()], 1))
    complete = bool(observed[:, :S].all())
    drawn = latents if complete else _draw_missing(latents, observed[:, :S], generator)
    responsibilities = _kmeans_start(torch.cat([drawn, counted - shares], 1), num_classes, generator)

    def maximise(filled: Tensor, missing: tuple[Tensor, Tensor] | None) -> ClassMixture:
        counts, means, covariances = _weighted_moments(filled, responsibilities, missing)
        pooled = torch.einsum("k,kij->ij", counts / len(z), covariances)
        rows = strength * (S + 1)
        covariances = (counts[:, None, None] * covariances + rows * pooled) / (counts + rows)[:, None, None]
        covariances = covariances + torch.diag(_CLASS_RIDGE * pooled.diagonal() + _LEAST_VARIANCE)
        tables = _column_shares(layout, responsibilities.T @ counted + _SMOOTHING * shares)
        weights = (counts + 1e-3) / (counts + 1e-3).sum()
        return ClassMixture(layout, NormalMixture(weights, means, covariances), tables.log())

    everywhere = sites.clone()
    everywhere[:, layout.numeric] = True
    member, last = maximise(drawn[:, None].expand(-1, num_classes, -1), None), -torch.inf
    for _ in range(_CLASS_STEPS):
        log_joint, filled, _, _ = member.log_joint(drawn, codes, everywhere)
        responsibilities = log_joint.softmax(-1)
        member = maximise(filled, None)
        score = float(log_joint.logsumexp(-1).mean())
        if score - last < _CLASS_TOLERANCE:
            break
        last = score
    for _ in range(0 if complete else _MARGINALISED_STEPS):
        log_joint, filled, among_missing, pattern = member.log_joint(latents, codes, sites)
        responsibilities = log_joint.softmax(-1)
        member = maximise(filled, (among_missing, pattern))
    return member


def _draw_missing(latents: Tensor, observed: Tensor, generator: Randomness) -> Tensor:
    """Missing latents drawn one by one given the observed ones, from a Gaussian fitted by EM."""
    one = latents.new_ones(1)
    mean, covariance = _complete_moments(latents, observed)
    for _ in range(_DENSE_STEPS):
        law = NormalMixture(one, mean, _ridged(covariance, 1e-3))
        _, filled, missing, pattern = law.condition(latents, observed)
        _, mean, covariance = _weighted_moments(filled, latents.new_ones(len(latents), 1), (missing, pattern))
    sds = missing.diagonal(dim1=-2, dim2=-1)[pattern, 0].clamp_min(0).sqrt()
    noise = rng.normal(latents.shape, generator=generator, dtype=latents.dtype)
    return torch.where(observed, latents, filled[:, 0] + sds * noise)


def _features(layout: FeatureLayout, y: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``[n, F]``, zero where missing, and which are observed."""
    z = torch.cat([y.nan_to_num(0.0), layout.one_hot(codes, dtype=torch.float64)], 1)
    observed = torch.cat([~y.isnan(), ~codes.isnan()[:, layout.column_of]], 1)
    return z, observed


def _as_sites(layout: FeatureLayout, seen: Tensor) -> Tensor:
    """bool ``[n, S + J]`` by kind of column -> ``[n, N]`` by site."""
    num_sites = 1 + int(max([*layout.numeric.tolist(), *layout.categorical.tolist()], default=-1))
    sites = torch.zeros(len(seen), num_sites, dtype=torch.bool)
    sites[:, layout.numeric] = seen[:, : layout.num_numeric]
    sites[:, layout.categorical] = seen[:, layout.num_numeric :]
    return sites


def _complete_moments(z: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[1, F]`` and covariance ``[1, F, F]``; where entries are missing, the diagonal alone, to start from."""
    counts = observed.sum(0).clamp_min(1)
    mean = (z * observed).sum(0) / counts
    centred = (z - mean) * observed
    if bool(observed.all()):
        return mean[None], (centred.T @ centred / len(z))[None]
    return mean[None], torch.diag((centred**2).sum(0) / counts)[None]


def _weighted_moments(
    filled: Tensor, responsibilities: Tensor, missing: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts ``[K]``, means ``[K, F]`` and covariances ``[K, F, F]`` under responsibilities ``[n, K]``.

    Args:
        filled: ``[n, K, F]``, missing entries by their conditional means.
        missing: their conditional covariances by pattern, and each row's pattern.
    """
    counts = responsibilities.sum(0).clamp_min(1e-10)
    means = torch.einsum("nk,nkf->kf", responsibilities, filled) / counts[:, None]
    centred = (filled - means) * responsibilities.sqrt()[..., None]
    covariances = torch.einsum("nki,nkj->kij", centred, centred) / counts[:, None, None]
    if missing is not None:
        by_pattern, pattern = missing
        share = filled.new_zeros(len(by_pattern), len(counts)).index_add_(0, pattern, responsibilities)
        covariances = covariances + torch.einsum("uk,ukij->kij", share, by_pattern) / counts[:, None, None]
    return counts, means, covariances


def _ridged(covariance: Tensor, ridge: float) -> Tensor:
    variances = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(_LEAST_VARIANCE)
    return covariance + torch.diag_embed(ridge * variances + _LEAST_VARIANCE)


def _column_shares(layout: FeatureLayout, counts: Tensor) -> Tensor:
    """Counts ``[.., F - S]`` over their sum within each column."""
    totals = counts.new_zeros(*counts.shape[:-1], len(layout.num_categories))
    totals = totals.index_add_(-1, layout.column_of, counts)
    return counts / totals[..., layout.column_of]


def _kmeans_start(features: Tensor, num_classes: int, generator: Randomness) -> Tensor:
    """Hard responsibilities ``[n, K]`` of k-means from a k-means++ start."""
    picks = rng.uniform((num_classes,), generator=generator, dtype=torch.float64)
    centres = features[(picks[0] * len(features)).long()][None]
    for pick in picks[1:]:
        nearest = torch.cdist(features, centres).min(1).values ** 2 + 1e-12
        cumulative = nearest.cumsum(0)
        chosen = torch.searchsorted(cumulative, pick * cumulative[-1]).clamp_max(len(features) - 1)
        centres = torch.cat([centres, features[chosen][None]])
    for _ in range(_LLOYD_STEPS):
        hard = torch.nn.functional.one_hot(torch.cdist(features, centres).argmin(1), num_classes).to(features.dtype)
        sizes = hard.sum(0)[:, None]
        centres = torch.where(sizes > 0, hard.T @ features / sizes.clamp_min(1), centres)
    return hard
