"""Plans as values: checks, waves, costs, queries, JSON, text."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from flexgen.errors import PlanError
from flexgen.query import Query
from samplers import frames, run
from samplers.frames import Plan, Window
from samplers.schedule import Schedule

PLAN = Plan(8, (0, 1), 4, (Window((2, 7), (0, 1)), Window((3, 4), (2, 7)), Window((5, 6), (2, 7))), "small")


@pytest.mark.parametrize(
    ("windows", "text"),
    [
        ([Window((2, 3), (1, 5))], r"windows: window 0 observes frame 5, which is neither given nor drawn before\."),
        ([Window((2,), (1, 3)), Window((3,), (2,))], r"window 0 observes frame 3, which is neither given nor drawn"),
        ([Window((1, 2), (0,))], r"windows: window 0 draws frame 1, which is given\. Observe it, or leave it out\."),
        ([Window((2, 3), (1,)), Window((3, 4), (2,))], r"window 1 draws frame 3 again\. Mark .* refines=True\."),
        (
            [Window((2, 3), (1,)), Window((4,), (2,), refines=True)],
            r"window 1 refines frame 4, which was never drawn\.",
        ),
        ([Window((2, 3), (1,)), Window((1,), (2,), refines=True)], r"window 1 draws frame 1, which is given\."),
        ([Window((2, 3, 4), (0, 1))], r"window 0 holds 5 frames\. The network sees 4 at once \(window\)\."),
        ([Window((2, 6), (1,))], r"window 0 holds frame 6\. Frames are numbered 0 to 5\."),
        ([Window((2, 3), (1,))], r"windows: leave out 2 frame\(s\), first 4\. Cover every frame that is not given\."),
        ([], r"windows: leave out 4 frame\(s\), first 2\."),
    ],
)
def test_a_wrong_plan_is_refused(windows: list[Window], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        Plan(6, (0, 1), 4, tuple(windows))


@pytest.mark.parametrize(
    ("target", "observed", "text"),
    [
        ((), (1,), r"target: is empty\. A window draws at least one frame\."),
        ((1, 2), (2,), r"target: shares frame 2 with observed\. Remove it from one of the two\."),
        ((1, 1), (2,), r"target: holds frame 1 twice\."),
        ((0.5,), (), r"target: holds 0\.5\. Pass frame indices"),
    ],
)
def test_a_wrong_window_is_refused(target: tuple[int, ...], observed: tuple[int, ...], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        Window(target, observed)


def test_waves_and_dependencies() -> None:
    assert PLAN.dependencies == ((), (0,), (0,))
    assert PLAN.waves() == ((0,), (1, 2))
    assert PLAN.critical_path == 2
    assert PLAN.num_evaluations == 3


def test_refinements_wait_for_readers_and_writers() -> None:
    windows = (*PLAN.windows, Window((4, 5), (3, 6), refines=True), Window((2,), (0, 1), refines=True))
    plan = Plan(8, (0, 1), 4, windows)
    assert plan.dependencies[3:] == ((1, 2), (0, 1, 2))  # the last one redraws what windows 1 and 2 have read
    assert plan.waves() == ((0,), (1, 2), (3, 4))
    again = Plan(8, (0, 1), 4, (*windows, Window((4,), (2, 5), refines=True)))
    assert again.dependencies[-1] == (3, 4)
    assert again.critical_path == 4


def test_cost() -> None:
    assert PLAN.frame_evaluations(10) == 3 * 10 * 4
    assert PLAN.frame_evaluations(10, cached=True) == 3 * (10 * 2 + 2)
    assert PLAN.evaluations_per_frame(10) == 20
    assert PLAN.num_generated == 6
    complete = Plan(2, (0, 1), 4, ())
    assert complete.evaluations_per_frame(10) == complete.critical_path == complete.reach == 0


@pytest.mark.parametrize(
    ("target", "observed", "reach"),
    [
        (range(5, 9), range(5), 1),
        ((10, 20, 30), (0,), 10),
        ((10, 20, 30), (0, 31), 10),  # 10 hangs on 0, or on 31 by 20 and 30
        ((25,), (0, 31), 6),
        ((5, 6), (0, 40), 5),
        ((0, 7, 9), (), 7),
        ((3,), (), 0),
        ((0, 50), (10, 20), 30),
    ],
)
def test_reach(target: tuple[int, ...], observed: tuple[int, ...], reach: int) -> None:
    assert Window(tuple(target), tuple(observed)).reach == reach


def test_seams() -> None:
    assert PLAN.seams == (2, 4, 5)
    assert frames.autoregressive(30, 4, 8).seams == ()
    tree = frames.tree(40, 4, 8)
    (keyframes, *_) = tree.windows
    assert set(tree.seams) >= set(keyframes.target) - {39}


def test_queries() -> None:
    window = Window((4, 2), (7, 0))
    assert window.target == (2, 4)
    assert window.frame_index == (0, 2, 4, 7)
    assert window.query(9) == Query.of([2, 4], [0, 7], num_sites=9)
    assert window.query() == Query.of([1, 2], [0, 3], num_sites=4)
    assert window.query([7, 4, 3, 2, 0]) == Query.of([1, 3], [0, 4], num_sites=5)
    for sites in (7, [0, 2, 4]):
        with pytest.raises(PlanError, match=r"frame_index: lacks frame 7 of the window\."):
            window.query(sites)
    assert window.shifted(3) == Window((5, 7), (3, 10))


def test_a_plan_is_a_value() -> None:
    plan = frames.refine(frames.tree(40, [0, 9, 39], 8))
    assert Plan.from_json(plan.to_json()) == plan == copy.deepcopy(plan) == pickle.loads(pickle.dumps(plan))
    assert hash(plan) == hash(Plan.from_dict(plan.to_dict()))
    assert Plan(8, 2, 4, PLAN.windows).observed == (0, 1)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"text: is no JSON .*\. Pass what plan\.to_json\(\) returned\."):
        Plan.from_json("{")
    with pytest.raises(PlanError, match=r"data: lacks 'windows'\. Pass what plan\.to_dict\(\) returned\."):
        Plan.from_dict({"name": "x"})
    with pytest.raises(PlanError, match=r"data: is malformed .*'aim'"):
        Plan.from_dict({"windows": [{"aim": [3]}]})


def test_text() -> None:
    assert repr(PLAN) == "Plan(small: 8 frames, 2 given, window 4; 3 windows in 2 waves)"
    assert str(PLAN).splitlines() == [
        "small: 8 frames, 2 given (0-1), window 4",
        "3 windows in 2 waves (critical path 2); reach 5; 2.00 frame evaluations a step and generated frame, "
        "1.00 cached",
        "wave  window  target | observed",
        "   0       0  2, 7 | 0-1",
        "   1       1  3-4 | 2, 7",
        "   1       2  5-6 | 2, 7",
    ]
    long = str(frames.hierarchical(2000, 36)).splitlines()
    assert len(long) == 44
    assert long[23] == "      ... 157 windows ..."


def test_schedule() -> None:
    assert isinstance(PLAN, Schedule)
    assert [str(query) for query in PLAN.walk(torch.zeros(3, 8, 1), generator=torch.Generator())] == [
        str(window.query(8)) for window in PLAN.windows
    ]
    with pytest.raises(PlanError, match=r"x: has shape \(2, 9\), but the plan has 8 frames\. Pass \[B, N, \*site\]\."):
        run(object(), torch.zeros(2, 9), PLAN, generator=0)  # type: ignore[arg-type]
