"""One-site answers p(x_i | x_C) of a conditional, in batches, each distinct row evaluated once, the cost counted.

All diagnostics of networks are sums of one-site log-probabilities. What they cost is rows through the network: a row is
a set of observed sites with its values, and its answer holds the law of every other site, at every value. `SiteAnswers`
finds the distinct rows among all requests, evaluates each once, and reads all that is wanted off it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility.networks.effects import Cost
from flexgen.conditional import CategoricalMarginals, Conditional, HasLogProb, HasMarginals, Marginals
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query

__all__ = ["Requests", "SiteAnswers", "SiteLaws", "absent_in", "on_grid", "present_in"]

_ENTRIES_AT_ONCE = 1 << 24  # numbers in the answers of one batch: 64 MiB in float32
_LARGEST_BATCH = 4096
_HASHED_AT_ONCE = 1 << 22  # entries of requests held at once while they are compared


@dataclass(frozen=True)
class Requests:
    """Questions p(x_site | x_C), made on demand, so that a million of them need no memory.

    Args:
        sites: int64 ``[M]``, the site each asks for.
        make: numbers of requests ``[b]`` -> their x ``[b, N]`` and observed, bool ``[b, N]``.
    """

    sites: Tensor
    make: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True)
class SiteLaws:
    """The laws of one site a request, read off an evaluated batch of rows.

    Args:
        marginals: of the batch.
        x: ``[u, N]``, the batch.
        at: int64 ``[b]``, each request's row in it.
        sites: int64 ``[b]``.
        requests: int64 ``[b]``, the requests' numbers.
    """

    marginals: Marginals
    x: Tensor
    at: Tensor
    sites: Tensor
    requests: Tensor

    @property
    def log_probs(self) -> Tensor | None:
        """log p of every category, ``[b, K]``, where the answers are categorical."""
        if isinstance(self.marginals, CategoricalMarginals):
            return self.marginals.log_probs[self.at, self.sites]
        return None

    def log_prob(self, values: Tensor) -> Tensor:
        """log p(x_site = value | x_C) in nats, float64, of values ``[b, m]``."""
        if isinstance(self.marginals, CategoricalMarginals):
            log_probs = self.marginals.log_probs  # [u, N, K]
            codes = values.nan_to_num(0.0).long().clamp(0, log_probs.shape[-1] - 1)
            return log_probs[self.at[:, None], self.sites[:, None], codes].double()
        columns = []
        for column in values.unbind(-1):
            x = self.x.clone()
            x[self.at, self.sites] = column.to(x.dtype)
            columns.append(self.marginals.log_prob(x)[self.at, self.sites].double())
        return torch.stack(columns, dim=-1)  # m of [b] -> [b, m]

    def draws(self, num: int, *, seed: int) -> Tensor:
        """Independent draws, ``[b, num]``, from a stream a row, named by the first request it serves."""
        names = torch.zeros(len(self.x), dtype=torch.int64, device=self.at.device)
        names = names.scatter_reduce(0, self.at, self.requests, "amin", include_self=False)
        streams = rng.Streams(seed, names)
        draws = [self.marginals.sample(generator=streams)[self.at, self.sites] for _ in range(num)]
        return torch.stack(draws, dim=-1).double()  # num of [b] -> [b, num]


class SiteAnswers:
    """Asks a conditional for one-site laws, and keeps count.

    Args:
        conditional: has marginals or log-probabilities, over scalar sites.
        batch_size: rows a call; default: as many as keep the answers for all sites and categories near 64 MiB, at most
            4096. Results depend on it by rounding alone.

    Attributes:
        num_categories: K of every site without a code for absent sites, 0 where it is not categorical.
        cost: of all questions so far.

    A conditional whose rows differ in length says by ``absent(x)`` -> bool ``[B, N]`` which sites lie behind a row's
    end. They are observed in every question and never asked for; their code, the last category, is no value of a site.

    Marginals are used where there are any: a row then answers for every value of every site that is not observed. With
    `log_prob` alone, every value of every site is a row of its own.

    Raises:
        UnsupportedQueryError: a conditional without densities, or with sites that are no scalars.
        FlexgenError: a module in training mode.
    """

    def __init__(self, conditional: Conditional, *, batch_size: int | None = None) -> None:
        if not isinstance(conditional, HasMarginals | HasLogProb):
            raise UnsupportedQueryError(
                "conditional",
                f"{type(conditional).__name__} has no density",
                "Pass one with log_prob() or marginals(); of draws alone, scans can be compared.",
            )
        space = conditional.space
        if space.site_shape:
            raise UnsupportedQueryError(
                "conditional", f"has sites of shape {space.site_shape}", "Pass one over scalar sites."
            )
        if isinstance(conditional, nn.Module) and conditional.training:
            raise FlexgenError(
                "conditional", "is in training mode, where dropout makes answers random", "Call its eval() first."
            )
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, 1)
        self.conditional = conditional
        self.num_categories = _categories(conditional)
        self.has_marginals = isinstance(conditional, HasMarginals)
        entries = space.num_sites * max((1, *space.num_categories))
        self.batch_size = batch_size or max(1, min(_LARGEST_BATCH, _ENTRIES_AT_ONCE // max(entries, 1)))
        self.cost = Cost()

    def present_in(self, x: Tensor) -> Tensor:
        """Which entries of data rows can be asked for, bool ``[R, N]``: neither missing nor absent."""
        return present_in(x) & ~absent_in(self.conditional, x)

    @torch.no_grad()
    def read(self, requests: Requests, reader: Callable[[SiteLaws], Tensor]) -> Tensor:
        """What `reader` (a batch of laws -> float64 ``[b, ..]``) makes of every request, ``[M, ..]``."""
        out: Tensor | None = None
        for numbers, at, x, query in self._batches(requests):
            assert isinstance(self.conditional, HasMarginals)
            marginals = self.conditional.marginals(x, query)
            asked = requests.sites[numbers]
            one_pass = isinstance(marginals, CategoricalMarginals)
            layers = [torch.arange(len(at), device=at.device)] if one_pass else _layers(at * x.shape[1] + asked)
            for some in layers:
                laws = SiteLaws(marginals, x, at[some], asked[some], numbers[some])
                answer = reader(laws)
                if out is None:
                    out = answer.new_empty(len(requests), *answer.shape[1:])
                out[numbers[some]] = answer
        return torch.zeros(0, dtype=torch.float64) if out is None else out

    @torch.no_grad()
    def log_prob(self, requests: Requests, values: Tensor) -> Tensor:
        """log p(x_site = value | x_C) in nats, float64 ``[M, m]``, of values ``[M, m]``."""
        if len(requests) == 0:
            return torch.zeros(values.shape, dtype=torch.float64, device=values.device)
        if self.has_marginals:
            return self.read(requests, lambda laws: laws.log_prob(values[laws.requests]))
        width = values.shape[1]

        def make(numbers: Tensor) -> tuple[Tensor, Tensor]:
            x, observed = requests.make(numbers // width)
            x = x.clone()
            x[torch.arange(len(x), device=x.device), requests.sites[numbers // width]] = values.flatten()[numbers].to(
                x.dtype
            )
            return x, observed

        each = Requests(requests.sites.repeat_interleave(width), make)
        out = torch.empty(len(each), dtype=torch.float64, device=values.device)
        for numbers, at, x, query in self._batches(each):
            assert isinstance(self.conditional, HasLogProb)
            out[numbers] = self.conditional.log_prob(x, query)[at].double()
        return out.view(values.shape)

    def _batches(self, requests: Requests) -> Iterator[tuple[Tensor, Tensor, Tensor, Query]]:
        """Distinct rows ``[u, N]`` with their query, and which requests ``[b]`` they serve, at which row ``[b]``."""
        if len(requests) == 0:
            return
        row_of, first, uses = self._distinct(requests)
        order = row_of.argsort(stable=True)
        start = torch.cat([uses.new_zeros(1), uses.cumsum(0)])
        for begin, end in self._cuts(uses):
            numbers = order[start[begin] : start[end]]
            at = row_of[numbers] - begin
            began = time.perf_counter()
            x, observed = self._made(requests, first[begin:end])
            target = torch.zeros_like(observed)
            target[at, requests.sites[numbers]] = True
            read = observed if self.has_marginals else observed | target
            yield numbers, at, torch.where(read, x, torch.zeros_like(x)), Query(target, observed)
            self.cost += Cost(end - begin, 1, time.perf_counter() - began)

    def _distinct(self, requests: Requests) -> tuple[Tensor, Tensor, Tensor]:
        """Which distinct row each request reads ``[M]``; of each its first request and their number ``[U]``.

        Rows that serve few requests come first.
        """
        numbers = torch.arange(len(requests), device=requests.sites.device)
        keys = torch.cat([self._keys(requests, some) for some in torch.split(numbers, self._hashed())])
        _, row_of, uses = torch.unique(keys, return_inverse=True, return_counts=True)
        self.cost += Cost(needed=len(uses))
        first = torch.full_like(uses, len(requests)).scatter_reduce(0, row_of, numbers, "amin")
        by_uses = (uses * len(requests) + first).argsort()
        return by_uses.argsort()[row_of], first[by_uses], uses[by_uses]

    def _cuts(self, uses: Tensor) -> Iterator[tuple[int, int]]:
        """Batches of rows; without categorical marginals each reading of a row is a pass over its whole batch, so rows
        are then kept among those that are read about as often."""
        bounds = [0, len(uses)]
        if not self.conditional.space.is_finite:
            bounds = [0, *((uses.double().log2().long().diff() != 0).nonzero()[:, 0] + 1).tolist(), len(uses)]
        for low, high in itertools.pairwise(bounds):
            for begin in range(low, high, self.batch_size):
                yield begin, min(begin + self.batch_size, high)

    def _made(self, requests: Requests, numbers: Tensor) -> tuple[Tensor, Tensor]:
        x, observed = requests.make(numbers)
        return x, observed | absent_in(self.conditional, x)

    def _keys(self, requests: Requests, numbers: Tensor) -> Tensor:
        """A 64-bit name of what each request's row holds; two of a million rows share one with chance 3e-8."""
        x, observed = self._made(requests, numbers)
        role = observed.long()
        if not self.has_marginals:
            role[torch.arange(len(x), device=x.device), requests.sites[numbers]] = 2
        bits = torch.where(role > 0, x, torch.zeros_like(x)).double().add(0.0).view(torch.int64)  # + 0.0: -0 is 0
        places = torch.arange(1, x.shape[1] + 1, device=x.device)
        return _mixed(_mixed(bits + _mixed(3 * places)) ^ (role * _ODD)).sum(-1)

    def _hashed(self) -> int:
        return max(1, _HASHED_AT_ONCE // max(self.conditional.space.num_sites, 1))


def present_in(x: Tensor) -> Tensor:
    """Which entries of data rows are there, bool ``[R, N]``: all that are not NaN."""
    return ~x.isnan() if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)


def absent_in(conditional: Conditional, x: Tensor) -> Tensor:
    """Sites behind the ends of rows, bool ``[B, N]``, where a conditional knows such (``absent(x)``)."""
    find: Callable[[Tensor], Tensor] | None = getattr(conditional, "absent", None)
    return torch.zeros(x.shape, dtype=torch.bool, device=x.device) if find is None else find(x)


def on_grid(part: Tensor, row: Tensor, slot: Tensor, shape: tuple[int, int]) -> Tensor:
    """``[M, ..]`` at (row, slot) of a grid ``[R, S, ..]``; False or NaN elsewhere."""
    empty = False if part.dtype == torch.bool else torch.nan
    full = torch.full((*shape, *part.shape[1:]), empty, dtype=part.dtype, device=part.device)
    full[row, slot] = part
    return full


def _categories(conditional: Conditional) -> tuple[int, ...]:
    """K of every site, the code for absent sites left out."""
    counts = torch.tensor(conditional.space.num_categories, dtype=torch.int64)
    extra = absent_in(conditional, (counts - 1)[None])[0] & (counts > 1)
    return tuple((counts - extra.long()).tolist())


_ODD = 0x51D7348D19C4A2F5


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser (Stafford's variant 13) of int64, whose products wrap."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * (0x94D049BB133111EB - (1 << 64))
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def _layers(keys: Tensor) -> Iterator[Tensor]:
    """Places of the keys in layers, no key twice in a layer."""
    order = keys.argsort(stable=True)
    ordered = keys[order]
    turn = torch.arange(len(keys), device=keys.device) - torch.searchsorted(ordered, ordered)
    for layer in range(int(turn.max()) + 1):
        yield order[turn == layer].sort().values
