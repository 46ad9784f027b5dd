"""Checks of arguments that every floor shares. Each names the argument, the value and the fix."""

from __future__ import annotations

import contextlib
import difflib
import operator
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexgen.errors import CheckpointError, ConfigError, FlexgenError
from flexgen.rng import Randomness, Streams

__all__ = [
    "did_you_mean",
    "folder_path",
    "is_number",
    "kind_of",
    "randomness",
    "renamed",
    "usable_device",
    "whole_number",
]


def whole_number(argument: str, value: Any, least: int, error: type[FlexgenError] = FlexgenError) -> int:
    """`value` as an int, if it is one (numpy's count too) and large enough."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise error(argument, f"is {value!r}", f"Pass a whole number, {least} or more.")
    number = operator.index(value)
    if number < least:
        raise error(argument, f"is {number}", f"Pass at least {least}.")
    return number


def is_number(value: Any) -> bool:
    """Whether `value` is a real number (numpy's count too), True and False aside."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def randomness(argument: str, value: Any) -> Randomness | int | None:
    """`value`, if it is a source of random numbers or stands for one."""
    if value is None or isinstance(value, torch.Generator | Streams):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise FlexgenError(argument, f"is {kind_of(value)}", "Pass a whole number as seed, a torch.Generator, or None.")


def folder_path(argument: str, value: Any) -> Path:
    """`value` as the path of a folder that is there or can be made."""
    if not isinstance(value, str | os.PathLike):
        raise CheckpointError(argument, f"is {kind_of(value)}", "Pass the path of a folder.")
    folder = Path(value)
    for path in (folder, *folder.parents):
        if path.exists():
            if path.is_dir():
                return folder
            place = "is" if path == folder else f"is below {str(path)!r}, which is"
            raise CheckpointError(argument, f"{str(folder)!r} {place} a file", "Name a folder.")
    return folder


def usable_device(argument: str, value: torch.device | str) -> torch.device:
    """`value` as a device that this machine has."""
    fix = "Pass 'cpu', 'cuda', 'cuda:1' or 'mps', one that is there."
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(argument, f"is {value!r}, which is no device", fix) from error
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch's builds differ in what they raise
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ConfigError(argument, f"{str(value)!r} cannot be used here ({reason})", fix) from error
    return device


@contextlib.contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Errors about arguments that the caller did not write, with the names of those it did: ``path="observed"``."""
    try:
        yield
    except FlexgenError as error:
        if error.argument not in names:
            raise
        raise type(error)(names[error.argument], error.problem, error.fix) from error


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """``"Did you mean 'age'? "``, or nothing if no known name is near."""
    near = difflib.get_close_matches(str(name), [str(other) for other in known], 1)
    return f"Did you mean {near[0]!r}? " if near else ""


def kind_of(value: Any) -> str:
    """A value of the wrong type in short: small ones as they are, others by their type."""
    if isinstance(value, str | int | float | bool) or value is None:
        return repr(value)
    article = "an" if type(value).__name__[0].lower() in "aeio" else "a"
    return f"{article} {type(value).__name__}"
