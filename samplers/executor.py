"""Runs a plan: wave after wave, the windows of a wave in batches, every frame on the disk as soon as it is drawn.

Guarantees, each as far as a row of the model's answer depends on that row alone:

* Every window has a stream of random numbers of its own, named by (seed, window, draw). The video depends neither on
  the batch size nor on how many processes share the work.
* Batches are cut from a wave in advance, whatever is done already. With one batch size, a resumed run and runs of any
  number of processes hand the model the very batches of an undisturbed run, so that even its rounding is the same.
* A process killed at any moment loses the batch it was at; the same call goes on and ends with the same frames. See
  ``samplers.window_order`` for why a half-written window does no harm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from flexgen.checks import whole_number
from flexgen.errors import FlexgenError
from samplers.frame_conditional import FrameConditional
from samplers.frame_storage import FrameStorage
from samplers.team import Team
from samplers.window_order import AdaptivePlan, WindowPlan, dependents, needed_to_redo, rewriters
from samplers.window_run import Execution, WindowRun

__all__ = ["Execution", "execute", "resample"]


def execute(
    model: FrameConditional,
    plan: WindowPlan | AdaptivePlan,
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
    with _started(WindowRun(model, plan, store, seed, batch_size)) as run:
        return run.finish(progress)


def resample(
    model: FrameConditional,
    plan: WindowPlan | AdaptivePlan,
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
            windows that read its frames (``samplers.window_order.dependents``) stay as they are: they were drawn given
            other frames, and are listed as `stale`.
    """
    with _started(WindowRun(model, plan, store, seed, batch_size)) as run:
        drawn_by = run.drawn_plan()
        window, draw = whole_number("window", window, 0), whole_number("draw", draw, 0)
        if window >= run.num_windows:
            raise FlexgenError("window", f"is {window}", f"The plan's windows are 0 to {run.num_windows - 1}.")
        draws, stale = dict(run.notes.get("draws", {})), set(run.notes.get("stale", ()))
        needed = needed_to_redo(drawn_by, window) if redo_dependents else frozenset({window})
        if draws.get(str(window), 0) != draw or (redo_dependents and stale & needed):
            if missing := run.num_windows - len(run.done):
                raise FlexgenError("store", f"lacks {missing} window(s) of the video", "Finish it by execute() first.")
            if not redo_dependents and (later := rewriters(drawn_by, window)):
                problem = f"is {window}, whose frames window {later[0]} drew anew later"
                raise FlexgenError("window", problem, f"Resample {later[0]}, or pass redo_dependents=True.")
            draws[str(window)] = draw
            stale = stale - needed if redo_dependents else (stale | set(dependents(drawn_by, window))) - {window}
            run.reopen(needed, {**run.notes, "draws": draws, "stale": sorted(stale)})
        return run.finish(progress)


@contextlib.contextmanager
def _started(run: WindowRun) -> Iterator[WindowRun]:
    """The store to itself, and a word on Ctrl-C."""
    with contextlib.ExitStack() as stack, torch.no_grad():
        team = Team()
        stack.callback(team.close)
        try:
            run.start(team, stack)
            yield run
        except KeyboardInterrupt:
            problem = f"stopped with {len(run.done)} of {run.num_windows} windows done"
            raise KeyboardInterrupt(f"{problem}; the same call goes on from there") from None
