"""What draws the frames of a window, and how any conditional over whole videos becomes one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flexgen.conditional import CanSample
from flexgen.query import Query
from flexgen.rng import Streams

__all__ = ["FrameConditional", "OverVideo"]


@runtime_checkable
class FrameConditional(Protocol):
    """A model of few frames at once, at any places of a video."""

    def sample_window(self, x: Tensor, query: Query, *, frame_index: Tensor, generator: Streams) -> Tensor:
        """x with the targets of every window drawn given its observed frames.

        Args:
            x: ``[B, K, *site]``, K slots a window. What stands in slots that are not observed is never read.
            query: ``[B, K]``; slots that are neither target nor observed are padding.
            frame_index: int64 ``[B, K]``, which frame of the video each slot holds; in order of time, 0 in padding.
            generator: a stream of random numbers for each window.

        Returns:
            ``[B, K, *site]``. A row depends on nothing but the row.
        """
        ...


class OverVideo:
    """A conditional whose sites are all frames of a video, asked for a window at a time.

    Args:
        conditional: over N frames; frames outside the window are marginalised out.
    """

    def __init__(self, conditional: CanSample) -> None:
        self.conditional = conditional

    def sample_window(self, x: Tensor, query: Query, *, frame_index: Tensor, generator: Streams) -> Tensor:
        """See `FrameConditional`."""
        rows, num_frames = torch.arange(len(x), device=x.device)[:, None], self.conditional.space.num_sites
        video = x.new_zeros(len(x), num_frames, *x.shape[2:])
        target = torch.zeros(len(x), num_frames, dtype=torch.bool, device=x.device)
        observed = target.clone()
        row, slot = query.observed.nonzero(as_tuple=True)
        video[row, frame_index[row, slot]] = x[row, slot]
        observed[row, frame_index[row, slot]] = True
        row, slot = query.target.nonzero(as_tuple=True)
        target[row, frame_index[row, slot]] = True
        drawn = self.conditional.sample(video, Query(target, observed), generator=generator)[rows, frame_index]
        asked = query.target.view(*query.target.shape, *(1,) * (x.ndim - 2))
        return torch.where(asked, drawn, x)
