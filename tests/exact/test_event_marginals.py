"""Sites whose values are events, such as patches and frames: marginals, densities, and their training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from flexgen.conditional import MarginalConditional, marginals_at, put_at, take_at
from flexgen.exact import GaussianMixtureMarginals
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.space import Space
from flexgen.training import MaskedLikelihood, TrainingSettings, train
from samplers import any_order, laws, parallel

SHAPE = (1, 7, 7)


def parts(num_rows: int = 5, num_sites: int = 4, num_components: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    sizes = (num_rows, num_sites, num_components)
    return normal(*sizes), normal(*sizes, *SHAPE), (0.5 * normal(*sizes, *SHAPE)).exp()


def peer(log_weights: Tensor, means: Tensor, sds: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(logits=log_weights), Independent(Normal(means, sds), len(SHAPE)))


def test_densities_and_moments_are_those_of_torch() -> None:
    log_weights, means, sds = parts()
    own, expected = GaussianMixtureMarginals(log_weights, means, sds), peer(log_weights, means, sds)
    x = torch.randn(5, 4, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(own.log_prob(x), expected.log_prob(x), atol=1e-10, rtol=1e-12)
    assert own.log_prob(x).shape == (5, 4)
    torch.testing.assert_close(own.mean(), expected.mean)
    torch.testing.assert_close(own.sd(), expected.variance.sqrt())
    one = GaussianMixtureMarginals(log_weights, means[..., 0, 3, 2], sds[..., 0, 3, 2])
    torch.testing.assert_close(own.cdf(x)[..., 0, 3, 2], one.cdf(x[..., 0, 3, 2]))


def test_a_mode_is_as_high_as_any_component_and_stationary() -> None:
    log_weights, means, sds = parts()
    own = GaussianMixtureMarginals(log_weights, 0.2 * means, sds)
    mode = own.mode(num_steps=300).requires_grad_()
    at_means = torch.stack([own.log_prob(mean) for mean in own.means.unbind(2)])
    assert (own.log_prob(mode) >= at_means.amax(0) - 1e-12).all()
    (slope,) = torch.autograd.grad(own.log_prob(mode).sum(), mode)
    assert slope.abs().max() < 1e-6
    single = GaussianMixtureMarginals(log_weights[..., :1], means[:, :, :1], sds[:, :, :1])
    assert torch.equal(single.mode(), means[:, :, 0])


@pytest.mark.statistical
def test_draws_have_the_distribution() -> None:
    """Each entry's probability integral is uniform, and the entries of an event share their component."""
    from scipy import stats

    log_weights, means, sds = parts(1, 1, 2)
    means = means * 0 + torch.tensor([-4.0, 4.0]).double().view(1, 1, 2, 1, 1, 1)
    many = [t.expand(4000, *t.shape[1:]) for t in (log_weights, means, 0.3 * sds)]
    own = GaussianMixtureMarginals(*many)
    draws = own.sample(generator=torch.Generator().manual_seed(0))
    uniform = own.cdf(draws).flatten(1)  # [B, 49]
    p_values = [stats.kstest(column, "uniform").pvalue for column in uniform.T.numpy()]
    assert min(p_values) > 1e-6 / 49  # family-wise false-alarm rate 1e-6
    assert (draws.flatten(1) > 0).all(1).logical_or((draws.flatten(1) < 0).all(1)).float().mean() > 0.99
    # Components drawn for each entry, the likely mistake, would not share them.
    flat = [t.flatten(3) for t in many[1:]]
    wrong = GaussianMixtureMarginals(log_weights.expand(4000, 49, 2), *(t[:, 0].transpose(1, 2) for t in flat)).sample(
        generator=torch.Generator().manual_seed(0)
    )
    assert (wrong > 0).all(1).logical_or((wrong < 0).all(1)).float().mean() < 0.5


def test_streams_named_sites_copies_and_pickles() -> None:
    own = GaussianMixtureMarginals(*parts())
    whole = own.sample(generator=Streams(0, 5))
    part = GaussianMixtureMarginals(*(t[2:3] for t in parts())).sample(generator=Streams(0, torch.tensor([2])))
    assert torch.equal(whole[2:3], part)
    sites = torch.tensor([[3, 0]] * 5)
    x = torch.randn(5, 4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(own.at(sites).log_prob(take_at(x, sites)), take_at(own.log_prob(x), sites))
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(other.log_prob(x), own.log_prob(x))


class Patches(nn.Module, MarginalConditional):
    """A linear network of 16 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space.real(16, shape=SHAPE)
        self.body = nn.Linear(16 * 50, 16 * 49)

    def marginals(self, x: Tensor, query: Query) -> GaussianMixtureMarginals:
        observed = query.expand(len(x)).observed
        known = torch.where(observed[..., None, None, None], x, 0.0).float()
        mean = self.body(torch.cat([known.flatten(1), observed.float()], -1)).view(len(x), 16, 1, *SHAPE)
        return GaussianMixtureMarginals(torch.zeros(1), mean, torch.ones_like(mean))


def images(num: int) -> Tensor:
    return torch.randn(num, 1, *SHAPE, generator=torch.Generator().manual_seed(3)).expand(-1, 16, *SHAPE).contiguous()


def test_patches_train_and_are_scored() -> None:
    """All patches of an image are alike, so that one observed patch tells the others."""
    torch.manual_seed(0)
    network, x = Patches(), images(256)
    query = Query.of([3], range(8, 16), num_sites=16)

    def nats() -> Tensor:
        with torch.no_grad():
            return network.log_prob(x, query).mean()

    before, settings = nats(), TrainingSettings(num_steps=40, batch_size=64, lr=3e-3)
    train(network, MaskedLikelihood(laws.mae()), x, settings, progress=False)
    assert nats() > before + 5
    with torch.no_grad():
        expected = Independent(Normal(network.marginals(x, query).mean()[:, 3], 1.0), 3).log_prob(x[:, 3])
        torch.testing.assert_close(network.log_prob(x, query), expected)
        two = Query.of([3, 5], range(8, 16), num_sites=16)
        by_chain = any_order.log_prob(network, x, two, orders=torch.arange(16)).float()
        torch.testing.assert_close(by_chain, network.log_prob(x, two))


def test_patches_are_drawn() -> None:
    network, x = Patches().eval(), images(6)
    query = Query.of([0, 3, 5], range(8, 16), num_sites=16)
    with torch.no_grad():
        for draw in (
            network.sample(x, query, generator=torch.Generator().manual_seed(0)),
            any_order.sample(network, x, query, generator=0),
            parallel.sample(network, x, query, num_steps=2, rule="random", generator=0),
        ):
            assert torch.equal(draw[:, 8:], x[:, 8:])
            assert torch.equal(draw[:, [1, 2, 4]], x[:, [1, 2, 4]])
            assert (draw[:, [0, 3, 5]] != x[:, [0, 3, 5]]).all()
        sites = torch.tensor([5, 3])
        named, everywhere = marginals_at(network, x, query, sites), network.marginals(x, query)
        assert torch.equal(named.mean(), everywhere.mean()[:, sites])
        assert put_at(x, sites, named.mean()).shape == x.shape
