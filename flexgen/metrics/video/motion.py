"""Measures of frames alone: changes from one to the next, jumps at the seams of windows, sharpness."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from flexgen.errors import DataError
from flexgen.metrics.video.arguments import (
    joined,
    mean_and_error,
    ratio_of_pairs,
    ratio_of_samples,
    require_per_frame,
    require_video,
)

__all__ = ["MotionStatistics", "SeamDiscontinuity", "Sharpness", "frame_change", "gradient_energy", "seams_of_windows"]


def frame_change(video: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring frames in grey levels (0 to 255), ``[B, F - 1]``."""
    require_video("video", video, least_frames=2)
    return (video[:, 1:].float() - video[:, :-1].float()).abs().mean((2, 3, 4)).double()


def gradient_energy(video: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, down and across, in squared grey levels, ``[B, F]``."""
    x = require_video("video", video).float()
    if min(x.shape[2:4]) < 2:
        raise DataError("video", f"has frames of {x.shape[2]}x{x.shape[3]}", "Pass two or more pixels a side.")
    down, across = x.diff(dim=2).square().mean((2, 3, 4)), x.diff(dim=3).square().mean((2, 3, 4))
    return ((down + across) / 2).double()


def seams_of_windows(windows: Tensor) -> Tensor:
    """Where neighbouring frames come from different windows, bool ``[.., F - 1]``.

    Args:
        windows: the number of the window that made each frame, ``[.., F]``; any number of its own for observed frames.
    """
    return windows[..., 1:] != windows[..., :-1]


class SeamDiscontinuity(Metric):
    """Frame-to-frame change across seams against the change inside windows.

    ``ratio`` is 1 where seams cannot be seen, larger where a video jumps between windows. Contents may differ at seams
    for their own reasons: update with the real videos and the same seams for ``real_ratio``, to compare with. Standard
    errors take videos, not frames, as independent.

    `compute` returns ``across`` and ``inside`` in grey levels, ``ratio`` and ``ratio_se``; the same of real videos with
    ``real_`` in front; ``across_to_real`` and ``across_to_real_se``. What was not updated is NaN.
    """

    full_state_update = False

    across: list[Tensor]
    inside: list[Tensor]
    real_across: list[Tensor]
    real_inside: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("across", "inside", "real_across", "real_inside"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, video: Tensor, seams: Tensor, *, real: bool = False) -> None:
        """Args: video, uint8 ``[B, F, H, W, C]``; seams, bool ``[F - 1]`` or ``[B, F - 1]``; real, of the real ones."""
        change = frame_change(video)
        seams = require_per_frame("seams", seams, *change.shape).to(change.device)
        if seams.dtype != torch.bool:
            raise DataError("seams", f"is {seams.dtype}", "Pass bool; see seams_of_windows.")
        if not (seams.any(-1) & ~seams.all(-1)).all():
            raise DataError("seams", "are nowhere or everywhere in a video", "Each needs both to be compared.")
        name = "real_" if real else ""
        getattr(self, f"{name}across").append((change * seams).sum(-1) / seams.sum(-1))
        getattr(self, f"{name}inside").append((change * ~seams).sum(-1) / (~seams).sum(-1))

    def compute(self) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = {}
        for name in ("", "real_"):
            across, inside = joined(getattr(self, f"{name}across")), joined(getattr(self, f"{name}inside"))
            scores[f"{name}across"], scores[f"{name}inside"] = mean_and_error(across)[0], mean_and_error(inside)[0]
            scores[f"{name}ratio"], scores[f"{name}ratio_se"] = ratio_of_pairs(across, inside)
        to_real = ratio_of_samples(joined(self.across), joined(self.real_across))
        scores["across_to_real"], scores["across_to_real_se"] = to_real
        return scores


class MotionStatistics(Metric):
    """How much generated videos move, against real ones.

    Args:
        still: a frame that changes by less, in grey levels, is still.

    `compute` returns ``change`` and ``real_change``, their ``ratio`` and ``ratio_se`` (over videos), and the shares of
    still frames, ``still`` and ``real_still``. Blur lowers the change as well: read it beside `Sharpness`.
    """

    full_state_update = False

    change: list[Tensor]
    still: list[Tensor]
    real_change: list[Tensor]
    real_still: list[Tensor]

    def __init__(self, still: float = 1.0) -> None:
        super().__init__()
        self.threshold = still
        for name in ("change", "still", "real_change", "real_still"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, video: Tensor, *, real: bool = False) -> None:
        """Args: video, uint8 ``[B, F, H, W, C]``; real, whether it is of the real ones."""
        change, name = frame_change(video), "real_" if real else ""
        getattr(self, f"{name}change").append(change.mean(-1))
        getattr(self, f"{name}still").append((change < self.threshold).double().mean(-1))

    def compute(self) -> dict[str, Tensor]:
        names = ("change", "real_change", "still", "real_still")
        scores = {name: mean_and_error(joined(getattr(self, name)))[0] for name in names}
        scores["ratio"], scores["ratio_se"] = ratio_of_samples(joined(self.change), joined(self.real_change))
        return scores


class Sharpness(Metric):
    """Gradient energy of generated frames against that of real ones: below 1 where they are blurred, above it by noise.

    `compute` returns ``energy`` and ``real_energy`` in squared grey levels, their ``ratio`` and ``ratio_se`` (over
    videos).
    """

    full_state_update = False

    energy: list[Tensor]
    real_energy: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("energy", "real_energy"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, video: Tensor, *, real: bool = False) -> None:
        """Args: video, uint8 ``[B, F, H, W, C]``; real, whether it is of the real ones."""
        (self.real_energy if real else self.energy).append(gradient_energy(video).mean(-1))

    def compute(self) -> dict[str, Tensor]:
        energy, real = joined(self.energy), joined(self.real_energy)
        ratio, error = ratio_of_samples(energy, real)
        means = mean_and_error(energy)[0], mean_and_error(real)[0]
        return {"energy": means[0], "real_energy": means[1], "ratio": ratio, "ratio_se": error}
