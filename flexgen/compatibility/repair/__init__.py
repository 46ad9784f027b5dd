"""Repair: what to do about conditionals that have no joint, each way measured by the diagnostics that found it."""

from __future__ import annotations

from flexgen._lazy import attach_stub

# The names are those of __init__.pyi, loaded on first use.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
