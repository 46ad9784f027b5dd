"""Part `coverage`: do intervals of `fg.diagnose` hold the truth, and is "equivalent" ever said of what is not?

    python -m benchmarks.compatibility_coverage [--replicates 40] [--budgets 400 2500] [--quick]

A network over nine binary sites whose exact answers have a joint, beside which a gap is planted: in every context
(dense), or in those in which the last two, three or four sites are all one (sparse). Data rows are drawn from its law
anew in each replicate, and the whole diagnosis is made. The truth is the mean over 20 000 draws of contexts, or over
all states. Printed by effect and budget: data rows, coverage of the default interval and of Student's t, and how often
the effect is called equivalent within a margin just below its mean (false equivalence), by verdict and by an interval
of Student's t alone.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import flexgen as fg
from flexgen import exact
from flexgen.compatibility import Effect, Rounding, SiteAnswers, circulation, order_gaps, rectangles
from flexgen.conditional import CategoricalMarginals
from flexgen.query import Query

__all__ = ["Sparse", "main"]

NUM_SITES, ROUNDING = 9, Rounding(1e-13)
EFFECTS = (
    "rectangle gap",
    "circulation",
    "circulation, interaction part",
    "circulation, marginal part",
    "order gap",
)


class Sparse:
    """Binary sites; p(x_i | x_C) of a joint, times exp(theta s_i s_j) for the observed j before i, in some contexts.

    Args:
        theta: half the log odds that one pair gets from one direction alone.
        num_dials: the last so many sites must be observed and all be one for the gap to be there; 0: it always is.
    """

    def __init__(self, theta: float, num_dials: int) -> None:
        p = torch.rand((2,) * NUM_SITES, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5
        self.law = exact.JointTable.from_unnormalised(p)
        self.theta, self.num_dials, self.space = theta, num_dials, self.law.space

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        query = query.expand(len(x))
        base = self.law.marginals(x, query).log_probs
        signs = torch.where(query.observed, 2.0 * x.double() - 1.0, 0.0)  # [B, N]
        inner = NUM_SITES - self.num_dials
        before = (signs.cumsum(-1) - signs)[:, :inner].clamp(-1.0, 1.0)
        there = (signs[:, inner:] == 1).all(-1) if self.num_dials else torch.ones(len(x), dtype=torch.bool)
        pull = torch.zeros_like(signs)
        pull[:, :inner] = self.theta * before * there[:, None]
        own = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        return CategoricalMarginals((base + pull[..., None] * own).log_softmax(-1))


def draws(model: Sparse, number: int, source: torch.Generator) -> Tensor:
    chosen = torch.multinomial(model.law.p.flatten(), number, replacement=True, generator=source)
    return model.space.states()[chosen]


def truths(model: Sparse) -> dict[str, float]:
    """Mean effects over the population, by probability."""
    answers, x = SiteAnswers(model), draws(model, 20_000, torch.Generator().manual_seed(99))
    every = torch.combinations(torch.arange(NUM_SITES), 2)
    chosen = every[torch.randint(len(every), (len(x), 1), generator=torch.Generator().manual_seed(98))]
    states, p = model.space.states(), model.law.p.flatten()
    gaps = rectangles(answers, states, rounding=ROUNDING).effect()
    share = (gaps.weights * gaps._weights_total) * p[gaps.rows]
    found = {"rectangle gap": float((share * gaps.values.abs()).sum() / share.sum())}
    found |= {
        e.name: e.weighted(method="t").value for e in circulation(answers, x, pairs=chosen, rounding=ROUNDING).effects()
    }
    found["order gap"] = order_gaps(answers, x, rounding=ROUNDING).effect().weighted(method="t").value
    return found


def judged(effect: Effect, truth: float) -> list[float]:
    """Rows; coverage by both intervals; claims of equivalence within a margin just below the truth, by both."""
    ours, t = effect.weighted(), effect.weighted(method="t")
    margin = 0.999 * truth
    claimed = effect.verdict(margin) == "equivalent within margin"
    held = [float(e.low <= truth <= e.high) for e in (ours, t)]
    return [effect.num_rows, *held, float(claimed), float(t.high <= margin), float(truth)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Coverage of the intervals of fg.diagnose, dense and sparse.")
    parser.add_argument("--replicates", type=int, default=60)
    parser.add_argument("--budgets", type=int, nargs="+", default=[400, 1000, 4000, 20_000])
    parser.add_argument("--quick", action="store_true", help="two plants, two budgets, 20 replicates")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.process_time()
    plants = {"dense": (0.1, 0), "one of 4": (0.25, 2), "one of 8": (0.5, 3), "one of 16": (0.5, 4)}
    budgets, replicates = options.budgets, options.replicates
    if options.quick:
        plants, budgets, replicates = {name: plants[name] for name in ("dense", "one of 8")}, [400, 2500], 20
    error = math.sqrt(0.95 * 0.05 / replicates)
    print(f"{replicates} replicates; a rate of .95 has standard error {error:.3f}\n")
    print("| plant | budget | effect | true mean | rows | coverage | Student's t | false equivalence | Student's t |")
    print("|---|---|---|---|---|---|---|---|---|")
    least, most = 1.0, 0.0
    for name, (theta, num_dials) in plants.items():
        model = Sparse(theta, num_dials)
        truth = truths(model)
        for budget in budgets:
            sums: dict[str, list[Tensor]] = {effect: [] for effect in EFFECTS}
            for seed in range(replicates):
                x = draws(model, 600, torch.Generator().manual_seed(seed))
                report = fg.diagnose(model, x, budget=budget, rounding=ROUNDING, generator=seed)
                for effect in EFFECTS:
                    if effect in report.effects and report.effects[effect].num_rows > 1:
                        sums[effect].append(torch.tensor(judged(report.effects[effect], truth[effect])))
            for effect, all_of in sums.items():
                if not all_of:
                    continue
                rows, ours, t, claimed, claimed_t, _ = torch.stack(all_of).double().mean(0).tolist()
                least, most = min(least, ours), max(most, claimed)
                print(
                    f"| {name} | {budget:,} | {effect} | {truth[effect]:.3f} | {rows:.0f} | {ours:.2f} | {t:.2f} "
                    f"| {claimed:.2f} | {claimed_t:.2f} |",
                    flush=True,
                )
    print(
        f"\nLeast coverage {least:.2f}, most false equivalence {most:.2f}; "
        f"{time.process_time() - began:.0f} processor seconds"
    )


if __name__ == "__main__":
    main()
