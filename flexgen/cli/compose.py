"""Configurations: composed by Hydra from configs/, objects built from an allow-list of targets.

Hydra puts files and overrides together, and no more: it never resolves a text, and it builds nothing. See `plain` for
what a configuration may hold, and `build` for how it becomes an object.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from flexgen.cli.help import config_dir, group_names, groups, options, user_dir
from flexgen.cli.plain import MOST_DEPTH, load_yaml, plain, require_text, shown
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


# What a file of a group may refer to: a value of the same configuration, with a default or without.
_REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}|\$\{oc\.select:(\w+(?:\.\w+)*), *([\w.+-]+)\}")


def load_config(
    name: str, overrides: Sequence[str] = (), *, complete: bool = True, own_options: str | Path | None = None
) -> DictConfig:
    """The composed configuration of a command: plain values, none of them resolved or to be resolved.

    Args:
        name: a file of configs/, without its suffix.
        overrides: Hydra's, ``group=option`` or ``key.path=value``; a value that is not of Hydra's grammar (a path with
            a space, say) is taken as text. ``given.<column>=value`` and ``kinds.<column>=value`` take any column.
        complete: whether every key must have a value.
        own_options: a folder of the user's with options of groups, beside those of configs/ and before them.

    Raises:
        ConfigError: an override that does not parse, an unknown key or option, a key without a value, a key of Hydra's
            own, ``${...}`` in an override; a folder or a file of the user's that cannot be read.
    """
    own = None if own_options is None else user_dir(str(own_options))
    if own is not None:
        _require_sound_options(own)
    for text in overrides:
        _require_readable(text)
    by_column, others = _split([word for text in overrides for word in _plan_words(text)])
    # Hydra takes `model=...` for a choice of the group wherever there is one; where a command is not composed of the
    # group, it is a key of its own.
    elsewhere = set(group_names()) - set(groups(name))
    texts = [text.partition("=") for text in others if "=" in text and text.partition("=")[0] in elsewhere]
    others = [text for text in others if "=" not in text or text.partition("=")[0] not in elsewhere]
    written = [_parsable(text, own) for text in others]
    try:
        config = OmegaConf.to_container(_composed(name, written, own), resolve=False)
    except Exception as error:  # of Hydra, OmegaConf, or what they stumble over: it is about the overrides
        raise _explained(name, error, own) from error
    assert isinstance(config, dict)
    for key, column, value in by_column:
        if key not in config:
            raise _unknown_key(name, f"{key}.{column}")
        if not isinstance(config[key], dict):
            raise ConfigError(key, f"is {shown(config[key])}", f"Leave it out, or {key}.{column}.")
        config[key][column] = value
    for key, _, text in texts:
        if key not in config:
            raise _unknown_key(name, key)
        if isinstance(config[key], dict):
            raise ConfigError(key, f"is {text!r}", f"Set {key}.<key>=value; {key} is no group of flexgen {name}.")
        config[key] = text
    made = DictConfig(_referred(config))
    OmegaConf.set_struct(made, True)
    missing = sorted(OmegaConf.missing_keys(made))
    if missing and complete:
        raise ConfigError(
            ", ".join(missing), "not given", f"Add {' '.join(f'{key}=...' for key in missing)} to the command."
        )
    return made


def build(config: Any, *, at: str = "config", kind: type | tuple[type, ...] | None = None) -> Any:
    """The object that a config describes, after checking every `_target_` in it against the allow-list.

    The mapping is copied into plain values once, the copy is checked, and the same copy is walked: a mapping with a
    `_target_` is the call of that name with its other keys as keyword arguments, a list is a list, a text is a text.

    Args:
        config: a mapping with a `_target_`, or None, which is built as None.
        at: where it stands in the command's configuration, for error messages.
        kind: what it must describe, where that is fixed; None is then refused.

    Raises:
        ConfigError: a target outside the allow-list, found before anything is imported; arguments it does not take;
            an object of another kind.
        FlexgenError: what the target itself refuses, its argument named as a key of the configuration.
    """
    values = plain(config, at=at)
    if values is None and kind is None:
        return None
    if not isinstance(values, dict) or "_target_" not in values:
        raise ConfigError(
            at, f"is {shown(values)}", "Give a mapping with a _target_, or choose an option of the group."
        )
    for key, target in _reserved(values, at):
        _require_allowed(key, target)
    made = _made(values, at)
    if kind is not None and not isinstance(made, kind):
        kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        problem = f"is {values['_target_']!r}, which makes a {type(made).__name__}"
        raise ConfigError(f"{at}._target_", problem, f"Name what makes a {kinds}.")
    return made


def _made(value: Any, at: str) -> Any:
    """What a checked value describes, from the inside out."""
    if isinstance(value, list):
        return [_made(item, f"{at}[{place}]") for place, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    arguments = {name: _made(item, f"{at}.{name}") for name, item in value.items() if name != "_target_"}
    if "_target_" not in value:
        return arguments
    if missing := [name for name, item in arguments.items() if item == "???"]:
        raise ConfigError(f"{at}.{missing[0]}", "not given", f"Add {at}.{missing[0]}=... to the command.")
    module, _, exported = value["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), exported)
    try:
        return target(**arguments)
    except FlexgenError as error:
        raise type(error)(f"{at}.{error.argument}", error.problem, error.fix) from error
    except Exception as error:  # whatever it raises, it is about these arguments
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigError(at, f"cannot be built: {reason}", "See --config for what is passed.") from error


def _require_allowed(key: str, target: Any) -> None:
    name = key.rpartition(".")[2]
    if name != "_target_":
        raise ConfigError(
            key, f"is {shown(target)}", f"Remove it: {name} is not allowed, of the special keys only _target_."
        )
    module, _, exported = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if module not in ALLOWED_MODULES or exported not in importlib.import_module(module).__all__:
        raise ConfigError(key, f"is {shown(target)}", f"Allowed are public names of {', '.join(ALLOWED_MODULES)}.")


def _reserved(config: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Every key of Hydra's own in a config, however deep, with its value."""
    if isinstance(config, dict):
        for key, value in config.items():
            here = f"{at}.{key}"
            if key.startswith("_") and key.endswith("_"):
                yield here, value
            yield from _reserved(value, here)
    elif isinstance(config, list):
        for place, value in enumerate(config):
            yield from _reserved(value, f"{at}[{place}]")


def _composed(name: str, overrides: Sequence[str], own: Path | None) -> DictConfig:
    """What Hydra puts together: the user's folder first, where there is one, so that its options stand in for ours."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        if own is not None:
            GlobalHydra.instance().config_loader().get_search_path().prepend("--config-dir", str(own), anchor="main")
            overrides = ["hydra.searchpath=[]", *overrides]  # none to add; but Hydra looks at its search path anew
        return compose(name, overrides=[*overrides])


def _referred(config: dict[Any, Any]) -> Any:
    """The configuration with the values that its files refer to in their places; any other ``${...}`` is refused."""

    def looked_up(key: str, text: str) -> Any:
        found = _REFERENCE.fullmatch(text)
        if found is None:
            fix = (
                "Write the value itself. A file may refer to another key, as in ${model.window}; nothing is evaluated."
            )
            raise ConfigError(key, f"is {shown(text)}", fix)
        path: str = found[1] or found[2]
        value: Any = config
        for part in path.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is _ABSENT and found[3] is not None:
            return _plain_or_text(found[3])
        if value is _ABSENT or isinstance(value, dict | list) or (isinstance(value, str) and "${" in value):
            fix = "A file may refer to a number, a text, true, false or null of the same configuration."
            raise ConfigError(key, f"is {shown(text)}, but {path} holds none", fix)
        return plain(value, at=key)

    return plain(config, reference=looked_up)


_ABSENT: Any = object()


def _require_sound_options(own: Path) -> None:
    """Refuses a file of the user's that is no option: unreadable, or one that reaches for Hydra's own settings."""
    argument = "--config-dir"
    for path in sorted(path for group in group_names() for path in (own / group).glob("*.yaml")):
        group = path.parent.name
        config = plain(load_yaml(path, argument=argument, is_option=True), reference=lambda _, text: text)
        where = f"{str(path)!r}"
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"\s*#\s*@", line) and line.split() != ["#", "@package", "_global_"]:
                raise ConfigError(
                    argument, f"{where} holds {line.strip()!r}", "The one directive is # @package _global_."
                )
        if "hydra" in config:
            raise ConfigError(argument, f"{where} sets the key 'hydra'", "Remove it: Hydra's own settings are fixed.")
        defaults = config.get("defaults", [])
        for entry in defaults if isinstance(defaults, list) else [defaults]:
            if not _is_choice(entry, group, own):
                fix = f"Write - _self_, the name of an option of {group}, or - override /group: option."
                raise ConfigError(argument, f"{where} has {shown(entry)} among its defaults", fix)


def _is_choice(entry: Any, group: str, own: Path) -> bool:
    """Whether an entry of a list of defaults names an option that there is."""
    if isinstance(entry, str):
        return entry == "_self_" or entry in options(group, own)
    if not isinstance(entry, dict) or len(entry) != 1:
        return False
    ((key, option),) = entry.items()
    found = re.fullmatch(r"(?:override )?/(\w+)", key)
    return found is not None and found[1] in group_names() and (option is None or option in options(found[1], own))


def _split(overrides: Sequence[str]) -> tuple[list[tuple[str, str, Any]], list[str]]:
    """The overrides of columns as (key, column, value), and the others."""
    by_column, others = [], []
    for text in overrides:
        path, equals, value = text.partition("=")
        key, dot, column = path.partition(".")
        if key in _BY_COLUMN and dot and column and equals:
            by_column.append((key, column, _plain_or_text(value)))
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


def _plain_or_text(text: str) -> Any:
    """A number, true, false or a quoted text as in JSON; anything else is the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _require_readable(override: Any) -> None:
    """Refuses what no parser should be given: another type, no UTF-8, too long or too deep, ``${``."""
    if not isinstance(override, str):
        raise ConfigError("override", f"is {shown(override)}", "Write key=value, as a text.")
    named = re.match(r"[+~]*(\w[\w.-]{0,80})=", override)
    at, text = (named[1], override[named.end() :]) if named else ("override", override)
    require_text(text, at)
    opened = 0
    for letter in text:  # quoted ones too: a text of so many brackets is no path either
        opened += (letter in "([{") - (letter in ")]}")
        if opened > MOST_DEPTH:
            raise ConfigError(at, f"is {shown(text)}, with more than {MOST_DEPTH} open brackets", "Pass less.")


def _parsable(override: str, own: Path | None) -> str:
    """The override as Hydra's grammar has it: a value that is not of the grammar becomes a quoted text."""
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError("override", f"is {shown(override)}", "Write key=value.")
    for text in (override, f"{key}={_quoted(value)}"):
        try:
            parsed = OverridesParser.create().parse_override(text)
        except Exception:  # its own, and what its conversions of numbers raise
            continue
        if not parsed.is_sweep_override():  # a,b means two runs to Hydra; a command is one
            _require_plain_override(parsed, own)
            return text
    raise ConfigError("override", f"is {shown(override)}", "Write key=value, the key without spaces or brackets.")


def _quoted(text: str) -> str:
    """The text in quotes of Hydra's grammar."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def _require_plain_override(parsed: Override, own: Path | None) -> None:
    """Refuses overrides of Hydra's own settings and packages, and options that are none."""
    key = parsed.key_or_group
    if parsed.package is not None or "/" in key or "@" in key:
        at = key if parsed.package is None else f"{key}@{parsed.package}"
        raise ConfigError(at, "names a package", "Write group=option or key.path=value.")
    if key.partition(".")[0] == "hydra":
        raise ConfigError(key, "is a key of Hydra's own", "Remove it: only the keys of the command can be set.")
    value = plain(parsed.value(), at=key)
    if key in group_names() and not isinstance(value, dict):
        choices = options(key, own)
        if parsed.is_delete():
            raise ConfigError(key, "cannot be deleted", f"Choose one of {', '.join(choices)}.")
        if value is None and key != "experiment":
            raise ConfigError(key, "is null", f"Choose one of {', '.join(choices)}.")
        if value is not None and value not in choices:
            raise ConfigError(key, f"has no option {shown(value)}", f"Choose one of {', '.join(choices)}.")


def _explained(command: str, error: Exception, own: Path | None) -> ConfigError:
    """Hydra's complaint in the words of the command."""
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if found := re.search(r"Could not find '([\w/]+)/([^'/]*)'", reason):
        group, option = found.groups()
        return ConfigError(group, f"has no option {option!r}", f"Choose one of {', '.join(options(group, own))}.")
    if found := re.search(r"(?:Could not override|Could not delete from config\.) '([^']*)'", reason):
        full = re.search(r"full_key: (\S+)", reason)
        return _unknown_key(command, full[1] if full else found[1])
    return ConfigError("overrides", reason, f"See `flexgen {command} --config` for the keys and their values.")


def _unknown_key(command: str, key: str) -> ConfigError:
    known = list(_leaves(OmegaConf.to_container(_composed(command, [], None))))
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
