"""Does a world stay as it was? A walk round a ring of places, seen by models that remember and ones that do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flexgen.errors import DataError
from flexgen.metrics.video import RevisitConsistency, pose_distance, pose_to_observed, revisits

LAP = 40  # frames a lap; three laps


def walk_round(num_laps: int = 3) -> Tensor:
    """[F, 3]: on a circle of 2 m, looking along it."""
    angle = torch.arange(num_laps * LAP) * (2 * math.pi / LAP)
    turn = (angle + math.pi).remainder(2 * math.pi) - math.pi
    return torch.stack([2 * angle.cos(), 2 * angle.sin(), turn], -1)


def views(places: Tensor) -> Tensor:
    """Of each place its own noise, uint8 [1, F, 8, 8, 3]."""
    world = torch.randint(0, 256, (int(places.max()) + 1, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    return world[places][None].to(torch.uint8)


def score(video: Tensor, **settings) -> dict[str, float]:
    metric = RevisitConsistency(gap=20, metres=0.1, degrees=5)
    metric.update(video, walk_round()[None], **settings)
    return {name: float(value) for name, value in metric.compute().items()}


def test_distances_and_revisits_of_known_poses():
    poses = torch.tensor([[0.0, 0.0, 3.1], [3.0, 4.0, 3.1], [0.0, 0.0, -3.1]])
    turn = 2 * math.pi - 6.2
    assert pose_distance(poses)[0].tolist() == pytest.approx([0, 5, turn], abs=1e-5)
    assert pose_distance(poses, metres_a_radian=10)[1, 2].item() == pytest.approx(math.hypot(5, 10 * turn), rel=1e-4)
    assert revisits(poses, gap=1).nonzero().tolist() == [[0, 2]]  # across the cut of the angle
    assert revisits(poses, gap=3).sum() == 0
    assert revisits(poses, gap=1, degrees=4).sum() == 0
    observed = torch.tensor([True, False, False])
    assert pose_to_observed(poses, observed).tolist() == pytest.approx([0, 5, turn], abs=1e-5)
    assert pose_to_observed(poses, ~torch.ones(3).bool()).isinf().all()


def test_a_world_that_stays_and_one_that_is_forgotten():
    frames = torch.arange(3 * LAP)
    stays, forgotten = score(views(frames % LAP)), score(views(frames))
    assert stays["ratio"] == pytest.approx(0, abs=1e-9)
    assert stays["pairs"] == 3 * LAP  # laps 1-2, 2-3 and 1-3
    assert forgotten["ratio"] == pytest.approx(1, abs=0.03)
    half = torch.where(frames < 2 * LAP, frames % LAP, frames)
    assert score(views(half))["ratio"] == pytest.approx(2 / 3, abs=0.03)
    frozen = score(views(0 * frames))
    assert math.isnan(frozen["ratio"])  # one picture for all places is no memory


def test_only_pairs_with_a_generated_frame_count():
    frames = torch.arange(3 * LAP)
    last = torch.where(frames < 2 * LAP, frames % LAP, frames)
    assert score(views(last), where=frames >= 2 * LAP)["ratio"] == pytest.approx(1, abs=0.05)
    assert score(views(last), where=frames >= 2 * LAP)["pairs"] == 2 * LAP
    assert score(views(frames % LAP), where=frames >= 2 * LAP)["ratio"] == pytest.approx(0, abs=1e-9)


def test_videos_without_a_revisit_count_in_neither_mean():
    metric = RevisitConsistency(gap=20, metres=0.1, degrees=5)
    straight = torch.zeros(3 * LAP, 3)
    straight[:, 0] = torch.arange(3 * LAP)
    video = views(torch.arange(3 * LAP) % LAP)
    metric.update(torch.cat([video, 255 - video]), torch.stack([walk_round(), straight]))
    assert metric.compute()["ratio"] == pytest.approx(0, abs=1e-9)
    assert len(metric.again) == 1
    assert metric.again[0].shape == (1,)


def test_errors():
    metric = RevisitConsistency()
    with pytest.raises(DataError, match=r"poses: has shape \(1, 5, 3\). Pass \[1, 120, 3\]"):
        metric.update(views(torch.arange(120)), torch.zeros(1, 5, 3))
    with pytest.raises(DataError, match=r"poses: is torch.int64 \(4, 3\)"):
        pose_distance(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(DataError, match="not finite"):
        revisits(torch.full((4, 3), math.nan))
