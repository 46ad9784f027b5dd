"""Repair: what to do about conditionals that have no joint, each way measured by the diagnostics that found it."""

from __future__ import annotations

from flexgen._lazy import lazily

# Public name -> module that holds it. Loaded on first use.
_MODULE_OF: dict[str, str] = {
    "ConsistencyPenalty": "flexgen.compatibility.repair.penalty",
    "EnergyModel": "flexgen.energy.joints",
    "FiniteJoint": "flexgen.energy.joints",
    "OrderEnsemble": "flexgen.energy.orders",
    "Penalised": "flexgen.compatibility.repair.penalty",
    "PottsNetwork": "flexgen.energy.joints",
    "RandomScan": "flexgen.compatibility.repair.scan_gain",
    "TableEnergy": "flexgen.energy.joints",
    "TargetedPseudoLikelihood": "flexgen.compatibility.repair.distillation",
    "distil": "flexgen.compatibility.repair.distillation",
    "random_scan": "flexgen.compatibility.repair.scan_gain",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
