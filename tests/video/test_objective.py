"""The denoising objective: what a row's loss depends on, and its noise levels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.errors import ConfigError, DataError, QueryError
from flexgen.laws import MaskDraw
from flexgen.query import Query
from flexgen.rng import Randomness, Streams
from flexgen.video import FrameDenoising, NoiseProcess, PixelScale
from tests.networks import small

TARGET, OBSERVED = [5, 6, 9], [0, 4]


class Fixed:
    """A law of one query."""

    def __init__(self, target: list[int], observed: list[int]) -> None:
        self.query = Query.of(target, observed, num_sites=10)

    def draw(self, present: Tensor, *, generator: Randomness, x: Tensor | None = None) -> MaskDraw:  # noqa: ARG002
        return MaskDraw(self.query, torch.ones(len(present)))


def objective(target: list[int] = TARGET, observed: list[int] = OBSERVED, **options: object) -> FrameDenoising:
    process = options.pop("process", NoiseProcess())
    return FrameDenoising(Fixed(target, observed), process, PixelScale(), **{"window": 6, **options})  # type: ignore[arg-type]


def clips(num_rows: int = 3) -> Tensor:
    return torch.randint(0, 256, (num_rows, 10, 8, 8, 2), dtype=torch.uint8, generator=rng.stream(0, "clips"))


@torch.no_grad()
def loss(of: FrameDenoising, frames: Tensor, rows: list[int] | None = None) -> Tensor:
    names = torch.arange(len(frames)) if rows is None else torch.tensor(rows)
    return of(small.network(), {"frames": frames}, Streams(3, names))


class Spy(nn.Module):
    """Remembers what a network is asked, and answers zero."""

    def forward(
        self, frames: Tensor, level: Tensor, frame_index: Tensor, *, observed: Tensor, present: Tensor
    ) -> Tensor:
        self.frames, self.level, self.frame_index = frames, level, frame_index
        self.observed, self.present = observed, present
        return torch.zeros_like(frames)


def asked(of: FrameDenoising, frames: Tensor) -> Spy:
    spy = Spy()
    of(spy, {"frames": frames}, Streams(3, len(frames)))
    return spy


def test_the_network_is_shown_the_window() -> None:
    frames, scale = clips(), PixelScale()
    spy = asked(objective(), frames)
    assert spy.frame_index.tolist() == [[0, 4, 5, 6, 9, 0]] * 3
    assert spy.observed.tolist() == [[True, True, False, False, False, False]] * 3
    assert spy.present.tolist() == [[True] * 5 + [False]] * 3
    assert torch.equal(spy.frames[:, :2], scale.to_network(frames[:, [0, 4]]))  # bit-identical
    assert (spy.level[:, :2] == 0).all()
    assert (spy.level[:, 2:5] == spy.level[:, 2:3]).all()
    assert (spy.level[:, 2] > 0).all()


@pytest.mark.parametrize("process", [NoiseProcess(), NoiseProcess("epsilon"), NoiseProcess("v_prediction")])
def test_the_loss_is_the_mean_square_over_targets(process: NoiseProcess) -> None:
    """Of an answer of zero: the mean square of what is wanted, of targets and of nothing else."""
    of, frames = objective(process=process, level=0.5), clips()
    value = of(Spy(), {"frames": frames}, Streams(3, 3))
    clean = PixelScale().to_network(frames[:, TARGET])
    noise = rng.normal((3, 6, 2, 8, 8), generator=Streams(3, 3))[:, 2:5]
    wanted = process.wanted(clean, noise, torch.full((3, 3), 0.5))
    torch.testing.assert_close(value, wanted.square().flatten(1).mean(1))


def test_only_the_window_matters() -> None:
    of, frames = objective(), clips()
    first = loss(of, frames)
    other = frames.clone()
    other[:, [1, 2, 3, 7, 8]] = 255 - other[:, [1, 2, 3, 7, 8]]
    assert torch.equal(loss(of, other), first)
    torch.testing.assert_close(loss(objective(window=9), frames), first, atol=1e-5, rtol=1e-5)
    for frame in (0, 4, 5):
        other = frames.clone()
        other[:, frame] = 255 - other[:, frame]
        assert (loss(of, other) - first).abs().min() > 1e-4, frame


def test_padding_slots_hold_nothing_that_counts() -> None:
    """They are filled with frame 0, which here is not of the window."""
    of, frames = objective(observed=[4]), clips()
    other = frames.clone()
    other[:, 0] = 255 - other[:, 0]
    assert torch.equal(loss(of, other), loss(of, frames))


def test_rows_do_not_depend_on_each_other() -> None:
    of, frames = objective(observed_noise=0.3, flip=True), clips(4)
    together = loss(of, frames)
    for row in range(4):
        torch.testing.assert_close(
            loss(of, frames[row : row + 1], [row]), together[row : row + 1], atol=1e-5, rtol=1e-5
        )
    assert torch.equal(loss(of, frames), together)


@pytest.mark.statistical
def test_levels_are_uniform_and_evenly_spread() -> None:
    """Of one row over 4000 steps: Kolmogorov-Smirnov, false alarm 1e-6. Over a batch: far more even than independent.

    Steps of the golden ratio leave gaps of at most 2.618 / B; independent levels would leave one of about log(B) / B.
    """
    of, n = objective(), 4000
    alone = torch.stack([of._target_level(1, Streams(seed, 1))[0] for seed in range(n)]).sort().values
    grid = torch.arange(n) / n
    distance = max(float((alone - grid).max()), float((grid + 1 / n - alone).max()))
    critical = math.sqrt(math.log(2 / 1e-6) / (2 * n))
    assert distance < critical
    skewed = alone.square()
    assert float((grid + 1 / n - skewed).abs().max()) > critical  # what the test would reject
    for start in (0, 10**6, 2**40, 2**62):  # names of rows, however large
        batch = of._target_level(64, Streams(1, torch.arange(start, start + 64))).sort().values
        gaps = torch.cat([batch, batch[:1] + 1]).diff()
        assert gaps.max() < 2.618 / 64 + 1e-6
        assert ((batch >= 0) & (batch < 1)).all()


def test_levels_differ_from_step_to_step() -> None:
    of = objective()
    first, second = (of._target_level(4, Streams(seed, 4)) for seed in (1, 2))
    assert (first - second).abs().min() > 1e-3
    assert torch.equal(of._target_level(4, Streams(1, 4)), first)
    assert (objective(level=0.25)._target_level(4, Streams(1, 4)) == 0.25).all()
    plain = of._target_level(1000, torch.Generator().manual_seed(0))
    assert ((plain >= 0) & (plain < 1)).all()


def test_half_of_the_clips_are_mirrored() -> None:
    frames, scale = clips(400), PixelScale()
    shown = asked(objective(flip=True), frames).frames[:, :2]  # observed frames have no noise
    clean = scale.to_network(frames[:, [0, 4]])
    mirrored = (shown == clean.flip(-1)).flatten(1).all(1)
    assert (mirrored | (shown == clean).flatten(1).all(1)).all()
    assert abs(int(mirrored.sum()) - 200) < 5 * 10  # five standard deviations: false alarm 6e-7
    assert (asked(objective(), frames).frames[:, :2] == clean).all()


def test_observed_frames_may_have_noise_and_say_so() -> None:
    frames, scale = clips(400), PixelScale()
    spy = asked(objective(observed_noise=0.4), frames)
    level, clean = spy.level[:, 0], scale.to_network(frames[:, [0, 4]])
    assert torch.equal(spy.level[:, 0], spy.level[:, 1])
    assert abs(int((level == 0).sum()) - 200) < 50  # five standard deviations
    assert 0.35 < float(level.max()) < 0.4
    untouched = (spy.frames[:, :2] == clean).flatten(1).all(1)
    assert torch.equal(untouched, level == 0)
    noise = (spy.frames[:, :2] - (1 - level.view(-1, 1, 1, 1, 1)) * clean) / level.clamp_min(1e-3).view(-1, 1, 1, 1, 1)
    assert abs(float(noise[level > 0.05].std()) - 1) < 0.05


def test_a_row_without_targets_has_no_loss() -> None:
    assert (loss(objective(target=[], observed=[1, 2]), clips()) == 0).all()


def test_errors() -> None:
    frames = clips()
    with pytest.raises(QueryError, match="query: names 5 frames in a row, but a window holds 4"):
        loss(objective(window=4), frames)
    with pytest.raises(DataError, match=r"data: yields a tensor\. Frame denoising needs 'frames' and 'present'"):
        objective()(Spy(), frames, Streams(0, 3))
    with pytest.raises(DataError, match=r"data: yields batches of \['x'\]"):
        objective()(Spy(), {"x": frames}, Streams(0, 3))
    with pytest.raises(DataError, match=r"data: yields frames torch.float32 \(3, 10, 8, 8, 2\)"):
        objective()(Spy(), {"frames": frames.float()}, Streams(0, 3))
    with pytest.raises(ConfigError, match=r"observed_noise: is 1.0. Pass a level in \[0, 1\)"):
        objective(observed_noise=1.0)
    with pytest.raises(ConfigError, match="window: is 0"):
        objective(window=0)
