"""Which frames are given: the start, both ends, keyframes, the middle, a loop; and a plan for each.

Every plan accepts any set of given frames, so a pattern is little more than that set. It also says which of the user's
frames stands where, which matters for the loop: its beginning stands at the end once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen.checks import flag, freeze, real_tensor, whole_number, whole_numbers
from flexgen.errors import PlanError
from samplers.frames.fdm import autoregressive, hierarchical
from samplers.frames.plan import MOST_FRAMES, Plan, as_frames, given_frames
from samplers.frames.tree import tree

__all__ = ["Pattern", "continuation", "extension", "interpolation", "keyframes", "loop", "plan_for"]


@dataclass(frozen=True)
class Pattern:
    """Where given frames stand in a video.

    Args:
        num_frames: N, the frames that a plan covers.
        observed: which of them are given, sorted.
        source: for each of these, its number among the user's frames.
        num_kept: how many frames make the video; the rest is a help to draw it. Default: all.
    """

    num_frames: int
    observed: tuple[int, ...]
    source: tuple[int, ...]
    num_kept: int | None = None

    def __post_init__(self) -> None:
        observed = given_frames(self.observed, self.num_frames)
        source = whole_numbers("source", self.source, "Pass a frame of the user's for each given one.", error=PlanError)
        if len(source) != len(observed):
            raise PlanError(
                "source", f"has {len(source)} entries for {len(observed)} given frames", "Pass one for each."
            )
        if self.num_kept is not None:
            whole_number("num_kept", self.num_kept, 1, PlanError, most=self.num_frames)
        freeze(self, observed=observed, source=source)

    def place(self, given: Tensor) -> Tensor:
        """The state to start from, ``[B, N, *site]``: `given` ``[B, n, *site]`` at its places, zero elsewhere."""
        real_tensor("given", given, "[B, n, *site]", error=PlanError)
        needed = 1 + max(self.source, default=-1)
        if given.ndim < 2 or given.shape[1] != needed:
            raise PlanError(
                "given", f"has shape {tuple(given.shape)}, but the pattern has {needed} frames", "Pass [B, n, *site]."
            )
        x = torch.zeros(len(given), self.num_frames, *given.shape[2:], dtype=given.dtype, device=given.device)
        x[:, list(self.observed)] = given[:, list(self.source)]
        return x

    def trim(self, video: Tensor) -> Tensor:
        """The frames of ``[B, N, *site]`` that make the video."""
        if real_tensor("video", video, "[B, N, *site]", error=PlanError).ndim < 2:
            raise PlanError("video", f"has shape {tuple(video.shape)}", f"Pass [B, {self.num_frames}, *site].")
        return video[:, : self.num_kept]


def continuation(num_frames: int, num_given: int) -> Pattern:
    """The first frames are given."""
    return keyframes(num_frames, given_frames(num_given, num_frames))


def interpolation(num_frames: int, num_first: int = 1, num_last: int = 1) -> Pattern:
    """The first and the last frames are given: how a video gets from one to the other."""
    for name, count in (("num_first", num_first), ("num_last", num_last)):
        whole_number(name, count, 1, PlanError)
    num_frames = whole_number("num_frames", num_frames, 1, PlanError, most=MOST_FRAMES)
    if num_first + num_last > num_frames:
        raise PlanError("num_last", f"is {num_last} beside num_first={num_first} of {num_frames} frames", "Give fewer.")
    return keyframes(num_frames, (*range(num_first), *range(num_frames - num_last, num_frames)))


def keyframes(num_frames: int, at: Iterable[int]) -> Pattern:
    """Any frames are given, in the order of time."""
    observed = given_frames(as_frames("at", at), num_frames)
    return Pattern(num_frames, observed, tuple(range(len(observed))))


def extension(num_frames: int, num_given: int, start: int | None = None) -> Pattern:
    """A clip is given, and what came before it and what comes after is drawn.

    Args:
        num_frames: N, the length of the whole.
        num_given: the length of the clip.
        start: the place of its first frame; default: the clip is in the middle.
    """
    whole_number("num_given", num_given, 1, PlanError)
    num_frames = whole_number("num_frames", num_frames, 1, PlanError, most=MOST_FRAMES)
    start = (num_frames - num_given) // 2 if start is None else whole_number("start", start, 0, PlanError)
    if not 0 <= start <= num_frames - num_given:
        raise PlanError(
            "num_given", f"is {num_given} from frame {start} on, of {num_frames} frames", "The clip must fit."
        )
    return keyframes(num_frames, range(start, start + num_given))


def loop(num_frames: int, num_given: int = 1) -> Pattern:
    """The first frames are given, and follow the last one: a video of `num_frames` frames that can be repeated.

    They stand at the end once more, where the plan meets them; ``pattern.trim`` leaves them out.
    """
    whole_number("num_given", num_given, 1, PlanError)
    num_frames = whole_number("num_frames", num_frames, 1, PlanError, most=MOST_FRAMES)
    if num_given >= num_frames:
        raise PlanError("num_given", f"is {num_given} of {num_frames} frames", "Leave at least one frame to draw.")
    once = tuple(range(num_given))
    again = tuple(range(num_frames, num_frames + num_given))
    return Pattern(num_frames + num_given, once + again, once + once, num_frames)


def plan_for(
    num_frames: int | Pattern,
    observed: int | Iterable[int] | None = None,
    window: int = 20,
    *,
    parallel: bool = True,
    max_gap: int | float | None = None,
) -> Plan:
    """The plan to use unless there is a reason for another.

    Args:
        num_frames: N, or a pattern.
        observed: the given frames, if no pattern says them.
        window: K, how many frames the network sees at once.
        parallel: whether a device can draw many windows at once. Then the keyframe tree; else, where no time is lost
            by waiting and every window may read all before it, FDM's hierarchy-2 where its keyframes are at most
            `max_gap` apart and the autoregressive plan where they are not.
        max_gap: over how many frames keyframes must cohere; default as for `tree`.
    """
    if isinstance(num_frames, Pattern):
        if observed is not None:
            raise PlanError("observed", "is given beside a pattern", "Leave it out: the pattern says it.")
        observed, num_frames = num_frames.observed, num_frames.num_frames
    observed = given_frames(0 if observed is None else observed, num_frames)
    if flag("parallel", parallel):
        return tree(num_frames, observed, window, max_gap=max_gap)
    plan = hierarchical(num_frames, observed, window)
    most = (max(1, window - 3) + 1) ** 2 if max_gap is None else max_gap
    return plan if plan.reach <= most else autoregressive(num_frames, observed, window)
