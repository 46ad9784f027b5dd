"""Whether conditionals belong to one joint: exactly for tables and Gaussians, by measured effects for networks."""

from __future__ import annotations

from flexgen._lazy import lazily

# Public name -> module that holds it. Loaded on first use.
_MODULE_OF: dict[str, str] = {
    "BlockTV": "flexgen.compatibility.samples.impact",
    "BlockVariation": "flexgen.compatibility.samples.impact",
    "Change": "flexgen.compatibility.samples.impact",
    "Circulation": "flexgen.compatibility.networks.circulation",
    "ClosestJoint": "flexgen.compatibility.exact.closest",
    "ConditionalFamily": "flexgen.compatibility.exact.family",
    "Cost": "flexgen.compatibility.networks.effects",
    "Effect": "flexgen.compatibility.networks.effects",
    "Estimate": "flexgen.compatibility.networks.effects",
    "EstimatedTest": "flexgen.compatibility.samples.counts",
    "ExactBlocks": "flexgen.compatibility.networks.blocks",
    "ExcessRisk": "flexgen.compatibility.networks.excess_risk",
    "GaussianCheck": "flexgen.compatibility.exact.gaussian",
    "GaussianConditionals": "flexgen.compatibility.exact.gaussian",
    "LogOddsGap": "flexgen.compatibility.samples.counts",
    "OrderGaps": "flexgen.compatibility.networks.orders",
    "PairOfScans": "flexgen.compatibility.samples.scans",
    "Rectangles": "flexgen.compatibility.networks.rectangles",
    "Report": "flexgen.compatibility.networks.report",
    "ScanDivergence": "flexgen.compatibility.exact.stationary",
    "ScanMean": "flexgen.compatibility.samples.impact",
    "ScanTest": "flexgen.compatibility.samples.scans",
    "ScoreAsymmetry": "flexgen.compatibility.networks.scores",
    "SiteAnswers": "flexgen.compatibility.networks.sites",
    "StatisticChange": "flexgen.compatibility.samples.impact",
    "TableCheck": "flexgen.compatibility.exact.tables",
    "Values": "flexgen.compatibility.networks.values",
    "Violation": "flexgen.compatibility.exact.family",
    "block_variation": "flexgen.compatibility.samples.impact",
    "bootstrap_test": "flexgen.compatibility.samples.counts",
    "check_gaussian": "flexgen.compatibility.exact.gaussian",
    "check_tables": "flexgen.compatibility.exact.tables",
    "circulation": "flexgen.compatibility.networks.circulation",
    "classifier_scan_test": "flexgen.compatibility.samples.scans",
    "closed_classes": "flexgen.compatibility.exact.stationary",
    "closest_gaussian": "flexgen.compatibility.exact.gaussian",
    "closest_joint": "flexgen.compatibility.exact.closest",
    "derivative_gaps": "flexgen.compatibility.networks.derivatives",
    "energy_scan_test": "flexgen.compatibility.samples.scans",
    "exact_blocks": "flexgen.compatibility.networks.blocks",
    "excess_pseudo_log_likelihood": "flexgen.compatibility.networks.excess_risk",
    "linear_score_asymmetry": "flexgen.compatibility.networks.scores",
    "order_gaps": "flexgen.compatibility.networks.orders",
    "product_of_conditionals": "flexgen.compatibility.exact.closest",
    "pseudo_log_likelihood": "flexgen.compatibility.networks.excess_risk",
    "rectangle_rank": "flexgen.compatibility.exact.cycles",
    "rectangles": "flexgen.compatibility.networks.rectangles",
    "refits_test": "flexgen.compatibility.samples.counts",
    "scan_divergence": "flexgen.compatibility.exact.stationary",
    "score_asymmetry": "flexgen.compatibility.networks.scores",
    "stationary": "flexgen.compatibility.exact.stationary",
    "stationary_gaussian": "flexgen.compatibility.exact.gaussian",
    "statistic_change": "flexgen.compatibility.samples.impact",
    "wald_test": "flexgen.compatibility.samples.counts",
}

__all__ = sorted((*_MODULE_OF, "repair"))

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
