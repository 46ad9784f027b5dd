"""What exact conditionals cost when every row of a batch asks another query.

    python -m benchmarks.exact_conditionals [--rows 4096] [--components 32] [--sites 30] [--only mixture table machine]

Prints processor seconds (best of a few; a busy machine disturbs them less than the clock) on one thread for a Gaussian
mixture, beside a loop over rows in numpy (all components of a row in one batched call, the strongest such loop) and in
scipy, timed on a subsample and scaled; their answers are compared before anything is timed. A joint table of 2^12
states follows. A ratio above 1 means faster than the loop.

Last a restricted Boltzmann machine of 784 + 500 binary sites, written as docs/conditionals.md teaches: 100 chains and
50 sweeps of `GibbsSampler` beside block Gibbs by hand, started at rows and at random; here the ratio is ours over the
one by hand, 1 at best.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor, nn

from flexgen.answers import Blocks
from flexgen.conditional import BernoulliMarginals, MarginalConditional, take_at
from flexgen.exact import GaussianMixture, JointTable
from flexgen.query import Query
from flexgen.space import Space
from samplers import GibbsSampler, scans

SUBSAMPLE = 64  # rows a loop is timed on


def seconds(action: Callable[[], object], *, repeats: int) -> float:
    """Processor seconds, best of some repetitions."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        action()
        best = min(best, time.process_time() - start)
    return best


def random_queries(rows: int, sites: int, generator: torch.Generator) -> Query:
    """Uniform cardinality: each row observes a random share of its sites, and is asked for the rest."""
    share = torch.rand(rows, 1, generator=generator)
    return Query.rest(torch.rand(rows, sites, generator=generator) < share)


def numpy_loop(law: GaussianMixture, x: np.ndarray, target: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """log p(x_P | x_C), one row after the other, all components of a row at once."""
    log_weights, means, covariances = np.log(law.weights.numpy()), law.means.numpy(), law.covariances.numpy()

    def density(row: np.ndarray, sites: np.ndarray) -> float:
        root = np.linalg.cholesky(covariances[:, sites[:, None], sites])  # [K, n, n]
        z = np.linalg.solve(root, (row[sites] - means[:, sites])[..., None])[..., 0]
        log_det = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
        return float(logsumexp(log_weights - 0.5 * (z**2).sum(1) - log_det - 0.5 * len(sites) * np.log(2 * np.pi)))

    rows = zip(x, target, observed, strict=True)
    return np.array([density(row, np.flatnonzero(t | o)) - density(row, np.flatnonzero(o)) for row, t, o in rows])


def scipy_loop(law: GaussianMixture, x: np.ndarray, target: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """log p(x_P | x_C), one row and one component after the other."""
    parts = list(zip(np.log(law.weights.numpy()), law.means.numpy(), law.covariances.numpy(), strict=True))

    def density(row: np.ndarray, sites: np.ndarray) -> float:
        if len(sites) == 0:
            return 0.0
        terms = [
            w + stats.multivariate_normal.logpdf(row[sites], m[sites], c[np.ix_(sites, sites)]) for w, m, c in parts
        ]
        return float(logsumexp(terms))

    rows = zip(x, target, observed, strict=True)
    return np.array([density(row, np.flatnonzero(t | o)) - density(row, np.flatnonzero(o)) for row, t, o in rows])


def mixture_benchmark(rows: int, components: int, sites: int) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(components, sites, 2 * sites, generator=generator, dtype=torch.float64)
    means = torch.randn(components, sites, generator=generator, dtype=torch.float64)
    law = GaussianMixture(torch.full((components,), 1 / components), means, root @ root.mT / (2 * sites))
    x = torch.randn(rows, sites, generator=generator, dtype=torch.float64)
    query = random_queries(rows, sites, generator)

    few = slice(0, min(rows, SUBSAMPLE))
    arrays = (x[few].numpy(), query.target[few].numpy(), query.observed[few].numpy())
    answers = law.log_prob(x, query)[few].numpy()
    loops = {"numpy": numpy_loop, "scipy": scipy_loop}
    for loop in loops.values():
        np.testing.assert_allclose(answers, loop(law, *arrays), atol=1e-8)

    print(f"mixture of {components} components over {sites} sites, {rows} rows, each its own query: seconds")
    batched = seconds(lambda: law.log_prob(x, query), repeats=5)
    print(f"  {'log_prob, batched':34s} {batched:8.2f}")
    scale = rows / len(arrays[0])
    for name, loop in loops.items():
        looped = scale * seconds(lambda loop=loop: loop(law, *arrays), repeats=3)  # type: ignore[misc]
        print(f"  {'log_prob, loop over rows in ' + name:34s} {looped:8.2f}   {looped / batched:6.1f}x")
    print(f"  {'sample':34s} {seconds(lambda: law.sample(x, query, generator=generator), repeats=3):8.2f}")
    print(f"  {'marginals':34s} {seconds(lambda: law.marginals(x, query), repeats=3):8.2f}")
    shared = Query(query.target[0], query.observed[0])
    print(f"  {'log_prob, one query for all rows':34s} {seconds(lambda: law.log_prob(x, shared), repeats=3):8.2f}")


def table_benchmark(rows: int, sites: int) -> None:
    generator = torch.Generator().manual_seed(0)
    law = JointTable.random((2,) * sites, generator=generator)
    x = torch.randint(2, (rows, sites), generator=generator)
    query = random_queries(rows, sites, generator)
    print(f"joint table of 2^{sites} states, {rows} rows, each its own query: seconds")
    print(f"  {'log_prob':34s} {seconds(lambda: law.log_prob(x, query), repeats=5):8.3f}")
    print(f"  {'sample':34s} {seconds(lambda: law.sample(x, query, generator=generator), repeats=5):8.3f}")
    print(f"  {'marginals':34s} {seconds(lambda: law.marginals(x, query), repeats=5):8.3f}")


class BoltzmannMachine(nn.Module, MarginalConditional):
    """The machine of docs/conditionals.md."""

    def __init__(self, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        num_sites = num_visible + num_hidden
        self.space = Space.binary(num_sites)  # type: ignore[misc]
        self.answers = Blocks([range(num_visible), range(num_visible, num_sites)], independent=True)
        self.num_visible = num_visible
        self.weight = nn.Parameter(0.1 * torch.randn(num_visible, num_hidden))
        self.bias = nn.Parameter(torch.zeros(num_sites))

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> BernoulliMarginals:
        def known(side: slice) -> Tensor:
            return torch.where(query.observed[..., side], x[:, side], 0).to(self.weight.dtype)

        visible, hidden = slice(0, self.num_visible), slice(self.num_visible, None)
        if sites is not None and bool((sites < self.num_visible).all()):
            logits, first = known(hidden) @ self.weight.T + self.bias[visible], 0
        elif sites is not None and bool((sites >= self.num_visible).all()):
            logits, first = known(visible) @ self.weight + self.bias[hidden], self.num_visible
        else:
            sides = [known(hidden) @ self.weight.T, known(visible) @ self.weight]
            logits, first = torch.cat(sides, -1) + self.bias, 0
        return BernoulliMarginals(logits if sites is None else take_at(logits, sites - first))


@torch.no_grad()
def gibbs_by_hand(machine: BoltzmannMachine, visible: Tensor, sweeps: int, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """Block Gibbs as textbooks write it; its states are floats throughout."""
    weight, (bias, hidden_bias) = machine.weight, machine.bias.split(machine.weight.shape)
    hidden = torch.empty(0)
    for _ in range(sweeps):
        hidden = draw(torch.sigmoid(visible @ weight + hidden_bias))
        visible = draw(torch.sigmoid(hidden @ weight.T + bias))
    return torch.cat([visible, hidden], -1)


def machine_benchmark(num_visible: int, num_hidden: int, chains: int, sweeps: int) -> None:
    torch.manual_seed(0)
    machine = BoltzmannMachine(num_visible, num_hidden)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, (chains, machine.space.num_sites), generator=generator)
    up, down = machine.answers.blocks[1], machine.answers.blocks[0]
    sampler = GibbsSampler(machine, scan=scans.blocked([up, down]))

    def ours(**start: object) -> Tensor:
        found = sampler.run(draws=1, warmup=sweeps - 1, generator=0, **start).draws  # type: ignore[arg-type]
        assert found is not None
        return found[0]

    def bernoulli(p: Tensor) -> Tensor:
        return torch.bernoulli(p, generator=generator)

    def uniform(p: Tensor) -> Tensor:
        return (torch.rand(p.shape, generator=generator) < p).float()

    def by_hand(draw: Callable[[Tensor], Tensor] = bernoulli) -> Tensor:
        return gibbs_by_hand(machine, rows[:, :num_visible].float(), sweeps, draw)

    a, b = ours(x=rows).double().mean(0), by_hand().double().mean(0)  # over the chains
    z = (a - b) / ((a * (1 - a) + b * (1 - b)) / chains).sqrt().clamp_min(1 / chains)
    assert z.square().mean() < 1.5, "the two samplers have different means"

    print(
        f"restricted Boltzmann machine, {num_visible} + {num_hidden} sites, {chains} chains, {sweeps} sweeps: seconds"
    )
    hand = seconds(by_hand, repeats=7)
    print(f"  {'by hand, torch.bernoulli':34s} {hand:8.3f}")
    faster = seconds(lambda: by_hand(uniform), repeats=7)
    print(f"  {'by hand, torch.rand < p':34s} {faster:8.3f}   {faster / hand:6.2f}x")
    for name, start in {"started at rows": {"x": rows}, "started at random": {"chains": chains}}.items():
        took = seconds(lambda start=start: ours(**start), repeats=7)  # type: ignore[misc]
        print(f"  {'GibbsSampler, ' + name:34s} {took:8.3f}   {took / hand:6.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--sites", type=int, default=30)
    parts = ["mixture", "table", "machine"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {platform.processor() or platform.machine()}")
    if "mixture" in options.only:
        mixture_benchmark(options.rows, options.components, options.sites)
    if "table" in options.only:
        table_benchmark(1024, 12)
    if "machine" in options.only:
        machine_benchmark(784, 500, chains=100, sweeps=50)


if __name__ == "__main__":
    main()
