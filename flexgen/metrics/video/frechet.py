"""Frechet distance between two sets of videos in the features of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from flexgen.errors import DataError
from flexgen.metrics.video.arguments import require_video

__all__ = ["FrechetDistance", "frechet_distance"]


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of two Gaussians ``[D]``, ``[D, D]``: |m - n|^2 + tr(S + T - 2 (S T)^(1/2))."""
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp_min(0).sqrt().sum()
    spread: Tensor = covariance.trace() + other_covariance.trace() - 2 * cross
    return spread + (mean - other_mean).square().sum()


class FrechetDistance(FrechetInceptionDistance):
    """Frechet distance between real and generated videos, of Gaussians fitted to a network's features.

    It is a Frechet Video Distance (FVD) only if `features` is the I3D network of that definition; with any other
    network give it another name. It is biased upwards by few videos: compare sets of one size, many more than features.
    The moments and their distance are torchmetrics'.

    Args:
        features: takes videos uint8 ``[B, F, H, W, C]`` and gives ``[n, D]``, a row a video, or a row a frame.
        num_features: D; None: ``features.num_features``.

    `compute` returns a scalar, float64.
    """

    def __init__(self, features: nn.Module, num_features: int | None = None) -> None:
        num_features = getattr(features, "num_features", None) if num_features is None else num_features
        if not isinstance(num_features, int):
            raise DataError("num_features", "is not given, and features has no num_features", "Say how many there are.")
        rows = nn.Identity()  # torchmetrics counts what it is given: rows of features, not videos
        rows.num_features = num_features  # type: ignore[assignment]
        super().__init__(rows)
        self.features, self.num_features = features.eval(), num_features

    @torch.no_grad()
    def update(self, video: Tensor, *, real: bool) -> None:  # type: ignore[override]
        """Args: video, uint8 ``[B, F, H, W, C]``; real, whether it is of the real ones."""
        found = self.features(require_video("video", video)).double()
        if found.ndim != 2 or found.shape[1] != self.num_features:
            raise DataError(
                "features", f"gave a shape of {tuple(found.shape)}", f"It has to give rows of {self.num_features}."
            )
        if not found.isfinite().all():
            raise DataError("features", "gave numbers that are not finite", "Check the network and its scale of input.")
        super().update(found, real)

    def compute(self) -> Tensor:
        for name, count in (("real", self.real_features_num_samples), ("generated", self.fake_features_num_samples)):
            if count < 2:
                raise DataError(name, f"has {int(count)} rows of features", "Update with two or more of each kind.")
        return super().compute()
