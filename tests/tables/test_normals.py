"""Masses and moments of the normal law on intervals, against SciPy and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from flexgen.tables.columns import cell_log_prob, log_interval_mass, truncated_moments

# Both tails, the middle, thin and wide, touching zero, far out.
INTERVALS = [
    (-1.0, 1.0), (-0.001, 0.002), (2.0, 3.0), (-3.0, -2.0), (-8.0, 8.0), (5.0, 5.5), (-5.5, -5.0), (12.0, 12.3),
    (-40.0, -39.0), (39.0, 40.0), (-40.0, 0.5), (-0.5, 40.0), (0.0, 1.0), (-1.0, 0.0), (6.0, 6.0 + 3e-5),
    (-0.3, -0.3 + 3e-5), (7.0, 7.0 + 5e-3), (-1.0, -1.0 + 5e-3), (-1.0, -1.0 + 2e-2), (9.0, 9.02),
]  # fmt: skip
INFINITE = [
    (-math.inf, -50.0),
    (2e3, 2e3 + 0.5),
    (-1e7, -1e6),
    (-math.inf, 0.3),
    (0.3, math.inf),
    (-math.inf, -20.0),
    (20.0, math.inf),
    (-math.inf, math.inf),
]


def reference(lower: float, upper: float) -> float:
    """In the left tail, by the integral of the density relative to its value at the upper end: no cancellation."""
    if lower + upper > 0:
        lower, upper = -upper, -lower
    if math.isinf(lower):
        return float(special.log_ndtr(upper))
    if upper - lower >= 0.5:
        a, b = special.log_ndtr(lower), special.log_ndtr(upper)
        return float(b + np.log1p(-np.exp(a - b)))
    nodes, weights = np.polynomial.legendre.leggauss(40)  # exact to 1e-16 for a density this smooth
    half, middle = 0.5 * (upper - lower), 0.5 * (upper + lower)
    exponent = -0.5 * ((middle + half * nodes) ** 2 - upper**2)
    return float(np.log(half * (weights * np.exp(exponent)).sum()) - 0.5 * upper**2 - 0.5 * np.log(2 * np.pi))


@pytest.mark.parametrize(("lower", "upper"), INTERVALS + INFINITE)
def test_log_mass(lower: float, upper: float) -> None:
    expected = reference(lower, upper)
    mass = log_interval_mass(*(torch.tensor(v, dtype=torch.float64) for v in (lower, upper)))
    # The stated relative error of the mass, and the rounding of a log of this size.
    assert abs(float(mass) - expected) < 1e-9 + 1e-14 * abs(expected)
    # In float32 the ends themselves are rounded; the reference is that of the rounded ends.
    low, high = (torch.tensor(v, dtype=torch.float32) for v in (lower, upper))
    if high > low:
        expected = reference(float(low), float(high))
        assert abs(float(log_interval_mass(low, high)) - expected) < 1e-4 + 5e-7 * abs(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 64])  # one number, and vectors, which other code computes
def test_gradients_are_finite_and_right(dtype: torch.dtype, size: int) -> None:
    for lower, upper in [*INTERVALS, *INFINITE, (-1e9, 0.5), (-1e30, 2.0), (1e3, 2e3), (1e5, 1e5 + 1), (-1e9, 1e9)]:
        low, high = (torch.full((size,), v, dtype=dtype, requires_grad=True) for v in (lower, upper))
        if not bool((high > low).all()):
            continue
        log_mass = log_interval_mass(low, high)
        log_mass.sum().backward()
        assert torch.isfinite(low.grad).all()
        assert torch.isfinite(high.grad).all()
        if dtype == torch.float64 and max(abs(lower), abs(upper)) < 30:
            density = stats.norm.pdf([lower, upper]) / math.exp(reference(lower, upper))
            # A thin interval's branch is right to second order in its width, 1e-4 at most.
            np.testing.assert_allclose([-float(low.grad[0]), float(high.grad[0])], density, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cells_that_reach_to_infinity_have_gradients(dtype: torch.dtype) -> None:
    """The first and the last level of a column of few values; beside them a density and an inner cell."""
    infinity = math.inf
    lower = torch.tensor([[-infinity, 0.3, 0.5, -1.0]], dtype=dtype)
    upper = torch.tensor([[0.1, infinity, 0.5, -0.2]], dtype=dtype)
    arguments = [torch.randn(1, 4, 16, dtype=dtype, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    log_weights, means, sds = arguments[0].log_softmax(-1), arguments[1], arguments[2].exp() * 1e-2
    for tensor in (log_weights, means, sds):
        tensor.requires_grad_(True)
    value = cell_log_prob(lower, upper, log_weights, means, sds)
    value.sum().backward()
    for tensor in (value, log_weights.grad, means.grad, sds.grad):
        assert torch.isfinite(tensor).all()
    law = stats.norm(means.detach().double().numpy(), sds.detach().double().numpy())
    low, high = lower[..., None].double().numpy(), upper[..., None].double().numpy()
    mass = np.where(low == high, law.pdf(low), law.cdf(high) - law.cdf(low))
    expected = np.log((np.exp(log_weights.detach().double().numpy()) * mass).sum(-1))
    np.testing.assert_allclose(value.detach().double().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("lower", "upper"), INTERVALS + INFINITE)
def test_truncated_moments(lower: float, upper: float) -> None:
    ends = (torch.tensor([v], dtype=torch.float64) for v in (lower, upper))
    mean, variance = (float(m) for m in truncated_moments(*ends))
    far = min(abs(lower), abs(upper)) if lower * upper > 0 else 0.0
    if upper - lower < 0.5:  # by quadrature; SciPy's own formulas cancel here
        nodes, weights = np.polynomial.legendre.leggauss(40)
        z = 0.5 * (upper + lower) + 0.5 * (upper - lower) * nodes
        density = weights * np.exp(-0.5 * (z**2 - z[0] ** 2))
        expected_mean = (density * z).sum() / density.sum()
        expected_variance = (density * (z - expected_mean) ** 2).sum() / density.sum()
    elif far > 1e3:  # SciPy's lose all digits here; the law's tail is exponential up to 2 / z³
        nearer = lower if lower > 0 else upper
        expected_mean, expected_variance = nearer + 1 / nearer, nearer**-2
    else:
        expected_mean, expected_variance = stats.truncnorm.stats(lower, upper, moments="mv")
    width = upper - lower
    # A thin interval is taken as uniform: the mean is off by width² |z| / 12, the variance by as much relatively.
    slack = width**2 * max(abs(lower), abs(upper)) if width < 1e-2 else 0.0
    # E[z²] is of the size far², and its rounding and the mass's error of 1e-9 remain after the subtraction.
    assert abs(mean - expected_mean) < slack + 1e-9 * (1 + far)
    assert abs(variance - expected_variance) < slack + 1e-8 * (1 + far**2)
    assert lower <= mean <= upper
    assert 0 <= variance <= 1
