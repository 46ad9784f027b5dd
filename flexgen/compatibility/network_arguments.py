"""Checks of arguments that the diagnostics of networks share. Each error names the argument, its value and the fix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import kind_of
from flexgen.errors import DataError, FlexgenError

__all__ = ["check_level", "check_margin", "is_number", "numbers", "tensor"]


def check_margin(margin: float | None, unit: str = "nats") -> None:
    """Refuses what is no margin of equivalence."""
    if margin is not None and (not is_number(margin) or not 0 < margin < math.inf):
        raise FlexgenError("margin", f"is {kind_of(margin)}", f"Pass a positive number of {unit}, or None.")


def check_level(level: float) -> None:
    """Refuses what is no coverage of an interval."""
    if not is_number(level) or not 0 < level < 1:
        raise FlexgenError("level", f"is {kind_of(level)}", "Pass a coverage between 0 and 1, such as 0.95.")


def is_number(value: Any) -> bool:
    """Whether `value` is a real number (numpy's count too), True and False aside."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise DataError(name, f"is {kind_of(value)}", "Pass a tensor.")
    return value.detach()


def numbers(name: str, value: Any, size: int | None = None) -> Tensor:
    """A tensor ``[size]`` as float64 on the CPU."""
    value = tensor(name, value)
    if value.ndim != 1 or (size is not None and len(value) != size):
        what = "values" if size is None else f"{size} entries, one a value"
        raise DataError(name, f"have shape {tuple(value.shape)}", f"Pass {what}, [M].")
    return value.to("cpu", torch.float64)
