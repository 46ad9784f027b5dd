"""Score asymmetry of a video backbone: its probes against the whole Jacobian, for every process and observed frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexgen.compatibility import linear_score_asymmetry, score_asymmetry
from flexgen.query import Query
from flexgen.rng import stream
from flexgen.video import NoiseProcess, PixelScale, VideoBackbone
from tests.networks import small

LEVEL = 0.5
WINDOW, SIZE = 2, 8 * 8  # frames of a window, the second one the target; pixels of a frame


def backbone(prediction: str) -> VideoBackbone:
    network = small.network(in_channels=1, channels=(16,), attention_levels=("joint",))
    return VideoBackbone(network, NoiseProcess(prediction), PixelScale(), window=WINDOW).eval()


def score_of(model: VideoBackbone) -> Callable[[Tensor], Tensor]:
    """Windows ``[B, K, 1, 8, 8]`` -> the score of the target frame at LEVEL, 0 at the observed one."""
    query = Query.of(target=[1], observed=[0], num_sites=WINDOW)
    # The marginal path of a site is x = a x_0 + s e: these coefficients are read from the process itself.
    one = torch.ones(1, 1, 1, 1, 1)
    level = torch.full((1, 1), LEVEL)
    a, s = float(model.process.noised(one, 0 * one, level)), float(model.process.noised(0 * one, one, level))

    def score(x: Tensor) -> Tensor:
        slots = query.expand(len(x))
        target = slots.target[..., None, None, None]
        at = model.process.seen(torch.where(slots.target, LEVEL, 0.0))
        index = torch.arange(WINDOW).expand(len(x), -1)
        out = model.network(x, at, index, observed=slots.observed, present=slots.target | slots.observed)
        if model.process.prediction == "epsilon":
            noise = out
        elif model.process.prediction == "flow":
            noise = x + a * out  # x = (1 - l) x_0 + l e and out = e - x_0
        else:
            noise = a * out + s * x  # v = a e - s x_0
        return torch.where(target, -noise / s, 0.0)

    return score


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v_prediction"])
def test_compatibility_probes_follow_a_video_backbone(prediction: str) -> None:
    """Convolutions, normalisation and attention are differentiated twice; observed frames have no part in it."""
    model = backbone(prediction)
    score = score_of(model)
    windows = torch.randn(2, WINDOW, 1, 8, 8, generator=stream(0, "windows"))
    result = score_asymmetry(score, windows, generator=0, num_probes=32)
    jacobians = []
    for window in windows:

        def of_target(frame: Tensor, window: Tensor = window) -> Tensor:
            return score(torch.stack([window[0], frame.view(1, 8, 8)])[None])[0, 1].flatten()

        jacobians.append(torch.autograd.functional.jacobian(of_target, window[1].flatten()).double())
    together = torch.block_diag(*jacobians)  # shares add up as squared norms do
    assert abs(result.value - linear_score_asymmetry(together)) < 4.5 * result.probe_error
    assert result.value > 100 * result.floor  # a network of any weights is no gradient
    assert result.probe_error < 0.3 * result.value
    assert all(weight.grad is None for weight in model.parameters())


def test_compatibility_a_fresh_video_backbone_is_a_gradient() -> None:
    """Its last layer is zero: the score is -x / l, whose Jacobian is symmetric."""
    model = backbone("flow")
    for weight in model.network.parameters():
        torch.nn.init.zeros_(weight)
    windows = torch.randn(2, WINDOW, 1, 8, 8, generator=stream(0, "windows"))
    assert score_asymmetry(score_of(model), windows, generator=0, num_probes=4).value == 0.0


def test_compatibility_planted_rotation_of_a_video_score_is_found() -> None:
    """A score that is a gradient plus a rotation of known size between two pixels of the target frame."""
    rotation = torch.zeros(SIZE, SIZE)
    rotation[0, 1], rotation[1, 0] = 4.0, -4.0
    model = backbone("flow")
    for weight in model.network.parameters():
        torch.nn.init.zeros_(weight)
    plain = score_of(model)

    def score(x: Tensor) -> Tensor:
        turned = (x[:, 1].flatten(1) @ rotation.T).view(-1, 1, 1, 8, 8)
        return plain(x) + torch.cat([torch.zeros_like(turned), turned], 1)

    windows = torch.randn(2, WINDOW, 1, 8, 8, generator=stream(0, "windows"))
    result = score_asymmetry(score, windows, generator=0, num_probes=16)
    expected = linear_score_asymmetry(rotation - torch.eye(SIZE) / LEVEL)
    assert expected == pytest.approx(32 / (32 + 4 * SIZE))
    assert abs(result.value - expected) < 4.5 * result.probe_error + 1e-6
