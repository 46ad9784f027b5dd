"""The plan of a generated video, beside its frames: as it was asked for, and as it was walked."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from flexgen.errors import CheckpointError
from flexgen.video.storage import FrameStore
from flexgen.video.video_folder import writing
from samplers.frames import AdaptivePlan, Plan, Window

__all__ = ["read_plan", "walked_plan", "write_plan"]


def walked_plan(plan: Plan | AdaptivePlan, store: FrameStore) -> Plan:
    """The plan; of an adaptive one, what it came to."""
    if isinstance(plan, Plan):
        return plan
    return plan.chosen([Window(**window) for window in store.notes["windows"]])


def write_plan(path: Path, plan: Plan | AdaptivePlan, store: FrameStore, *, replace: bool) -> None:
    """A plan; an adaptive one as such, and once it is walked, the windows that it chose as well."""
    if path.exists() and not replace:
        return
    if isinstance(plan, Plan):
        text = plan.to_json()
    else:
        is_walked = len(store.notes.get("windows", ())) == plan.num_evaluations
        text = json.dumps({**(walked_plan(plan, store).to_dict() if is_walked else {}), "adaptive": plan.to_dict()})
    partial = path.with_name(f".partial-{path.name}")
    with writing(path.parent):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def read_plan(path: Path) -> Plan | AdaptivePlan:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if "adaptive" not in data:
            return Plan.from_dict(data)
    except (OSError, ValueError, TypeError) as error:  # a PlanError among them
        problem = f"{str(path)!r} cannot be read ({error})"
        raise CheckpointError("output_dir", problem, "Repeat the call that made the video.") from error

    def not_asked(_frames: Tensor, _others: Tensor) -> Tensor:  # of a finished video, whose windows are chosen
        raise NotImplementedError

    not_asked.__qualname__ = data["adaptive"]["distance"]  # by which the store knows the plan again
    return AdaptivePlan.from_dict(data["adaptive"], not_asked)
