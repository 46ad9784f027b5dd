"""Mask laws: distributions over queries (target P, observed C), and the weight each draw carries.

Few primitives, each with a size or a rate that is a number or a distribution; a few combinators; and the laws of the
field, which are short compositions of both:

    FixedCount(Share(0.75, "ceil"))                        MAE
    Tied(FixedCount(0.9), Patches((8, 14, 14), (8, 1, 1))) VideoMAE's tubes
    Bernoulli(Uniform(1e-3, 1), weight="likelihood")       MDLM, LLaDA
    NonEmpty(Swap(Bernoulli(Beta(1, 4))))                  Simformer

A draw holds one query a row and a weight; every loss is ``sum(weight * -log p(x_P | x_C))``.
"""

from samplers.laws import named
from samplers.laws.base import Exchangeable, Law, Rows, Sets, Support, Weight
from samplers.laws.combine import Mixture, NonEmpty, Swap, Within
from samplers.laws.corrupted import Corrupted
from samplers.laws.frames import FrameGroups
from samplers.laws.groups import Groups, Labels, Patches
from samplers.laws.missingness import LogisticMissing, QuantileMissing
from samplers.laws.named import *  # noqa: F403
from samplers.laws.parts import Product, Tied
from samplers.laws.plan_windows import Curriculum, PlanWindows
from samplers.laws.rates import Beta, Cosine, Rate, TruncatedNormal, Uniform
from samplers.laws.regions import Blocks, Box, Pattern, Rectangle
from samplers.laws.sets import Bernoulli, FixedCount, Given, Prefix, Strided
from samplers.laws.sizes import Exactly, PowerSize, Share, Size, UniformSize
from samplers.laws.spans import GeometricSpans, NGrams, Spans

__all__ = [
    "Bernoulli",
    "Beta",
    "Blocks",
    "Box",
    "Corrupted",
    "Cosine",
    "Curriculum",
    "Exactly",
    "Exchangeable",
    "FixedCount",
    "FrameGroups",
    "GeometricSpans",
    "Given",
    "Groups",
    "Labels",
    "Law",
    "LogisticMissing",
    "Mixture",
    "NGrams",
    "NonEmpty",
    "Patches",
    "Pattern",
    "PlanWindows",
    "PowerSize",
    "Prefix",
    "Product",
    "QuantileMissing",
    "Rate",
    "Rectangle",
    "Rows",
    "Sets",
    "Share",
    "Size",
    "Spans",
    "Strided",
    "Support",
    "Swap",
    "Tied",
    "TruncatedNormal",
    "Uniform",
    "UniformSize",
    "Weight",
    "Within",
    *named.__all__,
]
