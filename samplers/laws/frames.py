"""Index sets of long videos: groups of evenly spaced frames that fill a window."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flexgen.checks import whole_number
from samplers.laws.base import Law, Rows, Sets
from samplers.laws.select import count_sites

__all__ = ["FrameGroups"]


@dataclass(frozen=True)
class FrameGroups(Law):
    """Groups of evenly spaced frames until the window is full (FDM, Harvey et al. 2022). Sites are frames.

    A group has s ~ U{1..window} frames, spaced by (T / (s - 0.999))^u with u ~ U(0, 1), at a uniform start. The first
    is the target; each further one is target or observed by a fair coin, less the frames already taken. The first
    that does not fit in what is left of the window ends the draw. All other frames are marginalised.

    The target is never empty in a row that holds a frame, and |P| + |C| <= window.

    Args:
        window: K, how many frames a network sees at once.
    """

    window: int

    def __post_init__(self) -> None:
        whole_number("window", self.window, 1)

    def draw_sets(self, rows: Rows) -> Sets:
        n, device = rows.num_present, rows.present.device
        longest = n.clamp_max(self.window)
        step = torch.arange(min(self.window, rows.num_sites), device=device)
        # One place more than frames, into which everything that is not drawn falls.
        target = torch.zeros(len(rows), rows.num_sites + 1, dtype=torch.bool, device=device)
        observed = torch.zeros_like(target)
        going, source, first = torch.arange(len(rows), device=device)[n > 0], rows.fork("groups"), True
        while len(going):  # rows leave as they finish; the numbers of a row do not depend on which others remain
            size_u, spacing_u, start_u, coin = source.uniform(4)[going].unbind(-1)
            size, frames = 1 + (size_u * longest[going]).long(), n[going]
            spacing = (spacing_u * (frames / (size - 0.999)).log()).exp()
            start = start_u * (frames - spacing * (size - 1)).clamp_min(0)
            frame = (start[:, None] + step * spacing[:, None]).long()  # [R, K]
            frame = torch.where(step < size[:, None], torch.minimum(frame, frames[:, None] - 1), rows.num_sites)
            taken = (target | observed)[going]  # [R, T+1]
            fresh = torch.zeros_like(taken).scatter_(-1, frame, True) & ~taken
            fresh[:, -1] = False
            fits = count_sites(fresh) + count_sites(taken) <= self.window
            into_target = (coin < 0.5) | first
            target[going] |= fresh & (fits & into_target)[:, None]
            observed[going] |= fresh & (fits & ~into_target)[:, None]
            # A row whose every frame is taken would go on for ever: nothing fresh is left to overflow the window.
            full = count_sites((target | observed)[going]) >= frames
            going, first = going[fits & ~full], False
        return Sets(rows.spread(target[:, :-1]), rows.spread(observed[:, :-1]), rows.ones())
