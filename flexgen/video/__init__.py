"""Models of long videos: a backbone over windows of frames, its training, its draws, and a store for what it draws."""

from __future__ import annotations

from flexgen._lazy import attach_stub

# The names are those of __init__.pyi, loaded on first use: a backbone brings diffusers with it, which takes seconds.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
