"""Plans of long videos: which frames are drawn next, given which.

A network sees K frames at once; a video has thousands. A plan is a list of windows that covers it: a value, checked
when it is made, that prints, turns into JSON and knows its cost before anything runs. It is a `Schedule`: ``run(
conditional, x, plan, generator=g)`` draws the video from any conditional whose sites are frames.

Guarantee: the video has the law p(given) · Π_w p(x_P(w) | x_C(w)). This is the joint law where every window's targets
are independent, given what it observes, of all else that was there before; for a Markov process of order m, where each
run of targets has the m frames on either side observed, or a side on which nothing is there yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from flexgen.checks import whole_number
from flexgen.errors import PlanError
from flexgen.rng import Randomness
from samplers.frames.windows import Window, as_frames, frame_evaluations, ranges
from samplers.schedule import Walk

__all__ = ["Plan", "check_window", "given_frames"]

_LINES = 40  # windows that a printed plan shows


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
        whole_number("num_frames", self.num_frames, 1, PlanError)
        whole_number("window", self.window, 1, PlanError)
        object.__setattr__(self, "observed", given_frames(self.observed, self.num_frames))
        object.__setattr__(self, "windows", tuple(self.windows))
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
        """Frames that pass the network in all, see `windows.frame_evaluations`."""
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
        try:
            windows = tuple(Window(**window) for window in data["windows"])
            fields = {name: data[name] for name in ("num_frames", "observed", "window", "name")}
        except (TypeError, KeyError) as error:
            raise PlanError("data", f"is no plan ({error})", "Pass what plan.to_dict() returned.") from None
        return cls(windows=windows, **fields)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
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
    whole_number("num_frames", num_frames, 1, PlanError)
    if isinstance(observed, int):
        observed = range(whole_number("observed", observed, 0, PlanError))
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
