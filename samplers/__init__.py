"""Which query comes next, and the one loop that evaluates it: mask laws, schedules, Gibbs and any-order samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexgen._lazy import lazily

if TYPE_CHECKING:
    from samplers import any_order as any_order
    from samplers import chains as chains
    from samplers import frames as frames
    from samplers import laws as laws
    from samplers import observers as observers
    from samplers import parallel as parallel
    from samplers import scans as scans
    from samplers import tempering as tempering
    from samplers.any_order import AnyOrder as AnyOrder
    from samplers.gibbs import GibbsSampler as GibbsSampler
    from samplers.metropolis import MetropolisSampler as MetropolisSampler
    from samplers.parallel import ParallelDecode as ParallelDecode
    from samplers.reducibility import ReducibleWarning as ReducibleWarning
    from samplers.results import ChainResult as ChainResult
    from samplers.results import ChainState as ChainState
    from samplers.schedule import Factorized as Factorized
    from samplers.schedule import Schedule as Schedule
    from samplers.schedule import run as run
    from samplers.tempering import ParallelTempering as ParallelTempering
    from samplers.tempering import TemperedConditional as TemperedConditional

# Public name -> module that holds it. Loaded on first use (PEP 562), so that `import samplers` stays light.
_MODULE_OF = {
    "AnyOrder": "samplers.any_order",
    "ChainResult": "samplers.results",
    "ChainState": "samplers.results",
    "Factorized": "samplers.schedule",
    "GibbsSampler": "samplers.gibbs",
    "MetropolisSampler": "samplers.metropolis",
    "ParallelDecode": "samplers.parallel",
    "ParallelTempering": "samplers.tempering",
    "ReducibleWarning": "samplers.reducibility",
    "Schedule": "samplers.schedule",
    "TemperedConditional": "samplers.tempering",
    "run": "samplers.schedule",
}
_SUBMODULES = frozenset({"any_order", "chains", "frames", "laws", "observers", "parallel", "scans", "tempering"})

__all__ = sorted((*_MODULE_OF, *_SUBMODULES))

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
