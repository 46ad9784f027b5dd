"""Refinement: windows that draw the frames around a plan's seams anew, given both sides.

A sweep of block Gibbs updates. Where a window observes enough on both sides to separate its targets from all other
frames (Markov processes of an order up to the frames on a side), the joint distribution stays what it was, and every
window brings a video that was drawn from another distribution closer to it, in Kullback-Leibler divergence. Where it
does not, a window ignores what it cannot see. Around the seams of a tree one sweep does most of the work, for its
windows hardly see each other: sweep over all frames (`at`) to go on.

FDM has no such step; its authors report flicker at keyframes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flexgen.checks import instance, whole_number
from flexgen.errors import PlanError
from samplers.frames.fdm import nearby
from samplers.frames.plan import MOST_FRAMES, Plan, Window, as_frames

__all__ = ["refine"]


def refine(plan: Plan, sweeps: int = 1, *, at: Iterable[int] | None = None, num_targets: int | None = None) -> Plan:
    """The plan, and behind it sweeps of windows that draw frames around its seams anew.

    Args:
        plan: what is drawn first; it may hold refinements already.
        sweeps: how often each place is drawn anew.
        at: the frames around which to redraw; default: ``plan.seams``. ``range(0, N, S)`` redraws the whole video.
        num_targets: S, frames that a window draws, centred at the seam; default K // 2. The other K - S are the
            nearest on both sides. Given frames are never drawn: they are observed.

    A sweep's windows that touch no target of each other come one after the other in the plan and run in one wave; two
    or three waves make a sweep, however long the video.
    """
    sweeps = whole_number("sweeps", sweeps, 0, PlanError)
    window = instance("plan", plan, Plan, "Pass a plan of samplers.frames.", PlanError).window
    if sweeps * len(plan.windows) > MOST_FRAMES:
        raise PlanError("sweeps", f"is {sweeps} of {len(plan.windows)} windows", "Pass fewer.")
    num_targets = max(1, window // 2) if num_targets is None else whole_number("num_targets", num_targets, 1, PlanError)
    if num_targets > window - 2:
        raise PlanError(
            "num_targets", f"is {num_targets} of a window of {window}", "Leave room to observe a frame on either side."
        )
    centres = plan.seams if at is None else as_frames("at", at)
    if centres and centres[-1] >= plan.num_frames:
        raise PlanError("at", f"holds frame {centres[-1]}", f"Frames are numbered 0 to {plan.num_frames - 1}.")
    sweep = _one_after_another(_around(centres, plan, num_targets))
    return replace(plan, windows=plan.windows + sweeps * sweep, name=f"{plan.name} + {sweeps} sweep(s)")


def _around(centres: Iterable[int], plan: Plan, num_targets: int) -> list[Window]:
    """A window around each centre that no window before has drawn well inside its targets."""
    given, frames = set(plan.observed), range(plan.num_frames)
    windows: list[Window] = []
    reached = -1  # centres up to here lie in the inner half of a window's targets
    for centre in centres:
        if centre <= reached:
            continue
        start = min(max(0, centre - num_targets // 2), max(0, plan.num_frames - num_targets))
        stop = min(start + num_targets, plan.num_frames)
        reached = stop - 1 if stop == plan.num_frames else max(centre, stop - 1 - num_targets // 4)
        if target := [frame for frame in range(start, stop) if frame not in given]:
            there = [frame for frame in frames[max(0, start - plan.window) : stop + plan.window] if frame not in target]
            windows.append(Window(tuple(target), nearby(there, target, plan.window - len(target)), refines=True))
    return windows


def _one_after_another(windows: list[Window]) -> tuple[Window, ...]:
    """The windows in an order such that those of one colour, which touch no target of each other, are neighbours."""
    colours: list[list[Window]] = []
    for window in windows:  # from left to right, so that the last of a colour is the only one that may clash
        target, frames = set(window.target), set(window.frame_index)
        for others in colours:
            last = others[-1]
            if target.isdisjoint(last.frame_index) and frames.isdisjoint(last.target):
                others.append(window)
                break
        else:
            colours.append([window])
    return tuple(window for others in colours for window in others)
