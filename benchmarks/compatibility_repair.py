"""Part `repair`: each repair by the same diagnostics, before and after.

    python -m benchmarks.compatibility_repair [--steps 600] [--tune 300]

Two masked networks, small enough that every law can be enumerated, so that scan divergence and likelihoods are exact:

* table: eight columns of scikit-learn's diabetes, numbers cut into thirds (4374 states); 300 rows to learn from, 142
  held out; a masked perceptron;
* sequence: 8 tokens of 3 letters from a known law, a ring of pairs (6561 states); 300 rows to learn from; a masked
  transformer. "Held out" is then the expectation under the true law.

Columns: interaction gap: mean absolute rectangle gap in held-out contexts, probability-weighted, nats, with its 95 %
interval; scans: total variation between the laws of the forward and the backward scan; pseudo-LL:
sum_i log p(x_i | rest), nats a held-out row; LL: log p(x) of the joint (of a network: by the chain rule, mean over
random orders), nats a held-out row; rows: through the network, to make the repair, and to draw; s: of the processor,
to make it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

import flexgen as fg
from benchmarks.compatibility_null import Transformer
from flexgen.compatibility import circulation, exact_blocks, rectangles, scan_divergence
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.repair import (
    ConsistencyPenalty,
    FiniteJoint,
    OrderEnsemble,
    Penalised,
    TableEnergy,
    distil,
    random_scan,
)
from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.exact import ConditionalTables, JointTable
from flexgen.networks import ResidualMLP
from flexgen.query import Query
from flexgen.space import Space
from flexgen.training import MaskedLikelihood, Objective, TensorData, TrainingSettings, train
from samplers import GibbsSampler, MetropolisSampler, laws, scans

__all__ = ["main"]

ROUNDING = Rounding(1e-6)


class MaskedPerceptron(nn.Module, MarginalConditional):
    """One-hot codes where observed and which sites are, to the logits of all sites."""

    def __init__(self, sizes: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self._space, self.most = Space.categorical(list(sizes)), max(sizes)
        self.trunk = ResidualMLP(
            len(sizes) * (self.most + 1), len(sizes) * self.most, width=width, depth=2, dropout=0.1
        )
        self.register_buffer("outside", torch.arange(self.most) >= torch.tensor(list(sizes))[:, None])

    @property
    def space(self) -> Space:
        return self._space

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        codes = torch.where(query.expand(len(x)).observed, x.long(), self.most)
        hot = nn.functional.one_hot(codes, self.most + 1).float().flatten(1)
        logits = self.trunk(hot).view(len(x), -1, self.most)
        return CategoricalMarginals(logits.masked_fill(self.outside, -torch.inf).log_softmax(-1))


class Sequences(nn.Module, MarginalConditional):
    """A masked transformer, with chain-rule answers."""

    def __init__(self, num_sites: int, num_categories: int, width: int) -> None:
        super().__init__()
        self.body = Transformer(num_sites, num_categories, width)

    @property
    def space(self) -> Space:
        return self.body.space

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        return self.body.marginals(x, query.expand(len(x)))


@dataclass(frozen=True)
class Task:
    name: str
    network: nn.Module
    train: Tensor
    contexts: Tensor
    held_out: Tensor
    weights: Tensor

    def mean(self, values: Tensor) -> float:
        return float(self.weights @ values.double())


def table_task() -> Task:
    df = fg.data.load_table("diabetes")[["age", "sex", "bmi", "bp", "s3", "s5", "s6", "progression"]]
    codes = {c: df[c].cat.codes if c == "sex" else pd.qcut(df[c], 3, labels=False) for c in df}
    x = torch.tensor(pd.DataFrame(codes).to_numpy(copy=True)).long()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    torch.manual_seed(0)
    network = MaskedPerceptron([int(x[:, i].max()) + 1 for i in range(8)])
    held_out = x[300:]
    return Task("table", network, x[:300], held_out[:48], held_out, torch.full((142,), 1 / 142).double())


def sequence_task() -> Task:
    space = Space.categorical([3] * 8)
    states = space.states()
    couplings = torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    score = sum(couplings[i][states[:, i], states[:, (i + 1) % 8]] for i in range(8))
    assert isinstance(score, Tensor)
    p = score.softmax(0)
    rows = torch.multinomial(p, 348, replacement=True, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    entropy = -float((p * p.log()).sum())
    print(f"\nsequence: the true law has {-entropy:.3f} nats a row")
    return Task("sequence", Sequences(8, 3, width=32), states[rows[:300]], states[rows[300:]], states, p)


@torch.no_grad()
def tables_of(network: nn.Module) -> ConditionalTables:
    """All complete conditionals of a network, float64."""
    sites = torch.arange(network.space.num_sites)
    return exact_blocks(network, network.space.states()[:1], sites, rounding=ROUNDING).tables[0]


def trained(network: nn.Module, objective: Objective, task: Task, steps: int, lr: float, seed: int) -> float:
    """Seconds of the process."""
    start = time.process_time()
    settings = TrainingSettings(num_steps=steps, batch_size=64, lr=lr, seed=seed, weight_decay=0.1)
    train(network, objective, TensorData(task.train), settings, progress=False)
    return time.process_time() - start


def gap(model: object, x: Tensor) -> str:
    return f"{rectangles(model, x, rounding=ROUNDING).effect().weighted():.4f}"  # type: ignore[arg-type]


def row(name: str, gap: str, tv: float, pseudo: float, likelihood: float, rows: str, seconds: float) -> None:
    print(f"| {name} | {gap} | {tv:.4f} | {pseudo:.3f} | {likelihood:.3f} | {rows} | {seconds:.1f} |", flush=True)


def note(text: str) -> None:
    print(f"| · {text} | | | | | | |", flush=True)


def of_network(name: str, network: nn.Module, task: Task, rows: str, seconds: float) -> None:
    """A network by its own complete conditionals; LL: mean over orders of the chain rule's."""
    tables = tables_of(network)
    forward = tuple(range(8))
    tv = scan_divergence(tables, forward, forward[::-1]).tv
    pseudo = sum(task.mean(tables.log_prob(task.held_out, Query.complete(i, num_sites=8))) for i in range(8))
    with torch.no_grad():
        by_order = OrderEnsemble.random(network, 4, generator=1).log_probs_by_order(task.held_out)
    marginal = circulation(
        network, task.contexts, rounding=ROUNDING, pairs=torch.combinations(torch.arange(8), 2)[::3]
    ).effects()[0]
    row(name, gap(network, task.contexts), tv, pseudo, task.mean(by_order.mean(0)), rows, seconds)
    note(f"circulation {marginal.weighted():.4f}; sd of log p(x) over orders {by_order.std(0).mean():.3f}")


def of_joint(name: str, joint: JointTable, task: Task, rows: str, seconds: float, *, source: object = None) -> None:
    conditionals = joint.conditional_tables()
    forward = tuple(range(8))
    tv = scan_divergence(conditionals, forward, forward[::-1]).tv
    pseudo = sum(task.mean(joint.log_prob(task.held_out, Query.complete(i, num_sites=8))) for i in range(8))
    likelihood = task.mean(joint.log_prob(task.held_out, Query.of(range(8), num_sites=8)))
    row(name, gap(source or joint, task.contexts), tv, pseudo, likelihood, rows, seconds)


def measured(task: Task, steps: int, tune: int, weight: float) -> None:
    print(f"\n{task.name}: {len(task.train)} rows to learn from, {task.network.space.num_states} states\n")
    print("| | interaction gap | scans, TV | pseudo-LL | LL | rows: make; draw | s |\n|---|---|---|---|---|---|---|")
    likelihood = MaskedLikelihood(laws.uniform_cardinality())
    network = task.network
    seconds = trained(network, likelihood, task, steps, 2e-3, 0)
    of_network("network", network, task, "-; 8 a sweep", seconds)

    longer: dict[str, Callable[[], Objective]] = {
        "trained on, no penalty": lambda: likelihood,
        "rectangle penalty": lambda: Penalised(
            likelihood, ConsistencyPenalty("rectangles", num_pairs=2), weight=weight
        ),
        "circulation penalty": lambda: Penalised(
            likelihood, ConsistencyPenalty("circulations", num_pairs=2), weight=10 * weight
        ),
    }
    for name, objective in longer.items():
        tuned = copy.deepcopy(network)
        cost = trained(tuned, objective(), task, tune, 1e-3, 1)
        each = {"trained on, no penalty": 1, "rectangle penalty": 9, "circulation penalty": 7}[name]
        of_network(name, tuned, task, f"{64 * tune * each:,}; 8 a sweep", cost)

    start = time.process_time()
    scanned = random_scan(tables_of(network))
    cost = time.process_time() - start
    of_joint("law of the random scan", scanned.joint, task, "0; 8 a sweep", cost)
    least = scanned.gains.flatten().min()
    note(f"gain in pseudo-LL {scanned.gain():.4f} nats under its own law, at least {least:.4f} at every state")

    start = time.process_time()
    chains = GibbsSampler(network, scan=scans.random()).run(chains=500, draws=1, warmup=20, generator=0)
    rows = torch.cat([task.train, chains.draws[-1].long()])
    settings = TrainingSettings(num_steps=2 * tune, batch_size=64, lr=1e-2, weight_decay=0.0)
    distilled = distil(network, rows, num_sites=4, settings=settings, progress=False)
    cost = time.process_time() - start
    made = f"{distilled.cost.forwards + 500 * 21 * 8:,}; 8 a sweep"
    of_joint("distilled energy", distilled.model.table(), task, made, cost, source=distilled.model)
    corrected(network, distilled.model)

    for name, count in (("fixed-order chain", 1), ("ensemble of 8 orders", 8)):
        start = time.process_time()
        ensemble = OrderEnsemble.random(network, count, generator=0)
        joint = ensemble.table()
        of_joint(name, joint, task, "0; 8", time.process_time() - start)
        if count == 8:
            corrected(network, ensemble)


def corrected(network: nn.Module, joint: FiniteJoint) -> None:
    """Acceptance of the network's proposals, and whether ten sweeps from the joint leave three sites' law as it was."""
    table, energies = joint.table(), TableEnergy(joint.space)  # the joint's energies, looked up: only the time differs
    states, law, num_chains = joint.space.states(), table.p.flatten(), 2000
    with torch.no_grad():
        energies.energies.copy_(-law.log())
    start = states[torch.multinomial(law, num_chains, replacement=True, generator=torch.Generator().manual_seed(1))]
    sampler = MetropolisSampler(network, torch.no_grad()(energies), scan=scans.random())
    result = sampler.run(chains=num_chains, draws=1, warmup=9, x=start, generator=3)
    expected = num_chains * table.marginal([0, 1, 2]).p
    x = result.draws[-1].long()
    found = torch.zeros_like(expected).index_put(tuple(x[:, :3].T), torch.ones(1).double(), accumulate=True)
    p_value = stats.chisquare(found.flatten().numpy(), expected.flatten().numpy()).pvalue
    rate = float(result.statistics["acceptance_rate"].mean())
    note(f"Metropolis towards it: accepted {rate:.3f}; still its law after ten sweeps: p = {p_value:.2f} (chi-square)")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Repairs, by the same diagnostics before and after.")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the network")
    parser.add_argument("--tune", type=int, default=300, help="further steps of fine-tuning")
    parser.add_argument("--weight", type=float, default=1.0, help="of rectangles; circulations have ten times it")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    for make in (table_task, sequence_task):
        start = time.process_time()
        measured(make(), options.steps, options.tune, options.weight)
        print(f"\n{time.process_time() - start:.0f} processor seconds")


if __name__ == "__main__":
    main()
