"""Models whose answers are no conditionals are refused, by the fault they have; sound ones are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexgen as fg
from flexgen import exact
from flexgen.conditional import CategoricalMarginals
from flexgen.errors import FlexgenError
from flexgen.query import Query
from flexgen.space import Space
from tests.compatibility.planted import Planted
from tests.compatibility.single_precision import Float32Mixture, Float32Table, LogProbOnly
from tests.conditionals import generator

NUM_SITES = 5


def rows() -> Tensor:
    return torch.randint(2, (60, NUM_SITES), generator=generator(2))


class Network(nn.Module):
    """A small masked network; `answer` makes log-probabilities of its logits, `shown` is what it reads of x."""

    def __init__(
        self,
        answer: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
        shown: Callable[[Tensor, Tensor], Tensor] = lambda x, observed: torch.where(observed, x, 0),
    ) -> None:
        super().__init__()
        self.space = Space.categorical([2] * NUM_SITES)
        self.answer, self.shown = answer, shown
        self.weight = nn.Parameter(0.5 * torch.randn(2 * NUM_SITES, 3 * NUM_SITES, generator=generator(3)))
        self.eval()

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        observed = query.expand(len(x)).observed
        seen = torch.cat([self.shown(x, observed), observed], dim=1).float()
        return CategoricalMarginals(self.answer((seen @ self.weight).view(len(x), NUM_SITES, 3)))


def two(logits: Tensor) -> Tensor:
    return logits[..., :2].log_softmax(-1)


def noisy(logits: Tensor) -> Tensor:
    return (logits[..., :2] + torch.randn(logits[..., :2].shape, generator=SOURCE)).log_softmax(-1)


SOURCE = torch.Generator().manual_seed(9)

BROKEN = {
    "zeros": (
        Network(lambda t: torch.zeros_like(t[..., :2])),
        r"marginals: of Network are not normalised: .* sum to 2,",
    ),
    "logits": (Network(lambda t: t[..., :2] - 1), "marginals: of Network are not normalised"),
    "probabilities": (Network(lambda t: two(t).exp()), r"marginals: of Network are probabilities.*Return their log"),
    "halves": (Network(lambda t: torch.full_like(t[..., :2], 0.5)), "marginals: of Network are probabilities"),
    "three columns": (Network(), "marginals: of Network have 3 categories, and give .* beyond the 2 that site"),
    "one column": (Network(lambda t: t[..., :1] * 0), "marginals: of Network have 1 categories, but site . of its"),
    "reads all": (Network(two, lambda x, _: x), "model: Network reads places that are not observed: .*torch.where"),
    "random": (Network(noisy), "model: Network gives two answers to the same query.*dropout"),
}


@pytest.mark.parametrize("budget", [300, 20_000])
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_models_are_refused(fault: str, budget: int) -> None:
    model, said = BROKEN[fault]
    with pytest.raises(FlexgenError, match=said):
        fg.diagnose(model, rows(), budget=budget)


def test_broken_models_without_marginals() -> None:
    sound = Planted(exact.JointTable.random((2,) * NUM_SITES, generator=generator(1)), 0.3)
    assert fg.diagnose(LogProbOnly(sound), rows(), budget=500).verdict == "refuted"

    class Doubled(LogProbOnly):
        def log_prob(self, x: Tensor, query: Query) -> Tensor:
            return super().log_prob(x, query) + 0.5

    class Leaky(LogProbOnly):
        def log_prob(self, x: Tensor, query: Query) -> Tensor:
            target = query.expand(len(x)).target
            own, others = (torch.where(there, x.double(), 0.0).sum(-1) for there in (target, ~target))
            return nn.functional.logsigmoid((2 * own - 1) * 0.3 * others)

    with pytest.raises(FlexgenError, match=r"log_prob: of Doubled is not normalised: .* sum to 1\.649, not 1"):
        fg.diagnose(Doubled(sound), rows(), budget=500)
    with pytest.raises(FlexgenError, match="model: Leaky reads places that are not observed"):
        fg.diagnose(Leaky(sound), rows(), budget=1000)


@pytest.mark.parametrize("seed", range(5))
def test_sound_models_pass_and_pay(seed: int) -> None:
    law = exact.JointTable.random((2, 3, 4, 2), generator=generator(seed))
    normal = exact.Gaussian(torch.zeros(4), torch.eye(4) + 0.5)
    y = torch.randn(60, 4, generator=generator(seed), dtype=torch.float64)
    models: list[tuple[Any, Tensor]] = [
        (Network(two), rows()),
        (law, law.space.states()),
        (Float32Table(law), law.space.states()),
    ]
    models += [(Float32Mixture(normal), y), (normal, y), (LogProbOnly(law), law.space.states())]
    models.append((Network(lambda t: two(t.bfloat16())).bfloat16().float(), rows()))
    for model, x in models:
        report = fg.diagnose(model, x, budget=600, generator=seed)
        assert report.cost.forwards <= 600
        assert not any(line.startswith("Not checked") for line in report.caveats)


def test_a_check_that_there_is_no_room_for_is_said() -> None:
    report = fg.diagnose(Network(two), rows(), budget=40)
    assert report.caveats[0].startswith("Not checked: whether answers sum to 1, repeat")
