"""Deprecated: `FrameConditional` and `OverVideo` are in ``samplers.executor``."""

import warnings

from samplers.executor import FrameConditional, OverVideo

__all__ = ["FrameConditional", "OverVideo"]

warnings.warn("import OverVideo from samplers.executor", DeprecationWarning, stacklevel=2)
