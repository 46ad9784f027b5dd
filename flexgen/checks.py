"""Checks of arguments, one for each kind, for every floor. Each names the argument, the value and the fix.

A public function checks what it was given once, at its door, and trusts it inside. What passes is returned in its plain
form (a Python int, a tuple, a Path), so that the caller need not convert it again.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import itertools
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from flexgen.errors import CheckpointError, ConfigError, DataError, FlexgenError
from flexgen.rng import Randomness, Streams

__all__ = [
    "MOST_ENTRIES",
    "as_numbers",
    "callable_",
    "did_you_mean",
    "doors",
    "entries",
    "file_path",
    "flag",
    "folder_path",
    "freeze",
    "instance",
    "is_number",
    "kind_of",
    "malformed",
    "mapping",
    "margin",
    "named_seed",
    "number",
    "one_of",
    "permutation",
    "positive",
    "probabilities",
    "probability",
    "randomness",
    "real_tensor",
    "renamed",
    "shape_of",
    "site_numbers",
    "source",
    "true_tensor",
    "usable_device",
    "whole_number",
    "whole_numbers",
    "whole_tensor",
]

T = TypeVar("T")

MOST_ENTRIES = 1 << 24
"""Of a list of sites, frames, categories ...: what has more is a mistake, and would take all memory to look at."""

_INT64 = (1 << 63) - 1


# ---------------------------------------------------------------------------------------------------------- numbers


def whole_number(
    argument: str, value: Any, least: int = 0, error: type[FlexgenError] = FlexgenError, *, most: int = _INT64
) -> int:
    """`value` as an int, if it is one (numpy's and torch's count too) from `least` to `most`."""
    if type(value) is not int:
        try:
            if isinstance(value, bool | np.ndarray) or (isinstance(value, Tensor) and value.dtype == torch.bool):
                raise TypeError
            value = operator.index(value)
        except (TypeError, RuntimeError, NotImplementedError):
            raise error(argument, f"is {kind_of(value)}", f"Pass a whole number, {least} or more.") from None
    if value < least:
        raise error(argument, f"is {kind_of(value)}", f"Pass at least {least}.")
    if value > most:
        raise error(argument, f"is {kind_of(value)}", f"Pass at most {most}.")
    found: int = value
    return found


def is_number(value: Any) -> bool:
    """Whether `value` is a real number (numpy's count too), True and False aside."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def number(
    argument: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    error: type[FlexgenError] = FlexgenError,
    fix: str = "",
) -> float:
    """`value` as a float, if it is a finite number in [low, high]."""
    found = _as_float(value)
    if not (low <= found <= high) or math.isinf(found):
        if not fix:
            fix = "Pass a finite number."
            if low > -math.inf or high < math.inf:
                ends = (f"between {low:g} and {high:g}", f"of {low:g} or more", f"of {high:g} or less")
                fix = f"Pass a number {ends[0] if math.inf not in (-low, high) else ends[1 + (low == -math.inf)]}."
        raise error(argument, f"is {kind_of(value)}", fix)
    return found


def positive(
    argument: str, value: Any, *, error: type[FlexgenError] = FlexgenError, fix: str = "Pass a positive number."
) -> float:
    """`value` as a float, if it is a finite number above 0."""
    found = _as_float(value)
    if not 0 < found < math.inf:
        raise error(argument, f"is {kind_of(value)}", fix)
    return found


def _as_float(value: Any) -> float:
    """NaN for what is no number; an infinity for what no float can hold."""
    if not is_number(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def probability(argument: str, value: Any, example: float, what: str = "probability") -> float:
    """`value`, if it lies strictly between 0 and 1: of a level, a significance, a confidence."""
    if not 0 < _as_float(value) < 1:
        raise FlexgenError(argument, f"is {kind_of(value)}", f"Pass a {what} between 0 and 1, such as {example}.")
    return float(value)


def probabilities(argument: str, value: Any, expected: int, of: str = "laws", each: str = "law") -> tuple[float, ...]:
    """Probabilities that sum to one (to within rounding of the text they were written in)."""
    numbers = tuple(
        number(f"{argument}[{place}]", each_of, 0.0, 1.0)
        for place, each_of in enumerate(entries(argument, value, "Pass a list of probabilities."))
    )
    if len(numbers) != expected:
        raise FlexgenError(argument, f"has {len(numbers)} entries for {expected} {of}", f"Give one for each {each}.")
    if abs(sum(numbers) - 1) > 1e-6:
        raise FlexgenError(
            argument, f"is {kind_of(numbers)}, which sums to {sum(numbers):g}", "Give probabilities that sum to 1."
        )
    return numbers


def margin(value: Any, unit: str = "nats") -> None:
    """Of equivalence; within an infinite margin everything would be equivalent."""
    if value is not None and not 0 < _as_float(value) < math.inf:
        raise FlexgenError("margin", f"is {kind_of(value)}", f"Pass a positive number of {unit}, or None.")


# ------------------------------------------------------------------------------------------------------- randomness


def randomness(argument: str, value: Any) -> Randomness | int | None:
    """`value`, if it is a source of random numbers or stands for one."""
    if value is None or isinstance(value, torch.Generator | Streams):
        return value
    return _seed(argument, value, "Pass a whole number as seed, a torch.Generator, or None.")


def source(argument: str, value: Any) -> Randomness:
    """`value`, if it is a source of random numbers itself."""
    if not isinstance(value, torch.Generator | Streams):
        raise FlexgenError(argument, f"is {kind_of(value)}", "Pass a torch.Generator, or rng.Streams.")
    return value


def named_seed(argument: str, value: Any) -> Randomness | int:
    """The same without None: an answer that nobody can repeat is no figure."""
    if isinstance(value, torch.Generator | Streams):
        return value
    return _seed(argument, value, "Pass a torch.Generator, or a whole number as seed.")


def _seed(argument: str, value: Any, fix: str) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise FlexgenError(argument, f"is {kind_of(value)}", fix)
    if not -_INT64 <= int(value) <= 2 * _INT64:
        raise FlexgenError(argument, f"is {kind_of(value)}", "A seed has 64 bits.")
    return int(value)


# ------------------------------------------------------------------------------------------------------------ lists


def entries(
    argument: str, value: Any, fix: str, *, most: int = MOST_ENTRIES, error: type[FlexgenError] = FlexgenError
) -> tuple[Any, ...]:
    """`value` as a tuple, if it is a list of something, and not of too many."""
    if isinstance(value, str | bytes | Mapping | type) or not hasattr(value, "__iter__"):
        raise error(argument, f"is {kind_of(value)}", fix)
    try:
        if hasattr(value, "__len__") and len(value) > most:
            raise error(argument, f"has {len(value)} entries", f"At most {most} can be served. {fix}")
        found = tuple(itertools.islice(iter(value), most + 1))
    except (TypeError, NotImplementedError) as cause:  # numpy and torch: iteration over a number
        raise error(argument, f"is {kind_of(value)}, which is no list", fix) from cause
    if len(found) > most:
        raise error(argument, f"has more than {most} entries", fix)
    return found


def whole_numbers(
    argument: str,
    value: Any,
    fix: str,
    *,
    least: int = 0,
    most: int = _INT64,
    noun: str = "",
    error: type[FlexgenError] = FlexgenError,
) -> tuple[int, ...]:
    """`value` as a tuple of ints, each from `least` to `most`; errors call one of them `noun`."""
    if isinstance(value, Tensor | np.ndarray):
        value = _listed(argument, value, fix, error)
    found = entries(argument, value, fix, error=error)
    for each in found:
        if type(each) is not int or not least <= each <= most:
            try:
                whole_number(argument, each, least, error, most=most)
            except error:
                raise error(argument, f"holds {noun}{kind_of(each)}", fix) from None
    return tuple(map(operator.index, found))


def _listed(argument: str, value: Tensor | np.ndarray, fix: str, error: type[FlexgenError]) -> list[Any]:
    """The numbers of an array of one dimension, at once: one by one they take microseconds each."""
    kind = np.asarray(value).dtype.kind if isinstance(value, np.ndarray) else _kind_of_tensor(value)
    if value.ndim != 1 or kind not in "iuO" or len(value) > MOST_ENTRIES:
        raise error(argument, f"is {kind_of(value)}", fix)
    found: list[Any] = value.tolist()
    return found


def _kind_of_tensor(value: Tensor) -> str:
    if value.layout != torch.strided or value.device.type == "meta" or value.is_complex() or value.dtype == torch.bool:
        return "b"
    return "f" if value.is_floating_point() else "i"


def site_numbers(
    argument: str, value: Any, num_sites: int | None = None, *, error: type[FlexgenError] = FlexgenError
) -> tuple[int, ...]:
    """Numbers of sites, each 0 or more, below `num_sites`, and named once."""
    fix = (
        "Pass distinct site numbers, 0 or more."
        if num_sites is None
        else f"Sites are numbered 0 to {num_sites - 1} (num_sites - 1)."
    )
    most = _INT64 if num_sites is None else num_sites - 1
    found = whole_numbers(argument, value, fix, most=most, noun="site ", error=error)
    if len(set(found)) < len(found):
        twice = next(site for place, site in enumerate(found) if site in found[:place])
        raise error(argument, f"holds {twice} twice", "Name each site once.")
    return found


def freeze(instance: object, **fields: object) -> None:
    """Sets fields of a frozen dataclass to what was checked, in its ``__post_init__`` (lists become tuples)."""
    for name, value in fields.items():
        object.__setattr__(instance, name, value)


def permutation(argument: str, value: Any, size: int | None = None) -> tuple[int, ...]:
    """`value` as a tuple that names each of 0 .. size - 1 once; of its own length where `size` is None."""
    fix = "Name each of the sites once, by its number." if size is None else f"Name each of 0 to {size - 1} once."
    found = whole_numbers(argument, value, fix)
    if sorted(found) != list(range(len(found) if size is None else size)):
        raise FlexgenError(argument, f"is {kind_of(found)}, which is no permutation", fix)
    return found


def shape_of(argument: str, value: Any, *, least: int = 1, error: type[FlexgenError] = FlexgenError) -> tuple[int, ...]:
    """The sizes of a grid or of an event: whole numbers whose product can be served."""
    fix = "Pass the grid's sizes, for example (14, 14)."
    found = whole_numbers(argument, value, fix, least=least, most=MOST_ENTRIES, error=error)
    if math.prod(found) > MOST_ENTRIES:
        raise error(argument, f"is {kind_of(found)}", f"At most {MOST_ENTRIES} places can be served.")
    return found


# ------------------------------------------------------------------------------------------------- kinds of things


def instance(
    argument: str, value: Any, kind: type[T] | tuple[type[T], ...], fix: str, error: type[FlexgenError] = FlexgenError
) -> T:
    """`value`, if it is of this class."""
    if not isinstance(value, kind):
        raise error(argument, f"is {kind_of(value)}", fix)
    return value


def flag(argument: str, value: Any) -> bool:
    """`value`, if it is True or False (numpy's count too, and 0 and 1)."""
    if not isinstance(value, bool | np.bool_) and not (type(value) is int and value in (0, 1)):
        raise FlexgenError(argument, f"is {kind_of(value)}", "Pass True or False.")
    return bool(value)


def callable_(argument: str, value: Any, fix: str) -> Callable[..., Any]:
    """`value`, if it can be called."""
    if not callable(value):
        raise FlexgenError(argument, f"is {kind_of(value)}, which cannot be called", fix)
    found: Callable[..., Any] = value
    return found


def mapping(argument: str, value: Any, fix: str, error: type[FlexgenError] = FlexgenError) -> Mapping[Any, Any]:
    """`value`, if it is a dictionary."""
    return instance(argument, value, Mapping, fix, error)


def one_of(argument: str, value: T, choices: Iterable[T], error: type[FlexgenError] = FlexgenError) -> T:
    """`value`, if it is one of a few."""
    choices = tuple(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise error(argument, f"is {kind_of(value)}", f"{hint}Choose one of {', '.join(map(repr, choices))}.")
    return value


def real_tensor(
    argument: str, value: Any, shape: str, *, ndim: int | None = None, error: type[FlexgenError] = DataError
) -> Tensor:
    """`value`, if it is a dense tensor of real or whole numbers in memory; `shape` says in words which is meant."""
    if not isinstance(value, Tensor):
        fix = f"Pass a tensor {shape}; of an array, torch.from_numpy(x)."
        raise error(argument, f"is {kind_of(value)}", fix)
    if value.is_complex() or value.layout != torch.strided or value.device.type == "meta":
        held = value.dtype if value.is_complex() else value.layout if value.layout != torch.strided else value.device
        raise error(argument, f"is a tensor of {held}", f"Pass a dense tensor of real numbers, {shape}.")
    if ndim is not None and value.ndim != ndim:
        raise error(argument, f"has shape {tuple(value.shape)}", f"Pass shape {shape}.")
    return value


def as_numbers(name: str, value: Any) -> Tensor:
    """A float64 copy of numbers, from a tensor, an array or nested lists."""
    try:
        table = torch.as_tensor(value)
        if table.is_complex():
            raise TypeError("complex numbers")
        return real_tensor(name, table, "of numbers").detach().to(torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError) as error:
        if isinstance(error, FlexgenError):
            raise
        raise FlexgenError(
            name, f"is {kind_of(value)}, and no table of numbers", "Pass a tensor of numbers."
        ) from error


def whole_tensor(argument: str, value: Any, shape: str, *, ndim: int | None = None) -> Tensor:
    """`value`, if it is a dense tensor of whole numbers in memory."""
    found = real_tensor(argument, value, shape, ndim=ndim, error=FlexgenError)
    if found.is_floating_point() or found.dtype == torch.bool:
        raise FlexgenError(argument, f"is a tensor of {found.dtype}", f"Pass whole numbers, {shape}.")
    return found


def true_tensor(argument: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """`value`, if it is a dense tensor of booleans of this shape."""
    found = real_tensor(argument, value, str(list(shape)), error=FlexgenError)
    if found.dtype != torch.bool or tuple(found.shape) != shape:
        problem = f"has shape {tuple(found.shape)} and type {found.dtype}"
        raise FlexgenError(argument, problem, f"Pass booleans {list(shape)}.")
    return found


def doors(cls: type, **methods: Mapping[str, Callable[[str, Any], Any]]) -> None:
    """Checks arguments of a class's own methods, for ``__init_subclass__`` of a base whose subclasses write them.

    Args:
        methods: method -> argument -> what checks it, called with the argument's name and value, and returns the value.
    """
    for method, kinds in methods.items():
        if inspect.isfunction(own := vars(cls).get(method)):
            setattr(cls, method, _with_a_door(own, kinds))


def _with_a_door(function: Callable[..., Any], kinds: Mapping[str, Callable[[str, Any], Any]]) -> Callable[..., Any]:
    names = tuple(inspect.signature(function).parameters)
    checks = tuple(kinds.get(name) for name in names)

    @functools.wraps(function)
    def checked(*args: Any, **named: Any) -> Any:
        given = [
            check(name, value) if check else value for name, check, value in zip(names, checks, args, strict=False)
        ]
        for name, value in named.items():
            if name in kinds:
                named[name] = kinds[name](name, value)
        return function(*given, *args[len(names) :], **named)

    return checked


# ------------------------------------------------------------------------------------------------ files and devices


def file_path(argument: str, value: Any, error: type[FlexgenError] = CheckpointError, what: str = "file") -> Path:
    """`value` as a path that a file system can hold."""
    if not isinstance(value, str | os.PathLike):
        raise error(argument, f"is {kind_of(value)}", f"Pass the path of a {what}.")
    try:
        path = Path(value)
        text = os.fsencode(path)
    except (TypeError, UnicodeEncodeError) as cause:
        raise error(argument, f"is {kind_of(value)}, which no file can be called", f"Name a {what}.") from cause
    if b"\0" in text:
        raise error(argument, f"is {str(path)!r}, which holds the character NUL", f"Name a {what}.")
    if any(len(part) > 255 for part in text.split(b"/")) or len(text) > 4095:
        raise error(argument, f"has {len(text)} characters, too many for a name", f"Name a {what}.")
    return path


def folder_path(argument: str, value: Any) -> Path:
    """`value` as the path of a folder that is there or can be made."""
    folder = file_path(argument, value, what="folder")
    for path in (folder, *folder.parents):
        try:
            if path.exists():
                if path.is_dir():
                    return folder
                place = "is" if path == folder else f"is below {str(path)!r}, which is"
                raise CheckpointError(argument, f"{str(folder)!r} {place} a file", "Name a folder.")
        except OSError as error:
            raise CheckpointError(argument, f"{str(folder)!r}: {error.strerror}", "Name another folder.") from error
    return folder


def usable_device(argument: str, value: torch.device | str) -> torch.device:
    """`value` as a device that this machine has."""
    fix = "Pass 'cpu', 'cuda', 'cuda:1' or 'mps', one that is there."
    try:
        if not isinstance(value, str | torch.device):
            raise TypeError
        device = torch.device(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(argument, f"is {kind_of(value)}, which is no device", fix) from error
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:  # torch's builds differ
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ConfigError(argument, f"{str(value)!r} cannot be used here ({reason})", fix) from error
    return device


@contextlib.contextmanager
def malformed(argument: str, fix: str, error: type[FlexgenError] = CheckpointError) -> Iterator[None]:
    """Of what is read from a file: a part that is missing, of the wrong kind, too deep or too large is told as such.

    For reading alone, where every operation on the parsed text may fail by its form; elsewhere it would hide mistakes.
    """
    try:
        yield
    except FlexgenError:
        raise
    except KeyError as cause:
        raise error(argument, f"lacks {kind_of(cause.args[0] if cause.args else None)}", fix) from cause
    except RecursionError as cause:
        raise error(argument, "is nested too deeply", fix) from cause
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as cause:
        raise error(argument, f"is malformed ({_first_line(cause)})", fix) from cause


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n") or [""])[0][:200].rstrip(".") or type(error).__name__


# ------------------------------------------------------------------------------------------------------- complaints


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
    if not isinstance(name, str):
        return ""
    near = difflib.get_close_matches(str(name)[:200], [str(other) for other in known], 1)
    return f"Did you mean {near[0]!r}? " if near else ""


def kind_of(value: Any) -> str:
    """A value of the wrong type in short: small ones as they are, others by their type."""
    article = "an" if type(value).__name__[0].lower() in "aeio" else "a"
    if value is None or isinstance(value, bool | float | complex | np.number):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 1 << 128 else f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= 80 else f"{repr(value[:60])[:-1]}...' of {len(value)} characters"
    plain = isinstance(value, tuple) and len(value) <= 8
    if plain and all(each is None or isinstance(each, bool | float | str) or type(each) is int for each in value):
        text = repr(value)
        if len(text) <= 80:
            return text
    return f"{article} {type(value).__name__}"
