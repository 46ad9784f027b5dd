"""Deprecated: what hangs on a window is answered by the plan, ``plan.dependents(window)``."""

import warnings

from samplers.frames.plan import Plan

__all__ = ["dependents", "needed_to_redo", "rewriters"]

warnings.warn("use plan.dependents(window) in place of samplers.window_order", DeprecationWarning, stacklevel=2)
dependents, rewriters, needed_to_redo = Plan.dependents, Plan.rewriters, Plan.needed_to_redo
