"""Do chains of different scans have one law? Two-sample tests of their draws that respect autocorrelation.

Compatible conditionals have one joint, which every scan leaves invariant: chains that have converged then have one law,
whatever the scan. Chains of incompatible conditionals (pseudo-Gibbs samplers) have a law for each scan (Heckerman et
al. 2000). So different laws refute compatibility, provided that the chains have converged; equal ones do not prove it.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility.samples.arguments import (
    DrawsOfScans,
    check_generator,
    check_significance,
    check_space,
    checked_draws,
    checked_unit,
)
from flexgen.compatibility.samples.units import Unit, Units, cut, features
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = ["PairOfScans", "ScanTest", "energy_scan_test"]

_DISTANCES = 1 << 20  # held at once
_UNSETTLED = 0.01  # significance at which halves of chains are held to differ, over all scans together


@dataclass(frozen=True)
class PairOfScans:
    """Two scans compared.

    Args:
        first, second: their names.
        effect: see `ScanTest.effect_name`.
        standard_error: of the effect.
        p_value: of an effect this large if the two laws are equal.
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
    """Whether draws of different scans have one law.

    Args:
        method: the test's name.
        effect_name: what is estimated for each pair of scans, and its value where the laws are equal.
        pairs: every two scans.
        p_value: of all pairs together (Bonferroni).
        significance: of the verdict.
        unit: what was shuffled.
        num_units: units of each scan.
        settled: for each scan the p-value of "first and second halves of its chains have one law", where units are
            whole chains. A small one says that the chains had not converged. None: this test does not look at that.
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
            f"one law of all scans: {verdict} (p = {self.p_value:.3g}, "
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

    The distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| is zero iff the laws are equal (Székely & Rizzo 2013). X and X' are
    taken from different units, so that autocorrelation does not bias it; it is reported as a share of 2 E|X - Y|, from
    0 to 1. The p-value shuffles units between two scans. Since both give equally many, it is right in large samples
    also where the scans mix at different speeds (Romano 1990), as those of compatible conditionals may.

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
        significance: probability of refuting one law where there is one.

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
        "energy distance", "energy distance as a share, 0 where laws are equal", pairs, units, settled, significance
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
