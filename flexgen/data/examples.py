"""What comes with the package to try it on: the checkpoint ``mazes32``, and two walks for it to go on with."""

from __future__ import annotations

from pathlib import Path

from flexgen.checks import did_you_mean, file_path, kind_of
from flexgen.errors import DataError

__all__ = ["example", "example_names", "or_example"]


def example_names() -> tuple[str, ...]:
    """The examples that come with the package."""
    return tuple(sorted(path.name for path in _folder().iterdir() if path.is_dir()))


def example(name: str) -> Path:
    """Where an example, or a file of one, is on this machine.

    Args:
        name: ``"mazes32"``, or ``"mazes32/held_out.mp4"``.

    Raises:
        DataError: there is none of this name.

    >>> example("mazes32/held_out.mp4").name
    'held_out.mp4'
    """
    parts = file_path("name", name, DataError).parts
    inside = parts[:1] and parts[0] in example_names() and ".." not in parts
    if not (inside and (path := _folder().joinpath(*parts)).exists()):
        known = [f"{found.relative_to(_folder())}" for found in sorted(_folder().glob("*/*"))]
        fix = f"{did_you_mean(name, known)}Examples are {', '.join(example_names())}, and the files in them."
        raise DataError("name", f"is {kind_of(str(name))}", fix)
    return path


def or_example(path: str | Path) -> Path:
    """The path as it is or, where there is no such thing, the example of this name, if there is one."""
    path = Path(path)
    if path.is_absolute() or path.exists():
        return path
    try:
        return example(str(path))
    except DataError:
        return path


def _folder() -> Path:
    """Inside the package when installed, beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_checkpoints"
    return installed if installed.is_dir() else package.parent / "checkpoints"
