"""Public names that a package loads on first use (PEP 562), so that importing it is instant."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["attach_stub"]


def attach_stub(package: str, filename: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, as the stub beside it lists its names.

    One list serves the import, the type checker and completion in an editor. As ``lazy_loader.attach_stub``, which
    takes names of the package's own modules only, and does not list the names when one is misspelt.

    Args:
        package: its ``__name__``.
        filename: its ``__file__``; ``__init__.pyi`` beside it has lines such as ``from .query import Query as Query``.
    """
    module_of: dict[str, str] = {}
    submodules, own = [], []  # `own` names the package defines itself, such as __version__
    for node in ast.parse(Path(filename).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            module = ".".join([package] * node.level + [node.module] * (node.module is not None))  # type: ignore[list-item]
            for alias in node.names:
                if node.module is None:
                    submodules.append(alias.name)
                else:
                    module_of[alias.name] = module
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.append(node.target.id)
    names = sorted([*module_of, *submodules, *own])

    def load(name: str) -> Any:
        if name in module_of:
            return getattr(importlib.import_module(module_of[name]), name)
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}; its public names are {', '.join(names)}")

    return load, lambda: list(names), list(names)
