"""Which values of a site a diagnostic looks at: all categories where they are few, otherwise the data's and others.

The value that the data row holds always comes first. Further ones are all other categories, draws from the model's own
answer, or values of other data rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen import rng
from flexgen.compatibility.sites import Requests, SiteAnswers, SiteLaws, present_in
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.space import Space

__all__ = ["SiteValues", "Values"]


@dataclass(frozen=True)
class Values:
    """How values are chosen.

    Args:
        source: of the values beyond the data's own, at sites that are not enumerated: ``"model"``, drawn from
            p(x_i | x_C) itself (without replacement among categories), so that they are plausible in their context; or
            ``"data"``, what other rows hold.
        num_others: how many of these.
        max_categories: a site of at most so many categories is enumerated: all its values are looked at.
    """

    source: Literal["model", "data"] = "model"
    num_others: int = 2
    max_categories: int = 8

    def __post_init__(self) -> None:
        if self.source not in ("model", "data"):
            raise FlexgenError("source", f"is {self.source!r}", "Choose 'model' or 'data'.")
        if self.num_others < 1 or self.max_categories < 1:
            raise FlexgenError(
                "num_others", f"is {self.num_others}, max_categories {self.max_categories}", "Pass at least 1 of each."
            )

    def widths(self, space: Space) -> Tensor:
        """How many values of each site are looked at, the data's included, ``[N]``."""
        counts = torch.tensor(space.num_categories, dtype=torch.int64)
        enumerated = (counts > 0) & (counts <= self.max_categories)
        drawn = torch.where(counts > 0, counts.clamp_max(1 + self.num_others), 1 + self.num_others)
        return torch.where(enumerated, counts, drawn)

    def choose(self, answers: SiteAnswers, requests: Requests, own: Tensor, pool: Tensor, *, seed: int) -> SiteValues:
        """Values for every request, and their log-probabilities there; no row is evaluated twice.

        Args:
            answers: of the conditional.
            requests: p(x_site | x_C), M of them.
            own: ``[M]``, the value that the data hold at the site.
            pool: ``[R, N]``, data rows, NaN where missing.
            seed: of the draws, which depend on a request's number, not on its batch.
        """
        space = answers.conditional.space
        if self.source == "model" and not answers.has_marginals and not self._enumerates(space):
            raise UnsupportedQueryError(
                "source", "is 'model', but the conditional answers log_prob alone", "Take values from the data."
            )
        widths = self.widths(space).to(own.device)
        width = int(widths[requests.sites].max()) if len(requests) else 1
        categories = torch.tensor(space.num_categories, device=own.device)[requests.sites]  # [M]
        enumerated = (categories > 0) & (categories <= self.max_categories)
        steps = torch.arange(width, device=own.device)
        # All categories, the data's own first: own, own + 1, .., K - 1, 0, .., own - 1
        values = (own[:, None].double() + steps) % categories.clamp_min(1)[:, None]
        values = torch.where(enumerated[:, None], values, own[:, None].double())  # [M, width]
        if self.source == "data":
            others = _from_pool(pool, requests.sites, width - 1, seed)
            values[:, 1:] = torch.where(enumerated[:, None], values[:, 1:], others)
            log_probs = answers.log_prob(requests, values)
        elif answers.has_marginals:

            def reader(laws: SiteLaws) -> Tensor:
                some = values[laws.requests]
                if width > 1 and not bool(enumerated[laws.requests].all()):
                    others = _from_model(laws, own[laws.requests], width - 1, seed)
                    some[:, 1:] = torch.where(enumerated[laws.requests][:, None], some[:, 1:], others)
                return torch.stack([some, laws.log_prob(some)], dim=1)  # [b, 2, width]

            values, log_probs = answers.read(requests, reader).view(len(requests), 2, width).unbind(1)
        else:
            log_probs = answers.log_prob(requests, values)
        valid = (steps < widths[requests.sites][:, None]) & values.isfinite() & (log_probs > -torch.inf)
        for later in range(1, width):  # a draw may repeat what is there
            valid[:, later] &= (values[:, :later] != values[:, later, None]).all(-1)
        drawn = ~enumerated & (self.source == "model")
        return SiteValues(values, valid, log_probs, torch.where(drawn[:, None], log_probs, 0.0))

    def _enumerates(self, space: Space) -> bool:
        return all(0 < k <= self.max_categories for k in space.num_categories)


@dataclass(frozen=True)
class SiteValues:
    """Values of a site a request, the data's own first.

    Args:
        values: float64 ``[M, m]``.
        valid: bool ``[M, m]``: distinct, possible, and within the site's number of values.
        log_probs: float64 ``[M, m]``, of the values where they were chosen.
        log_density: float64 ``[M, m]``: log of how often a value like this is chosen, up to a constant a request.
    """

    values: Tensor
    valid: Tensor
    log_probs: Tensor
    log_density: Tensor

    def view(self, *shape: int) -> SiteValues:
        """With the requests in a grid of this shape."""
        parts = (self.values, self.valid, self.log_probs, self.log_density)
        return SiteValues(*(part.view(*shape, part.shape[-1]) for part in parts))

    def __getitem__(self, index: Any) -> SiteValues:
        parts = (self.values, self.valid, self.log_probs, self.log_density)
        return SiteValues(*(part[index] for part in parts))


def _from_model(laws: SiteLaws, own: Tensor, num: int, seed: int) -> Tensor:
    """Draws other than the data's own value where the site is categorical; draws otherwise. ``[b, num]``"""
    log_probs = laws.log_probs
    if log_probs is None:
        return laws.draws(num, seed=seed)
    streams = rng.Streams(seed, laws.requests)
    left = log_probs.scatter(1, own.nan_to_num(0.0).long()[:, None], -torch.inf)
    draws = []
    for _ in range(num):  # without replacement
        any_left = left.amax(-1, keepdim=True) > -torch.inf
        drawn = rng.categorical(left.where(any_left, 0.0), generator=streams)[:, None]
        draws.append(torch.where(any_left, drawn.double(), torch.nan))
        left = left.scatter(1, drawn, -torch.inf)
    return torch.cat(draws, dim=1)


def _from_pool(pool: Tensor, sites: Tensor, num: int, seed: int) -> Tensor:
    """Values that random rows of the pool hold at the sites, present ones, ``[M, num]``."""
    present = present_in(pool)
    order = torch.argsort((~present).to(torch.int8), dim=0, stable=True)  # [R, N], rows that have the site first
    count = present.sum(0)[sites]  # [M]
    streams = rng.Streams(seed, torch.arange(len(sites), device=sites.device))
    u = rng.uniform((len(sites), num), generator=streams, dtype=torch.float64)
    row = order[(u * count[:, None]).long(), sites[:, None]]  # [M, num]
    return torch.where(count[:, None] > 0, pool[row, sites[:, None]].double(), torch.nan)
