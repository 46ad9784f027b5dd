"""One call of the executor, in one of the processes that share it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.errors import FlexgenError, PlanError, UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Streams
from samplers.frame_conditional import FrameConditional
from samplers.frame_storage import FrameStorage
from samplers.schedule import progress_bar
from samplers.team import Team
from samplers.window_order import AdaptivePlan, DrawnPlan, DrawnWindow, WindowLike, WindowPlan, check_waves

__all__ = ["Execution", "WindowRun"]

_DRAW_STRIDE = 1 << 40  # between the streams of a window's draws: more than any video has windows


@dataclass(frozen=True)
class Execution:
    """What a call did.

    Args:
        num_windows: of the plan.
        num_drawn: windows that this call drew; the others were done already.
        stale: windows that read frames which were resampled since, and were not drawn again themselves.
    """

    num_windows: int
    num_drawn: int
    stale: tuple[int, ...] = ()


class WindowRun:
    """Arguments as for ``samplers.executor.execute``; `start` comes first, then `finish`."""

    def __init__(
        self,
        model: FrameConditional,
        plan: WindowPlan | AdaptivePlan,
        store: FrameStorage,
        seed: int,
        batch_size: int,
    ) -> None:
        if not isinstance(model, FrameConditional):
            raise UnsupportedQueryError(
                "model",
                f"{type(model).__name__} has no sample_window()",
                "Pass a model of windows; of a conditional over the whole video, OverVideo(conditional).",
            )
        if not isinstance(plan, WindowPlan | AdaptivePlan):
            raise PlanError("plan", f"is a {type(plan).__name__}", "Pass a plan of samplers.frames.")
        if store.shape[0] != plan.num_frames or set(store.observed) != set(plan.observed):
            problem = f"is for {store.shape[0]} frames, {len(store.observed)} given"
            raise FlexgenError("store", problem, f"The plan has {plan.num_frames}, {len(plan.observed)} given: agree.")
        if isinstance(plan, WindowPlan):
            check_waves(plan)
        self.model, self.plan, self.store = model, plan, store
        self.seed, self.batch_size = whole_number("seed", seed, 0), whole_number("batch_size", batch_size, 1)
        self.windows: list[WindowLike] = list(plan.windows) if isinstance(plan, WindowPlan) else []
        # What the first process found in the store, and all of them have agreed on since.
        self.done: set[int] = set()
        self.notes: dict[str, Any] = {}

    def start(self, team: Team, stack: contextlib.ExitStack) -> None:
        """Takes the store for this job, checks it, and sees what is done."""
        self.team = team

        def take() -> tuple[set[int], dict[str, Any]]:
            stack.enter_context(self.store.exclusive())
            self.store.refresh()
            plan = json.dumps(self.plan.to_dict(), sort_keys=True)
            digest = hashlib.blake2b(plan.encode(), digest_size=16).hexdigest()
            self.store.bind({"plan": digest, "seed": self.seed})
            self.store.verify()
            return set(self.store.done), dict(self.store.notes)

        self.done, self.notes = team.first(take)
        if not isinstance(self.plan, WindowPlan):
            self.windows = [DrawnWindow(**window) for window in self.notes.get("windows", ())]

    @property
    def num_windows(self) -> int:
        return len(self.plan.windows) if isinstance(self.plan, WindowPlan) else self.plan.num_evaluations

    def drawn_plan(self) -> WindowPlan:
        """The plan; an adaptive one as it has been followed so far."""
        return self.plan if isinstance(self.plan, WindowPlan) else DrawnPlan(self.plan, self.windows)

    def reopen(self, numbers: frozenset[int], notes: dict[str, Any]) -> None:
        """Has windows drawn again."""
        frames = [frame for number in numbers for frame in self.windows[number].target]
        self.team.first(partial(self.store.reopen, numbers, frames=frames, notes=notes))
        self.done -= numbers
        self.notes = notes

    def finish(self, progress: bool) -> Execution:
        """Draws all that is not done."""
        num_pending, num_drawn = self.num_windows - len(self.done), 0
        with progress_bar(num_pending if progress and self.team.is_first else None, "windows") as advance:
            for wave in self._waves():
                for numbers in self._draw_wave(wave):
                    num_drawn += len(numbers)
                    for _ in numbers:
                        advance()
        self.team.each(self.store.refresh)  # the other processes have not seen the marks
        return Execution(self.num_windows, num_drawn, tuple(self.notes.get("stale", ())))

    def _waves(self) -> Iterator[Sequence[int]]:
        if isinstance(self.plan, WindowPlan):
            yield from self.plan.waves()
            return
        for number in range(self.plan.num_evaluations):
            if number == len(self.windows):
                self._choose(self.plan, number)
            yield (number,)

    def _choose(self, plan: AdaptivePlan, number: int) -> None:
        """Asks an adaptive plan for its next window; it sees all frames there are, and none of the window itself."""

        def ask() -> dict[str, list[int]]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the map cannot be written to, and nobody does
                frames = torch.from_numpy(self.store.frames())
            (window,) = plan.next_window(frames[None], number)
            return {"target": list(window.target), "observed": list(window.observed)}

        chosen = self.team.first(ask)
        self.windows.append(DrawnWindow(tuple(chosen["target"]), tuple(chosen["observed"])))
        self.notes = {**self.notes, "windows": [*self.notes.get("windows", ()), chosen]}

    def _draw_wave(self, wave: Sequence[int]) -> Iterator[Sequence[int]]:
        """Draws the windows of a wave that are not done; yields their numbers as they become so."""
        cut = (wave[start : start + self.batch_size] for start in range(0, len(wave), self.batch_size))
        batches = [batch for batch in ([n for n in whole if n not in self.done] for whole in cut) if batch]
        if not batches:
            return
        frames = [frame for batch in batches for number in batch for frame in self.windows[number].target]
        # Also the moment at which all processes have finished the wave before.
        self.team.first(partial(self.store.reopen, frames=frames))
        for start in range(0, len(batches), self.team.size):
            shared = batches[start : start + self.team.size]
            mine = shared[self.team.rank] if self.team.rank < len(shared) else []
            written = itertools.chain.from_iterable(self.team.each(partial(self._draw, mine)))
            self.team.first(partial(self.store.mark_done, written, notes=self.notes))
            numbers = list(itertools.chain.from_iterable(shared))
            self.done.update(numbers)
            yield numbers

    def _draw(self, numbers: Sequence[int]) -> list[Any]:
        """Draws some windows in one batch and writes their frames; returns the store's receipts."""
        if not numbers:
            return []
        windows = [self.windows[number] for number in numbers]
        held = np.zeros((len(windows), self.plan.window, *self.store.shape[1:]), self.store.dtype)  # [B, K, *site]
        frame_index = torch.zeros(held.shape[:2], dtype=torch.int64)
        target, observed = torch.zeros(2, *held.shape[:2], dtype=torch.bool)
        for row, window in enumerate(windows):
            for slot, frame in enumerate(sorted((*window.target, *window.observed))):
                frame_index[row, slot] = frame
                (target if frame in window.target else observed)[row, slot] = True
            # Only what is observed: what a killed run left in the targets can have no influence.
            held[row, observed[row].numpy()] = self.store.read(frame_index[row, observed[row]].tolist())
        names = torch.tensor([n + _DRAW_STRIDE * self.notes.get("draws", {}).get(str(n), 0) for n in numbers])
        answer = self.model.sample_window(
            torch.from_numpy(held),
            Query(target, observed),
            frame_index=frame_index,
            generator=Streams(rng.key(self.seed, "windows"), names),
        ).cpu()
        frames = self._checked(answer, target, numbers, held)
        return [
            self.store.write(number, frame_index[row, target[row]].tolist(), frames[row, target[row].numpy()])
            for row, number in enumerate(numbers)
        ]

    def _checked(self, answer: Tensor, target: Tensor, numbers: Sequence[int], held: Any) -> Any:
        frames = answer.numpy()
        if frames.shape != held.shape or frames.dtype != held.dtype:
            raise FlexgenError(
                "model",
                f"returned {frames.dtype} {list(frames.shape)}, and the store takes {held.dtype} {list(held.shape)}",
                "Wrap the model so that it takes and gives frames as they are stored, or make the store of its type.",
            )
        if answer.is_floating_point() and not bool(answer[target].isfinite().all()):
            row = int((~answer[target].isfinite()).nonzero()[0, 0])
            number = numbers[int(target.nonzero()[row, 0])]
            raise FlexgenError("model", f"returned NaN or infinity in window {number}", "Nothing of it was written.")
        return frames
