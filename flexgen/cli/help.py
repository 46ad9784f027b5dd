"""The text of ``flexgen <command> --help``, read off the files of configs/: their comments are the documentation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flexgen.errors import ConfigError

__all__ = ["config_dir", "describe", "groups", "options"]


def config_dir() -> Path:
    """The folder of the YAML files: inside the package when installed, beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError("configs", f"are neither in {package} nor beside it", "Reinstall flexgen-samplers.")


def options(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def groups(command: str) -> dict[str, str]:
    """The groups that a command is composed of, and the option of each that is chosen if nothing else is said."""
    text = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (?:optional )?(\w+): ([\w-]+)", text, flags=re.MULTILINE))


def describe(command: str) -> str:
    """What a command does, its keys and its groups."""
    lines = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8").splitlines()
    parts = [f"usage: flexgen {command} [key=value ...] [--config] [--help] [--traceback]", _opening(lines)]
    keys = [found.groups("") for line in lines if (found := re.match(r"(\w+): +(\S.*?)(?: *# (.*))?$", line))]
    parts.append("keys (??? must be given)\n" + _table(keys))
    chosen = groups(command)
    if chosen:
        parts.append(
            "groups: choose an option with group=option, set what it holds with group.key=value; * is the default"
        )
    for group, default in chosen.items():
        rows = [("*" if option == default else " ", option, _summary(group, option)) for option in options(group)]
        parts.append(f"{group}\n{_table(rows)}")
    return "\n\n".join(parts)


def _opening(lines: list[str]) -> str:
    """The comment that a file begins with."""
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(comment).strip()


def _summary(group: str, option: str) -> str:
    """The first line of an option's opening comment that is neither a command nor a directive of Hydra's."""
    lines = _opening((config_dir() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()).splitlines()
    return next((line for line in lines if line and not line.startswith(("flexgen ", "@package"))), "")


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        ("  " + "  ".join([*(c.ljust(w) for c, w in zip(row[:-1], widths, strict=True)), row[-1]])).rstrip()
        for row in rows
    )
