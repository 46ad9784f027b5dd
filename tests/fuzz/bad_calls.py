"""Callables that are bad on purpose, in the form of `calls.py`: the fuzz must catch every one of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Its frames must look like the project's own, since what a call's own text raises is no failure of the project.
_FOLDER = Path(__import__("flexgen").__file__).parent
_SOURCE = """
def raises(number):
    return number + 1

def hangs(number):
    while number is None:
        pass
    return 0.0

def fills_memory(number):
    return [bytes(1 << 26) for _ in range(1 << 10)] if number is None else 0

def dies(number):
    if number is None:
        os._exit(1)

def answers_nan(number):
    return torch.full((2, 2), float("nan")) if number is None else 0.0

def refuses(number):
    raise FlexgenError("number", "is wrong", "Pass another.")
"""
_NAMES: dict[str, Any] = {"torch": torch, "np": np, "os": os}
exec("from flexgen.errors import FlexgenError", _NAMES)
exec(compile(_SOURCE, str(_FOLDER / "bad.py"), "exec"), _NAMES)
raises, hangs, fills_memory, dies, answers_nan, refuses = (
    _NAMES[name] for name in ("raises", "hangs", "fills_memory", "dies", "answers_nan", "refuses")
)
nan, inf = float("nan"), float("inf")

GROUPS = {name: [f"{name}(3)"] for name in ("raises", "hangs", "fills_memory", "dies", "answers_nan", "refuses")}
HELPERS: frozenset[str] = frozenset()


def prepare() -> None:
    pass
