"""Scores of generated videos, all of which take uint8 ``[B, F, H, W, C]``, as videos are stored."""

from __future__ import annotations

from flexgen.metrics.video.frame_errors import ErrorByDistance, frame_errors, frames_to_observed
from flexgen.metrics.video.frechet import FrechetDistance, frechet_distance
from flexgen.metrics.video.lpips import LPIPS, ShiftTolerantAlexNet
from flexgen.metrics.video.maze_features import MazeFeatures, WalkStatistics
from flexgen.metrics.video.motion import (
    MotionStatistics,
    SeamDiscontinuity,
    Sharpness,
    frame_change,
    gradient_energy,
    seams_of_windows,
)
from flexgen.metrics.video.poses import RevisitConsistency, pose_distance, pose_to_observed, revisits

__all__ = [
    "LPIPS",
    "ErrorByDistance",
    "FrechetDistance",
    "MazeFeatures",
    "MotionStatistics",
    "RevisitConsistency",
    "SeamDiscontinuity",
    "Sharpness",
    "ShiftTolerantAlexNet",
    "WalkStatistics",
    "frame_change",
    "frame_errors",
    "frames_to_observed",
    "frechet_distance",
    "gradient_energy",
    "pose_distance",
    "pose_to_observed",
    "revisits",
    "seams_of_windows",
]
