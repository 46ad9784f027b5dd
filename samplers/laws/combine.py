"""Combinators: laws made of laws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flexgen.checks import entries, freeze, one_of, probabilities
from flexgen.errors import FlexgenError
from samplers.laws.base import Law, Rows, Sets, Side, Support, as_law

__all__ = ["Mixture", "NonEmpty", "Swap", "Within"]


@dataclass(frozen=True)
class Mixture(Law):
    """Each row follows one of several laws, chosen on its own.

    Args:
        laws: the laws.
        probabilities: theirs; equal by default.
    """

    laws: Sequence[Law]
    probabilities: Sequence[float] | None = None

    def __post_init__(self) -> None:
        laws = tuple(as_law("laws", law) for law in entries("laws", self.laws, "Pass a list of laws."))
        if not laws:
            raise FlexgenError("laws", "is empty", "Mix at least one law.")
        weights = [1.0 / len(laws)] * len(laws) if self.probabilities is None else self.probabilities
        freeze(self, laws=laws, probabilities=probabilities("probabilities", weights, len(laws)))

    def _parts(self) -> list[tuple[Law, float]]:
        assert self.probabilities is not None
        return list(zip(self.laws, self.probabilities, strict=True))

    def draw_sets(self, rows: Rows) -> Sets:
        edges = torch.tensor([p for _, p in self._parts()], dtype=torch.float64).cumsum(0)[:-1].to(rows.present.device)
        which = torch.searchsorted(edges, rows.uniform(), right=True)  # [B]
        target, observed = torch.zeros_like(rows.present), torch.zeros_like(rows.present)
        weight = rows.ones()
        for i, law in enumerate(self.laws):
            mine = (which == i).nonzero().flatten()
            # A child's randomness for each law: a row's draw does not depend on what other rows chose.
            part = law.draw_sets(rows.fork(i)[mine])
            target[mine], observed[mine], weight[mine] = part.target, part.observed, part.weight.to(weight.dtype)
        return Sets(target, observed, weight)

    def support(self, num_sites: int) -> Support:
        supports = [(law.support(num_sites), p) for law, p in self._parts() if p]
        return Support.merged([(s.sets, p * s.probability) for s, p in supports])

    def inclusion(self, num_sites: int, side: Side = "target") -> Tensor:
        return torch.stack([p * law.inclusion(num_sites, side) for law, p in self._parts() if p]).sum(0)

    def cardinality_pmf(self, num_sites: int, side: Side = "target") -> Tensor:
        return torch.stack([p * law.cardinality_pmf(num_sites, side) for law, p in self._parts() if p]).sum(0)


@dataclass(frozen=True)
class Swap(Law):
    """The law with the roles of target and observed exchanged: ``Swap(Bernoulli(.3))`` observes at rate 0.3.

    Weights are those of the law.
    """

    law: Law

    def __post_init__(self) -> None:
        as_law("law", self.law)

    def draw_sets(self, rows: Rows) -> Sets:
        target, observed, weight = self.law.draw_sets(rows)
        return Sets(observed, target, weight)

    def support(self, num_sites: int) -> Support:
        inner = self.law.support(num_sites)
        sets = Sets(inner.query.observed, inner.query.target, inner.weight)
        return Support.merged([(sets, inner.probability)])

    def inclusion(self, num_sites: int, side: Side = "target") -> Tensor:
        return self.law.inclusion(num_sites, "observed" if side == "target" else "target")

    def cardinality_pmf(self, num_sites: int, side: Side = "target") -> Tensor:
        return self.law.cardinality_pmf(num_sites, "observed" if side == "target" else "target")


@dataclass(frozen=True)
class NonEmpty(Law):
    """The law, except that a row whose target came out empty asks for all that is present, given nothing.

    The target is then empty only in rows that hold nothing. Such a row has weight 1.
    """

    law: Law

    def __post_init__(self) -> None:
        as_law("law", self.law)

    def draw_sets(self, rows: Rows) -> Sets:
        return self._filled(self.law.draw_sets(rows), rows.present)

    def support(self, num_sites: int) -> Support:
        inner = self.law.support(num_sites)
        everything = torch.ones(len(inner), num_sites, dtype=torch.bool)
        return Support.merged([(self._filled(inner.sets, everything), inner.probability)])

    def cardinality_pmf(self, num_sites: int, side: Side = "target") -> Tensor:
        if one_of("side", side, ("target", "observed")) == "observed":
            return super().cardinality_pmf(num_sites, side)
        pmf = self.law.cardinality_pmf(num_sites).clone()
        pmf[-1] += pmf[0] if num_sites else 0.0
        pmf[: 1 if num_sites else 0] = 0.0
        return pmf

    def inclusion(self, num_sites: int, side: Side = "target") -> Tensor:
        if side == "observed":
            return super().inclusion(num_sites, side)
        return self.law.inclusion(num_sites) + self.law.cardinality_pmf(num_sites)[0]

    @staticmethod
    def _filled(sets: Sets, present: Tensor) -> Sets:
        empty = ~sets.target.any(-1)
        target = sets.target | (present & empty[:, None])
        return Sets(
            target, sets.observed & ~empty[:, None], torch.where(empty, torch.ones_like(sets.weight), sets.weight)
        )


@dataclass(frozen=True)
class Within(Law):
    """The law over the sites that another law picks: `subset`'s target is all that exists, the rest is marginalised.

    The weight is the product of the two.
    """

    law: Law
    subset: Law

    def __post_init__(self) -> None:
        as_law("law", self.law)
        as_law("subset", self.subset)

    def draw_sets(self, rows: Rows) -> Sets:
        outer = self.subset.draw_sets(rows)
        target, observed, weight = self.law.draw_sets(replace(rows, present=outer.target))
        return Sets(target, observed, weight * outer.weight)

    def support(self, num_sites: int) -> Support:
        """For laws that see present sites in order alone, as those of `sets` and `spans` do."""
        outer = self.subset.support(num_sites)
        parts = []
        for i, inside in enumerate(outer.query.target):
            inner = self.law.support(int(inside.sum()))
            target, observed = (torch.zeros(len(inner), num_sites, dtype=torch.bool) for _ in range(2))
            target[:, inside], observed[:, inside] = inner.query.target, inner.query.observed
            parts.append(
                (Sets(target, observed, inner.weight * outer.weight[i]), inner.probability * outer.probability[i])
            )
        return Support.merged(parts)
