"""What an incompatibility changes: the distribution of a block of sites, a statistic, the fit to
data.

A diagnostic says that conditionals disagree; these say how much it matters. Draws come from chains that have converged,
one set for each scan; all errors are those of independent units, see `units`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.arguments import (
    DrawsOfScans,
    Unit,
    check_callable,
    check_confidence,
    check_generator,
    check_margin,
    checked_draws,
    checked_unit,
    numbers,
)
from flexgen.compatibility.networks.effects import Verdict
from flexgen.compatibility.samples.scans import Units, cut
from flexgen.errors import DataError, FlexgenError
from flexgen.rng import Randomness

__all__ = [
    "BlockTV",
    "BlockVariation",
    "Change",
    "ScanMean",
    "StatisticChange",
    "block_variation",
    "statistic_change",
]


@dataclass(frozen=True)
class ScanMean:
    """A statistic under one scan.

    Args:
        scan: its name.
        value: of the statistic.
        mcse: its Monte Carlo standard error.
        ess: effective draws: independent ones that would give this error; NaN for statistics that are no means.
    """

    scan: str
    value: float
    mcse: float
    ess: float

    def __str__(self) -> str:
        ess = "" if math.isnan(self.ess) else f" ({self.ess:.0f} effective draws)"
        return f"{self.scan}: {self.value:.4g} ± {self.mcse:.2g}{ess}"

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Change:
    """A statistic under the second scan less that under the first.

    Args:
        first, second: the scans.
        value: the change.
        mcse: its Monte Carlo standard error.
        low, high: its interval, at the level of all pairs together (Bonferroni).
        in_sds: the change in standard deviations of the statistic over draws; NaN for statistics that are no means.
    """

    first: str
    second: str
    value: float
    mcse: float
    low: float
    high: float
    in_sds: float

    def __str__(self) -> str:
        sds = "" if math.isnan(self.in_sds) else f", {self.in_sds:+.3f} sd"
        return f"{self.first} -> {self.second}: {self.value:+.4g} ({self.low:+.4g} to {self.high:+.4g}{sds})"

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class StatisticChange:
    """How a statistic changes from scan to scan.

    Args:
        name: of the statistic.
        scans, changes: of each scan, and of every two.
        confidence: of all intervals together.
        unit, num_units: what the errors rest on.
        margin: a change that the user holds negligible, if one was given.
        verdict: "refuted": some interval excludes 0, the scans have no common distribution; "equivalent within margin":
            every interval lies within the margin (also where it excludes 0); else "not refuted".
    """

    name: str
    scans: tuple[ScanMean, ...]
    changes: tuple[Change, ...]
    confidence: float
    unit: str
    num_units: tuple[int, ...]
    margin: float | None
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        units = ", ".join(map(str, self.num_units))
        lines = [
            f"{self.name} across scans: {self.verdict} (± one Monte Carlo standard error, in brackets intervals of "
            f"{self.confidence:.0%} over all pairs; {units} {self.unit})",
            *(f"  {scan}" for scan in self.scans),
            *(f"  {change}" for change in self.changes),
        ]
        if self.margin is not None:
            lines.append(f"  margin: {self.margin:g}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def statistic_change(
    draws: DrawsOfScans,
    statistic: Callable[[Tensor], Tensor],
    *,
    per_draw: bool = True,
    name: str | None = None,
    unit: Unit = "auto",
    margin: float | None = None,
    confidence: float = 0.95,
) -> StatisticChange:
    """How a statistic of the user changes from scan to scan, with Monte Carlo errors and intervals.

    Args:
        draws: name of a scan -> ``[chains, draws, N]``, or what a sampler's run returned (anything with `.draws`,
            ``[draws, chains, N]``); of chains that have converged. Run every scan with a seed of its own: equal seeds
            make chains of two scans alike, and the error of a change is that of independent ones.
        statistic: of draws ``[n, N]``. With `per_draw` it gives one number a draw, ``[n]``, whose mean is looked at: an
            indicator for a probability, a product for a moment. Without, it gives one number for all draws: a
            correlation, a fitted slope; it should be smooth in the draws' distribution (the jackknife fails for a
            median).
        name: of the statistic, for reading.
        unit: whole chains, or blocks; see docs/compatibility/draws.md.
        margin: a change that is negligible; adds the verdict "equivalent within margin".
        confidence: of the intervals of all pairs together.

    Means have the error of their units' means, other statistics that of the jackknife over units. Intervals are
    Welch's.

    Raises:
        DataError: bad draws, or a statistic of another shape or with values that are not finite.
        FlexgenError: options that cannot be used.
    """
    check_callable("statistic", statistic, "Pass a function of draws [n, N].")
    check_confidence(confidence)
    check_margin(margin, "change")
    units = cut(checked_draws(draws), checked_unit(unit))
    scans, spreads = [], []
    for scan, values in units.draws.items():
        if per_draw:
            mean, mcse, sd = _mean(statistic, scan, values)
            ess = (sd / mcse) ** 2 if mcse > 0 else float(values.shape[0] * values.shape[1])
            scans.append(ScanMean(scan, mean, mcse, ess))
            spreads.append(sd)
        else:
            value, mcse = _jackknife(statistic, scan, values)
            scans.append(ScanMean(scan, value, mcse, math.nan))
            spreads.append(math.nan)
    changes = _changes(units, scans, spreads, confidence)
    verdict: Verdict = "not refuted"
    if margin is not None and all(-margin < change.low and change.high < margin for change in changes):
        verdict = "equivalent within margin"
    elif any(change.low > 0 or change.high < 0 for change in changes):
        verdict = "refuted"
    numbers = tuple(len(values) for values in units.draws.values())
    label = name or getattr(statistic, "__name__", "statistic").replace("<lambda>", "statistic")
    return StatisticChange(label, tuple(scans), changes, confidence, units.kind, numbers, margin, verdict)


def _changes(
    units: Units, scans: Sequence[ScanMean], spreads: Sequence[float], confidence: float
) -> tuple[Change, ...]:
    pairs = list(itertools.combinations(range(len(scans)), 2))
    changes = []
    for a, b in pairs:
        variances = [scans[k].mcse ** 2 for k in (a, b)]
        sizes = [len(units.draws[scans[k].scan]) - 1 for k in (a, b)]
        error = math.sqrt(sum(variances))
        spent = sum(v**2 / n for v, n in zip(variances, sizes, strict=True))
        degrees = sum(variances) ** 2 / spent if spent > 0 else math.inf
        reach = float(stats.t.isf((1 - confidence) / (2 * len(pairs)), degrees)) * error
        value = scans[b].value - scans[a].value
        sd = math.sqrt((spreads[a] ** 2 + spreads[b] ** 2) / 2)
        in_sds = value / sd if sd > 0 else math.nan
        changes.append(Change(scans[a].scan, scans[b].scan, value, error, value - reach, value + reach, in_sds))
    return tuple(changes)


def _mean(statistic: Callable[[Tensor], Tensor], scan: str, draws: Tensor) -> tuple[float, float, float]:
    """Mean, its error and the standard deviation over draws, of ``[U, L, N]``."""
    num_units, length = draws.shape[:2]
    fix = "Return one number a draw, or pass per_draw=False for one number of all draws."
    values = numbers("statistic", statistic(draws.flatten(0, 1)), fix)
    if values.shape != (num_units * length,):
        raise DataError("statistic", f"maps draws [{num_units * length}, N] to shape {tuple(values.shape)}", fix)
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise DataError(
            "statistic",
            f"is not finite at {wrong} of {len(values)} draws of scan {scan!r}",
            "Leave such draws out of the statistic, or bound it: a mean cannot hold them.",
        )
    table = values.to("cpu", torch.float64).view(num_units, length)
    means = table.mean(1)
    return float(means.mean()), float(means.std()) / num_units**0.5, float(table.std())


def _jackknife(statistic: Callable[[Tensor], Tensor], scan: str, draws: Tensor) -> tuple[float, float]:
    """A statistic of all draws and its error, leaving out one unit at a time."""

    def value(part: Tensor) -> float:
        fix = "Return one number, or pass per_draw=True for one number a draw."
        answer = numbers("statistic", statistic(part.flatten(0, 1)), fix)
        if answer.numel() != 1:
            raise DataError("statistic", f"maps all draws to shape {tuple(answer.shape)}", fix)
        if not math.isfinite(answer):
            raise DataError(
                "statistic",
                f"is {float(answer)} for {len(part)} of {num_units} units of scan {scan!r}",
                "It must exist without any one unit: run more chains, or choose a statistic that does.",
            )
        return float(answer)

    num_units = len(draws)
    keep = ~torch.eye(num_units, dtype=torch.bool)
    whole = value(draws)
    without = torch.tensor([value(draws[row]) for row in keep], dtype=torch.float64)
    variance = (num_units - 1) / num_units * ((without - without.mean()) ** 2).sum()
    return whole, float(variance.sqrt())


# Total variation between scans on blocks of sites, from draws: debiased, with an interval that holds at both ends.


@dataclass(frozen=True)
class BlockTV:
    """Total variation between two scans' distributions of a block.

    Args:
        first, second: the scans.
        block: the sites.
        value: debiased, and moved into its interval where it lies outside.
        low, high: its interval, at the confidence of all pairs and blocks together (Bonferroni); within 0 to 1.
        plug_in: of the observed frequencies; too large, by sampling alone.
        num_states: of the block that were seen.
        unclipped: debiased, as computed: where the distributions are equal it is 0 on average, and below 0 half of the
            time. Average this one, over blocks or over runs.
    """

    first: str
    second: str
    block: tuple[int, ...]
    value: float
    low: float
    high: float
    plug_in: float
    num_states: int
    unclipped: float

    def __str__(self) -> str:
        sites = ", ".join(map(str, self.block))
        return (
            f"{self.first} | {self.second} on sites {sites}: {self.value:.4f} ({self.low:.4f} to {self.high:.4f}; "
            f"observed {self.plug_in:.4f}, {self.num_states} states)"
        )

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class BlockVariation:
    """Total variation between every two scans on every block.

    Args:
        entries: one for each pair of scans and block.
        confidence: of all intervals together.
        unit, num_units: what the errors rest on.
        margin: a total variation that the user holds negligible, if one was given.
        verdict: "equivalent within margin": every interval ends below the margin; "refuted": some interval begins above
            0, the scans have no common distribution; else "not refuted".
    """

    entries: tuple[BlockTV, ...]
    confidence: float
    unit: str
    num_units: tuple[int, ...]
    margin: float | None
    verdict: Verdict

    @property
    def largest(self) -> BlockTV:
        return max(self.entries, key=lambda entry: (entry.value, entry.unclipped))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        units = ", ".join(map(str, self.num_units))
        head = f"total variation between scans: {self.verdict} ({self.confidence:.0%} intervals over all; "
        lines = [f"{head}{units} {self.unit})", *(f"  {entry}" for entry in self.entries)]
        return "\n".join([*lines, f"  margin: {self.margin:g}"] if self.margin is not None else lines)

    def __repr__(self) -> str:
        return str(self)


def block_variation(
    draws: DrawsOfScans,
    blocks: Sequence[Sequence[int]],
    *,
    generator: Randomness | int,
    unit: Unit = "auto",
    num_splits: int = 64,
    margin: float | None = None,
    confidence: float = 0.95,
) -> BlockVariation:
    """Total variation 1/2 sum |p - q| between scans' distributions of blocks of categorical sites.

    Observed frequencies differ also where distributions agree, by about 1 / sqrt(n) a state. The value is extrapolated
    from the whole sample and from random halves of its units to an infinite one, 1 / sqrt(n) being what is left out.
    The lower end chooses the sign of each state's difference on one half of the units and measures with the other,
    which underestimates; the upper end rests on the observed variation, which overestimates (Jensen). So the interval
    holds whatever the number of states, and is wide where there are many and draws are few. An extrapolated value below
    0, or elsewhere outside its interval, is moved to the interval's nearer end; `unclipped` keeps it.

    Args:
        draws: name of a scan -> ``[chains, draws, N]``, integers, or what a sampler's run returned (anything with
            `.draws`, ``[draws, chains, N]``); of chains that have converged. Run every scan with a seed of its own:
            intervals hold for chains of different scans that are independent.
        blocks: sites of each block; all states of a block that occur are distinguished.
        generator: of the halves.
        unit: whole chains, or blocks of draws; see docs/compatibility/draws.md.
        num_splits: random halves.
        margin: a total variation that is negligible; adds the verdict "equivalent within margin".
        confidence: of all intervals together.

    Raises:
        DataError: bad draws, or draws that are no integers.
        FlexgenError: a site that is not there, or other options that cannot be used.
    """
    whole_number("num_splits", num_splits, 2)
    check_confidence(confidence)
    check_margin(margin, "total variation")
    units = cut(checked_draws(draws), checked_unit(unit))
    some = next(iter(units.draws.values()))
    if some.is_floating_point():
        raise DataError("draws", f"hold {some.dtype}", "Pass integers: states of categorical sites are counted.")
    groups = _checked_blocks(blocks, some.shape[2])
    pairs = list(itertools.combinations(units.names, 2))
    source = rng.stream(rng.seed_from(check_generator(generator)), "splits")
    tail = (1 - confidence) / (2 * len(pairs) * len(groups))
    entries = []
    for block in groups:
        frequencies = _frequencies(units.draws, list(block))
        for a, b in pairs:
            unclipped, low, high, plug_in = _variation(frequencies[a], frequencies[b], tail, num_splits, source)
            value = min(max(unclipped, low), high)
            num_states = int(((frequencies[a].sum(0) + frequencies[b].sum(0)) > 0).sum())
            entries.append(BlockTV(a, b, block, value, low, high, plug_in, num_states, unclipped))
    verdict: Verdict = "not refuted"
    if margin is not None and all(entry.high < margin for entry in entries):
        verdict = "equivalent within margin"
    elif any(entry.low > 0 for entry in entries):
        verdict = "refuted"
    numbers = tuple(len(values) for values in units.draws.values())
    return BlockVariation(tuple(entries), confidence, units.kind, numbers, margin, verdict)


def _checked_blocks(blocks: Any, num_sites: int) -> list[tuple[int, ...]]:
    fix = "Pass lists of sites, such as [[0], [1, 2]]."
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        raise FlexgenError("blocks", f"is {kind_of(blocks)}", fix)
    groups = []
    for number, block in enumerate(blocks):
        if isinstance(block, str) or not isinstance(block, Iterable):
            raise FlexgenError(f"blocks[{number}]", f"is {kind_of(block)}", fix)
        if isinstance(block, Tensor) and block.ndim == 0:  # of a tensor of sites, which is one block
            raise FlexgenError(f"blocks[{number}]", f"is {block.item()}", fix)
        sites = tuple(whole_number(f"blocks[{number}]", site, 0) for site in block)
        if not sites or len(set(sites)) < len(sites) or max(sites) >= num_sites:
            raise FlexgenError(f"blocks[{number}]", f"is {list(sites)}", f"Name sites 0 to {num_sites - 1}, each once.")
        groups.append(sites)
    if not groups:
        raise FlexgenError("blocks", "holds no block", fix)
    return groups


def _frequencies(draws: Mapping[str, Tensor], block: list[int]) -> dict[str, Tensor]:
    """How often each unit was in each state of the block that occurs, ``[U, states]`` of each scan."""
    pooled = torch.cat([values[..., block].flatten(0, 1) for values in draws.values()])  # [n, sites]
    state = torch.unique(pooled, dim=0, return_inverse=True)[1]
    num_states, out, start = int(state.max()) + 1, {}, 0
    for name, values in draws.items():
        num_units, length = values.shape[:2]
        own = state[start : start + num_units * length].view(num_units, length)
        start += num_units * length
        counts = torch.zeros(num_units, num_states, dtype=torch.float64)
        out[name] = counts.scatter_add_(1, own, torch.ones_like(own, dtype=torch.float64)) / length
    return out


def _variation(
    p: Tensor, q: Tensor, tail: float, num_splits: int, source: torch.Generator
) -> tuple[float, float, float, float]:
    """Debiased value, low, high and plug-in total variation, from units' frequencies ``[U, states]``."""
    difference = q.mean(0) - p.mean(0)
    plug_in = float(difference.abs().sum() / 2)
    first, second = (
        (b - a) for a, b in zip(_halves(p, num_splits, source), _halves(q, num_splits, source), strict=True)
    )
    half = float((first.abs() + second.abs()).sum(1).mean() / 4)  # observed in half a sample: larger by sqrt(2) c
    value = plug_in - (half - plug_in) / (2**0.5 - 1)
    # The sign from one half, the size from the other: at most the truth, on average.
    crossed = float((first.sign() * second + second.sign() * first).sum(1).mean() / 4)
    sides = [units @ _signs(difference) / 2 for units in (p, q)]
    error = float(sum(side.var() / len(side) for side in sides)) ** 0.5
    reach = float(stats.t.isf(tail, len(p) + len(q) - 2)) * error
    return value, max(crossed - reach, 0.0), min(plug_in + reach, 1.0), plug_in


def _signs(difference: Tensor) -> Tensor:
    """Signs of the differences; in turn + and - where there is none, as states that happen to tie have errors, too."""
    signs, tied = difference.sign(), (difference == 0).nonzero()[:, 0]
    signs[tied] = 1.0 - 2.0 * (torch.arange(len(tied)) % 2).to(signs)
    return signs


def _halves(units: Tensor, num_splits: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean frequencies of the two halves of random splits, ``[splits, states]`` each; an odd unit is left out."""
    size = len(units) // 2
    order = rng.permutation(num_splits, len(units), generator=source)
    parts = torch.zeros(2, num_splits, len(units), dtype=torch.float64)
    for k in range(2):
        parts[k].scatter_(1, order[:, k * size : (k + 1) * size], 1 / size)
    return parts[0] @ units, parts[1] @ units
