"""Whether conditionals belong to one joint: exactly for tables and Gaussians, by measured effects for networks."""

from __future__ import annotations

from flexgen._lazy import lazily

# Public name -> module that holds it. Loaded on first use.
_MODULE_OF: dict[str, str] = {
    "Circulation": "flexgen.compatibility.network_circulation",
    "ClosestJoint": "flexgen.compatibility.closest",
    "ConditionalFamily": "flexgen.compatibility.family",
    "Cost": "flexgen.compatibility.effects",
    "Effect": "flexgen.compatibility.effects",
    "Estimate": "flexgen.compatibility.effects",
    "EstimatedTest": "flexgen.compatibility.estimated",
    "ExactBlocks": "flexgen.compatibility.blocks",
    "LogOddsGap": "flexgen.compatibility.rectangle_gaps",
    "OrderGaps": "flexgen.compatibility.orders",
    "PairOfScans": "flexgen.compatibility.scan_tests",
    "Rectangles": "flexgen.compatibility.network_rectangles",
    "Report": "flexgen.compatibility.report",
    "ScanDivergence": "flexgen.compatibility.scan_laws",
    "ScanTest": "flexgen.compatibility.scan_tests",
    "ScoreAsymmetry": "flexgen.compatibility.scores",
    "SiteAnswers": "flexgen.compatibility.sites",
    "TableCheck": "flexgen.compatibility.tables",
    "Values": "flexgen.compatibility.values",
    "Violation": "flexgen.compatibility.violation",
    "bootstrap_test": "flexgen.compatibility.estimated",
    "check_tables": "flexgen.compatibility.tables",
    "circulation": "flexgen.compatibility.network_circulation",
    "classifier_scan_test": "flexgen.compatibility.scan_classifier",
    "closed_classes": "flexgen.compatibility.scan_laws",
    "closest_joint": "flexgen.compatibility.closest",
    "derivative_gaps": "flexgen.compatibility.derivatives",
    "energy_scan_test": "flexgen.compatibility.scan_tests",
    "exact_blocks": "flexgen.compatibility.blocks",
    "linear_score_asymmetry": "flexgen.compatibility.scores",
    "order_gaps": "flexgen.compatibility.orders",
    "product_of_conditionals": "flexgen.compatibility.closest",
    "rectangle_rank": "flexgen.compatibility.odds",
    "rectangles": "flexgen.compatibility.network_rectangles",
    "refits_test": "flexgen.compatibility.estimated",
    "scan_divergence": "flexgen.compatibility.scan_laws",
    "score_asymmetry": "flexgen.compatibility.scores",
    "stationary": "flexgen.compatibility.scan_laws",
    "wald_test": "flexgen.compatibility.estimated",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
