"""A keyframe tree: every level is one parallel batch.

FDM's hierarchies draw a level's windows one after the other, each given the window before. Here a window reads
*earlier levels* alone, so that a level's windows run at once and a window may be nearly full of targets: about 40 %
fewer windows than FDM's K/2 targets give, in a handful of waves instead of thousands. The price is a seam at each
keyframe between two windows, whose sides are independent given the keyframes; `refine` redraws what is around seams.

The coarsest level, the *spine*, is the one that waits for itself: keyframes at most `max_gap` apart, window after
window. A window of K - c keyframes advances by (K - c) max_gap frames, so that at least N / ((K - c) max_gap) waves
are needed whatever the design: coherence over short distances and few waves exclude each other, and `max_gap` says
which is wanted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

from flexgen.checks import is_number, kind_of, whole_number
from flexgen.errors import PlanError
from samplers.frames.plan import Plan, Window, check_window, given_frames

__all__ = ["tree"]

Stage = list[int]  # frames that are drawn in one wave


def tree(
    num_frames: int,
    observed: int | Iterable[int],
    window: int = 20,
    *,
    num_context: int | None = None,
    max_gap: int | float | None = None,
) -> Plan:
    """Keyframes, then keyframes between them, then all frames; each level in one wave.

    Args:
        num_frames: N, the length of the video.
        observed: the given frames, any of them: their indices, or how many at the start.
        window: K, how many frames the network sees at once; 3 or more.
        num_context: c, the least number of frames that a window observes where so many are there; 2 or more, for a
            window needs one on either side. Default: 3, two before and one after, as FDM's adaptive plans.
        max_gap: how far keyframes of the spine may be from what their window observes, or from the next keyframe.
            Smaller: more waves. Default: (K - c + 1)², which leaves two levels below the spine; ``math.inf``: one
            window spreads over all of each gap, for the fewest waves. The plan's `reach` is the distance it came to.
            A frame that is given beyond the next keyframe is observed as well, however far.

    Exact for Markov processes: every run of targets has a frame observed on either side.
    """
    window, _ = check_window(window, None, least=3)
    given = given_frames(observed, num_frames)
    num_context = min(3, window - 1) if num_context is None else whole_number("num_context", num_context, 2, PlanError)
    if num_context >= window:
        raise PlanError("num_context", f"is {num_context} of a window of {window}", "Leave room to draw a frame.")
    size = window - num_context
    max_gap = (size + 1) ** 2 if max_gap is None else max_gap
    if not is_number(max_gap) or not max_gap >= 1:
        raise PlanError("max_gap", f"is {kind_of(max_gap)}", "Pass 1 or more frames.")

    gaps = [_stages(*gap, size, window, max_gap) for gap in _gaps(given, num_frames)]
    num_stages = max(map(len, gaps), default=0)
    done, windows = list(given), []
    for wave in range(num_stages):  # the last stages of all gaps coincide
        stages = (stages[wave - (num_stages - len(stages))] for stages in gaps if wave >= num_stages - len(stages))
        frames = sorted(frame for stage in stages for frame in stage)
        windows += _fill(frames, done, window, num_context)
        done = sorted(done + frames)
    return Plan(num_frames, given, window, tuple(windows), "tree")


def _gaps(given: Sequence[int], num_frames: int) -> list[tuple[int | None, int | None, int]]:
    """The runs of missing frames, as (given frame before, given frame after, N); None where there is none."""
    if not given:
        return [(None, None, num_frames)]
    ends: list[int | None] = [*given, None if given[-1] < num_frames - 1 else num_frames]
    pairs = list(zip([None, *given], ends, strict=True))
    return [(a, b, num_frames) for a, b in pairs if (num_frames if b is None else b) - (-1 if a is None else a) > 1]


def _stages(
    before: int | None, after: int | None, num_frames: int, size: int, window: int, max_gap: float
) -> list[Stage]:
    """What to draw in a gap, wave after wave."""
    if before is None and after is not None:  # mirrored: from the first given frame backwards
        return [[after - frame for frame in stage] for stage in _stages(0, None, after + 1, size, window, max_gap)]
    low, high = 0 if before is None else before, num_frames - 1 if after is None else after
    missing = range(low + (before is not None), high + (after is None))
    most = window if before is None else size  # targets of the first window
    if len(missing) <= most:
        return [list(missing)]
    # Ends that nobody gave are keyframes; this many intervals then have keyframes enough for one window.
    most_intervals = most + 1 - [before, after].count(None)

    def even(frames: Sequence[int], count: int) -> list[int]:
        return [frames[(len(frames) - 1) * place // count] for place in range(count + 1)]

    # Grids, from the finest to the spine; every interval of one holds at most `size` frames of the finer one.
    grid = even(range(low, high + 1), -(-(high - low) // (size + 1)))
    grids = [grid]
    while len(grid) - 1 > most_intervals:
        stride = max(b - a for a, b in pairwise(grid))
        ratio = min(size + 1, max_gap // stride)
        if ratio < 2:
            break
        grid = even(grid, max(math.ceil((len(grid) - 1) / ratio), most_intervals))
        grids.append(grid)
    if max(b - a for a, b in pairwise(grids[0])) > max_gap:  # the finest grid is too coarse: frame after frame
        grids = [even(range(low, high + 1), -(-(high - low) // int(max_gap)))]
    drawn = {low} if before is not None else set()
    drawn |= {high} if after is not None else set()
    spine = [frame for frame in grids[-1] if frame not in drawn]
    stages = _chunks(spine, size, most - size)
    drawn.update(spine)
    for finer in [*reversed(grids[:-1]), range(low, high + 1)]:
        stages.append([frame for frame in finer if frame not in drawn])
        drawn.update(finer)
    return [stage for stage in stages if stage]


def _chunks(frames: list[int], size: int, more: int) -> list[Stage]:
    """As few and as even pieces as can be of at most `size` frames, the first of up to `more` beyond that."""
    count = max(1, -(-(len(frames) - more) // size))
    edges = [more + (len(frames) - more) * place // count for place in range(count + 1)]
    edges[0] = 0
    return [frames[a:b] for a, b in pairwise(edges)]


def _fill(frames: Sequence[int], done: Sequence[int], window: int, num_context: int) -> list[Window]:
    """Windows that draw `frames` given `done` alone; each takes whole runs between frames that are done."""
    windows, start = [], 0
    while start < len(frames):
        first = bisect_left(done, frames[start])
        stop = start
        for run_stop in _run_stops(frames, start, done):
            num_inside = bisect_left(done, frames[run_stop - 1]) - first
            beside = min(num_context, len(done) - num_inside)
            if stop > start and (run_stop - start) + num_inside + beside > window:
                break
            stop = run_stop
        target = tuple(frames[start:stop])
        windows.append(Window(target, _around(done, target, window - len(target))))
        start = stop
    return windows


def _run_stops(frames: Sequence[int], start: int, done: Sequence[int]) -> Iterable[int]:
    """Where the runs of frames between frames that are done stop, from place `start` on."""
    while start < len(frames):
        after = bisect_left(done, frames[start])
        start = bisect_left(frames, done[after]) if after < len(done) else len(frames)
        yield start


def _around(done: Sequence[int], target: Sequence[int], room: int) -> tuple[int, ...]:
    """All of `done` inside the targets' span, and the nearest on both sides, one more before; `room` in all."""
    low, high = bisect_left(done, target[0]), bisect_left(done, target[-1])
    outside = room - (high - low)
    num_after = min(len(done) - high, max(outside // 2, outside - low))
    return tuple(done[max(0, low - (outside - num_after)) : high + num_after])
