"""Which query comes next, and the one loop that evaluates it: mask laws, schedules, Gibbs and any-order samplers."""

from __future__ import annotations

from flexgen._lazy import attach_stub

# The names are those of __init__.pyi, loaded on first use, so that `import samplers` stays light.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
