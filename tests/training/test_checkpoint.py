"""Checkpoints: atomic, verified, and refused by name when they belong to another run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexgen.errors import CheckpointError
from flexgen.training import (
    Checkpoint,
    MaskedLikelihood,
    TensorData,
    TrainingSettings,
    checkpoints,
    latest_checkpoint,
    read_checkpoint,
    train,
    write_checkpoint,
)
from flexgen.training import checkpoint as module
from tests.training import toy

SETTINGS = TrainingSettings(num_steps=12, batch_size=8, checkpoint_every=4, validate_every=5)


def example(step: int = 3) -> Checkpoint:
    weight = torch.arange(6.0).view(2, 3)
    return Checkpoint(step, {"network": {"a": weight, "tied": weight, "t": weight.T}, "none": {}}, {"loss": 0.1})


def test_round_trip(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, example())
    read = read_checkpoint(path)
    assert (read.step, read.state) == (3, {"loss": 0.1})
    assert read.tensors["none"] == {}
    for name, tensor in example().tensors["network"].items():
        assert torch.equal(read.tensors["network"][name], tensor)
    assert sorted(file.suffix for file in path.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_the_last_ones_are_kept_in_numerical_order(tmp_path: Path) -> None:
    for step in (9, 10, 1_000_000_000, 2_000_000_000):
        write_checkpoint(tmp_path, example(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1000000000", "step-2000000000"]
    assert latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("moment", ["_sha256", "_flush"])
def test_a_writer_that_dies_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    write_checkpoint(tmp_path, example(1))

    def die(_path: Path) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, moment, die)
        with pytest.raises(OSError, match="no space"):
            write_checkpoint(tmp_path, example(2))
    assert latest_checkpoint(tmp_path).name == "step-000000001"
    write_checkpoint(tmp_path, example(2))  # over the remains
    assert read_checkpoint(latest_checkpoint(tmp_path)).step == 2


def test_damage_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, example())
    file = path / "network.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"step-000000003/network.safetensors is damaged.*Delete the folder"):
        read_checkpoint(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"step-000000003/network.safetensors is missing"):
        read_checkpoint(path)
    state = path / "state.json"
    state.write_text(state.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="has format 99, and this version of flexgen reads 1"):
        read_checkpoint(path)
    state.write_text(state.read_text()[:-20])
    with pytest.raises(CheckpointError, match=r"step-000000003/state.json cannot be read \(JSONDecodeError"):
        read_checkpoint(path)
    state.unlink()
    with pytest.raises(CheckpointError, match=r"state.json cannot be read \(FileNotFoundError"):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    network, objective, data, held_out = toy.parts()
    train(network, objective, data, SETTINGS, held_out=held_out, directory=directory)
    return directory


def test_a_directory_in_use_is_not_overwritten(trained: Path) -> None:
    network, objective, data, held_out = toy.parts()
    with pytest.raises(CheckpointError, match=r"holds checkpoints already, the latest step-000000012\. Pass resume=Tr"):
        train(network, objective, data, SETTINGS, held_out=held_out, directory=trained)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (replace(SETTINGS, lr=0.5), "the checkpoint's settings differ: lr was 0.001 and is now 0.5"),
        (
            replace(SETTINGS, seed=1, betas=(0.5, 0.5)),
            r"betas was \[0.9, 0.99\] and is now .*; seed was 0 and is now 1",
        ),
        (replace(SETTINGS, num_steps=13), "num_steps was 12 and is now 13"),
    ],
)
def test_other_settings_are_named(trained: Path, settings: TrainingSettings, text: str) -> None:
    network, objective, data, held_out = toy.parts()
    with pytest.raises(CheckpointError, match=text):
        train(network, objective, data, settings, held_out=held_out, directory=trained, resume=True)


def test_another_network_objective_or_data_set_is_named(trained: Path) -> None:
    network, objective, data, held_out = toy.parts()
    rest = {"held_out": held_out, "directory": trained, "resume": True}
    with pytest.raises(CheckpointError, match="trainable weights was 1670 and is now"):
        train(toy.ToyNetwork(6, width=16), objective, data, SETTINGS, **rest)
    with pytest.raises(
        CheckpointError, match=r"network weights differ: .* layers.0.weight was float32\[32, 12\] and is"
    ):
        train(toy.ToyNetwork(6, width=32).double(), objective, data, SETTINGS, **rest)
    with pytest.raises(CheckpointError, match="data differ: rows was 100 and is now 99"):
        train(network, objective, TensorData(data.columns[:99]), SETTINGS, **rest)
    with pytest.raises(CheckpointError, match=r"the checkpoint's data differ: sample was \w+ and is now"):
        train(network, objective, TensorData(1 - data.columns), SETTINGS, **rest)
    with pytest.raises(CheckpointError, match="held-out data differ: rows was 40 and is now absent"):
        train(network, objective, data, SETTINGS, **{**rest, "held_out": None})

    class Other(MaskedLikelihood):
        pass

    with pytest.raises(CheckpointError, match=r"objective differ: name was MaskedLikelihood and is now .*Other"):
        train(network, Other(toy.UniformLaw()), data, SETTINGS, **rest)


def test_a_constant_rate_may_be_prolonged(tmp_path: Path) -> None:
    settings = replace(SETTINGS, lr_schedule="constant", num_warmup_steps=2)
    network, objective, data, _ = toy.parts()
    train(network, objective, data, settings, directory=tmp_path)
    result = train(network, objective, data, replace(settings, num_steps=20), directory=tmp_path, resume=True)
    assert result.step == 20
    at_once, *_ = toy.parts()
    train(at_once, objective, data, replace(settings, num_steps=20))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), at_once.parameters(), strict=True))


def test_nothing_is_pickled(trained: Path) -> None:
    files = [file for file in trained.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    document = json.loads((latest_checkpoint(trained) / "state.json").read_text())
    assert document["step"] == 12
