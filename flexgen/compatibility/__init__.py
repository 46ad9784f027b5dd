"""Whether conditionals belong to one joint: exactly for tables and Gaussians, by measured effects for networks."""

from __future__ import annotations

from flexgen._lazy import attach_stub

# The names are those of __init__.pyi, loaded on first use.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
