"""A window: the frames that a network sees at once, some drawn, the others read."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from flexgen.errors import PlanError
from flexgen.query import Query

__all__ = ["Window", "as_frames", "frame_evaluations", "ranges"]


@dataclass(frozen=True)
class Window:
    """The query p(frames of `target` | frames of `observed`); frames in neither are marginalised out.

    Args:
        target: the frames to draw, by frame index; kept sorted.
        observed: the frames they are drawn given; kept sorted.
        refines: the targets were drawn before and are drawn anew.

    Raises:
        PlanError: no target, a frame twice, or a negative frame index.
    """

    target: tuple[int, ...]
    observed: tuple[int, ...] = ()
    refines: bool = False

    def __post_init__(self) -> None:
        for name in ("target", "observed"):
            object.__setattr__(self, name, as_frames(name, getattr(self, name)))
        if not self.target:
            raise PlanError("target", "is empty", "A window draws at least one frame.")
        if shared := sorted(set(self.target) & set(self.observed)):
            raise PlanError("target", f"shares frame {shared[0]} with observed", "Remove it from one of the two.")

    @property
    def frame_index(self) -> tuple[int, ...]:
        """All frames that pass the network, in the order of time."""
        return tuple(sorted(self.target + self.observed))

    def __len__(self) -> int:
        return len(self.target) + len(self.observed)

    @cached_property
    def reach(self) -> int:
        """The least d such that from every target, steps of at most d through the window's frames lead to an observed
        frame; where nothing is observed, to every other target.

        What a window draws hangs together over `reach` frames: 1 for frames that follow what is observed, about the
        spacing for keyframes.
        """
        index, observed = self.frame_index, set(self.observed)
        steps = [b - a for a, b in pairwise(index)]
        places = [place for place, frame in enumerate(index) if frame in observed]
        if not places:
            return max(steps, default=0)
        # Targets between two observed frames may hang on either: the longest of their steps is not needed.
        between = [sorted(steps[a:b])[-2] for a, b in pairwise(places) if b - a > 1]
        return max([*steps[: places[0]], *between, *steps[places[-1] :]], default=0)

    def query(
        self, frame_index: int | Sequence[int] | None = None, *, device: torch.device | str | None = None
    ) -> Query:
        """The window as a query whose sites are frames.

        Args:
            frame_index: the frame that each site stands for; a number N stands for the frames 0 .. N-1. Default: the
                window's own frames, in the order of time.
            device: of the query's sets.

        Raises:
            PlanError: if a frame of the window is none of the sites.
        """
        if frame_index is None:
            frame_index = self.frame_index
        if isinstance(frame_index, int):
            absent = [frame for frame in (*self.target, *self.observed) if frame >= frame_index]
            place: Any = range(frame_index)
        else:
            place = {int(frame): site for site, frame in enumerate(frame_index)}
            absent = [frame for frame in (*self.target, *self.observed) if frame not in place]
        if absent:
            raise PlanError("frame_index", f"lacks frame {absent[0]} of the window", "Name every frame of the window.")
        target, observed = ([place[frame] for frame in frames] for frames in (self.target, self.observed))
        return Query.of(target, observed, num_sites=len(place), device=device)

    def shifted(self, by: int) -> Window:
        """The same window `by` frames later."""
        return Window(tuple(f + by for f in self.target), tuple(f + by for f in self.observed), self.refines)

    def __str__(self) -> str:
        return f"{ranges(self.target)} | {ranges(self.observed) or 'nothing'}{'  (again)' if self.refines else ''}"


def frame_evaluations(num_target: int, num_observed: int, num_steps: int, *, cached: bool) -> int:
    """Frames that pass the network while one window is drawn in `num_steps` denoising steps.

    Uncached, every step evaluates all frames of the window. Cached (observed frames attend to observed frames alone,
    so that their features are computed once), a step evaluates the targets.
    """
    return num_steps * num_target + (1 if cached else num_steps) * num_observed


def as_frames(argument: str, frames: Iterable[int]) -> tuple[int, ...]:
    """Frame indices, sorted; each a whole number from 0, and none twice."""
    try:
        numbers = sorted(operator.index(frame) for frame in frames)
    except TypeError:
        raise PlanError(argument, f"is {frames!r}", "Pass frame indices, for example range(36).") from None
    if numbers and numbers[0] < 0:
        raise PlanError(argument, f"holds frame {numbers[0]}", "Frames are numbered from 0.")
    for a, b in pairwise(numbers):
        if a == b:
            raise PlanError(argument, f"holds frame {a} twice", "Name each frame once.")
    return tuple(numbers)


def ranges(frames: Iterable[int]) -> str:
    """'0-2, 5' for sorted frame indices; '0, 3, ..., 30' for three or more at one spacing."""
    frames, parts = list(frames), []
    while frames:
        step = frames[1] - frames[0] if len(frames) > 1 else 1
        length = next((i for i in range(1, len(frames)) if frames[i] - frames[i - 1] != step), len(frames))
        if step == 1 and length > 1:
            parts.append(f"{frames[0]}-{frames[length - 1]}")
        elif length > 3:
            parts.append(f"{frames[0]}, {frames[1]}, ..., {frames[length - 1]}")
        else:
            length = 1
            parts.append(str(frames[0]))
        frames = frames[length:]
    return ", ".join(parts)
