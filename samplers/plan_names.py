"""The names of plans, spelled in one way; light, so that a command can read them before anything else is loaded."""

from __future__ import annotations

import re

from flexgen.errors import PlanError

__all__ = ["CHOICES", "plan_name"]

CHOICES = "tree, autoregressive, long-range, hierarchy-n, adaptive-autoregressive, adaptive-hierarchy-n (n: 2 or more)"

_NAME = re.compile(r"tree|(?:adaptive-)?autoregressive|long-range|(?:adaptive-)?hierarchy-0*(?:[2-9]|[1-9]\d+)")


def plan_name(name: str) -> str:
    """A plan's name in this spelling: ``"long-range"`` for ``"long_range"``, ``"hierarchy-2"`` for ``"hierarchy"``.

    Raises:
        PlanError: no plan has this name.
    """
    if not isinstance(name, str):
        raise PlanError("plan", f"is a {type(name).__name__}", f"Choose one of {CHOICES}.")
    plain = name.strip().lower().replace("_", "-").replace("hierarchical", "hierarchy")
    plain = f"{plain}-2" if plain in ("hierarchy", "adaptive-hierarchy") else plain
    if not _NAME.fullmatch(plain):
        raise PlanError("plan", f"is {name!r}", f"Choose one of {CHOICES}.")
    return plain
