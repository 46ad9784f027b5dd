"""A video backbone on disk: exact, honest about what it is, and nothing of it is unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexgen.errors import CheckpointError, ConfigError
from flexgen.networks import FrameUNet
from flexgen.saving import MANIFEST
from flexgen.video import NoiseProcess, PixelScale, VideoBackbone
from tests.networks import small

WEIGHTS = Path("network/diffusion_pytorch_model.safetensors")


def backbone(process: NoiseProcess | None = None) -> VideoBackbone:
    scale = PixelScale(0.4, 0.2)
    return VideoBackbone(small.network(), process or NoiseProcess(), scale, window=6, trained_on={"clips": 3})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    backbone().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def earlier(saved: Path) -> Path:
    """As versions without manifests left it: what such a folder holds is read, and refused, without checksums."""
    (saved / MANIFEST).unlink()
    description = saved / "backbone.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "format": 1}))
    return saved


def test_a_backbone_comes_back_as_it_was(saved: Path) -> None:
    first, second = backbone(), VideoBackbone.from_pretrained(saved)
    assert (second.process, second.scale, second.window) == (first.process, first.scale, 6)
    assert second.trained_on == {"clips": 3}
    assert second.frame_shape == (8, 8, 2)
    assert not second.training
    assert second.fingerprint() == first.fingerprint()
    weights = second.network.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in first.network.state_dict().items())
    window = small.window()
    with torch.no_grad():
        assert torch.equal(first.network(**window), second.network(**window))


def test_half_the_size(saved: Path, tmp_path: Path) -> None:
    model = backbone()
    model.save_pretrained(tmp_path / "half", half=True)
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.6 * (saved / WEIGHTS).stat().st_size
    weights = VideoBackbone.from_pretrained(tmp_path / "half").network.state_dict()
    for name, weight in model.network.state_dict().items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], weight.half().float())
        assert (weights[name] - weight).abs().max() <= 2**-11 * weight.abs().max() + 2**-25
    assert model.network.conv_in.weight.dtype == torch.float32  # the model itself is left alone


def test_the_fingerprint_is_of_weights_and_meaning() -> None:
    first = backbone()
    others = [backbone() for _ in range(4)]
    with torch.no_grad():
        others[0].network.conv_in.bias[0] += 1e-6
    others[1] = backbone(NoiseProcess("epsilon"))
    others[2].scale = PixelScale(0.4, 0.21)
    others[3] = VideoBackbone(small.network(attention="full"), NoiseProcess(), PixelScale(0.4, 0.2), window=6)
    prints = {model.fingerprint() for model in (first, *others)}
    assert len(prints) == 5
    assert backbone().fingerprint() == first.fingerprint()


def test_a_missing_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"folder: .*nowhere' holds no backbone.json"):
        VideoBackbone.from_pretrained(tmp_path / "nowhere")
    small.network().save_pretrained(tmp_path / "network")  # a network alone
    with pytest.raises(CheckpointError, match="holds no backbone"):
        VideoBackbone.from_pretrained(tmp_path / "network")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        backbone().save_pretrained(tmp_path / "file")
    backbone().save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "network")
    monkeypatch.chdir(tmp_path)  # where "model/network" would be a name on the Hub
    with pytest.raises(CheckpointError, match=r"'model' holds no network/config.json"):
        VideoBackbone.from_pretrained("model")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is no JSON"),
        ("\udcff", "is no JSON"),
        ("[]", "has format None. This version reads format 2"),
        ('{"format": 99}', "has format 99"),
        ('{"format": 2}', "lacks its flexgen-manifest.json. Copy the whole folder"),
        ('{"format": 1}', "cannot be read: 'process'"),
    ],
)
def test_a_damaged_description(earlier: Path, content: str, text: str) -> None:
    (earlier / "backbone.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=text):
        VideoBackbone.from_pretrained(earlier)


def test_damaged_weights(earlier: Path) -> None:
    whole = (earlier / WEIGHTS).read_bytes()
    (earlier / WEIGHTS).write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        VideoBackbone.from_pretrained(earlier)
    (earlier / WEIGHTS).write_bytes(whole)
    weights = load_file(earlier / WEIGHTS)
    some = weights.pop("conv_in.weight")
    save_file(weights, earlier / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks weights, or has others, such as conv_in"):
        VideoBackbone.from_pretrained(earlier)
    save_file({**weights, "conv_in.weight": some, "more": some.clone()}, earlier / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="such as more"):
        VideoBackbone.from_pretrained(earlier)
    save_file({**weights, "conv_in.weight": some[:2].clone()}, earlier / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"cannot be read: .*conv_in"):
        VideoBackbone.from_pretrained(earlier)


def test_a_foreign_network(earlier: Path) -> None:
    path = earlier / "network" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="describes a UNet2DModel"):
        VideoBackbone.from_pretrained(earlier)
    path.write_text(json.dumps({**config, "chanels": [1]}))
    with pytest.raises(
        CheckpointError, match=r"has a key 'chanels', which FrameUNet has not\. Its keys are sample_size"
    ):
        VideoBackbone.from_pretrained(earlier)
    path.write_text(json.dumps({**config, "attention": "causal"}))
    with pytest.raises(CheckpointError, match="cannot be read: attention: is 'causal'"):
        VideoBackbone.from_pretrained(earlier)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sprung"),))  # type: ignore[return-value]


def test_nothing_is_unpickled(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder whose weights are a pickle, as older checkpoints of diffusers are, is refused unread."""
    monkeypatch.chdir(tmp_path)
    (saved / WEIGHTS).unlink()
    torch.save(FrameUNet().state_dict(), saved / "network/diffusion_pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(CheckpointError, match=r"holds no network/diffusion_pytorch_model\.safetensors"):
        VideoBackbone.from_pretrained(saved)
    (saved / "network/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"holds no network/diffusion_pytorch_model\.safetensors"):
        VideoBackbone.from_pretrained(saved)
    assert not Path("sprung").exists()


def test_a_window_of_one_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"window: is 1\. A window holds at least a target and an observed frame"):
        VideoBackbone(small.network(), NoiseProcess(), PixelScale(), window=1)
