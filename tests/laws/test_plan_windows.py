"""The law of plans' windows: draws are windows of the plans, shifted, with their frequencies."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats

from flexgen.errors import FlexgenError
from samplers import frames, laws
from samplers.frames import Plan, Window

FALSE_ALARM = 1e-6
Sets = tuple[tuple[int, ...], tuple[int, ...]]


def draw(law: laws.Law, present: torch.Tensor, seed: int = 0) -> list[Sets]:
    query = law.draw(present, generator=torch.Generator().manual_seed(seed)).query
    return [
        (tuple(target.nonzero().flatten().tolist()), tuple(observed.nonzero().flatten().tolist()))
        for target, observed in zip(query.target, query.observed, strict=True)
    ]


def at_zero(sets: Sets) -> Sets:
    first = min(frame for side in sets for frame in side)
    return tuple(tuple(frame - first for frame in side) for side in sets)  # type: ignore[return-value]


def windows_of(*plans: Plan) -> Counter[Sets]:
    return Counter(at_zero((w.target, w.observed)) for plan in plans for w in plan.windows)


def test_draws_are_windows_of_the_plans() -> None:
    plans = (frames.hierarchical(60, 8, 10, 3), frames.tree(60, 8, 10), frames.refine(frames.tree(60, 8, 10)))
    found = draw(laws.PlanWindows(plans), torch.ones(4000, 80, dtype=torch.bool))
    assert {at_zero(sets) for sets in found} == set(windows_of(*plans))


@pytest.mark.statistical
def test_windows_and_places_have_their_frequencies() -> None:
    """Exact law by enumeration: 3/4 of the first plan's windows that fit, 1/4 of the second's, each place alike."""
    plans = frames.autoregressive(30, 3, 6), frames.hierarchical(30, 3, 6, 3)
    num_frames, num_rows = 14, 20_000
    law: Counter[Sets] = Counter()
    for plan, share in zip(plans, (0.75, 0.25), strict=True):
        fitting = {sets: n for sets, n in windows_of(plan).items() if 1 + max(map(max, sets)) <= num_frames}
        for sets, count in fitting.items():
            num_places = num_frames - max(map(max, sets))
            for by in range(num_places):
                moved = tuple(tuple(frame + by for frame in side) for side in sets)
                law[moved] += share * count / sum(fitting.values()) / num_places  # type: ignore[index, assignment]

    def p_value(drawn_from: laws.Law) -> float:
        found = Counter(draw(drawn_from, torch.ones(num_rows, num_frames, dtype=torch.bool)))
        if not set(found) <= set(law):
            return 0.0
        expected = {sets: p * num_rows for sets, p in law.items()}
        assert min(expected.values()) > 5
        return float(stats.chisquare([found[sets] for sets in expected], list(expected.values())).pvalue)

    assert p_value(laws.PlanWindows(plans, [0.75, 0.25])) > FALSE_ALARM
    assert p_value(laws.PlanWindows(plans)) < FALSE_ALARM


def test_missing_frames_are_no_places() -> None:
    plan = frames.autoregressive(30, 3, 6)
    present = torch.rand(200, 30, generator=torch.Generator().manual_seed(0)) < 0.7
    for row, (target, observed) in zip(present, draw(laws.PlanWindows([plan]), present), strict=True):
        place = {frame: i for i, frame in enumerate(row.nonzero().flatten().tolist())}
        assert at_zero((tuple(map(place.get, target)), tuple(map(place.get, observed)))) in windows_of(plan)  # type: ignore[arg-type]


def test_rows_shorter_than_every_window_ask_for_nothing() -> None:
    law = laws.PlanWindows([frames.autoregressive(30, 3, 6)])
    present = torch.arange(12) < torch.tensor([[12], [4]])
    long, short = draw(law, present)
    assert at_zero(long) in windows_of(frames.autoregressive(30, 3, 6))
    assert short == ((), ())
    assert draw(laws.NonEmpty(law), present)[1] == ((0, 1, 2, 3), ())


def test_a_plan_of_which_nothing_fits_leaves_its_share_to_the_others() -> None:
    near, far = frames.autoregressive(30, 3, 6), Plan(100, (0,), 100, (Window(tuple(range(1, 100)), (0,)),))
    law = laws.PlanWindows([near, far])
    assert {at_zero(sets) for sets in draw(law, torch.ones(50, 20, dtype=torch.bool))} <= set(windows_of(near))
    with pytest.raises(
        FlexgenError,
        match=r"plans: hold no window that fits a clip of 5 frames: the shortest spans 6\. Train on longer",
    ):
        draw(law, torch.ones(2, 5, dtype=torch.bool))


def test_bad_arguments() -> None:
    with pytest.raises(FlexgenError, match=r"plans: hold no windows\. Pass at least one plan with windows to draw\."):
        laws.PlanWindows([])
    with pytest.raises(FlexgenError, match=r"plans: hold no windows"):
        laws.PlanWindows([Plan(2, (0, 1), 4, ())])
    with pytest.raises(FlexgenError, match=r"plans: hold 3\. Pass plans of samplers\.frames\."):
        laws.PlanWindows([3])  # type: ignore[list-item]
    with pytest.raises(FlexgenError, match=r"plans: hold \(\(1,\), \(\), 2\)\. Pass \(target, observed, count\)"):
        laws.PlanWindows([[((1,), (), 2)]])
    with pytest.raises(FlexgenError, match=r"plan_probabilities: has 2 entries for 1 plans"):
        laws.PlanWindows([frames.autoregressive(30, 3, 6)], [0.5, 0.5])


def test_a_curriculum_moves_from_start_to_end() -> None:
    parts = [laws.fdm(8), laws.PlanWindows([frames.tree(30, 4, 8)])]
    curriculum = laws.Curriculum(parts, [1.0, 0.0], [0.2, 0.8])
    assert curriculum.at(0) == laws.Mixture(parts, [1.0, 0.0])
    assert curriculum.at(0.5).probabilities == pytest.approx((0.6, 0.4))
    assert curriculum.at(1.0).probabilities == pytest.approx((0.2, 0.8))
    with pytest.raises(FlexgenError, match=r"progress: is 1\.5\. Pass a number between 0 and 1\."):
        curriculum.at(1.5)
    with pytest.raises(FlexgenError, match=r"end: is \(0\.5, 0\.4\), which sums to 0\.9\."):
        laws.Curriculum(parts, [1, 0], [0.5, 0.4])
