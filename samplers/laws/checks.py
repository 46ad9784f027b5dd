"""Checks of arguments that laws share. Each names the argument, the value and the fix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

from flexgen.errors import FlexgenError

__all__ = ["at_least", "freeze", "number_in", "one_of", "positive", "probabilities", "shape_of", "site_numbers"]

T = TypeVar("T")


def freeze(instance: object, **fields: object) -> None:
    """Sets fields of a frozen dataclass from its ``__post_init__`` (lists of a configuration become tuples)."""
    for name, value in fields.items():
        object.__setattr__(instance, name, value)


def number_in(argument: str, value: float, low: float, high: float) -> float:
    """`value`, if it is a finite number in [low, high]."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise FlexgenError(argument, f"is {value!r}", f"Pass a number between {low:g} and {high:g}.")
    return float(value)


def at_least(argument: str, value: int, low: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise FlexgenError(argument, f"is {value!r}", f"Pass a whole number, {low} or more.")
    return value


def positive(argument: str, value: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise FlexgenError(argument, f"is {value!r}", "Pass a positive number.")
    return float(value)


def one_of(argument: str, value: T, choices: Iterable[T]) -> T:
    choices = tuple(choices)
    if value not in choices:
        raise FlexgenError(argument, f"is {value!r}", f"Choose one of {', '.join(map(repr, choices))}.")
    return value


def shape_of(argument: str, value: Iterable[int]) -> tuple[int, ...]:
    """A grid's shape: a tuple of positive integers."""
    shape = tuple(value)
    if not shape or any(not isinstance(size, int) or size < 1 for size in shape):
        raise FlexgenError(argument, f"is {shape!r}", "Pass the grid's sizes, for example (14, 14).")
    return shape


def probabilities(argument: str, value: Iterable[float], expected: int) -> tuple[float, ...]:
    """Probabilities that sum to one (to within rounding of the text they were written in)."""
    numbers = tuple(float(p) for p in value)
    if len(numbers) != expected:
        raise FlexgenError(argument, f"has {len(numbers)} entries for {expected} laws", "Give one for each law.")
    if min(numbers, default=0.0) < 0 or abs(sum(numbers) - 1) > 1e-6:
        raise FlexgenError(
            argument, f"is {numbers!r}, which sums to {sum(numbers):g}", "Give probabilities that sum to 1."
        )
    return numbers


def site_numbers(argument: str, value: Iterable[int]) -> tuple[int, ...]:
    """Distinct site numbers, 0 or more."""
    sites = tuple(value)
    if any(not isinstance(site, int) or site < 0 for site in sites) or len(set(sites)) < len(sites):
        raise FlexgenError(argument, f"is {sites!r}", "Pass distinct site numbers, 0 or more.")
    return sites
