"""Laws over parts of the sites: groups that share one fate, and parts with a law of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import entries, freeze, kind_of, site_numbers
from flexgen.errors import FlexgenError
from samplers.laws.base import Law, Rows, Sets, Side, Support, as_law
from samplers.laws.groups import Groups

__all__ = ["Product", "Tied"]


@dataclass(frozen=True)
class Tied(Law):
    """The law over groups of sites: a group's sites share its fate (whole words, tubes, patches, frames).

    A group counts as present when any of its sites is; its missing sites are in neither set. Weights are those of
    the law over groups.

    Args:
        law: over groups, in the order of their labels. Laws that depend on values cannot be tied.
        groups: a partition; None takes the argument `groups` of each draw (words differ from row to row).
    """

    law: Law
    groups: Groups | None = None

    def __post_init__(self) -> None:
        as_law("law", self.law)
        if self.groups is not None and not isinstance(self.groups, Groups):
            raise FlexgenError(
                "groups", f"is {kind_of(self.groups)}", "Pass Labels or Patches, or None to give groups at draw."
            )

    def draw_sets(self, rows: Rows) -> Sets:
        labels, num_groups = self._labels(rows)
        held = rows.present & (labels >= 0)
        place = torch.where(held, labels, num_groups)  # the last place drops what belongs to no group
        flags = torch.zeros(len(rows), num_groups + 1, dtype=torch.bool, device=rows.present.device)
        group_present = flags.scatter_(-1, place, True)[:, :num_groups]
        target, observed, weight = self.law.draw_sets(Rows(group_present, rows.generator))
        free = rows.present & (labels < 0)  # sites of no group are always observed
        return Sets(_expand(target, place), _expand(observed, place) | free, weight)

    def _labels(self, rows: Rows) -> tuple[Tensor, int]:
        if self.groups is not None:
            self._check(rows.num_sites)
            return self.groups.labels().to(rows.present.device).expand(rows.present.shape), self.groups.num_groups
        if rows.groups is None:
            raise FlexgenError(
                "groups", "is None, but the law ties groups", "Call law.draw(present, groups=words, ...)."
            )
        if rows.groups.numel() and not -1 <= int(rows.groups.min()) <= int(rows.groups.max()) < rows.num_sites:
            raise FlexgenError(
                "groups",
                f"holds numbers from {int(rows.groups.min())} to {int(rows.groups.max())}",
                "Number the groups of each row from 0 (at most one a site), and -1 for sites never asked for.",
            )
        return rows.groups.long(), rows.num_sites

    def _check(self, num_sites: int) -> None:
        assert self.groups is not None
        if self.groups.num_sites != num_sites:
            raise FlexgenError(
                "groups",
                f"covers {self.groups.num_sites} sites, but the data have {num_sites}",
                "Cover every site once.",
            )

    def _static(self, num_sites: int) -> Groups:
        if self.groups is None:
            raise FlexgenError("groups", "is None, so the law depends on the draw", "Give the law its groups.")
        self._check(num_sites)
        return self.groups

    def support(self, num_sites: int) -> Support:
        groups = self._static(num_sites)
        inner, labels = self.law.support(groups.num_groups), groups.labels()
        sets = Sets(inner.query.target[:, labels], inner.query.observed[:, labels], inner.weight)
        return Support.merged([(sets, inner.probability)])

    def inclusion(self, num_sites: int, side: Side = "target") -> Tensor:
        groups = self._static(num_sites)
        return self.law.inclusion(groups.num_groups, side)[groups.labels()]

    def cardinality_pmf(self, num_sites: int, side: Side = "target") -> Tensor:
        groups = self._static(num_sites)
        size, extra = divmod(num_sites, groups.num_groups)
        if extra or bool((groups.labels().bincount() != size).any()):
            return super().cardinality_pmf(num_sites, side)
        pmf = torch.zeros(num_sites + 1, dtype=torch.float64)
        pmf[::size] = self.law.cardinality_pmf(groups.num_groups, side)
        return pmf


@dataclass(frozen=True)
class Product(Law):
    """Independent laws over disjoint parts of the sites, such as modalities; parts together cover every site.

    The weight is the product; give the parts plain weights unless that is what the loss should have.

    Args:
        parts: pairs (site numbers, law over those sites in that order).
    """

    parts: Sequence[tuple[Sequence[int], Law]]

    def __post_init__(self) -> None:
        parts = tuple((site_numbers("parts", sites), as_law("parts", law)) for sites, law in _pairs(self.parts))
        covered = sorted(site for sites, _ in parts for site in sites)
        if not covered or covered != list(range(len(covered))):
            raise FlexgenError("parts", f"cover sites {covered}", "Put every site, 0 to N-1, in exactly one part.")
        freeze(self, parts=parts)

    def _check(self, num_sites: int) -> None:
        covered = sum(len(sites) for sites, _ in self.parts)
        if covered != num_sites:
            raise FlexgenError(
                "parts", f"cover {covered} sites, but the data have {num_sites}", "Cover every site once."
            )

    def draw_sets(self, rows: Rows) -> Sets:
        self._check(rows.num_sites)
        target, observed = torch.zeros_like(rows.present), torch.zeros_like(rows.present)
        weight = rows.ones()
        for sites, law in self.parts:
            at = torch.tensor(sites, device=target.device)
            x = None if rows.x is None else rows.x[:, at]
            groups = None if rows.groups is None else rows.groups[:, at]
            part = law.draw_sets(Rows(rows.present[:, at], rows.generator, x, groups))
            target[:, at], observed[:, at], weight = part.target, part.observed, weight * part.weight
        return Sets(target, observed, weight)

    def support(self, num_sites: int) -> Support:
        self._check(num_sites)
        nothing = torch.zeros(1, num_sites, dtype=torch.bool)
        sets, probability = Sets(nothing, nothing, torch.ones(1)), torch.ones(1, dtype=torch.float64)
        for sites, law in self.parts:
            part, at = law.support(len(sites)), torch.tensor(sites)
            pair = torch.arange(len(probability) * len(part))  # every query so far beside every query of this part
            old, new = pair // len(part), pair % len(part)
            target, observed = sets.target[old], sets.observed[old]
            target[:, at], observed[:, at] = part.query.target[new], part.query.observed[new]
            sets = Sets(target, observed, sets.weight[old] * part.weight[new])
            probability = probability[old] * part.probability[new]
        return Support.merged([(sets, probability)])


def _expand(of_group: Tensor, place: Tensor) -> Tensor:
    """A set of groups as a set of sites; the place after the last group is in no set."""
    return torch.cat([of_group, torch.zeros_like(of_group[:, :1])], -1).gather(-1, place)


def _pairs(parts: Any) -> list[tuple[Any, Any]]:
    fix = "Pass pairs (site numbers, law)."
    pairs = [entries("parts", part, fix, most=2) for part in entries("parts", parts, fix)]
    for pair in pairs:
        if len(pair) != 2:
            raise FlexgenError("parts", f"hold {kind_of(pair)}", fix)
    return [(sites, law) for sites, law in pairs]
