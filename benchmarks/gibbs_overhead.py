"""What the Gibbs sampler costs beyond the forward passes it needs.

    .venv/bin/python -m benchmarks.gibbs_overhead

About a minute on one core. For a masked MLP of four layers of 256 over 11 and over 30 binary sites, and 1024 chains, it
times, in CPU time, interleaved and on one thread,

    bare      the network's ``marginals`` for the same queries and batch, nothing drawn;
    sampler   ``GibbsSampler.run``: the same evaluations, the draws, warm-up, storage and all bookkeeping;
    own       ``GibbsSampler.run`` with the network replaced by an answer prepared before: what the sampler does itself.

Expect an overhead of at most 5 %: own costs are 0.1 ms a step where all rows update the same site, 0.16 ms where every
row updates another, which has to be drawn and written into the query as well. On a busy machine the ratio own / bare
is the steadier figure; the difference sampler - bare is two large numbers' difference.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.query import Query
from flexgen.space import Space
from samplers import GibbsSampler, scans
from samplers.scans import Scan, Sweep


class MaskedMLP(MarginalConditional):
    """A network that reads the observed values and which they are, and gives every site's logits."""

    def __init__(self, num_sites: int, *, width: int = 256, depth: int = 4) -> None:
        self.num_sites = num_sites
        sizes = [2 * num_sites, *[width] * depth]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.network = nn.Sequential(*layers, nn.Linear(width, 2 * num_sites)).eval()

    @property
    def space(self) -> Space:
        return Space.binary(self.num_sites)

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        observed = query.observed.to(torch.float32).expand(len(x), -1)
        logits = self.network(torch.cat([(2.0 * x - 1.0) * observed, observed], dim=1))  # [B, 2 N]
        return CategoricalMarginals(logits.view(len(x), self.num_sites, 2).log_softmax(-1))


class Prepared(MarginalConditional):
    """Gives the same answer to every question, at no cost."""

    def __init__(self, conditional: MaskedMLP, x: Tensor) -> None:
        self.num_sites = conditional.num_sites
        with torch.no_grad():
            self.answer = conditional.marginals(x, Query.complete(0, num_sites=self.num_sites))

    @property
    def space(self) -> Space:
        return Space.binary(self.num_sites)

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:  # noqa: ARG002
        return self.answer


def time_once(function: Callable[[], object]) -> float:
    start = time.process_time()  # of this process on its one thread, so that other load disturbs less
    function()
    return time.process_time() - start


def measure(num_sites: int, scan: Scan, *, chains: int, sweeps: int, repeats: int) -> tuple[float, float, float, float]:
    """Medians of the seconds of bare passes, sampler and own costs, and of the overheads of adjacent runs."""
    torch.manual_seed(0)
    conditional = MaskedMLP(num_sites)
    start = torch.randint(0, 2, (chains, num_sites))
    sweep = Sweep(scan, torch.ones(num_sites, dtype=torch.bool))
    queries = [
        step for step in sweep.walk(start, generator=torch.Generator().manual_seed(1)) if isinstance(step, Query)
    ]
    sampler = GibbsSampler(conditional, scan=scan)
    prepared = GibbsSampler(Prepared(conditional, start), scan=scan)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(sweeps):
                for query in queries:
                    conditional.marginals(start, query)

    def full() -> None:
        sampler.run(x=start, draws=sweeps - sweeps // 4, warmup=sweeps // 4, generator=2)

    def own() -> None:
        prepared.run(x=start, draws=sweeps - sweeps // 4, warmup=sweeps // 4, generator=2)

    jobs = (bare, full, own)
    for job in jobs:
        job()
    times = [[time_once(job) for job in jobs] for _ in range(repeats)]
    bare_time, full_time, own_time = (statistics.median(column) for column in zip(*times, strict=True))
    return bare_time, full_time, own_time, statistics.median(full / bare - 1.0 for bare, full, _ in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=1024)
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{arguments.chains} chains, masked MLP 256 x 4, one thread; medians of {arguments.repeats} interleaved repeats"
    )
    print(
        f"{'scan':<18}{'sites':>6}{'bare ms/step':>14}{'sampler ms/step':>17}{'own ms/step':>13}{'overhead':>10}{'own/bare':>10}"
    )
    for name, scan, num_sites in (
        ("systematic", scans.systematic(), 11),
        ("systematic", scans.systematic(), 30),
        ("random permutation", scans.random_permutation(), 30),
        ("random", scans.random(), 30),
    ):
        bare, full, own, overhead = measure(
            num_sites, scan, chains=arguments.chains, sweeps=arguments.sweeps, repeats=arguments.repeats
        )
        steps = arguments.sweeps * num_sites
        print(
            f"{name:<18}{num_sites:>6}{1e3 * bare / steps:>14.3f}{1e3 * full / steps:>17.3f}{1e3 * own / steps:>13.3f}"
            f"{overhead:>10.1%}{own / bare:>10.1%}"
        )


if __name__ == "__main__":
    main()
