"""Checks of arguments that the diagnostics of networks share. Each error names the argument, its value and the fix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import is_number, kind_of, randomness
from flexgen.errors import DataError, FlexgenError

__all__ = [
    "check_level",
    "check_margin",
    "checked_observed",
    "checked_rows",
    "checked_seed",
    "checked_sites",
    "numbers",
    "tensor",
]


def check_margin(margin: float | None, unit: str = "nats") -> None:
    """Refuses what is no margin of equivalence."""
    if margin is not None and (not is_number(margin) or not 0 < margin < math.inf):
        raise FlexgenError("margin", f"is {kind_of(margin)}", f"Pass a positive number of {unit}, or None.")


def check_level(level: float) -> None:
    """Refuses what is no coverage of an interval."""
    if not is_number(level) or not 0 < level < 1:
        raise FlexgenError("level", f"is {kind_of(level)}", "Pass a coverage between 0 and 1, such as 0.95.")


def checked_seed(generator: Any) -> int:
    """A seed from a source of random numbers, or what stands for one."""
    return rng.seed_from(randomness("generator", generator))


def tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise DataError(name, f"is {kind_of(value)}", "Pass a tensor.")
    return value.detach()


def numbers(name: str, value: Any, size: int | None = None) -> Tensor:
    """A tensor ``[size]`` as float64 on the CPU."""
    given = tensor(name, value)
    if given.ndim != 1 or (size is not None and len(given) != size):
        what = "values" if size is None else f"{size} entries, one a value"
        raise DataError(name, f"have shape {tuple(given.shape)}", f"Pass {what}, [M].")
    return given.to("cpu", torch.float64)


def checked_rows(name: str, x: Any, num_sites: int) -> Tensor:
    """Data rows ``[R, N]``."""
    rows = tensor(name, x)
    if rows.ndim != 2 or rows.shape[1] != num_sites:
        raise DataError(name, f"has shape {tuple(rows.shape)}", f"Pass rows [R, {num_sites}], a column a site.")
    return rows


def checked_observed(name: str, observed: Any, present: Tensor) -> Tensor:
    """A set of sites of each row, bool ``[R, N]``, without the missing; all present ones by default."""
    if observed is None:
        return present
    given = tensor(name, observed)
    if given.dtype != torch.bool:
        raise FlexgenError(name, f"holds {given.dtype}", "Pass True and False, one a site.")
    num_rows, num_sites = present.shape
    if tuple(given.shape) not in ((num_sites,), (num_rows, num_sites)):
        raise FlexgenError(name, f"has shape {tuple(given.shape)}", f"Pass [{num_sites}] or [{num_rows}, {num_sites}].")
    return given.to(present.device) & present


def checked_sites(name: str, sites: Any, num_sites: int, dimensions: tuple[int, ...]) -> Tensor:
    """Numbers of sites, int64 on the CPU."""
    given: Tensor = sites if isinstance(sites, Tensor) else _listed(name, sites)
    if given.ndim not in dimensions or given.is_floating_point() or given.dtype == torch.bool:
        shapes = " or ".join("[" + ", ".join("RBk"[-n:]) + "]" for n in dimensions)
        raise FlexgenError(
            name, f"has shape {tuple(given.shape)}, {given.dtype}", f"Pass whole numbers, {shapes}: numbers of sites."
        )
    outside = (given < 0) | (given >= num_sites)
    if bool(outside.any()):
        raise FlexgenError(name, f"holds {int(given[outside][0])}", f"Sites are numbered 0 to {num_sites - 1}.")
    return given.detach().cpu().long()


def _listed(name: str, sites: Any) -> Tensor:
    try:
        return torch.tensor(sites)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FlexgenError(name, f"is {kind_of(sites)}", "Pass a tensor of numbers of sites.") from error
