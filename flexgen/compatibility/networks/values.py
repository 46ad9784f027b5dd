"""Which values of a site a diagnostic looks at: all categories where they are few, otherwise the data's and others.

The value that the data row holds always comes first. Further ones are all other categories, draws from the model's own
answer, or values of other data rows.

Sums over all values are estimated from those drawn as Horvitz & Thompson (1952) do: each is divided by how often it is
drawn. Categories are drawn without replacement, as the m largest of log p + Gumbel noise. Given the (m + 1)-th largest,
k, category c is among them with chance 1 - exp(-p(c) e^-k), and dividing by that leaves no bias (Duffield, Lund and
Thorup 2007). Where all are drawn the chance is 1, and the sum is the enumeration itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.networks.arguments import checked_rows
from flexgen.compatibility.networks.sites import Requests, SiteAnswers, SiteDistributions, on_grid
from flexgen.errors import FlexgenError, UnsupportedQueryError

__all__ = ["SiteValues", "Values", "values_from_pool"]


@dataclass(frozen=True)
class Values:
    """How values are chosen.

    Args:
        source: of the values beyond the data's own, at sites that are not enumerated: ``"model"``, drawn from
            p(x_i | x_C) itself (without replacement among categories), so that they are plausible in their context; or
            ``"data"``, what other rows hold, each row as likely.
        num_others: how many of these.
        max_categories: a site of at most so many categories is enumerated: all its values are looked at.
    """

    source: Literal["model", "data"] = "model"
    num_others: int = 2
    max_categories: int = 8

    def __post_init__(self) -> None:
        if self.source not in ("model", "data"):
            raise FlexgenError("source", f"is {self.source!r}", "Choose 'model' or 'data'.")
        whole_number("num_others", self.num_others, 1)
        whole_number("max_categories", self.max_categories, 1)

    @classmethod
    def or_default(cls, values: Values | None, answers: SiteAnswers, pool: Tensor | None = None) -> Values:
        """`values`, or the default: draws from the model where it has marginals, otherwise values of data rows."""
        if values is not None and not isinstance(values, Values):
            raise FlexgenError("values", f"is {kind_of(values)}", "Pass flexgen.compatibility.Values(...), or None.")
        if pool is not None:
            checked_rows("pool", pool, answers.conditional.space.num_sites)
        return values or cls("model" if answers.has_marginals else "data")

    def widths(self, num_categories: Sequence[int]) -> Tensor:
        """How many values of each site are looked at, the data's included, ``[N]``.

        Args:
            num_categories: K of every site, 0 where it is not categorical.
        """
        counts = torch.tensor(num_categories, dtype=torch.int64)
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
        if self.source == "model" and not answers.has_marginals and not self._enumerates(answers.num_categories):
            raise UnsupportedQueryError(
                "source", "is 'model', but the conditional answers log_prob alone", "Take values from the data."
            )
        widths = self.widths(answers.num_categories).to(own.device)
        width = int(widths[requests.sites].max()) if len(requests) else 1
        num = min(self.num_others, width - 1)  # where it is less, a drawn site has no more categories
        categories = torch.tensor(answers.num_categories, device=own.device)[requests.sites]  # [M]
        enumerated = (categories > 0) & (categories <= self.max_categories)
        steps = torch.arange(width, device=own.device)
        # All categories, the data's own first: own, own + 1, .., K - 1, 0, .., own - 1
        values = (own[:, None].double() + steps) % categories.clamp_min(1)[:, None]
        values = torch.where(enumerated[:, None], values, own[:, None].double())  # [M, width]
        draws = (~enumerated)[:, None] & (steps >= 1) & (steps <= num)  # places that hold draws
        density = torch.zeros_like(values)  # log of a draw's chance or density
        if self.source == "data":
            u = _uniform(len(requests), num, requests.sites.device, seed)
            present = answers.present_in(pool)
            others = values_from_pool(pool, present, requests.sites, u)
            values[:, 1 : num + 1] = torch.where(enumerated[:, None], values[:, 1 : num + 1], others)
            density = _log_shares(pool, present, requests.sites, values)
            log_probs = answers.log_prob(requests, values)
        elif answers.has_marginals:

            def reader(found: SiteDistributions) -> Tensor:
                some, drawn = values[found.requests], draws[found.requests]
                chances = torch.zeros_like(some)
                if bool(drawn.any()):
                    others, log_chances = _from_model(found, own[found.requests], num, seed)
                    some = torch.where(drawn, _padded(others, width), some)
                    chances = torch.where(drawn, _padded(log_chances, width), 0.0)
                return torch.stack([some, found.log_prob(some), chances], dim=1)  # [b, 3, width]

            values, log_probs, density = answers.read(requests, reader).view(len(requests), 3, width).unbind(1)
        else:
            log_probs = answers.log_prob(requests, values)
        valid = (steps < widths[requests.sites][:, None]) & values.isfinite() & (log_probs > -torch.inf)
        for later in range(1, width):  # a draw may repeat what is there
            valid[:, later] &= (values[:, :later] != values[:, later, None]).all(-1)
        real = torch.tensor([s.kind == "real" for s in answers.conditional.space.sites], device=own.device)
        log_density = self._log_density(values, log_probs, density, draws, real[requests.sites], categories)
        return SiteValues(values, valid, log_probs, torch.where(enumerated[:, None], 0.0, log_density))

    def _log_density(
        self, values: Tensor, log_probs: Tensor, density: Tensor, draws: Tensor, real: Tensor, categories: Tensor
    ) -> Tensor:
        """What a value of a drawn site counts for, `SiteValues.log_density`, ``[M, m]``.

        Draws with replacement estimate a sum by sum f(x_t) / (n p(x_t)): a value drawn c times counts c / (n p). A
        discrete site's own value is there for certain; a real one's, of probability zero, is taken as one more draw.
        """
        if self.source == "model":
            density = torch.where((categories == 0)[:, None], log_probs, density)
        times = ((values[:, :, None] == values[:, None, :]) & draws[:, None, :]).sum(-1)  # each value's among the draws
        replaced = density + (draws.sum(-1, keepdim=True).double() / times.clamp_min(1)).log()
        once = (self.source == "model") & (categories > 0)[:, None]  # without replacement: chances as they are
        discrete = torch.where(draws, torch.where(once, density, replaced), 0.0)
        continuous = density - (times + (values == values[:, :1])).clamp_min(1).double().log()
        return torch.where(real[:, None], continuous, discrete).nan_to_num(0.0, 0.0, 0.0)

    def _enumerates(self, num_categories: Sequence[int]) -> bool:
        return all(0 < k <= self.max_categories for k in num_categories)


@dataclass(frozen=True)
class SiteValues:
    """Values of a site a request, the data's own first.

    Args:
        values: float64 ``[M, m]``.
        valid: bool ``[M, m]``: distinct, possible, and within the site's number of values.
        log_probs: float64 ``[M, m]``, of the values where they were chosen.
        log_density: float64 ``[M, m]``: the sum of f / exp(log_density) over the valid values estimates that of f over
            all values of a discrete site, without bias; of a real one up to a constant. Zero where all are looked at.
            With values from the data "all" are those that the pool holds, and the data's own.
    """

    values: Tensor
    valid: Tensor
    log_probs: Tensor
    log_density: Tensor

    def view(self, *shape: int) -> SiteValues:
        """With the requests in a grid of this shape."""
        return SiteValues(*(part.view(*shape, part.shape[-1]) for part in self._parts))

    def on_grid(self, row: Tensor, slot: Tensor, shape: tuple[int, int]) -> SiteValues:
        """With the requests at (row, slot) of a grid ``[R, S, m]``, invalid elsewhere."""
        return SiteValues(*(on_grid(part, row, slot, shape) for part in self._parts))

    def __getitem__(self, index: Any) -> SiteValues:
        return SiteValues(*(part[index] for part in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.values, self.valid, self.log_probs, self.log_density


def values_from_pool(pool: Tensor, present: Tensor, sites: Tensor, u: Tensor) -> Tensor:
    """Values that random rows of a pool hold at some sites, ``[M, n]``; NaN where no row has the site.

    Args:
        pool: ``[R, N]``.
        present: bool ``[R, N]``, the entries that may be taken, each as likely.
        sites: int64 ``[M]``.
        u: ``[M, n]``, uniform on [0, 1).
    """
    order = torch.argsort((~present).to(torch.int8), dim=0, stable=True)  # [R, N], rows that have the site first
    count = present.sum(0)[sites][:, None]  # [M, 1]
    taken = pool[order[(u * count).long(), sites[:, None]], sites[:, None]]
    return taken if bool((count > 0).all()) else torch.where(count > 0, taken.double(), torch.nan)


def _uniform(num_requests: int, num: int, device: torch.device, seed: int) -> Tensor:
    streams = rng.Streams(seed, torch.arange(num_requests, device=device))
    return rng.uniform((num_requests, num), generator=streams, dtype=torch.float64)


def _padded(draws: Tensor, width: int) -> Tensor:
    """Draws ``[b, n]`` behind a place for the data's own value, ``[b, width]``."""
    return torch.nn.functional.pad(draws, (1, width - 1 - draws.shape[1]), value=torch.nan)


def _from_model(found: SiteDistributions, own: Tensor, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws, ``[b, num]``, of categories without replacement and without the data's own; and log of their chances."""
    log_probs = found.log_probs
    if log_probs is None:
        draws = found.draws(num, seed=seed)
        return draws, torch.zeros_like(draws)
    noise = rng.gumbel(log_probs.shape, generator=rng.Streams(seed, found.requests), dtype=torch.float64)
    keys = (log_probs.double() + noise).scatter(1, own.nan_to_num(0.0).long()[:, None], -torch.inf)
    best, codes = keys.topk(num + 1, dim=-1)
    drawn, bar = best[:, :num] > -torch.inf, best[:, num:]
    log_chances = (-(-(log_probs.double().gather(1, codes[:, :num]) - bar).exp()).expm1()).log()
    return torch.where(drawn, codes[:, :num].double(), torch.nan), torch.where(drawn, log_chances, 0.0)


def _log_shares(pool: Tensor, present: Tensor, sites: Tensor, values: Tensor) -> Tensor:
    """log of the share of a pool's entries at each request's site that hold the value, float64 ``[M, m]``."""
    shares = torch.ones_like(values)
    for site in torch.unique(sites).tolist():
        column = pool[present[:, site], site].double().sort().values
        looked_up = values[sites == site].contiguous()
        ends = [torch.searchsorted(column, looked_up, right=right) for right in (False, True)]
        # The data's own value counts as there, whatever the pool.
        shares[sites == site] = (ends[1] - ends[0]).clamp_min(1).double() / max(len(column), 1)
    return shares.log()
