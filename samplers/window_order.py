"""In which order the windows of a plan run, and which of them hang on which.

The invariant that makes a plan resumable: no window of a wave writes what another window of the wave reads or writes,
and none reads its own targets. However many windows of a wave are done, or were killed half-written, whatever the
others read is then what the waves before left. To run a window again is to run it for the first time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from flexgen.errors import PlanError

__all__ = [
    "AdaptivePlan",
    "DrawnPlan",
    "DrawnWindow",
    "WindowLike",
    "WindowPlan",
    "check_waves",
    "dependents",
    "needed_to_redo",
    "rewriters",
]


class WindowLike(Protocol):
    """Frames to draw, given frames to read; the numbers of both."""

    @property
    def target(self) -> tuple[int, ...]: ...
    @property
    def observed(self) -> tuple[int, ...]: ...


class _AnyPlan(Protocol):
    """What fixed and adaptive plans have alike."""

    @property
    def num_frames(self) -> int: ...
    @property
    def observed(self) -> tuple[int, ...]: ...
    @property
    def window(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...


@runtime_checkable
class WindowPlan(_AnyPlan, Protocol):
    """What running a plan needs of it; ``samplers.frames.Plan`` is one."""

    @property
    def windows(self) -> Sequence[WindowLike]: ...
    def waves(self) -> Sequence[Sequence[int]]: ...


def check_waves(plan: WindowPlan) -> None:
    """Refuses a plan whose windows cannot be run wave by wave, interrupted and run again.

    Raises:
        PlanError: names the window and the frame.
    """
    order = [number for wave in plan.waves() for number in wave]
    if sorted(order) != list(range(len(plan.windows))):
        raise PlanError("plan", "has waves that do not name every window once", "List each window in one wave.")
    there = set(plan.observed)
    given = frozenset(there)
    for wave in plan.waves():
        writer: dict[int, int] = {}
        for number in wave:
            window = plan.windows[number]
            if len(window.target) + len(window.observed) > plan.window:
                problem = f"window {number} holds {len(window.target) + len(window.observed)} frames"
                raise PlanError("plan", problem, f"The network sees {plan.window} at once.")
            for frame in window.target:
                if not 0 <= frame < plan.num_frames:
                    problem = f"window {number} writes frame {frame}"
                    raise PlanError("plan", problem, f"Frames are numbered 0 to {plan.num_frames - 1}.")
                if frame in given:
                    raise PlanError("plan", f"window {number} writes frame {frame}, which is given", "Leave it out.")
                if frame in writer:
                    problem = f"windows {writer[frame]} and {number} of one wave both write frame {frame}"
                    raise PlanError("plan", problem, "Put them into different waves.")
                writer[frame] = number
        for number in wave:
            for frame in plan.windows[number].observed:
                if frame in writer:
                    problem = f"window {number} reads frame {frame}, which window {writer[frame]} of its wave writes"
                    raise PlanError("plan", problem, "Put them into different waves: what it reads must stay.")
                if frame not in there:
                    problem = f"window {number} reads frame {frame}, which no earlier wave writes"
                    raise PlanError("plan", problem, "Draw it first.")
        there.update(writer)
    if missing := set(range(plan.num_frames)) - there:
        problem = f"leaves {len(missing)} frame(s) undrawn, first {min(missing)}"
        raise PlanError("plan", problem, "Cover every frame that is not given.")


class _History:
    """Who wrote the frames that each window reads, and in which order."""

    def __init__(self, plan: WindowPlan) -> None:
        self.writers: dict[int, list[int]] = defaultdict(list)  # frame -> its windows, in the order they run
        self.sources: dict[int, dict[int, int]] = {}  # window -> frame it reads -> the window that wrote it
        self.readers: dict[int, set[int]] = defaultdict(set)  # window -> those that read what it wrote
        for number in (number for wave in plan.waves() for number in wave):
            read = [frame for frame in plan.windows[number].observed if self.writers.get(frame)]
            self.sources[number] = {frame: self.writers[frame][-1] for frame in read}
            for source in self.sources[number].values():
                self.readers[source].add(number)
            for frame in plan.windows[number].target:
                self.writers[frame].append(number)

    def later_writers(self, plan: WindowPlan, number: int) -> set[int]:
        """Windows that write one of this window's frames after it."""
        lists = (self.writers[frame] for frame in plan.windows[number].target)
        return {later for writers in lists for later in writers[writers.index(number) + 1 :]}


def dependents(plan: WindowPlan, window: int) -> tuple[int, ...]:
    """The later windows that read what this one wrote, or what such a window wrote, and so on."""
    readers = _History(plan).readers
    found: set[int] = set()
    waiting = [window]
    while waiting:
        new = readers[waiting.pop()] - found
        found |= new
        waiting += new
    return tuple(sorted(found))


def rewriters(plan: WindowPlan, window: int) -> tuple[int, ...]:
    """The later windows that draw one of this window's frames anew."""
    return tuple(sorted(_History(plan).later_writers(plan, window)))


def needed_to_redo(plan: WindowPlan, window: int) -> frozenset[int]:
    """The windows to run again, in order, so that the video is as if this one had been another from the start.

    They are its dependents; whatever writes their frames anew later; and, where one of them reads a frame that was
    overwritten since, the window that wrote what it read, to bring that back first.
    """
    history = _History(plan)
    found = {window}
    waiting = [window]
    while waiting:
        number = waiting.pop()
        overwritten = {
            source for frame, source in history.sources[number].items() if history.writers[frame][-1] != source
        }
        new = (history.readers[number] | history.later_writers(plan, number) | overwritten) - found
        found |= new
        waiting += new
    return frozenset(found)


@runtime_checkable
class AdaptivePlan(_AnyPlan, Protocol):
    """A plan that looks at the frames drawn so far to choose its next window; ``samplers.frames.AdaptivePlan``."""

    @property
    def num_evaluations(self) -> int: ...
    def next_window(self, frames: Tensor, number: int) -> Sequence[WindowLike]: ...


@dataclass(frozen=True)
class DrawnWindow:
    """A window that an adaptive plan chose, as it is remembered."""

    target: tuple[int, ...]
    observed: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("target", "observed"):  # lists, in JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))


class DrawnPlan:
    """What an adaptive plan has chosen so far: its windows, one after the other."""

    def __init__(self, plan: AdaptivePlan, windows: Sequence[WindowLike]) -> None:
        self.num_frames, self.observed, self.window = plan.num_frames, plan.observed, plan.window
        self.windows = tuple(windows)

    def waves(self) -> tuple[tuple[int, ...], ...]:
        return tuple((number,) for number in range(len(self.windows)))

    def to_dict(self) -> dict[str, Any]:
        return {"windows": [vars(window) for window in self.windows]}
