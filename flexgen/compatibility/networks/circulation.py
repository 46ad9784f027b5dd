"""Circulation: two routes to the joint of two sites, p(i|C) p(j|C,i) and p(j|C) p(i|C,j).

Positive conditionals p(x_i | x_C), given for every C, have a joint if and only if for all sites i, j outside C

    c(a, b) = log p(a|C) + log p(b|C,a) - log p(b|C) - log p(a|C,b) = 0.

Double-centring c over the values of the two sites leaves the *interaction part*, in which p(i|C) and p(j|C) cancel: it
is what rectangles see. The rest is the *marginal part*: the one-site conditionals given C are not the margins of the
two-site ones. A network may pass one and fail the other. (Where sites are real and unbounded, c = 0 is necessary,
not sufficient: what the conditionals agree on may have no finite integral.)

Cost: 1 + m_i + m_j rows a pair and context (one holds both p(i|C) and p(j|C)), all distinct.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flexgen import rng
from flexgen.compatibility.networks.arguments import checked_observed, checked_rows, checked_seed
from flexgen.compatibility.networks.diagnostic import Diagnostic, Found, Plan, Subject
from flexgen.compatibility.networks.effects import Cost, Effect
from flexgen.compatibility.networks.rectangles import checked_pairs, double_centred, shares
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import Requests, SiteAnswers, on_grid
from flexgen.compatibility.networks.values import Values
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness

__all__ = ["Circulation", "CirculationDiagnostic", "circulation", "random_contexts", "subsets"]


@dataclass(frozen=True, eq=False)
class Circulation:
    """Log-probabilities of both routes, for pairs of sites in contexts C of data rows.

    Args:
        pairs: int64 ``[R, P, 2]``, sites (i, j).
        observed: bool ``[R, P, N]``, C.
        values_i, values_j: float64 ``[R, P, m]``, the data row's own value first.
        valid: bool ``[R, P, m, m]``.
        log_i, log_j: ``[R, P, m]``: log p(x_i = a | C), log p(x_j = b | C), nats.
        forward: ``[R, P, m, m]``: log p(x_i = a | C, x_j = b) at ``[.., a, b]``.
        backward: log p(x_j = b | C, x_i = a), likewise.
        log_density: ``[R, P, m, m]``, log of how often a cell like this is chosen, up to constants.
    """

    pairs: Tensor
    observed: Tensor
    values_i: Tensor
    values_j: Tensor
    valid: Tensor
    log_i: Tensor
    log_j: Tensor
    forward: Tensor
    backward: Tensor
    log_density: Tensor
    rounding: Rounding
    cost: Cost

    @property
    def values(self) -> Tensor:
        """c, ``[R, P, m, m]``."""
        return self.log_i[..., :, None] + self.backward - self.log_j[..., None, :] - self.forward

    def parts(self) -> tuple[Tensor, Tensor]:
        """The interaction part and the marginal part of c, ``[R, P, m, m]`` each; they add up to it."""
        c = self.values
        interaction = double_centred(c, self.valid)
        return interaction, c - interaction

    def __repr__(self) -> str:
        rows, number = self.valid.shape[:2]
        return f"Circulation of {number:,} pairs of sites in each of {rows:,} data rows; see effects()"

    def effects(self) -> tuple[Effect, Effect, Effect]:
        """c, its interaction part and its marginal part, at every cell that was looked at.

        Every pair in every context counts alike; within it cells count alike, or by p(x_i = a, x_j = b | C), the
        average of both routes.
        """
        interaction, marginal = self.parts()
        tails = self.rounding.of(self.forward) + self.rounding.of(self.backward)
        tails = torch.where(tails.isfinite(), tails, 0.0)
        heads = self.rounding.of(self.log_i)[..., :, None] + self.rounding.of(self.log_j)[..., None, :]
        noise = tails + heads
        noise_interaction = _spread(tails, self.valid)
        routes = self.log_i[..., :, None] + self.backward + self.log_j[..., None, :] + self.forward
        weights = shares(0.5 * routes - self.log_density, self.valid)
        uniform = shares(torch.zeros_like(routes), self.valid)
        row, pair, _, _ = self.valid.nonzero(as_tuple=True)

        def effect(name: str, values: Tensor, floor: Tensor, cost: Cost) -> Effect:
            cells, sites = self.valid, self.pairs[row, pair]
            return Effect(
                name, values[cells], weights[cells], row, sites, floor[cells], cost, uniform_weights=uniform[cells]
            )

        nothing = Cost()  # the parts are read off the same rows
        return (
            effect("circulation", self.values, noise, self.cost),
            effect("circulation, interaction part", interaction, noise_interaction, nothing),
            effect("circulation, marginal part", marginal, noise + noise_interaction, nothing),
        )


def circulation(
    conditional: Conditional | SiteAnswers,
    x: Tensor,
    *,
    pairs: Tensor | None = None,
    observed: Tensor | None = None,
    values: Values | None = None,
    pool: Tensor | None = None,
    rounding: Rounding | None = None,
    generator: Randomness | int = 0,
) -> Circulation:
    """Circulations of pairs of sites in contexts of any size.

    Args:
        conditional: answers p(x_i | x_C) for any C (or `SiteAnswers` of one).
        x: ``[R, N]``, data rows, NaN where an entry is missing.
        pairs: int64 ``[P, 2]``, or ``[R, P, 2]`` where rows differ; default: all.
        observed: bool ``[R, P, N]``, ``[R, N]`` or ``[N]``, the contexts C; the two sites are left out of it. Default:
            random subsets of the other present entries, their size uniform.
        values, pool, rounding, generator: as in `rectangles`; the generator also draws the contexts.
    """
    answers = conditional if isinstance(conditional, SiteAnswers) else SiteAnswers(conditional)
    x = checked_rows("x", x, answers.conditional.space.num_sites)
    num_sites, device = x.shape[1], x.device
    present = answers.present_in(x)
    if pairs is None or not isinstance(pairs, Tensor) or pairs.ndim == 2:
        pairs = checked_pairs(pairs, num_sites)[None].expand(len(x), -1, -1)
    elif pairs.ndim != 3 or len(pairs) != len(x):
        raise FlexgenError("pairs", f"has shape {tuple(pairs.shape)}", f"Pass [P, 2] or [{len(x)}, P, 2].")
    checked_pairs(pairs.reshape(-1, 2), num_sites)
    pairs = pairs.to(device)
    seed = checked_seed(generator)
    both = torch.zeros(*pairs.shape[:2], num_sites, dtype=torch.bool, device=device).scatter(2, pairs, True)
    if observed is None:
        observed = random_contexts(present[:, None] & ~both, seed=rng.key(seed, "contexts"))
    elif not isinstance(observed, Tensor) or observed.ndim < 3:
        observed = checked_observed("observed", observed, present)[:, None]
    elif observed.dtype != torch.bool or observed.shape != both.shape:
        what = f"has shape {tuple(observed.shape)}, {observed.dtype}"
        raise FlexgenError("observed", what, f"Pass True and False, {list(both.shape)}.")
    observed = observed.to(device) & present[:, None] & ~both  # [R, P, N]
    values = Values.or_default(values, answers, pool)
    rounding = rounding or Rounding.measured(answers, x, present)
    before = answers.cost

    # p(x_i | C) and p(x_j | C): one row holds both.
    row, pair = (present[:, None] & both).sum(-1).eq(2).nonzero(as_tuple=True)  # the data hold both values
    r, p = row.repeat_interleave(2), pair.repeat_interleave(2)
    site = pairs[row, pair].flatten()
    head = Requests(site, lambda some: (x[r[some]], observed[r[some], p[some]]))
    chosen = values.choose(answers, head, x[r, site], x if pool is None else pool, seed=rng.key(seed, "values"))
    sides = chosen.view(len(row), 2)  # [M, 2, m]

    # p(x_j | C, x_i = a) and p(x_i | C, x_j = b), the data's own values included.
    k, source, t = sides.valid.nonzero(as_tuple=True)
    target, changed = pairs[row[k], pair[k]].gather(1, torch.stack([1 - source, source], 1)).unbind(1)
    new = sides.values[k, source, t].to(x.dtype)

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(len(some), device=device)
        rows, sets = x[row[k[some]]], observed[row[k[some]], pair[k[some]]].clone()
        rows[places, changed[some]] = new[some]
        sets[places, changed[some]] = True
        return rows, sets

    width = sides.values.shape[-1]
    tables = torch.full((len(row), 2, width, width), torch.nan, dtype=torch.float64, device=device)
    tables[k, source, t] = answers.log_prob(Requests(target, make), sides.values[k, 1 - source])
    valid = sides.valid[:, 0, :, None] & sides.valid[:, 1, None, :]
    density = sides.log_density[:, 0, :, None] + sides.log_density[:, 1, None, :]

    def grid(part: Tensor) -> Tensor:
        return on_grid(part, row, pair, (len(x), pairs.shape[1]))

    return Circulation(
        pairs=pairs,
        observed=observed,
        values_i=grid(sides.values[:, 0]),
        values_j=grid(sides.values[:, 1]),
        valid=grid(valid),
        log_i=grid(sides.log_probs[:, 0]),
        log_j=grid(sides.log_probs[:, 1]),
        forward=grid(tables[:, 1].mT),  # [M, b, a] -> [M, a, b]
        backward=grid(tables[:, 0]),
        log_density=grid(density),
        rounding=rounding,
        cost=answers.cost - before,
    )


def random_contexts(allowed: Tensor, *, seed: int) -> Tensor:
    """Random subsets of the allowed sites, bool ``[.., N]``: their size is uniform, then the set is."""
    flat = allowed.flatten(0, -2)
    streams = rng.Streams(seed, len(flat), device=str(flat.device))
    u = rng.uniform((len(flat), 1 + flat.shape[1]), generator=streams, dtype=torch.float64)
    return subsets(flat, u).view(allowed.shape)


def subsets(allowed: Tensor, u: Tensor) -> Tensor:
    """Subsets of the allowed sites, bool ``[M, N]``, of uniform size, from uniform numbers ``[M, 1 + N]``."""
    size = (u[:, :1] * (allowed.sum(-1, keepdim=True) + 1)).long()  # 0 .. number allowed
    rank = u[:, 1:].masked_fill(~allowed, 2.0).argsort(-1).argsort(-1)
    return (rank < size) & allowed


def _spread(noise: Tensor, valid: Tensor) -> Tensor:
    """What errors of at most `noise` at each cell can add up to in the double-centred table."""
    cells = valid.double()
    filled = torch.where(valid, noise, 0.0)
    over_a = filled.sum(-2, keepdim=True) / cells.sum(-2, keepdim=True).clamp_min(1)
    over_b = filled.sum(-1, keepdim=True) / cells.sum(-1, keepdim=True).clamp_min(1)
    everywhere = filled.sum((-2, -1), keepdim=True) / cells.sum((-2, -1), keepdim=True).clamp_min(1)
    return filled + over_a + over_b + everywhere


_MOST_ROWS = 1024


class CirculationDiagnostic(Diagnostic):
    """Circulations in random contexts: whether the answers about different sets of sites fit together."""

    name = "circulations"
    effects: ClassVar[Mapping[str, str]] = {
        "circulation": "p(i|C) p(j|C,i) against p(j|C) p(i|C,j), C random",
        "circulation, interaction part": "the part of it that rectangles see (double-centred)",
        "circulation, marginal part": "the rest: p(i|C) and p(j|C) against the two-site conditionals",
    }
    share = 0.2

    def least(self, subject: Subject) -> float:
        return float(_costs(subject).max())

    def plan(self, subject: Subject, forwards: float, source: torch.Generator) -> Plan:
        """Random pairs of their own in every row."""
        pairs, each = subject.pairs, _costs(subject)
        cells = int(forwards / float(each.mean()))
        num_rows = min(_MOST_ROWS, len(subject.order), cells)
        if num_rows < 1:
            return Plan.nothing()
        chosen = torch.randint(len(pairs), (num_rows, cells // num_rows), generator=source)
        cost = each[chosen].sum(1).cumsum(0)
        num_rows = int((cost <= forwards).sum())
        if not num_rows:
            return Plan.nothing()
        what = f"{chosen.shape[1]} pairs, drawn anew in each of {num_rows} data rows"
        return Plan(subject.order[:num_rows], int(cost[num_rows - 1]), what, pairs[chosen[:num_rows]])

    def measure(self, subject: Subject, x: Tensor, plan: Plan, part: slice) -> Found:
        result = circulation(
            subject.answers,
            x,
            pairs=plan.choices[part].to(x.device),
            values=subject.values,
            pool=subject.pool,
            rounding=subject.rounding,
            generator=rng.key(subject.seed, "c", part.start),
        )
        return Found(result.effects())


def _costs(subject: Subject) -> Tensor:
    """Rows of every pair in a context, ``[P]``."""
    pairs, readings = subject.pairs, subject.readings
    head = torch.where((readings[pairs] > 1).any(1), readings[pairs].sum(1), 1.0)
    return head + subject.widths[pairs].mul(readings[pairs].flip(1)).sum(1)
