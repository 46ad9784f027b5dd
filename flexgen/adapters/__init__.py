"""Models of other packages as conditionals."""

from __future__ import annotations

from flexgen._lazy import attach_stub

# The names are those of __init__.pyi, loaded on first use, since each needs its own extra.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
