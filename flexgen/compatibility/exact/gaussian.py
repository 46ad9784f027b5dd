"""Linear-Gaussian conditionals x_i | rest ~ N(a_i + Σ_j b_ij x_j, s_i²), and whether they have a joint.

With J = diag(1/s²)(I - B) they have one iff J is symmetric and positive definite (Besag 1974); J is then its precision
matrix. Names here -> elsewhere: coefficients B, variances s², intercepts a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexgen.checks import kind_of
from flexgen.compatibility.exact.family import check_tolerance
from flexgen.errors import FlexgenError
from flexgen.exact import Gaussian

__all__ = ["GaussianCheck", "GaussianConditionals", "check_gaussian", "require_gaussian"]


class GaussianConditionals:
    """Complete conditionals x_i | rest ~ N(a_i + Σ_j b_ij x_j, s_i²), which need not have a joint.

    Args:
        coefficients: B ``[N, N]``, zero on the diagonal.
        variances: s² ``[N]``, positive.
        intercepts: a ``[N]``; default zero.
        names: what users call the sites; default x0, x1, ..

    Raises:
        FlexgenError: shapes that disagree, numbers that are not finite, a diagonal that is not zero, variances that are
            not positive.
    """

    def __init__(
        self,
        coefficients: Tensor,
        variances: Tensor,
        intercepts: Tensor | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        self.coefficients = torch.as_tensor(coefficients).detach().to("cpu", torch.float64)
        self.variances = torch.as_tensor(variances).detach().to("cpu", torch.float64)
        square = self.coefficients.ndim == 2 and len(set(self.coefficients.shape)) == 1
        size = len(self.coefficients) if square else self.variances.numel()
        self.intercepts = torch.zeros(size, dtype=torch.float64)
        if intercepts is not None:
            self.intercepts = torch.as_tensor(intercepts).detach().to("cpu", torch.float64)
        expected = {"coefficients": (size, size), "variances": (size,), "intercepts": (size,)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or not size or not bool(torch.isfinite(value).all()):
                raise FlexgenError(
                    name, f"has shape {tuple(value.shape)} or is not finite", f"Pass finite numbers of shape {shape}."
                )
        if bool((self.variances <= 0).any()):
            raise FlexgenError("variances", f"hold {float(self.variances.min())}", "Variances are positive.")
        if bool(self.coefficients.diagonal().any()):
            raise FlexgenError("coefficients", "are not zero on the diagonal", "A site is not regressed on itself.")
        self.names = tuple(f"x{site}" for site in range(size)) if names is None else tuple(map(str, names))
        if len(self.names) != size:
            raise FlexgenError("names", f"hold {len(self.names)} names", f"Name each of the {size} sites.")

    @classmethod
    def of_joint(cls, law: Gaussian) -> GaussianConditionals:
        """The complete conditionals of a multivariate normal law."""
        precision = law.precision
        variances = 1 / precision.diagonal()
        coefficients = -precision * variances[:, None]
        coefficients.fill_diagonal_(0.0)
        return cls(coefficients, variances, law.mean - coefficients @ law.mean)

    @property
    def num_sites(self) -> int:
        return len(self.variances)

    @property
    def precision(self) -> Tensor:
        """J = diag(1/s²)(I - B), ``[N, N]``: a joint's precision matrix, if there is a joint."""
        return (torch.eye(self.num_sites, dtype=torch.float64) - self.coefficients) / self.variances[:, None]

    @property
    def mean(self) -> Tensor:
        """The mean that all conditionals agree on, (I - B)^-1 a, ``[N]``."""
        system = torch.eye(self.num_sites, dtype=torch.float64) - self.coefficients
        if float(torch.linalg.cond(system)) > 1e14:
            raise FlexgenError("coefficients", "leave the mean undetermined: I - B is singular", "Shrink them.")
        mean: Tensor = torch.linalg.solve(system, self.intercepts)
        return mean

    def __repr__(self) -> str:
        return f"GaussianConditionals({self.num_sites} sites)"


@dataclass(frozen=True, eq=False)
class GaussianCheck:
    """Whether linear-Gaussian conditionals have a joint.

    Args:
        verdict: ``"compatible"`` or ``"incompatible"``.
        joint: the one joint; None if incompatible.
        asymmetry: |J - J'| / (√2 |J|) of the off-diagonal part of J, Frobenius: 0 if symmetric, 1 if every dependence
            is stated in one direction only.
        worst_pair: the sites (i, j) whose b_ij / s_i² and b_ji / s_j² differ most in the scale of 1 / (s_i s_j); None
            if J is symmetric.
        pair_gap: that difference, without units: 0 if symmetric.
        smallest_eigenvalue: of the symmetric part of J, its diagonal scaled to one; not positive: no proper joint.
        explanation: a sentence in the users' names.
    """

    verdict: Literal["compatible", "incompatible"]
    joint: Gaussian | None
    asymmetry: float
    worst_pair: tuple[int, int] | None
    pair_gap: float
    smallest_eigenvalue: float
    explanation: str

    @property
    def unique(self) -> bool | None:
        """A joint is always the only one; None if there is none."""
        return None if self.joint is None else True

    @property
    def violation(self) -> str | None:
        """What refutes compatibility; None if compatible."""
        return None if self.joint is not None else self.explanation

    def __str__(self) -> str:
        return f"{self.verdict}: {self.explanation}"

    __repr__ = __str__


def require_gaussian(conditionals: object) -> None:
    """Refuses what are no linear-Gaussian conditionals."""
    if not isinstance(conditionals, GaussianConditionals):
        raise FlexgenError(
            "conditionals",
            f"is {kind_of(conditionals)}",
            "Pass GaussianConditionals(coefficients, variances), or GaussianConditionals.of_joint(law).",
        )


def check_gaussian(conditionals: GaussianConditionals, *, tolerance: float = 1e-6) -> GaussianCheck:
    """Decides whether linear-Gaussian conditionals have a joint: b_ij / s_i² symmetric, and positive definite.

    Args:
        conditionals: N sites; O(N^3).
        tolerance: differences of b_ij / s_i² and b_ji / s_j², in units of 1 / (s_i s_j), up to this count as rounding.

    Raises:
        FlexgenError: other conditionals, or a tolerance that is no finite number of zero or more.
    """
    require_gaussian(conditionals)
    check_tolerance(tolerance, "1 / (s_i s_j)")
    precision = conditionals.precision
    scale = conditionals.variances.sqrt()
    unit = precision * scale[:, None] * scale  # diagonal 1, as partial correlations
    difference = (unit - unit.T).abs()
    i, j = divmod(int(difference.argmax()), conditionals.num_sites)
    gap = float(difference.max())
    smallest = float(torch.linalg.eigvalsh((unit + unit.T) / 2)[0])
    off = precision - torch.diag(precision.diagonal())
    norm = float(off.norm())
    asymmetry = float((off - off.T).norm()) / (2**0.5 * norm) if norm else 0.0
    names, pair = conditionals.names, None
    joint = None
    if gap > tolerance:
        pair = (min(i, j), max(i, j))
        sides = [float(-precision[a, b]) for a, b in (pair, pair[::-1])]
        explanation = (
            f"{names[pair[0]]} depends on {names[pair[1]]} by b/s² = {sides[0]:.6g}, but {names[pair[1]]} on "
            f"{names[pair[0]]} by {sides[1]:.6g}; a joint has one number for both."
        )
    elif smallest <= conditionals.num_sites * torch.finfo(torch.float64).eps:
        explanation = (
            f"b/s² is symmetric, but not positive definite (smallest eigenvalue {smallest:.3g}): the only function "
            "with these conditionals has no finite integral."
        )
    else:
        explanation = f"one joint of {conditionals.num_sites} sites."
        joint = Gaussian.from_precision(conditionals.mean, (precision + precision.T) / 2)
    verdict: Literal["compatible", "incompatible"] = "incompatible" if joint is None else "compatible"
    return GaussianCheck(verdict, joint, asymmetry, pair, gap, smallest, explanation)
