"""Monotone splines against finite differences and their own inverse."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexgen.tables import splines

STEP = st.floats(0.05, 20.0)


def knots_of(widths: list[float], heights: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    x = np.r_[0.0, np.cumsum(widths)] - 3.0
    y = np.r_[0.0, np.cumsum(heights)] - 2.0
    slopes = splines.knot_slopes(x, y)
    return tuple(torch.from_numpy(a)[None] for a in (x, y, slopes))  # type: ignore[return-value]


@st.composite
def splines_of_any_shape(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    num = draw(st.integers(1, 8))
    widths, heights = (draw(st.lists(STEP, min_size=num, max_size=num)) for _ in range(2))
    return knots_of(widths, heights)


def grid_of(knots: Tensor) -> Tensor:
    """Points inside, at and beyond the knots, ``[1, B]``."""
    low, high = float(knots[0, 0]), float(knots[0, -1])
    return torch.cat([torch.linspace(low - 5, high + 5, 301, dtype=torch.float64), knots[0]]).sort().values[None]


@given(splines_of_any_shape())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_value_slope_and_inverse_agree(knots: tuple[Tensor, Tensor, Tensor]) -> None:
    x = grid_of(knots[0])
    y, log_slope = splines.value_and_log_slope(knots, x)
    assert (y.diff() >= 0).all()
    torch.testing.assert_close(splines.value_and_log_slope(knots, knots[0])[0], knots[1], rtol=1e-12, atol=1e-12)
    # Float64 errs by 1e-16 times the numbers met, at most 400; slopes are within [1/400, 400] of the secants' range,
    # and a flat stretch of the spline magnifies an error of y by 1 / slope.
    back = splines.inverse(knots, y)
    assert ((back - x).abs() <= 1e-11 * (1 + torch.exp(-log_slope))).all()

    # Central differences have an error h² y''' / 6; where a knot lies within the stencil the slope is continuous only,
    # so those places are left out. Compared by the slope's change over the stencil, which bounds the true mean slope.
    h = 1e-5
    away = ((x[..., None] - knots[0][:, None]).abs() > 2 * h).all(-1)
    ends = [splines.value_and_log_slope(knots, x + s) for s in (-h, h)]
    mean_slope = (ends[1][0] - ends[0][0]) / (2 * h)
    change = (ends[1][1].exp() - ends[0][1].exp()).abs()
    rounding = 1e-15 * 400 / h
    assert ((mean_slope - log_slope.exp()).abs() <= change + 2 * rounding)[away].all()


def test_beyond_the_knots_it_is_linear() -> None:
    knots = knots_of([1.0, 2.0, 0.5], [0.3, 1.0, 2.0])
    x = torch.tensor([[-1e6, -100.0, 100.0, 1e6]], dtype=torch.float64)
    y, log_slope = splines.value_and_log_slope(knots, x)
    low, high = knots[2][0, 0], knots[2][0, -1]
    torch.testing.assert_close(log_slope.exp(), torch.stack([low, low, high, high])[None])
    torch.testing.assert_close(splines.inverse(knots, y), x, rtol=1e-12, atol=0)
    torch.testing.assert_close((y[:, 1] - y[:, 0]) / (x[:, 1] - x[:, 0]), low[None])


def test_a_jump_is_a_flat_of_the_inverse() -> None:
    x, y = np.array([-1.0, 0.0, 0.0, 2.0]), np.array([-1.0, -0.5, 0.7, 1.5])
    slopes = splines.knot_slopes(x, y)
    assert np.isfinite(slopes).all()
    assert (slopes > 0).all()
    knots = tuple(torch.from_numpy(a)[None] for a in (x, y, slopes))
    inside = torch.linspace(-0.5, 0.7, 50, dtype=torch.float64)[None]
    assert (splines.inverse(knots, inside) == 0).all()
    outside = torch.tensor([[-3.0, -0.75, -0.51, 0.71, 1.2, 4.0]], dtype=torch.float64)
    values = splines.inverse(knots, outside)
    assert (values != 0).all()
    torch.testing.assert_close(splines.value_and_log_slope(knots, values)[0], outside)


def test_the_spline_of_points_on_a_line_is_the_line() -> None:
    knots = knots_of([0.5, 1.0, 2.0], [1.0, 2.0, 4.0])
    x = grid_of(knots[0])
    y, log_slope = splines.value_and_log_slope(knots, x)
    torch.testing.assert_close(y, 2 * x + 4.0)
    torch.testing.assert_close(log_slope, torch.full_like(x, np.log(2.0)))
