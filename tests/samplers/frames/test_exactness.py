"""The law of a video that a plan draws, in closed form: linear maps of Gaussian windows, composed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen.exact import Gaussian
from samplers import frames, run
from samplers.frames import Plan, Window

N = 34


def autoregression(*coefficients: float, num_frames: int = N) -> Gaussian:
    """x_t = Σ_k a_k x_{t-k} + noise of unit variance, from x_t = 0 before the first: Markov of that order."""
    whiten = torch.eye(num_frames, dtype=torch.float64)
    for lag, coefficient in enumerate(coefficients, start=1):
        whiten -= coefficient * torch.diag(torch.ones(num_frames - lag, dtype=torch.float64), -lag)
    return Gaussian.from_precision(torch.zeros(num_frames, dtype=torch.float64), whiten.T @ whiten)


def drawn_covariance(joint: Gaussian, plan: Plan) -> Tensor:
    """Covariance of the video: each frame as a linear map of independent normal numbers, window after window."""
    sigma, given = joint.covariance, list(plan.observed)
    num_numbers = len(given) + sum(len(window.target) for window in plan.windows)
    frame_of = torch.zeros(plan.num_frames, num_numbers, dtype=torch.float64)
    frame_of[given, : len(given)] = torch.linalg.cholesky(sigma[given][:, given])
    used = len(given)
    for window in plan.windows:
        p, c = list(window.target), list(window.observed)
        gain = torch.linalg.solve(sigma[c][:, c], sigma[c][:, p]).T  # [P, C]
        noise = torch.linalg.cholesky(sigma[p][:, p] - gain @ sigma[c][:, p])
        frame_of[p] = gain @ frame_of[c]
        frame_of[p, used : used + len(p)] = noise
        used += len(p)
    return frame_of @ frame_of.T


def divergence(drawn: Tensor, joint: Gaussian) -> float:
    """KL(drawn ‖ joint) of centred normal laws, in nats."""
    ratio = joint.precision @ drawn
    return 0.5 * float(ratio.trace() - len(drawn) - torch.linalg.slogdet(ratio).logabsdet)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).flatten(1).sum(1)


GIVEN = [range(5), [0, N - 1], [0, 11, 12, 25, N - 1], [14, 15, 16], [], range(0, N, 3)]
BUILDERS = {
    "autoregressive": lambda given: frames.autoregressive(N, given, 8),
    "hierarchy-2": lambda given: frames.hierarchical(N, given, 8),
    "hierarchy-4": lambda given: frames.hierarchical(N, given, 8, 4),
    "tree": lambda given: frames.tree(N, given, 8),
    "tree, bounded": lambda given: frames.tree(N, given, 8, max_gap=4),
    "tree, unbounded": lambda given: frames.tree(N, given, 6, max_gap=math.inf, num_context=2),
    "tree + 2 sweeps": lambda given: frames.refine(frames.tree(N, given, 8), 2),
}


@pytest.mark.parametrize("given", GIVEN, ids=str)
@pytest.mark.parametrize("name", BUILDERS)
def test_markov_processes_are_drawn_exactly(name: str, given: list[int]) -> None:
    joint = autoregression(0.9)
    plan = BUILDERS[name](given)
    torch.testing.assert_close(drawn_covariance(joint, plan), joint.covariance, atol=1e-10, rtol=0)


def test_autoregressive_plans_with_enough_context_are_exact_for_higher_orders() -> None:
    joint = autoregression(0.5, 0.2, -0.3, 0.25)
    enough = frames.autoregressive(N, 5, 8)
    torch.testing.assert_close(drawn_covariance(joint, enough), joint.covariance, atol=1e-10, rtol=0)
    too_little = frames.autoregressive(N, 5, 6)  # three frames of context for order 4
    assert divergence(drawn_covariance(joint, too_little), joint) > 1e-3


def test_a_plan_that_forgets_the_last_frame_is_caught() -> None:
    joint = autoregression(0.9)
    right = frames.autoregressive(N, 5, 8)
    wrong = Plan(N, right.observed, 8, tuple(Window(w.target, w.observed[:-1]) for w in right.windows))
    assert divergence(drawn_covariance(joint, right), joint) == pytest.approx(0, abs=1e-10)
    assert divergence(drawn_covariance(joint, wrong), joint) > 0.1


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["autoregressive", "hierarchy-2", "tree"])
def test_run_draws_the_joint_law(name: str) -> None:
    """Whitened videos are standard normal: the sum of squares is chi-square, and so is that of their mean."""
    joint, num_rows, false_alarm = autoregression(0.9), 4000, 1e-6
    given = Gaussian(joint.mean[:5], joint.covariance[:5, :5])
    noise = torch.randn(num_rows, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.full((num_rows, N), torch.nan, dtype=torch.float64)  # what is not there is never read
    x[:, :5] = noise @ torch.linalg.cholesky(given.covariance).T
    plan = BUILDERS[name](range(5))

    def p_value(plan: Plan) -> float:
        video = run(joint, x, plan, generator=2)
        assert torch.equal(video[:, :5], x[:, :5])
        white = video @ torch.linalg.cholesky(joint.precision)
        squares = stats.chi2.cdf(float((white**2).sum()), white.numel())
        mean = stats.chi2.sf(num_rows * float((white.mean(0) ** 2).sum()), N)
        return float(2 * min(squares, 1 - squares, mean))

    assert p_value(plan) > false_alarm
    wrong = Plan(N, plan.observed, 8, tuple(Window(w.target, w.observed[1:-1]) for w in plan.windows))
    assert p_value(wrong) < false_alarm


def test_refinement_brings_a_wrong_law_closer() -> None:
    """A tree is not exact for order 2; sweeps whose windows observe two frames on a side leave the joint invariant."""
    joint, plan = autoregression(1.6, -0.7), frames.tree(N, 5, 8)
    for at, left in ((None, 0.1), (range(5, N, 2), 0.01)):
        gaps = [divergence(drawn_covariance(joint, frames.refine(plan, n, at=at)), joint) for n in range(5)]
        assert gaps[0] > 1
        assert all(later < earlier + 1e-12 for earlier, later in itertools.pairwise(gaps))
        assert gaps[-1] < left * gaps[0]


def test_adaptive_plans_draw_markov_processes_exactly() -> None:
    joint = autoregression(0.9)
    x = torch.zeros(3, N, 1, dtype=torch.float64)
    for plan in (
        frames.adaptive_autoregressive(N, 5, 8, distance=distance),
        frames.adaptive_hierarchical(N, 5, 8, 3, distance=distance),
    ):
        video, chosen = x.clone(), []
        for number in range(plan.num_evaluations):
            windows = plan.next_window(video, number)
            chosen.append(windows[0])
            generator = torch.Generator().manual_seed(number)
            video[..., 0] = joint.sample(video[..., 0], windows[0].query(N), generator=generator)
        drawn = drawn_covariance(joint, plan.chosen(chosen))
        torch.testing.assert_close(drawn, joint.covariance, atol=1e-10, rtol=0)
