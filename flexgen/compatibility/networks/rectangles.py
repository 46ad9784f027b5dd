"""Rectangles: do p(x_i | x_j, C) and p(x_j | x_i, C) tell the same interaction of two sites?

For values a, a' of site i and b, b' of site j the log cross-ratio

    log p(a|b,C) + log p(a'|b',C) - log p(a'|b,C) - log p(a|b',C)

is a property of the joint of the two sites given C; the other direction must give the same number. Their difference is
the *gap*. For positive complete conditionals all gaps being zero is necessary and sufficient for a joint to exist.

Cost. With m_i and m_j values of the two sites, one of each held by the data row, the gaps of a pair in one context read
m_i + m_j rows, of which the two that hold the data's own values are shared by all pairs of that site. The fewest rows
for pairs P over contexts R are therefore

    R * (number of sites in P  +  sum over pairs of (m_i - 1) + (m_j - 1)),

and that many are evaluated: fewer where data rows agree on what is observed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of
from flexgen.compatibility.networks.arguments import checked_observed, checked_rows, checked_seed
from flexgen.compatibility.networks.effects import Cost, Effect
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.compatibility.networks.values import Values
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness

__all__ = ["Rectangles", "all_pairs", "checked_pairs", "double_centred", "rectangles", "shares"]


@dataclass(frozen=True, eq=False)
class Rectangles:
    """Both directions' log-probabilities of pairs of sites over values of both, in contexts given by data rows.

    Args:
        pairs: int64 ``[P, 2]``, sites (i, j).
        values_i, values_j: float64 ``[R, P, m]``, the data row's own value first.
        valid: bool ``[R, P, m, m]``: cells that were looked at.
        forward: float64 ``[R, P, m, m]``: log p(x_i = a | x_j = b, C) in nats at ``[.., a, b]``.
        backward: log p(x_j = b | x_i = a, C), likewise.
        log_density: ``[R, P, m, m]``, log of how often a cell like this is chosen, up to constants.
        rounding: of the log-probabilities.
        cost: what it took.
    """

    pairs: Tensor
    values_i: Tensor
    values_j: Tensor
    valid: Tensor
    forward: Tensor
    backward: Tensor
    log_density: Tensor
    rounding: Rounding
    cost: Cost

    def __repr__(self) -> str:
        return f"Rectangles of {len(self.pairs):,} pairs of sites in {len(self.valid):,} data rows; see effect()"

    def log_cross_ratios(self) -> tuple[Tensor, Tensor]:
        """The two directions' log cross-ratios of every cell with the data's own, ``[R, P, m, m]`` each."""
        return _anchored(self.forward), _anchored(self.backward)

    def interactions(self) -> tuple[Tensor, Tensor]:
        """The two directions' interaction matrices, double-centred over the valid cells, ``[R, P, m, m]`` each.

        Where all categories are enumerated this is the whole interaction of the two sites in its context; the
        directions differ by zero everywhere if and only if all rectangles agree.
        """
        return double_centred(self.forward, self.valid), double_centred(self.backward, self.valid)

    def effect(self) -> Effect:
        """The gaps of all rectangles that have the data's own cell as a corner; they determine all others.

        Every pair in every context counts alike. Within it, `uniform_weights` count the values looked at alike;
        `weights` are proportional to p(x_i = a', x_j = b' | C) of the opposite corner, as the average of the two
        directions has it: how large a gap is met if the model redraws both sites.
        """
        one, other = self.log_cross_ratios()
        gap = one - other
        # Four log-probabilities a direction.
        noise = _corners(self.rounding.of(self.forward)) + _corners(self.rounding.of(self.backward))
        cells = self.valid.clone()
        cells[..., 0, :] = False
        cells[..., :, 0] = False
        log_joint = 0.5 * (_log_joint(self.forward, self.backward) + _log_joint(self.backward.mT, self.forward.mT).mT)
        weights = shares(log_joint - self.log_density, cells)
        uniform = shares(torch.zeros_like(gap), cells)
        row, pair, _, _ = cells.nonzero(as_tuple=True)
        return Effect(
            "rectangle gap",
            gap[cells],
            weights[cells],
            row,
            self.pairs[pair.cpu()],
            noise[cells],
            self.cost,
            uniform_weights=uniform[cells],
        )


def rectangles(
    conditional: Conditional | SiteAnswers,
    x: Tensor,
    *,
    pairs: Tensor | None = None,
    observed: Tensor | None = None,
    values: Values | None = None,
    pool: Tensor | None = None,
    rounding: Rounding | None = None,
    generator: Randomness | int = 0,
) -> Rectangles:
    """Log cross-ratios of pairs of sites, from both directions, in the contexts of data rows.

    Args:
        conditional: has marginals or log-probabilities (or `SiteAnswers` of one, to choose the batch size).
        x: ``[R, N]``, data rows, NaN where an entry is missing.
        pairs: int64 ``[P, 2]``; default: all.
        observed: bool ``[R, N]``, the context and the two sites; default: every present entry. A pair is looked at
            in the rows where it has both.
        values: which values of the sites; default: all of at most 8 categories, otherwise the data's and two draws.
        pool: ``[.., N]``, where values from the data are taken from; default: x.
        rounding: of the answers; default: measured on these rows.
        generator: of the values drawn.

    Cost: see the top of this file; measured in ``.cost``.
    """
    answers = conditional if isinstance(conditional, SiteAnswers) else SiteAnswers(conditional)
    x = checked_rows("x", x, answers.conditional.space.num_sites)
    observed = checked_observed("observed", observed, answers.present_in(x))
    pairs = checked_pairs(pairs, x.shape[1]).to(x.device)
    values = Values.wanted(values, answers, pool)
    rounding = rounding or Rounding.measured(answers, x, observed)
    before = answers.cost
    seed = checked_seed(generator)

    # The laws at the data's own values: p(x_j | rest of the row) of every site of a pair.
    sites, place = torch.unique(pairs, return_inverse=True)  # [S], [P, 2]
    row, slot = (observed[:, sites]).nonzero(as_tuple=True)  # where there is a value of the site's own
    own = x[row, sites[slot]]
    base = Requests(sites[slot], lambda some: (x[row[some]], _without(observed[row[some]], sites[slot[some]])))
    chosen = values.choose(answers, base, own, x if pool is None else pool, seed=rng.key(seed, "values"))
    grid = chosen.on_grid(row, slot, (len(x), len(sites)))  # [R, S, m]

    # The laws where the other site of the pair takes its further values: p(x_i | x_j = b, C) and p(x_j | x_i = a, C).
    of_pair = [grid[:, place[:, side]] for side in (0, 1)]  # i, j: [R, P, m]
    altered = torch.stack([of_pair[1].valid & of_pair[0].valid[..., :1], of_pair[0].valid & of_pair[1].valid[..., :1]])
    altered[..., 0] = False  # [2, R, P, m]: the data's own value is done
    side, r, p, t = altered.nonzero(as_tuple=True)
    asked, changed = pairs[p, side], pairs[p, 1 - side]
    values_of_pair = torch.stack([of_pair[0].values, of_pair[1].values])  # [2, R, P, m]
    new = values_of_pair[1 - side, r, p, t].to(x.dtype)

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        rows = x[r[some]]  # a copy
        rows[torch.arange(len(some), device=x.device), changed[some]] = new[some]
        return rows, _without(observed[r[some]], asked[some])

    tables = torch.full((*altered.shape, altered.shape[-1]), torch.nan, dtype=torch.float64, device=x.device)
    tables[0, :, :, 0], tables[1, :, :, 0] = of_pair[0].log_probs, of_pair[1].log_probs
    tables[side, r, p, t] = answers.log_prob(Requests(asked, make), values_of_pair[side, r, p])
    forward, backward = tables[0].mT, tables[1]  # [R, P, a, b] both
    valid = of_pair[0].valid[..., :, None] & of_pair[1].valid[..., None, :]
    return Rectangles(
        pairs.cpu(),
        of_pair[0].values,
        of_pair[1].values,
        valid,
        forward,
        backward,
        of_pair[0].log_density[..., :, None] + of_pair[1].log_density[..., None, :],
        rounding,
        answers.cost - before,
    )


def all_pairs(num_sites: int) -> Tensor:
    """Every two sites, int64 ``[N (N - 1) / 2, 2]``."""
    return torch.combinations(torch.arange(num_sites), 2)


def checked_pairs(pairs: Tensor | None, num_sites: int) -> Tensor:
    """The pairs asked for, if they are pairs of different sites."""
    if pairs is None:
        return all_pairs(num_sites)
    if not isinstance(pairs, Tensor):
        raise FlexgenError("pairs", f"is {kind_of(pairs)}", "Pass a tensor of whole numbers, [P, 2].")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.is_floating_point() or pairs.dtype == torch.bool:
        raise FlexgenError("pairs", f"has shape {tuple(pairs.shape)}, {pairs.dtype}", "Pass whole numbers, [P, 2].")
    outside = (pairs < 0) | (pairs >= num_sites)
    if bool(outside.any()) or bool((pairs[:, 0] == pairs[:, 1]).any()):
        wrong = int((outside.any(1) | (pairs[:, 0] == pairs[:, 1])).nonzero()[0])
        raise FlexgenError(
            "pairs", f"holds {pairs[wrong].tolist()}", f"Name two different sites of 0 to {num_sites - 1}."
        )
    return pairs


def double_centred(table: Tensor, valid: Tensor) -> Tensor:
    """The table ``[.., m, m]`` less its row and column means over valid cells; NaN elsewhere.

    The valid cells are those of some rows and some columns.
    """
    cells = valid.double()
    filled = torch.where(valid, table, 0.0)
    count_a, count_b = cells.sum(-2, keepdim=True), cells.sum(-1, keepdim=True)
    over_a = filled.sum(-2, keepdim=True) / count_a.clamp_min(1)
    over_b = filled.sum(-1, keepdim=True) / count_b.clamp_min(1)
    everywhere = filled.sum((-2, -1), keepdim=True) / cells.sum((-2, -1), keepdim=True).clamp_min(1)
    return torch.where(valid, filled - over_a - over_b + everywhere, torch.nan)


def _anchored(table: Tensor) -> Tensor:
    """log cross-ratio of each cell with the first, ``[.., m, m]``."""
    return table[..., :1, :1] + table - table[..., :, :1] - table[..., :1, :]


def _corners(noise: Tensor) -> Tensor:
    return noise[..., :1, :1] + noise + noise[..., :, :1] + noise[..., :1, :]


def _log_joint(first: Tensor, second: Tensor) -> Tensor:
    """log p(a, b) up to a constant, from p(a|b) and the odds of b that both directions give at the own value of i.

    Args:
        first: log p(a|b) ``[.., a, b]``.
        second: log p(b|a) ``[.., a, b]``.

    p(b) / p(b0) = [p(b|a0) / p(a0|b)] / [p(b0|a0) / p(a0|b0)]  (Besag 1974, with one reference cell)
    """
    return first + second[..., :1, :] - first[..., :1, :]


def shares(log_weights: Tensor, cells: Tensor) -> Tensor:
    """Weights within each table of ``[.., m, m]`` that sum to one over `cells` (zero where there are none)."""
    flat = log_weights.masked_fill(~cells | log_weights.isnan(), -torch.inf).flatten(-2)
    shares = flat.softmax(-1).nan_to_num(0.0)
    return shares.view(cells.shape)


def _without(observed: Tensor, sites: Tensor) -> Tensor:
    """The observed sets ``[b, N]`` less one site each."""
    return observed.scatter(1, sites[:, None], False)
