"""The network that reads mazes: its weights, and what is computed from its readings, against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen.data.mazes import Maze, walk
from flexgen.data.video_files import read_frames
from flexgen.errors import CheckpointError, DataError
from flexgen.metrics.video import FrechetDistance, revisits
from flexgen.metrics.video.maze_features import (
    FLAWS,
    WEIGHTS,
    MazeFeatures,
    MazeReading,
    WalkStatistics,
    jackknife_error,
)

WALK = Path(__file__).parents[3] / "checkpoints/mazes32/held_out.mp4"


def videos(num: int, num_frames: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, num_frames, 32, 32, 3), generator=generator).to(torch.uint8)


class Told(MazeFeatures):
    """Reads what it is told instead of frames."""

    def __init__(self, speed: Tensor, turn: Tensor, clear: Tensor) -> None:
        super().__init__()
        nothing = torch.zeros(*speed.shape, len(FLAWS))
        self.told = MazeReading(speed, turn, clear, nothing, nothing, nothing)

    def read(self, video: Tensor) -> MazeReading:  # noqa: ARG002
        return self.told


def test_the_weights_of_the_package() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    network = MazeFeatures.pretrained()
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    assert float(network.mean[0]) == pytest.approx(0.15, abs=0.01)  # metres a frame, of `flexgen render`
    assert float(network.mean[1]) == 0.0
    assert network(videos(2)).shape == (8, network.num_features)  # stacks from frames 0, 4, 8, 12
    still = torch.full((1, 9, 32, 32, 3), 90, dtype=torch.uint8)
    found = network.read(still)
    assert [part.shape for part in found[:3]] == [(1, 5)] * 3
    assert found.flaw.argmax(-1).ne(FLAWS.index("none")).all()  # no maze is grey all over


def test_it_reads_a_held_out_walk() -> None:
    """The walk that comes with the checkpoint, whose poses are known."""
    pytest.importorskip("av")
    if not WALK.exists():
        pytest.skip(f"{WALK} is not there")
    video = torch.from_numpy(np.stack(list(read_frames(WALK, size=32))))[None]
    poses = torch.from_numpy(walk(Maze.draw(1, 3), 300, seed=1, clip=3)).double()
    found = MazeFeatures.pretrained().read(video)
    turn = (poses[4:, 2] - poses[:-4, 2] + math.pi).remainder(2 * math.pi) - math.pi
    speed = poses[:, :2].diff(dim=0).norm(dim=-1).unfold(0, 4, 1).mean(-1)
    assert float((found.turn[0] - turn / 4).square().mean() / (turn / 4).var()) < 0.03
    assert float((found.speed[0] - speed).square().mean() / speed.var()) < 0.15
    assert float((found.flaw.argmax(-1) > 0).double().mean()) < 0.03
    jumping = torch.cat([video[:, :150:10].repeat_interleave(10, 1), video[:, 150:]], 1)  # stands still, then jumps
    flaws = MazeFeatures.pretrained().read(jumping).flaw[0].argmax(-1)
    assert float((flaws[:146] > 0).double().mean()) > 0.7


def test_saved_and_read_back(tmp_path: Path) -> None:
    network = MazeFeatures.pretrained()
    network.save(tmp_path / "weights.safetensors")
    again = MazeFeatures.pretrained(weights=tmp_path / "weights.safetensors")
    assert torch.equal(again(videos(1)), network(videos(1)))


def test_frechet_distance_in_its_features() -> None:
    metric = FrechetDistance(MazeFeatures.pretrained())
    for real in (True, False):
        metric.update(videos(20), real=real)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-3)


def test_walks_against_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    speed, other = 0.3 * torch.rand(3, 500, generator=generator), 0.1 + 0.1 * torch.rand(3, 500, generator=generator)
    turn = torch.deg2rad(14 * torch.rand(3, 500, generator=generator) - 7)
    clear = torch.full((3, 500), 6.0)
    metric = WalkStatistics(Told(speed, turn, clear))
    metric.update(videos(3))
    metric.features = Told(other, 2 * turn, clear)
    metric.update(videos(3), real=True)
    found = metric.compute()
    expected = stats.wasserstein_distance(speed.flatten(), other.flatten())
    assert float(found["speed_distance"]) == pytest.approx(expected, abs=0.001)  # a bin's width
    assert float(found["turn_distance"]) == pytest.approx(float(turn.abs().mean().rad2deg()), abs=0.05)
    assert float(found["speed"]) == pytest.approx(float(speed.mean()), rel=1e-5)
    assert float(found["real_turn"]) == pytest.approx(2 * float(found["turn"]), rel=1e-5)
    assert float(found["near_wall"]) == 0.0
    assert math.isnan(float(found["receding"]))  # there is no wall within reach


def test_walls_that_are_walked_through() -> None:
    def share(clear: Tensor, turn: float = 0.0) -> float:
        n = len(clear)
        metric = WalkStatistics(Told(torch.full((1, n), 0.15), torch.full((1, n), turn), clear[None]))
        metric.update(videos(1))
        metric.update(videos(1), real=True)
        return float(metric.compute()["receding"])

    nearer = 4.5 - 0.15 * torch.arange(16)
    assert share(nearer) == 0.0
    through = torch.where(torch.arange(16) < 12, nearer, 4.0)
    assert share(through) == 0.5  # of 8 walks of 8 frames, those which end behind the wall
    assert math.isnan(share(through, turn=math.radians(1.0)))  # 8 degrees are not straight
    assert share(torch.full((16,), 3.0)) == 1.0  # a wall as far as before, though one walked 1.2 metres


def test_poses_are_reckoned() -> None:
    """Round a circle of 40 frames one is back, 40 and 80 frames later."""
    n = 100
    network = Told(torch.full((1, n - 4), 0.1), torch.full((1, n - 4), 2 * math.pi / 40), torch.ones(1, n - 4))
    poses = network.reckon(videos(1, n))
    assert poses.shape == (1, n, 3)
    assert float((poses[0, 40, :2] - poses[0, 0, :2]).norm()) == pytest.approx(0, abs=1e-4)
    pairs = revisits(poses, gap=30, metres=0.01, degrees=1.0)[0].nonzero()
    assert set((pairs[:, 1] - pairs[:, 0]).tolist()) == {40, 80}


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left_out = (values.sum() - values) / 8
    assert float(jackknife_error(left_out)) == pytest.approx(float(values.std() / 3))


def test_errors(tmp_path: Path) -> None:
    network = MazeFeatures.pretrained()
    with pytest.raises(DataError, match=r"video: has 4 frame"):
        network(videos(1, 4))
    with pytest.raises(DataError, match=r"Pass \[B, F, 32, 32, 3\]"):
        network(videos(1)[:, :, ::2, ::2])
    with pytest.raises(CheckpointError, match=r"weights: .*cannot be read"):
        MazeFeatures.pretrained(weights=tmp_path / "none.safetensors")
    (tmp_path / "half.safetensors").write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"weights: .*cannot be read"):
        MazeFeatures.pretrained(weights=tmp_path / "half.safetensors")
    metric = WalkStatistics(network)
    metric.update(videos(1))
    with pytest.raises(DataError, match="of one kind alone"):
        metric.compute()


def test_they_stand_beside_the_other_scores():
    from flexgen.metrics import video

    assert (video.MazeFeatures, video.WalkStatistics) == (MazeFeatures, WalkStatistics)
    assert {"MazeFeatures", "WalkStatistics"} <= set(video.__all__)
