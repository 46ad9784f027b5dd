"""Whether conditionals belong to one joint: exactly for tables and Gaussians, by measured effects for networks."""

from __future__ import annotations

from flexgen._lazy import lazily

# Public name -> module that holds it. Loaded on first use.
_MODULE_OF: dict[str, str] = {
    "BlockTV": "flexgen.compatibility.total_variation",
    "BlockVariation": "flexgen.compatibility.total_variation",
    "Change": "flexgen.compatibility.impact",
    "Circulation": "flexgen.compatibility.network_circulation",
    "ClosestJoint": "flexgen.compatibility.closest",
    "ConditionalFamily": "flexgen.compatibility.family",
    "Cost": "flexgen.compatibility.effects",
    "Effect": "flexgen.compatibility.effects",
    "Estimate": "flexgen.compatibility.effects",
    "EstimatedTest": "flexgen.compatibility.estimated",
    "ExactBlocks": "flexgen.compatibility.blocks",
    "ExcessRisk": "flexgen.compatibility.excess_risk",
    "GaussianCheck": "flexgen.compatibility.gaussian",
    "GaussianConditionals": "flexgen.compatibility.gaussian",
    "LogOddsGap": "flexgen.compatibility.rectangle_gaps",
    "OrderGaps": "flexgen.compatibility.orders",
    "PairOfScans": "flexgen.compatibility.scan_tests",
    "Rectangles": "flexgen.compatibility.network_rectangles",
    "Report": "flexgen.compatibility.report",
    "ScanDivergence": "flexgen.compatibility.scan_laws",
    "ScanMean": "flexgen.compatibility.impact",
    "ScanTest": "flexgen.compatibility.scan_tests",
    "ScoreAsymmetry": "flexgen.compatibility.scores",
    "SiteAnswers": "flexgen.compatibility.sites",
    "StatisticChange": "flexgen.compatibility.impact",
    "TableCheck": "flexgen.compatibility.tables",
    "Values": "flexgen.compatibility.values",
    "Violation": "flexgen.compatibility.violation",
    "block_variation": "flexgen.compatibility.total_variation",
    "bootstrap_test": "flexgen.compatibility.estimated",
    "check_gaussian": "flexgen.compatibility.gaussian",
    "check_tables": "flexgen.compatibility.tables",
    "circulation": "flexgen.compatibility.network_circulation",
    "classifier_scan_test": "flexgen.compatibility.scan_classifier",
    "closed_classes": "flexgen.compatibility.scan_laws",
    "closest_gaussian": "flexgen.compatibility.gaussian_laws",
    "closest_joint": "flexgen.compatibility.closest",
    "derivative_gaps": "flexgen.compatibility.derivatives",
    "energy_scan_test": "flexgen.compatibility.scan_tests",
    "exact_blocks": "flexgen.compatibility.blocks",
    "excess_pseudo_log_likelihood": "flexgen.compatibility.excess_risk",
    "linear_score_asymmetry": "flexgen.compatibility.scores",
    "order_gaps": "flexgen.compatibility.orders",
    "product_of_conditionals": "flexgen.compatibility.closest",
    "pseudo_log_likelihood": "flexgen.compatibility.excess_risk",
    "rectangle_rank": "flexgen.compatibility.odds",
    "rectangles": "flexgen.compatibility.network_rectangles",
    "refits_test": "flexgen.compatibility.fitted",
    "scan_divergence": "flexgen.compatibility.scan_laws",
    "score_asymmetry": "flexgen.compatibility.scores",
    "stationary": "flexgen.compatibility.scan_laws",
    "stationary_gaussian": "flexgen.compatibility.gaussian_laws",
    "statistic_change": "flexgen.compatibility.impact",
    "wald_test": "flexgen.compatibility.estimated",
}

__all__ = sorted((*_MODULE_OF, "repair"))

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
