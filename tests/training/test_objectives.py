"""The masked likelihood: its definition, what it must not read, and what is learned by it."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from flexgen import MaskDraw, Query, Space, rng
from flexgen.conditional import CategoricalMarginals
from flexgen.errors import DataError, UnsupportedQueryError
from flexgen.rng import Randomness
from flexgen.training import MaskedLikelihood, TensorData, TrainingSettings, masked_likelihood, train
from tests.enumerated import excess
from tests.training import toy


class Gaussian(nn.Module):
    """Real sites around a learned mean; its log-density is NaN where x is."""

    def __init__(self, num_sites: int) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.zeros(num_sites))

    def marginals(self, x: Tensor, query: Query) -> Gaussian:  # noqa: ARG002
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * (x - self.location).square()


def test_definition_by_hand() -> None:
    log_probs = torch.log_softmax(torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)), -1)

    class Fixed:
        space = Space.binary(3)

        def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:  # noqa: ARG002
            return CategoricalMarginals(log_probs)

    x = torch.tensor([[0, 1, 1], [1, 0, 1]])
    target = torch.tensor([[True, False, True], [False, False, False]])
    loss = masked_likelihood(Fixed(), x, MaskDraw(Query(target, ~target), torch.tensor([0.5, 7.0])))
    assert loss.tolist() == pytest.approx([-0.5 * float(log_probs[0, 0, 0] + log_probs[0, 2, 1]), 0.0])


def test_missing_entries_reach_neither_the_loss_nor_the_gradient() -> None:
    x = torch.tensor([[1.0, torch.nan, 3.0], [torch.nan, torch.nan, torch.nan]])
    network, objective = Gaussian(3), MaskedLikelihood(toy.UniformLaw())
    loss = objective(network, x, rng.Streams(0, 2))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert loss[1] == 0.0
    assert network.location.grad.isfinite().all()
    assert network.location.grad[1] == 0.0


def test_present_may_be_given_and_events_count_as_one_site() -> None:
    asked: list[Tensor] = []

    class Law:
        def draw(self, present: Tensor, *, generator: Randomness, x: Tensor | None = None) -> MaskDraw:  # noqa: ARG002
            asked.append(present)
            return MaskDraw(Query.rest(~present), present.new_ones(len(present), dtype=torch.float32))

    objective = MaskedLikelihood(Law())
    present = torch.tensor([[True, False], [True, True]])
    objective(Gaussian(2), {"x": torch.zeros(2, 2), "present": present}, rng.Streams(0, 2))
    frames = torch.zeros(2, 3, 4, 4)
    frames[0, 1, 2, 2] = torch.nan

    class Frames(Gaussian):
        def log_prob(self, x: Tensor) -> Tensor:
            return -x.flatten(2).square().sum(-1)

    assert objective(Frames(3), frames, rng.Streams(0, 2)).isfinite().all()
    assert torch.equal(asked[0], present)
    assert asked[1].tolist() == [[True, False, True], [True, True, True]]
    with pytest.raises(DataError, match=r"data: yields batches of \['y'\]. A masked objective needs 'x'"):
        objective(Gaussian(2), {"y": frames}, rng.Streams(0, 2))


class Corrupting:
    """Site 0 is hidden, site 1 shown all the same, site 2 shown with a random value; all three are targets."""

    def draw(self, present: Tensor, *, generator: Randomness, x: Tensor | None = None) -> MaskDraw:  # noqa: ARG002
        target = torch.zeros_like(present)
        target[:, :3] = True
        kept, replaced = torch.zeros_like(present), torch.zeros_like(present)
        kept[:, 1], replaced[:, 2] = True, True
        return MaskDraw(Query(target, ~target), torch.ones(len(present)), kept=kept, replaced=replaced)


def test_targets_may_be_shown_as_they_are_or_falsely() -> None:
    seen: list[tuple[Tensor, Query]] = []

    class Seeing(toy.ToyNetwork):
        def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
            seen.append((x, query))
            return super().marginals(x, query)

    network, x = Seeing(4), torch.ones(400, 4)
    loss = MaskedLikelihood(Corrupting())(network, x, rng.Streams(0, 400))
    shown, query = seen[0]
    assert query.target.all(0).tolist() == [True, False, False, False]
    assert query.observed.all(0).tolist() == [False, True, True, True]
    assert torch.equal(shown[:, [1, 3]], x[:, [1, 3]])
    assert set(shown[:, 2].tolist()) == {0.0, 1.0}
    answers = network.marginals(shown, query).log_prob(x)  # scored against the truth
    torch.testing.assert_close(loss, -answers[:, :3].sum(-1))

    class Real(Gaussian):
        space = Space.real(4)

    with pytest.raises(UnsupportedQueryError, match=r"law: replaces values, but Space\(4 sites: 4 real\) is not categ"):
        MaskedLikelihood(Corrupting())(Real(4), x, rng.Streams(0, 400))


class AlsoObserved(MaskedLikelihood):
    """Wrong on purpose: the targets are shown to the network."""

    def __call__(self, network: nn.Module, batch: Tensor, generator: Randomness) -> Tensor:
        draw = self.law.draw(torch.ones_like(batch, dtype=torch.bool), generator=generator)
        everything = torch.ones_like(draw.query.target)
        log_probs = network.marginals(batch, Query(~everything, everything)).log_prob(batch)
        return draw.weight * torch.where(draw.query.target, -log_probs, 0.0).sum(-1)


@pytest.mark.statistical
def test_the_excess_is_what_the_number_of_rows_allows() -> None:
    """n rows of a joint with d = 2^N - 1 free probabilities.

    For the unrestricted maximum-likelihood table 2n KL(p || fit) is asymptotically chi-squared with d degrees of
    freedom (Wilks), and by the chain rule over a uniform order the mean KL of one site is the N-th part of it. A
    network that shrinks towards smoother tables, and is stopped on held-out data, does no worse. False alarm 1e-4.
    """
    num_sites, num_rows = 6, 4000
    bound = chi2.ppf(1 - 1e-4, 2**num_sites - 1) / (2 * num_rows) / num_sites
    data = TensorData(toy.draws(num_rows, num_sites))
    held_out = TensorData(toy.draws(1000, num_sites, name="held-out"))
    settings = TrainingSettings(num_steps=1000, batch_size=400, lr=1e-2, ema_decay=0.99, held_out_draws=4)

    network = toy.ToyNetwork(num_sites)
    assert excess(network, toy.joint(num_sites)) > 20 * bound
    train(network, MaskedLikelihood(toy.UniformLaw()), data, settings, held_out=held_out)
    assert excess(network, toy.joint(num_sites)) < bound

    wrong = toy.ToyNetwork(num_sites)
    train(wrong, AlsoObserved(toy.UniformLaw()), data, settings, held_out=held_out)
    assert excess(wrong, toy.joint(num_sites)) > bound
