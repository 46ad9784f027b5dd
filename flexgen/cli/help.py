"""The text of ``flexgen <command> --help``, read off the files of configs/: their comments are the documentation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flexgen.errors import ConfigError

__all__ = ["config_dir", "describe", "group_names", "groups", "options", "user_dir"]


def config_dir() -> Path:
    """The folder of the YAML files: inside the package when installed, beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError("configs", f"are neither in {package} nor beside it", "Reinstall flexgen-samplers.")


def user_dir(text: str) -> Path:
    """The folder of ``--config-dir``: options of the user's own, in a folder for each group.

    Raises:
        ConfigError: no folder, one that cannot be read, one without a group, or a command's own file in it.
    """
    where, fix = f"{text!r}", f"Name a folder with a folder for a group in it: {', '.join(group_names())}."
    try:
        if not text or "\0" in text or not (folder := Path(text).expanduser().absolute()).is_dir():
            raise ConfigError("--config-dir", f"{where} is no folder", fix)
        inside = sorted(path.name for path in folder.iterdir())
        for name in inside:
            if name.endswith(".yaml") and (config_dir() / name).is_file():
                problem = f"{where} holds {name}, the file of a command"
                raise ConfigError("--config-dir", problem, "Only groups have options: move it into the folder of one.")
        found = [name for name in group_names() if name in inside and any((folder / name).glob("*.yaml"))]
        if not found:
            raise ConfigError("--config-dir", f"{where} holds no option of a group", fix)
        for path in (path for group in found for path in sorted((folder / group).glob("*.yaml"))):
            if not re.fullmatch(r"\w[\w-]*", path.stem):
                problem = f"{str(path)!r} is no name of an option"
                raise ConfigError("--config-dir", problem, "Use letters, digits, - and _.")
            path.read_text(encoding="utf-8")
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError("--config-dir", f"{where} cannot be read: {reason}", fix) from error
    except UnicodeDecodeError as error:
        raise ConfigError("--config-dir", f"{str(path)!r} is no UTF-8", "Save it as UTF-8.") from error
    return folder


def group_names() -> list[str]:
    """The groups of all commands."""
    return sorted(path.name for path in config_dir().iterdir() if path.is_dir())


def options(group: str, own: Path | None = None) -> list[str]:
    """The choices of a config group, with those in the folder `own` of the user's."""
    return sorted({path.stem for folder in _folders(own) for path in (folder / group).glob("*.yaml")})


def groups(command: str) -> dict[str, str]:
    """The groups that a command is composed of, and the option of each that is chosen if nothing else is said."""
    text = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (?:optional )?(\w+): ([\w-]+)", text, flags=re.MULTILINE))


def describe(command: str, own: Path | None = None) -> str:
    """What a command does, its keys and its groups, with the options in the folder `own` of the user's."""
    lines = (config_dir() / f"{command}.yaml").read_text(encoding="utf-8").splitlines()
    parts = [
        f"usage: flexgen {command} [key=value ...] [--config-dir DIR] [--config] [--help] [--traceback]",
        _opening(lines),
    ]
    keys = [found.groups("") for line in lines if (found := re.match(r"(\w+): +(\S.*?)(?: *# (.*))?$", line))]
    parts.append("keys (??? must be given)\n" + _table(keys))
    chosen = groups(command)
    if chosen:
        parts.append(
            "groups: choose an option with group=option, set what it holds with group.key=value; * is the default"
        )
    for group, default in chosen.items():
        rows = [
            ("*" if option == default else " ", option, _summary(group, option, own)) for option in options(group, own)
        ]
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


def _folders(own: Path | None) -> list[Path]:
    """Where options are looked for, first in the user's folder: an option there stands in for one of its name."""
    return [config_dir()] if own is None else [own, config_dir()]


def _summary(group: str, option: str, own: Path | None) -> str:
    """The first line of an option's opening comment that is neither a command nor a directive of Hydra's."""
    paths = [folder / group / f"{option}.yaml" for folder in _folders(own)]
    text = next(path for path in paths if path.is_file()).read_text(encoding="utf-8")
    lines = _opening(text.splitlines()).splitlines()
    return next((line for line in lines if line and not line.startswith(("flexgen ", "@package"))), "")


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        ("  " + "  ".join([*(c.ljust(w) for c, w in zip(row[:-1], widths, strict=True)), row[-1]])).rstrip()
        for row in rows
    )
