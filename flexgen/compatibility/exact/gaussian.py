"""Linear-Gaussian conditionals x_i | rest ~ N(a_i + Σ_j b_ij x_j, s_i²), and whether they have a joint.

With J = diag(1/s²)(I - B) they have one iff J is symmetric and positive definite (Besag 1974); J is then its precision
matrix. Names here -> elsewhere: coefficients B, variances s², intercepts a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.linalg import solve_discrete_lyapunov
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.exact.cycles import Floats
from flexgen.compatibility.exact.family import check_tolerance
from flexgen.compatibility.exact.scan_orders import Scan, weighted_orders
from flexgen.errors import FlexgenError
from flexgen.exact import Gaussian

__all__ = [
    "GaussianCheck",
    "GaussianConditionals",
    "GaussianScanDivergence",
    "check_gaussian",
    "closest_gaussian",
    "gaussian_scan_divergence",
    "stationary_gaussian",
]


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
    def of_joint(cls, distribution: Gaussian) -> GaussianConditionals:
        """The complete conditionals of a multivariate normal distribution."""
        precision = distribution.precision
        variances = 1 / precision.diagonal()
        coefficients = -precision * variances[:, None]
        coefficients.fill_diagonal_(0.0)
        return cls(coefficients, variances, distribution.mean - coefficients @ distribution.mean)

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
            "Pass GaussianConditionals(coefficients, variances), or GaussianConditionals.of_joint(distribution).",
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


# The distribution that each scan of linear-Gaussian conditionals converges to, and the joint that comes closest to
# them.

_DIRECT_SITES = 32  # up to here the covariances of mixtures of scans are solved by elimination


@dataclass(frozen=True, eq=False)
class GaussianLaw:
    """Where a scan of linear-Gaussian conditionals converges.

    Args:
        mean: ``[N]``, the same for every scan.
        covariance: ``[N, N]``, exact.
        is_normal: whether the distribution is a normal one: for a fixed order always; chosen at random along the way,
            it is a mixture with these moments.
    """

    mean: Tensor
    covariance: Tensor
    is_normal: bool

    def __str__(self) -> str:
        kind = "normal distribution" if self.is_normal else "mixture of normal distributions"
        deviations = self.covariance.diagonal().sqrt()
        return (
            f"{kind} of {len(self.mean)} sites: means {_listed(self.mean)}; standard deviations {_listed(deviations)}"
        )

    __repr__ = __str__


def stationary_gaussian(conditionals: GaussianConditionals, scan: Scan = "random") -> GaussianLaw:
    """The stationary distribution of a scan.

    Args:
        conditionals: N sites.
        scan: ``"random"``, an order such as ``(0, 1, 2)`` (the distribution after a sweep that updates x_0 first), or a
            mixture of orders ``{(0, 1, 2): 0.5, (2, 1, 0): 0.5}``. Sites go by name too.

    Raises:
        FlexgenError: a scan that never updates some site, or that does not converge.

    A sweep takes a covariance Σ to FΣF' + Q; the fixed point solves a discrete Lyapunov equation. Q being positive
    definite, a fixed point that is positive definite exists iff the sweeps' second moments converge.
    """
    require_gaussian(conditionals)
    size = conditionals.num_sites
    sweeps = [(weight, *_sweep(conditionals, order)) for weight, order in _orders(scan, size, conditionals.names)]
    if len(sweeps) == 1:
        _, move, noise = sweeps[0]
        rate = float(np.abs(np.linalg.eigvals(move)).max())
        if rate >= 1 - 1e-12:
            raise FlexgenError(
                "conditionals", f"diverge under this scan (each sweep scales by {rate:.6g})", "Shrink the coefficients."
            )
        covariance = solve_discrete_lyapunov(move, noise)
    else:
        covariance = _mixed(sweeps, size)
    covariance = (covariance + covariance.T) / 2
    spectrum = np.linalg.eigvalsh(covariance)
    if not spectrum[0] > 0:
        raise _diverges()
    return GaussianLaw(conditionals.mean, torch.from_numpy(covariance), len(sweeps) == 1)


@dataclass(frozen=True, eq=False)
class GaussianScanDivergence:
    """How far the normal distributions of two scans lie apart. Their means agree.

    Args:
        kl: KL(first || second), nats.
        kl_reverse: KL(second || first), nats.
        first, second: the distributions.
    """

    kl: float
    kl_reverse: float
    first: GaussianLaw
    second: GaussianLaw

    def __str__(self) -> str:
        return f"KL {self.kl:.6g} nats, reversed {self.kl_reverse:.6g} nats"

    __repr__ = __str__


def gaussian_scan_divergence(conditionals: GaussianConditionals, first: Scan, second: Scan) -> GaussianScanDivergence:
    """KL divergences, nats, between the stationary distributions of two fixed orders; arguments as in
    `stationary_gaussian`.

    Raises:
        FlexgenError: also a scan whose distribution is a mixture, of which only the moments are known.
    """
    distributions = [stationary_gaussian(conditionals, scan) for scan in (first, second)]
    for name, distribution in zip(("first", "second"), distributions, strict=True):
        if not distribution.is_normal:
            raise FlexgenError(
                name,
                "is a scan drawn at random, whose distribution is a mixture of normal ones without a closed form",
                "Compare fixed orders, or the covariances by stationary_gaussian(conditionals, scan).",
            )
    one, two = (distribution.covariance for distribution in distributions)
    return GaussianScanDivergence(_kl(one, two), _kl(two, one), distributions[0], distributions[1])


def _kl(one: Tensor, two: Tensor) -> float:
    """KL(N(0, one) || N(0, two)), nats: ½ Σ (λ - 1 - log λ) over the eigenvalues of two^-1 one."""
    root = torch.linalg.cholesky(two)
    half = torch.linalg.solve_triangular(root, torch.linalg.cholesky(one), upper=False)
    off = torch.linalg.eigvalsh(half @ half.T) - 1
    return max(0.0, 0.5 * float((off - torch.log1p(off)).sum()))


@dataclass(frozen=True, eq=False)
class ClosestGaussian:
    """The I-projection: of all distributions r the one with the least Σ_i KL(r || r_{-i} q_i), which is a normal
    distribution.

    Args:
        joint: the distribution.
        objective: nats; a lower bound on Σ_i E_p KL(p_i || q_i) under any distribution p that has second moments.
        residual: relative size of the gradient, |Ω D^-1 Ω - J'diag(s²)J| / |J'diag(s²)J|; zero at the optimum.
    """

    joint: Gaussian
    objective: float
    residual: float

    def __str__(self) -> str:
        return (
            f"closest joint (I): sum of KL(r || r_{{-i}} q_i), nats = {self.objective:.6g}, a normal distribution of "
            f"{len(self.joint.mean)} sites; residual {self.residual:.2g}"
        )

    __repr__ = __str__


def closest_gaussian(conditionals: GaussianConditionals, *, num_iterations: int = 2000) -> ClosestGaussian:
    """The closest joint of linear-Gaussian conditionals, in the sense of ``closest_joint(kind="I")``.

    For given moments a normal distribution has the largest conditional entropies, so it is the closest of all
    distributions. Its mean is the conditionals' own. With Ω its precision, D = diag Ω and
    M = (I - B)'diag(1/s²)(I - B), the gradient of the convex objective vanishes iff Ω D^-1 Ω = M, that is, iff
    W = (D^-½ M D^-½)^½ has a unit diagonal; then Ω = D^½ W D^½. Solved by scaling D.

    Raises:
        FlexgenError: if I - B is singular, or the scaling does not converge.
    """
    require_gaussian(conditionals)
    whole_number("num_iterations", num_iterations, 1)
    factor = (torch.eye(conditionals.num_sites, dtype=torch.float64) - conditionals.coefficients) / (
        conditionals.variances.sqrt()[:, None]
    )
    mean, target = conditionals.mean, factor.T @ factor
    scale = target.diagonal().sqrt() / conditionals.variances.sqrt()
    for _ in range(num_iterations):
        root = scale.rsqrt()
        values, vectors = torch.linalg.eigh(target * root[:, None] * root)
        square_root = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
        off = square_root.diagonal()
        if float((off - 1).abs().max()) < 1e-14:
            break
        scale = scale * off**1.5
    precision = square_root / root[:, None] / root
    precision = (precision + precision.T) / 2
    balance = (precision / precision.diagonal()) @ precision
    residual = float((balance - target).norm() / target.norm())
    if not residual < 1e-8:
        raise FlexgenError("conditionals", f"have no closest joint within reach (residual {residual:.3g})", "Shrink B.")
    joint = Gaussian.from_precision(mean, precision)
    logs = (conditionals.variances * precision.diagonal()).log()
    objective = 0.5 * float((logs - 1).sum() + (target * joint.covariance).sum())
    return ClosestGaussian(joint, max(0.0, objective), residual)


def _listed(numbers: Tensor, shown: int = 6) -> str:
    """The first few of many numbers."""
    return ", ".join([f"{number:.6g}" for number in numbers[:shown].tolist()] + [".."] * (len(numbers) > shown))


def _diverges() -> FlexgenError:
    return FlexgenError(
        "conditionals", "diverge under this scan: no stationary covariance exists", "Shrink the coefficients."
    )


def _sweep(conditionals: GaussianConditionals, order: Sequence[int]) -> tuple[Floats, Floats]:
    """F and Q: a sweep takes x - mean to F (x - mean) plus noise of covariance Q."""
    move, noise = np.eye(conditionals.num_sites), np.zeros((conditionals.num_sites,) * 2)
    coefficients = conditionals.coefficients.numpy()
    for site in order:
        move[site] = coefficients[site] @ move
        noise[site] = coefficients[site] @ noise
        noise[:, site] = noise @ coefficients[site]
        noise[site, site] += float(conditionals.variances[site])
    return move, noise


def _mixed(sweeps: list[tuple[float, Floats, Floats]], size: int) -> Floats:
    """Σ = Σ_k w_k (F_k Σ F_k' + Q_k)."""
    right = sum((weight * noise for weight, _, noise in sweeps), np.zeros((size, size)))

    def balance(vector: Floats) -> Floats:
        covariance = vector.reshape(size, size)
        moved = sum((weight * (move @ covariance @ move.T) for weight, move, _ in sweeps), np.zeros((size, size)))
        return np.asarray((covariance - moved).reshape(-1))

    if size <= _DIRECT_SITES:
        matrix = np.eye(size * size) - sum(weight * np.kron(move, move) for weight, move, _ in sweeps)
        try:
            return np.asarray(np.linalg.solve(matrix, right.reshape(-1)).reshape(size, size))
        except np.linalg.LinAlgError as error:
            raise _diverges() from error
    operator = LinearOperator((size * size,) * 2, matvec=balance, dtype=np.float64)
    solved, failed = gmres(operator, right.reshape(-1), rtol=1e-13, atol=0.0, restart=100, maxiter=50)
    if failed:
        raise FlexgenError("conditionals", "mix too slowly for this scan's covariance", "Shrink the coefficients.")
    return np.asarray(solved.reshape(size, size))


def _orders(scan: Scan, size: int, names: Sequence[str]) -> list[tuple[float, tuple[int, ...]]]:
    """A scan as orders with weights; together they update every site."""
    orders = weighted_orders(scan, [(site,) for site in range(size)], size, names)
    blocks = [block for _, order in orders for block in order]
    if max(map(len, blocks)) > 1 or {block[0] for block in blocks} != set(range(size)):
        raise FlexgenError("scan", f"is {scan!r}", f"Update each of the sites 0 to {size - 1}, one at a time.")
    return [(weight, tuple(block[0] for block in order)) for weight, order in orders]
