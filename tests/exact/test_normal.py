"""Gaussian and mixture against scipy, textbook formulas and quadrature; rates of Gibbs scans in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen.errors import DataError, FlexgenError
from flexgen.exact import Gaussian, GaussianMixture, GaussianMixtureMarginals
from flexgen.exact import _conditioning as conditioning
from flexgen.query import Query
from flexgen.rng import Streams
from tests.conditionals import generator

N = 7


def covariances(count: int, size: int = N, seed: int = 0) -> Tensor:
    root = torch.randn(count, size, 2 * size, generator=generator(seed), dtype=torch.float64)
    return root @ root.mT / (2 * size)


def gaussian() -> Gaussian:
    return Gaussian(torch.linspace(-1, 1, N), covariances(1)[0])


def mixture(count: int = 5) -> GaussianMixture:
    means = 2 * torch.randn(count, N, generator=generator(1), dtype=torch.float64)
    return GaussianMixture(torch.softmax(torch.arange(count).double() / 3, 0), means, covariances(count))


def questions(num_rows: int = 40) -> tuple[Tensor, Query]:
    role = torch.randint(3, (num_rows, N), generator=generator(2))
    x = torch.randn(num_rows, N, generator=generator(3), dtype=torch.float64)
    return x, Query(role == 0, role == 1)


def textbook(mean: np.ndarray, cov: np.ndarray, x: np.ndarray, t: np.ndarray, o: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean and covariance of x_t given x_o."""
    gain = np.linalg.solve(cov[np.ix_(o, o)], cov[np.ix_(o, t)]).T
    return mean[t] + gain @ (x[o] - mean[o]), cov[np.ix_(t, t)] - gain @ cov[np.ix_(o, t)]


@pytest.fixture(params=[1 << 18, 200], ids=["one-chunk", "small-chunks"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "_CHUNK_ENTRIES", request.param)


@pytest.mark.usefixtures("_chunks")
def test_gaussian_answers_equal_the_textbook_formulas() -> None:
    law, (x, query) = gaussian(), questions()
    log_prob, marginals = law.log_prob(x, query), law.marginals(x, query)
    for row in range(len(x)):
        t, o = (np.flatnonzero(sites[row].numpy()) for sites in (query.target, query.observed))
        if len(t) == 0:
            assert log_prob[row] == 0
            continue
        mean, cov = textbook(law.mean.numpy(), law.covariance.numpy(), x[row].numpy(), t, o)
        expected = stats.multivariate_normal(mean, cov).logpdf(x[row, t].numpy())
        assert float(log_prob[row]) == pytest.approx(expected, abs=1e-10)
        np.testing.assert_allclose(marginals.mean()[row, t].numpy(), mean, atol=1e-11)
        np.testing.assert_allclose(marginals.sd()[row, t].numpy(), np.sqrt(np.diag(cov)), atol=1e-11)


@pytest.mark.statistical
def test_gaussian_draws_have_the_conditional_mean_and_covariance() -> None:
    law, n = gaussian(), 20_000
    query = Query.of([5, 1, 2], [0, 4], num_sites=N)
    x = torch.randn(1, N, generator=generator(4), dtype=torch.float64)
    draws = law.sample(x.expand(n, -1), query, generator=generator(5))[:, [1, 2, 5]].numpy()
    mean, cov = textbook(law.mean.numpy(), law.covariance.numpy(), x[0].numpy(), np.array([1, 2, 5]), np.array([0, 4]))
    white = np.linalg.solve(np.linalg.cholesky(cov), (draws - mean).T)  # [3, n], standard normal if right
    # 9 sums of n independent terms of variance 1 or 2: six standard errors, false alarm below 2e-8.
    assert np.abs(white.mean(1)).max() < 6 / math.sqrt(n)
    assert np.abs(white @ white.T / n - np.eye(3)).max() < 6 * math.sqrt(2 / n)
    for coordinate in white:
        assert stats.kstest(coordinate, "norm").pvalue > 1e-6


def test_precision() -> None:
    law = gaussian()
    torch.testing.assert_close(Gaussian.from_precision(law.mean, law.precision).covariance, law.covariance)


@pytest.mark.parametrize("rho", [-0.9, 0.3, 0.99])
def test_gibbs_rate_of_two_sites(rho: float) -> None:
    law = Gaussian(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64) * 3)
    assert law.gibbs_rate((0, 1)) == pytest.approx(rho**2, abs=1e-12)
    assert law.gibbs_rate((1, 0)) == pytest.approx(rho**2, abs=1e-12)
    assert law.gibbs_rate("random") == pytest.approx((1 + abs(rho)) / 2, abs=1e-12)
    assert law.gibbs_rate([(0, 1)]) == pytest.approx(0, abs=1e-12)


def test_gibbs_matrix_is_gauss_seidel_in_the_order_of_the_scan() -> None:
    law, order = gaussian(), [3, 1, 0, 6, 5, 2, 4]
    permuted = law.precision[order][:, order]
    expected = -torch.linalg.solve(permuted.tril(), permuted.triu(1))
    torch.testing.assert_close(law.gibbs_matrix(order)[order][:, order], expected, atol=1e-11, rtol=0)
    assert law.gibbs_rate(order) == pytest.approx(float(torch.linalg.eigvals(expected).abs().max()), abs=1e-11)
    assert law.gibbs_rate(order) != pytest.approx(law.gibbs_rate(range(N)), abs=1e-6)


@pytest.mark.usefixtures("_chunks")
def test_mixture_answers_equal_sums_over_components() -> None:
    law, (x, query) = mixture(), questions()
    log_prob, marginals = law.log_prob(x, query), law.marginals(x, query)

    def density(row: int, sites: np.ndarray) -> float:
        if len(sites) == 0:
            return 0.0
        parts = zip(law.weights.numpy(), law.means.numpy(), law.covariances.numpy(), strict=True)
        return math.log(
            sum(
                w * stats.multivariate_normal(m[sites], c[np.ix_(sites, sites)]).pdf(x[row, sites].numpy())
                for w, m, c in parts
            )
        )

    for row in range(len(x)):
        o = np.flatnonzero(query.observed[row].numpy())
        both = np.flatnonzero((query.observed | query.target)[row].numpy())
        assert float(log_prob[row]) == pytest.approx(density(row, both) - density(row, o), abs=1e-9)
        for site in np.flatnonzero(query.target[row].numpy()):
            expected = density(row, np.union1d(o, [site])) - density(row, o)
            assert float(marginals.log_prob(x)[row, site]) == pytest.approx(expected, abs=1e-9)


def test_one_factorisation_or_two_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    law, (x, query) = mixture(), questions()
    rest = Query.rest(query.observed)
    answers = []
    for shared_rows in (1, 1 << 30):  # always two, always one
        monkeypatch.setattr(conditioning, "_SHARED_ROWS", shared_rows)
        answers.append((law.log_prob(x, rest), law.log_prob(x, query)))
    for two, one in zip(*answers, strict=True):
        torch.testing.assert_close(two, one, atol=1e-11, rtol=0)


def test_a_mixture_of_one_component_is_the_gaussian() -> None:
    law, (x, query) = gaussian(), questions()
    one = GaussianMixture(torch.ones(1), law.mean[None], law.covariance[None])
    torch.testing.assert_close(one.log_prob(x, query), law.log_prob(x, query))
    torch.testing.assert_close(one.marginals(x, query).mode(), law.marginals(x, query).mean())


def test_streams_are_independent_of_the_batch() -> None:
    law, (x, query) = mixture(), questions()
    whole = law.sample(x, query, generator=Streams(1, 40))
    for row in range(40):
        part = law.sample(x[row : row + 1], query[row : row + 1], generator=Streams(1, torch.tensor([row])))
        torch.testing.assert_close(part[0], whole[row], atol=1e-12, rtol=0)


def test_fit_recovers_two_clusters() -> None:
    source = generator(6)
    x = torch.randn(2000, 2, generator=source) + 8 * (torch.rand(2000, 1, generator=source) < 0.25)
    law = GaussianMixture.fit(x, 2, generator=0)
    torch.testing.assert_close(law.weights.sort().values, torch.tensor([0.25, 0.75]).double(), atol=0.06, rtol=0)
    assert torch.equal(law.means, GaussianMixture.fit(x, 2, generator=0).means)
    with pytest.raises(DataError, match=r"missing entries\. Pass complete rows"):
        GaussianMixture.fit(torch.full((3, 2), math.nan), 2, generator=0)
    with pytest.raises(DataError, match="num_components: is 9 for 3 rows"):
        GaussianMixture.fit(torch.zeros(3, 2), 9, generator=0)


def marginals(seed: int = 0) -> GaussianMixtureMarginals:
    draws = torch.randn(3, 5, 4, 6, generator=generator(seed), dtype=torch.float64)
    return GaussianMixtureMarginals(draws[0], 2 * draws[1], (0.3 * draws[2]).exp())


def test_mixture_marginals_against_quadrature() -> None:
    law = marginals()
    grid = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    at = grid[:, None, None].expand(-1, 5, 4)
    log_density = GaussianMixtureMarginals(law.log_weights[None], law.means[None], law.sds[None]).log_prob(at)
    density = log_density.exp()
    step = float(grid[1] - grid[0])
    torch.testing.assert_close(density.sum(0) * step, torch.ones(5, 4, dtype=torch.float64))
    torch.testing.assert_close((density * at).sum(0) * step, law.mean())
    torch.testing.assert_close((density * (at - law.mean()).square()).sum(0).mul(step).sqrt(), law.sd())
    half = (density * (at <= 0.5)).sum(0) * step
    torch.testing.assert_close(law.cdf(torch.full((5, 4), 0.5).double()), half, atol=step, rtol=0)
    # The mode: stationary, and at least as dense as every component's mean; mostly the highest point of the grid.
    top = law.log_prob(law.mode())
    for component in range(6):
        assert (top >= law.log_prob(law.means[..., component]) - 1e-12).all()
    assert (top >= log_density.amax(0) - 1e-6).double().mean() > 0.9


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
            "covariance: is not positive definite: its smallest eigenvalue is -1",
        ),
        (
            lambda: Gaussian(torch.zeros(2), torch.ones(2, 2)),
            "covariance: is not positive definite: its smallest eigenvalue is ",
        ),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "is not symmetric .off by 0.5."),
        (lambda: Gaussian(torch.zeros(2), torch.eye(3)), r"covariance: has shape \(3, 3\)"),
        (lambda: Gaussian(torch.tensor([math.nan]), torch.eye(1)), "mean: .* is not finite"),
        (
            lambda: Gaussian.from_precision(torch.zeros(2), -torch.eye(2)),
            "precision: is not positive definite: its smallest eigenvalue is -1",
        ),
        (
            lambda: GaussianMixture(torch.tensor([0.5, 0.6]), torch.zeros(2, 1), torch.ones(2, 1, 1)),
            r"weights: has shape \(2,\) and sums to 1.1. Pass 2 non-negative numbers",
        ),
        (
            lambda: GaussianMixture(torch.tensor([0.5, 0.5]), torch.zeros(2, 1), torch.ones(3, 1, 1)),
            r"covariances: has shape \(3, 1, 1\). Pass one matrix a component",
        ),
    ],
)
def test_errors(build: object, text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        build()  # type: ignore[operator]


def test_components_of_very_different_scales() -> None:
    scales = torch.tensor([1e-12, 1e12], dtype=torch.float64)[:, None, None]
    law = GaussianMixture(torch.tensor([0.5, 0.5]), torch.zeros(2, 2), torch.eye(2, dtype=torch.float64) * scales)
    x = torch.tensor([[1e-6, 1e6]], dtype=torch.float64)
    assert torch.isfinite(law.log_prob(x, Query.of([0], [1], num_sites=2))).all()
