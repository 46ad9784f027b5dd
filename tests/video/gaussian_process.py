"""Videos of a Gaussian process, whose every conditional is known; a small model of them, and how wrong it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen import rng
from flexgen.exact import Gaussian
from flexgen.networks import FrameUNet
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.training import TensorData, TrainingSettings, train
from flexgen.video import FrameDenoising, NoiseProcess, PixelScale, VideoBackbone, WindowSampler
from samplers.laws import FrameGroups

FRAMES, SIDE, WINDOW = 16, 4, 6
PIXELS = SIDE * SIDE
_GREY = 30.0  # levels a standard deviation: rounding adds 1e-4 to variances of 1, clipping lies at 4.2


def law() -> Gaussian:
    """Unit variances; correlation exp(-d / 4) over frames times exp(-distance / 2) over pixels."""
    time = torch.arange(FRAMES, dtype=torch.float64)
    place = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    kernel = torch.kron((-(time[:, None] - time).abs() / 4).exp(), (-torch.cdist(place, place) / 2).exp())
    return Gaussian(torch.zeros(len(kernel)), kernel)


def videos(count: int, *, seed: int) -> Tensor:
    """uint8 ``[n, T, h, w, 1]``."""
    root = torch.linalg.cholesky(law().covariance)
    z = torch.randn(count, len(root), generator=rng.stream(seed, "videos"), dtype=torch.float64) @ root.T
    return (127.5 + _GREY * z).round().clamp(0, 255).to(torch.uint8).view(count, FRAMES, SIDE, SIDE, 1)


def values(frames: Tensor) -> Tensor:
    return (frames.double() - 127.5) / _GREY


def trained(num_steps: int, *, attention: str = "one_way") -> VideoBackbone:
    """By the law of frame groups, on videos of which the test uses none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FrameUNet(SIDE, 1, (16, 32), ("frames", "joint"), num_heads=2, attention=attention)
    scale, process = PixelScale(0.5, _GREY / 255), NoiseProcess()
    objective = FrameDenoising(FrameGroups(WINDOW), process, scale, window=WINDOW)
    frames = videos(20_000, seed=1)
    settings = TrainingSettings(
        num_steps=num_steps,
        batch_size=32,
        lr=4e-3,
        num_warmup_steps=20,
        ema_decay=0.98,
        validate_every=num_steps,
        seed=2,
    )
    train(network, objective, TensorData({"frames": frames}), settings, progress=False)
    return VideoBackbone(network, process, scale, window=WINDOW)


@dataclass(frozen=True)
class Error:
    """How far draws of p(x_P | x_C) are from the exact law.

    Args:
        mean: mean square error of the conditional mean, in variances of a pixel, without bias: from the product of the
            errors of two draws given the same frames.
        mean_noise: its standard error for an exact sampler.
        covariance: relative error of the conditional covariance, in the Frobenius norm.
        covariance_noise: its root mean square for an exact sampler.
    """

    mean: float
    mean_noise: float
    covariance: float
    covariance_noise: float


def error(
    sampler: WindowSampler, target: list[int], observed: list[int], *, count: int = 400, wrong: str | None = None
) -> Error:
    """Of two draws for each of `count` videos.

    Args:
        wrong: ways to spoil the sampler: ``"index"`` numbers the frames from 0 on, ``"blind"`` hides the observed ones.
    """
    exact = law()
    frames = videos(count, seed=3)
    sites = torch.arange(FRAMES * PIXELS).view(FRAMES, PIXELS)
    p, c = sites[target].flatten(), sites[observed].flatten()
    query = Query.of(p.tolist(), c.tolist(), num_sites=FRAMES * PIXELS)
    z = values(frames).flatten(1)
    k = exact.covariance
    gain = torch.linalg.solve(k[c][:, c], k[c][:, p]).T if len(c) else torch.zeros(len(p), 0, dtype=torch.float64)
    covariance = k[p][:, p] - gain @ k[c][:, p]
    mean = z[:, c] @ gain.T  # [n, P pixels]
    torch.testing.assert_close(exact.marginals(z[:2], query).mean()[:, p], mean[:2])
    slots = sorted([*target, *observed])
    asked = Query.of(
        [slots.index(frame) for frame in target],
        [] if wrong == "blind" else [slots.index(frame) for frame in observed],
        num_sites=len(slots),
    )
    index = torch.arange(len(slots)) if wrong == "index" else torch.tensor(slots)
    residuals = []
    for draw in range(2):
        out = sampler.sample_window(frames[:, slots], asked, frame_index=index, generator=Streams(10 + draw, count))
        drawn = values(out)[:, [slots.index(frame) for frame in target]].flatten(1)
        residuals.append(drawn - mean)
    first, second = residuals
    d, norm = len(p), covariance.square().sum()
    estimate = (first - second).T @ (first - second) / (2 * count)  # of the covariance, whatever the mean
    return Error(
        float((first * second).mean()),
        float((norm / (d * d * count)).sqrt()),
        float(((estimate - covariance).square().sum() / norm).sqrt()),
        float(((covariance.trace().square() + norm) / (count * norm)).sqrt()),
    )
