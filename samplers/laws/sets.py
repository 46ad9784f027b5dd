"""Primitives over sites that are alike, or stand in an order: the bricks of most laws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import freeze, instance, one_of, site_numbers, whole_number
from flexgen.errors import FlexgenError
from samplers.laws.base import Exchangeable, Law, Rows, Sets, Support, Weight, subsets
from samplers.laws.rates import LEAST_RATE, Rate, as_rate
from samplers.laws.select import choose, count_sites, exclude, smallest
from samplers.laws.sizes import Size, as_size

__all__ = ["Bernoulli", "FixedCount", "Given", "Prefix", "Strided"]

_WEIGHTS = ("one", "mean", "likelihood")


@dataclass(frozen=True)
class Bernoulli(Exchangeable):
    """Each present site is a target on its own with probability `rate`; a random rate is drawn once a row.

    Args:
        rate: a number, or a distribution on [0, 1].
        weight: "one"; "mean" (1/|P|, the average over targets); or "likelihood" (1/rate): with ``Uniform()`` the
            expected loss is then -log p(x) averaged over all orders, in nats a row (MDLM, Sahoo et al. 2024).

    The target may be empty.
    """

    rate: float | Rate
    weight: Weight = "one"

    def __post_init__(self) -> None:
        as_rate("rate", self.rate)
        one_of("weight", self.weight, _WEIGHTS)
        if self.weight == "likelihood" and not isinstance(self.rate, Rate) and self.rate < LEAST_RATE:
            problem = f"is 'likelihood' at rate {self.rate}"
            raise FlexgenError("weight", problem, "Pass a positive rate: the weight is 1/rate.")

    def draw_sets(self, rows: Rows) -> Sets:
        rate = as_rate("rate", self.rate).draw(len(rows), generator=rows.generator)
        u = rng.uniform(rows.present.shape, generator=rows.generator)
        target = (u < rate.float()[:, None]) & rows.present
        if self.weight == "likelihood":
            return rows.rest(target, (1.0 / rate.clamp_min(LEAST_RATE)).float())
        return rows.rest(target, _plain_weight(self.weight, target))

    def _sizes(self, num_sites: int) -> tuple[Tensor, Tensor]:
        rate = as_rate("rate", self.rate)
        k = torch.arange(num_sites + 1, dtype=torch.float64)
        n = torch.tensor(float(num_sites), dtype=torch.float64)
        log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)

        def binomial(t: Tensor) -> Tensor:  # [M] -> [M, N+1]
            return (log_choose + torch.xlogy(k, t[:, None]) + torch.xlogy(n - k, 1 - t[:, None])).exp()

        pmf = rate.expect(binomial, num_sites)
        if self.weight == "likelihood":
            # The empty target's weight has no finite mean under Uniform(); it multiplies an empty sum, so 0 will do.
            weighted = rate.expect(lambda t: binomial(t)[:, 1:] / t[:, None].clamp_min(LEAST_RATE), num_sites)
            weight = torch.cat([torch.zeros(1, dtype=torch.float64), weighted / pmf[1:].clamp_min(1e-300)])
        else:
            weight = _size_weight(self.weight, num_sites)
        return pmf, weight


@dataclass(frozen=True)
class FixedCount(Exchangeable):
    """A uniform subset of a given size is the target: a count, a share of the row, or a law of sizes.

    Args:
        size: an int (a count), a float or `Rate` (a share, rounded; see `Share`), or a `Size`. Counts and shares are
            of the sites *present* in the row; a count beyond them takes them all.
        weight: "one"; "mean" (1/|P|, the average over targets); or "likelihood", for sizes that visit all of 1..n:
            1 / (|P| P(|P|)), with which the expected loss is -log p(x) averaged over all orders, in nats a row
            (n/|P| for uniform sizes: ARDM, Hoogeboom et al. 2022).
    """

    size: int | float | Rate | Size
    weight: Weight = "one"

    def __post_init__(self) -> None:
        size = as_size("size", self.size)
        if one_of("weight", self.weight, _WEIGHTS) == "likelihood":
            size.probability(torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))

    def draw_sets(self, rows: Rows) -> Sets:
        size, n = as_size("size", self.size), rows.num_present
        count = size.draw(n, generator=rows.generator)
        target = choose(count, rows.present, generator=rows.generator)
        if self.weight == "likelihood":
            return rows.rest(target, (1.0 / (size.probability(count, n) * count.clamp_min(1))).float())
        return rows.rest(target, _plain_weight(self.weight, target))

    def _sizes(self, num_sites: int) -> tuple[Tensor, Tensor]:
        pmf = as_size("size", self.size).pmf(num_sites)
        if self.weight != "likelihood":
            return pmf, _size_weight(self.weight, num_sites)
        return pmf, 1.0 / (pmf.clamp_min(1e-300) * torch.arange(num_sites + 1).clamp_min(1))


@dataclass(frozen=True)
class Prefix(Law):
    """Present sites are visited in an order; the first `length` are observed, the next `ahead` are the target.

    Args:
        length: how many are observed (an int, a share, a `Rate` or a `Size`).
        ahead: how many of the next are asked for; None asks for all the rest.
        order: "sites" (by site number), "random" (a fresh uniform order for every row), or a permutation.
        weight: "one", "mean" (1/|P|) or "likelihood" (1 / (|P| P(length)): with lengths uniform on 0..n-1 and
            ``ahead=1`` the expected loss is -log p(x) by the chain rule in that order).

    Sites beyond ``length + ahead`` are marginalised. The target is empty when `length` takes the whole row.
    """

    length: int | float | Rate | Size
    ahead: int | None = None
    order: str | Sequence[int] = "sites"
    weight: Weight = "one"

    def __post_init__(self) -> None:
        length = as_size("length", self.length)
        if self.ahead is not None:
            whole_number("ahead", self.ahead, 1)
        if isinstance(self.order, str):
            one_of("order", self.order, ("sites", "random"))
        else:
            order = site_numbers("order", self.order)
            if set(order) != set(range(len(order))):
                raise FlexgenError("order", f"is {order!r}", "Pass each site number once, 'sites' or 'random'.")
            freeze(self, order=order)
        if one_of("weight", self.weight, _WEIGHTS) == "likelihood":
            length.probability(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))

    def draw_sets(self, rows: Rows) -> Sets:
        size, n = as_size("length", self.length), rows.num_present
        length = size.draw(n, generator=rows.generator)
        end = n if self.ahead is None else torch.minimum(length + self.ahead, n)
        if self.order == "random":
            keys = exclude(rows.uniform(rows.num_sites, dtype=torch.float32), ~rows.present)
            observed, reached = smallest(keys, length, n), smallest(keys, end, n)
        else:
            place = self._places(rows.present)
            observed = (place < length[:, None]) & rows.present
            reached = (place < end[:, None]) & rows.present
        target = reached & ~observed
        if self.weight == "likelihood":
            weight = (1.0 / (size.probability(length, n) * (end - length).clamp_min(1))).float()
        else:
            weight = _plain_weight(self.weight, target)
        return Sets(target, observed, weight)

    def _places(self, present: Tensor) -> Tensor:
        """The place of each present site in the order, among those present, ``[B, N]``."""
        if isinstance(self.order, str):
            return present.cumsum(-1) - 1
        if len(self.order) != present.shape[-1]:
            raise FlexgenError(
                "order",
                f"names {len(self.order)} sites, but the data have {present.shape[-1]}",
                "Give a permutation of all sites.",
            )
        order = torch.tensor(self.order, device=present.device)
        place = torch.empty_like(present, dtype=torch.int64)
        place[:, order] = present[:, order].cumsum(-1) - 1
        return place

    def support(self, num_sites: int) -> Support:
        size, everything = as_size("length", self.length), torch.ones(1, num_sites, dtype=torch.bool)
        parts = []
        for length, probability in enumerate(size.pmf(num_sites).tolist()):
            if not probability:
                continue
            end = num_sites if self.ahead is None else min(length + self.ahead, num_sites)
            if self.order == "random":
                observed = subsets(num_sites)
                observed = observed[observed.sum(-1) == length]
                inner = subsets(num_sites)
                inner = inner[inner.sum(-1) == end - length]
                pair = torch.arange(len(observed) * len(inner))
                observed, target = observed[pair // len(inner)], inner[pair % len(inner)]
                disjoint = ~(observed & target).any(-1)
                observed, target = observed[disjoint], target[disjoint]
            else:
                place = self._places(everything)
                observed, target = place < length, (place >= length) & (place < end)
            weight = torch.ones(len(target), dtype=torch.float64)
            if self.weight != "one":
                weight /= max(end - length, 1) * (probability if self.weight == "likelihood" else 1)
            share = torch.full((len(target),), probability / len(target), dtype=torch.float64)
            parts.append((Sets(target, observed, weight), share))
        return Support.merged(parts)


@dataclass(frozen=True)
class Strided(Law):
    """Every `step`-th present site is the target, from an offset uniform on 0 .. step-1 (0 if not `random_offset`).

    Swapped, it observes evenly spaced sites and asks for those between: interpolation.
    """

    step: int
    random_offset: bool = True

    def __post_init__(self) -> None:
        whole_number("step", self.step, 1, most=1 << 53)
        instance("random_offset", self.random_offset, bool, "Pass True or False.")

    def draw_sets(self, rows: Rows) -> Sets:
        num_offsets = self.step if self.random_offset else 1
        offset = rng.integers(num_offsets, (len(rows), 1), generator=rows.generator)
        return rows.rest((rows.place % self.step == offset) & rows.present)

    def support(self, num_sites: int) -> Support:
        num_offsets = self.step if self.random_offset else 1
        offsets = torch.arange(min(num_offsets, num_sites + 1))  # the last of more than there are sites asks for none
        target = torch.arange(num_sites) % self.step == offsets[:, None]
        probability = torch.full((len(offsets),), 1.0 / num_offsets, dtype=torch.float64)
        probability[-1] += 1.0 - len(offsets) / num_offsets
        return Support.merged([(Sets(target, ~target, torch.ones(len(offsets))), probability)])


@dataclass(frozen=True)
class Given(Law):
    """The same query for every row, less what is missing from it.

    Args:
        target: the sites asked for; None for all that are not observed.
        observed: the sites conditioned on. ``Given()`` asks for the joint of everything.
    """

    target: Sequence[int] | None = None
    observed: Sequence[int] = ()

    def __post_init__(self) -> None:
        observed = site_numbers("observed", self.observed)
        target = None if self.target is None else site_numbers("target", self.target)
        if target is not None and set(target) & set(observed):
            raise FlexgenError(
                "target", f"shares sites {sorted(set(target) & set(observed))} with observed", "Remove them from one."
            )
        freeze(self, target=target, observed=observed)

    def draw_sets(self, rows: Rows) -> Sets:
        observed = self._indicator("observed", self.observed, rows.present)
        target = ~observed if self.target is None else self._indicator("target", self.target, rows.present)
        return Sets(target & rows.present, observed & rows.present, rows.ones())

    @staticmethod
    def _indicator(argument: str, sites: Sequence[int], present: Tensor) -> Tensor:
        num_sites = present.shape[-1]
        if any(site >= num_sites for site in sites):
            raise FlexgenError(argument, f"names site {max(sites)}", f"The data have sites 0 to {num_sites - 1}.")
        indicator = torch.zeros(num_sites, dtype=torch.bool, device=present.device)
        indicator[list(sites)] = True
        return indicator

    def support(self, num_sites: int) -> Support:
        rows = Rows(torch.ones(1, num_sites, dtype=torch.bool), torch.Generator())
        return Support.merged([(self.draw_sets(rows), torch.ones(1, dtype=torch.float64))])


def _plain_weight(weight: Weight, target: Tensor) -> Tensor:
    """1, or 1/|P|, ``[B]``."""
    if weight == "one":
        return torch.ones(len(target), device=target.device)
    return 1.0 / count_sites(target).clamp_min(1)


def _size_weight(weight: Weight, num_sites: int) -> Tensor:
    """The same by size, float64 ``[N + 1]``."""
    size = torch.arange(num_sites + 1, dtype=torch.float64)
    return torch.ones_like(size) if weight == "one" else 1.0 / size.clamp_min(1)
