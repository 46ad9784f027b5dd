"""Exact blocks: a few sites whose every state is asked of the network, given the rest of a data row.

p(x_i | the block's others, the rest) for every site and state is a family of tables, of which the exact tier says
all there is to say: whether a joint exists, the worst cycle, the law of every Gibbs scan over these sites. The laws of
scans in different orders differ if and only if pseudo-Gibbs sampling of the block depends on the scan.

Cost: a block of sites with K_1, .., K_k categories takes sum_i prod_(j != i) K_j rows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flexgen.compatibility.effects import Cost, Effect
from flexgen.compatibility.rounding import Rounding
from flexgen.compatibility.sites import Requests, SiteAnswers
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.exact import ConditionalTables, kernels

if TYPE_CHECKING:
    from flexgen.compatibility.tables import TableCheck

__all__ = ["ExactBlocks", "exact_blocks"]

_MOST_STATES = 4096


@dataclass(frozen=True, eq=False)
class ExactBlocks:
    """Conditionals of blocks of sites, enumerated from a network.

    Args:
        sites: int64 ``[B, k]``.
        tables: of every block, axes in the order of its sites.
        relative: float64 ``[B]``: rounding of a table's entries, relative.
        cost: what it took.
    """

    sites: Tensor
    tables: tuple[ConditionalTables, ...]
    relative: Tensor
    cost: Cost

    def scan_laws(self, block: int) -> dict[tuple[int, ...], Tensor]:
        """Order of the sites -> law at the end of a sweep in that order, ``[K_1, .., K_k]``."""
        tables = self.tables[block]
        places = range(len(tables.shape))
        return {
            tuple(int(self.sites[block, place]) for place in order): kernels.stationary(
                kernels.sweep_kernel(tables, order)
            ).view(tables.shape)
            for order in itertools.permutations(places)
        }

    def check(self, block: int) -> TableCheck:
        """What the exact tier says of a block: verdict, worst cycle, joint. Rounding of the network is tolerated."""
        from flexgen.compatibility.tables import check_tables

        tables = self.tables[block]
        num_edges = 2 * math.prod(tables.shape)  # at most, of a loop
        return check_tables(tables, tolerance=max(1e-6, num_edges * float(self.relative[block])))

    def effect(self) -> Effect:
        """For each block the largest total variation distance between the laws of two orders of the scan, 0 to 1.

        Floor. If the entries of a stochastic matrix of S states change by factors between 1/f and f, its stationary law
        changes by factors within f^(2 (S - 1)): each of its probabilities is a ratio of sums of products of S - 1
        entries (Markov chain tree theorem). A sweep's entries are sums of products of k entries of the tables.
        """
        values, floors = [], []
        for block, tables in enumerate(self.tables):
            laws = torch.stack(list(self.scan_laws(block).values())).flatten(1)  # [k!, S]
            values.append(float(0.5 * torch.cdist(laws, laws, p=1).max()))
            change = 2.0 * (math.prod(tables.shape) - 1) * len(tables.shape) * float(self.relative[block])
            floors.append(min(math.expm1(min(change, 1.0)), 1.0))  # half of it for each of two laws
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


def exact_blocks(
    conditional: Conditional | SiteAnswers,
    x: Tensor,
    sites: Tensor,
    *,
    observed: Tensor | None = None,
    rounding: Rounding | None = None,
) -> ExactBlocks:
    """The tables p(x_i | other sites of the block, the rest of the row) over all states of each block.

    Args:
        conditional: has marginals or log-probabilities (or `SiteAnswers` of one).
        x: ``[B, N]``, one data row a block; NaN where an entry is missing.
        sites: int64 ``[B, k]`` or ``[k]``, distinct categorical sites.
        observed: bool ``[B, N]``, what the block is given; its own sites are left out. Default: every present entry.
        rounding: of the answers; default: measured on these rows.

    Raises:
        UnsupportedQueryError: a site that is not categorical.
        FlexgenError: more than 4096 states, or repeated sites.
    """
    answers = conditional if isinstance(conditional, SiteAnswers) else SiteAnswers(conditional)
    space, device = answers.conditional.space, x.device
    sites = sites.expand(len(x), -1) if sites.ndim == 1 else sites
    counts = torch.tensor(space.num_categories)[sites]  # [B, k]
    if bool((counts == 0).any()):
        wrong = int(sites[counts == 0][0])
        raise UnsupportedQueryError(
            "sites", f"holds site {space.names[wrong]!r}, which is not categorical", "Enumerate categorical sites only."
        )
    if bool((sites.sort(-1).values.diff(dim=-1) == 0).any()):
        raise FlexgenError("sites", "names a site twice in one block", "Name distinct sites.")
    states = int(counts.prod(-1).max()) if len(counts) else 0
    if states > _MOST_STATES:
        raise FlexgenError("sites", f"have {states} states", f"Choose fewer sites: at most {_MOST_STATES} states.")
    present = answers.present_in(x)
    observed = present if observed is None else observed.to(device) & present
    rounding = rounding or Rounding.measured(answers, x, present)
    before = answers.cost

    # One request for every block, site i of it, and state of the block's others.
    block, asked, codes, shapes = [], [], [], []
    for b, shape in enumerate(counts.tolist()):
        shapes.append(tuple(shape))
        for i in range(len(shape)):
            grid = torch.cartesian_prod(*(torch.arange(1 if j == i else k) for j, k in enumerate(shape)))
            codes.append(grid.view(-1, len(shape)))
            block.append(torch.full((len(codes[-1]),), b))
            asked.append(torch.full((len(codes[-1]),), i))
    if not block:
        return ExactBlocks(sites, (), torch.zeros(0, dtype=torch.float64), Cost())
    of_block, place, state = (torch.cat(part).to(device) for part in (block, asked, codes))
    sites = sites.to(device)

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        b = of_block[some]
        rows, sets = x[b].scatter(1, sites[b], state[some].to(x.dtype)), observed[b].scatter(1, sites[b], True)
        return rows, sets.scatter(1, sites[b].gather(1, place[some, None]), False)

    width = int(counts.max())
    target = sites[of_block].gather(1, place[:, None])[:, 0]
    values = torch.arange(width, device=device, dtype=torch.float64).expand(len(target), -1)
    log_probs = answers.log_prob(Requests(target, make), values).cpu()  # [M, width]
    return _assembled(sites.cpu(), shapes, of_block.cpu(), place.cpu(), log_probs, rounding, answers.cost - before)


def _assembled(
    sites: Tensor,
    shapes: list[tuple[int, ...]],
    of_block: Tensor,
    place: Tensor,
    log_probs: Tensor,
    rounding: Rounding,
    cost: Cost,
) -> ExactBlocks:
    tables, relative = [], []
    for b, shape in enumerate(shapes):
        each, worst = [], 0.0
        for i, size in enumerate(shape):
            rows = log_probs[(of_block == b) & (place == i), :size]  # [states of the others, K_i]
            # float32 answers sum to one to 1e-7; what is left out of them is normalised away here
            law = rows.log_softmax(-1)
            finite = law.where(law.isfinite(), 0.0)
            worst = max(worst, 2.0 * float(rounding.of(finite).max()))
            others = [k for j, k in enumerate(shape) if j != i]
            each.append(law.exp().view(*others, size).movedim(-1, i).contiguous())
        tables.append(ConditionalTables(each))
        relative.append(worst)
    return ExactBlocks(sites, tuple(tables), torch.tensor(relative, dtype=torch.float64), cost)
