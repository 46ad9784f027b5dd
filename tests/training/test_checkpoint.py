"""Checkpoints: atomic, verified, and refused by name when they belong to another run."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexgen import rng, saving
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
from flexgen.training.checkpoint import remove_checkpoints
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
    assert saving.saved_files(path) == {"state.json", "network.safetensors", "none.safetensors"}


def test_the_last_ones_are_kept_in_numerical_order(tmp_path: Path) -> None:
    for step in (9, 10, 1_000_000_000, 2_000_000_000):
        write_checkpoint(tmp_path, example(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1000000000", "step-2000000000"]
    assert latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("moment", ["sha256", "flush"])
def test_a_writer_that_dies_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    write_checkpoint(tmp_path, example(1))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, moment, die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, example(2))
    assert latest_checkpoint(tmp_path).name == "step-000000001"
    write_checkpoint(tmp_path, example(2))  # over the remains
    assert read_checkpoint(latest_checkpoint(tmp_path)).step == 2


def write_as_earlier(directory: Path, step: int) -> Path:
    """As versions without manifests did: checksums of the tensors in the state, none of the state."""
    path = write_checkpoint(directory, example(step))
    (path / saving.MANIFEST).unlink()
    state = path / "state.json"
    document = json.loads(state.read_text())
    document["files"] = {name: saving.sha256(path / f"{name}.safetensors") for name in document.pop("groups")}
    state.write_text(json.dumps({**document, "format": 1}))
    return path


def test_damage_is_named(tmp_path: Path) -> None:
    path = write_as_earlier(tmp_path, 3)
    file = path / "network.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"step-000000003/network.safetensors is damaged.*Delete the folder"):
        read_checkpoint(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"step-000000003/network.safetensors is missing"):
        read_checkpoint(path)
    state = path / "state.json"
    state.write_text(state.read_text().replace('"format": 1', '"format": 99').replace("files", "groups"))
    with pytest.raises(CheckpointError, match="has format 99, and this version of flexgen reads 2"):
        read_checkpoint(path)
    state.write_text(state.read_text()[:-20])
    with pytest.raises(CheckpointError, match=r"step-000000003/state.json cannot be read \(JSONDecodeError"):
        read_checkpoint(path)
    state.unlink()
    with pytest.raises(CheckpointError, match=r"step-000000003' holds no state.json.*Delete the folder"):
        read_checkpoint(path)


def test_every_file_is_checked(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, example())
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(CheckpointError, match=rf"step-000000003/{file.name}' is damaged.*Delete the folder"):
            read_checkpoint(path)
        file.write_bytes(whole)
    (path / saving.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"step-000000003 lacks its flexgen-manifest\.json"):
        read_checkpoint(path)


def test_checkpoints_of_earlier_versions_are_read_and_removed(tmp_path: Path) -> None:
    earlier = write_as_earlier(tmp_path, 3)
    assert torch.equal(read_checkpoint(earlier).tensors["network"]["a"], example().tensors["network"]["a"])
    write_checkpoint(tmp_path, example(4), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]


def test_only_checkpoints_are_removed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "network-0", example(1))
    path = write_checkpoint(tmp_path, example(1), keep=9)
    (path / "notes.txt").write_text("foreign")
    for folder in ("step-2", "network-9", "mazes32"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "state.json").write_text('{"format": 1, "state": "of another program"}')
    (tmp_path / "step-000000005").symlink_to(tmp_path / "mazes32")
    damaged = write_checkpoint(tmp_path, example(7), keep=9)
    whole = (damaged / saving.MANIFEST).read_text()
    (damaged / saving.MANIFEST).write_text(whole[1:])
    with pytest.raises(CheckpointError, match="is damaged, or not of flexgen's making"):
        remove_checkpoints(tmp_path)
    assert read_checkpoint(path).step == 1
    (damaged / saving.MANIFEST).write_text(whole)
    remove_checkpoints(tmp_path)
    left = sorted(str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*") if found.is_file())
    assert left == [f"{folder}/state.json" for folder in ("mazes32", "network-9")] + [
        "step-000000001/notes.txt",
        "step-2/state.json",
    ]


def test_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, example(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"directory: .* cannot be written: File too large. Make room there"):
            write_checkpoint(tmp_path, example(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000001"]
    (tmp_path / "file").write_text("")
    network, objective, data, held_out = toy.parts()
    with pytest.raises(CheckpointError, match=r"directory: '.*/file/run' is below '.*/file', which is a file"):
        train(network, objective, data, SETTINGS, held_out=held_out, directory=tmp_path / "file" / "run")


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


def test_a_run_that_drew_by_another_generator_is_not_continued(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, objective, data, held_out = toy.parts()
    monkeypatch.setattr(rng, "GENERATOR", "another")
    with pytest.raises(CheckpointError, match="random streams differ: generator was philox4x32-10 and is now another"):
        train(network, objective, data, SETTINGS, held_out=held_out, directory=trained, resume=True)


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
