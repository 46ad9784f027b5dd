"""Do chains of different scans have one distribution? Two-sample tests of their draws that respect autocorrelation.

Compatible conditionals have one joint, which every scan leaves invariant: chains that have converged then have one
distribution, whatever the scan. Chains of incompatible conditionals (pseudo-Gibbs samplers) have a distribution for
each scan (Heckerman et al. 2000). So different distributions refute compatibility, provided that the chains have
converged; equal ones do not prove it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import einops
import numpy as np
import torch
from scipy import stats
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.arguments import (
    DrawsOfScans,
    Unit,
    check_generator,
    check_significance,
    check_space,
    checked_draws,
    checked_unit,
)
from flexgen.errors import DataError, FlexgenError
from flexgen.metrics.two_sample import TwoSampleResult, compare_groups
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = [
    "PairOfScans",
    "ScanTest",
    "Unit",
    "Units",
    "classifier_scan_test",
    "cut",
    "energy_scan_test",
    "features",
]

_DISTANCES = 1 << 20  # held at once
_UNSETTLED = 0.01  # significance at which halves of chains are held to differ, over all scans together


@dataclass(frozen=True)
class PairOfScans:
    """Two scans compared.

    Args:
        first, second: their names.
        effect: see `ScanTest.effect_name`.
        standard_error: of the effect.
        p_value: of an effect this large if the two distributions are equal.
    """

    first: str
    second: str
    effect: float
    standard_error: float
    p_value: float

    def __str__(self) -> str:
        value = f"{self.effect:.4f} ± {self.standard_error:.4f}"
        return f"{self.first} | {self.second}: {value}, p = {self.p_value:.3g}"

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class ScanTest:
    """Whether draws of different scans have one distribution.

    Args:
        method: the test's name.
        effect_name: what is estimated for each pair of scans, and its value where the distributions are equal.
        pairs: every two scans.
        p_value: of all pairs together (Bonferroni).
        significance: of the verdict.
        unit: what was shuffled.
        num_units: units of each scan.
        settled: for each scan the p-value of "first and second halves of its chains have one distribution", where units
            are whole chains. A small one says that the chains had not converged. None: this test does not look at that.
        verdict: "refuted" if `p_value` is at most the significance, else "not refuted"; "not measured" where a scan is
            unsettled, whatever the p-value.
    """

    method: str
    effect_name: str
    pairs: tuple[PairOfScans, ...]
    p_value: float
    significance: float
    unit: str
    num_units: int
    settled: dict[str, float] | None
    verdict: Literal["refuted", "not refuted", "not measured"]

    @property
    def unsettled(self) -> tuple[str, ...]:
        """The scans whose chains still moved."""
        settled = self.settled or {}
        return tuple(name for name, p in settled.items() if p <= _UNSETTLED / len(settled))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        verdict = f"{self.verdict} at significance {self.significance:g}"
        if self.verdict == "not measured":
            verdict = "nothing is concluded"
        lines = [
            f"one distribution of all scans: {verdict} (p = {self.p_value:.3g}, "
            f"{self.method}; {self.num_units} {self.unit} of each scan)",
            f"  {self.effect_name} (± one standard error):",
        ]
        lines.extend(f"    {pair}" for pair in self.pairs)
        lines.extend(
            f"  chains of {name} had not converged (their halves differ, p = {(self.settled or {})[name]:.3g}): warm "
            "up longer, or look whether the axes are [chains, draws, N]"
            for name in self.unsettled
        )
        if self.settled is None:
            lines.append("  whether the chains had converged this test does not look at; energy_scan_test does")
        elif not self.settled:
            lines.append("  units are no whole chains: whether the chains had converged was not tested")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def energy_scan_test(
    draws: DrawsOfScans,
    *,
    generator: Randomness | int,
    unit: Unit = "auto",
    space: Space | None = None,
    num_permutations: int = 999,
    max_draws: int = 4096,
    significance: float = 0.05,
) -> ScanTest:
    """Energy distance between the draws of every two scans, with whole chains (or blocks) shuffled between them.

    The distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| is zero iff the distributions are equal (Székely & Rizzo 2013). X
    and X' are taken from different units, so that autocorrelation does not bias it; it is reported as a share of 2 E|X
    - Y|, from 0 to 1. The p-value shuffles units between two scans. Since both give equally many, it is right in large
    samples also where the scans mix at different speeds (Romano 1990), as those of compatible conditionals may.

    Args:
        draws: name of a scan -> ``[chains, draws, N]``, warm-up left out, or what a sampler's run returned (anything
            with `.draws`, ``[draws, chains, N]``). Integers are categories, floats are numbers, unless `space` says
            otherwise; whole numbers of a run are integers. Chains must be independent, also those of different scans:
            run every scan with a seed of its own. Many chains are better than long ones.
        generator: of the shuffles, or a seed.
        unit: see docs/compatibility/draws.md; whole chains where every scan has 16 or more.
        space: what the sites hold.
        num_permutations: p-values are multiples of 1 / (num_permutations + 1).
        max_draws: draws looked at, over all scans, evenly spaced in each unit: time and memory grow with their square.
        significance: probability of refuting one distribution where there is one.

    Raises:
        DataError: draws of other shapes, or with too few independent units.
        FlexgenError: options that cannot be used.
    """
    units = prepared(draws, unit, space, num_permutations, max_draws, significance)
    generator = check_generator(generator)
    distance = _unit_distances(features(units, space))  # [2 M U, 2 M U], halves of units
    num_units, names = len(units.draws[units.names[0]]), units.names
    source = rng.stream(rng.seed_from(generator), "energy")
    between = distance.view(len(distance) // 2, 2, -1, 2).mean((1, 3))  # [M U, M U]
    pairs = []
    for a, b in itertools.combinations(range(len(names)), 2):
        both = torch.cat([torch.arange(num_units) + k * num_units for k in (a, b)])
        part = between[both][:, both].clone().fill_diagonal_(0.0)
        effect, error = _energy(part)
        signs = torch.ones(2 * num_units, dtype=torch.float64)
        signs[num_units:] = -1.0
        orders = rng.permutation(num_permutations, 2 * num_units, generator=source)
        # With equally many units of both, the distance falls with z^T D z, z = +1 and -1.
        p = share_as_large(-_quadratic(part, signs[None]), -_quadratic(part, signs[orders]))
        pairs.append(PairOfScans(names[a], names[b], effect, error, p))
    settled: dict[str, float] = {}
    if units.whole_chains:
        blocks = torch.split(distance, 2 * num_units)
        for k, name in enumerate(names):
            own = torch.split(blocks[k], 2 * num_units, dim=1)[k]
            settled[name] = _halves_p_value(own, num_permutations, source)
    return concluded(
        "energy distance",
        "energy distance as a share, 0 where distributions are equal",
        pairs,
        units,
        settled,
        significance,
    )


def concluded(
    method: str,
    effect_name: str,
    pairs: list[PairOfScans],
    units: Units,
    settled: dict[str, float] | None,
    significance: float,
) -> ScanTest:
    """The verdict over all pairs; `settled` is None of a test that does not look at whether chains had converged."""
    p_value = min(1.0, len(pairs) * min(pair.p_value for pair in pairs))
    num_units = len(units.draws[units.names[0]])
    result = ScanTest(
        method, effect_name, tuple(pairs), p_value, significance, units.kind, num_units, settled, "not refuted"
    )
    if result.unsettled:
        return replace(result, verdict="not measured")
    return replace(result, verdict="refuted") if p_value <= significance else result


def prepared(
    draws: DrawsOfScans,
    unit: Unit,
    space: Space | None,
    num_permutations: int,
    max_draws: int,
    significance: float,
) -> Units:
    """Checked draws as units, balanced and thinned."""
    whole_number("num_permutations", num_permutations, 19)
    whole_number("max_draws", max_draws, 16)
    check_significance(significance)
    check_space(space)
    return cut(checked_draws(draws), checked_unit(unit), space).balanced().thinned(max_draws)


def _unit_distances(points: dict[str, Tensor]) -> Tensor:
    """Mean distances between draws of the halves of units, ``[2 U, 2 U]`` over the units of all scans."""
    halves = []
    for values in points.values():
        size = max(values.shape[1] // 2, 1)  # a single draw is both halves
        halves.append(torch.stack([values[:, :size], values[:, -size:]], 1).flatten(0, 1))  # [2 U, L / 2, F]
    out = []
    for x in halves:
        columns = []
        for y in halves:
            together = max(1, _DISTANCES // (x.shape[1] * y.shape[0] * y.shape[1]))
            means = [
                _distances(part.flatten(0, 1), y.flatten(0, 1)).view(len(part), -1, *y.shape[:2]).mean((1, 3))
                for part in torch.split(x, together)
            ]
            columns.append(torch.cat(means))  # [2 U, 2 U]
        out.append(torch.cat(columns, 1))
    return torch.cat(out)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean, by a matrix product; what is zero up to rounding is zero, lest its root be 1e-8."""
    norms = (x**2).sum(1)[:, None] + (y**2).sum(1)
    square = norms - 2 * x @ y.T
    return torch.where(square > 1e-12 * norms, square, 0.0).sqrt()


def _energy(distance: Tensor) -> tuple[float, float]:
    """Energy distance as a share of 2 E|X - Y|, and its jackknife error, from ``[2 U, 2 U]`` with a diagonal of 0."""
    n = len(distance) // 2
    within = torch.stack([distance[:n, :n].sum(1), distance[n:, n:].sum(1)])  # [2, U]
    across = torch.stack([distance[:n, n:].sum(1), distance[:n, n:].sum(0)])

    def share(within_sums: Tensor, pairs_within: Tensor, across_sum: Tensor, pairs_across: float) -> Tensor:
        twice = 2 * across_sum / pairs_across
        return (twice - (within_sums / pairs_within).sum(0)) / twice

    same = torch.full((2,), float(n * (n - 1)))
    whole = share(within.sum(1), same, across[0].sum(), n * n)
    variance = torch.zeros((), dtype=torch.float64)
    for k in range(2):  # leave out one unit of one scan
        sums = within.sum(1)[:, None].repeat(1, n)
        sums[k] -= 2 * within[k]
        pairs = same[:, None].repeat(1, n)
        pairs[k] = (n - 1) * (n - 2)
        without = share(sums, pairs, across[0].sum() - across[k], n * (n - 1))
        variance = variance + (n - 1) / n * ((without - without.mean()) ** 2).sum()
    return float(whole), float(variance.sqrt())


def _halves_p_value(distance: Tensor, num_permutations: int, source: torch.Generator) -> float:
    """Of first and second halves of the chains of a scan: the halves of each chain are swapped, or not."""
    first, second = distance[0::2], distance[1::2]
    product = first[:, 1::2] + second[:, 0::2] - first[:, 0::2] - second[:, 1::2]
    product.fill_diagonal_(0.0)
    observed = _quadratic(product, torch.ones(1, len(product), dtype=torch.float64))
    signs = 2.0 * rng.integers(2, (num_permutations, len(product)), generator=source).to(torch.float64) - 1.0
    return share_as_large(observed, _quadratic(product, signs))


def _quadratic(matrix: Tensor, z: Tensor) -> Tensor:
    return ((z @ matrix) * z).sum(1)


def share_as_large(observed: Tensor, shuffled: Tensor) -> float:
    """A p-value; values equal up to rounding count as equal."""
    slack = 1e-9 * float(observed.abs().max())
    return (1 + int((shuffled >= observed - slack).sum())) / (len(shuffled) + 1)


# Draws of chains cut into units that are independent and exchangeable: whole chains, or long blocks of few chains.
#
# Draws of one chain resemble each other, so n draws say less than n independent ones, and a test that shuffles draws
# finds differences where there are none. Everything that compares scans here shuffles, splits and averages *units*.


_MIN_UNITS = 8  # of each scan: 12 870 ways to shuffle two scans
_ENOUGH_CHAINS = 16  # from here on whole chains are the units, which needs no assumption on how fast they mix
_BLOCK_TIMES = 20  # length of a block in autocorrelation times: neighbours then correlate by about 2 %
_SWAPPED = 1e-7  # false-alarm rate of taking the axes to be swapped


@dataclass(frozen=True, eq=False)
class Units:
    """Units of each scan.

    Args:
        draws: of each scan ``[U, L, N]``: units, draws in each, sites.
        kind: what a unit is, in words.
        whole_chains: whether units are whole chains.
    """

    draws: dict[str, Tensor]
    kind: str
    whole_chains: bool

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}: {len(units)}" for name, units in self.draws.items())
        return f"Units({self.kind}; {numbers})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.draws)

    def balanced(self) -> Units:
        """As many units of every scan: the last ones of each. Shuffles are then right even if scans mix unequally."""
        least = min(len(units) for units in self.draws.values())
        return Units({name: units[-least:] for name, units in self.draws.items()}, self.kind, self.whole_chains)

    def thinned(self, max_draws: int) -> Units:
        """Evenly spaced draws of each unit, at most `max_draws` of all scans, but two of each unit if it has them."""
        num_units = sum(len(units) for units in self.draws.values())
        each = max(2, max_draws // num_units)
        return Units(
            {name: units[:, _evenly(units.shape[1], each)] for name, units in self.draws.items()},
            self.kind,
            self.whole_chains,
        )


def cut(draws: Mapping[str, Tensor], unit: Unit = "auto", space: Space | None = None) -> Units:
    """The units of the draws of some scans.

    Args:
        draws: name of a scan -> ``[chains, draws, N]``, two scans or more over the same sites.
        unit: ``"chain"``: whole chains; a number: blocks of so many draws; ``"auto"``: whole chains where every scan
            has 16 or more, else blocks of 20 autocorrelation times, of the slowest site of the slowest scan.
        space: what the sites hold, to check the draws against.

    Raises:
        DataError: other shapes; chains that follow on each other (the axes are swapped); fewer than 8 units of a scan.
        FlexgenError: a unit that is none.
    """
    if not isinstance(draws, Mapping):
        raise DataError("draws", f"is {kind_of(draws)}", "Pass the draws by name of scan: {'forward': .., 'back': ..}.")
    chains = {name: _checked(name, values, space) for name, values in draws.items()}
    if len(chains) < 2:
        raise DataError("draws", f"holds {len(chains)} scan(s)", "Pass the draws of two scans or more, by name.")
    widths = {tuple(values.shape[2:]) for values in chains.values()}
    kinds = {values.is_floating_point() for values in chains.values()}
    if len(widths) > 1 or len(kinds) > 1:
        raise DataError("draws", "differ between scans in sites or in dtype", "Pass draws over the same sites.")
    if unit == "auto":
        many = min(len(values) for values in chains.values()) >= _ENOUGH_CHAINS
        unit = "chain" if many else max(_block_length(name, values) for name, values in chains.items())
    if unit == "chain":
        units, kind = chains, "whole chains"
    elif isinstance(unit, int | np.integer) and not isinstance(unit, bool) and unit >= 1:
        length = int(unit)
        units = {name: _blocks(values, length) for name, values in chains.items()}
        kind = f"blocks of {length} draws"
    else:
        raise FlexgenError("unit", f"is {unit!r}", "Pass 'auto', 'chain', or the number of draws of a block.")
    for name, values in units.items():
        if len(values) < _MIN_UNITS:
            raise DataError(
                "draws",
                f"of scan {name!r} give {len(values)} independent units ({kind})",
                f"Run {_MIN_UNITS} chains or more of each scan ({_ENOUGH_CHAINS} are better), or longer ones.",
            )
    return Units(units, kind, unit == "chain")


def features(units: Units, space: Space | None = None) -> dict[str, Tensor]:
    """Draws as points whose Euclidean distance means something, float64 ``[U, L, F]`` of each scan.

    A category becomes indicators, scaled so that two different ones are at distance 1; numbers are divided by their
    standard deviation over all scans. Euclidean distances of indicators see every joint distribution; counting the
    sites that differ would see the one-site marginals only, since an expected count is a sum over sites.
    """
    pooled = torch.cat([values.flatten(0, 1) for values in units.draws.values()])  # [n, N]
    columns = []
    for site in range(pooled.shape[1]):
        column = pooled[:, site]
        kind = space.sites[site].kind if space is not None else None
        if kind == "categorical" or (kind is None and not pooled.is_floating_point()):
            codes = torch.unique(column, return_inverse=True)[1]
            columns.append(torch.nn.functional.one_hot(codes).to(torch.float64) * 0.5**0.5)
        else:
            numbers = column.to(torch.float64)
            columns.append((numbers / numbers.std().clamp_min(1e-300))[:, None])
    points = torch.cat(columns, 1)
    counts = [values.shape[0] * values.shape[1] for values in units.draws.values()]
    parts = torch.split(points, counts)
    return {
        name: part.view(*values.shape[:2], -1)  # [U * L, F] -> [U, L, F]
        for (name, values), part in zip(units.draws.items(), parts, strict=True)
    }


def unit_means(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all units and its Monte Carlo standard error, from the spread of the units' own means.

    Args:
        values: ``[U, L, ...]``.
    """
    means = values.to(torch.float64).mean(1)  # [U, ...]
    return means.mean(0), means.std(0) / len(means) ** 0.5


def _checked(name: str, draws: Tensor, space: Space | None) -> Tensor:
    try:
        values = torch.as_tensor(draws).detach()
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"draws[{name!r}]", f"is {kind_of(draws)}", "Pass a tensor [chains, draws, N].") from error
    if values.ndim < 3 or min(values.shape[:3]) < 1 or values.shape[1] < 2:
        raise DataError(
            f"draws[{name!r}]", f"has shape {tuple(values.shape)}", "Pass [chains, draws, N], two draws or more."
        )
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise DataError(f"draws[{name!r}]", "holds a number that is not finite", "Look at the chain that made it.")
    if space is not None and (values.ndim > 3 or values.shape[2] != space.num_sites):
        raise DataError(f"draws[{name!r}]", f"has shape {tuple(values.shape)}", f"Pass {space.num_sites} sites.")
    values = values.flatten(2)  # [chains, draws, N, *site] -> [chains, draws, N * E]
    _refuse_swapped(name, values)
    return values


def _refuse_swapped(name: str, chains: Tensor) -> None:
    """Neighbouring chains of one scan are independent; if their means follow on each other, time is the first axis."""
    if len(chains) < _ENOUGH_CHAINS:
        return
    means = chains.to(torch.float64).mean(1)  # [chains, N]
    means = means - means.mean(0)
    power = (means**2).sum(0)
    moving = power > 1e-20 * chains.shape[1]
    correlation = ((means[1:] * means[:-1]).sum(0) / power)[moving]
    alarm = float(stats.norm.isf(_SWAPPED / max(len(correlation), 1)))
    if bool((correlation * len(means) ** 0.5 > alarm).any()):
        raise DataError(
            f"draws[{name!r}]",
            f"has shape {tuple(chains.shape)}, and its neighbouring chains resemble each other",
            "Pass [chains, draws, N]; samplers return [draws, chains, N]: call draws.transpose(0, 1), or pass their "
            "whole result.",
        )


def _block_length(name: str, chains: Tensor) -> int:
    """The least power of two that is 20 times the autocorrelation time, as its own batch means tell it."""
    values = chains.to(torch.float64)
    variance = values.flatten(0, 1).var(0)
    moves = variance > 0
    length = 1
    while length <= values.shape[1]:
        blocks = _blocks(values, length)
        if len(blocks) < _MIN_UNITS:
            break
        time = length * (blocks.mean(1).var(0) / variance)[moves]  # of each site
        if len(time) == 0 or length >= _BLOCK_TIMES * float(time.max()):
            return length
        length *= 2
    raise DataError(
        f"draws[{name!r}]",
        f"are too few to tell how far apart they must be ({len(chains)} chains of {chains.shape[1]} draws)",
        f"Run {_ENOUGH_CHAINS} chains or more, or longer ones; or give unit= as the length of a block.",
    )


def _blocks(chains: Tensor, length: int) -> Tensor:
    """The last draws of each chain in blocks, ``[U, length, N]``, in the order of chains and time."""
    number = chains.shape[1] // length
    if number == 0:
        return chains[:0, :1]
    return chains[:, -number * length :].reshape(len(chains) * number, length, -1)


def _evenly(size: int, most: int) -> Tensor:
    """At most so many places of 0 .. size - 1, evenly spread, the middle of each stretch."""
    if size <= most:
        return torch.arange(size)
    return ((torch.arange(most, dtype=torch.float64) + 0.5) * size / most).long()


# Can a classifier tell from which scan a draw is? Folds and shuffles take whole units: it must not know a chain.

_MAX_CATEGORIES = 255  # of a column that trees take as categories


def classifier_scan_test(
    draws: DrawsOfScans,
    *,
    generator: Randomness | int,
    unit: Unit = "auto",
    space: Space | None = None,
    num_folds: int = 4,
    num_permutations: int = 999,
    max_draws: int = 20_000,
    significance: float = 0.05,
) -> ScanTest:
    """Boosted trees that classify which of two scans a draw is from (Lopez-Paz & Oquab 2017), chains kept whole.

    `flexgen.metrics.classifier_two_sample_test` with units as its groups: folds hold whole units, and whole units are
    shuffled. The effect is the area under the ROC curve, 1/2 where the distributions are equal; an area A means a total
    variation of at least 1 - sqrt(2 (1 - A)) between the distributions.

    It sees differences of many sites at once that distances drown in noise, and costs more than `energy_scan_test`,
    whose arguments it shares. Whether the chains had converged it does not test.

    Args:
        num_folds: each needs two units of every scan or more. With 2, half of the units teach and half are scored,
            and the p-value is exact where scans mix alike.
        max_draws: of all scans, evenly spaced in each unit.

    Raises:
        DataError, FlexgenError: as `energy_scan_test`; too few units for the folds.
    """
    units = prepared(draws, unit, space, num_permutations, max_draws, significance)
    generator = check_generator(generator)
    names, num_units = units.names, len(units.draws[units.names[0]])
    whole_number("num_folds", num_folds, 2)
    if num_units < 2 * num_folds:
        raise FlexgenError("num_folds", f"is {num_folds}, of {num_units} units", f"Pass {num_units // 2} or fewer.")
    source = rng.stream(rng.seed_from(generator), "classifier")
    pairs = []
    for first, second in itertools.combinations(names, 2):
        result = _compare(units, first, second, space, num_folds, num_permutations, source)
        assert result.spread is not None
        pairs.append(PairOfScans(first, second, result.auc, result.spread, result.p_value))
    effect_name = "area under the ROC curve, 1/2 where distributions are equal"
    return concluded("classifier", effect_name, pairs, units, None, significance)


def _compare(
    units: Units,
    first: str,
    second: str,
    space: Space | None,
    num_folds: int,
    num_permutations: int,
    source: torch.Generator,
) -> TwoSampleResult:
    draws = torch.cat([units.draws[first], units.draws[second]])  # [2 U, L, N]
    half = len(draws) // 2
    codes, categorical = _columns(draws, space)
    group = np.arange(2 * half).repeat(draws.shape[1])
    x = einops.rearrange(codes, "unit draw site -> (unit draw) site").numpy()
    return compare_groups(x, group, (half, half), categorical, num_folds, num_permutations, source)


def _columns(draws: Tensor, space: Space | None) -> tuple[Tensor, list[bool]]:
    """Draws as the trees take them, float64, and which columns are categories."""
    kinds = [site.kind for site in space.sites] if space is not None else [None] * draws.shape[2]
    columns, categorical = [], []
    for site, kind in enumerate(kinds):
        column = draws[..., site].to(torch.float64)
        is_category = kind == "categorical" or (kind is None and not draws.is_floating_point())
        values, codes = torch.unique(column, return_inverse=True)
        categorical.append(bool(is_category and len(values) <= _MAX_CATEGORIES))
        columns.append(codes.to(torch.float64) if categorical[-1] else column)
    return torch.stack(columns, -1), categorical
