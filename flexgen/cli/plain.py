"""What a configuration may hold: mappings, lists, texts, numbers, true, false and null, and none of it is evaluated.

OmegaConf resolves ``${...}`` in a text whenever the text is read, also where an earlier resolution has left it behind:
``\\${oc.create:...}`` becomes ``${oc.create:...}``, and at the next reading a mapping. So the command never resolves.
No text that reaches it may hold ``${``; `plain` is the one door, for overrides, files and what Python passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flexgen.errors import ConfigError

__all__ = ["load_yaml", "plain", "require_text", "shown"]

MOST_DEPTH = 32  # mappings and lists inside each other
MOST_VALUES = 100_000
MOST_LETTERS = 100_000  # of a text


def plain(config: Any, *, at: str = "", reference: Callable[[str, str], Any] | None = None) -> Any:
    """A copy of `config` that holds dicts, lists, texts, numbers, true, false and None alone.

    Args:
        config: the same, or OmegaConf's containers, which are read as they are written: nothing is resolved.
        at: where it stands in the command's configuration, for error messages.
        reference: called with the key and the text of each text that holds ``${``; gives the value in its place.

    Raises:
        ConfigError: a text with ``${`` where there is no `reference`, or one that no file or message could hold; a key
            that is no text; another kind of value; whole numbers beyond 64 bits; too many values or too deep.
    """
    left = MOST_VALUES

    def copied(value: Any, path: str, depth: int) -> Any:
        nonlocal left
        left -= 1
        key = path or "config"
        if depth > MOST_DEPTH:
            raise ConfigError(at or key, f"is more than {MOST_DEPTH} levels deep", "Pass less.")
        if left < 0:
            raise ConfigError(at or key, f"holds more than {MOST_VALUES} values", "Pass less.")
        if isinstance(value, DictConfig | ListConfig):
            value = OmegaConf.to_container(value, resolve=False)
        if isinstance(value, Mapping):
            for name in value:
                if not isinstance(name, str):
                    raise ConfigError(key, f"has the key {shown(name)}", "Keys are texts: write it in quotes.")
                require_text(name, key)
            return {name: copied(item, f"{path}.{name}" if path else name, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [copied(item, f"{path}[{place}]", depth + 1) for place, item in enumerate(value)]
        if isinstance(value, str):
            if "${" in value and reference is not None:
                return reference(key, value)
            require_text(value, key)
            return value
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ConfigError(key, "is a whole number of more than 64 bits", "Pass a smaller one.")
        if value is None or isinstance(value, bool | int | float | Path):
            return value
        fix = "Pass a text, a number, true, false, null, a list, or key: value pairs."
        raise ConfigError(key, f"is a {type(value).__name__}", fix)

    return copied(config, at, 0)


def require_text(text: str, at: str) -> None:
    """Refuses a text that asks for an evaluation, or that no file, path or message could hold."""
    if len(text) > MOST_LETTERS:
        raise ConfigError(at, f"holds a text of {len(text)} letters", f"Pass at most {MOST_LETTERS}.")
    if "${" in text:
        fix = "Write the value itself: ${...} is not evaluated, and no text may hold it."
        raise ConfigError(at, f"is {shown(text)}", fix)
    if "\0" in text:
        raise ConfigError(at, f"is {shown(text)}, with a NUL character", "Remove it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(at, f"is {shown(text)}, which is no UTF-8", "Rename it in UTF-8.") from error


def load_yaml(path: Path, *, argument: str, is_option: bool = False) -> DictConfig:
    """The mapping of a YAML file, none of it resolved.

    Args:
        path: the file.
        argument: the key of the command that named it, for error messages.
        is_option: of a group, which may hold references and ``???``, for what is still to be given.

    Raises:
        ConfigError: no file, no YAML, no mapping, tags or aliases in it, or what `plain` refuses.
    """
    where = f"{str(path)!r}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigError(argument, f"{where} cannot be read: {reason}", "Check the file.") from error
    try:
        # As events first: they are read one by one, where a tree of aliases or brackets would outgrow memory or stack.
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            line = f"{where}, line {event.start_mark.line + 1},"
            if depth > MOST_DEPTH:
                raise ConfigError(argument, f"{line} is more than {MOST_DEPTH} levels deep", "Write less.")
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(argument, f"{line} holds an alias", "Write out what it stands for.")
        config = OmegaConf.create(text) if text.strip() else OmegaConf.create()
    except ConfigError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(argument, f"{where} is no YAML that can be read: {reason}", "Mend the file.") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(argument, f"{where} holds no key: value pairs", "Mend the file.")
    try:
        plain(config, reference=(lambda _, text: text) if is_option else None)
    except ConfigError as error:
        raise ConfigError(argument, f"{where}: {error.argument} {error.problem}", error.fix) from error
    if not is_option and (missing := sorted(OmegaConf.missing_keys(config))):
        raise ConfigError(argument, f"{where}: {missing[0]} is '???'", "Write its value.")
    return config


def shown(value: Any) -> str:
    """The value as an error message shows it: long ones in brief."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-30:]}"
