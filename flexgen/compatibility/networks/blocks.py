"""Exact blocks: a few sites whose every state is asked of the network, given the rest of a data row.

p(x_i | the block's others, the rest) for every site and state is a family of tables, of which the exact tier says
all there is to say: whether a joint exists, the worst cycle, the law of every Gibbs scan over these sites. The laws of
scans in different orders differ if and only if pseudo-Gibbs sampling of the block depends on the scan.

Only what a scan that starts at the data row can reach is asked: where a model rules states out, questions given an
impossible state have no answer.

Cost: a block of sites with K_1, .., K_k categories takes at most sum_i prod_(j != i) K_j rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flexgen.checks import whole_number
from flexgen.compatibility.networks.arguments import checked_observed, checked_rows, checked_sites
from flexgen.compatibility.networks.block_scans import orders_of, scan_law
from flexgen.compatibility.networks.effects import Cost, Effect
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.exact import ConditionalTables
from flexgen.rng import Randomness

if TYPE_CHECKING:
    from collections.abc import Hashable

    from flexgen.compatibility.exact.family import Labels
    from flexgen.compatibility.exact.tables import TableCheck

__all__ = ["ExactBlocks", "exact_blocks"]

_MOST_STATES = 1 << 16  # of a law that the exact tier computes
_MOST_ORDERS = 6


@dataclass(frozen=True, eq=False)
class ExactBlocks:
    """Conditionals of blocks of sites, enumerated from a network.

    Args:
        sites: int64 ``[B, k]``.
        tables: of every block, axes in the order of its sites; uniform given states that a scan from the data row
            cannot reach, which were not asked for.
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

    def scan_laws(
        self, block: int, *, max_orders: int = _MOST_ORDERS, generator: Randomness | int = 0
    ) -> dict[tuple[int, ...], Tensor]:
        """Order of the sites -> law at the end of a sweep in that order, ``[K_1, .., K_k]``.

        Args:
            block: its number.
            max_orders: of k! orders; if there are more, so many random ones, each beside its reverse.
            generator: of the orders.

        A scan starts at the data row: where zeros divide the states, its law is that of the closed class around the
        row, NaN if the row leads to several.
        """
        sites, start = self.sites[self._number(block)].tolist(), self._start(block)
        orders = orders_of(len(sites), whole_number("max_orders", max_orders, 2), generator)
        return {
            tuple(sites[place] for place in order): scan_law(self.tables[block], order, start, 0.0).law
            for order in orders
        }

    def check(self, block: int) -> TableCheck:
        """What the exact tier says of a block: verdict, worst cycle, joint. Rounding of the network is tolerated."""
        from flexgen.compatibility.exact.tables import check_tables

        tables = self.tables[self._number(block)]
        num_edges = 2 * math.prod(tables.shape)  # at most, of a loop
        tolerance = max(1e-6, num_edges * float(self.relative[block]))
        return check_tables(tables, tolerance=tolerance, labels=self.labels[block])

    def __repr__(self) -> str:
        size = self.sites.shape[-1]
        return f"ExactBlocks of {size} sites in {len(self.tables):,} data rows; see effect(), check(), scan_laws()"

    def effect(self, *, max_orders: int = _MOST_ORDERS, generator: Randomness | int = 0) -> Effect:
        """For each block the largest total variation distance between the laws of two orders of the scan, 0 to 1.

        Args:
            max_orders, generator: as in `scan_laws`. Of a sample of the orders, the largest is at most that of all.

        Blocks whose scans settle in several classes are left out. The floor is explained at `block_scans.scan_law`.
        """
        orders = orders_of(self.sites.shape[1], whole_number("max_orders", max_orders, 2), generator)
        values, floors = [], []
        for block, tables in enumerate(self.tables):
            each = [scan_law(tables, order, self._start(block), float(self.relative[block])) for order in orders]
            known = [found for found in each if not bool(found.law.isnan().any())]
            laws = torch.stack([found.law.flatten() for found in known]) if known else torch.zeros(0, 1)
            values.append(float(0.5 * torch.cdist(laws, laws, p=1).max()) if len(known) > 1 else math.nan)
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
    named = _labelled(labels, answers)
    present = answers.present_in(x)
    observed = checked_observed("observed", observed, present)
    rounding = rounding or Rounding.measured(answers, x, present)
    before = answers.cost
    on = sites.to(x.device)
    start = torch.where(present.gather(1, on), x.gather(1, on).nan_to_num(0.0), -1).long().cpu()
    blocks = [_Block(tuple(shape), codes) for shape, codes in zip(counts.tolist(), start.tolist(), strict=True)]
    while _ask(answers, x, observed, on, counts, blocks):
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
        # log p(x_i | others), [others.., K_i]; NaN where it was not asked for
        self.laws = [torch.full((*shape[:i], *shape[i + 1 :], k), torch.nan).double() for i, k in enumerate(shape)]

    def wanted(self, place: int) -> Tensor:
        """Values of the others, ``[n, k - 1]``, that are reached, and given which the place was not asked for."""
        return (self.reached.movedim(place, -1).any(-1) & self.laws[place][..., 0].isnan()).nonzero()

    def learn(self, place: int, others: Tensor, log_probs: Tensor) -> None:
        # float32 answers sum to one to 1e-7; what is left out of them is normalised away here
        law = log_probs[:, : self.shape[place]].log_softmax(-1)
        at = tuple(others.unbind(-1))
        self.laws[place][at] = law
        self.reached.movedim(place, -1)[at] |= law > -torch.inf

    def relative(self, rounding: Rounding) -> float:
        return max(2.0 * float(rounding.of(law[law.isfinite()]).max()) for law in self.laws)

    def tables(self) -> ConditionalTables:
        laws = (torch.where(law.isnan(), 1 / law.shape[-1], law.exp()) for law in self.laws)
        return ConditionalTables([law.movedim(-1, place).contiguous() for place, law in enumerate(laws)])


def _ask(
    answers: SiteAnswers, x: Tensor, observed: Tensor, sites: Tensor, counts: Tensor, blocks: list[_Block]
) -> bool:
    """Asks all that has come within reach, in one go; False if there is nothing to ask."""
    wanted = [(b, i, block.wanted(i)) for b, block in enumerate(blocks) for i in range(len(block.shape))]
    wanted = [entry for entry in wanted if len(entry[2])]
    if not wanted:
        return False
    sizes = torch.tensor([len(others) for _, _, others in wanted])
    of_block, place = (
        torch.tensor([entry[k] for entry in wanted]).repeat_interleave(sizes).to(x.device) for k in (0, 1)
    )
    filled = [torch.cat([o[:, :i], torch.zeros(len(o), 1, dtype=o.dtype), o[:, i:]], 1) for _, i, o in wanted]
    state = torch.cat(filled).to(x.device)  # [M, k]

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        b = of_block[some]
        rows, sets = x[b].scatter(1, sites[b], state[some].to(x.dtype)), observed[b].scatter(1, sites[b], True)
        return rows, sets.scatter(1, sites[b].gather(1, place[some, None]), False)

    target = sites[of_block].gather(1, place[:, None])[:, 0]
    last = counts.to(x.device)[of_block].gather(1, place[:, None]) - 1
    codes = torch.arange(int(counts.max()), device=x.device).expand(len(target), -1).minimum(last)
    log_probs = answers.log_prob(Requests(target, make), codes.double()).cpu()  # [M, width]
    for (b, i, others), found in zip(wanted, torch.split(log_probs, sizes.tolist()), strict=True):
        blocks[b].learn(i, others, found)
    return True


def _labelled(labels: Labels | None, answers: SiteAnswers) -> list[tuple[str, tuple[Hashable, ...]]]:
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
