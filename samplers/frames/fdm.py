"""The plans of FDM: autoregressive, long-range, hierarchical.

Source: Harvey et al. (2022), *Flexible Diffusion Modeling of Long Videos*. K frames a window, S = K/2 of them drawn.
Where the first frames are given, or none, index sets are those of the authors' code, frame for frame. Where
theirs name a frame twice in a window, ours hold it once; and where theirs stop with an error (S = 1, a spacing past the
end) or exceed the window (long-range with K - S = 1), ours go on.

They also accept other given frames, for which FDM has no rule: what lies before the first given frame is drawn
backwards from it, a given frame further on is observed from afar, and windows shrink where given frames are dense.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flexgen.checks import whole_number
from flexgen.errors import PlanError
from samplers.frames.plan import Plan, Window, check_window, given_frames

__all__ = [
    "autoregressive",
    "autoregressive_targets",
    "ends_of",
    "hierarchical",
    "hierarchy_targets",
    "long_range",
    "merged",
    "nearby",
    "spread_over",
]


def autoregressive(
    num_frames: int, observed: int | Iterable[int], window: int = 20, *, num_targets: int | None = None
) -> Plan:
    """The next S frames, given the last K - S.

    Args:
        num_frames: N, the length of the video.
        observed: the given frames: their indices, or how many at the start; none: the first window draws K frames.
        window: K, how many frames the network sees at once.
        num_targets: S; default K // 2.

    Exact for Markov processes. Nothing older than K - S frames is remembered, and every window waits for the last.
    """
    window, num_targets = check_window(window, num_targets)
    given = given_frames(observed, num_frames)
    done, windows = list(given), []
    for target, room in autoregressive_targets(given, num_frames, window, num_targets):
        windows.append(Window(target, nearby(done, target, room, 1)))
        done = merged(done, target)
    return Plan(num_frames, given, window, tuple(windows), "autoregressive")


def long_range(
    num_frames: int, observed: int | Iterable[int], window: int = 20, *, num_targets: int | None = None
) -> Plan:
    """The next S frames, given the last (K - S) / 2 and the last (K - S) / 2 that were given at the outset.

    Arguments as for `autoregressive`. Without given frames those of the first window take their place.
    """
    window, num_targets = check_window(window, num_targets)
    given = given_frames(observed, num_frames)
    done, outset, windows = list(given), given, []
    for target, room in autoregressive_targets(given, num_frames, window, num_targets):
        num_inside = target[-1] - target[0] + 1 - len(target)
        outside = room - num_inside
        chosen = set(nearby(done, target, num_inside + (outside // 2 or min(1, outside)), 1))
        for frame in reversed(outset):
            if len(chosen) >= min(room, len(done)):
                break
            chosen.add(frame)
        windows.append(Window(target, tuple(chosen)))
        outset = outset or target
        done = merged(done, target)
    return Plan(num_frames, given, window, tuple(windows), "long-range")


def hierarchical(
    num_frames: int,
    observed: int | Iterable[int],
    window: int = 20,
    levels: int = 2,
    *,
    num_targets: int | None = None,
) -> Plan:
    """FDM's hierarchy-n: S frames spread over the video, then ever closer ones, given what is near on both sides.

    Args:
        num_frames: N, the length of the video.
        observed: the given frames: their indices, or how many at the start; none: the first window draws K frames.
        window: K, how many frames the network sees at once.
        levels: n, 2 or more; FDM names 2 to 5. The spacing at level l is ((N - n_obs) / (S - 1))^((n - l) / (n - 1)).
        num_targets: S; default K // 2.

    Exact for Markov processes. Level 1 observes given frames spread over all of them, and those beside missing frames
    in any case; where these alone do not fit, they are keyframes enough, and level 1 is left out. Its targets are
    (N - n_obs) / (S - 1) frames apart, hundreds in a long video. Windows of a level read the window before, so that
    they wait for each other; `tree` does without.
    """
    window, num_targets = check_window(window, num_targets)
    given = given_frames(observed, num_frames)
    levels = whole_number("levels", levels, 2, PlanError)
    done, windows = list(given), []
    for level, target, room in hierarchy_targets(given, num_frames, window, num_targets, levels):
        first = spread_over(given, room, ends_of(given, num_frames)) if level == 1 else None
        windows.append(Window(target, nearby(done, target, room) if first is None else first))
        done = merged(done, target)
    return Plan(num_frames, given, window, tuple(windows), f"hierarchy-{levels}")


def autoregressive_targets(
    given: Sequence[int], num_frames: int, window: int, num_targets: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Targets, and places for observed frames, window after window: from the first given frame on, then backwards."""
    if not given:
        given = range(min(window, num_frames))
        yield tuple(given), 0
    known = set(given)
    missing = [frame for frame in range(num_frames) if frame not in known]
    ahead = missing[bisect_left(missing, given[0]) :]
    behind = missing[: len(missing) - len(ahead)]
    while ahead:
        for size in range(num_targets, 0, -1):
            target = ahead[:size]
            num_inside = target[-1] - target[0] + 1 - len(target)  # of the given frames
            if window - size - num_inside >= 1 + (given[-1] > target[-1]):
                break
        yield tuple(target), window - size
        ahead = ahead[len(target) :]
    while behind:
        yield tuple(behind[-num_targets:]), window - num_targets
        behind = behind[:-num_targets]


def hierarchy_targets(
    given: Sequence[int], num_frames: int, window: int, num_targets: int, levels: int
) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Level, targets, and places for observed frames, window after window."""
    done = sorted(given)
    missing = set(range(num_frames)) - set(done)
    level, last = 1, num_frames - 1  # the last frame that the level has visited
    if missing:
        if done:
            first, size = min(missing), min(num_targets, window - 2) or 1
            # Over the missing frames; where the first frames are given this is FDM's linspace(n_obs, N - 0.001, S).
            place = np.linspace(first, first + len(missing) - 0.001, size).astype(int) - first
            target = tuple(np.unique(np.array(sorted(missing))[place]).tolist())
            room = window - size
        else:
            target = tuple(np.unique(np.linspace(0, num_frames - 1, window).astype(int)).tolist())
            room = 0
        num_missing = len(missing) if given else num_frames - len(target)
        if len(ends_of(given, num_frames)) <= room or not given:
            yield 1, target, room
            done, missing = merged(done, target), missing - set(target)
    anew = not given
    while missing:
        for size in range(num_targets, 0, -1):
            if anew:  # the first window after one that was given nothing
                level, last = 1, num_frames - 1

            def spacing(level: int, size: int = size) -> int:
                return int((num_missing / max(1, size - 1)) ** ((levels - level) / (levels - 1)))

            start = last + spacing(level)
            while not (target := _every(spacing(level), start, size, missing, num_frames)):
                level, last = level + 1, 0
                start = min(missing) - 1 + spacing(level)
            num_inside = bisect_left(done, target[-1]) - bisect_left(done, target[0])
            if window - size - num_inside >= 2:
                break
        yield level, target, window - size
        done, missing = merged(done, target), missing - set(target)
        last, anew = target[-1], False


def nearby(done: Sequence[int], target: Sequence[int], room: int, max_after: int | None = None) -> tuple[int, ...]:
    """The frames to observe: all inside the targets' span, the nearest after it, and the nearest before it.

    Args:
        done: frames that are there, sorted.
        target: frames to draw, sorted.
        room: how many frames to observe.
        max_after: how many to take after the span at most. Up to half of the places outside it go to frames after, the
            others to frames before; where nothing is before, all go to frames after.
    """
    low, high = bisect_left(done, target[0]), bisect_left(done, target[-1])
    outside = max(0, room - (high - low))
    num_after = outside if low == 0 else outside // 2 if max_after is None else min(max_after, outside // 2)
    after = done[high : high + num_after]
    num_before = max(0, room - (high - low) - len(after))
    return (*done[max(0, low - num_before) : low], *done[low:high], *after)


def ends_of(given: Sequence[int], num_frames: int) -> set[int]:
    """The given frames beside which a frame is missing."""
    known = set(given)
    return {f for f in given if (f > 0 and f - 1 not in known) or (f < num_frames - 1 and f + 1 not in known)}


def spread_over(given: Sequence[int], room: int, ends: set[int]) -> tuple[int, ...]:
    """Up to `room` given frames, evenly spaced, `ends` among them."""
    even = _even(given, room)
    return tuple(sorted(even if ends <= even else ends | _even(given, room - len(ends))))


def _even(given: Sequence[int], count: int) -> set[int]:
    if count > len(given):
        return set(given)
    return {given[place] for place in np.linspace(0, len(given) - 0.001, count).astype(int)} if given else set()


def _every(step: int, start: int, size: int, missing: set[int], num_frames: int) -> tuple[int, ...]:
    """Up to `size` missing frames from `start` on, `step` apart or as little more as there are frames done."""
    target: list[int] = []
    while len(target) < size and start < num_frames:
        if start in missing:
            target.append(start)
            if step == 0:  # fewer frames are missing than S - 1: FDM draws the same frame S times
                break
            start += step
        else:
            start += 1
    return tuple(target)


def merged(done: list[int], target: Iterable[int]) -> list[int]:
    """`done` with the targets, sorted; in place."""
    for frame in target:
        insort(done, frame)
    return done
