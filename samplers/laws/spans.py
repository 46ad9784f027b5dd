"""Runs of neighbouring sites: the span corruption of text models.

Rows are seen without their gaps: missing entries and padding are not places of the sequence.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen.checks import number, whole_number
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness
from samplers.laws.base import Law, Rows, Sets, Support
from samplers.laws.select import choose, count_sites

__all__ = ["GeometricSpans", "NGrams", "Spans", "span_counts", "truncated_geometric"]


@dataclass(frozen=True)
class Spans(Law):
    """A fixed number of targets in a fixed number of spans, at random places (T5, Raffel et al. 2020).

    A row of n sites has round(n * density) targets in round(targets / mean_length) spans (at least one of each);
    targets and others are each cut into that many non-empty pieces uniformly, and the pieces alternate, beginning
    with one that is observed.

    Args:
        density: the share of targets, in (0, 1).
        mean_length: the mean length of a span, 1 or more.
    """

    density: float
    mean_length: float

    def __post_init__(self) -> None:
        number("density", self.density, 0.0, 1.0)
        number("mean_length", self.mean_length, 1.0, fix="A span holds one site or more.")

    def draw_sets(self, rows: Rows) -> Sets:
        targets, spans = span_counts(rows.num_present, self.density, self.mean_length)
        source = rows.fork("spans").generator
        target_lengths = _composition(targets, spans, generator=source)
        other_lengths = _composition(rows.num_present - targets, spans, generator=source)
        return rows.rest(rows.spread(_alternate(other_lengths, target_lengths, rows.num_sites)))

    def support(self, num_sites: int) -> Support:
        targets, spans = (int(c) for c in span_counts(torch.tensor([num_sites]), self.density, self.mean_length))
        cuts = [list(itertools.combinations(range(1, n), spans - 1)) for n in (num_sites - targets, targets)]
        rows = []
        for other, target in itertools.product(*cuts):
            pieces = [_pieces(other, num_sites - targets), _pieces(target, targets)]
            row = [
                bool(i) for pair in zip(*pieces, strict=True) for i, length in enumerate(pair) for _ in range(length)
            ]
            rows.append(row)
        drawn = torch.tensor(rows)
        share = torch.full((len(rows),), 1.0 / len(rows), dtype=torch.float64)
        return Support.merged([(Sets(drawn, ~drawn, torch.ones(len(rows))), share)])


def span_counts(n: Tensor, density: float, mean_length: float) -> tuple[Tensor, Tensor]:
    """Targets and spans of rows of n sites, int64 like n, rounded half to even as in T5."""
    targets = torch.minimum((n.double() * density).round().long().clamp_min(1), (n - 1).clamp_min(1))
    targets = torch.minimum(targets, n)
    spans = (targets.double() / mean_length).round().long().clamp_min(1)
    return targets, torch.minimum(spans, torch.minimum(targets, n - targets).clamp_min(1))


def _composition(total: Tensor, parts: Tensor, *, generator: Randomness) -> Tensor:
    """A uniform way to write `total` as a sum of `parts` positive numbers, int64 ``[B, max parts]``, then zeros."""
    longest, most = int(total.max()) if len(total) else 0, int(parts.max()) if len(parts) else 1
    item = torch.arange(longest, device=total.device)
    inside = item < total[:, None]  # [B, longest]
    cut = choose((parts - 1).clamp_min(0), inside & (item > 0), generator=generator)
    lengths = torch.zeros(len(total), most, dtype=torch.int64, device=total.device)
    return lengths.scatter_add_(-1, cut.cumsum(-1).clamp_max(most - 1), inside.long())


def _alternate(others: Tensor, targets: Tensor, num_sites: int) -> Tensor:
    """The sites of `targets` when pieces alternate, others first: bool ``[B, N]``."""
    ends = torch.stack([others, targets], -1).flatten(1).cumsum(-1)  # [B, 2S]
    ones = torch.ones_like(ends, dtype=torch.int16)
    passed = torch.zeros(len(ends), num_sites + 1, dtype=torch.int16, device=ends.device).scatter_add_(-1, ends, ones)
    return (passed.cumsum(-1, dtype=torch.int16)[:, :num_sites] & 1).bool()


def _pieces(cuts: tuple[int, ...], total: int) -> list[int]:
    ends = [0, *cuts, total]
    return [b - a for a, b in itertools.pairwise(ends)]


@dataclass(frozen=True)
class GeometricSpans(Law):
    """Spans of geometric length from random anchors until a budget is spent (SpanBERT, Joshi et al. 2020).

    Anchors fall on sites not yet taken; a span may run into another, and is cut at the end of the row and of the
    budget, so that exactly ceil(n * density) sites are targets. Tie it by words to keep spans word-aligned.

    Args:
        density: the share of targets, in [0, 1].
        p: the parameter of the geometric law of lengths.
        max_length: lengths are conditioned on 1 .. max_length.
    """

    density: float = 0.15
    p: float = 0.2
    max_length: int = 10

    def __post_init__(self) -> None:
        number("density", self.density, 0.0, 1.0)
        number("p", self.p, 0.0, 1.0)
        whole_number("max_length", self.max_length, 1)

    def draw_sets(self, rows: Rows) -> Sets:
        n = rows.num_present
        budget = (n.double() * self.density).ceil().long()
        cdf = truncated_geometric(self.p, self.max_length).cumsum(0).to(n.device)
        reach = min(self.max_length, rows.num_sites)  # a span ends with the row at the latest
        step = torch.arange(reach, device=n.device)
        # Places from n on count as taken, and there are enough of them for a span to run over the end.
        outside = torch.arange(rows.num_sites + reach, device=n.device) >= n[:, None]
        taken, spent = outside.clone(), torch.zeros_like(n)
        source = rows.fork("spans")
        while bool((spent < budget).any()):
            u, v = source.uniform(2).unbind(-1)
            anchor = (u * n).long()  # [B]
            length = torch.searchsorted(cdf[:-1], v * cdf[-1], right=True) + 1
            place = anchor[:, None] + step  # [B, reach]
            before = taken.gather(-1, place)
            fresh = ~before & (step < length[:, None])
            fresh &= fresh[:, :1]  # the anchor itself must be free
            fresh &= fresh.cumsum(-1) <= (budget - spent)[:, None]
            taken.scatter_(-1, place, before | fresh)
            spent += count_sites(fresh)
        return rows.rest(rows.spread((taken & ~outside)[:, : rows.num_sites]))


def truncated_geometric(p: float, max_length: int) -> Tensor:
    """p (1-p)^(k-1) for k = 1 .. max_length, normalised, float64."""
    k = torch.arange(max_length, dtype=torch.float64)
    return torch.softmax(torch.xlogy(k, torch.tensor(1.0 - p, dtype=torch.float64)), 0)


@dataclass(frozen=True)
class NGrams(Law):
    """n-grams, each at a random place of a context `alpha / beta` times as long, topped up to a fixed count (XLNet).

    The row is walked from the left: an n-gram of length g (P(g) proportional to 1/g, g <= max_gram) takes a window
    of g + floor(g alpha / beta) sites and stands at a uniform offset in it. Sites drawn at random complete the count.

    Args:
        count: how many targets a full row of `full_length` sites has; shorter rows have the same share.
        full_length: the row's length for which `count` is stated.

    Source: Yang et al. 2019 and its data pipeline (512 sites, 85 targets: about 1/6).
    """

    count: int = 85
    full_length: int = 512
    alpha: int = 6
    beta: int = 1
    max_gram: int = 5

    def __post_init__(self) -> None:
        for name in ("full_length", "beta", "max_gram"):
            whole_number(name, getattr(self, name), 1)
        whole_number("alpha", self.alpha, self.beta)
        if not 0 <= whole_number("count", self.count, 0) <= self.full_length:
            raise FlexgenError("count", f"is {self.count} of {self.full_length}", "Predict at most the whole row.")

    def draw_sets(self, rows: Rows) -> Sets:
        n = rows.num_present
        goal = (n * self.count / self.full_length).round().long()
        shortest = 1 + self.alpha // self.beta
        most = -(-rows.num_sites // shortest)  # n-grams that fit
        mass = 1.0 / torch.arange(1, self.max_gram + 1, dtype=torch.float64, device=n.device)
        gram = 1 + torch.searchsorted(mass.cumsum(0)[:-1], rows.uniform(most) * mass.sum(), right=True)  # [B, G]
        gram = torch.minimum(gram, (goal[:, None] - gram.cumsum(-1) + gram).clamp_min(0))  # stop at the goal
        context = gram * self.alpha // self.beta
        window = gram + context
        begin = window.cumsum(-1) - window + (rows.uniform(most) * context).long()
        fits = (begin + gram < n[:, None]) & (gram > 0)
        fits &= fits.cumprod(-1).bool()  # the walk ends at the first that does not fit
        drop = rows.num_sites + 1
        change = torch.zeros(len(rows), drop + 1, dtype=torch.int16, device=n.device)
        one = torch.ones_like(gram, dtype=torch.int16)
        change.scatter_add_(-1, torch.where(fits, begin, drop), one)
        change.scatter_add_(-1, torch.where(fits, begin + gram, drop), -one)
        taken = change[:, : rows.num_sites].cumsum(-1, dtype=torch.int16) > 0
        inside = torch.arange(rows.num_sites, device=n.device) < n[:, None]
        taken |= choose((goal - count_sites(taken)).clamp_min(0), inside & ~taken, generator=rows.generator)
        return rows.rest(rows.spread(taken))
