"""Change, seams, stillness and sharpness, each with videos that must be told apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flexgen.errors import DataError
from flexgen.metrics.video import (
    MotionStatistics,
    SeamDiscontinuity,
    Sharpness,
    frame_change,
    gradient_energy,
    seams_of_windows,
)

SEAMS = torch.zeros(29, dtype=torch.bool)
SEAMS[[9, 19]] = True


def moving(num_videos: int = 8, *, seed: int = 0, pace: int = 1, blur: int = 1) -> Tensor:
    """A noise picture of each video that moves to the right, uint8 [B, 30, 16, 16, 3]."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.rand(num_videos, 3, 16, 96, generator=generator)
    wide = F.avg_pool2d(wide, blur, 1, blur // 2) if blur > 1 else wide
    frames = [wide[..., pace * t : pace * t + 16] for t in range(30)]
    return (255 * torch.stack(frames, 1)).to(torch.uint8).movedim(2, -1)


def test_known_changes():
    video = torch.zeros(1, 3, 4, 4, 3, dtype=torch.uint8)
    video[0, 1] = 200
    video[0, 2, :2] = 10  # from 200 to 10 above and to 0 below: uint8 arithmetic would wrap
    assert frame_change(video).tolist() == [[200.0, 195.0]]


def test_known_gradients():
    stripes = torch.zeros(1, 1, 4, 4, 1, dtype=torch.uint8)
    stripes[..., 1::2, :] = 10  # every step across is 10, none down
    assert gradient_energy(stripes).item() == 50.0
    assert gradient_energy(torch.full((1, 1, 4, 4, 1), 9, dtype=torch.uint8)).item() == 0.0


def test_seams_of_windows():
    assert seams_of_windows(torch.tensor([-1, -1, 0, 0, 1, 0])).tolist() == [False, True, False, True, True]


def seam_scores(video: Tensor) -> dict[str, float]:
    metric = SeamDiscontinuity()
    metric.update(video[:3], SEAMS)
    metric.update(video[3:], SEAMS)
    metric.update(moving(6, seed=1), SEAMS, real=True)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.statistical
def test_a_video_without_seams_has_a_ratio_of_one():
    scores = seam_scores(moving(40))
    assert abs(scores["ratio"] - 1) < 4 * scores["ratio_se"] < 0.2
    assert abs(scores["across_to_real"] - 1) < 4 * scores["across_to_real_se"] < 0.2
    assert abs(scores["real_ratio"] - 1) < 4 * scores["real_ratio_se"]


def test_a_jump_at_seams_is_seen_there_alone():
    video = moving(40).to(torch.int16)
    video[:, 10:20] = video[:, 10:20].roll(8, 3)  # the middle window shows another part of the picture
    faded = moving(40, blur=5)
    jump = faded.clone()
    jump[:, 10:20] = jump[:, 10:20].roll(8, 3)
    scores, smooth = seam_scores(jump), seam_scores(faded)
    assert scores["ratio"] > 1.5 > 1.1 > smooth["ratio"]
    assert scores["inside"] == pytest.approx(smooth["inside"])
    metric = SeamDiscontinuity()
    metric.update(jump, SEAMS.roll(5))  # seams looked for at other places find nothing
    assert abs(float(metric.compute()["ratio"]) - 1) < 0.2


def test_the_standard_error_is_that_of_videos_not_of_frames():
    """Videos that differ as wholes: the spread of the ratio over many repetitions is what the error says."""
    ratios, errors = [], []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        jumps = torch.randint(10, 60, (12,), generator=generator)
        video = torch.zeros(12, 30, 2, 2, 1, dtype=torch.uint8)
        video[:, 1::2] = 20
        video[:, 10:20] += jumps.to(torch.uint8)[:, None, None, None, None]
        metric = SeamDiscontinuity()
        metric.update(video, SEAMS)
        scores = metric.compute()
        ratios.append(scores["ratio"])
        errors.append(scores["ratio_se"])
    spread = torch.stack(ratios).std()
    # The sd of a sample sd of 60 is 1/sqrt(118) of it; 4 of these, and the bias of the delta method at 12 videos.
    assert 0.6 < float(torch.stack(errors).mean() / spread) < 1.5
    per_frame = torch.stack(errors).mean() / 29**0.5  # what taking frames as independent would give
    assert float(per_frame / spread) < 0.6


@pytest.mark.parametrize(
    ("seams", "said"),
    [
        (torch.zeros(29, dtype=torch.bool), "nowhere or everywhere"),
        (torch.ones(29, dtype=torch.bool), "nowhere or everywhere"),
        (torch.zeros(30, dtype=torch.bool), r"has shape \(30,\)\. Pass \[29\] or \[2, 29\]"),
        (torch.zeros(29), "is torch.float32. Pass bool"),
    ],
)
def test_bad_seams(seams, said):
    with pytest.raises(DataError, match=said):
        SeamDiscontinuity().update(moving(2), seams)


def test_motion_tells_faster_slower_and_still_videos_apart():
    real = moving(8, pace=1, blur=9)

    def scores(video):
        metric = MotionStatistics()
        metric.update(real[:4], real=True)
        metric.update(real[4:], real=True)
        metric.update(video)
        return {name: float(value) for name, value in metric.compute().items()}

    same = scores(real)
    assert same["ratio"] == pytest.approx(1)
    assert same["change"] == pytest.approx(float(frame_change(real).mean()))
    assert scores(moving(8, pace=2, blur=9))["ratio"] > 1.3
    frozen = real.clone()
    frozen[:, 10:21] = real[:, 10:11]
    found = scores(frozen)
    assert found["still"] == pytest.approx(10 / 29)
    assert found["real_still"] == 0
    assert found["ratio"] < 0.9


def test_sharpness_tells_blur_and_noise_apart():
    real = moving(8, blur=3)

    def ratio(video):
        metric = Sharpness()
        metric.update(real, real=True)
        metric.update(video)
        return float(metric.compute()["ratio"])

    assert ratio(real) == pytest.approx(1)
    assert ratio(moving(8, blur=5)) < 0.6
    noise = torch.randint(-30, 31, real.shape, generator=torch.Generator().manual_seed(0))
    assert ratio((real + noise).clamp(0, 255).to(torch.uint8)) > 1.2
    assert ratio(real + 0 * noise.to(torch.uint8)) == pytest.approx(1)


def test_what_was_not_updated_is_nan():
    metric = MotionStatistics()
    metric.update(moving(1))
    assert metric.compute()["real_change"].isnan()
    assert metric.compute()["ratio"].isnan()
    assert metric.compute()["change"] > 0


@pytest.mark.parametrize(
    ("video", "said"),
    [
        (torch.zeros(1, 4, 8, 8, 3), "is torch.float32"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"has shape \(4, 8, 8, 3\)"),
        (torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8), r"has shape \(1, 4, 3, 8, 8\). Pass \[B, F, H, W, C\]"),
        (torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8), r"has 1 frame\(s\)"),
        ([1], "is a list"),
    ],
)
def test_bad_videos(video, said):
    with pytest.raises(DataError, match=said):
        frame_change(video)
