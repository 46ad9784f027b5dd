"""Part `null`: nothing is found where nothing is, and what looking costs.

    python -m benchmarks.compatibility_null [--pairs 1000] [--contexts 64]

1. Null floors: exact families computed in float32 stand for networks whose answers have a joint. The largest value of
   every diagnostic is printed over its floor: below 1 everywhere, or the floor is wrong.
2. Planted: a known incompatibility; in how many of 1000 samples of 50 data rows the interval holds it.
3. Cost: rectangles of 1000 pairs in 64 contexts of a model of BERT's interface (128 positions, 30522 categories, one
   answer for all positions): rows counted by the model itself, distinct rows among them, and the stated minimum. The
   network is a stand-in that costs nothing; a small transformer of the same interface is timed beside a loop that asks
   for every corner of every rectangle.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import flexgen as fg
from flexgen import exact
from flexgen.compatibility import SiteAnswers, Values, rectangles
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.conditional import CategoricalMarginals, Conditional
from flexgen.query import Query
from flexgen.space import Space
from tests.compatibility.planted import Planted
from tests.compatibility.test_compatibility_null import NULLS

__all__ = ["main"]


def null_floors(budget: int) -> None:
    print("Largest |value| over its floor, and the largest value in nats (blocks: total variation)\n")
    print("| network in float32 | diagnostic | values | largest | over floor |\n|---|---|---|---|---|")
    for name, make in NULLS.items():
        model, x = make()
        for effect in fg.diagnose(model, x, budget=budget).effects.values():
            share = float((effect.values.abs() / effect.floors).max())
            largest = float(effect.values.abs().max())
            print(f"| {name} | {effect.name} | {len(effect):,} | {largest:.1e} | {share:.2f} |")
            assert share <= 1, "a floor was exceeded"


def planted(replicates: int) -> None:
    law = exact.JointTable.random((2,) * 7, generator=torch.Generator().manual_seed(7))
    model = Planted(law, 0.02, tilt=0.7, num_dials=3)
    truth = float((model.law.p.flatten() * model.gap(model.space.states())).sum())
    pairs, states, answers = torch.tensor([[0, 1], [1, 3]]), model.space.states(), SiteAnswers(model)
    hits, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(replicates):
        rows = states[torch.multinomial(model.law.p.flatten(), 50, replacement=True, generator=generator)]
        estimate = rectangles(answers, rows, pairs=pairs, rounding=Rounding(1e-14)).effect().weighted()
        hits += estimate.low <= truth <= estimate.high
    error = math.sqrt(0.95 * 0.05 / replicates)
    share = f"{hits / replicates:.3f}; nominal 0.95, standard error {error:.3f}"
    print(f"\nPlanted gap of {truth:.4f} nats: in {hits} of {replicates} intervals ({share})")


class StandIn:
    """Answers at once: logits that depend on the row, the same at all positions. Counts and remembers its rows."""

    def __init__(self, num_sites: int, num_categories: int) -> None:
        self.space = Space.categorical([num_categories] * num_sites)
        self.row: Tensor = torch.zeros(1, num_categories)
        self.num_rows, self.seen = 0, set[int]()

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        known = torch.where(query.observed, x.long() + 1, 0)
        self.num_rows += len(x)
        self.seen.update(hash(row.numpy().tobytes()) for row in known)
        logits = self.row.expand(len(x), 1, -1).expand(-1, self.space.num_sites, -1)
        return CategoricalMarginals(logits)


class Transformer(nn.Module):
    """A masked transformer of BERT's interface, small: one answer for all positions of a row."""

    def __init__(self, num_sites: int, num_categories: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.space = Space.categorical([num_categories] * num_sites)
        self.token = nn.Embedding(num_categories + 1, width)
        self.place = nn.Parameter(0.1 * torch.randn(num_sites, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_categories)

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        codes = torch.where(query.observed, x.long(), self.head.out_features)  # the last code: not observed
        return CategoricalMarginals(self.head(self.body(self.token(codes) + self.place)).log_softmax(-1))


def cost(num_pairs: int, num_contexts: int) -> None:
    num_sites, num_categories, others = 128, 30522, 1
    generator = torch.Generator().manual_seed(0)
    model = StandIn(num_sites, num_categories)
    x = torch.randint(num_categories, (num_contexts, num_sites), generator=generator)
    every = torch.combinations(torch.arange(num_sites), 2)
    pairs = every[torch.randperm(len(every), generator=generator)[:num_pairs]]
    start = time.process_time()
    result = rectangles(
        SiteAnswers(model, batch_size=64), x, pairs=pairs, values=Values(num_others=others), rounding=Rounding(1e-6)
    )
    least = num_contexts * (len(pairs.unique()) + num_pairs * 2 * others)
    naive = 8 * num_contexts * num_pairs
    print(
        f"\nRectangles of {num_pairs} pairs in {num_contexts} contexts of 128 sites with 30522 categories, "
        f"{len(result.effect()):,} gaps:\n"
        f"  {model.num_rows:,} rows, {len(model.seen):,} distinct; stated minimum {least:,}: "
        f"{model.num_rows / least:.4f} of it. Corner by corner: {naive:,} rows.\n"
        f"  all but the network: {time.process_time() - start:.1f} processor seconds, {result.cost.batches} batches"
    )
    assert model.num_rows <= 1.1 * least


def corner_by_corner(model: Conditional, x: Tensor, pairs: Tensor, values: Tensor) -> None:
    """Asks for all eight log-probabilities of every rectangle, one pair at a time; values ``[R, P, 2]``."""
    for p, pair in enumerate(pairs.tolist()):
        for site in pair:
            for a in (0, 1):
                for b in (0, 1):
                    rows = x.clone()
                    for place, new in ((pair[0], a), (pair[1], b)):
                        if new:
                            rows[:, place] = values[:, p, pair.index(place)]
                    query = Query.complete(site, num_sites=x.shape[1]).expand(len(x))
                    model.marginals(rows, query).log_prob(rows)  # type: ignore[attr-defined]


@torch.no_grad()
def timed() -> None:
    num_sites, num_categories, num_contexts, num_pairs = 24, 100, 16, 40
    torch.manual_seed(0)
    model = Transformer(num_sites, num_categories).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(num_categories, (num_contexts, num_sites), generator=generator)
    every = torch.combinations(torch.arange(num_sites), 2)
    pairs = every[torch.randperm(len(every), generator=generator)[:num_pairs]]
    values = torch.randint(num_categories, (num_contexts, num_pairs, 2), generator=generator)

    def batched() -> object:
        return rectangles(model, x, pairs=pairs, values=Values(num_others=1), rounding=Rounding(1e-6))

    seconds = []
    model.marginals(x, Query.complete(0, num_sites=num_sites).expand(len(x)))  # warm
    for action in (batched, lambda: corner_by_corner(model, x, pairs, values)):
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    print(
        f"\nA small transformer, {num_pairs} pairs in {num_contexts} contexts: {seconds[0]:.2f} processor seconds; "
        f"corner by corner {seconds[1]:.2f} ({seconds[1] / seconds[0]:.1f} times as long)"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Null calibration and cost of the diagnostics of networks.")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--contexts", type=int, default=64)
    parser.add_argument("--budget", type=int, default=20_000, help="forward passes of each null diagnosis")
    parser.add_argument("--replicates", type=int, default=1000)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cost(options.pairs, options.contexts)
    timed()
    planted(options.replicates)
    null_floors(options.budget)


if __name__ == "__main__":
    main()
