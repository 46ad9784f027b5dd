"""Typed values out of a composed configuration, and errors that name the key."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from flexgen.cli.plain import plain, require_text, shown
from flexgen.errors import ConfigError

if TYPE_CHECKING:
    from flexgen.tables.settings import TableSettings

__all__ = ["TrainParameters", "convert", "read", "table_settings"]

T = TypeVar("T")

_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    dict: "key: value pairs",
    tuple: "a list",
}


@dataclass(frozen=True)
class TrainParameters:
    """The keys of configs/train.yaml, of tables and of videos."""

    output: Path
    kinds: dict[str, Any]
    seed: int
    progress: bool | None
    overwrite: bool
    resume: bool
    data: dict[str, Any]
    law: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]


def read(kind: type[T], config: DictConfig | Mapping[str, Any], *, at: str = "") -> T:
    """The dataclass `kind` with the keys of `config` for its fields.

    Args:
        kind: has a field a key.
        config: the keys and their values.
        at: what stands before them in the command's configuration, such as ``"sampler."``.

    Raises:
        ConfigError: a key that `kind` has not, one that is left out, a value of another type.
    """
    values = _mapping(config, at.removesuffix("."))
    required = [f.name for f in fields(kind) if f.default is MISSING]  # type: ignore[arg-type]
    for name in required:
        if name not in values:
            raise ConfigError(at + name, "is left out", f"Add {at}{name}=... to the command.")
    return kind(**_checked(kind, values, at=at))


def table_settings(config: DictConfig) -> TableSettings:
    """`TableSettings` out of the groups ``model`` and ``training``, checked to the last number."""
    from flexgen.tables.settings import TableSettings
    from flexgen.training import TrainingSettings

    where: dict[str, str] = {}
    values: dict[str, Any] = {}
    for group in ("model", "training"):
        found = _checked(TableSettings, _mapping(config[group], group), at=f"{group}.")
        where |= dict.fromkeys(found, group)
        values |= found
    try:
        settings = TableSettings(**values)
        # What the training of each network will be given, so that a bad number is refused now.
        shared = ({f.name for f in fields(TrainingSettings)} & values.keys()) - {"amp"}
        TrainingSettings(**{name: values[name] for name in shared})
    except ConfigError as error:
        at = f"{where[error.argument]}." if error.argument in where else ""
        raise ConfigError(at + error.argument, error.problem, error.fix) from error
    return settings


def _mapping(config: Any, at: str) -> dict[str, Any]:
    values = plain(config, at=at)
    if not isinstance(values, dict):
        raise ConfigError(at or "config", f"is {shown(values)}", "Pass key: value pairs.")
    return values


def _checked(kind: type, values: Mapping[str, Any], *, at: str = "") -> dict[str, Any]:
    hints = get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise ConfigError(
                f"{at}{name}", "is no key here", f"Choose among {', '.join(at + hint for hint in hints)}."
            )
    return {name: convert(value, hints[name], f"{at}{name}") for name, value in values.items()}


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint`: texts become paths, lists tuples, whole floats integers; nothing else changes.

    Args:
        value: as Hydra parsed it.
        hint: bool, int, float, str, Path, dict, tuple[..., ...], Literal or Any, or a union of some with None.
        name: the key, for the error.

    Raises:
        ConfigError: it is not of this type.
    """
    if hint is Any:
        return value
    origin = get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if value is None else convert(value, kinds[0], name)
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(name, f"is {shown(value)}", f"Choose one of {', '.join(map(str, get_args(hint)))}.")
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if origin is tuple and isinstance(value, list):
        return tuple(convert(item, get_args(hint)[0], f"{name}[{place}]") for place, item in enumerate(value))
    if origin is float and is_number:
        return float(value)
    # Whole floats up to where floats are whole numbers one apart; neither NaN nor infinity is one.
    if origin is int and is_number and (isinstance(value, int) or (abs(value) <= 2.0**53 and value == int(value))):
        return int(value)
    if origin in (bool, dict) and isinstance(value, origin):
        return value
    if origin in (str, Path) and (is_number or isinstance(value, str | Path)) and str(value):
        return _path(str(value), name) if origin is Path else str(value)
    raise ConfigError(name, f"is {shown(value)}", f"Pass {_EXPECTED[origin]}.")


def _path(text: str, name: str) -> Path:
    """The path, if the system can look for it: none with a name that is too long, or below a folder that is closed."""
    require_text(text, name)
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~nobody
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(name, f"{shown(text)} cannot be looked for: {reason}", "Name another path.") from error
    return path
