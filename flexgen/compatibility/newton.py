"""Newton's method in log-probabilities, its steps solved by conjugate gradients: no S x S matrix.

Both convex problems of `closest` have curvatures that are sums of conditional variances, so that a product with them
costs a few passes over the states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Point", "Problem", "conjugate_gradients", "minimise"]

_LONGEST_STEP = 8.0  # of any log-probability
_ROUNDING = 1e-15


@dataclass(frozen=True, eq=False)
class Point:
    """A problem at one place.

    Args:
        theta: log-probabilities, ``[V_0, .., V_{N-1}]``, -inf outside the support.
        objective: nats.
        gradient: with respect to theta, zero outside the support.
        weight: the scale of each state in the curvature, a preconditioner.
        off: how far from optimal, in nats; zero at the optimum.
        curvature: the product of the (Gauss-Newton) Hessian with a direction.
    """

    theta: Tensor
    objective: float
    gradient: Tensor
    weight: Tensor
    off: float
    curvature: Callable[[Tensor], Tensor]


class Problem(Protocol):
    """A convex problem over laws, stated in their log-probabilities."""

    def at(self, theta: Tensor) -> Point: ...

    """The problem at a place; theta need not be normalised."""


def minimise(problem: Problem, start: Tensor, *, tolerance: float, num_iterations: int) -> Point:
    """The best place found: `off` is at most tolerance (1 + |objective|), unless progress ended before."""
    now = problem.at(start)
    for _ in range(num_iterations):
        if now.off <= tolerance * (1 + abs(now.objective)):
            break
        forcing = min(0.1, now.off)
        directions = (conjugate_gradients(now, -now.gradient, accuracy=forcing), -_preconditioned(now, now.gradient))
        # The second, a step of mirror descent, makes progress wherever the first, Newton's, does not.
        for direction in directions:
            then = _search(problem, now, direction)
            if then is not None:
                break
        if then is None:
            break
        now = then
    return now


def _search(problem: Problem, now: Point, direction: Tensor) -> Point | None:
    """A place along the direction that is better, or None."""
    slope = float((now.gradient * direction).sum())
    if not slope < 0:
        return None
    step = min(1.0, _LONGEST_STEP / float(direction.abs().max()))
    theta = torch.where(now.weight > 0, now.theta, -torch.inf)
    scale = _ROUNDING * (1 + abs(now.objective)) * 100
    for _ in range(30):
        then = problem.at(theta + step * direction)
        falls = then.objective <= now.objective + 1e-4 * step * slope
        if falls or (then.off < now.off and then.objective <= now.objective + scale):
            break
        step /= 2
    else:
        return None
    # States on their way to probability zero move by bounded steps: stretch them.
    while then.off > 0.5 * now.off and step * float(direction.abs().max()) < 50:
        step *= 2
        further = problem.at(theta + step * direction)
        if not (further.objective <= then.objective and further.off < then.off):
            break
        then = further
    return then


def _preconditioned(point: Point, vector: Tensor) -> Tensor:
    return torch.where(point.weight > 0, vector / point.weight, 0.0)


def conjugate_gradients(point: Point, right: Tensor, *, accuracy: float, num_iterations: int = 500) -> Tensor:
    """A direction d with curvature(d) = right, up to `accuracy` relative to it in the norm of the preconditioner."""
    solution = torch.zeros_like(right)
    rest = right
    scaled = _preconditioned(point, rest)
    direction = scaled
    size = start = float((rest * scaled).sum())
    for _ in range(num_iterations):
        if size <= accuracy**2 * start or size == 0:
            break
        product = point.curvature(direction)
        bend = float((direction * product).sum())
        if bend <= 1e-14 * float((direction.square() * point.weight).sum()):  # flat: nothing more to learn
            break
        solution = solution + (size / bend) * direction
        rest = rest - (size / bend) * product
        scaled = _preconditioned(point, rest)
        before, size = size, float((rest * scaled).sum())
        direction = scaled + (size / before) * direction
    return solution
