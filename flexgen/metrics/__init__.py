"""Scores: of imputations against the truth, of joint samples against real rows."""

from __future__ import annotations

from flexgen.metrics.imputation import ImputationError
from flexgen.metrics.two_sample import TwoSampleResult, classifier_two_sample_test

__all__ = ["ImputationError", "TwoSampleResult", "classifier_two_sample_test"]
