"""Checks of arguments that the tests and estimates from samples share.

Options that cannot be used raise `FlexgenError`; data, and what a function of the caller made of data, `DataError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import is_number, kind_of, renamed, whole_number
from flexgen.errors import DataError, FlexgenError
from flexgen.rng import Randomness, Streams
from flexgen.space import Space

__all__ = [
    "DrawsOfScans",
    "Unit",
    "check_callable",
    "check_confidence",
    "check_generator",
    "check_margin",
    "check_significance",
    "check_space",
    "checked_draws",
    "checked_unit",
    "numbers",
]


class ChainDraws(Protocol):
    """What a run of chains returns, as far as it is read here: the results of samplers are such."""

    @property
    def draws(self) -> Tensor:
        """``[draws, chains, N]``; time comes first here, other than in bare tensors of draws."""


DrawsOfScans: TypeAlias = Mapping[str, Tensor | ChainDraws]
Unit: TypeAlias = Literal["auto", "chain"] | int


def check_significance(value: Any) -> None:
    """Of a test: the probability of refuting what is true."""
    if not (is_number(value) and 0 < value < 1):
        raise FlexgenError("significance", f"is {kind_of(value)}", "Pass a probability between 0 and 1, such as 0.05.")


def check_confidence(value: Any) -> None:
    """Of intervals: the probability that all of them together hold the truth."""
    if not (is_number(value) and 0 < value < 1):
        raise FlexgenError("confidence", f"is {kind_of(value)}", "Pass a probability between 0 and 1, such as 0.95.")


def check_margin(value: Any, what: str) -> None:
    """Within an infinite margin everything would be equivalent."""
    if value is not None and not (is_number(value) and 0 < value < math.inf):
        raise FlexgenError("margin", f"is {kind_of(value)}", f"Pass a positive {what}, or None.")


def check_generator(value: Any) -> Randomness | int:
    """Randomness has to be named: an answer that nobody can repeat is no figure."""
    if isinstance(value, torch.Generator | Streams):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise FlexgenError("generator", f"is {kind_of(value)}", "Pass a torch.Generator, or a whole number as seed.")


def check_callable(argument: str, value: Any, fix: str) -> None:
    if not callable(value):
        raise FlexgenError(argument, f"is {kind_of(value)}, which cannot be called", fix)


def check_space(value: Any) -> None:
    if value is not None and not isinstance(value, Space):
        raise FlexgenError("space", f"is {kind_of(value)}", "Pass a flexgen Space, or None.")


def checked_unit(value: Any) -> Unit:
    """See `units.cut`; numpy's whole numbers, too."""
    fix = "Pass 'auto', 'chain', or the number of draws of a block."
    if value == "auto" or value == "chain":
        return value  # type: ignore[no-any-return]
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise FlexgenError("unit", f"is {value!r}", fix)
    return whole_number("unit", value, 1)


def checked_draws(draws: Any) -> Mapping[str, Tensor]:
    """Draws ``[chains, draws, N]`` by the names of their scans, on the CPU; shapes are for `units.cut` to check.

    Of what holds its draws as `.draws`, ``[draws, chains, N]``, the axes are swapped, and whole numbers are integers.
    """
    if not isinstance(draws, Mapping):
        raise DataError("draws", f"is {kind_of(draws)}", "Pass a dict: name of a scan -> its draws [chains, draws, N].")
    return {str(name): _of_scan(f"draws[{name!r}]", values) for name, values in draws.items()}


def _of_scan(argument: str, value: Any) -> Tensor:
    fix = "Pass numbers [chains, draws, N], or the result of a sampler's run."
    if isinstance(value, Tensor | np.ndarray):
        return numbers(argument, value, fix).cpu()
    with renamed(draws=argument):  # a run that stored none says so
        stored = getattr(value, "draws", None)
    if stored is None:
        return numbers(argument, value, fix).cpu()
    tensor = numbers(argument, stored, fix).cpu()
    if tensor.ndim < 3:
        raise DataError(argument, f"holds draws of shape {tuple(tensor.shape)}", "They must be [draws, chains, N].")
    if tensor.is_floating_point() and bool((tensor == tensor.round()).all() & tensor.isfinite().all()):
        tensor = tensor.long()  # categories, of chains that were started from floats
    return tensor.transpose(0, 1)


def numbers(argument: str, value: Any, fix: str) -> Tensor:
    """`value` as a tensor of real numbers in its own dtype, cut from any graph."""
    problem = f"is {kind_of(value)}, which holds no numbers" if isinstance(value, str) or value is None else ""
    if not problem:
        try:
            tensor = _as_tensor(value).detach()
        except (TypeError, ValueError, RuntimeError):  # torch's word for ragged lists, objects, strings
            problem = f"is {kind_of(value)}, and no table of numbers"
        else:
            if not tensor.is_complex():
                return tensor
            problem = f"holds {tensor.dtype}"
    raise DataError(argument, problem, fix)


def _as_tensor(value: Any) -> Tensor:
    """As torch's, and of lists of tensors, of data frames and of read-only arrays, too."""
    if isinstance(value, list | tuple) and any(
        isinstance(part, list | tuple) or hasattr(part, "ndim") for part in value
    ):
        return torch.stack([_as_tensor(part) for part in value])
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "to_numpy"):  # a frame or a series of pandas
        value = value.to_numpy()
        if value.dtype == object and all(isinstance(part, Real) for part in value.flat):  # its nullable integers
            value = value.astype(np.float64)
    if isinstance(value, np.ndarray) and (not value.flags.writeable or min(value.strides, default=0) < 0):
        value = value.copy()
    return torch.as_tensor(value)
