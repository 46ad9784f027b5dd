"""Muon for the hidden matrices, AdamW for the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flexgen.errors import ConfigError
from flexgen.training import TensorData, TrainingSettings, train
from flexgen.training.optimizers import HasHiddenMatrices, make_optimizers
from tests.training import toy


class WithMatrices(toy.ToyNetwork):
    """Says that the matrix between its hidden layers is for Muon."""

    def hidden_matrices(self) -> list[Tensor]:
        return [self.layers[3].weight]


def parts() -> tuple[WithMatrices, object, TensorData, TensorData]:
    _, objective, data, held_out = toy.parts()
    return WithMatrices(6, dropout=0.2), objective, data, held_out


def run(directory: Path | None = None, *, fuse: int | None = None) -> dict[str, Tensor]:
    network, objective, data, held_out = parts()

    class Crashing(TensorData):
        calls = 0

        def batch(self, indices: Tensor) -> Tensor:
            self.calls += 1
            if fuse is not None and self.calls > fuse + 1:  # one batch is read for the fingerprint
                raise RuntimeError("crash")
            return super().batch(indices)

    settings = toy.everything_on(60, optimizer="muon")
    train(network, objective, Crashing(data.columns), settings, held_out=held_out, directory=directory, resume=True)
    return network.state_dict()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    expected = run()
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path, fuse=31)
    weights = run(tmp_path)
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


def test_the_optimizer_takes_part_in_what_a_run_is(tmp_path: Path) -> None:
    run(tmp_path)
    network, objective, data, held_out = parts()
    with pytest.raises(ValueError, match="optimizer was muon and is now adamw"):
        train(network, objective, data, toy.everything_on(60), held_out=held_out, directory=tmp_path, resume=True)


def test_a_network_without_hidden_matrices_is_refused() -> None:
    network, objective, data, _ = toy.parts()
    assert not isinstance(network, HasHiddenMatrices)
    with pytest.raises(
        ConfigError, match=r"optimizer: is 'muon', but ToyNetwork has no hidden_matrices\(\)\. Use 'adamw'\."
    ):
        train(network, objective, data, TrainingSettings(num_steps=1, optimizer="muon"))


def test_every_weight_has_one_optimizer() -> None:
    network = WithMatrices(6)
    optimizers = make_optimizers(network, TrainingSettings(optimizer="muon", lr=1e-3, muon_lr=5e-3))
    assert [type(o) for o in optimizers] == [torch.optim.Muon, torch.optim.AdamW]
    owned = [id(w) for o in optimizers for group in o.param_groups for w in group["params"]]
    assert sorted(owned) == sorted(id(w) for w in network.parameters())
    assert [id(w) for w in optimizers[0].param_groups[0]["params"]] == [id(network.layers[3].weight)]
    assert {group["peak_lr"] for group in optimizers[0].param_groups} == {5e-3}
    assert {group["peak_lr"] for group in optimizers[1].param_groups} == {1e-3}
    assert [type(o) for o in make_optimizers(network, TrainingSettings())] == [torch.optim.AdamW]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_hidden_matrices_move_by_an_orthogonal_step(optimizer: str) -> None:
    """Five Newton-Schulz steps put the singular values of Muon's update within [0.7, 1.2] (Jordan et al. 2024), so
    their ratio is below 1.2 / 0.7 where no singular value of the gradient is tiny; AdamW's is the sign of the
    gradient at first. Scaled by 0.2 sqrt(max side), the root mean square of Muon's step is about 0.2 lr.
    """
    network = WithMatrices(6, width=16)
    lr = 1e-2
    settings = TrainingSettings(optimizer=optimizer, lr=lr, muon_lr=lr, weight_decay=0.0, muon_weight_decay=0.0)
    optimizers = make_optimizers(network, settings)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    source = torch.Generator().manual_seed(0)
    gradient = torch.linalg.qr(torch.randn(16, 16, generator=source)).Q * torch.linspace(1, 4, 16)
    for name, weight in network.named_parameters():
        weight.grad = gradient if name == "layers.3.weight" else torch.randn(weight.shape, generator=source)
    for each in optimizers:
        each.step()
    steps = {name: (before[name] - weight.detach()) for name, weight in network.named_parameters()}
    values = torch.linalg.svdvals(steps["layers.3.weight"])
    if optimizer == "muon":
        assert values[0] / values[-1] < 1.2 / 0.7
        size = float(steps["layers.3.weight"].square().mean().sqrt())
        assert 0.7 * 0.2 * lr < size < 1.2 * 0.2 * lr
    else:
        assert values[0] / values[-1] > 3
    for name, step in steps.items():
        if name != "layers.3.weight" or optimizer == "adamw":  # the first step of Adam is the sign of the gradient
            torch.testing.assert_close(step.abs(), torch.full_like(step, lr), rtol=1e-3, atol=1e-6)
