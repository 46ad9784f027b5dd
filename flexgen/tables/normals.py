"""The normal law on intervals: masses and moments that hold far out in the tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["HALF_LOG_2PI", "log_interval_mass", "truncated_moments"]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_FAR = 1e3


def log_interval_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)), for lower < upper, either of them infinite; differentiable.

    The interval is reflected to the left tail, where log Phi is accurate; a thin one is its width times the density at
    its middle, with the curvature's correction. Relative error of the mass below 1e-9 in float64, 1e-4 in float32.
    """
    thin_width = 1e-4 if lower.dtype == torch.float64 else 1e-2
    flip = lower + upper > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    thin = b - a < thin_width
    # Each branch sees harmless numbers where the other is taken, so that gradients stay finite.
    safe_a, safe_b = torch.where(thin, -1.0, a), torch.where(thin, 0.0, b)
    # So far below the upper end the mass that is left is no number above zero; farther, log_ndtr has no gradient.
    safe_a = safe_a.maximum(safe_b.detach().clamp_max(0.0) - 40.0)
    log_b = torch.special.log_ndtr(safe_b)
    gap = (torch.special.log_ndtr(safe_a) - log_b).clamp_max(-1e-12)
    wide_mass = log_b + torch.log(-torch.expm1(gap))
    a, b = torch.where(thin, a, 0.0), torch.where(thin, b, 1.0)
    square, width = (0.5 * (a + b)) ** 2, (b - a).clamp_min(1e-30)
    thin_mass = -0.5 * square - HALF_LOG_2PI + width.log() + width**2 * (square - 1) / 24
    return torch.where(thin, thin_mass, wide_mass)


def truncated_moments(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a standard normal inside (lower, upper), float64; the mean lies inside."""
    width = upper - lower
    thin = width < 1e-2  # there the formulas cancel; the law is uniform up to 1e-4
    log_mass = log_interval_mass(lower, torch.where(thin, lower + 1.0, upper))

    def density(z: Tensor) -> Tensor:
        """Within the interval; the tail's mass and density vanish together, and their logs do not."""
        return torch.where(z.isinf(), 0.0, torch.exp(-0.5 * z**2 - HALF_LOG_2PI - log_mass))

    def tilted(z: Tensor) -> Tensor:
        return torch.where(z.isinf(), 0.0, z) * density(z)

    mean = density(lower) - density(upper)
    variance = 1 + tilted(lower) - tilted(upper) - mean**2
    # Farther out the logs themselves lose digits, and the law is that of an exponential from the nearer end.
    nearer = torch.where(lower > 0, lower, upper.clamp_max(0.0))
    far = nearer.abs() > _FAR
    rate = torch.where(far, nearer, 1.0)
    mean, variance = torch.where(far, nearer + 1 / rate, mean), torch.where(far, rate**-2, variance)
    middle, uniform = 0.5 * (lower + upper), width**2 / 12
    mean = torch.where(thin, middle, mean.maximum(lower).minimum(upper))
    return mean, torch.where(thin, uniform, variance.clamp(0, 1).minimum(3 * uniform))  # width² / 4 is the most
