"""Rectangles: do p(x_i | x_j, C) and p(x_j | x_i, C) have the same interaction of two sites?

For values a, a' of site i and b, b' of site j the log odds ratio

    log p(a|b,C) + log p(a'|b',C) - log p(a'|b,C) - log p(a|b',C)

is a property of the joint of the two sites given C; the other direction must give the same number. Their difference is
the *gap*. For positive complete conditionals on finite spaces all gaps are zero if and only if a joint exists. On
unbounded real sites that is necessary, not sufficient: what the conditionals agree on may have no finite integral.
(x | y ~ Exp(y) and y | x ~ Exp(x) have log densities log y - x y and log x - x y: all rectangles agree, and e^(-x y)
has no finite integral.)

Cost. With m_i and m_j values of the two sites, one of each held by the data row, the gaps of a pair in one context read
m_i + m_j rows, of which the two that hold the data's own values are shared by all pairs of that site. The fewest rows
for pairs P over contexts R are therefore

    R * (number of sites in P  +  sum over pairs of (m_i - 1) + (m_j - 1)),

and that many are evaluated: fewer where data rows agree on what is observed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of
from flexgen.compatibility.networks.arguments import checked_observed, checked_rows, checked_seed
from flexgen.compatibility.networks.diagnostic import Diagnostic, Example, Found, Panel, Plan, Results, Subject
from flexgen.compatibility.networks.effects import Cost, Effect
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.compatibility.networks.values import Values
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.axes import Axes

__all__ = [
    "RectangleDiagnostic",
    "Rectangles",
    "all_pairs",
    "checked_pairs",
    "double_centred",
    "rectangles",
    "shares",
]


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
        """The two directions' log odds ratios of every cell with the data's own, ``[R, P, m, m]`` each."""
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
        gap, noise = one - other, self._floor()
        cells = self._opposite()
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

    def _floor(self) -> Tensor:
        """The most that rounding makes of each gap, ``[R, P, m, m]``: four log-probabilities a direction."""
        return _corners(self.rounding.of(self.forward)) + _corners(self.rounding.of(self.backward))

    def _opposite(self) -> Tensor:
        """Cells that share neither value with the data's own, bool ``[R, P, m, m]``."""
        cells = self.valid.clone()
        cells[..., 0, :] = False
        cells[..., :, 0] = False
        return cells


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
    """Log odds ratios of pairs of sites, from both directions, in the contexts of data rows.

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
    values = Values.or_default(values, answers, pool)
    rounding = rounding or Rounding.measured(answers, x, observed)
    before = answers.cost
    seed = checked_seed(generator)

    # At the data's own values: p(x_j | rest of the row) of every site of a pair.
    sites, place = torch.unique(pairs, return_inverse=True)  # [S], [P, 2]
    row, slot = (observed[:, sites]).nonzero(as_tuple=True)  # where there is a value of the site's own
    own = x[row, sites[slot]]
    base = Requests(sites[slot], lambda some: (x[row[some]], _without(observed[row[some]], sites[slot[some]])))
    chosen = values.choose(answers, base, own, x if pool is None else pool, seed=rng.key(seed, "values"))
    grid = chosen.on_grid(row, slot, (len(x), len(sites)))  # [R, S, m]

    # Where the other site of the pair takes its further values: p(x_i | x_j = b, C) and p(x_j | x_i = a, C).
    of_pair = [grid[:, place[:, side]] for side in (0, 1)]  # i, j: [R, P, m]
    altered = torch.stack([of_pair[1].valid & of_pair[0].valid[..., :1], of_pair[0].valid & of_pair[1].valid[..., :1]])
    altered[..., 0] = False  # [2, R, P, m]: the data's own value is done
    side, r, p, t = altered.nonzero(as_tuple=True)
    target, changed = pairs[p, side], pairs[p, 1 - side]
    values_of_pair = torch.stack([of_pair[0].values, of_pair[1].values])  # [2, R, P, m]
    new = values_of_pair[1 - side, r, p, t].to(x.dtype)

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        rows = x[r[some]]  # a copy
        rows[torch.arange(len(some), device=x.device), changed[some]] = new[some]
        return rows, _without(observed[r[some]], target[some])

    tables = torch.full((*altered.shape, altered.shape[-1]), torch.nan, dtype=torch.float64, device=x.device)
    tables[0, :, :, 0], tables[1, :, :, 0] = of_pair[0].log_probs, of_pair[1].log_probs
    tables[side, r, p, t] = answers.log_prob(Requests(target, make), values_of_pair[side, r, p])
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
    """The pairs, if each is of two different sites."""
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
    """log odds ratio of each cell with the first, ``[.., m, m]``."""
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


_ENOUGH_ROWS, _MOST_ROWS = 40, 1024  # clusters of an interval
_MOST_NAMES, _MOST_POINTS, _MOST_EXAMPLES = 24, 4000, 5


class RectangleDiagnostic(Diagnostic):
    """Rectangles of complete conditionals: what Gibbs sampling uses, and what every model answers."""

    name = "rectangles"
    effects: ClassVar[Mapping[str, str]] = {
        "rectangle gap": "log odds ratio of two sites given the rest: p(i|j) against p(j|i)"
    }
    share = 0.45

    def least(self, subject: Subject) -> float:
        return float(_alone(subject).min())

    def plan(self, subject: Subject, forwards: float, source: torch.Generator) -> Plan:
        """All pairs if 40 rows of them can be had, otherwise random pairs of each row's own, in 40 rows or fewer.

        Were they the same in all rows, intervals clustered by row would miss how pairs differ.
        """
        pairs, order, readings = subject.pairs, subject.order, subject.readings
        each, most_rows, num_pairs = _costs(subject), len(subject.order), len(subject.pairs)

        def cost(number: int, chosen: Tensor) -> float:
            return float(each[chosen[:number]].sum() + readings[torch.unique(pairs[chosen[:number]])].sum())

        if not most_rows or float(_alone(subject).min()) > forwards + 1e-9:
            return Plan.nothing()
        whole = cost(num_pairs, torch.arange(num_pairs))
        if min(_ENOUGH_ROWS, most_rows) * whole <= forwards:
            rows = order[: min(_MOST_ROWS, int(forwards / whole))]
            what = f"all {num_pairs} pairs in each of {len(rows)} data rows"
            return Plan(rows, int(len(rows) * whole), what, pairs, num_pairs)
        orders = [torch.randperm(num_pairs, generator=source) for _ in range(min(_ENOUGH_ROWS, most_rows))]
        number = max(1, _most_of(lambda n: cost(n, orders[0]), forwards / len(orders), num_pairs))
        spent = torch.tensor([cost(number, chosen) for chosen in orders], dtype=torch.float64).cumsum(0)
        num_rows = int((spent <= forwards).sum())
        if num_rows >= min(2, most_rows):
            of_row = tuple(pairs[chosen[:number]] for chosen in orders[:num_rows])
            what = f"{number} of {num_pairs} pairs, drawn anew in each of {num_rows} data rows"
            return Plan(order[:num_rows], int(spent[num_rows - 1]), what, of_row, num_pairs)
        if subject.further:  # one pair more than others would count for more than others
            return Plan.nothing()
        alone = _alone(subject)
        best = int(alone.argmin())
        rows = order[: int(forwards / float(alone[best]) + 1e-9)]
        what = f"the cheapest of {num_pairs} pairs in {len(rows)} data rows"
        return Plan(rows, int(len(rows) * float(alone[best])), what, pairs[best : best + 1], num_pairs)

    def measure(self, subject: Subject, x: Tensor, plan: Plan, part: slice) -> Found:
        def measured(rows: Tensor, pairs: Tensor, first: int) -> tuple[Rectangles, Effect]:
            result = rectangles(
                subject.answers,
                rows,
                pairs=pairs,
                values=subject.values,
                pool=subject.pool,
                rounding=subject.rounding,
                generator=rng.key(subject.seed, "r", first),
            )
            return result, result.effect()

        if isinstance(plan.choices, Tensor):
            pieces = [(measured(x, plan.choices, part.start), torch.arange(len(x)))]
        else:
            pieces = [
                (measured(x[k : k + 1], pairs, part.start + k), torch.tensor([k]))
                for k, pairs in enumerate(plan.choices[part])
            ]
        ratios = [
            torch.stack([side[result._opposite()].cpu() for side in result.log_cross_ratios()])
            for (result, _), _ in pieces
        ]  # [2, M] each
        forward, backward = torch.cat(ratios, dim=1)
        examples = [place for (result, _), rows in pieces for place in _examples(result, x, rows, subject)]
        return Found(
            [effect.at_rows(rows) for (_, effect), rows in pieces],
            {"forward": forward, "backward": backward},
            sorted(examples, key=lambda place: -abs(place.gap))[:_MOST_EXAMPLES],
        )

    def panels(self, results: Results) -> Sequence[Panel]:
        there = [_heat_map] if "rectangle gap" in results.effects else []
        return [*there, _directions] if len(results.directions.get("forward", ())) else there


def _costs(subject: Subject) -> Tensor:
    """Rows a pair takes in a context, those of the data's own values aside, ``[P]``."""
    pairs = subject.pairs
    return (subject.widths[pairs].flip(1) - 1).mul(subject.readings[pairs]).sum(1)


def _alone(subject: Subject) -> Tensor:
    """Rows that a pair takes by itself, ``[P]``."""
    return _costs(subject) + subject.readings[subject.pairs].sum(1)


def _most_of(cost: Callable[[int], float], share: float, most: int) -> int:
    """The largest number whose cost, which grows with it, is within a share."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= share else (low, middle - 1)
    return low


def _examples(result: Rectangles, x: Tensor, rows: Tensor, subject: Subject) -> list[Example]:
    """Of the pairs that differ most, the rectangle that does; the result's rows are these of x."""
    one, other = result.log_cross_ratios()
    gap = (one - other).abs()
    above = result._opposite() & ((gap > result._floor()) | gap.isinf())
    gap = torch.where(above, gap, 0.0).cpu()
    found = []
    of_pair = gap.movedim(1, 0).flatten(1).amax(1) if gap.numel() else torch.zeros(0)  # [P]
    for p in of_pair.topk(min(_MOST_EXAMPLES, len(of_pair))).indices.tolist():
        if of_pair[p] == 0:
            break
        r, a, b = (int(k) for k in torch.unravel_index(gap[:, p].argmax(), gap[:, p].shape))
        sites = result.pairs[p].tolist()
        values = (
            (result.values_i[r, p, 0], result.values_i[r, p, a]),
            (result.values_j[r, p, 0], result.values_j[r, p, b]),
        )
        row = int(rows[r])
        found.append(
            Example(
                "rectangle gap",
                row,
                tuple(subject.names[site] for site in sites),
                tuple(
                    (subject.label(site, float(own)), subject.label(site, float(new)))
                    for site, (own, new) in zip(sites, values, strict=True)
                ),
                (float(one[r, p, a, b]), float(other[r, p, a, b])),
                subject.context(x[row]),
            )
        )
    return found


def _heat_map(ax: Axes, results: Results) -> None:
    """Mean gap of every pair of sites that were examined; hatched where a pair was not looked at."""
    import numpy as np
    from matplotlib.patches import Patch

    effect = results.effects["rectangle gap"]
    frame = effect.by_sites()
    paired = frame[["site_0", "site_1"]].to_numpy()
    examined = [np.unique(other.sites.numpy()) for other in results.effects.values() if other.sites.shape[1]]
    sites = functools.reduce(np.union1d, examined, paired.ravel())
    place = {site: k for k, site in enumerate(sites)}
    table = np.full((len(sites), len(sites)), np.nan)
    for i, j, value in frame[["site_0", "site_1", "weighted"]].itertuples(index=False):
        table[place[i], place[j]] = table[place[j], place[i]] = value
    unseen = np.isnan(table) & ~np.eye(len(sites), dtype=bool)
    ax.set_facecolor("white")
    if unseen.any():
        ax.pcolor(
            np.arange(len(sites) + 1) - 0.5,
            np.arange(len(sites) + 1) - 0.5,
            np.ma.masked_where(~unseen, np.zeros_like(table)),
            cmap="Greys",
            vmin=0.0,
            vmax=1.0,
            hatch="////",
            edgecolor="#bbbbbb",
            lw=0,
        )
        ax.legend(
            handles=[Patch(facecolor="white", edgecolor="#bbbbbb", hatch="////", label="not examined")],
            loc="lower left",
            bbox_to_anchor=(1.02, -0.02),
            frameon=False,
            fontsize=7,
        )
    # What rounding explains is pale: the scale reaches the floor at least.
    top = max(float(np.nanmax(table)), float(frame["floor"].max())) or 1.0
    shown = ax.imshow(table, cmap="magma_r", vmin=0.0, vmax=top)
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.85)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("mean |gap|, nats", fontsize=8)
    if results.margin is not None and results.margin < top:
        bar.ax.axhline(results.margin, color="#1b7f4b", lw=2)
        bar.ax.text(-0.15, results.margin, "margin", color="#1b7f4b", fontsize=7, ha="right", va="center")
    if len(sites) <= _MOST_NAMES:
        names = [_short(results.names[site]) for site in sites]
        ax.set_xticks(range(len(sites)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(sites)), names, fontsize=7)
    else:
        ax.tick_params(labelsize=7)
        ax.set_xlabel("site", fontsize=8)
    ax.set_title("interaction gap of pairs, weighted mean", fontsize=9, loc="left")


def _directions(ax: Axes, results: Results) -> None:
    """Each rectangle's log odds ratio from the one direction against that from the other."""
    import numpy as np

    from flexgen.plots import SAMPLED

    one, other = (np.asarray(results.directions[name]) for name in ("forward", "backward"))
    finite = np.isfinite(one) & np.isfinite(other)
    one, other = one[finite], other[finite]
    if len(one) > _MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(one), _MOST_POINTS, replace=False)
        one, other = one[chosen], other[chosen]
    both = np.concatenate([one, other])
    reach = 1.05 * float(np.percentile(np.abs(both), 99.5)) if len(both) else 1.0
    reach = reach or 1.0
    ax.plot([-reach, reach], [-reach, reach], color="#999999", lw=1, zorder=0)
    size, alpha = (3, 0.3) if len(one) > 500 else (5, 0.6)
    ax.plot(one, other, ".", color=SAMPLED, ms=size, alpha=alpha, mew=0, rasterized=True)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set_xlabel("log odds ratio from p(i | j), nats", fontsize=8)
    ax.set_ylabel("log odds ratio from p(j | i), nats", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title("the two directions; a joint puts all on the line", fontsize=9, loc="left")


def _short(text: str, most: int = 14) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
