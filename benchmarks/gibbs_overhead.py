"""What the Gibbs sampler costs beyond the forward passes it needs.

    .venv/bin/python -m benchmarks.gibbs_overhead

About two minutes on one core. For a masked MLP of four layers of 256 over 11 and 30 binary sites, and 1024 chains, it
times, in CPU time, in short alternating runs and on one thread,

    bare      the network's ``marginals`` for the same queries and batch, nothing drawn;
    sampler   ``GibbsSampler.run``: the same evaluations, the draws, storage and all bookkeeping;
    outside   the part of the sampler's run that passed outside the network, in per cent of the part inside.

The chains are past their first 20 warm-up sweeps, which besides look out for deterministic conditionals. Expect 3 to
5 %. ``outside`` is the steadier figure: both of its parts are of one run, where ``overhead`` compares adjacent runs.

The allocator is told to keep freed memory. By default glibc hands the activations of a forward pass back to the system
and fetches them again, page by page, for the next, or does not, depending on what else lies on its heap: the same
passes then cost up to a quarter more, in either run. Long jobs gain from the same: MALLOC_TRIM_THRESHOLD_=1073741824
MALLOC_MMAP_THRESHOLD_=33554432 in the environment.
"""

from __future__ import annotations

import argparse
import ctypes
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
from samplers.reducibility import MAX_SWEEPS
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


class Timed(MarginalConditional):
    """Counts the seconds that a network takes."""

    def __init__(self, conditional: MaskedMLP) -> None:
        self.conditional = conditional
        self.seconds = 0.0

    @property
    def space(self) -> Space:
        return self.conditional.space

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        start = time.process_time()
        answer = self.conditional.marginals(x, query)
        self.seconds += time.process_time() - start
        return answer


def keep_freed_memory() -> None:
    """As the two settings of the environment above would, where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, the largest that glibc takes


def time_once(function: Callable[[], object]) -> float:
    start = time.process_time()  # of this process on its one thread, so that other load disturbs less
    function()
    return time.process_time() - start


def measure(num_sites: int, scan: Scan, *, chains: int, sweeps: int, repeats: int) -> tuple[float, ...]:
    """Medians: seconds of bare passes and of the sampler, overhead of adjacent runs, share outside the network."""
    torch.manual_seed(0)
    conditional = MaskedMLP(num_sites)
    start = torch.randint(0, 2, (chains, num_sites))
    sweep = Sweep(scan, torch.ones(num_sites, dtype=torch.bool))
    queries = [
        step for step in sweep.walk(start, generator=torch.Generator().manual_seed(1)) if isinstance(step, Query)
    ]
    timed = Timed(conditional)
    sampler = GibbsSampler(timed, scan=scan)

    state = sampler.run(x=start, draws=0, warmup=MAX_SWEEPS, generator=2).state

    def bare() -> None:
        with torch.no_grad():
            for _ in range(sweeps):
                for query in queries:
                    conditional.marginals(start, query)

    def full() -> None:
        sampler.run(state=state, draws=sweeps)

    bare()
    bare_times, full_times, outside = [], [], []
    for _ in range(repeats):
        bare_times.append(time_once(bare))
        timed.seconds = 0.0
        full_times.append(time_once(full))
        outside.append(full_times[-1] / timed.seconds - 1.0)
    overheads = [full / bare - 1.0 for bare, full in zip(bare_times, full_times, strict=True)]
    return tuple(statistics.median(values) for values in (bare_times, full_times, overheads, outside))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=1024)
    parser.add_argument("--sweeps", type=int, default=3, help="of every run")
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{arguments.chains} chains, masked MLP 256 x 4, one thread; medians of {arguments.repeats} alternating runs")
    print(f"{'scan':<18}{'sites':>6}{'bare ms/step':>14}{'sampler ms/step':>17}{'overhead':>10}{'outside':>10}")
    for name, scan, num_sites in (
        ("systematic", scans.systematic(), 11),
        ("systematic", scans.systematic(), 30),
        ("random permutation", scans.random_permutation(), 30),
        ("random", scans.random(), 30),
    ):
        bare, full, overhead, outside = measure(
            num_sites, scan, chains=arguments.chains, sweeps=arguments.sweeps, repeats=arguments.repeats
        )
        steps = arguments.sweeps * num_sites
        print(
            f"{name:<18}{num_sites:>6}{1e3 * bare / steps:>14.3f}{1e3 * full / steps:>17.3f}"
            f"{overhead:>10.1%}{outside:>10.1%}"
        )


if __name__ == "__main__":
    main()
