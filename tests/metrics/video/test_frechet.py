"""The Frechet distance against closed forms, scipy and torchmetrics."""

from __future__ import annotations

import pytest
import torch
from scipy import linalg
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from flexgen.errors import DataError
from flexgen.metrics.video import FrechetDistance, frechet_distance


class Averages(nn.Module):
    """Mean grey level of the four quarters of a video's first frame."""

    num_features = 4

    def forward(self, video: Tensor) -> Tensor:
        x = video[:, 0].float().mean(-1)
        return torch.nn.functional.avg_pool2d(x[:, None], x.shape[-1] // 2).flatten(1)


class OfImages(nn.Module):
    """The same of images, as torchmetrics passes them."""

    num_features = 4

    def forward(self, images: Tensor) -> Tensor:
        return Averages()(images.movedim(1, -1)[:, None])


def videos(num: int, seed: int, *, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, (num, 2, 8, 8, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def covariance(seed: int) -> Tensor:
    x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.mT @ x / 9


def test_against_scipy_and_in_closed_form():
    mean, other = torch.arange(5.0).double(), torch.ones(5).double()
    s, t = covariance(0), covariance(1)
    root = torch.from_numpy(linalg.sqrtm((s @ t).numpy()).real)
    expected = (mean - other).square().sum() + (s + t - 2 * root).trace()
    found = frechet_distance(mean, s, other, t)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)
    without_cross_term = (mean - other).square().sum() + (s + t).trace()
    assert abs(float(without_cross_term - expected)) > 0.1
    assert float(frechet_distance(mean, s, mean, s)) == pytest.approx(0, abs=1e-10)
    assert float(frechet_distance(mean, s, mean, 4 * s)) == pytest.approx(float(s.trace()), rel=1e-9)
    one = torch.eye(1).double()
    assert float(frechet_distance(one[0], 4 * one, 3 * one[0], 9 * one)) == pytest.approx(4 + 1)


def test_against_torchmetrics():
    real, generated = videos(60, 0), videos(50, 1, high=200)
    ours = FrechetDistance(Averages())
    theirs = FrechetInceptionDistance(feature=OfImages()).set_dtype(torch.float64)
    for video, is_real in ((real, True), (generated, False)):
        for part in video.split(20):
            ours.update(part, real=is_real)
            theirs.update(part[:, 0].movedim(-1, 1), real=is_real)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_it_tells_other_videos_from_the_same():
    def score(generated: Tensor) -> float:
        metric = FrechetDistance(Averages())
        metric.update(videos(200, 0), real=True)
        metric.update(generated, real=False)
        return float(metric.compute())

    assert score(videos(200, 0)) == pytest.approx(0, abs=1e-6)
    same, brighter, duller = (
        score(videos(200, 1)),
        score(videos(200, 1, low=40)),
        score(videos(200, 1, low=100, high=156)),
    )
    assert same < 12 < 500 < brighter  # the means alone give 4 * 2 * 114 / 200 = 4.6 on average
    assert duller > 100  # of one mean, with too little variety


def test_errors():
    with pytest.raises(DataError, match="num_features: is not given"):
        FrechetDistance(nn.Identity())
    metric = FrechetDistance(Averages(), num_features=3)
    with pytest.raises(DataError, match=r"features: gave a shape of \(4, 4\)"):
        metric.update(videos(4, 0), real=True)
    metric = FrechetDistance(Averages())
    metric.update(videos(4, 0), real=True)
    metric.update(videos(1, 0), real=False)
    with pytest.raises(DataError, match="generated: has 1 rows"):
        metric.compute()
    with pytest.raises(DataError, match="video: is torch"):
        metric.update(videos(4, 0).float(), real=True)
