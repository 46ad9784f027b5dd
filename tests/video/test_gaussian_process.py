"""A network trained on videos of a Gaussian process draws from its exact conditionals, as far as it has learned them.

Measured after 100, 300 and 900 steps of training, the largest over the five sets below, 20 Euler steps: a mean square
error of the conditional mean of .21, .09 and .05 of a pixel's variance, and a relative error of the covariance (less
its sampling error, in squares) of 1.1, .4 and .3. What a model is allowed is about half as much again, beside five
standard errors of the estimate (false alarm below 1e-6 a set).
"""

from __future__ import annotations

import math

import pytest

from flexgen.video import WindowSampler
from tests.video.gaussian_process import Error, error, trained

APART = ([1, 14], [0, 4, 15])  # in which the frames' distances tell most
SETS = [APART, ([2, 11], [10, 1, 5]), ([5, 6], [2, 9]), ([7, 8, 9, 10], [6]), ([3], [])]


def is_right(found: Error, *, mean: float, covariance: float) -> bool:
    """Within what the model is allowed and five standard errors."""
    return (
        found.mean < mean + 5 * found.mean_noise
        and found.covariance < math.hypot(covariance, found.covariance_noise) + found.covariance_noise
    )


@pytest.mark.statistical
def test_draws_have_the_moments_of_the_exact_conditionals() -> None:
    """After 300 steps (16 s of one core); of sets that the law hardly ever drew."""
    sampler = WindowSampler(trained(300), num_inference_steps=10)
    allowed = {"mean": 0.08, "covariance": 0.6}
    for target, observed in SETS[:2]:
        found = error(sampler, target, observed, count=200)
        assert is_right(found, **allowed), found
    for wrong in ("index", "blind"):
        found = error(sampler, *APART, count=200, wrong=wrong)
        assert not is_right(found, **allowed), (wrong, found)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("attention", ["one_way", "full"])
def test_the_error_falls_with_training(attention: str) -> None:
    """A minute and a half of one core."""
    early, late = (WindowSampler(trained(steps, attention=attention), num_inference_steps=20) for steps in (100, 900))
    means = []
    for target, observed in SETS:
        found = error(late, target, observed)
        assert is_right(found, mean=0.075, covariance=0.45), (target, found)
        means.append((error(early, target, observed).mean, found.mean))
    assert sum(late for _, late in means) < 0.5 * sum(early for early, _ in means), means
    for wrong in ("index", "blind"):
        assert not is_right(error(late, *APART, wrong=wrong), mean=0.075, covariance=0.45)
