"""Adaptive plans: FDM's choices on a video whose frames are numbers, the guarantee of the selection, costs."""

from __future__ import annotations

import importlib.util
import itertools
import json

import pytest
import torch
from torch import Tensor

from flexgen.errors import DataError, PlanError
from flexgen.exact import Gaussian
from samplers import frames, run
from samplers.frames import AdaptivePlan, Plan
from samplers.frames.adaptive import farthest_points
from samplers.schedule import Schedule


def distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).flatten(1).sum(1)


def video(num_frames: int) -> Tensor:
    """Frame t shows the number (37 t²) mod 101, and in the second row (29 t²) mod 103."""
    t = torch.arange(num_frames)
    return torch.stack([37 * t**2 % 101, 29 * t**2 % 103]).double()[..., None]


# As the authors' code chooses them for the first row of that video: N = 20, 6 given, K = 8.
AUTOREGRESSIVE = """
6 7 8 9 | 0 2 4 5
10 11 12 13 | 0 1 7 9
14 15 16 17 | 0 8 9 13
18 19 | 0 10 15 17
"""
HIERARCHY_2 = """
6 10 15 19 | 0 2 4 5
7 8 9 11 | 5 6 10 15
12 13 14 16 | 10 11 15 19
17 18 | 0 15 16 19
"""


def adaptive(name: str, num_frames: int = 20, observed: int = 6, window: int = 8) -> AdaptivePlan:
    if name == "autoregressive":
        return frames.adaptive_autoregressive(num_frames, observed, window, distance=distance)
    return frames.adaptive_hierarchical(num_frames, observed, window, distance=distance)


@pytest.mark.parametrize(("name", "table"), [("autoregressive", AUTOREGRESSIVE), ("hierarchy-2", HIERARCHY_2)])
def test_choices_are_those_of_fdm(name: str, table: str) -> None:
    plan = adaptive(name)
    windows = [plan.next_window(video(20), number)[0] for number in range(plan.num_evaluations)]
    found = [" ".join(map(str, w.target)) + " | " + " ".join(map(str, w.observed)) for w in windows]
    assert found == table.strip().splitlines()


def test_rows_choose_for_themselves() -> None:
    plan, x = adaptive("autoregressive", 60, 30), video(60)
    for number in range(plan.num_evaluations):
        together = plan.next_window(x, number)
        assert together == (*plan.next_window(x[:1], number), *plan.next_window(x[1:], number))
    assert any(len(set(plan.next_window(x, number))) == 2 for number in range(plan.num_evaluations))


def test_selection_is_within_twice_the_best() -> None:
    """Gonzalez (1985): the largest distance to the nearest chosen point is at most twice what any choice can reach."""
    points = torch.rand(5, 9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def metric(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).norm(dim=1)

    def radius(row: Tensor, chosen: tuple[int, ...]) -> float:
        return float(torch.cdist(row, row[list(chosen)]).amin(1).max())

    for row, chosen in zip(points, farthest_points(points, 3, [4], metric).tolist(), strict=True):
        assert chosen[0] == 4
        best = min(radius(row, choice) for choice in itertools.combinations(range(9), 3))
        assert radius(row, tuple(chosen)) <= 2 * best


def test_equal_frames_are_chosen_once() -> None:
    still = torch.zeros(1, 6, 3)
    assert farthest_points(still, 6, [2], distance).sort(1).values.tolist() == [list(range(6))]


@pytest.mark.parametrize("name", ["autoregressive", "hierarchy-2"])
def test_cost_is_known_before_and_kept(name: str) -> None:
    plan = adaptive(name, 40, 5)
    x = torch.zeros(2, 40, dtype=torch.float64)
    x[:, :5] = 1.0
    joint = Gaussian(torch.zeros(40), 0.9 ** (torch.arange(40)[:, None] - torch.arange(40)).abs().double())
    asked = []

    class Recording:
        space = joint.space

        def sample(self, x: Tensor, query: object, *, generator: torch.Generator) -> Tensor:
            asked.append(query)
            return joint.sample(x, query, generator=generator)  # type: ignore[arg-type]

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs()

    plan = AdaptivePlan(40, plan.observed, 8, plan.choices, apart, plan.name)
    assert isinstance(plan, Schedule)
    run(Recording(), x, plan, generator=0)  # type: ignore[arg-type]
    assert len(asked) == plan.num_evaluations == plan.critical_path
    observed, target = (sum(int(getattr(q, s).sum()) for q in asked) // 2 for s in ("observed", "target"))
    assert plan.frame_evaluations(7) == 7 * (target + observed)
    assert plan.frame_evaluations(7, cached=True) == 7 * target + observed
    assert plan.evaluations_per_frame(7) == plan.frame_evaluations(7) / 35


def test_the_default_distance_is_of_pixels_and_takes_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    bytes_ = torch.randint(0, 256, (40, 3, 4, 3), dtype=torch.uint8, generator=generator)
    apart = frames.pixel_distance(bytes_, bytes_.flip(0))
    floats = bytes_.double().flatten(1)
    torch.testing.assert_close(apart.double(), ((floats - floats.flip(0)) ** 2).mean(1).sqrt())
    plain = frames.adaptive_autoregressive(40, 5, 8)
    assert plain.distance is frames.pixel_distance
    assert plain.next_window(bytes_[None], 3) == plain.next_window(bytes_.float()[None], 3)


def test_distances_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    import flexgen.video_pipeline  # noqa: F401 - names "lpips"
    from flexgen.metrics.video import lpips

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"Install flexgen-samplers\[lpips\]"):
        frames.adaptive_hierarchical(40, 5, 8, distance="lpips")
    monkeypatch.setattr(lpips.ShiftTolerantAlexNet, "pretrained", lpips.ShiftTolerantAlexNet)
    assert frames.adaptive_hierarchical(40, 5, 8, distance="lpips").to_dict()["distance"] == "LPIPS.distance"
    for wrong in ("ssim", 3):
        with pytest.raises(PlanError, match=r"distance: is .*Choose 'pixels' or 'lpips'"):
            frames.adaptive_hierarchical(40, 5, 8, distance=wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("stlpips_pytorch") is None, reason="needs the weights of LPIPS")
def test_lpips_keeps_the_frames_that_look_otherwise() -> None:
    """A video that shows one of three scenes: with room for three frames, one of each scene is observed."""
    from flexgen.metrics.video import LPIPS

    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(40, 216, (3, 4, 4, 3), dtype=torch.uint8, generator=generator)
    scenes = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    scene = torch.tensor([0] * 4 + [1] * 6 + [2] * 5 + [0] * 5)
    video = scenes[scene] + torch.randint(0, 8, (20, 32, 32, 3), dtype=torch.uint8, generator=generator)
    plan = frames.adaptive_autoregressive(20, 18, 5, num_targets=2, distance=LPIPS().distance)
    (window,) = plan.next_window(video[None], 0)
    assert window.target == (18, 19)
    assert sorted(scene[list(window.observed)].tolist()) == [0, 1, 2]


def test_a_distance_that_is_no_number_is_refused() -> None:
    plan = frames.adaptive_autoregressive(40, 15, 8, distance=lambda a, _: a.new_full((len(a),), torch.nan))
    with pytest.raises(PlanError, match="distance: returned nan"):
        plan.next_window(torch.zeros(1, 40, 2), 0)


def test_value() -> None:
    plan = adaptive("hierarchy-2")
    assert AdaptivePlan.from_dict(json.loads(json.dumps(plan.to_dict())), distance) == plan
    assert repr(plan) == "AdaptivePlan(adaptive-hierarchy-2: 20 frames, 6 given, window 8; 4 windows in turn)"
    windows = [plan.next_window(video(20), number)[0] for number in range(plan.num_evaluations)]
    assert isinstance(plan.chosen(windows), Plan)


def test_bad_arguments() -> None:
    plan = adaptive("autoregressive")
    with pytest.raises(PlanError, match=r"frames: has shape \(2, 9, 1\)\. Pass \[B, 20, \*site\]\."):
        plan.next_window(video(9), 0)
    wrong = frames.adaptive_autoregressive(20, 6, 8, distance=lambda a, b: (a - b).abs().sum())
    with pytest.raises(PlanError, match=r"distance: returned shape \(\)\. Return one number for each pair\."):
        wrong.next_window(video(20), 1)
