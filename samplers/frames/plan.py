"""Plans of long videos: which frames are drawn next, given which.

A network sees K frames at once; a video has thousands. A plan is a list of windows that covers it: a value, checked
when it is made, that prints, turns into JSON and knows its cost before anything runs. It is a `Schedule`: ``run(
conditional, x, plan, generator=g)`` draws the video from any conditional whose sites are frames.

Guarantee: the video has the distribution p(given) · Π_w p(x_P(w) | x_C(w)). This is the joint distribution where every
window's targets are independent, given what it observes, of all else that was there before; for a Markov process of
order m, where each run of targets has the m frames on either side observed, or a side on which nothing is there yet.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import entries, flag, freeze, instance, malformed, mapping, whole_number, whole_numbers
from flexgen.errors import PlanError
from flexgen.query import Query
from flexgen.rng import Randomness
from samplers.schedule import Walk

__all__ = ["Plan", "Window", "as_frames", "check_window", "frame_evaluations", "given_frames", "ranges"]

_LINES = 40  # windows that a printed plan shows


MOST_FRAMES = 1 << 22
"""Of a video: days of it; what is longer is a mistake, and would take all memory to plan."""

_INT64 = (1 << 63) - 1


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
        if isinstance(frame_index, int | np.integer):
            frame_index = whole_number("frame_index", frame_index, 0, PlanError, most=MOST_FRAMES)
            absent = [frame for frame in (*self.target, *self.observed) if frame >= frame_index]
            place: Any = range(frame_index)
        else:
            fix = "Pass the frame of each site, or how many there are."
            numbers = whole_numbers("frame_index", frame_index, fix, error=PlanError)
            place = {frame: site for site, frame in enumerate(numbers)}
            absent = [frame for frame in (*self.target, *self.observed) if frame not in place]
        if absent:
            raise PlanError("frame_index", f"lacks frame {absent[0]} of the window", "Name every frame of the window.")
        target, observed = ([place[frame] for frame in frames] for frames in (self.target, self.observed))
        return Query.of(target, observed, num_sites=len(place), device=device)

    def shifted(self, by: int) -> Window:
        """The same window `by` frames later."""
        by = whole_number("by", by, -MOST_FRAMES, PlanError, most=MOST_FRAMES)
        return Window(tuple(f + by for f in self.target), tuple(f + by for f in self.observed), self.refines)

    def __str__(self) -> str:
        return f"{ranges(self.target)} | {ranges(self.observed) or 'nothing'}{'  (again)' if self.refines else ''}"


@dataclass(frozen=True, repr=False)
class Plan:
    """Windows that cover a video, in an order in which they can be drawn.

    Args:
        num_frames: N, the length of the video.
        observed: the frames that are given: their indices, or how many at the start.
        window: K, how many frames the network sees at once.
        windows: what is drawn, one window after the other.
        name: for tables and file names.

    Raises:
        PlanError: a frame is drawn that is given, or is drawn again by a window that is not marked as a refinement,
            or never; a window reads a frame that is not there yet, holds more than K frames, or leaves the video.
    """

    num_frames: int
    observed: tuple[int, ...]
    window: int
    windows: tuple[Window, ...]
    name: str = "plan"

    def __post_init__(self) -> None:
        whole_number("window", self.window, 1, PlanError)
        fix = "Pass windows, such as Window(target=(2, 3), observed=(0, 1))."
        windows = entries("windows", self.windows, fix, error=PlanError)
        for window in windows:
            instance("windows", window, Window, fix, PlanError)
        instance("name", self.name, str, "Pass a text.", PlanError)
        freeze(self, observed=given_frames(self.observed, self.num_frames), windows=windows)
        self._check()

    def _check(self) -> None:
        given = set(self.observed)
        done = set(given)

        def refuse(number: int, problem: str, fix: str) -> None:
            raise PlanError("windows", f"window {number} {problem}", fix)

        for number, window in enumerate(self.windows):
            if len(window) > self.window:
                refuse(number, f"holds {len(window)} frames", f"The network sees {self.window} at once (window).")
            if (last := window.frame_index[-1]) >= self.num_frames:
                refuse(number, f"holds frame {last}", f"Frames are numbered 0 to {self.num_frames - 1}.")
            for frame in window.observed:
                if frame not in done:
                    refuse(number, f"observes frame {frame}, which is neither given nor drawn before", "Draw it first.")
            for frame in window.target:
                if frame in given:
                    refuse(number, f"draws frame {frame}, which is given", "Observe it, or leave it out.")
                if frame in done and not window.refines:
                    refuse(number, f"draws frame {frame} again", "Mark a window that revises frames: refines=True.")
                if frame not in done and window.refines:
                    refuse(number, f"refines frame {frame}, which was never drawn", "Draw it first.")
            done.update(window.target)
        if len(done) < self.num_frames:
            frame = next(frame for frame in range(self.num_frames) if frame not in done)
            count = self.num_frames - len(done)
            raise PlanError(
                "windows", f"leave out {count} frame(s), first {frame}", "Cover every frame that is not given."
            )

    @cached_property
    def dependencies(self) -> tuple[tuple[int, ...], ...]:
        """For each window, the earlier ones it waits for: they draw what it reads, or read what it draws anew."""
        writer: dict[int, int] = {}  # frame -> the last window that drew it
        readers: dict[int, list[int]] = {}  # frame -> the windows that read it since
        result = []
        for number, window in enumerate(self.windows):
            before = {writer[frame] for frame in (*window.observed, *window.target) if frame in writer}
            before.update(*(readers.get(frame, ()) for frame in window.target))
            result.append(tuple(sorted(before)))
            for frame in window.observed:
                readers.setdefault(frame, []).append(number)
            for frame in window.target:
                writer[frame], readers[frame] = number, []
        return tuple(result)

    @cached_property
    def _waves(self) -> tuple[tuple[int, ...], ...]:
        wave_of: list[int] = []
        waves: list[list[int]] = []
        for number, before in enumerate(self.dependencies):
            wave = 1 + max((wave_of[other] for other in before), default=-1)
            wave_of.append(wave)
            if wave == len(waves):
                waves.append([])
            waves[wave].append(number)
        return tuple(map(tuple, waves))

    def waves(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the windows that can be drawn in one batch, each as early as possible, wave after wave."""
        return self._waves

    @property
    def critical_path(self) -> int:
        """The longest sequence of windows each of which waits for the one before: the number of waves."""
        return len(self._waves)

    def dependents(self, window: int) -> tuple[int, ...]:
        """The later windows that read what this one drew, or what such a window drew, and so on."""
        readers = self._readers
        found: set[int] = set()
        waiting = [window]
        while waiting:
            new = readers[waiting.pop()] - found
            found |= new
            waiting += new
        return tuple(sorted(found))

    def rewriters(self, window: int) -> tuple[int, ...]:
        """The later windows that draw one of this window's frames anew."""
        later = {number for frame in self.windows[window].target for number in self._writers[frame]}
        return tuple(sorted(number for number in later if number > window))

    def needed_to_redo(self, window: int) -> frozenset[int]:
        """The windows to draw again, in order, so that the video is as if this one had been another from the start.

        They are its dependents; whatever draws their frames anew later; and, where one of them reads a frame that was
        drawn anew since, the window that drew what it read, to bring that back first.
        """
        found = {window}
        waiting = [window]
        while waiting:
            number = waiting.pop()
            overwritten = {s for frame, s in self._sources[number].items() if self._writers[frame][-1] != s}
            new = (self._readers[number] | set(self.rewriters(number)) | overwritten) - found
            found |= new
            waiting += new
        return frozenset(found)

    @cached_property
    def _writers(self) -> dict[int, list[int]]:
        """Frame -> the windows that draw it, in order."""
        writers: dict[int, list[int]] = defaultdict(list)
        for number, window in enumerate(self.windows):
            for frame in window.target:
                writers[frame].append(number)
        return writers

    @cached_property
    def _sources(self) -> tuple[dict[int, int], ...]:
        """For each window: frame that it reads -> the window that drew it last before; given frames have none."""
        writer: dict[int, int] = {}
        sources = []
        for number, window in enumerate(self.windows):
            sources.append({frame: writer[frame] for frame in window.observed if frame in writer})
            writer.update(dict.fromkeys(window.target, number))
        return tuple(sources)

    @cached_property
    def _readers(self) -> dict[int, set[int]]:
        """Window -> those that read what it drew."""
        readers: dict[int, set[int]] = defaultdict(set)
        for number, sources in enumerate(self._sources):
            for source in sources.values():
                readers[source].add(number)
        return readers

    @property
    def num_evaluations(self) -> int:
        """Windows; a conditional that draws a window in `num_steps` evaluations needs as many times more."""
        return len(self.windows)

    @property
    def num_generated(self) -> int:
        """Frames that are not given."""
        return self.num_frames - len(self.observed)

    @cached_property
    def reach(self) -> int:
        """The largest `Window.reach`: over how many frames coherence must be held at once."""
        return max((window.reach for window in self.windows), default=0)

    @cached_property
    def seams(self) -> tuple[int, ...]:
        """Frames that no window held together with both of their neighbours while drawing one of the three.

        The neighbours are then independent given the rest, so that motion may break there.
        """
        generated = set(range(self.num_frames)) - set(self.observed)
        seen: set[int] = set()
        for window in self.windows:
            index, target = set(window.frame_index), set(window.target)
            near = {centre for frame in target for centre in (frame - 1, frame, frame + 1)}
            seen.update(centre for centre in near if index >= {centre - 1, centre, centre + 1})
        triples = (centre for centre in range(1, self.num_frames - 1) if centre not in seen)
        return tuple(centre for centre in triples if generated & {centre - 1, centre, centre + 1})

    def frame_evaluations(self, num_steps: int, *, cached: bool = False) -> int:
        """Frames that pass the network in all, see `frame_evaluations`."""
        return sum(
            frame_evaluations(len(window.target), len(window.observed), num_steps, cached=cached)
            for window in self.windows
        )

    def evaluations_per_frame(self, num_steps: int, *, cached: bool = False) -> float:
        """`frame_evaluations` for each frame that is not given; 0 where all are."""
        return self.frame_evaluations(num_steps, cached=cached) / max(1, self.num_generated)

    def walk(self, x: Tensor, *, generator: Randomness) -> Walk:  # noqa: ARG002
        if x.ndim < 2 or x.shape[1] != self.num_frames:
            raise PlanError(
                "x", f"has shape {tuple(x.shape)}, but the plan has {self.num_frames} frames", "Pass [B, N, *site]."
            )
        for window in self.windows:
            yield window.query(self.num_frames, device=x.device)

    def to_dict(self) -> dict[str, Any]:
        windows: list[dict[str, Any]] = []
        for window in self.windows:
            windows.append({"target": list(window.target), "observed": list(window.observed)})
            if window.refines:
                windows[-1]["refines"] = True
        return {
            "name": self.name,
            "num_frames": self.num_frames,
            "observed": list(self.observed),
            "window": self.window,
            "windows": windows,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        mapping("data", data, "Pass what plan.to_dict() returned.", PlanError)
        with malformed("data", "Pass what plan.to_dict() returned.", PlanError):
            windows = tuple(Window(**window) for window in data["windows"])
            return cls(windows=windows, **{name: data[name] for name in ("num_frames", "observed", "window", "name")})

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise PlanError("text", f"is no JSON ({error})", "Pass what plan.to_json() returned.") from None
        return cls.from_dict(data)

    def __repr__(self) -> str:
        return (
            f"Plan({self.name}: {self.num_frames} frames, {len(self.observed)} given, window {self.window}; "
            f"{len(self.windows)} windows in {self.critical_path} waves)"
        )

    def __str__(self) -> str:
        head = [
            f"{self.name}: {self.num_frames} frames, {len(self.observed)} given ({ranges(self.observed) or 'none'}), "
            f"window {self.window}",
            f"{len(self.windows)} windows in {self.critical_path} waves (critical path {self.critical_path}); "
            f"reach {self.reach}; {self.evaluations_per_frame(1):.2f} frame evaluations a step and generated frame, "
            f"{sum(len(window.target) for window in self.windows) / max(1, self.num_generated):.2f} cached",
            "wave  window  target | observed",
        ]
        order = [(wave, number) for wave, numbers in enumerate(self._waves) for number in numbers]
        lines = [f"{wave:4d}  {number:6d}  {self.windows[number]}" for wave, number in order]
        if len(lines) > _LINES:
            left_out = len(lines) - _LINES
            lines[_LINES // 2 : -_LINES // 2] = [f"      ... {left_out} windows ..."]
        return "\n".join(head + lines)


def given_frames(observed: int | Iterable[int], num_frames: int) -> tuple[int, ...]:
    """The given frames of a video, from their indices or from how many are given at its start."""
    whole_number("num_frames", num_frames, 1, PlanError, most=MOST_FRAMES)
    if isinstance(observed, int | np.integer):
        observed = range(whole_number("observed", observed, 0, PlanError, most=MOST_FRAMES))
    frames = as_frames("observed", observed)
    if frames and frames[-1] >= num_frames:
        raise PlanError("observed", f"holds frame {frames[-1]}", f"Frames are numbered 0 to {num_frames - 1}.")
    return frames


def check_window(window: int, num_targets: int | None, least: int = 2) -> tuple[int, int]:
    """K and S: frames a window, and targets a window (default: half of them, as in FDM)."""
    window = whole_number("window", window, least, PlanError)
    num_targets = window // 2 if num_targets is None else whole_number("num_targets", num_targets, 1, PlanError)
    if num_targets >= window:
        raise PlanError("num_targets", f"is {num_targets} of a window of {window}", "Leave room to observe a frame.")
    return window, num_targets


def frame_evaluations(num_target: int, num_observed: int, num_steps: int, *, cached: bool) -> int:
    """Frames that pass the network while one window is drawn in `num_steps` denoising steps.

    Uncached, every step evaluates all frames of the window. Cached (observed frames attend to observed frames alone,
    so that their features are computed once), a step evaluates the targets.
    """
    num_steps, cached = whole_number("num_steps", num_steps, 0, PlanError, most=1 << 53), flag("cached", cached)
    return num_steps * num_target + (1 if cached else num_steps) * num_observed


def as_frames(argument: str, frames: Iterable[int]) -> tuple[int, ...]:
    """Frame indices, sorted; each a whole number from 0, and none twice."""
    fix = "Pass frame indices, for example range(36)."
    numbers = sorted(whole_numbers(argument, frames, fix, least=-_INT64, error=PlanError))
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
