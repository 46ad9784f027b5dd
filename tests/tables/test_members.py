"""Exact members: conditioning against the exact families, EM against known laws and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen import exact, rng
from flexgen.query import Query
from flexgen.tables import members
from flexgen.tables.columns import FeatureLayout
from flexgen.tables.fit import pool_weights
from flexgen.tables.members import ClassMixture, NormalMixture, distinct_rows, fit_class_mixture, fit_dense_gaussian

F = torch.float64


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_mixture(num_components: int, num_features: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    root = torch.randn(num_components, num_features, 2 * num_features, generator=source(seed), dtype=F)
    means = torch.randn(num_components, num_features, generator=source(seed + 1), dtype=F)
    weights = torch.rand(num_components, generator=source(seed + 2), dtype=F) + 0.2
    return weights / weights.sum(), means, root @ root.mT / (2 * num_features)


def real_layout(num_columns: int) -> FeatureLayout:
    return FeatureLayout(torch.arange(num_columns), torch.zeros(0, dtype=torch.int64), ())


@pytest.mark.parametrize("num_components", [1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_moments_agree_with_the_exact_families(num_components: int, shared: bool) -> None:
    """Agreement to rounding: the condition numbers are below 1e4, so that 1e-9 holds four digits in reserve."""
    weights, means, covariances = random_mixture(num_components, 6)
    law = NormalMixture(weights, means, covariances)
    z = torch.randn(40, 6, generator=source(9), dtype=F)
    observed = torch.rand(1 if shared else 40, 6, generator=source(10)) < 0.5
    observed = observed.expand(40, -1).clone()
    if not shared:
        observed[0], observed[1] = True, False
    log_joint, component_means, variances = law.moments(torch.where(observed, z, torch.nan), observed)
    ours = log_joint.softmax(-1)[..., None]
    mean = (ours * component_means).sum(1)

    family = exact.GaussianMixture(weights, means, covariances)
    marginals = family.marginals(z, Query(~observed, observed))
    torch.testing.assert_close(mean[~observed], marginals.mean()[~observed], rtol=0, atol=1e-9)
    torch.testing.assert_close(mean[observed], z[observed])
    assert (variances.transpose(1, 2)[observed] == 0).all()
    everything = torch.zeros_like(observed)
    evidence = family.log_prob(z, Query(observed, everything))
    torch.testing.assert_close(log_joint.logsumexp(-1), evidence, rtol=0, atol=1e-9)
    probe = torch.randn(40, 6, generator=source(11), dtype=F)
    sds = torch.where(observed[:, None], 1.0, variances).sqrt()
    density = torch.distributions.Normal(component_means.nan_to_num(0.0), sds).log_prob(probe[:, None])
    density = (log_joint.log_softmax(-1)[..., None] + density).logsumexp(1)
    torch.testing.assert_close(density[~observed], marginals.log_prob(probe)[~observed], rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_features", [1, 5, 62, 63, 90])
def test_distinct_rows(num_features: int) -> None:
    few = torch.rand(7, num_features, generator=source(0)) < 0.5
    few[0], few[1] = True, False
    rows = few[torch.randint(7, (50,), generator=source(1))]
    patterns, number = distinct_rows(rows)
    assert torch.equal(patterns[number], rows)
    assert len(patterns) == len({tuple(row) for row in rows.tolist()})


@pytest.mark.statistical
@pytest.mark.parametrize("missing_share", [0.0, 0.3])
def test_the_gaussian_is_recovered_at_the_rate_of_n(missing_share: float) -> None:
    """n rows of N(μ, Σ), entries missing at random.

    Complete rows: Wilks; twice the log-likelihood ratio of the maximum-likelihood fit to the truth is asymptotically
    chi-squared with d = F + F(F + 1)/2 degrees of freedom, and half of it over n is KL(truth || fit). With entries
    missing, the information on each pair of columns is that of the rows that show both at least, a share (1 - m)² of
    them. False alarm 1e-6; ridge 1e-9 takes no part; the sloppy one must miss by its own bias.
    """
    num_rows, num_columns = 4000, 4
    _, means, covariances = random_mixture(1, num_columns, seed=3)
    truth = torch.distributions.MultivariateNormal(means[0], covariances[0])
    y = (
        means
        + torch.randn(num_rows, num_columns, generator=source(4), dtype=F) @ torch.linalg.cholesky(covariances[0]).T
    )
    y[torch.rand(y.shape, generator=source(5)) < missing_share] = torch.nan
    codes = torch.zeros(num_rows, 0, dtype=F)

    def divergence(ridge: float) -> float:
        law = fit_dense_gaussian(real_layout(num_columns), y, codes, ridge=ridge).law
        fitted = torch.distributions.MultivariateNormal(law.means[0], precision_matrix=law.precisions[0])
        return float(torch.distributions.kl_divergence(truth, fitted))

    freedom = num_columns + num_columns * (num_columns + 1) // 2
    bound = stats.chi2.ppf(1 - 1e-6, freedom) / (2 * num_rows * (1 - missing_share) ** 2)
    assert divergence(1e-9) < bound
    assert divergence(0.3) > bound


def mixed_rows(num_rows: int, seed: int = 0) -> tuple[FeatureLayout, Tensor, Tensor, Tensor]:
    """Two latents (sites 0 and 2) and two categorical columns (sites 1 and 3); which entries are observed."""
    layout = FeatureLayout(torch.tensor([0, 2]), torch.tensor([1, 3]), (3, 2))
    group = torch.randint(2, (num_rows,), generator=source(seed))
    y = torch.randn(num_rows, 2, generator=source(seed + 1), dtype=F) + 3.0 * group[:, None] * torch.tensor([1.0, -1.0])
    u = torch.rand(num_rows, 2, generator=source(seed + 2))
    codes = torch.stack([(u[:, 0] * 1.5 + 1.4 * group).long().clamp_max(2), (u[:, 1] < 0.2 + 0.6 * group).long()], 1)
    observed = torch.rand(num_rows, 4, generator=source(seed + 3)) < 0.6
    return layout, y, codes.double(), observed


def test_class_mixtures_by_brute_force() -> None:
    layout, y, codes, observed = mixed_rows(30)
    weights, means, covariances = random_mixture(3, 2, seed=6)
    tables = torch.rand(3, 5, generator=source(7), dtype=F) + 0.1
    tables = torch.cat(
        [tables[:, :3] / tables[:, :3].sum(1, keepdim=True), tables[:, 3:] / tables[:, 3:].sum(1, keepdim=True)], 1
    )
    member = ClassMixture(layout, NormalMixture(weights, means, covariances), tables.log())
    hidden = torch.where(observed[:, [0, 2]], y, torch.nan), torch.where(observed[:, [1, 3]], codes, torch.nan)
    log_joint = member.log_joint(*hidden, observed)[0]
    answer = member(*hidden, observed)
    for row in range(30):
        seen = observed[row, [0, 2]].nonzero().flatten().tolist()
        for k in range(3):
            expected = math.log(weights[k])
            if seen:
                part = covariances[k][seen][:, seen].numpy()
                expected += stats.multivariate_normal.logpdf(y[row, seen].numpy(), means[k, seen].numpy(), part)
            for j, (site, start) in enumerate([(1, 0), (3, 3)]):
                if observed[row, site]:
                    expected += math.log(tables[k, start + int(codes[row, j])])
            assert float(log_joint[row, k]) == pytest.approx(expected, abs=1e-9)
        posterior = log_joint[row].softmax(0)
        torch.testing.assert_close(answer.log_probs[row, 0].exp(), posterior @ tables[:, :3])
        torch.testing.assert_close(
            answer.log_probs[row, 1].exp(), torch.cat([posterior @ tables[:, 3:], torch.zeros(1)]).double()
        )
        torch.testing.assert_close(answer.log_weights[row, 0].exp(), posterior)


def likelihoods(strength: float, monkeypatch: pytest.MonkeyPatch, *, ridge: float, smoothing: float) -> list[float]:
    """Mean log-likelihood of the observed entries after every step of EM."""
    layout, y, codes, observed = mixed_rows(300, seed=20)
    y, codes = torch.where(observed[:, [0, 2]], y, torch.nan), torch.where(observed[:, [1, 3]], codes, torch.nan)
    seen: list[float] = []

    class Recording(ClassMixture):
        def log_joint(self, *arguments: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            answer = super().log_joint(*arguments)
            seen.append(float(answer[0].logsumexp(-1).mean()))
            return answer

    monkeypatch.setattr(members, "ClassMixture", Recording)
    monkeypatch.setattr(members, "_CLASS_RIDGE", ridge)
    monkeypatch.setattr(members, "_SMOOTHING", smoothing)
    monkeypatch.setattr(members, "_CLASS_TOLERANCE", -1.0)
    fit_class_mixture(layout, y, codes, 3, strength=strength, generator=rng.stream(0, "classes"))
    return seen


def test_em_never_lowers_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dempster, Laird & Rubin (1977), without shrinkage; the constants that keep variances and weights positive are
    1e-6 and 1e-3 / n, and may take back so much. Class weights that are not refitted are seen."""
    history = np.array(likelihoods(0.0, monkeypatch, ridge=0.0, smoothing=1e-12))
    cut = members._CLASS_STEPS  # on completed latents before, on the observed entries after
    for part in (history[:cut], history[cut:]):
        assert len(part) >= members._MARGINALISED_STEPS
        assert np.diff(part).min() > -2e-5
        assert part[-1] - part[0] > 1e-4


def test_shrinkage_pulls_the_classes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    free, shrunk = (likelihoods(s, monkeypatch, ridge=1e-2, smoothing=1.0)[-1] for s in (0.0, 100.0))
    assert free > shrunk


@pytest.mark.statistical
def test_the_class_mixture_finds_its_classes() -> None:
    """Separated classes, n = 2000: the held-out likelihood is within Wilks' bound of the truth's, false alarm 1e-4 for
    the fit and 1e-4 for the noise of the test rows.

    d = 1 weight + 2 * (2 means + 3 covariances + 3 free probabilities); one class falls short by far more.
    """
    layout, y, codes, _ = mixed_rows(2000, seed=30)
    _, test_y, test_codes, _ = mixed_rows(2000, seed=40)
    everything = torch.ones(2000, 4, dtype=torch.bool)
    group_tables = []
    for group in (0, 1):
        first = torch.tensor(
            [
                (torch.arange(1000) / 1000 * 1.5 + 1.4 * group).long().clamp_max(2).eq(c).double().mean()
                for c in range(3)
            ]
        )
        second = 0.2 + 0.6 * group
        group_tables.append(torch.cat([first, torch.tensor([1 - second, second])]))
    truth = ClassMixture(
        layout,
        NormalMixture(
            torch.full((2,), 0.5, dtype=F),
            torch.tensor([[0.0, 0.0], [3.0, -3.0]], dtype=F),
            torch.eye(2, dtype=F).expand(2, -1, -1),
        ),
        torch.stack(group_tables).double().clamp_min(1e-12).log(),
    )

    def score(member: ClassMixture) -> Tensor:
        return member.log_joint(test_y, test_codes, everything)[0].logsumexp(-1)

    def fitted(num_classes: int) -> ClassMixture:
        return fit_class_mixture(layout, y, codes, num_classes, strength=1.0, generator=rng.stream(1, "classes"))

    # Mean loss to the truth on new rows: the fit's KL, at most the bound, plus the noise of 2000 differences.
    bound = stats.chi2.isf(1e-4, 17) / (2 * 2000)
    for num_classes, good in ((2, True), (1, False)):
        loss = score(truth) - score(fitted(num_classes))
        noise = stats.norm.isf(1e-4) * float(loss.std()) / math.sqrt(2000)
        assert (float(loss.mean()) < bound + noise) == good


# Pooling --------------------------------------------------------------------------------------------------------------


def planted(num_entries: int, weight: float) -> tuple[Tensor, Tensor]:
    """log p of draws of weight N(0, 1) + (1 - weight) N(3, 1) under its two components, for one column."""
    second = torch.rand(num_entries, 1, generator=source(50)) > weight
    x = torch.randn(num_entries, 1, generator=source(51), dtype=F) + 3.0 * second
    return torch.stack([-0.5 * x**2, -0.5 * (x - 3) ** 2]), torch.ones_like(second)


@pytest.mark.statistical
@pytest.mark.parametrize("weight", [0.4, 0.8])
def test_planted_weights_are_recovered(weight: float) -> None:
    """The maximum-likelihood weight has variance 1 / (n I), with n I the information by a sum over the draws; false
    alarm 1e-6. Members in the wrong order have the wrong weights, and up to rounding the same ones."""
    log_probs, asked = planted(5000, weight)
    found = float(pool_weights(log_probs, asked, prior_entries=1e-6).exp()[0, 0])
    p = log_probs.exp()[:, :, 0]
    score = (p[0] - p[1]) / (weight * p[0] + (1 - weight) * p[1])
    bound = stats.norm.isf(1e-6 / 2) / math.sqrt(float(score.square().sum()))
    assert abs(found - weight) < bound
    swapped = float(pool_weights(log_probs.flip(0), asked, prior_entries=1e-6).exp()[0, 0])
    assert abs(swapped - weight) > bound
    assert swapped == pytest.approx(1 - found, rel=1e-9)


def test_the_only_good_member_gets_everything() -> None:
    good = torch.full((400, 3), -1.0, dtype=F)
    weights = pool_weights(torch.stack([good - 20, good, good - 30]), torch.ones(400, 3, dtype=torch.bool)).exp()
    # Half an entry a member is the prior of the whole, spread over 1200 entries.
    assert (weights[1] > 1 - 2 / 1200).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(3, dtype=F))
    assert torch.equal(pool_weights(good[None], torch.ones(400, 3, dtype=torch.bool)), torch.zeros(1, 3, dtype=F))


def test_columns_have_weights_of_their_own_shrunk_towards_the_tables() -> None:
    """Column 0 wants member 0, the others member 1; the stronger the prior, the nearer the column is to the rest."""
    better = torch.zeros(2, 100, 5, dtype=F)
    better[0, :, 0], better[1, :, 1:] = 2.0, 2.0
    asked = torch.ones(100, 5, dtype=torch.bool)
    shares = [float(pool_weights(better, asked, prior_entries=p).exp()[0, 0]) for p in (1e-6, 10.0, 100.0, 1e6)]
    assert shares[0] > 0.99
    assert sorted(shares, reverse=True) == shares
    together = pool_weights(better, asked, prior_entries=1e9).exp()
    torch.testing.assert_close(together, together[:, :1].expand(-1, 5), rtol=1e-5, atol=0)
    unasked = asked.clone()
    unasked[:, 0] = False  # a column that no row shows takes the table's weights
    torch.testing.assert_close(
        pool_weights(better, unasked).exp()[:, 0],
        pool_weights(better, unasked, prior_entries=1e9).exp()[:, 0],
        rtol=1e-5,
        atol=1e-9,
    )


def test_columns_are_shrunk_towards_their_own_kind() -> None:
    """Columns 0 and 1 want member 0, the others member 1; as kinds of their own each keeps its wish under any prior."""
    better = torch.zeros(2, 100, 5, dtype=F)
    better[0, :, :2], better[1, :, 2:] = 2.0, 2.0
    asked = torch.ones(100, 5, dtype=torch.bool)
    kinds = [torch.tensor([0, 1]), torch.tensor([2, 3, 4])]
    apart = pool_weights(better, asked, kinds=kinds, prior_entries=1e6).exp()
    together = pool_weights(better, asked, prior_entries=1e6).exp()
    assert (apart[0, :2] > 0.99).all()
    assert (apart[1, 2:] > 0.99).all()
    assert (together[0] < 0.5).all()
    torch.testing.assert_close(apart.sum(0), torch.ones(5, dtype=F))
