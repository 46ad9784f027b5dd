"""Whether conditionals belong to one joint: exactly for tables and Gaussians, by measured effects for networks."""

from __future__ import annotations

from flexgen._lazy import lazily

# Public name -> module that holds it. Loaded on first use.
_MODULE_OF: dict[str, str] = {
    "ConditionalFamily": "flexgen.compatibility.family",
    "EstimatedTest": "flexgen.compatibility.estimated",
    "LogOddsGap": "flexgen.compatibility.rectangle_gaps",
    "TableCheck": "flexgen.compatibility.tables",
    "Violation": "flexgen.compatibility.violation",
    "bootstrap_test": "flexgen.compatibility.estimated",
    "check_tables": "flexgen.compatibility.tables",
    "rectangle_rank": "flexgen.compatibility.odds",
    "refits_test": "flexgen.compatibility.estimated",
    "wald_test": "flexgen.compatibility.estimated",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
