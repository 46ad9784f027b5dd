"""Size and power of the tests of compatibility that rest on samples: of counted conditionals, and of draws of scans.

    python -m benchmarks.compatibility_power [--replicates 4000] [--output out] [--quick]

Counted conditionals: Arnold and Press's 3 x 3 joint, p(x | y) counted from one sample of n rows and p(y | x) from
another; the second sample's joint has every log odds ratio through one cell moved by a gap. Size is the rate of
rejections at gap 0 at significance 5 %; in brackets the interval that a rate of exactly 5 % stays in with probability
95 %. Draws: two bits that hold each other fast (about 20 sweeps to forget), sampled by an order of sites and by random
sites, 16 chains of 16 draws.

Writes power.png into --output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from flexgen.compatibility.samples import counts as counted
from flexgen.compatibility.samples.counts import bootstrap_p_values
from flexgen.compatibility.samples.scans import energy_scan_test
from flexgen.exact import JointTable
from flexgen.rng import stream
from samplers import GibbsSampler, scans

SIGNIFICANCE = 0.05
JOINT = torch.tensor([[1, 2, 3], [3, 2, 1], [1, 3, 4]], dtype=torch.float64) / 20
SIZES = (90, 300, 1000, 5000)
GAPS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0, 1.25, 1.5)
COLOURS = ("#6baed6", "#4292c6", "#2171b5", "#08306b")


def gapped(gap: float) -> Tensor:
    p = JOINT.clone()
    p[0, 2] *= float(torch.tensor(gap).exp())
    return p / p.sum()


def samples(laws: Sequence[Tensor], num_rows: int, replicates: int, seed: int) -> Tensor:
    """Counts ``[R, N, V_0, ..]`` of a sample of each law, by a chain of binomials."""
    tables = []
    for i, law in enumerate(laws):
        source = stream(seed, "sample", i, num_rows)
        left, mass, cells = torch.full((replicates,), float(num_rows), dtype=torch.float64), 1.0, []
        for p in law.flatten().tolist():
            share = min(p / mass, 1.0) if mass > 1e-12 else 0.0
            cells.append(torch.binomial(left, torch.full_like(left, share), generator=source))
            left, mass = left - cells[-1], mass - p
        tables.append(torch.stack(cells, -1).view(replicates, *law.shape))
    return torch.stack(tables, 1)


def counted_tables(replicates: int, num_draws: int) -> dict[int, list[float]]:
    """Prints sizes; returns the power of the Wald test by sample size, over GAPS."""
    low, high = (float(stats.binom.ppf(q, replicates, SIGNIFICANCE)) / replicates for q in (0.025, 0.975))
    print(f"counted conditionals, 3 x 3, {replicates} replicates: size at 5 % [{low:.3f}, {high:.3f}]")
    print(f"  {'rows a sample':14s}{'Wald':>8s}{'LR chi2':>9s}{'bootstrap':>11s}   power at gap .5: Wald  bootstrap")
    critical, power = float(stats.chi2.isf(SIGNIFICANCE, 4)), {}
    for num_rows in SIZES:
        rates = []
        for gap in (0.0, 0.5):
            counts = samples([JOINT, gapped(gap)], num_rows, replicates, seed=int(10 * gap))
            _, wald = counted.fit_wald(counts + 0.5)
            ratio, p = bootstrap_p_values(counts, None, stream(0, "bootstrap"), num_draws=num_draws)
            rates.append([float((x).double().mean()) for x in (wald > critical, ratio > critical, p <= SIGNIFICANCE)])
        (size, ratio_size, bootstrap_size), (power_wald, _, power_bootstrap) = rates
        print(
            f"  {num_rows:<14d}{size:8.3f}{ratio_size:9.3f}{bootstrap_size:11.3f}"
            f"{'':20s}{power_wald:6.3f}{power_bootstrap:11.3f}"
        )
        power[num_rows] = [
            float((counted.fit_wald(samples([JOINT, gapped(g)], num_rows, replicates, 99) + 0.5)[1] > critical)
                  .double().mean())
            for g in GAPS
        ]  # fmt: skip
    return power


def scan_draws(replicates: int) -> dict[str, float]:
    """Sizes of the energy test on whole chains, and of the wrong one that shuffles draws."""
    chains, draws = 16, 16
    tables = JointTable(torch.tensor([[0.46, 0.04], [0.04, 0.46]])).conditional_tables()
    both = {}
    for name, scan in (("order", scans.systematic()), ("random", scans.random())):
        run = GibbsSampler(tables, scan=scan).run(
            chains=replicates * chains, draws=draws, warmup=400, generator=stream(0, name)
        )
        # [draws, chains, N] -> [replicates, chains, draws, N]
        both[name] = run.draws.transpose(0, 1).reshape(replicates, chains, draws, -1).long()
    sizes = {}
    for label, unit, number in (("whole chains", "chain", replicates), ("single draws (wrong)", 1, replicates // 20)):
        rejected = sum(
            energy_scan_test(
                {name: values[r] for name, values in both.items()},
                generator=stream(r, "test"),
                unit=unit,  # type: ignore[arg-type]
                num_permutations=99,
                max_draws=128,
            ).p_value
            <= SIGNIFICANCE
            for r in range(number)
        )
        low, high = (float(stats.binom.ppf(q, number, SIGNIFICANCE)) / number for q in (0.025, 0.975))
        sizes[label] = rejected / number
        print(f"  energy test, {label:22s} {rejected / number:.3f}  [{low:.3f}, {high:.3f}], {number} replicates")
    return sizes


def picture(power: dict[int, list[float]], path: Path) -> None:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (num_rows, rates), colour in zip(power.items(), COLOURS, strict=True):
        axes.plot(GAPS, rates, "o-", color=colour, ms=4, lw=1.6)
        # Named beside its steepest stretch.
        place = max(range(1, len(GAPS)), key=lambda k: (rates[k] - rates[k - 1]) / (GAPS[k] - GAPS[k - 1]))
        x = (GAPS[place] + GAPS[place - 1]) / 2
        y = (rates[place] + rates[place - 1]) / 2
        axes.annotate(f"n = {num_rows}", (x, y), (8, -12), textcoords="offset points", fontsize=9, color=colour)
    axes.axhline(SIGNIFICANCE, color="#888888", lw=0.8, ls=(0, (4, 3)))
    axes.annotate(
        "significance 5 %",
        (GAPS[-1], SIGNIFICANCE),
        (0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="#666666",
    )
    axes.set_xlabel("gap in log odds ratios through one cell")
    axes.set_ylabel("share of replicates refuted")
    axes.set_title("Wald test on conditionals of a 3 x 3 table, each counted from n rows", fontsize=10, loc="left")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(-0.03, GAPS[-1] + 0.08)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=4000)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--quick", action="store_true", help="200 replicates")
    options = parser.parse_args(argv)
    replicates = 200 if options.quick else options.replicates
    torch.set_num_threads(1)
    start = time.process_time()
    power = counted_tables(replicates, num_draws=39)
    print(f"  {time.process_time() - start:.0f} processor seconds")
    start = time.process_time()
    print("draws of two scans of one law: size at 5 %")
    scan_draws(replicates // 2)
    print(f"  {time.process_time() - start:.0f} processor seconds")
    options.output.mkdir(parents=True, exist_ok=True)
    picture(power, options.output / "power.png")
    print(f"{options.output / 'power.png'} written")


if __name__ == "__main__":
    main()
