"""Configurations: composed by Hydra from configs/, objects built from an allow-list of targets."""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flexgen.cli.help import config_dir, groups, options
from flexgen.errors import ConfigError, FlexgenError, PlanError
from samplers.plan_names import plan_name

__all__ = ["ALLOWED_MODULES", "build", "config_dir", "load_config", "options"]

# Hydra's `_target_` can name anything that is importable, `os.unlink` and `torch.load` included. A config may only name
# what one of these modules exports in its __all__; all of it is values, and functions that read one file.
ALLOWED_MODULES = (
    "flexgen.data.tables",
    "flexgen.data.videos",
    "flexgen.table_model",
    "samplers.frames",
    "samplers.laws",
    "samplers.scans",
)

# Keys whose own keys are the names of a table's columns, which may hold what Hydra's grammar has no place for.
_BY_COLUMN = ("given", "kinds")


def load_config(name: str, overrides: Sequence[str] = (), *, complete: bool = True) -> DictConfig:
    """The composed configuration of a command.

    Args:
        name: a file of configs/, without its suffix.
        overrides: Hydra's, ``group=option`` or ``key.path=value``; a value that is not of Hydra's grammar (a path with
            a space, say) is taken as text. ``given.<column>=value`` and ``kinds.<column>=value`` take any column.
        complete: whether every key must have a value.

    Raises:
        ConfigError: an override that does not parse, an unknown key or option, a key without a value.
    """
    by_column, others = _split([word for text in overrides for word in _plan_words(text)])
    # Hydra takes `model=...` for a choice of the group wherever there is one; where a command is not composed of the
    # group, it is a key of its own.
    elsewhere = {path.name for path in config_dir().iterdir() if path.is_dir()} - set(groups(name))
    texts = [text.partition("=") for text in others if text.partition("=")[0] in elsewhere]
    others = [text for text in others if text.partition("=")[0] not in elsewhere]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(name, overrides=[_parsable(text) for text in others])
        for key, column, value in by_column:
            if key not in config:
                raise _unknown_key(name, f"{key}.{column}")
            OmegaConf.set_struct(config[key], False)
            config[key][column] = value
        for key, _, text in texts:
            if key not in config.keys():  # noqa: SIM118 - `in` has no eye for a key that is still to be given
                raise _unknown_key(name, key)
            if OmegaConf.is_dict(config.get(key)):
                raise ConfigError(key, f"is {text!r}", f"Set {key}.<key>=value; {key} is no group of flexgen {name}.")
            config[key] = text
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(name, error) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing and complete:
        raise ConfigError(
            ", ".join(missing), "not given", f"Add {' '.join(f'{key}=...' for key in missing)} to the command."
        )
    return config


def build(config: Any, *, at: str = "config") -> Any:
    """The object that a config describes, after checking every `_target_` in it against the allow-list.

    Args:
        config: a mapping with a `_target_`, or None, which is built as None.
        at: where it stands in the command's configuration, for error messages.

    Raises:
        ConfigError: a target outside the allow-list, found before anything is imported; arguments it does not take.
        FlexgenError: what the target itself refuses, its argument named as a key of the configuration.
    """
    if isinstance(config, DictConfig | ListConfig):
        config = OmegaConf.to_container(config, resolve=True)
    if config is None:
        return None
    if not isinstance(config, dict) or "_target_" not in config:
        raise ConfigError(at, f"is {config!r}", "Give a mapping with a _target_, or choose an option of the group.")
    for key, target in _reserved(config, at):
        _require_allowed(key, target)
    try:
        return instantiate(config, _convert_="all")
    except HydraException as error:
        cause = error.__cause__ or error
        if isinstance(cause, FlexgenError):
            raise type(cause)(f"{at}.{cause.argument}", cause.problem, cause.fix) from error
        reason = " ".join(str(cause).split()).rstrip(".")
        raise ConfigError(at, f"cannot be built: {reason}", "See --config for what is passed.") from error


def _require_allowed(key: str, target: Any) -> None:
    name = key.rpartition(".")[2]
    if name != "_target_":
        raise ConfigError(
            key, f"is {target!r}", f"Remove it: {name} is not allowed, of the special keys only _target_."
        )
    module, _, exported = str(target).rpartition(".")
    if module not in ALLOWED_MODULES or exported not in importlib.import_module(module).__all__:
        raise ConfigError(key, f"is {target!r}", f"Allowed are public names of {', '.join(ALLOWED_MODULES)}.")


def _reserved(config: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Every key of Hydra's own in a config, however deep, with its value."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            here = f"{at}.{key}"
            if isinstance(key, str) and key.startswith("_") and key.endswith("_"):
                yield here, value
            yield from _reserved(value, here)
    elif isinstance(config, list):
        for place, value in enumerate(config):
            yield from _reserved(value, f"{at}[{place}]")


def _split(overrides: Sequence[str]) -> tuple[list[tuple[str, str, Any]], list[str]]:
    """The overrides of columns as (key, column, value), and the others."""
    by_column, others = [], []
    for text in overrides:
        path, equals, value = text.partition("=")
        key, dot, column = path.partition(".")
        if key in _BY_COLUMN and dot and column and equals:
            by_column.append((key, column, _plain(value)))
        else:
            others.append(text)
    return by_column, others


def _plan_words(override: str) -> list[str]:
    """``plan=hierarchy-3`` as an option of the group and its levels; other spellings as the option's."""
    group, _, told = override.partition("=")
    if group != "plan":
        return [override]
    try:
        name = plan_name(told)
    except PlanError:  # Hydra lists the options
        return [override]
    family, _, levels = name.rpartition("-")
    return [f"plan={family}-2", f"plan.levels={levels}"] if levels.isdigit() else [f"plan={name}"]


def _plain(text: str) -> Any:
    """A number, true, false or a quoted text as in JSON; anything else is the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parsable(override: str) -> str:
    """The override as Hydra's grammar has it: a value that is not of the grammar becomes a quoted text."""
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError("override", f"is {override!r}", "Write key=value.")
    quoted = "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"
    for text in (override, f"{key}={quoted}"):
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:
            continue
        if not parsed.is_sweep_override():  # a,b means two runs to Hydra; a command is one
            return text
    raise ConfigError("override", f"is {override!r}", "Write key=value, the key without spaces or brackets.")


def _explained(command: str, error: Exception) -> ConfigError:
    """Hydra's complaint in the words of the command."""
    reason = " ".join(str(error).split()).rstrip(".")
    if found := re.search(r"Could not find '([\w/]+)/([^'/]*)'", reason):
        group, option = found.groups()
        return ConfigError(group, f"has no option {option!r}", f"Choose one of {', '.join(options(group))}.")
    if found := re.search(r"(?:Could not override|Could not delete from config\.) '([^']*)'", reason):
        full = re.search(r"full_key: (\S+)", reason)
        return _unknown_key(command, full[1] if full else found[1])
    return ConfigError("overrides", reason, f"See `flexgen {command} --config` for the keys and their values.")


def _unknown_key(command: str, key: str) -> ConfigError:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        known = list(_leaves(OmegaConf.to_container(compose(command))))
    if key in known:
        return ConfigError(key, "has no such keys", f"Set {key}._target_=..., and add keys with +{key}.key=value.")
    near = difflib.get_close_matches(key, known, 1)
    more = f"See flexgen {command} --help."
    return ConfigError(key, f"is no key of flexgen {command}", f"Did you mean {near[0]}? {more}" if near else more)


def _leaves(config: Any, at: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{at}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{at}{key}.")
