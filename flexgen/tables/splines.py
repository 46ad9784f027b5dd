"""Monotone rational-quadratic splines: closed-form value, slope and inverse, vectorised over columns.

Source: Gregory & Delbourgo (1982), *Piecewise rational quadratic interpolation to monotonic data*; Durkan et al. (2019)
use the same pieces in flows. Beyond the end knots the spline is linear. float64 throughout.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["inverse", "knot_slopes", "value_and_log_slope"]

_TINY = 1e-300


def knot_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dy/dx at the knots: geometric means of the neighbouring secants, the nearer one weighing more.

    One-sided at the ends, and beside a jump (two knots at one x); the mean slope where both sides are missing.
    """
    width = np.diff(x)
    jump = width <= 0
    log_secant = np.log(np.diff(y) / np.where(jump, 1.0, width))
    log_secant[jump] = np.nan
    left, right = np.r_[np.nan, log_secant], np.r_[log_secant, np.nan]
    before, after = np.r_[1.0, width], np.r_[width, 1.0]
    share = before / (before + after + _TINY)
    log_slope = right * share + left * (1 - share)
    log_slope = np.where(np.isnan(log_slope), np.where(np.isnan(left), right, left), log_slope)
    overall = np.log((y[-1] - y[0]) / (x[-1] - x[0]))  # in the units of the data, as every slope
    slopes: np.ndarray = np.exp(np.nan_to_num(log_slope, nan=overall))
    return slopes


def value_and_log_slope(knots: tuple[Tensor, Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """y and log dy/dx, ``[S, B]`` each.

    Args:
        knots: x, y and slopes, ``[S, M]`` each, x and y nondecreasing.
        x: ``[S, B]``.
    """
    knots_x, knots_y, slopes = knots
    piece = _piece(knots_x, x)  # [S, B]
    x0, x1, y0, y1, d0, d1 = (t.gather(1, i) for t in knots for i in (piece, piece + 1))
    width, height = (x1 - x0).clamp_min(_TINY), y1 - y0
    secant, t = height / width, ((x - x0) / width).clamp(0, 1)
    u = t * (1 - t)
    denominator = secant + (d0 + d1 - 2 * secant) * u
    y = y0 + height * (secant * t**2 + d0 * u) / denominator
    log_slope = 2 * secant.log() + (d1 * t**2 + 2 * secant * u + d0 * (1 - t) ** 2).log() - 2 * denominator.log()
    below, above = x < knots_x[:, :1], x > knots_x[:, -1:]
    y = torch.where(below, knots_y[:, :1] + (x - knots_x[:, :1]) * slopes[:, :1], y)
    y = torch.where(above, knots_y[:, -1:] + (x - knots_x[:, -1:]) * slopes[:, -1:], y)
    log_slope = torch.where(below, slopes[:, :1].log(), torch.where(above, slopes[:, -1:].log(), log_slope))
    return y, log_slope


def inverse(knots: tuple[Tensor, Tensor, Tensor], y: Tensor) -> Tensor:
    """x, ``[S, B]``, for y ``[S, B]``; a jump of the spline is a flat of its inverse."""
    knots_x, knots_y, slopes = knots
    piece = _piece(knots_y, y)
    x0, x1, y0, y1, d0, d1 = (t.gather(1, i) for t in knots for i in (piece, piece + 1))
    width, height = x1 - x0, (y1 - y0).clamp_min(_TINY)
    secant, rise = height / width.clamp_min(_TINY), (y - y0).clamp_min(0).minimum(height)
    bend = d0 + d1 - 2 * secant
    # The root in [0, 1] of a t² + b t + c, in the form that does not cancel.
    a, b, c = height * (secant - d0) + rise * bend, height * d0 - rise * bend, -secant * rise
    t = 2 * c / (-b - (b**2 - 4 * a * c).clamp_min(0).sqrt()).clamp_max(-_TINY)
    x = torch.where(width > 0, x0 + width * t.clamp(0, 1), x0)
    x = torch.where(y < knots_y[:, :1], knots_x[:, :1] + (y - knots_y[:, :1]) / slopes[:, :1], x)
    return torch.where(y > knots_y[:, -1:], knots_x[:, -1:] + (y - knots_y[:, -1:]) / slopes[:, -1:], x)


def _piece(knots: Tensor, values: Tensor) -> Tensor:
    """The number of the piece that each value falls in, ``[S, B]``."""
    return (torch.searchsorted(knots, values.contiguous()) - 1).clamp(0, knots.shape[1] - 2)
