"""Neural networks, as plain modules that know nothing of laws, training or sampling."""

from __future__ import annotations

from flexgen._lazy import attach_stub

# The names are those of __init__.pyi, loaded on first use: a UNet brings diffusers with it, which takes seconds.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
