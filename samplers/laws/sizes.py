"""How many sites: laws of a count between 0 and n, the number of sites that a row holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import MOST_ENTRIES, doors, number, one_of, source, whole_number, whole_tensor
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness
from samplers.laws.rates import Rate, as_rate

__all__ = ["Exactly", "PowerSize", "Share", "Size", "UniformSize", "as_size"]


def _counts(argument: str, value: Any) -> Tensor:
    return whole_tensor(argument, value, "[B]", ndim=1)


def _num_sites(argument: str, value: Any) -> int:
    return whole_number(argument, value, most=MOST_ENTRIES)


class Size(ABC):
    """A law of a count, given n. Counts are relative to the entries *present* in the row."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        doors(
            cls,
            draw={"n": _counts, "generator": source},
            pmf={"n": _num_sites},
            probability={"count": _counts, "n": _counts},
        )

    @abstractmethod
    def draw(self, n: Tensor, *, generator: Randomness) -> Tensor:
        """A count a row, int64 ``[B]``, between 0 and n ``[B]``."""

    @abstractmethod
    def pmf(self, n: int) -> Tensor:
        """Probability of each count, float64 ``[n + 1]``."""

    def probability(self, count: Tensor, n: Tensor) -> Tensor:  # noqa: ARG002
        """pmf(n)[count], row by row, float64 ``[B]``."""
        raise FlexgenError(
            "weight",
            f"is 'likelihood', but {self!r} does not visit every size",
            "Use UniformSize or PowerSize, or weight='one' or 'mean'.",
        )


@dataclass(frozen=True)
class Exactly(Size):
    """`count` sites, or all of them in rows that hold fewer."""

    count: int

    def __post_init__(self) -> None:
        whole_number("count", self.count, 0)

    def draw(self, n: Tensor, *, generator: Randomness) -> Tensor:  # noqa: ARG002
        return n.clamp_max(self.count)

    def pmf(self, n: int) -> Tensor:
        return _one_hot(min(self.count, n), n)


@dataclass(frozen=True)
class Share(Size):
    """A share of the row's sites, its rate a number or drawn for each row."""

    rate: float | Rate
    rounding: Literal["floor", "ceil", "round"] = "round"

    def __post_init__(self) -> None:
        as_rate("rate", self.rate)
        one_of("rounding", self.rounding, ("floor", "ceil", "round"))

    def draw(self, n: Tensor, *, generator: Randomness) -> Tensor:
        return self._count(as_rate("rate", self.rate).draw(len(n), generator=generator), n)

    def pmf(self, n: int) -> Tensor:
        rate = as_rate("rate", self.rate)
        if not isinstance(self.rate, Rate):
            return _one_hot(int(self._count(rate.nodes(1)[0], torch.tensor(n))), n)
        # The quantile function is monotone: a grid finer than 2^-20 of probability finds where the count steps.
        u = (torch.arange(1 << 20, dtype=torch.float64) + 0.5) / (1 << 20)
        return torch.bincount(self._count(rate.quantile(u), torch.tensor(n)), minlength=n + 1).double() / (1 << 20)

    def _count(self, rate: Tensor, n: Tensor) -> Tensor:
        count: Tensor = getattr(torch, self.rounding)(rate * n)
        return count.long()


@dataclass(frozen=True)
class UniformSize(Size):
    """Uniform on low .. n - leave (on the nearest possible count where that is empty)."""

    low: int = 1
    leave: int = 0

    def __post_init__(self) -> None:
        whole_number("low", self.low, 0)
        whole_number("leave", self.leave, 0)

    def draw(self, n: Tensor, *, generator: Randomness) -> Tensor:
        low, choices = self._range(n)
        u = rng.uniform((len(n),), generator=generator, dtype=torch.float64)
        return low + (u * choices).long()

    def pmf(self, n: int) -> Tensor:
        low, choices = (int(end) for end in self._range(torch.tensor(n)))
        pmf = torch.zeros(n + 1, dtype=torch.float64)
        pmf[low : low + choices] = 1.0 / choices
        return pmf

    def probability(self, count: Tensor, n: Tensor) -> Tensor:  # noqa: ARG002
        return 1.0 / self._range(n)[1].double()

    def _range(self, n: Tensor) -> tuple[Tensor, Tensor]:
        high = (n - self.leave).clamp_min(0)
        low = high.clamp_max(self.low)
        return low, high - low + 1


@dataclass(frozen=True)
class PowerSize(Size):
    """The target's size when the observed sites number k = 0 .. n - 1 with P(k) proportional to (k + 1)^power.

    Power 0 is uniform; power 1 spends most draws on well observed rows, as imputation asks for them.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        number("power", self.power, -16.0, 16.0)

    def draw(self, n: Tensor, *, generator: Randomness) -> Tensor:
        mass = self._mass(int(n.max()) if len(n) else 0, n.device)
        total = mass.cumsum(0)
        u = rng.uniform((len(n),), generator=generator, dtype=torch.float64)
        observed = torch.searchsorted(total, u * total[(n - 1).clamp_min(0)], right=True)
        return n - torch.minimum(observed, (n - 1).clamp_min(0))

    def pmf(self, n: int) -> Tensor:
        if n == 0:
            return _one_hot(0, 0)
        mass = self._mass(n, torch.device("cpu"))
        return torch.cat([torch.zeros(1, dtype=torch.float64), (mass / mass.sum()).flip(0)])

    def probability(self, count: Tensor, n: Tensor) -> Tensor:
        if count.shape != n.shape or count.device != n.device:
            raise FlexgenError("count", f"has shape {tuple(count.shape)}, n {tuple(n.shape)}", "Let the two agree.")
        mass = self._mass(int(n.max()) if len(n) else 0, n.device)
        total = mass.cumsum(0)
        return mass[(n - count).clamp(0, len(mass) - 1)] / total[(n - 1).clamp_min(0)]

    def _mass(self, n: int, device: torch.device) -> Tensor:
        if n > MOST_ENTRIES:
            raise FlexgenError("n", f"is {n}", f"Pass at most {MOST_ENTRIES}.")
        """(k + 1)^power for k = 0 .. n - 1 (one entry for an empty row)."""
        return torch.arange(1, max(n, 1) + 1, dtype=torch.float64, device=device) ** self.power


def as_size(argument: str, size: int | float | Rate | Size) -> Size:
    """An integer is a count, a fraction or a `Rate` a rounded share, a `Size` itself."""
    if isinstance(size, Size):
        return size
    if isinstance(size, int | np.integer) and not isinstance(size, bool):
        return Exactly(whole_number(argument, size, 0))
    return Share(size) if isinstance(size, Rate) else Share(number(argument, size, 0.0, 1.0))


def _one_hot(count: int, n: int) -> Tensor:
    pmf = torch.zeros(n + 1, dtype=torch.float64)
    pmf[count] = 1.0
    return pmf
