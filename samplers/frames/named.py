"""Plans by name, for whoever has K, N and the given frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flexgen.errors import PlanError
from samplers.frames.adaptive import AdaptivePlan, adaptive_autoregressive, adaptive_hierarchical
from samplers.frames.distances import Distance, DistanceName
from samplers.frames.fdm import autoregressive, hierarchical, long_range
from samplers.frames.plan import Plan
from samplers.frames.tree import tree
from samplers.plan_names import plan_name

__all__ = ["by_name"]

_FIXED: dict[str, Callable[[int, int | Iterable[int], int], Plan]] = {
    "tree": tree,
    "autoregressive": autoregressive,
    "long-range": long_range,
}


def by_name(
    name: str,
    num_frames: int,
    observed: int | Iterable[int],
    window: int = 20,
    *,
    distance: Distance | DistanceName | None = None,
) -> Plan | AdaptivePlan:
    """The plan of a name.

    Args:
        name: ``"tree"``, ``"autoregressive"``, ``"long-range"``, ``"hierarchy-n"``, ``"adaptive-autoregressive"`` or
            ``"adaptive-hierarchy-n"`` with n levels, 2 or more. Underscores do as well, and ``"hierarchy"`` has 2.
        num_frames, observed, window: as for `tree`.
        distance: of adaptive plans; default ``"pixels"``.

    Raises:
        PlanError: no plan has this name, or it has no use for a distance.
    """
    name = plan_name(name)
    adaptive, levels = name.startswith("adaptive-"), name.rpartition("-")[2]
    if not adaptive and distance is not None:
        raise PlanError(
            "distance", f"is given to the plan {name!r}", "Leave it out: only adaptive plans compare frames."
        )
    how: Distance | DistanceName = "pixels" if distance is None else distance
    if name in _FIXED:
        return _FIXED[name](num_frames, observed, window)
    if name == "adaptive-autoregressive":
        return adaptive_autoregressive(num_frames, observed, window, distance=how)
    if adaptive:
        return adaptive_hierarchical(num_frames, observed, window, int(levels), distance=how)
    return hierarchical(num_frames, observed, window, int(levels))
