"""What every plan promises, over random lengths, windows and sets of given frames. A plan checks itself when made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import frames
from samplers.frames import Plan, Window

BUILDERS: dict[str, Callable[..., Plan]] = {
    "autoregressive": frames.autoregressive,
    "long-range": frames.long_range,
    "hierarchy-2": frames.hierarchical,
    "hierarchy-3": lambda *arguments: frames.hierarchical(*arguments, levels=3),
    "hierarchy-9": lambda *arguments: frames.hierarchical(*arguments, levels=9),
    "tree": frames.tree,
    "tree, unbounded": lambda *arguments: frames.tree(*arguments, max_gap=math.inf),
    "tree, bounded": lambda *arguments: frames.tree(*arguments, max_gap=7),
    "plan_for": frames.plan_for,
    "plan_for, in turn": lambda *arguments: frames.plan_for(*arguments, parallel=False),
}


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, tuple[int, ...], int]:
    """N, given frames (the first few, or any), K."""
    num_frames = draw(st.integers(1, 120))
    if draw(st.booleans()):
        observed = range(draw(st.integers(0, num_frames)))
    else:
        observed = draw(st.sets(st.integers(0, num_frames - 1)))
    return num_frames, tuple(sorted(observed)), draw(st.integers(3, 24))


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(problem=problems())
def test_plans_cover_the_video_and_print_and_return(name: str, problem: tuple[int, tuple[int, ...], int]) -> None:
    num_frames, observed, window = problem
    plan = BUILDERS[name](num_frames, observed, window)  # raises unless it covers every frame, in order, within K
    assert sum(len(w.target) for w in plan.windows) == plan.num_generated == num_frames - len(observed)
    assert Plan.from_json(plan.to_json()) == plan
    assert str(plan).startswith(plan.name)
    cached = plan.frame_evaluations(5, cached=True)
    assert 5 * plan.num_generated <= cached <= plan.frame_evaluations(5) <= 5 * window * len(plan.windows)


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(problem=problems())
def test_waves_are_batches_and_each_as_early_as_can_be(name: str, problem: tuple[int, tuple[int, ...], int]) -> None:
    plan = BUILDERS[name](*problem)
    if plan.window >= 4:
        plan = frames.refine(plan, 2)
    waves = plan.waves()
    assert sorted(number for wave in waves for number in wave) == list(range(len(plan.windows)))
    wave_of = {number: wave for wave, numbers in enumerate(waves) for number in numbers}
    for number, before in enumerate(plan.dependencies):
        assert wave_of[number] == max((wave_of[other] + 1 for other in before), default=0)
    for wave in waves:
        drawn = [frame for number in wave for frame in plan.windows[number].target]
        assert len(drawn) == len(set(drawn))
        assert not set(drawn) & {frame for number in wave for frame in plan.windows[number].observed}
    # Drawn wave by wave, every window reads what it reads in the order of the plan.
    assert read_versions(plan, [n for wave in waves for n in wave]) == read_versions(plan, range(len(plan.windows)))


def read_versions(plan: Plan, order: range | list[int]) -> dict[int, list[int]]:
    """For each window, which windows had drawn the frames that it reads."""
    drawn_by: dict[int, int] = {}
    result = {}
    for number in order:
        window = plan.windows[number]
        result[number] = [drawn_by.get(frame, -1) for frame in window.observed]
        drawn_by.update(dict.fromkeys(window.target, number))
    return result


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problem=problems(), max_gap=st.integers(1, 60))
def test_the_tree_keeps_its_bound(problem: tuple[int, tuple[int, ...], int], max_gap: int) -> None:
    assert frames.tree(*problem, max_gap=max_gap).reach <= max_gap


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "long-range"])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(problem=problems())
def test_targets_are_separated_from_all_that_is_not_observed(
    name: str, problem: tuple[int, tuple[int, ...], int]
) -> None:
    """The nearest frames that are there on both sides of a target are in its window: exact for Markov processes."""
    plan = BUILDERS[name](*problem)
    assert unseparated(plan) == []


def unseparated(plan: Plan) -> list[tuple[int, int]]:
    """(window, frame): frames next to a target, of those that are there, that its window does not hold."""
    done, result = set(plan.observed), []
    for number, window in enumerate(plan.windows):
        done.update(window.target)
        there, held = sorted(done), set(window.frame_index)
        beside = {frame for a, b in itertools.pairwise(there) for frame in (a, b) if {a, b} & set(window.target)}
        result += [(number, frame) for frame in beside - held]
    return result


def test_a_window_that_forgets_its_neighbour_is_caught() -> None:
    right = frames.tree(40, 4, 8)
    wrong = Plan(40, right.observed, 8, tuple(Window(w.target, w.observed[:-1]) for w in right.windows))
    assert unseparated(wrong)


@pytest.mark.parametrize(
    ("num_frames", "max_gap", "num_windows", "num_waves", "reach"),
    [
        (300, None, 16, 2, 18),
        (1000, None, 59, 3, 72),
        (15000, None, 882, 5, 324),
        (15000, 240, 900, 6, 234),
        (15000, math.inf, 883, 4, 972),
    ],
)
def test_the_tree_is_flat(num_frames: int, max_gap: float | None, num_windows: int, num_waves: int, reach: int) -> None:
    plan = frames.tree(num_frames, 36, 20, max_gap=max_gap)
    assert (len(plan.windows), plan.critical_path, plan.reach) == (num_windows, num_waves, reach)
    assert all(len(window.observed) >= 3 for window in plan.windows)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problem=problems())
def test_refinement_draws_around_seams_given_both_sides(problem: tuple[int, tuple[int, ...], int]) -> None:
    num_frames, observed, window = problem
    plan = frames.tree(num_frames, observed, max(window, 6))
    refined = frames.refine(plan)
    assert refined.windows[: len(plan.windows)] == plan.windows
    redrawn = refined.windows[len(plan.windows) :]
    assert all(w.refines and len(w) <= plan.window for w in redrawn)
    around = {frame for w in redrawn for frame in w.frame_index}
    assert all({seam - 1, seam, seam + 1} <= around for seam in plan.seams)
    assert frames.refine(plan, 0).windows == plan.windows


def test_a_plan_whose_wave_reads_itself_is_caught() -> None:
    plan = Plan(6, (0,), 4, (Window((1, 2), (0,)), Window((3, 4, 5), (2,))))
    assert read_versions(plan, [1, 0]) != read_versions(plan, [0, 1])
