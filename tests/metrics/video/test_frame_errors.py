"""Errors of frames by the distance to what was observed."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from flexgen.errors import DataError
from flexgen.metrics.video import ErrorByDistance, frame_errors, frames_to_observed


def videos(seed: int = 0, shape=(2, 6, 16, 16, 3)) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_frames_to_observed():
    observed = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    assert frames_to_observed(observed)[0].tolist() == [0, 1, 2, 1, 0, 1]
    assert frames_to_observed(observed)[1].isinf().all()
    assert frames_to_observed(observed[0]).tolist() == [0, 1, 2, 1, 0, 1]


def test_errors_of_frames_are_those_of_torchmetrics():
    video, truth = videos(0), videos(1)
    truth[0, 2] = video[0, 2]
    found = frame_errors(video, truth)
    assert found["mse"][0, 2] == 0
    assert found["psnr"][0, 2] == math.inf
    assert found["ssim"][0, 2] == pytest.approx(1)
    a, b = (v[1, 3].movedim(-1, 0)[None].float() for v in (video, truth))
    assert float(found["psnr"][1, 3]) == pytest.approx(float(peak_signal_noise_ratio(a, b, data_range=255.0)), rel=1e-5)
    assert float(found["ssim"][1, 3]) == pytest.approx(
        float(structural_similarity_index_measure(a, b, data_range=255.0)), rel=1e-4
    )
    black, white = (torch.full((1, 1, 16, 16, 1), v, dtype=torch.uint8) for v in (0, 255))
    assert frame_errors(black, white)["mse"].item() == 255**2  # uint8 arithmetic would wrap to 1


def test_a_drift_is_seen_in_its_bins():
    truth = torch.full((2, 9, 16, 16, 3), 100, dtype=torch.uint8)
    video = truth.clone()
    for t in range(9):
        video[:, t] += t  # frame 0 is observed; the error grows
    observed = torch.zeros(9, dtype=torch.bool)
    observed[0] = True
    metric = ErrorByDistance(edges=(1, 2, 4, 9))
    metric.update(video[:1], truth[:1], frames_to_observed(observed))
    metric.update(video[1:], truth[1:], frames_to_observed(observed).expand(1, 9))
    scores = metric.compute()
    assert scores["frames"].tolist() == [2, 4, 10]
    assert scores["mse"].tolist() == pytest.approx([1, (4 + 9) / 2, (16 + 25 + 36 + 49 + 64) / 5])
    assert scores["psnr"].tolist() == pytest.approx([10 * math.log10(255**2 / m) for m in scores["mse"].tolist()])
    shuffled = ErrorByDistance(edges=(1, 2, 4, 9))
    shuffled.update(video.flip(1), truth, frames_to_observed(observed))
    assert (shuffled.compute()["mse"].diff() < 0).all()  # the same frames at other distances are told apart


def test_frames_outside_all_bins_count_nowhere():
    metric = ErrorByDistance(edges=(1, 3, 3.5))
    metric.update(videos(0), videos(1), torch.tensor([0.0, 0.5, 1.0, 2.9, 3.0, torch.inf]))
    assert metric.compute()["frames"].tolist() == [4, 2]
    empty = ErrorByDistance(edges=(50, 60, 70))
    empty.update(videos(0), videos(1), torch.zeros(6))
    assert empty.compute()["mse"].isnan().all()
    unbounded = ErrorByDistance()
    unbounded.update(videos(0), videos(1), torch.full((6,), 1000.0))
    assert unbounded.compute()["frames"].tolist() == [0] * 9 + [12]


def test_errors():
    with pytest.raises(DataError, match=r"edges: are \(1, 1\)"):
        ErrorByDistance(edges=(1, 1))
    with pytest.raises(DataError, match="its pair"):
        frame_errors(videos(0), videos(0)[:, :3])
    with pytest.raises(DataError, match="SSIM needs 11"):
        frame_errors(videos(0)[:, :, :8, :8], videos(0)[:, :, :8, :8])
    with pytest.raises(DataError, match=r"distance: has shape \(5,\)\. Pass \[6\] or \[2, 6\]"):
        ErrorByDistance().update(videos(0), videos(1), torch.zeros(5))
