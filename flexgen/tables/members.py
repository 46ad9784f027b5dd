"""The exact members of a table model: a Gaussian of everything on everything, and mixtures of classes.

Both answer p(latent_i | observed) for any observed set in closed form, batched over rows, in float64; `pool` mixes the
answers of several. They carry small tables; on large ones they are what the networks start from. They are fitted by
expectation-maximisation, entries missing at random included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.rng import Randomness
from flexgen.tables.columns import FeatureLayout

__all__ = [
    "ClassMixture",
    "DenseGaussian",
    "LatentMarginals",
    "NormalMixture",
    "concatenated",
    "distinct_rows",
    "fit_class_mixture",
    "fit_dense_gaussian",
    "pool",
]


@dataclass(frozen=True, eq=False)
class LatentMarginals:
    """A mixture of normals for the latent of each numeric column, probabilities for each categorical column.

    Args:
        log_weights, means, sds: ``[B, S, K]``, S numeric columns, K components; weights normalised over K.
        log_probs: ``[B, J, C]``, J categorical columns; normalised over C, -inf beyond a column's own categories.
    """

    log_weights: Tensor
    means: Tensor
    sds: Tensor
    log_probs: Tensor

    def double(self) -> LatentMarginals:
        return LatentMarginals(
            self.log_weights.double(), self.means.double(), self.sds.double(), self.log_probs.double()
        )


def concatenated(parts: Sequence[LatentMarginals]) -> LatentMarginals:
    """Answers to some rows, and to some more, as one."""
    if len(parts) == 1:
        return parts[0]
    return LatentMarginals(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(LatentMarginals)))


def pool(members: Sequence[LatentMarginals], log_weights: tuple[Tensor, Tensor]) -> LatentMarginals:
    """The linear opinion pool: the mixture of the members' answers, column by column.

    Args:
        members: M answers, float64.
        log_weights: ``[M, S]`` for numeric and ``[M, J]`` for categorical columns, normalised over M.
    """
    numeric, categorical = log_weights
    return LatentMarginals(
        torch.cat([m.log_weights + w[:, None] for m, w in zip(members, numeric, strict=True)], dim=-1),
        torch.cat([m.means for m in members], dim=-1),
        torch.cat([m.sds for m in members], dim=-1),
        torch.stack([m.log_probs + w[:, None] for m, w in zip(members, categorical, strict=True)]).logsumexp(0),
    )


_LOG_2PI = math.log(2 * math.pi)


class NormalMixture(nn.Module):
    """K normal distributions over F features, conditioned on a different set of features in every row.

    With precision Λ and M the features not observed, Var[z_M | z_C] = (Λ_MM)^-1 and E[z_M | z_C] = μ_M - (Λ_MM)^-1 Λ_MC
    (z_C - μ_C). Padding Λ_MM with the identity on C makes rows of any pattern one batched factorisation. Where
    ``flexgen.exact`` gives joint answers, this gives what training and EM repeat most: moments of all that is missing.

    Args:
        weights: ``[K]``.
        means: ``[K, F]``.
        covariances: ``[K, F, F]``; all become float64 buffers.
    """

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
        distinct, number = torch.unique(rows, dim=0, return_inverse=True)
        return distinct, number
    places = torch.arange(rows.shape[1], device=rows.device)
    codes, number = torch.unique((rows.long() << places).sum(1), return_inverse=True)
    return (codes[:, None] >> places) & 1 > 0, number


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


_LEAST_SCALE_VARIANCE = 1e-6
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
            scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(_LEAST_SCALE_VARIANCE).sqrt()  # [1, F]
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
        covariances = covariances + torch.diag(_CLASS_RIDGE * pooled.diagonal() + _LEAST_SCALE_VARIANCE)
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
    variances = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(_LEAST_SCALE_VARIANCE)
    return covariance + torch.diag_embed(ridge * variances + _LEAST_SCALE_VARIANCE)


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
