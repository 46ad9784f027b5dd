"""The perceptual distance: its network against the original's, and what it tells apart."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flexgen.errors import DataError
from flexgen.metrics.video import LPIPS, ShiftTolerantAlexNet

NEEDS_WEIGHTS = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="needs the weights of stlpips-pytorch"
)


class SquaredDifference(nn.Module):
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return (images - others).square().mean((1, 2, 3))


def videos(seed: int = 0) -> Tensor:
    smooth = F.interpolate(
        torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(seed)), size=32, mode="bicubic"
    )
    return (255 * smooth.clamp(0, 1)).to(torch.uint8).movedim(1, -1).view(2, 3, 32, 32, 3)


def test_the_mean_over_frames_and_the_scale_of_the_images():
    metric = LPIPS(SquaredDifference())
    black, white = (torch.full((1, 3, 8, 8, 1), v, dtype=torch.uint8) for v in (0, 255))
    half = black.clone()
    half[:, 0] = 255
    metric.update(black, white)
    metric.update(half, white)
    assert metric.distances(half, white).tolist() == [[0, 4, 4]]
    assert float(metric.compute()) == pytest.approx((4 * 3 + 4 * 2) / 6)


def test_without_the_weights_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"Install flexgen-samplers\[lpips\]"):
        LPIPS()


def test_distances_of_frames_by_a_network_of_ones_own():
    frames = videos().flatten(0, 1)
    metric = LPIPS(SquaredDifference())
    assert torch.equal(metric.distance(frames, frames.flip(0)), metric.distances(frames[None], frames.flip(0)[None])[0])
    with pytest.raises(DataError, match=r"frames: is torch\.float32"):
        metric.distance(frames.float(), frames)


def test_shapes_must_agree():
    with pytest.raises(DataError, match="its pair"):
        LPIPS(SquaredDifference()).update(videos()[:1], videos())


@NEEDS_WEIGHTS
def test_the_network_is_the_original_one(monkeypatch):
    for name in ("torchvision", "torchvision.models", "IPython", "torchsummary"):  # imported there, not used
        module = types.ModuleType(name)
        module.models = module.embed = module.summary = None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    original = importlib.import_module("stlpips_pytorch.stlpips").LPIPS(
        net="alex", variant="shift_tolerant", verbose=False
    )
    ours = ShiftTolerantAlexNet.pretrained()
    generator = torch.Generator().manual_seed(0)
    for size in (32, 64):
        a, b = (torch.rand(3, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))
        with torch.no_grad():
            torch.testing.assert_close(ours(a, b), original(a, b).flatten(), rtol=1e-4, atol=1e-6)


@NEEDS_WEIGHTS
def test_distances_of_frames_are_those_of_videos_and_each_frame_passes_once():
    frames, metric = videos().flatten(0, 1), LPIPS()
    passed = []
    convolution = metric.network.convolutions[0]
    convolution.register_forward_hook(lambda _module, given, _out: passed.append(len(given[0])))
    others = frames[2].expand_as(frames)  # as the selection of farthest points asks
    found = metric.distance(frames, others)
    assert sum(passed) == 6
    again = metric.distance(frames[1:3], frames[4:])
    assert sum(passed) == 6
    torch.testing.assert_close(found, metric.distances(frames[None], others[None])[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(again, metric.distances(frames[None, 1:3], frames[None, 4:])[0], rtol=1e-4, atol=1e-7)
    assert found[2] == 0


@NEEDS_WEIGHTS
def test_frames_too_small_for_the_network_are_refused():
    with pytest.raises(DataError, match=r"frames: have 20 x 20 pixels. LPIPS needs 21"):
        LPIPS().distance(videos()[0, :, :20, :20], videos()[0, :, :20, :20])
    assert len(LPIPS().distance(videos()[0, :, :21, :21], videos()[1, :, :21, :21])) == 3


@NEEDS_WEIGHTS
def test_it_sees_blur_more_than_a_small_shift():
    truth = videos()
    checks = truth.clone()
    checks[:, :, ::2, ::2] = 255 - checks[:, :, ::2, ::2]
    metric = LPIPS()
    assert metric.distances(truth, truth).abs().max() < 1e-6
    shifted, noisy = metric.distances(truth.roll(1, 3), truth), metric.distances(checks, truth)
    assert (noisy > 3 * shifted).all()
    assert (metric.distances(truth.flip(0), truth) > shifted).all()
