"""Measures that know where each frame was seen from: poses (x, z, direction) as ``flexgen render`` records them."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics import Metric

from flexgen.errors import DataError
from flexgen.metrics.video.arguments import joined, mean_and_error, ratio_of_pairs, require_per_frame, require_video

__all__ = ["RevisitConsistency", "pose_distance", "pose_to_observed", "revisits"]


def pose_distance(poses: Tensor, *, metres_a_radian: float = 1.0) -> Tensor:
    """Distance of every two views of a walk, ``[.., F, F]``: metres between the places, and turns as metres.

    Args:
        poses: float ``[.., F, 3]``: x, z in metres, direction in radians.
        metres_a_radian: how far one walks for a view to change as much as by a turn of one radian.
    """
    _require_poses(poses)
    place, turn = poses[..., :2], poses[..., 2]
    apart = (place[..., :, None, :] - place[..., None, :, :]).norm(dim=-1)
    turned = metres_a_radian * _angle(turn[..., :, None] - turn[..., None, :])
    return torch.hypot(apart, turned)


def pose_to_observed(poses: Tensor, observed: Tensor, *, metres_a_radian: float = 1.0) -> Tensor:
    """Distance from each frame's view to the nearest observed view, ``[.., F]``; infinite where none is observed.

    For `ErrorByDistance`: does a model remember places, however long ago it saw them?

    Args:
        poses: ``[.., F, 3]``.
        observed: bool ``[.., F]``.
    """
    apart = pose_distance(poses, metres_a_radian=metres_a_radian)
    return apart.masked_fill(~observed[..., None, :], torch.inf).amin(-1)


def revisits(poses: Tensor, *, gap: int = 60, metres: float = 0.25, degrees: float = 8.0) -> Tensor:
    """Pairs of frames (i, j), i < j, with nearly one view, bool ``[.., F, F]``.

    Args:
        poses: ``[.., F, 3]``.
        gap: frames that lie between the two at least.
        metres, degrees: how far apart place and direction may be.
    """
    _require_poses(poses)
    place, turn = poses[..., :2], poses[..., 2]
    near: Tensor = (place[..., :, None, :] - place[..., None, :, :]).norm(dim=-1) <= metres
    near = near & (_angle(turn[..., :, None] - turn[..., None, :]) <= math.radians(degrees))
    return near & _later(poses.shape[-2], gap, poses.device)


class RevisitConsistency(Metric):
    """Do frames look alike where the walker is back at a view that it had long before?

    Mean squared difference of the pairs that `revisits` finds, over that of all other pairs as far apart in time: near
    0 for a world that stays, 1 for a model that has forgotten it. Views are only nearly equal, so that real videos do
    not reach 0 (0.18 for mazes of ``flexgen render``): compute it of them too, in a metric of its own. Blur lowers it:
    read it beside `Sharpness`. Videos without a revisit count in neither mean.

    Args:
        gap, metres, degrees: see `revisits`.

    `compute` returns ``revisits`` and ``others`` in squared grey levels, ``ratio``, ``ratio_se`` (over videos) and
    ``pairs``, how many there were.
    """

    full_state_update = False
    higher_is_better = False

    again: list[Tensor]
    others: list[Tensor]
    pairs: Tensor

    def __init__(self, *, gap: int = 60, metres: float = 0.25, degrees: float = 8.0) -> None:
        super().__init__()
        self.gap, self.metres, self.degrees = gap, metres, degrees
        self.add_state("again", [], dist_reduce_fx="cat")
        self.add_state("others", [], dist_reduce_fx="cat")
        self.add_state("pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, video: Tensor, poses: Tensor, where: Tensor | None = None) -> None:
        """Adds videos.

        Args:
            video: uint8 ``[B, F, H, W, C]``.
            poses: ``[B, F, 3]``.
            where: bool ``[F]`` or ``[B, F]``, the frames that were generated; pairs without one are left out.
        """
        require_video("video", video, least_frames=2)
        if poses.shape[:-1] != video.shape[:2]:
            fix = f"Pass [{video.shape[0]}, {video.shape[1]}, 3]."
            raise DataError("poses", f"has shape {tuple(poses.shape)}", fix)
        near = revisits(poses.to(video.device), gap=self.gap, metres=self.metres, degrees=self.degrees)
        counted = _later(video.shape[1], self.gap, video.device).expand_as(near)
        if where is not None:
            chosen = require_per_frame("where", where, *video.shape[:2]).to(video.device)
            counted = counted & (chosen[:, :, None] | chosen[:, None, :])
        near, far = near & counted, counted & ~near
        difference = _squared_difference(video)
        kept = near.any(-1).any(-1) & far.any(-1).any(-1)
        self.pairs += near[kept].sum()
        for state, chosen in ((self.again, near[kept]), (self.others, far[kept])):
            state.append((difference[kept] * chosen).sum((1, 2)) / chosen.sum((1, 2)))

    def compute(self) -> dict[str, Tensor]:
        again, others = joined(self.again), joined(self.others)
        ratio, error = ratio_of_pairs(again, others)
        means = mean_and_error(again)[0], mean_and_error(others)[0]
        return {"revisits": means[0], "others": means[1], "ratio": ratio, "ratio_se": error, "pairs": self.pairs}


def _squared_difference(video: Tensor) -> Tensor:
    """Mean squared difference of every two frames, float64 ``[B, F, F]``."""
    x = rearrange(video, "b f h w c -> b f (h w c)").double()
    squares = x.square().sum(-1)
    apart = squares[:, :, None] + squares[:, None, :] - 2 * x @ x.mT
    return apart.clamp_min(0) / x.shape[-1]


def _later(num_frames: int, gap: int, device: torch.device) -> Tensor:
    places = torch.arange(num_frames, device=device)
    return places - places[:, None] >= max(1, gap)


def _angle(turn: Tensor) -> Tensor:
    """The size of an angle, in [0, pi]."""
    return (turn + math.pi).remainder(2 * math.pi).sub(math.pi).abs()


def _require_poses(poses: Tensor) -> None:
    if poses.ndim < 2 or poses.shape[-1] != 3 or not poses.is_floating_point():
        raise DataError("poses", f"is {poses.dtype} {tuple(poses.shape)}", "Pass float [.., F, 3]: x, z, direction.")
    if not poses.isfinite().all():
        raise DataError("poses", "holds numbers that are not finite", "Leave out frames without a pose.")
