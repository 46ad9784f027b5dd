"""Exact blocks: the network's conditionals of a few sites in all their states, given the rest of a data row.

p(x_i | the block's other sites, the rest) for every site and state is a family of tables. `check_tables` decides
whether they have a joint, and names the worst cycle; `stationary` computes where every Gibbs scan over these sites
settles. Where scans in different orders settle in different distributions, sampling depends on the order.

Only the states that a scan from the data row can reach are queried: given a state that the model rules out, its
conditionals are not defined.

Cost: a block of sites with K_1, .., K_k categories takes at most sum_i prod_(j != i) K_j rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import deprecated

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility.exact.stationary import closed_classes, stationary
from flexgen.compatibility.networks.arguments import checked_observed, checked_rows, checked_seed, checked_sites
from flexgen.compatibility.networks.diagnostic import Diagnostic, Found, Panel, Plan, Results, Subject, histogram
from flexgen.compatibility.networks.effects import Cost, Effect
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.exact import ConditionalTables, kernels
from flexgen.rng import Randomness

if TYPE_CHECKING:
    from collections.abc import Hashable

    from flexgen.compatibility.exact.family import Labels
    from flexgen.compatibility.exact.tables import TableCheck

__all__ = [
    "BlockDiagnostic",
    "ExactBlocks",
    "ScanDistribution",
    "exact_blocks",
    "orders_of",
    "scan_distribution",
    "site_labels",
]

_MOST_STATES = 1 << 16  # of a distribution that `stationary` computes
_MOST_ORDERS = 6
_EXACT_STATES = 256  # up to here `stationary` is accurate in every entry
_RESIDUAL = 1e-12  # total variation of one sweep; above that many states
_FINE = 1e-3  # a floor below this needs no better bound
_ENTRIES = 1 << 24  # of the kernels of sweeps that are formed for one: 128 MiB
_MOST_SWEEPS = 8


@dataclass(frozen=True, eq=False)
class ExactBlocks:
    """Conditionals of blocks of sites, enumerated from a network.

    Args:
        sites: int64 ``[B, k]``.
        tables: of every block, axes in the order of its sites; uniform given states that a scan from the data row
            cannot reach, which were not evaluated.
        start: int64 ``[B, k]``, the data row's codes; -1 where it lacks one.
        relative: float64 ``[B]``: rounding of a table's entries, relative.
        cost: what it took.
        labels: of every block: names of its sites, each with its categories.
    """

    sites: Tensor
    tables: tuple[ConditionalTables, ...]
    start: Tensor
    relative: Tensor
    cost: Cost
    labels: tuple[dict[str, tuple[Hashable, ...]], ...]

    def scan_distributions(
        self, block: int, *, max_orders: int = _MOST_ORDERS, generator: Randomness | int = 0
    ) -> dict[tuple[int, ...], Tensor]:
        """Order of the sites -> distribution at the end of a sweep in that order, ``[K_1, .., K_k]``.

        Args:
            block: its number.
            max_orders: of k! orders; if there are more, so many random ones, each beside its reverse.
            generator: of the orders.

        A scan starts at the data row: where zeros divide the states, its distribution is that of the closed class
        around the row, NaN if the row leads to several.
        """
        sites, start = self.sites[self._number(block)].tolist(), self._start(block)
        orders = orders_of(len(sites), whole_number("max_orders", max_orders, 2), generator)
        return {
            tuple(sites[place] for place in order): scan_distribution(
                self.tables[block], order, start, 0.0
            ).distribution
            for order in orders
        }

    @deprecated("ExactBlocks.scan_laws is now called ExactBlocks.scan_distributions.")
    def scan_laws(
        self, block: int, *, max_orders: int = _MOST_ORDERS, generator: Randomness | int = 0
    ) -> dict[tuple[int, ...], Tensor]:
        """Old name of `scan_distributions`."""
        return self.scan_distributions(block, max_orders=max_orders, generator=generator)

    def check(self, block: int) -> TableCheck:
        """`check_tables` of a block: verdict, worst cycle, joint. Rounding of the network is tolerated."""
        from flexgen.compatibility.exact.tables import check_tables

        tables = self.tables[self._number(block)]
        num_edges = 2 * math.prod(tables.shape)  # at most, of a loop
        tolerance = max(1e-6, num_edges * float(self.relative[block]))
        return check_tables(tables, tolerance=tolerance, labels=self.labels[block])

    def __repr__(self) -> str:
        size = self.sites.shape[-1]
        return f"ExactBlocks of {size} sites in {len(self.tables):,} data rows; see effect(), check()"

    def effect(self, *, max_orders: int = _MOST_ORDERS, generator: Randomness | int = 0) -> Effect:
        """The largest total variation distance between two orders' distributions of the scan, 0 to 1, for each block.

        Args:
            max_orders, generator: as in `scan_distributions`. In a sample of the orders the largest is at most that of
                all.

        Blocks whose scans settle in several classes are left out. The floor is explained at `scan_distribution`.
        """
        orders = orders_of(self.sites.shape[1], whole_number("max_orders", max_orders, 2), generator)
        values, floors = [], []
        for block, tables in enumerate(self.tables):
            each = [
                scan_distribution(tables, order, self._start(block), float(self.relative[block])) for order in orders
            ]
            known = [found for found in each if not bool(found.distribution.isnan().any())]
            settled = torch.stack([found.distribution.flatten() for found in known]) if known else torch.zeros(0, 1)
            values.append(float(0.5 * torch.cdist(settled, settled, p=1).max()) if len(known) > 1 else math.nan)
            floors.append(min(sum(sorted(found.floor for found in known)[-2:]), 1.0))
        number = len(self.tables)
        return Effect(
            "block scan divergence",
            torch.tensor(values, dtype=torch.float64),
            torch.ones(number),
            torch.arange(number),
            self.sites,
            torch.tensor(floors, dtype=torch.float64),
            self.cost,
            unit="total variation",
        )

    def _number(self, block: int) -> int:
        block = whole_number("block", block, 0)
        if block >= len(self.tables):
            raise FlexgenError("block", f"is {block}", f"This has blocks 0 to {len(self.tables) - 1}.")
        return block

    def _start(self, block: int) -> list[int] | None:
        codes = self.start[block].tolist()
        return None if min(codes) < 0 else codes


def exact_blocks(
    conditional: Conditional | SiteAnswers,
    x: Tensor,
    sites: Tensor,
    *,
    observed: Tensor | None = None,
    rounding: Rounding | None = None,
    labels: Labels | None = None,
) -> ExactBlocks:
    """The tables p(x_i | other sites of the block, the rest of the row) over all states of each block.

    Args:
        conditional: has marginals or log-probabilities (or `SiteAnswers` of one).
        x: ``[B, N]``, one data row a block; NaN where an entry is missing.
        sites: int64 ``[B, k]`` or ``[k]``, distinct categorical sites.
        observed: bool ``[B, N]``, what the block is given; its own sites are left out. Default: every present entry.
        rounding: of the answers; default: measured on these rows.
        labels: what `ExactBlocks.check` calls the model's sites and their categories: a mapping of names to categories,
            N in all, or a sequence of categories a site. Default: names of the space, codes.

    Raises:
        UnsupportedQueryError: a site that is not categorical.
        FlexgenError: more than 2^16 states, or sites that are no block.
    """
    answers = conditional if isinstance(conditional, SiteAnswers) else SiteAnswers(conditional)
    space = answers.conditional.space
    x = checked_rows("x", x, space.num_sites)
    sites = checked_sites("sites", sites, space.num_sites, (1, 2))
    sites = sites.expand(len(x), -1) if sites.ndim == 1 else sites
    if len(sites) != len(x):
        raise FlexgenError("sites", f"name {len(sites)} blocks, but x has {len(x)} rows", "Give one row a block.")
    counts = torch.tensor(answers.num_categories)[sites]  # [B, k]
    if bool((counts == 0).any()):
        wrong = int(sites[counts == 0][0])
        raise UnsupportedQueryError(
            "sites", f"holds site {space.names[wrong]!r}, which is not categorical", "Enumerate categorical sites only."
        )
    if bool((sites.sort(-1).values.diff(dim=-1) == 0).any()):
        raise FlexgenError("sites", "names a site twice in one block", "Name distinct sites.")
    states = int(counts.prod(-1).max()) if len(counts) else 0
    if states > _MOST_STATES:
        rows = int((counts.prod(-1, keepdim=True) // counts).sum(-1).max())
        raise FlexgenError(
            "sites",
            f"have {states} states, which take {rows} rows through the network",
            f"Choose fewer sites: at most {_MOST_STATES} states a block.",
        )
    named = site_labels(labels, answers)
    present = answers.present_in(x)
    observed = checked_observed("observed", observed, present)
    rounding = rounding or Rounding.measured(answers, x, present)
    before = answers.cost
    on = sites.to(x.device)
    start = torch.where(present.gather(1, on), x.gather(1, on).nan_to_num(0.0), -1).long().cpu()
    blocks = [_Block(tuple(shape), codes) for shape, codes in zip(counts.tolist(), start.tolist(), strict=True)]
    while _evaluate(answers, x, observed, on, counts, blocks):
        pass
    return ExactBlocks(
        sites,
        tuple(block.tables() for block in blocks),
        start,
        torch.tensor([block.relative(rounding) for block in blocks], dtype=torch.float64),
        answers.cost - before,
        tuple({named[site][0]: named[site][1] for site in block} for block in sites.tolist()),
    )


class _Block:
    """What is known of a block's tables so far."""

    def __init__(self, shape: tuple[int, ...], start: list[int]) -> None:
        self.shape = shape
        self.reached = torch.full(shape, min(start, default=0) < 0)
        if min(start, default=0) >= 0:
            self.reached[tuple(start)] = True
        # log p(x_i | others), [others.., K_i]; NaN where it was not evaluated
        self.log_probs = [torch.full((*shape[:i], *shape[i + 1 :], k), torch.nan).double() for i, k in enumerate(shape)]

    def missing(self, place: int) -> Tensor:
        """Values of the others, ``[n, k - 1]``, that are reached, and given which the site was not evaluated."""
        return (self.reached.movedim(place, -1).any(-1) & self.log_probs[place][..., 0].isnan()).nonzero()

    def learn(self, place: int, others: Tensor, log_probs: Tensor) -> None:
        # float32 answers sum to one to 1e-7; what is left out of them is normalised away here
        normalised = log_probs[:, : self.shape[place]].log_softmax(-1)
        at = tuple(others.unbind(-1))
        self.log_probs[place][at] = normalised
        self.reached.movedim(place, -1)[at] |= normalised > -torch.inf

    def relative(self, rounding: Rounding) -> float:
        return max(2.0 * float(rounding.of(part[part.isfinite()]).max()) for part in self.log_probs)

    def tables(self) -> ConditionalTables:
        parts = (torch.where(part.isnan(), 1 / part.shape[-1], part.exp()) for part in self.log_probs)
        return ConditionalTables([part.movedim(-1, place).contiguous() for place, part in enumerate(parts)])


def _evaluate(
    answers: SiteAnswers, x: Tensor, observed: Tensor, sites: Tensor, counts: Tensor, blocks: list[_Block]
) -> bool:
    """Evaluates all states that have come within reach; False if there is none."""
    missing = [(b, i, block.missing(i)) for b, block in enumerate(blocks) for i in range(len(block.shape))]
    missing = [entry for entry in missing if len(entry[2])]
    if not missing:
        return False
    sizes = torch.tensor([len(others) for _, _, others in missing])
    of_block, place = (
        torch.tensor([entry[k] for entry in missing]).repeat_interleave(sizes).to(x.device) for k in (0, 1)
    )
    filled = [torch.cat([o[:, :i], torch.zeros(len(o), 1, dtype=o.dtype), o[:, i:]], 1) for _, i, o in missing]
    state = torch.cat(filled).to(x.device)  # [M, k]

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        b = of_block[some]
        rows, sets = x[b].scatter(1, sites[b], state[some].to(x.dtype)), observed[b].scatter(1, sites[b], True)
        return rows, sets.scatter(1, sites[b].gather(1, place[some, None]), False)

    target = sites[of_block].gather(1, place[:, None])[:, 0]
    last = counts.to(x.device)[of_block].gather(1, place[:, None]) - 1
    codes = torch.arange(int(counts.max()), device=x.device).expand(len(target), -1).minimum(last)
    log_probs = answers.log_prob(Requests(target, make), codes.double()).cpu()  # [M, width]
    for (b, i, others), found in zip(missing, torch.split(log_probs, sizes.tolist()), strict=True):
        blocks[b].learn(i, others, found)
    return True


def site_labels(labels: Labels | None, answers: SiteAnswers) -> list[tuple[str, tuple[Hashable, ...]]]:
    """Name and categories of every site of the model."""
    sites, counts = answers.conditional.space.sites, answers.num_categories
    names = [site.name or f"x{i}" for i, site in enumerate(sites)]
    if labels is None:
        return [(name, tuple(range(k))) for name, k in zip(names, counts, strict=True)]
    if hasattr(labels, "items"):
        names, each = [str(name) for name in labels], [tuple(part) for part in labels.values()]  # type: ignore[union-attr]
    else:
        each = [tuple(part) for part in labels]
    sizes = [len(part) for part in each]
    if sizes != [k or size for k, size in zip(counts, sizes, strict=False)] or len(sizes) != len(counts):
        raise FlexgenError(
            "labels",
            f"name {len(sizes)} sites with {sizes[:8]}.. categories" if len(sizes) > 8 else f"name {sizes} categories",
            f"Give one label for every category of each of the {len(counts)} sites of the model.",
        )
    return list(zip(names, each, strict=True))


@dataclass(frozen=True, eq=False)
class ScanDistribution:
    """Where a scan that starts at a data row's state settles.

    Args:
        distribution: ``[K_1, .., K_k]``; NaN where several closed classes can be met.
        floor: total variation by which rounding may have moved it, 0 to 1.
    """

    distribution: Tensor
    floor: float


def orders_of(num_sites: int, most: int, generator: Randomness | int) -> list[tuple[int, ...]]:
    """All orders of the sites, or, if they are more than `most`, as many random ones: each beside its reverse."""
    if math.factorial(num_sites) <= most:
        return list(itertools.permutations(range(num_sites)))
    source, seed = torch.Generator(), checked_seed(generator)
    source.manual_seed(rng.key(seed, "orders"))
    chosen: dict[tuple[int, ...], None] = {}
    order = tuple(range(num_sites))
    while len(chosen) < most:
        chosen |= dict.fromkeys((order, order[::-1]))
        order = tuple(torch.randperm(num_sites, generator=source).tolist())
    return list(chosen)[:most]


def scan_distribution(
    tables: ConditionalTables, order: tuple[int, ...], start: Sequence[int] | None, relative: float
) -> ScanDistribution:
    """The distribution at the end of a sweep in this order, of a scan that starts at a state.

    Args:
        tables: of the block.
        order: of its sites.
        start: a code a site; None: unknown, which is enough where there is one closed class.
        relative: rounding of the tables' entries, relative.

    The floor. Let entries change by factors between 1/f and f, f = exp(relative). A sweep's entries, sums of products
    of k of them, then change by factors within f^k: one sweep goes wrong by at most (f^k - 1) / 2 in total
    variation, and the stationary distribution by at most n / (1 - t_n) times that, where t_n is the largest total
    variation between the distributions of chains from two states after n sweeps. Also, without t_n: it changes by
    factors within f^(2 k (S - 1)), S states, being a ratio of sums of products of S - 1 entries (Markov chain tree
    theorem).
    """
    classes = closed_classes(tables, order)
    own = -1 if start is None else int(classes[tuple(start)])
    if own < 0 and int(classes.max()) > 0:
        return ScanDistribution(torch.full(tables.shape, torch.nan, dtype=torch.float64), 1.0)
    own = max(own, 0)
    members = (classes == own).nonzero()  # [S, k]
    settled = stationary(tables, order, closed_class=own)
    # A total variation is half of what all entries change by.
    tree = math.expm1(min(2.0 * (len(members) - 1) * len(order) * relative, 1.0)) / 2
    if len(members) <= _EXACT_STATES and tree <= _FINE:
        return ScanDistribution(settled, tree)
    residual = 0.0 if len(members) <= _EXACT_STATES else _RESIDUAL
    error = math.expm1(min(len(order) * relative, 1.0)) / 2 + residual
    floor = error * _memory(tables, order, members)
    return ScanDistribution(settled, min(floor if residual else min(floor, tree), 1.0))


def _memory(tables: ConditionalTables, order: tuple[int, ...], members: Tensor) -> float:
    """n / (1 - t_n), the least for 1, 2, 4 and 8 sweeps; chains from all states share a mass of at most 1 - t_n."""
    first = members.clone()
    first[:, order[0]] = 0  # which is drawn anew: states that differ there alone move alike
    _, group = torch.unique(first, dim=0, return_inverse=True)
    starts = members[torch.zeros_like(group).scatter_(0, group, torch.arange(len(group)))[: int(group.max()) + 1]]
    num_states = math.prod(tables.shape)
    if len(starts) * num_states > _ENTRIES:
        return math.inf
    reached = torch.zeros(len(starts), *tables.shape, dtype=torch.float64)
    reached[(torch.arange(len(starts)), *starts.unbind(-1))] = 1.0
    best, sweeps = math.inf, 0
    while sweeps < _MOST_SWEEPS:
        for _ in range(max(sweeps, 1)):
            reached = kernels.sweep(reached, tables, order)
        sweeps = max(2 * sweeps, 1)
        shared = float(reached.amin(0).sum())
        best = min(best, sweeps / shared) if shared > 0 else best
        if shared > 0.5:
            break
    return best


_MOST_STATES_PLANNED = 64
_TITLE, _ACROSS = "do Gibbs scans of a block agree?", "total variation between the distributions of two scan orders"


class BlockDiagnostic(Diagnostic):
    """Random blocks of three (or two) categorical sites with few states, each in the context of a row that has them."""

    name = "exact blocks"
    effects: ClassVar[Mapping[str, str]] = {
        "block scan divergence": "where Gibbs scans over a few sites settle, their order changed: total variation"
    }
    share = 0.1
    extends = False  # blocks may have another size
    if_nothing = "Scans of them settle in several classes of states."

    def applies(self, subject: Subject) -> bool:
        return len(subject.enumerated_sites) > 1

    def plan(self, subject: Subject, forwards: float, source: torch.Generator) -> Plan:
        counts = torch.tensor(subject.answers.num_categories, dtype=torch.float64)
        few, order, present = subject.enumerated_sites, subject.order, subject.present.cpu()
        for size in (3, 2):
            if size > len(few) or not len(order):
                continue
            candidates = few[torch.rand(256, len(few), generator=source).argsort(-1)[:, :size]].sort(-1).values
            candidates = candidates[counts[candidates].prod(-1) <= _MOST_STATES_PLANNED]
            rows = order[torch.arange(len(candidates)) % len(order)]
            whole = present[rows].gather(1, candidates).all(1)
            rows, candidates = rows[whole], candidates[whole]
            states = counts[candidates].prod(-1, keepdim=True)
            cost = (states / counts[candidates] * subject.readings[candidates]).sum(-1).cumsum(0)  # rows
            number = min(int((cost <= forwards).sum()), len(order))
            if number:
                what = f"{number} blocks of {size} sites, every state of each"
                return Plan(rows[:number], int(cost[number - 1]), what, candidates[:number])
        return Plan.nothing()

    def measure(self, subject: Subject, x: Tensor, plan: Plan, part: slice) -> Found:
        return Found([exact_blocks(subject.answers, x, plan.choices[part], rounding=subject.rounding).effect()])

    def panels(self, results: Results) -> Sequence[Panel]:
        if "block scan divergence" not in results.effects:
            return ()
        return [partial(histogram, name="block scan divergence", title=_TITLE, across=_ACROSS, count="blocks")]
