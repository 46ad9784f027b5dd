"""The laws of the field under their own names, each a short composition of primitives.

They return laws, which print as what they are made of: ``print(mae())``.
"""

from __future__ import annotations

from collections.abc import Sequence

from flexgen.checks import entries, one_of, shape_of
from samplers.laws.base import Law, Weight
from samplers.laws.combine import Mixture, NonEmpty, Swap, Within
from samplers.laws.corrupted import Corrupted
from samplers.laws.frames import FrameGroups
from samplers.laws.groups import Groups, Patches
from samplers.laws.parts import Tied
from samplers.laws.rates import Beta, Cosine, TruncatedNormal, Uniform
from samplers.laws.regions import Blocks, Box, Pattern, Rectangle
from samplers.laws.sets import Bernoulli, FixedCount, Given, Prefix
from samplers.laws.sizes import PowerSize, Share, UniformSize
from samplers.laws.spans import GeometricSpans, NGrams, Spans

__all__ = [
    "any_order",
    "beit",
    "bert",
    "causal",
    "fdm",
    "mac",
    "mae",
    "mage",
    "maskgit",
    "mdlm",
    "power_cardinality",
    "sim_mim",
    "simformer",
    "simformer_tasks",
    "span_bert",
    "t5",
    "ul2",
    "uniform_cardinality",
    "vaeac_images",
    "vaeac_tables",
    "video_mae",
    "whole_word_bert",
    "xlnet",
]

# --- tables and any order


def uniform_cardinality(weight: Weight = "likelihood") -> Law:
    """|P| uniform on 1..n, then a uniform subset; weighted, an unbiased any-order likelihood in nats a row."""
    return FixedCount(UniformSize(low=1), weight)


def power_cardinality(power: float = 1.0, weight: Weight = "mean") -> Law:
    """P(|C| = k) proportional to (k + 1)^power over the entries present, k = 0..n-1, then a uniform subset.

    The default for tables: power 1 practises the well observed rows that imputation asks about.
    """
    return FixedCount(PowerSize(power), weight)


def any_order() -> Law:
    """|C| uniform on 0..n-1, then a uniform subset; weight n/|P| (ACE, Strauss & Oliva 2021; ARDM, Hoogeboom 2022)."""
    return uniform_cardinality("likelihood")


def mac() -> Law:
    """Marginals too: a uniform subset S of uniform size is all that exists; of it a uniform prefix in site order is
    observed and the next site asked for, at weight |S|. The expected loss is the mean of -log p(x_S) over S
    (Shih, Sadigh & Ermon 2022).
    """
    return Within(Prefix(UniformSize(low=0, leave=1), ahead=1, weight="likelihood"), FixedCount(UniformSize(low=1)))


def vaeac_tables(rate: float = 0.2) -> Law:
    """Each entry asked for with probability 0.2 (Ivanov, Figurnov & Vetrov 2019)."""
    return Bernoulli(rate)


def simformer() -> Law:
    """C by Bernoulli(Beta(1, 4)), one rate a row; a row that would observe everything observes nothing.

    Gloeckler et al. 2024.
    """
    return NonEmpty(Swap(Bernoulli(Beta(1, 4))))


def simformer_tasks(parameters: Sequence[int], data: Sequence[int]) -> Law:
    """One fifth each: the joint, the posterior, the likelihood, C by Bernoulli(.3) and by Bernoulli(.7).

    Args:
        parameters, data: the sites of theta and of x.
    """
    return Mixture(
        (
            Given(),
            Given(observed=data, target=parameters),
            Given(observed=parameters, target=data),
            NonEmpty(Swap(Bernoulli(0.3))),
            NonEmpty(Swap(Bernoulli(0.7))),
        )
    )


# --- text


def bert(rate: float = 0.15, replace: float = 0.1, keep: float = 0.1) -> Corrupted:
    """Each token asked for with probability 0.15; of those 80% hidden, 10% random, 10% kept (Devlin et al. 2019)."""
    return Corrupted(Bernoulli(rate), replace, keep)


def whole_word_bert(
    rate: float = 0.15, replace: float = 0.1, keep: float = 0.1, words: Groups | None = None
) -> Corrupted:
    """BERT whose words are asked for whole; `words` static, or given to each draw as `groups`."""
    return Corrupted(Tied(Bernoulli(rate), words), replace, keep)


def span_bert(words: Groups | None = None) -> Law:
    """Spans of whole words, geometric(0.2) on 1..10, until 15% of the words are asked for (Joshi et al. 2020)."""
    return Tied(GeometricSpans(density=0.15, p=0.2, max_length=10), words)


def t5(density: float = 0.15, mean_length: float = 3.0) -> Law:
    """Span corruption, 15% in spans of mean length 3 (Raffel et al. 2020)."""
    return Spans(density, mean_length)


def ul2(denoisers: Sequence[str] = ("R", "S", "X")) -> Law:
    """UL2's mixture of seven denoisers, equally likely (Tay et al. 2023).

    Args:
        denoisers: which families: "R" regular spans, "S" the last quarter of the sequence, "X" extreme spans.
    """
    families: dict[str, tuple[Law, ...]] = {
        "R": (Spans(0.15, 3), Spans(0.15, 8)),
        "S": (Prefix(Share(0.75, "floor")),),
        "X": (Spans(0.5, 3), Spans(0.5, 8), Spans(0.15, 64), Spans(0.5, 64)),
    }
    names = entries("denoisers", denoisers, "Pass a list of 'R', 'S' and 'X'.")
    return Mixture([law for name in names for law in families[one_of("denoisers", name, families)]])


def xlnet() -> Law:
    """n-grams in contexts six times their length, 85 of 512 tokens (Yang et al. 2019)."""
    return NGrams(count=85, full_length=512, alpha=6, beta=1, max_gram=5)


def causal() -> Law:
    """P = {i}, C = {j < i}, i uniform; weight n, so that the expected loss is -log p(x) (GPT)."""
    return Prefix(UniformSize(low=0, leave=1), ahead=1, weight="likelihood")


def mdlm(epsilon: float = 1e-3) -> Law:
    """Each token hidden with probability t = (1 - epsilon) u + epsilon, one u a row; weight 1/t.

    The expected loss is the any-order likelihood of `any_order`, up to epsilon. MDLM (Sahoo et al. 2024), LLaDA (Nie
    et al. 2025).
    """
    return Bernoulli(Uniform(epsilon, 1.0), weight="likelihood")


# --- images and video


def mae(rate: float = 0.75) -> Law:
    """A fixed share of the patches, 0.75 (He et al. 2022)."""
    return FixedCount(Share(rate, "ceil"))


def sim_mim(shape: Sequence[int], size: Sequence[int], rate: float = 0.6) -> Law:
    """0.6 of coarse patches, 32 pixels wide (Xie et al. 2022): a grid of 48 x 48 sites of 4 pixels has size (8, 8)."""
    return Tied(FixedCount(Share(rate, "ceil")), Patches(shape, size))


def video_mae(shape: Sequence[int], rate: float = 0.9) -> Law:
    """Tubes: 0.9 of a frame's places, the same in every frame of (frames, rows, columns) (Tong et al. 2022)."""
    shape = shape_of("shape", shape)
    frames, *plane = shape or (1,)
    return Tied(FixedCount(Share(rate, "floor")), Patches(shape, (frames, *(1 for _ in plane))))


def beit(shape: Sequence[int] = (14, 14), count: int = 75) -> Law:
    """Blocks of 16 patches or more, aspect ratio 0.3 to 1/0.3, covering up to 75 of 196 (Bao et al. 2022)."""
    return Blocks(shape, count, min_area=16, min_aspect=0.3, tries=10)


def maskgit() -> Law:
    """A share cos(pi u / 2) of the tokens, rounded up (Chang et al. 2022)."""
    return FixedCount(Share(Cosine(), "ceil"))


def mage() -> Law:
    """A share drawn from N(0.55, 0.25) truncated to [0.5, 1], rounded up (Li et al. 2023)."""
    return FixedCount(Share(TruncatedNormal(0.55, 0.25, 0.5, 1.0), "ceil"))


def vaeac_images(shape: Sequence[int]) -> Law:
    """Half a rectangle of 0.3 to 1 of the image, a quarter one of six face boxes, a quarter inpainting shapes.

    The boxes are those of Li et al. 2017, given at 128 pixels; the shapes, after Yeh et al. 2017, are the centre, a
    random pattern, 95% random pixels (2/10 each) and the four halves (1/10 each). Ivanov, Figurnov & Vetrov 2019.
    """
    face_boxes = (
        (52, 33, 116, 71),
        (52, 57, 116, 95),
        (52, 29, 74, 99),
        (52, 29, 74, 67),
        (52, 61, 74, 99),
        (86, 40, 124, 88),
    )
    faces = Mixture([Box(shape, *(edge / 128 for edge in box)) for box in face_boxes])
    halves = ((0.0, 0.0, 1.0, 0.5), (0.0, 0.0, 0.5, 1.0), (0.0, 0.5, 1.0, 1.0), (0.5, 0.0, 1.0, 1.0))
    inpainting = Mixture(
        (
            Box(shape, 0.25, 0.25, 0.75, 0.75),
            Pattern(shape, resolution=0.03, density=0.25),
            Bernoulli(0.95),
            *(Box(shape, *half) for half in halves),
        ),
        (0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1),
    )
    return Mixture((Rectangle(shape, 0.3, 1.0), faces, inpainting), (0.5, 0.25, 0.25))


def fdm(window: int = 20) -> Law:
    """Groups of evenly spaced frames that fill a window of 20 (Harvey et al. 2022)."""
    return FrameGroups(window)
