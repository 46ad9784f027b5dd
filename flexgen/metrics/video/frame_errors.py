"""How far generated frames are from the true ones, as a function of how far the model had to look."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from flexgen.errors import DataError
from flexgen.metrics.video.arguments import require_per_frame, require_same_shape, require_video, to_images

__all__ = ["ErrorByDistance", "frame_errors", "frames_to_observed"]


def frame_errors(video: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Errors of every frame, ``[B, F]`` each.

    Args:
        video, truth: uint8 ``[B, F, H, W, C]``.

    Returns:
        ``mse`` in squared grey levels (0 to 255), ``psnr`` in dB (infinite where equal), ``ssim`` in [-1, 1].
    """
    require_same_shape("video", require_video("video", video), require_video("truth", truth))
    if min(video.shape[2:4]) < 11:
        raise DataError("video", f"has frames of {video.shape[2]}x{video.shape[3]}", "SSIM needs 11 pixels a side.")
    mse = (video.double() - truth.double()).square().mean((2, 3, 4))
    ssim = structural_similarity_index_measure(to_images(video), to_images(truth), data_range=255.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return {"mse": mse, "psnr": _psnr(mse), "ssim": rearrange(ssim.double(), "(b f) -> b f", b=len(video))}


def frames_to_observed(observed: Tensor) -> Tensor:
    """Frames from each frame to the nearest observed one, float ``[.., F]``; infinite where none is observed.

    Args:
        observed: bool ``[.., F]``.
    """
    places = torch.arange(observed.shape[-1], device=observed.device)
    apart = (places[:, None] - places).abs().float()  # [F, F]
    return apart.masked_fill(~observed[..., None, :], torch.inf).amin(-1)


class ErrorByDistance(Metric):
    """Errors of generated frames, gathered by a distance of each frame.

    The distance is `frames_to_observed`, or the distance in space of `flexgen.metrics.video.pose_to_observed`, or any
    other. A frame at distance d falls into bin k where ``edges[k] <= d < edges[k + 1]``; others are left out.

    Args:
        edges: of the bins, increasing; K + 1 numbers.

    `compute` returns ``mse``, ``psnr`` (of the mean of the squared errors), ``ssim`` and ``frames``, ``[K]`` each, NaN
    where no frame fell.
    """

    full_state_update = False

    count: Tensor
    squares: Tensor
    similarity: Tensor

    def __init__(self, edges: Sequence[float] = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257, float("inf"))) -> None:
        super().__init__()
        if len(edges) < 2 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise DataError("edges", f"are {tuple(edges)}", "Pass two or more numbers that increase.")
        self.edges = torch.tensor([float(edge) for edge in edges], dtype=torch.float64)
        for name in ("count", "squares", "similarity"):
            self.add_state(name, torch.zeros(len(edges) - 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, video: Tensor, truth: Tensor, distance: Tensor) -> None:
        """Args: video and truth, uint8 ``[B, F, H, W, C]``; distance, ``[F]`` or ``[B, F]``."""
        found = frame_errors(video, truth)
        distance = require_per_frame("distance", distance, *video.shape[:2])
        place = torch.bucketize(distance.double(), self.edges.to(distance.device), right=True) - 1  # [B, F]
        for k in range(len(self.count)):
            here = place == k
            self.count[k] += here.sum()
            self.squares[k] += found["mse"][here].sum()
            self.similarity[k] += found["ssim"][here].sum()

    def compute(self) -> dict[str, Tensor]:
        mse = self.squares / self.count
        return {"mse": mse, "psnr": _psnr(mse), "ssim": self.similarity / self.count, "frames": self.count}


def _psnr(mse: Tensor) -> Tensor:
    return 10 * (255.0**2 / mse).log10()
