"""Distances of frames, for the plans that look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flexgen.checks import kind_of, real_tensor
from flexgen.errors import PlanError

__all__ = ["Distance", "DistanceName", "distance_of", "name_distance", "pixel_distance"]

# From frames [M, *site] and frames [M, *site] to their distances [M].
Distance = Callable[[Tensor, Tensor], Tensor]
DistanceName = Literal["pixels", "lpips"]

_AT_ONCE = 1 << 24  # pixels that are floats at a time


def pixel_distance(frames: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference of frames, ``[M]``, in the frames' own unit.

    Args:
        frames, others: ``[M, *site]``, of any number type.
    """
    for name, given in (("frames", frames), ("others", others)):
        if real_tensor(name, given, "[M, *site]", error=PlanError).ndim == 0 or given.shape != frames.shape:
            raise PlanError(name, f"has shape {tuple(given.shape)}", "Pass two batches of frames of one shape.")
    rows = max(1, _AT_ONCE // max(1, frames[:1].numel()))
    found = torch.empty(len(frames), device=frames.device)
    for start in range(0, len(frames), rows):
        a, b = (x[start : start + rows].flatten(1).float() for x in (frames, others))
        found[start : start + rows] = (a - b).square().mean(1).sqrt()
    if not bool(found.isfinite().all()):
        raise PlanError("frames", "hold NaN or infinity, or differ by too much to say", "Pass finite frames.")
    return found


_NAMED: dict[str, Callable[[], Distance]] = {"pixels": lambda: pixel_distance}


def name_distance(name: str, make: Callable[[], Distance]) -> None:
    """Gives a distance a name that plans take. `make` is called when a plan with it is made.

    ``"lpips"`` is so named by ``flexgen.video_pipeline``: networks lie above this floor.
    """
    _NAMED[name] = make


def distance_of(value: Distance | DistanceName) -> Distance:
    """A distance by name: ``"pixels"`` is `pixel_distance`, ``"lpips"`` FDM's, of ``flexgen.metrics.video.LPIPS``.

    Raises:
        PlanError: neither a name nor a function.
        DataError: the weights of LPIPS are not installed.
    """
    if isinstance(value, str):
        make = _NAMED.get(value)
        if make is not None:
            return make()
        if value == "lpips":
            fix = "Import flexgen.video_pipeline first, or pass flexgen.metrics.video.LPIPS().distance."
            raise PlanError("distance", "is 'lpips', a network that samplers alone do not know", fix)
    elif callable(value):
        return value
    raise PlanError(
        "distance", f"is {kind_of(value)}", "Choose 'pixels' or 'lpips', or pass a function of two batches."
    )
