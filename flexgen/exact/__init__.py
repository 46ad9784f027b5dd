"""Families whose conditionals are known exactly, in float64: the ground truth for everything else."""

from flexgen.exact import kernels
from flexgen.exact.gaussian import Gaussian
from flexgen.exact.marginals import GaussianMixtureMarginals
from flexgen.exact.mixture import GaussianMixture
from flexgen.exact.tables import ConditionalTables, JointTable

__all__ = [
    "ConditionalTables",
    "Gaussian",
    "GaussianMixture",
    "GaussianMixtureMarginals",
    "JointTable",
    "kernels",
]
