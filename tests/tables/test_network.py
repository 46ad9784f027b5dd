"""The masked network: starts as its Gaussian, reads what is observed only, and learns what its data allow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen.errors import ConfigError
from flexgen.query import Query
from flexgen.space import Site, Space
from flexgen.tables import MaskedTableNetwork, TableConditional, TableSettings, fit_table
from flexgen.tables.columns import FeatureLayout
from flexgen.tables.members import DenseGaussian, NormalMixture
from flexgen.tables.network import _standard_mixture
from samplers.laws import power_cardinality
from tests.enumerated import excess

F = torch.float64


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def untrained(num_components: int = 10) -> MaskedTableNetwork:
    """Latents at sites 0, 1, 3, a three-valued column at site 2."""
    layout = FeatureLayout(torch.tensor([0, 1, 3]), torch.tensor([2]), (3,))
    root = torch.randn(6, 12, generator=source(0), dtype=F)
    means = torch.tensor([[0.3, -0.2, 0.1, 0.5, 0.2, 0.3]], dtype=F)
    law = NormalMixture(torch.ones(1, dtype=F), means, (root @ root.T / 12)[None])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MaskedTableNetwork(DenseGaussian(layout, law), num_components=num_components, width=16, depth=2).eval()


def rows(num_rows: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, codes, and which sites are observed."""
    y = torch.randn(num_rows, 3, generator=source(1), dtype=F)
    codes = torch.randint(3, (num_rows, 1), generator=source(2)).double()
    return y, codes, torch.rand(num_rows, 4, generator=source(3)) < 0.5


@pytest.mark.parametrize("num_components", range(1, 17))
def test_the_standard_mixture_is_standard(num_components: int) -> None:
    weights, means, sds = (t.double() for t in _standard_mixture(num_components))
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert float((weights * means).sum()) == pytest.approx(0, abs=1e-12)
    assert float((weights * (means**2 + sds**2)).sum()) == pytest.approx(1, abs=1e-12)
    assert len(set(means.tolist())) == num_components
    z = torch.linspace(-9, 9, 20_001, dtype=F)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    mixture = (weights.log() + torch.distributions.Normal(means, sds).log_prob(z[:, None])).logsumexp(-1)
    divergence = float((normal.exp() * (normal - mixture)).sum() * (z[1] - z[0]))
    # The figure stated for ten, and for fewer no more than a spread of two or three components allows.
    assert divergence < (5e-5 if num_components == 10 else 0.02)


@pytest.mark.parametrize("num_components", [1, 4, 10])
def test_an_untrained_network_answers_as_its_gaussian(num_components: int) -> None:
    network, (y, codes, observed) = untrained(num_components), rows()
    with torch.no_grad():
        answer, base = network(y, codes, observed).double(), network.base(y, codes, observed)
    hidden = ~observed[:, network.base.layout.numeric]
    mean = (answer.log_weights.exp() * answer.means).sum(-1)
    second = (answer.log_weights.exp() * (answer.means**2 + answer.sds**2)).sum(-1)
    # Float32 of numbers of size one.
    torch.testing.assert_close(mean[hidden], base.means[..., 0][hidden], rtol=0, atol=2e-6)
    torch.testing.assert_close((second - mean**2)[hidden], base.sds[..., 0][hidden] ** 2, rtol=1e-4, atol=1e-6)
    hidden_codes = ~observed[:, network.base.layout.categorical]
    torch.testing.assert_close(
        answer.log_probs[hidden_codes], base.log_probs[hidden_codes], rtol=0, atol=1e-5
    )  # logs of probabilities above 1e-2
    assert torch.isfinite(answer.means).all()
    assert torch.isfinite(answer.sds).all()


def test_nothing_unobserved_is_read() -> None:
    network, (y, codes, observed) = untrained(), rows()
    torch.nn.init.normal_(network.trunk.readout.weight, generator=source(5))
    seen_y, seen_codes = observed[:, [0, 1, 3]], observed[:, [2]]
    lower, upper = y - 0.1, y + 0.1
    with torch.no_grad():
        expected = network(y, codes, observed)
        for garbage in (0.0, 1e6, -3.0):
            other = network(torch.where(seen_y, y, garbage), torch.where(seen_codes, codes, 1.0), observed)
            for name in ("log_weights", "means", "sds", "log_probs"):
                assert torch.equal(getattr(other, name), getattr(expected, name)), name
        changed = network(torch.where(seen_y, y + 0.5, y), codes, observed)
        assert not torch.equal(changed.means, expected.means)
        numeric, coded = network.log_prob(y, codes, observed, lower, upper)
    assert numeric.shape == (64, 3)
    assert coded.shape == (64, 1)
    assert torch.isfinite(numeric).all()


def test_no_components_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_components: is 0\. Pass at least 1\."):
        untrained(0)


# A trained network on an enumerable joint ---------------------------------------------------------------------------

CATEGORIES = (2, 3, 2, 2, 3, 2)
SPACE = Space(tuple(Site("categorical", k, name=f"c{j}") for j, k in enumerate(CATEGORIES)))


def joint() -> Tensor:
    """Pairwise couplings between one-hot codes and two among three binary columns, ``[num_states]``."""
    states = SPACE.states()
    one_hot = torch.cat([torch.nn.functional.one_hot(states[:, j], k) for j, k in enumerate(CATEGORIES)], 1).double()
    coupling = 0.5 * torch.randn(one_hot.shape[1], one_hot.shape[1], generator=source(60), dtype=F)
    spin = 2.0 * states.double() - 1.0
    threefold = spin[:, 0] * spin[:, 2] * spin[:, 3] - spin[:, 2] * spin[:, 3] * spin[:, 5]
    return torch.softmax(torch.einsum("si,ij,sj->s", one_hot, coupling.triu(1), one_hot) + 0.6 * threefold, 0)


@pytest.fixture(scope="module")
def trained() -> TableConditional:
    picks = torch.multinomial(joint(), 3000, replacement=True, generator=source(61))
    settings = TableSettings(
        num_networks=1, num_steps=400, batch_size=256, width=32, depth=1, small_rows=0, ridges=(1e-3,), dropout=0.0,
        ema_decay=0.98, patience=None,
    )  # fmt: skip
    return fit_table(SPACE.states()[picks].double(), SPACE, power_cardinality(), settings, seed=0, progress=False)[0]


@pytest.mark.statistical
def test_conditionals_are_learned_at_the_rate_of_n(trained: TableConditional) -> None:
    """2n KL of the unrestricted maximum-likelihood table is chi-squared with d = 143 degrees of freedom (Wilks), and
    the mean over uniform orders of one site's KL is the N-th part. 5 % of the rows are held out, and the exact member
    and the network are smoother than the table. False alarm 1e-4; the Gaussian alone, a linear model, is beyond.
    """
    bound = stats.chi2.ppf(1 - 1e-4, math.prod(CATEGORIES) - 1) / (2 * 0.95 * 3000) / len(CATEGORIES)
    assert excess(trained, joint()) < bound
    gaussian = next(m for m in trained.members if isinstance(m, MaskedTableNetwork)).base
    alone = TableConditional(SPACE, trained.maps, [gaussian], torch.zeros(1, len(CATEGORIES)))
    assert excess(alone, joint()) > bound


def test_the_chain_rule_sums_to_one_over_all_states(trained: TableConditional) -> None:
    states = SPACE.states().double()
    everything = Query.rest(torch.zeros(len(CATEGORIES), dtype=torch.bool))
    for order in (None, torch.tensor([3, 1, 5, 0, 2, 4])):
        total = float(trained.log_prob(states, everything, order=order).exp().sum())
        assert total == pytest.approx(1, abs=1e-6)  # log-softmax in float32, four sites
    factorized = trained.log_prob(states, everything, factorized=True).exp()
    assert float(factorized.sum()) == pytest.approx(1, abs=1e-6)
    assert np.abs((factorized - trained.log_prob(states, everything).exp()).numpy()).max() > 0.01
