"""Draws of chains cut into units that are independent and exchangeable: whole chains, or long blocks of few chains.

Draws of one chain resemble each other, so n draws say less than n independent ones, and a test that shuffles draws
finds differences where there are none. Everything that compares scans here shuffles, splits and averages *units*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from flexgen.checks import kind_of
from flexgen.errors import DataError, FlexgenError
from flexgen.space import Space

__all__ = ["Unit", "Units", "cut", "features", "unit_means"]

Unit = Literal["auto", "chain"] | int

_MIN_UNITS = 8  # of each scan: 12 870 ways to shuffle two scans
_ENOUGH_CHAINS = 16  # from here on whole chains are the units, which needs no assumption on how fast they mix
_BLOCK_TIMES = 20  # length of a block in autocorrelation times: neighbours then correlate by about 2 %
_SWAPPED = 1e-7  # false-alarm rate of taking the axes to be swapped


@dataclass(frozen=True, eq=False)
class Units:
    """Units of each scan.

    Args:
        draws: of each scan ``[U, L, N]``: units, draws in each, sites.
        kind: what a unit is, in words.
        whole_chains: whether units are whole chains.
    """

    draws: dict[str, Tensor]
    kind: str
    whole_chains: bool

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}: {len(units)}" for name, units in self.draws.items())
        return f"Units({self.kind}; {numbers})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.draws)

    def balanced(self) -> Units:
        """As many units of every scan: the last ones of each. Shuffles are then right even if scans mix unequally."""
        least = min(len(units) for units in self.draws.values())
        return Units({name: units[-least:] for name, units in self.draws.items()}, self.kind, self.whole_chains)

    def thinned(self, max_draws: int) -> Units:
        """Evenly spaced draws of each unit, at most `max_draws` of all scans, but two of each unit if it has them."""
        num_units = sum(len(units) for units in self.draws.values())
        each = max(2, max_draws // num_units)
        return Units(
            {name: units[:, _evenly(units.shape[1], each)] for name, units in self.draws.items()},
            self.kind,
            self.whole_chains,
        )


def cut(draws: Mapping[str, Tensor], unit: Unit = "auto", space: Space | None = None) -> Units:
    """The units of the draws of some scans.

    Args:
        draws: name of a scan -> ``[chains, draws, N]``, two scans or more over the same sites.
        unit: ``"chain"``: whole chains; a number: blocks of so many draws; ``"auto"``: whole chains where every scan
            has 16 or more, else blocks of 20 autocorrelation times, of the slowest site of the slowest scan.
        space: what the sites hold, to check the draws against.

    Raises:
        DataError: other shapes; chains that follow on each other (the axes are swapped); fewer than 8 units of a scan.
        FlexgenError: a unit that is none.
    """
    if not isinstance(draws, Mapping):
        raise DataError("draws", f"is {kind_of(draws)}", "Pass the draws by name of scan: {'forward': .., 'back': ..}.")
    chains = {name: _checked(name, values, space) for name, values in draws.items()}
    if len(chains) < 2:
        raise DataError("draws", f"holds {len(chains)} scan(s)", "Pass the draws of two scans or more, by name.")
    widths = {tuple(values.shape[2:]) for values in chains.values()}
    kinds = {values.is_floating_point() for values in chains.values()}
    if len(widths) > 1 or len(kinds) > 1:
        raise DataError("draws", "differ between scans in sites or in dtype", "Pass draws over the same sites.")
    if unit == "auto":
        many = min(len(values) for values in chains.values()) >= _ENOUGH_CHAINS
        unit = "chain" if many else max(_block_length(name, values) for name, values in chains.items())
    if unit == "chain":
        units, kind = chains, "whole chains"
    elif isinstance(unit, int | np.integer) and not isinstance(unit, bool) and unit >= 1:
        length = int(unit)
        units = {name: _blocks(values, length) for name, values in chains.items()}
        kind = f"blocks of {length} draws"
    else:
        raise FlexgenError("unit", f"is {unit!r}", "Pass 'auto', 'chain', or the number of draws of a block.")
    for name, values in units.items():
        if len(values) < _MIN_UNITS:
            raise DataError(
                "draws",
                f"of scan {name!r} give {len(values)} independent units ({kind})",
                f"Run {_MIN_UNITS} chains or more of each scan ({_ENOUGH_CHAINS} are better), or longer ones.",
            )
    return Units(units, kind, unit == "chain")


def features(units: Units, space: Space | None = None) -> dict[str, Tensor]:
    """Draws as points whose Euclidean distance means something, float64 ``[U, L, F]`` of each scan.

    A category becomes indicators, scaled so that two different ones are at distance 1; numbers are divided by their
    standard deviation over all scans. Euclidean distances of indicators see every joint law; counting the sites that
    differ would see the one-site marginals only, since an expected count is a sum over sites.
    """
    pooled = torch.cat([values.flatten(0, 1) for values in units.draws.values()])  # [n, N]
    columns = []
    for site in range(pooled.shape[1]):
        column = pooled[:, site]
        kind = space.sites[site].kind if space is not None else None
        if kind == "categorical" or (kind is None and not pooled.is_floating_point()):
            codes = torch.unique(column, return_inverse=True)[1]
            columns.append(torch.nn.functional.one_hot(codes).to(torch.float64) * 0.5**0.5)
        else:
            numbers = column.to(torch.float64)
            columns.append((numbers / numbers.std().clamp_min(1e-300))[:, None])
    points = torch.cat(columns, 1)
    counts = [values.shape[0] * values.shape[1] for values in units.draws.values()]
    parts = torch.split(points, counts)
    return {
        name: part.view(*values.shape[:2], -1)  # [U * L, F] -> [U, L, F]
        for (name, values), part in zip(units.draws.items(), parts, strict=True)
    }


def unit_means(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all units and its Monte Carlo standard error, from the spread of the units' own means.

    Args:
        values: ``[U, L, ...]``.
    """
    means = values.to(torch.float64).mean(1)  # [U, ...]
    return means.mean(0), means.std(0) / len(means) ** 0.5


def _checked(name: str, draws: Tensor, space: Space | None) -> Tensor:
    try:
        values = torch.as_tensor(draws).detach()
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"draws[{name!r}]", f"is {kind_of(draws)}", "Pass a tensor [chains, draws, N].") from error
    if values.ndim < 3 or min(values.shape[:3]) < 1 or values.shape[1] < 2:
        raise DataError(
            f"draws[{name!r}]", f"has shape {tuple(values.shape)}", "Pass [chains, draws, N], two draws or more."
        )
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise DataError(f"draws[{name!r}]", "holds a number that is not finite", "Look at the chain that made it.")
    if space is not None and (values.ndim > 3 or values.shape[2] != space.num_sites):
        raise DataError(f"draws[{name!r}]", f"has shape {tuple(values.shape)}", f"Pass {space.num_sites} sites.")
    values = values.flatten(2)  # [chains, draws, N, *site] -> [chains, draws, N * E]
    _refuse_swapped(name, values)
    return values


def _refuse_swapped(name: str, chains: Tensor) -> None:
    """Neighbouring chains of one scan are independent; if their means follow on each other, time is the first axis."""
    if len(chains) < _ENOUGH_CHAINS:
        return
    means = chains.to(torch.float64).mean(1)  # [chains, N]
    means = means - means.mean(0)
    power = (means**2).sum(0)
    moving = power > 1e-20 * chains.shape[1]
    correlation = ((means[1:] * means[:-1]).sum(0) / power)[moving]
    alarm = float(stats.norm.isf(_SWAPPED / max(len(correlation), 1)))
    if bool((correlation * len(means) ** 0.5 > alarm).any()):
        raise DataError(
            f"draws[{name!r}]",
            f"has shape {tuple(chains.shape)}, and its neighbouring chains resemble each other",
            "Pass [chains, draws, N]; samplers return [draws, chains, N]: call draws.transpose(0, 1), or pass their "
            "whole result.",
        )


def _block_length(name: str, chains: Tensor) -> int:
    """The least power of two that is 20 times the autocorrelation time, as its own batch means tell it."""
    values = chains.to(torch.float64)
    variance = values.flatten(0, 1).var(0)
    moves = variance > 0
    length = 1
    while length <= values.shape[1]:
        blocks = _blocks(values, length)
        if len(blocks) < _MIN_UNITS:
            break
        time = length * (blocks.mean(1).var(0) / variance)[moves]  # of each site
        if len(time) == 0 or length >= _BLOCK_TIMES * float(time.max()):
            return length
        length *= 2
    raise DataError(
        f"draws[{name!r}]",
        f"are too few to tell how far apart they must be ({len(chains)} chains of {chains.shape[1]} draws)",
        f"Run {_ENOUGH_CHAINS} chains or more, or longer ones; or give unit= as the length of a block.",
    )


def _blocks(chains: Tensor, length: int) -> Tensor:
    """The last draws of each chain in blocks, ``[U, length, N]``, in the order of chains and time."""
    number = chains.shape[1] // length
    if number == 0:
        return chains[:0, :1]
    return chains[:, -number * length :].reshape(len(chains) * number, length, -1)


def _evenly(size: int, most: int) -> Tensor:
    """At most so many places of 0 .. size - 1, evenly spread, the middle of each stretch."""
    if size <= most:
        return torch.arange(size)
    return ((torch.arange(most, dtype=torch.float64) + 0.5) * size / most).long()
