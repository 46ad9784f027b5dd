"""How far a score model is from a gradient: the asymmetry of its Jacobian, by Hutchinson's probes.

A score s(x) = grad log p(x) has a symmetric Jacobian J. Of any J, the share of ||J||^2 that lies in its antisymmetric
part (J - J^T) / 2 is

    a = 1/2 (tr J J^T - tr J^2) / tr J J^T,

0 for a gradient, about 1/2 for independent random entries, 1 for a pure rotation. It measures and does not decide: a
conservative score is neither necessary nor sufficient for exact sampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flexgen import rng
from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.arguments import check_callable, check_generator, numbers
from flexgen.errors import DataError
from flexgen.rng import Randomness

__all__ = ["ScoreAsymmetry", "linear_score_asymmetry", "score_asymmetry"]


@dataclass(frozen=True)
class ScoreAsymmetry:
    """The antisymmetric share of a score's Jacobian.

    Args:
        value: over all rows: the mean squared antisymmetric part over the mean squared Jacobian.
        standard_error: over rows and probes: of another sample of rows; NaN with one row.
        probe_error: over probes alone: at these rows. What is left of it falls with `num_probes`.
        floor: what rounding alone contributes to `value`; a value near it is zero.
        per_row: the share at each row, from that row's probes.
        num_probes: for each row.
        evaluations: rows that went through the score (each once forward and, for the two products, twice backward).
        seconds: it took.
    """

    value: float
    standard_error: float
    probe_error: float
    floor: float
    per_row: tuple[float, ...]
    num_probes: int
    evaluations: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"score asymmetry {self.value:.3g} ± {self.standard_error:.2g} (one standard error; of these rows alone "
            f"± {self.probe_error:.2g}; "
            f"rounding {self.floor:.1g}; 0 for a gradient, at most 1; {len(self.per_row)} rows x {self.num_probes} "
            f"probes, {self.evaluations} evaluations, {self.seconds:.1f} s)"
        )

    def __repr__(self) -> str:
        return str(self)


def score_asymmetry(
    score: Callable[[Tensor], Tensor], x: Tensor, *, generator: Randomness | int, num_probes: int = 8
) -> ScoreAsymmetry:
    """Antisymmetric share of the Jacobian of a score at the rows of `x`.

    With random signs v, E |J v - J^T v|^2 = 2 (tr J J^T - tr J^2): the difference is taken before it is squared, so
    that a symmetric Jacobian gives zero for every probe, not on average. v^T (J v - J^T v) is zero for every J; what is
    found there is rounding, and its square estimates what rounding adds to the rest.

    Args:
        score: ``[B, *event] -> [B, *event]``, row by row (no batch statistics), differentiable twice by autograd. Put
            its network in evaluation mode. Attention of torch runs by the plain formula, which differentiates twice.
        x: ``[B, *event]``, where to look: draws of the data, with noise for a score at a noise level.
        generator: of the probes, or a seed.
        num_probes: for each row; each costs one forward and two backward passes.

    Raises:
        DataError: a score of another shape, one that autograd cannot follow, or values that are not finite.
        FlexgenError: options that cannot be used.

    Source: Hutchinson (1990); the double backward pass for J v is Townsend (2017).
    """
    check_callable("score", score, "Pass a function of rows [B, *event].")
    whole_number("num_probes", num_probes, 2)
    x = numbers("x", x, "Pass real rows [B, *event].")
    if x.ndim < 2 or len(x) == 0 or not x.is_floating_point():
        raise DataError("x", f"has shape {tuple(x.shape)} and dtype {x.dtype}", "Pass real rows [B, *event].")
    if not bool(x.isfinite().all()):
        raise DataError("x", "holds a number that is not finite", "Look at the draws that made it.")
    source = rng.stream(rng.seed_from(check_generator(generator)), "probes")
    start = time.perf_counter()
    antisymmetric, square, rounding = [], [], []
    for _ in range(num_probes):
        signs = 2.0 * rng.integers(2, tuple(x.shape), generator=source).to(x) - 1.0
        forward, backward = _products(score, x, signs)
        difference = (forward - backward).to(torch.float64).flatten(1)
        antisymmetric.append((difference**2).sum(1) / 4)
        both = (forward.to(torch.float64) ** 2 + backward.to(torch.float64) ** 2) / 2
        square.append(both.flatten(1).sum(1))
        rounding.append((difference * signs.to(torch.float64).flatten(1)).sum(1) ** 2 / 4)
    top, bottom = torch.stack(antisymmetric, 1).cpu(), torch.stack(square, 1).cpu()  # [B, probes]
    if not bool(bottom.isfinite().all()) or not bool(bottom.sum() > 0):
        raise DataError("score", "has a Jacobian that is not finite, or zero everywhere", "Look at its values at x.")
    value = float(top.mean() / bottom.mean())
    # Delta method of a ratio of means: residuals over the mean of the denominator.
    residual = (top - value * bottom) / bottom.mean()
    rows, num_rows = residual.mean(1), len(x)
    probe_error = float((residual.var(1) / num_probes).mean().div(num_rows).sqrt())
    row_error = float(rows.std() / num_rows**0.5) if num_rows > 1 else float("nan")
    floor = float(torch.stack(rounding).mean() / bottom.mean())
    per_row = tuple((top.sum(1) / bottom.sum(1)).tolist())
    seconds = time.perf_counter() - start
    return ScoreAsymmetry(value, row_error, probe_error, floor, per_row, num_probes, num_rows * num_probes, seconds)


def linear_score_asymmetry(matrix: Tensor) -> float:
    """The share for s(x) = A x + b in closed form; of one Jacobian ``[N, N]``, whatever it came from.

    For complete conditionals x_i ~ N(sum_j b_ij x_j, s_i^2), A_ij = b_ij / s_i^2 off the diagonal and -1 / s_i^2 on it.
    """
    fix = "Pass a square matrix that is not zero."
    a = numbers("matrix", matrix, fix).to(torch.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not bool(a.any()):
        raise DataError("matrix", f"has shape {tuple(a.shape)}", fix)
    if not bool(a.isfinite().all()):
        raise DataError("matrix", "holds a number that is not finite", fix)
    return float(((a - a.T) ** 2).sum() / (4 * (a**2).sum()))


def _products(score: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """J v and J^T v at each row. J v is the derivative of w -> J^T w, which is linear in w, along v."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x.clone().requires_grad_()
        values = score(x)
        if not isinstance(values, Tensor):
            raise DataError("score", f"returned {kind_of(values)}", "A score maps a tensor to one of its shape.")
        if values.shape != x.shape:
            raise DataError("score", f"maps {tuple(x.shape)} to {tuple(values.shape)}", "A score has the shape of x.")
        unseen = DataError(
            "score", "does not depend on x as far as autograd sees", "Compute it without no_grad or detach."
        )
        if not values.requires_grad:
            raise unseen
        weights = torch.zeros_like(values, requires_grad=True)
        try:
            (pulled,) = torch.autograd.grad(values, x, weights, create_graph=True, allow_unused=True)  # J^T w, any w
            if pulled is None:
                raise unseen
            (backward,) = torch.autograd.grad(values, x, v, retain_graph=True)
            (forward,) = torch.autograd.grad(pulled, weights, v)
        except RuntimeError as error:  # torch names the operation that it cannot follow
            reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
            raise DataError(
                "score", f"cannot be differentiated twice ({reason})", "Compute it by operations that can be."
            ) from error
    return forward.detach(), backward.detach()
