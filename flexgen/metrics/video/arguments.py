"""What the video metrics take, checked, and the ratios that they give."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from flexgen.errors import DataError

__all__ = [
    "joined",
    "mean_and_error",
    "ratio_of_pairs",
    "ratio_of_samples",
    "require_per_frame",
    "require_same_shape",
    "require_video",
    "to_images",
]


def require_video(argument: str, video: Tensor, *, least_frames: int = 1) -> Tensor:
    """`video` if it is uint8 ``[B, F, H, W, C]``, as videos are stored.

    Raises:
        DataError: it is not.
    """
    if not isinstance(video, Tensor) or video.dtype != torch.uint8:
        held = video.dtype if isinstance(video, Tensor) else f"a {type(video).__name__}"
        raise DataError(argument, f"is {held}", "Pass a tensor uint8 [B, F, H, W, C], 0 to 255.")
    if video.ndim != 5 or video.shape[-1] not in (1, 3) or 0 in video.shape:
        raise DataError(argument, f"has shape {tuple(video.shape)}", "Pass [B, F, H, W, C], with 1 or 3 channels last.")
    if video.shape[1] < least_frames:
        raise DataError(argument, f"has {video.shape[1]} frame(s)", f"Pass {least_frames} or more.")
    return video


def require_same_shape(argument: str, video: Tensor, other: Tensor) -> None:
    """Raises: DataError: the two differ in shape."""
    if video.shape != other.shape:
        raise DataError(
            argument, f"has shape {tuple(video.shape)}, its pair {tuple(other.shape)}", "Pass two of one shape."
        )


def require_per_frame(argument: str, values: Tensor, num_videos: int, num_frames: int) -> Tensor:
    """`values`, ``[F]`` or ``[B, F]``, as ``[B, F]``."""
    if values.shape not in ((num_frames,), (num_videos, num_frames)):
        fix = f"Pass [{num_frames}] or [{num_videos}, {num_frames}]."
        raise DataError(argument, f"has shape {tuple(values.shape)}", fix)
    return values.expand(num_videos, num_frames)


def to_images(video: Tensor) -> Tensor:
    """float32 ``[B * F, C, H, W]``, 0 to 255."""
    images: Tensor = rearrange(video, "b f h w c -> (b f) c h w").float()
    return images


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of independent values ``[n]`` and its standard error, NaN where there are too few."""
    if len(values) == 0:
        return values.new_tensor(torch.nan), values.new_tensor(torch.nan)
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else values.new_tensor(torch.nan)
    return values.mean(), error


def ratio_of_pairs(above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio of the means of two figures of the same videos ``[n]``, and its standard error (delta method)."""
    ratio = mean_and_error(above)[0] / mean_and_error(below)[0]
    return ratio, mean_and_error(above - ratio * below)[1] / mean_and_error(below)[0]


def ratio_of_samples(above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """The same of two independent samples of videos, ``[n]`` and ``[m]``."""
    (a, error_a), (b, error_b) = mean_and_error(above), mean_and_error(below)
    ratio = a / b
    return ratio, ratio.abs() * ((error_a / a) ** 2 + (error_b / b) ** 2).sqrt()


def joined(values: list[Tensor] | Tensor) -> Tensor:
    """A state that grows by batches, as one tensor ``[n]``: torchmetrics has joined it already after a reduction."""
    if isinstance(values, Tensor):
        return values
    return torch.cat(values) if values else torch.empty(0, dtype=torch.float64)
