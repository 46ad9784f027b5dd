"""What `train` is given is checked before the first step: data outside the space, tensors in place of data, laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.errors import ConfigError, DataError, FlexgenError, SpaceError
from flexgen.query import Query
from flexgen.space import Space
from flexgen.training import MaskedLikelihood, TensorData, TrainingSettings, train
from flexgen.training import arguments as training_arguments
from tests.training import toy

QUICK = TrainingSettings(num_steps=2, batch_size=8)


class Counting(toy.ToyNetwork):
    """Notes how often it is asked."""

    def __init__(self, num_sites: int = 6) -> None:
        super().__init__(num_sites)
        self.calls = 0

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        self.calls += 1
        return super().marginals(x, query)


class Streamed:
    """Rows that are read from elsewhere, a batch at a time."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.num_batches = 0

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Tensor:
        self.num_batches += 1
        return self.x[indices]


def likelihood() -> MaskedLikelihood:
    return MaskedLikelihood(toy.UniformLaw())


def with_gap(x: Tensor) -> Tensor:
    x = x.float()
    x[3, 2] = torch.nan
    return x


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (TensorData(toy.draws(50) + 5), r"data: holds \d at row 0, site '0'\. .*category code, 0 to K-1 \(K=2\)"),
        (TensorData(-toy.draws(50)), r"data: holds -1 at row \d+, site '\d'"),
        (TensorData(toy.draws(50) / 2), r"data: holds 0.5 at row \d+, site '\d'\. .*takes a whole number"),
        (TensorData(toy.draws(50)[:, :5]), r"data: has shape \(50, 5\)\. Pass shape \[B, 6\]"),
        (TensorData({"x": toy.draws(50) + 5}), r"data: holds \d at row 0"),
        (Streamed(toy.draws(50) + 5), r"data, first batch: holds \d at row 0"),
    ],
)
def test_data_outside_the_space_are_refused_before_the_first_step(data: object, text: str) -> None:
    network = Counting()
    with pytest.raises(SpaceError, match=text):
        train(network, likelihood(), data, QUICK)  # type: ignore[arg-type]
    assert network.calls == 0


def test_held_out_data_are_checked_too() -> None:
    network = Counting()
    bad = toy.draws(20)
    bad[4, 1] = 2
    with pytest.raises(SpaceError, match=r"held_out: holds 2 at row 4, site '1'"):
        train(network, likelihood(), TensorData(toy.draws(50)), QUICK, held_out=TensorData(bad))
    assert network.calls == 0


def test_large_data_are_checked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_arguments, "_ENTRIES_AT_ONCE", 60)  # ten rows
    bad = toy.draws(50)
    bad[37, 1] = 2
    with pytest.raises(SpaceError, match=r"data\[30:40\]: holds 2 at row 7, site '1'"):
        train(Counting(), likelihood(), TensorData(bad), QUICK)


def test_missing_entries_are_no_fault() -> None:
    x = toy.draws(50)
    present = torch.ones_like(x, dtype=torch.bool)
    present[3, 2] = False
    x[3, 2] = 17  # stands where nothing is read
    for data in (TensorData({"x": x, "present": present}), TensorData(with_gap(toy.draws(50)))):
        network = Counting()
        train(network, likelihood(), data, QUICK)
        assert network.calls == 2


def test_other_objectives_look_at_the_data_themselves() -> None:
    """Their batches need not be rows of the network's space."""

    def objective(network: nn.Module, batch: Tensor, generator: object) -> Tensor:  # noqa: ARG001
        return network(batch % 2, batch >= 0).square().sum(-1)

    assert train(toy.ToyNetwork(6), objective, TensorData(toy.draws(50) + 5), QUICK).stopped == "finished"


def test_a_tensor_serves_as_data() -> None:
    x, held_out = toy.draws(50), toy.draws(20)
    bare, wrapped = toy.ToyNetwork(6), toy.ToyNetwork(6)
    train(bare, likelihood(), x, QUICK, held_out=held_out)
    train(wrapped, likelihood(), TensorData(x), QUICK, held_out=TensorData(held_out))
    for one, other in zip(bare.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one, other)
    train(bare, likelihood(), {"x": x, "present": torch.ones_like(x, dtype=torch.bool)}, QUICK)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"data": toy.draws(50).numpy()}, DataError, r"data: is a ndarray. Pass TensorData\(x\), a tensor, or"),
        ({"held_out": [1, 2]}, DataError, r"held_out: is a list. Pass TensorData\(x\)"),
        (
            {"objective": toy.UniformLaw()},
            FlexgenError,
            r"objective: is a mask law \(UniformLaw\)\. Pass MaskedLikelihood\(law",
        ),
        (
            {"objective": "likelihood"},
            FlexgenError,
            r"objective: is 'likelihood'. Pass MaskedLikelihood\(law\), or any",
        ),
        ({"network": toy.draws}, FlexgenError, r"network: is a function. Pass a torch.nn.Module"),
        ({"network": nn.Linear(6, 6)}, FlexgenError, r"network: is a Linear, which has no marginals. "),
        ({"settings": {"num_steps": 2}}, ConfigError, r"settings: is a dict. Pass TrainingSettings\(num_steps="),
    ],
)
def test_wrong_arguments_are_named(change: dict, error: type[Exception], text: str) -> None:
    network, objective, data, held_out = toy.parts()
    given = {"network": network, "objective": objective, "data": data, "settings": QUICK, "held_out": held_out}
    with pytest.raises(error, match=text):
        train(**{**given, **change})


def test_answers_that_are_no_marginals_are_named() -> None:
    class Logits(nn.Module):
        """Not a `MarginalConditional`, which would check by itself."""

        space = Space.binary(6)

        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(6, 2))

        def marginals(self, x: Tensor, query: Query) -> Tensor:  # noqa: ARG002
            return self.logits.expand(len(x), -1, -1)

    with pytest.raises(FlexgenError, match=r"marginals: of Logits are a Tensor of shape \(8, 6, 2\). Return "):
        train(Logits(), likelihood(), toy.draws(50), QUICK)


def test_a_network_without_a_space_is_named() -> None:
    class Spaceless(nn.Module, MarginalConditional):
        pass

    with pytest.raises(SpaceError, match=r"space: is missing in Spaceless\. Set "):
        train(Spaceless(), likelihood(), toy.draws(50), QUICK)
