"""Random rates: distributions on [0, 1] from which each row draws its own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import MOST_ENTRIES, callable_, doors, number, positive, real_tensor, source, whole_number
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness
from samplers.laws.select import fork

__all__ = ["Beta", "Cosine", "Rate", "TruncatedNormal", "Uniform", "as_rate"]

# Gauss rules with this many nodes are exact for polynomials up to degree 2 * nodes - 1.
_EXTRA_NODES = 64
_MOST_NODES = 2048  # whose matrix has an eigendecomposition in seconds

LEAST_RATE = 2.0**-53
"""As `Uniform` draws them: a rate below asks for nothing in any row there is, and its likelihood weight would be an
infinity times nothing."""

_BETA_PARAMETERS = (1e-3, 1e9)
_LEAST_MASS = 1e-280  # of a truncated normal, in the tail where probabilities are exact


def _num_rows(argument: str, value: Any) -> int:
    return whole_number(argument, value, most=MOST_ENTRIES)


def _num_nodes(argument: str, value: Any) -> int:
    return whole_number(argument, value, 1, most=_MOST_NODES)


def _probabilities(argument: str, value: Any) -> Tensor:
    u = real_tensor(argument, value, "of probabilities in (0, 1]", error=FlexgenError)
    if not bool(((u >= 0) & (u <= 1)).all()):
        raise FlexgenError(argument, "holds what is no probability", "Pass numbers in (0, 1].")
    return u


class Rate(ABC):
    """A distribution on [0, 1], given by its quantile function."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        doors(
            cls,
            quantile={"u": _probabilities},
            draw={"num_rows": _num_rows, "generator": source},
            nodes={"num_nodes": _num_nodes},
        )

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of the distribution function, at float64 `u` in (0, 1]."""

    def draw(self, num_rows: int, *, generator: Randomness) -> Tensor:
        """One rate a row, float64 ``[B]``, independent."""
        num_rows, generator = _num_rows("num_rows", num_rows), source("generator", generator)
        # 1 - u lies in (0, 1]: a rate of exactly zero would have no likelihood weight.
        return self.quantile(1.0 - rng.uniform((num_rows,), generator=generator, dtype=torch.float64))

    def nodes(self, num_nodes: int) -> tuple[Tensor, Tensor]:
        """Values and probabilities of a discrete rate with (nearly) the same moments: a Gauss rule."""
        u, probability = _gauss_beta(1.0, 1.0, _num_nodes("num_nodes", num_nodes))
        return self.quantile(u), probability

    def expect(self, f: Callable[[Tensor], Tensor], degree: int = 0) -> Tensor:
        """E f(t), where f maps ``[M]`` to ``[M, ...]`` and is about as smooth as a polynomial of this degree."""
        callable_("f", f, "Pass a function of a tensor.")
        degree = whole_number("degree", degree, most=2 * (_MOST_NODES - _EXTRA_NODES))
        value, probability = self.nodes(degree // 2 + _EXTRA_NODES)
        mean: Tensor = torch.tensordot(probability, f(value), dims=1)
        return mean

    @property
    def mean(self) -> float:
        return float(self.expect(lambda t: t))

    @property
    def std(self) -> float:
        mean = self.mean
        return math.sqrt(float(self.expect(lambda t: (t - mean) ** 2)))


@dataclass(frozen=True)
class _Constant(Rate):
    """The same rate for every row."""

    value: float

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.value)

    def draw(self, num_rows: int, *, generator: Randomness) -> Tensor:
        return torch.full((num_rows,), self.value, dtype=torch.float64, device=generator.device)

    def nodes(self, num_nodes: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return torch.tensor([self.value], dtype=torch.float64), torch.ones(1, dtype=torch.float64)


@dataclass(frozen=True)
class Uniform(Rate):
    """Uniform on [low, high]. MDLM and LLaDA draw t = (1 - eps) u + eps, which is ``Uniform(eps, 1)``."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        number("high", self.high, 0.0, 1.0)
        number("low", self.low, 0.0, self.high)

    def quantile(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class Cosine(Rate):
    """cos(pi u / 2), u uniform (MaskGIT, Chang et al. 2022): mean 2/pi, most mass near 1."""

    def quantile(self, u: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * (1.0 - u)).clamp_min(0.0)


@dataclass(frozen=True)
class TruncatedNormal(Rate):
    """A normal distribution of this location and scale, conditioned on [low, high] (MAGE, Li et al. 2023)."""

    loc: float
    scale: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        number("loc", self.loc)
        positive("scale", self.scale)
        number("high", self.high, 0.0, 1.0)
        number("low", self.low, 0.0, self.high)
        _, bottom, top = self._ends(torch.float64)
        if not float(top - bottom) > _LEAST_MASS and self.low < self.high:
            problem = f"is {self.loc} at scale {self.scale}: no mass that can be told from 0 lies between the ends"
            raise FlexgenError("loc", problem, "Move it towards [low, high], or widen the scale.")

    def _ends(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[float, Tensor, Tensor]:
        """The distribution function at both ends; of the mirrored normal (-1) where both lie above its centre."""
        ends = (torch.tensor([self.low, self.high], dtype=dtype, device=device) - self.loc) / self.scale
        sign = -1.0 if bool(ends[0] > 0) else 1.0  # small probabilities are exact, those near 1 are not
        # By erfc, whose small values are accurate; torch's ndtr is 0 below -8.
        bottom, top = 0.5 * torch.erfc(-(ends if sign > 0 else -ends.flip(0)) / math.sqrt(2.0))
        return sign, bottom, top

    def quantile(self, u: Tensor) -> Tensor:
        sign, bottom, top = self._ends(u.dtype, u.device)
        normal: Tensor = torch.special.ndtri(bottom + (top - bottom) * (u if sign > 0 else 1.0 - u))
        return (self.loc + sign * self.scale * normal).clamp(self.low, self.high)


@dataclass(frozen=True)
class Beta(Rate):
    """Beta(a, b). Simformer (Gloeckler et al. 2024) conditions on sites at rate Beta(1, 4)."""

    a: float
    b: float

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            number(name, positive(name, getattr(self, name)), *_BETA_PARAMETERS)

    def quantile(self, u: Tensor) -> Tensor:  # noqa: ARG002
        raise FlexgenError("rate", f"{self!r} has no closed quantile function", "Use draw, mean or expect.")

    def draw(self, num_rows: int, *, generator: Randomness) -> Tensor:
        # Each by randomness of its own, since how many proposals the first makes depends on the slowest row.
        first = _log_gamma(self.a, num_rows, generator=fork(generator, "a"))
        second = _log_gamma(self.b, num_rows, generator=fork(generator, "b"))
        return torch.sigmoid(first - second).clamp_min(LEAST_RATE)

    def nodes(self, num_nodes: int) -> tuple[Tensor, Tensor]:
        return _gauss_beta(float(self.a), float(self.b), num_nodes)


def as_rate(argument: str, rate: float | Rate) -> Rate:
    """A number in [0, 1] as a constant rate; a `Rate` as it is."""
    return rate if isinstance(rate, Rate) else _Constant(number(argument, rate, 0.0, 1.0))


@lru_cache(maxsize=32)
def _gauss_beta(a: float, b: float, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights with E f(t) = sum of weight * f(node) under Beta(a, b), exact to degree 2 * num_nodes - 1.

    Golub & Welsch (1969): eigenvalues of the recurrence matrix of the Jacobi polynomials, moved from [-1, 1].
    """
    alpha, beta = b - 1.0, a - 1.0
    n = torch.arange(1, num_nodes, dtype=torch.float64)
    twice = 2 * n + alpha + beta
    diagonal = torch.empty(num_nodes, dtype=torch.float64)
    diagonal[0] = (beta - alpha) / (alpha + beta + 2)
    diagonal[1:] = (beta**2 - alpha**2) / (twice * (twice + 2))
    square = 4 * n * (n + alpha) * (n + beta) * (n + alpha + beta) / (twice**2 * (twice + 1) * (twice - 1))
    square[:1] = 4 * (1 + alpha) * (1 + beta) / ((2 + alpha + beta) ** 2 * (3 + alpha + beta))  # 0/0 above if a+b=1
    side = square.sqrt()
    x, vectors = torch.linalg.eigh(diagonal.diag() + side.diag(1) + side.diag(-1))
    return (0.5 * (1 + x)).clamp(0.0, 1.0), vectors[0] ** 2


def _log_gamma(shape: float, num_rows: int, *, generator: Randomness) -> Tensor:
    """log of Gamma(shape, 1) by Marsaglia & Tsang (2000); proposals until every row has accepted one.

    In logarithms, since Gamma(0.01) is below the least positive float64 once in 2000 draws.
    """
    boosted = shape + 1 if shape < 1 else shape
    d = boosted - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    value = torch.full((num_rows,), math.nan, dtype=torch.float64, device=generator.device)
    boost = 1.0 - rng.uniform((num_rows,), generator=generator, dtype=torch.float64)
    while bool(value.isnan().any()):
        z = rng.normal((num_rows,), generator=generator, dtype=torch.float64)
        v = (1.0 + c * z) ** 3
        u = 1.0 - rng.uniform((num_rows,), generator=generator, dtype=torch.float64)
        accepted = (v > 0) & (u.log() < 0.5 * z**2 + d - d * v + d * v.clamp_min(1e-300).log())
        value = torch.where(value.isnan() & accepted, d * v, value)
    # Gamma(s) = Gamma(s + 1) * U^(1/s) for s < 1.
    return value.log() + boost.log() / shape if shape < 1 else value.log()
