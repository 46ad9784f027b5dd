"""Runs a plan: wave after wave, the windows of a wave in batches, every frame on the disk as soon as it is drawn.

Guarantees, each as far as a row of the model's answer depends on that row alone:

* Every window has a stream of random numbers of its own, named by (seed, window, draw). The video depends neither on
  the batch size nor on how many processes share the work.
* Batches are cut from a wave in advance, whatever is done already. With one batch size, a resumed run and runs of any
  number of processes hand the model the very batches of an undisturbed run, so that even its rounding is the same.
* A process killed at any moment loses the batch it was at; the same call goes on and ends with the same frames. For no
  window of a wave writes what another window of the wave reads or writes, and none reads its own targets: however many
  were killed half-written, what the others read is what the waves before left. To run a window again is to run it for
  the first time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.conditional import CanSample
from flexgen.errors import FlexgenError, PlanError, UnsupportedQueryError
from flexgen.processes import Processes
from flexgen.query import Query
from flexgen.rng import Streams
from samplers.frames.adaptive import AdaptivePlan
from samplers.frames.plan import Plan, Window
from samplers.schedule import progress_bar

__all__ = ["Execution", "FrameConditional", "FrameStorage", "OverVideo", "execute", "resample"]

Frames = npt.NDArray[Any]


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
    """A conditional whose sites are all frames of a video, evaluated a window at a time.

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


class FrameStorage(Protocol):
    """Frames of one video and marks of what is done; ``flexgen.video.storage.FrameStore`` is one.

    What `write` returns is shown to `mark_done`, perhaps in another process, and must be picklable.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``[N, *site]``."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the frames."""
        ...

    @property
    def observed(self) -> tuple[int, ...]:
        """Numbers of the given frames."""
        ...

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the finished windows."""
        ...

    @property
    def notes(self) -> Mapping[str, Any]:
        """JSON that the executor keeps with `done`."""
        ...

    def frames(self) -> Frames:
        """All frames, mapped, not read into memory."""
        ...

    def read(self, indices: Iterable[int]) -> Frames:
        """Some frames, ``[len(indices), *site]``."""
        ...

    def write(self, window: int, indices: Sequence[int], frames: Frames) -> Any:
        """Puts a window's frames on the disk, before it returns."""
        ...

    def mark_done(self, written: Iterable[Any], *, notes: Mapping[str, Any] | None = None) -> None:
        """Marks windows as done, all at once and durably."""
        ...

    def reopen(
        self, windows: Iterable[int] = (), *, frames: Iterable[int] = (), notes: Mapping[str, Any] | None = None
    ) -> None:
        """Takes marks back, durably, before any of `frames` is overwritten."""
        ...

    def bind(self, run: Mapping[str, Any]) -> None:
        """Ties the store to one run, and refuses another."""
        ...

    def verify(self) -> None:
        """Refuses frames that have changed since they were written."""
        ...

    def refresh(self) -> None:
        """Sees the marks that another process made."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Within, no other job can write."""
        ...


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


def execute(
    model: FrameConditional,
    plan: Plan | AdaptivePlan,
    store: FrameStorage,
    *,
    seed: int,
    batch_size: int = 1,
    progress: bool = False,
) -> Execution:
    """Draws every window of a plan that is not done yet.

    Under torchrun every process makes this same call, on a store in the same folder, and they share each wave.

    Args:
        model: draws the windows, from frames as they are stored, on the CPU, to the same.
        plan: which frames come next, given which; a ``samplers.frames`` plan.
        store: holds the given frames and takes the drawn ones; it refuses another plan or seed than its first.
        seed: of the windows' streams.
        batch_size: windows evaluated at once, of one wave. Processes share batches: for all to have work, a wave
            needs as many batches as there are processes.
        progress: show a progress bar on stderr.

    Raises:
        PlanError: a plan that could not be interrupted and resumed.
        CheckpointError: the store is damaged, in use, out of space, or was made for another request.
        KeyboardInterrupt: on Ctrl-C, saying how far the work is; the same call goes on from there.
    """
    with _started(_Run(model, plan, store, seed, batch_size)) as run:
        return run.finish(progress)


def resample(
    model: FrameConditional,
    plan: Plan | AdaptivePlan,
    store: FrameStorage,
    *,
    window: int,
    seed: int,
    draw: int = 1,
    redo_dependents: bool = False,
    batch_size: int = 1,
    progress: bool = False,
) -> Execution:
    """Draws one window of a finished video again, with other random numbers.

    Arguments as for `execute`, and:

    Args:
        window: its number.
        draw: names the random numbers: 0 are those of the first time, every other number gives other frames. Repeating
            a call changes nothing, and finishes what a killed one left.
        redo_dependents: also draw again whatever hangs on the window, with the random numbers it had. The video is
            then what `execute` would have made, had the window been this draw from the start. Without, the later
            windows that read its frames (`Plan.dependents`) stay as they are: they were drawn given
            other frames, and are listed as `stale`.
    """
    with _started(_Run(model, plan, store, seed, batch_size)) as run:
        window, draw = whole_number("window", window, 0), whole_number("draw", draw, 0)
        if window >= run.num_windows:
            raise FlexgenError("window", f"is {window}", f"The plan's windows are 0 to {run.num_windows - 1}.")
        chosen = run.chosen_plan()
        draws, stale = dict(run.notes.get("draws", {})), set(run.notes.get("stale", ()))
        needed = chosen.needed_to_redo(window) if redo_dependents and chosen else frozenset({window})
        if draws.get(str(window), 0) != draw or (redo_dependents and stale & needed):
            missing = run.num_windows - len(run.done)
            if missing or chosen is None:
                raise FlexgenError("store", f"lacks {missing} window(s) of the video", "Finish it by execute() first.")
            if not redo_dependents and (later := chosen.rewriters(window)):
                problem = f"is {window}, whose frames window {later[0]} drew anew later"
                raise FlexgenError("window", problem, f"Resample {later[0]}, or pass redo_dependents=True.")
            draws[str(window)] = draw
            stale = stale - needed if redo_dependents else (stale | set(chosen.dependents(window))) - {window}
            run.reopen(needed, {**run.notes, "draws": draws, "stale": sorted(stale)})
        return run.finish(progress)


@contextlib.contextmanager
def _started(run: _Run) -> Iterator[_Run]:
    """The store to itself, and a word on Ctrl-C."""
    with contextlib.ExitStack() as stack, torch.no_grad():
        processes = Processes()
        try:
            run.start(processes, stack)
            yield run
        except KeyboardInterrupt:
            problem = f"stopped with {len(run.done)} of {run.num_windows} windows done"
            raise KeyboardInterrupt(f"{problem}; the same call goes on from there") from None


class _Run:
    """One call, in one of the processes that share it; `start` comes first, then `finish`."""

    def __init__(
        self,
        model: FrameConditional,
        plan: Plan | AdaptivePlan,
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
        if not isinstance(plan, Plan | AdaptivePlan):
            raise PlanError("plan", f"is a {type(plan).__name__}", "Pass a plan of samplers.frames.")
        if store.shape[0] != plan.num_frames or set(store.observed) != set(plan.observed):
            problem = f"is for {store.shape[0]} frames, {len(store.observed)} given"
            raise FlexgenError("store", problem, f"The plan has {plan.num_frames}, {len(plan.observed)} given: agree.")
        self.model, self.plan, self.store = model, plan, store
        self.seed, self.batch_size = whole_number("seed", seed, 0), whole_number("batch_size", batch_size, 1)
        self.windows: list[Window] = list(plan.windows) if isinstance(plan, Plan) else []
        # What the first process found in the store, and all of them have agreed on since.
        self.done: set[int] = set()
        self.notes: dict[str, Any] = {}

    def start(self, processes: Processes, stack: contextlib.ExitStack) -> None:
        """Takes the store for this job, checks it, and sees what is done."""
        self.processes = processes

        def take() -> tuple[set[int], dict[str, Any]]:
            stack.enter_context(self.store.exclusive())
            self.store.refresh()
            plan = json.dumps(self.plan.to_dict(), sort_keys=True)
            digest = hashlib.blake2b(plan.encode(), digest_size=16).hexdigest()
            self.store.bind({"plan": digest, "seed": self.seed, "streams": rng.GENERATOR})
            self.store.verify()
            return set(self.store.done), dict(self.store.notes)

        self.done, self.notes = processes.first(take)
        if not isinstance(self.plan, Plan):
            self.windows = [Window(**window) for window in self.notes.get("windows", ())]

    @property
    def num_windows(self) -> int:
        return len(self.plan.windows) if isinstance(self.plan, Plan) else self.plan.num_evaluations

    def chosen_plan(self) -> Plan | None:
        """The plan; an adaptive one as its windows were chosen, or None while some are yet to be."""
        if isinstance(self.plan, Plan):
            return self.plan
        return self.plan.chosen(self.windows) if len(self.windows) == self.num_windows else None

    def reopen(self, numbers: frozenset[int], notes: dict[str, Any]) -> None:
        """Has windows drawn again."""
        frames = [frame for number in numbers for frame in self.windows[number].target]
        self.processes.first(partial(self.store.reopen, numbers, frames=frames, notes=notes))
        self.done -= numbers
        self.notes = notes

    def finish(self, progress: bool) -> Execution:
        """Draws all that is not done."""
        num_pending, num_drawn = self.num_windows - len(self.done), 0
        with progress_bar(num_pending if progress and self.processes.is_first else None, "windows") as advance:
            for wave in self._waves():
                for numbers in self._draw_wave(wave):
                    num_drawn += len(numbers)
                    for _ in numbers:
                        advance()
        self.processes.each(self.store.refresh)  # the other processes have not seen the marks
        return Execution(self.num_windows, num_drawn, tuple(self.notes.get("stale", ())))

    def _waves(self) -> Iterator[Sequence[int]]:
        if isinstance(self.plan, Plan):
            yield from self.plan.waves()
            return
        for number in range(self.plan.num_evaluations):
            if number == len(self.windows):
                self._choose(self.plan, number)
            yield (number,)

    def _choose(self, plan: AdaptivePlan, number: int) -> None:
        """An adaptive plan's next window; it sees all frames there are, and none of the window itself."""

        def choose() -> dict[str, tuple[int, ...]]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the map cannot be written to, and nobody does
                frames = torch.from_numpy(self.store.frames())
            (window,) = plan.next_window(frames[None], number)
            return {"target": window.target, "observed": window.observed}

        chosen = self.processes.first(choose)
        self.windows.append(Window(chosen["target"], chosen["observed"]))
        self.notes = {**self.notes, "windows": [*self.notes.get("windows", ()), chosen]}

    def _draw_wave(self, wave: Sequence[int]) -> Iterator[Sequence[int]]:
        """Draws the windows of a wave that are not done; yields their numbers as they become so."""
        cut = (wave[start : start + self.batch_size] for start in range(0, len(wave), self.batch_size))
        batches = [batch for batch in ([n for n in whole if n not in self.done] for whole in cut) if batch]
        if not batches:
            return
        frames = [frame for batch in batches for number in batch for frame in self.windows[number].target]
        # Also the moment at which all processes have finished the wave before.
        self.processes.first(partial(self.store.reopen, frames=frames))
        for start in range(0, len(batches), self.processes.size):
            shared = batches[start : start + self.processes.size]
            mine = shared[self.processes.rank] if self.processes.rank < len(shared) else []
            written = itertools.chain.from_iterable(self.processes.each(partial(self._draw, mine)))
            self.processes.first(partial(self.store.mark_done, written, notes=self.notes))
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
        # A window's stream is named by its number; of one that is drawn again, by the number and the draw.
        seed, names = rng.key(self.seed, "windows"), torch.tensor(numbers)
        draws = torch.tensor([self.notes.get("draws", {}).get(str(number), 0) for number in numbers])
        names = torch.where(draws > 0, Streams(seed, names).fold_in(draws).rows, names)
        answer = self.model.sample_window(
            torch.from_numpy(held),
            Query(target, observed),
            frame_index=frame_index,
            generator=Streams(seed, names),
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
