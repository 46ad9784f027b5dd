"""Options of a call that draws videos, checked before anything is drawn."""

from __future__ import annotations

import math

import torch

from flexgen.checks import randomness
from flexgen.errors import ConfigError
from flexgen.rng import Randomness

__all__ = ["arithmetic", "finite", "flag_or_none", "seed_or_source"]

_ARITHMETIC: dict[torch.dtype | str | None, torch.dtype | None] = {
    None: None,
    "float32": None,
    torch.float32: None,
    **dict.fromkeys(("bfloat16", "bf16", torch.bfloat16), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16", torch.float16), torch.float16),
}


def seed_or_source(generator: Randomness | int | None, *, needs_seed: bool) -> Randomness | int | None:
    generator = randomness("generator", generator)
    if isinstance(generator, int) and generator < 0:
        raise ConfigError("generator", f"is {generator}", "Pass a seed of at least 0.")
    if needs_seed and generator is None:
        raise ConfigError("generator", "is None", "Pass a seed, so that the same call can go on with its work.")
    return generator


def arithmetic(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if not isinstance(dtype, torch.dtype | str | None) or dtype not in _ARITHMETIC:
        raise ConfigError("dtype", f"is {dtype!r}", "Choose float32, bfloat16 or float16.")
    return _ARITHMETIC[dtype]


def flag_or_none(argument: str, value: bool | None) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ConfigError(argument, f"is {value!r}", "Pass True, False or None.")
    return value


def finite(argument: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(argument, f"is {value!r}", "Pass a number.")
    return number
