"""A fitted table model against the law its rows were drawn from: close by the rate of n, and calibrated."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen import exact
from flexgen.query import Query
from flexgen.table_model import TableModel
from flexgen.tables import TableSettings, columns

pytestmark = pytest.mark.statistical

NUM_ROWS, NUM_TEST = 1500, 3000
FALSE_ALARM = 1e-5
COVARIANCE = np.array([[1.0, 0.7, -0.4, 0.5], [0.7, 1.0, 0.1, 0.6], [-0.4, 0.1, 1.0, 0.2], [0.5, 0.6, 0.2, 1.0]])


def draw(num_rows: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of a Gaussian copula with a skewed column, and a column of three levels that cuts the last latent."""
    z = np.random.default_rng(seed).multivariate_normal(np.zeros(4), COVARIANCE, num_rows)
    level = np.digitize(z[:, 3], [-0.5, 0.8])
    columns = {"skewed": np.exp(z[:, 0]), "normal": z[:, 1], "wide": 30 * z[:, 2] - 5}
    return pd.DataFrame({**columns, "level": np.array(list("abc"))[level]}), z


def true_log_prob(z: np.ndarray) -> Tensor:
    """log p(x_i | the two other real columns), ``[B, 3]``, in the units of the data; the level is marginalised."""
    family = exact.Gaussian(torch.zeros(4), torch.tensor(COVARIANCE))
    rows, columns = torch.tensor(z), []
    for site in range(3):
        query = Query.of([site], [s for s in range(3) if s != site], num_sites=4)
        columns.append(family.log_prob(rows, query))
    return torch.stack(columns, 1) - torch.tensor(np.stack([z[:, 0], 0 * z[:, 0], np.full(len(z), np.log(30))], 1))


@pytest.fixture(scope="module")
def model() -> TableModel:
    settings = TableSettings(
        num_networks=1, num_steps=120, batch_size=256, width=32, depth=1, num_components=5, small_rows=0, ridges=(1e-3,)
    )
    return TableModel.fit(draw(NUM_ROWS, 1)[0], settings=settings, progress=False)


def excess(model: TableModel) -> tuple[Tensor, Tensor]:
    """Mean loss to the truth on new rows, ``[3]``, and its standard error."""
    frame, z = draw(NUM_TEST, 2)
    names = ["skewed", "normal", "wide"]
    ours = [model.log_prob(frame, [n], observed=[m for m in names if m != n]).to_numpy() for n in names]
    loss = true_log_prob(z) - torch.tensor(np.stack(ours, 1))
    return loss.mean(0), loss.std(0) / math.sqrt(NUM_TEST)


def allowed(model: TableModel) -> float:
    """nats: 2n KL of a maximum-likelihood fit is chi-squared with as many degrees of freedom as it has parameters.

    Those of the recipe: every map's knots, a mean and a variance for each latent and its regression on the others;
    the network is held to these by early stopping. 5 % of the rows are held out.
    """
    columns = model.conditional().maps.columns
    freedom = sum(len(column.knots_x) for column in columns) + 3 * (2 + 4)
    return float(stats.chi2.ppf(1 - FALSE_ALARM, freedom)) / (2 * 0.95 * NUM_ROWS)


def test_conditionals_come_near_the_truth_at_the_rate_of_n(model: TableModel) -> None:
    mean, error = excess(model)
    assert (mean < allowed(model) + 4.3 * error).all()  # 4.3 sd: 1e-5, one-sided
    assert (mean > -4.3 * error).all()  # nothing is likelier than the truth


def test_a_dropped_jacobian_is_rejected(model: TableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    value = columns.splines.value_and_log_slope

    def without_slope(knots: tuple[Tensor, Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = value(knots, x)
        return y, 0.0 * log_slope

    monkeypatch.setattr(columns.splines, "value_and_log_slope", without_slope)
    mean, error = excess(model)
    assert not ((mean < allowed(model) + 4.3 * error) & (mean > -4.3 * error)).all()


def test_a_model_that_forgets_what_is_observed_is_rejected(model: TableModel) -> None:
    frame, z = draw(NUM_TEST, 2)
    loss = true_log_prob(z)[:, 0] - torch.tensor(model.log_prob(frame, ["skewed"], observed=[]).to_numpy())
    assert float(loss.mean()) > allowed(model) + 4.3 * float(loss.std()) / math.sqrt(NUM_TEST)


def transforms(model: TableModel, *, stretch: float = 1.0) -> Tensor:
    """P(X_i <= x_i | everything else) of new rows, ``[B, 3]``."""
    frame, _ = draw(NUM_TEST, 3)
    x = model.schema.encode(frame)
    uniform = []
    for site in range(3):
        observed = torch.arange(4) != site
        latents = model.conditional().marginals(x, Query(~observed, observed)).latents
        y = model.conditional().maps(x)[:, site, None]
        standard = (y - latents.means[:, site]) / (stretch * latents.sds[:, site])
        uniform.append((latents.log_weights[:, site].exp() * torch.special.ndtr(standard)).sum(-1))
    return torch.stack(uniform, 1)


def test_probability_transforms_are_uniform(model: TableModel) -> None:
    """Kolmogorov-Smirnov: the sample's part by Dvoretzky-Kiefer-Wolfowitz, and the fit's by Pinsker's inequality."""
    bound = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * NUM_TEST)) + math.sqrt(allowed(model) / 2)

    def distance(uniform: Tensor) -> list[float]:
        return [stats.kstest(column.numpy(), "uniform").statistic for column in uniform.T]

    assert max(distance(transforms(model))) < bound
    assert max(distance(transforms(model, stretch=0.4))) > bound


def test_levels_are_calibrated(model: TableModel) -> None:
    """Σ (1[level = c] - p_c) over new rows has variance Σ p_c (1 - p_c) if the p_c are right; the fit's own error moves
    the mean of p_c by at most sqrt(KL / 2) (Pinsker)."""
    frame, _ = draw(NUM_TEST, 4)
    shares = model.marginals(frame, ["level"])["level"]
    for level in "abc":
        p = shares[level].to_numpy()
        gap = abs(((frame["level"] == level) - p).mean())
        assert gap < 4.4 * math.sqrt((p * (1 - p)).sum()) / NUM_TEST + math.sqrt(allowed(model) / 2)
    flipped = shares[list("cab")].set_axis(list("abc"), axis=1)
    gaps = [abs(((frame["level"] == c) - flipped[c]).mean()) for c in "abc"]
    assert max(gaps) > 4.4 * 0.5 / math.sqrt(NUM_TEST) + math.sqrt(allowed(model) / 2)
