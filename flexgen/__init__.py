"""flexgen: models of p(x_P | x_C) for arbitrary index sets, and one toolkit to train, sample and check them."""

from __future__ import annotations

from flexgen._lazy import attach_stub

__version__ = "0.1.0"

# The names are those of __init__.pyi, loaded on first use, so that `import samplers` stays light.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
