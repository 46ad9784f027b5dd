"""Plans by name."""

from __future__ import annotations

import pytest

from flexgen.errors import PlanError
from samplers import frames
from samplers.plan_names import plan_name

BUILT = {
    "tree": frames.tree(60, 5, 8),
    "autoregressive": frames.autoregressive(60, 5, 8),
    "long-range": frames.long_range(60, 5, 8),
    "hierarchy-2": frames.hierarchical(60, 5, 8),
    "hierarchy-4": frames.hierarchical(60, 5, 8, 4),
    "adaptive-autoregressive": frames.adaptive_autoregressive(60, 5, 8),
    "adaptive-hierarchy-2": frames.adaptive_hierarchical(60, 5, 8),
    "adaptive-hierarchy-3": frames.adaptive_hierarchical(60, 5, 8, 3),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_name_is_a_plan_that_has_this_name(name: str) -> None:
    plan = frames.by_name(name, 60, 5, 8)
    assert plan == BUILT[name]
    assert plan.name == name
    assert frames.by_name(name.replace("-", "_").upper(), 60, 5, 8) == plan


@pytest.mark.parametrize(
    ("told", "name"),
    [("hierarchy", "hierarchy-2"), ("hierarchical", "hierarchy-2"), ("adaptive_hierarchical", "adaptive-hierarchy-2")],
)
def test_other_spellings(told: str, name: str) -> None:
    assert plan_name(told) == name


@pytest.mark.parametrize(
    "wrong", ["treee", "hierarchy-1", "hierarchy-0", "hierarchy-x", "adaptive", "adaptive-tree", ""]
)
def test_an_unknown_name_lists_the_known_ones(wrong: str) -> None:
    with pytest.raises(
        PlanError, match=r"plan: is '.*'. Choose one of tree, autoregressive, long-range, hierarchy-n, "
    ):
        frames.by_name(wrong, 60, 5, 8)


def test_a_distance_is_for_plans_that_look() -> None:
    def distance(a, b):
        return (a - b).flatten(1).norm(dim=1)

    assert frames.by_name("adaptive-autoregressive", 60, 5, 8, distance=distance).distance is distance  # type: ignore
    with pytest.raises(PlanError, match="distance: is given to the plan 'tree'"):
        frames.by_name("tree", 60, 5, 8, distance=distance)
