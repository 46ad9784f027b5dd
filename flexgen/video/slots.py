"""Sets of frames as slots of a window: what stands between a query over a whole video and a network of few frames."""

from __future__ import annotations

import torch
from torch import Tensor

from flexgen.errors import QueryError

__all__ = ["gather_frames", "members"]


def members(chosen: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """The numbers of each row's chosen places, in order, padded to one length.

    Args:
        chosen: bool ``[B, N]``.
        size: how many slots; default: as many as the fullest row needs.

    Returns:
        int64 ``[B, K]`` (0 where padded) and bool ``[B, K]``, which slots are taken.
    """
    counts = chosen.sum(1)
    most = int(counts.max()) if len(counts) else 0
    size = most if size is None else size
    if most > size:
        raise QueryError(
            "query",
            f"names {most} frames in a row, but a window holds {size}",
            "Use a larger window, or a smaller law.",
        )
    order = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]  # chosen first, each part in order
    if order.shape[1] < size:
        order = torch.nn.functional.pad(order, (0, size - order.shape[1]))
    taken = torch.arange(size, device=chosen.device) < counts[:, None]
    return torch.where(taken, order, 0), taken


def gather_frames(frames: Tensor, index: Tensor) -> Tensor:
    """``frames[b, index[b, k]]``, ``[B, K, *site]``."""
    rows = torch.arange(len(frames), device=frames.device)[:, None]
    return frames[rows, index]
