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
_ROUNDING = 1e-13  # of objectives, relative
_PATIENCE = 20  # steps that gain nothing but rounding


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
    now, stalls = problem.at(start), 0
    for _ in range(num_iterations):
        if now.off <= tolerance * (1 + abs(now.objective)):
            break
        rounding = _ROUNDING * (1 + abs(now.objective))
        then = _search(problem, now, conjugate_gradients(now, -now.gradient, accuracy=min(0.1, now.off)))
        falls = then is not None and now.objective - then.objective > rounding
        if not falls:
            # Newton's steps neglect states of little weight; those of mirror descent serve every state alike.
            other = _search(problem, now, -_preconditioned(now, now.gradient))
            then = min((each for each in (then, other) if each is not None), key=lambda each: each.off, default=None)
        if then is None:
            break
        stalls = 0 if falls or then.off < 0.5 * now.off else stalls + 1
        now = then
        if stalls == _PATIENCE:
            break
    return now


def _search(problem: Problem, now: Point, direction: Tensor) -> Point | None:
    """A place along the direction that is better, or None."""
    slope = float((now.gradient * direction).sum())
    if not slope < 0:
        return None
    step = min(1.0, _LONGEST_STEP / float(direction.abs().max()))
    theta = torch.where(now.weight > 0, now.theta, -torch.inf)
    # Where the objective changes by rounding alone, `off` decides.
    rounding = _ROUNDING * (1 + abs(now.objective))
    for _ in range(20):
        then = problem.at(theta + step * direction)
        if -step * slope > rounding and then.objective <= now.objective + 1e-4 * step * slope:
            break
        if then.off < now.off and then.objective <= now.objective + rounding:
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
