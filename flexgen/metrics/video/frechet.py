"""Frechet distance between two sets of videos in the features of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import Metric

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


class FrechetDistance(Metric):
    """Frechet distance between real and generated videos, of Gaussians fitted to a network's features.

    It is a Frechet Video Distance (FVD) only if `features` is the I3D network of that definition; with any other
    network give it another name. It is biased upwards by few videos: compare sets of one size, many more than features.

    Args:
        features: takes videos uint8 ``[B, F, H, W, C]`` and gives ``[n, D]``, a row a video, or a row a frame.
        num_features: D; None asks ``features.num_features``.

    `compute` returns a scalar, float64.
    """

    full_state_update = False
    higher_is_better = False

    real_count: Tensor
    real_sum: Tensor
    real_products: Tensor
    generated_count: Tensor
    generated_sum: Tensor
    generated_products: Tensor

    def __init__(self, features: nn.Module, num_features: int | None = None) -> None:
        super().__init__()
        num_features = getattr(features, "num_features", None) if num_features is None else num_features
        if not isinstance(num_features, int):
            raise DataError("num_features", "is not given, and features has no num_features", "Say how many there are.")
        self.features = features.eval()
        self.num_features = num_features
        for name in ("real", "generated"):
            for part, shape in (("count", ()), ("sum", (num_features,)), ("products", (num_features, num_features))):
                self.add_state(f"{name}_{part}", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, video: Tensor, *, real: bool) -> None:
        """Args: video, uint8 ``[B, F, H, W, C]``; real, whether it is of the real ones."""
        found = self.features(require_video("video", video)).double()
        if found.ndim != 2 or found.shape[1] != self.num_features:
            raise DataError(
                "features", f"gave a shape of {tuple(found.shape)}", f"It has to give rows of {self.num_features}."
            )
        if not found.isfinite().all():
            raise DataError("features", "gave numbers that are not finite", "Check the network and its scale of input.")
        name = "real" if real else "generated"
        parts = (len(found), found.sum(0), found.mT @ found)
        for part, value in zip(("count", "sum", "products"), parts, strict=True):
            getattr(self, f"{name}_{part}").add_(value)

    def compute(self) -> Tensor:
        real, generated = (self._moments(name) for name in ("real", "generated"))
        return frechet_distance(*real, *generated)

    def _moments(self, name: str) -> tuple[Tensor, Tensor]:
        count, total, products = (getattr(self, f"{name}_{part}") for part in ("count", "sum", "products"))
        if count < 2:
            raise DataError(name, f"has {int(count)} rows of features", "Update with two or more of each kind.")
        mean = total / count
        return mean, (products - count * mean[:, None] * mean) / (count - 1)
