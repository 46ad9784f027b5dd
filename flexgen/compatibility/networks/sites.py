"""One-site answers p(x_i | x_C) of a conditional, in batches, each distinct row evaluated once, the cost counted.

All diagnostics of networks are sums of one-site log-probabilities. What they cost is rows through the network: a row is
a set of observed sites with its values, and its answer holds the distribution of every other site, at every value.
`SiteAnswers` finds the distinct rows among all requests, evaluates each once, and reads every target off it.
`check_answers` evaluates a few queries first, to see whether the answers are conditional probabilities at all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.answers import AnyQuery, answers_of, check_query
from flexgen.checks import whole_number
from flexgen.compatibility.networks.effects import Cost
from flexgen.conditional import (
    CategoricalMarginals,
    Conditional,
    HasLogProb,
    HasMarginals,
    Marginals,
    absent_in,
    marginals_at,
    take_at,
    takes_sites,
    target_sites,
)
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query

__all__ = ["Requests", "SiteAnswers", "SiteDistributions", "check_answers", "on_grid", "present_in"]

_ENTRIES_AT_ONCE = 1 << 24  # numbers in the answers of one batch: 64 MiB in float32
_LARGEST_BATCH = 4096
_HASHED_AT_ONCE = 1 << 22  # entries of requests held at once while they are compared
_QUESTIONS = 8
_PASSES = 3  # of each query: as it is, repeated, and with other values at unobserved sites
_UNITS = 64.0  # of roundoff, by which answers to the same query may differ
_SUM = 0.02  # by which probabilities of a site may miss a sum of 1; a softmax in bfloat16 stays below it
_MOST_CATEGORIES = 32  # of a site that log_prob is summed over


@dataclass(frozen=True)
class Requests:
    """Questions p(x_site | x_C), made on demand, so that a million of them need no memory.

    Args:
        sites: int64 ``[M]``, the target of each.
        make: numbers of requests ``[b]`` -> their x ``[b, N]`` and observed, bool ``[b, N]``.
    """

    sites: Tensor
    make: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(frozen=True)
class SiteDistributions:
    """The distribution of one site for each request, read off an evaluated batch of rows.

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
    """Queries a conditional for one-site distributions, and counts the cost.

    Args:
        conditional: has marginals or log-probabilities, over scalar sites.
        batch_size: rows a call; default: as many as keep the answers for all sites and categories near 64 MiB, at most
            4096. Results depend on it by rounding alone.

    Attributes:
        num_categories: K of every site without a code for absent sites, 0 where it is not categorical.
        cost: of all requests so far.

    A conditional whose rows differ in length says by ``absent(x)`` -> bool ``[B, N]`` which sites lie behind a row's
    end. They are observed in every query and never its target; their code, the last category, is no value of a site.

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
        """Which entries of data rows a query may target, bool ``[R, N]``: neither missing nor absent."""
        return present_in(x) & ~absent_in(self.conditional, x)

    @torch.no_grad()
    def read(self, requests: Requests, reader: Callable[[SiteDistributions], Tensor]) -> Tensor:
        """What `reader` (a batch of distributions -> float64 ``[b, ..]``) makes of every request, ``[M, ..]``."""
        out: Tensor | None = None
        for numbers, at, x, query in self._batches(requests):
            assert isinstance(self.conditional, HasMarginals)
            sites, seen = requests.sites[numbers], x
            place = sites
            if takes_sites(self.conditional):
                targets, _ = target_sites(query)  # [u, S]
                place = query.target.long().cumsum(1)[at, sites] - 1
                marginals, seen = marginals_at(self.conditional, x, query, targets), take_at(x, targets)
            else:
                marginals = self.conditional.marginals(x, query)
            one_pass = isinstance(marginals, CategoricalMarginals)
            layers = [torch.arange(len(at), device=at.device)] if one_pass else _layers(at * x.shape[1] + sites)
            for some in layers:
                answer = reader(SiteDistributions(marginals, seen, at[some], place[some], numbers[some]))
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
            return self.read(requests, lambda found: found.log_prob(values[found.requests]))
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
            if not isinstance(answers_of(self.conditional), AnyQuery):  # each request is a question of its own
                one = torch.zeros_like(observed[at]).scatter(1, requests.sites[numbers][:, None], True)
                check_query(self.conditional, Query(one, observed[at]))
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


@torch.no_grad()
def check_answers(answers: SiteAnswers, x: Tensor, present: Tensor, *, unit: float, most: int, seed: int = 0) -> bool:
    """Refuses a model whose answers are no conditional probabilities.

    A few one-site queries, half of them complete conditionals and half in random contexts, are evaluated twice, and
    once more with other values at unobserved sites. The answers must be the same, and those of a categorical site must
    sum to 1 over its categories. Densities of real sites are not integrated.

    Args:
        answers: of the model; these rows are counted in their cost.
        x: ``[R, N]``, data rows.
        present: bool ``[R, N]``.
        unit: unit roundoff of the model's arithmetic.
        most: rows that may pass the network.
        seed: of rows, sites and contexts.

    Returns:
        Whether anything could be checked with these rows.

    Raises:
        FlexgenError: names what is wrong with the answers.
    """
    source = torch.Generator().manual_seed(seed)
    categories = max(answers.num_categories)
    enumerates = not answers.has_marginals and 0 < categories <= _MOST_CATEGORIES
    row, site = present.nonzero(as_tuple=True)
    number = min(_QUESTIONS, answers.batch_size, most // (_PASSES + enumerates * categories), len(row))
    if number < 1:
        return False
    chosen = torch.randperm(len(row), generator=source)[:number].to(row.device)
    row, site = row[chosen], site[chosen]
    kept = (torch.rand(number, x.shape[1], generator=source) < 0.5).to(x.device)
    first = (number + 1) // 2
    kept[:first] = True
    observed = (present[row] & kept).scatter(1, site[:, None], False)
    checked = False
    for part in (slice(0, first), slice(first, number)):
        if part.start < part.stop:
            checked |= _check(answers, x[row[part]], observed[part], site[part], enumerates, unit)
    return checked


def _check(answers: SiteAnswers, x: Tensor, observed: Tensor, site: Tensor, enumerates: bool, unit: float) -> bool:
    observed = observed | absent_in(answers.conditional, x)
    each = torch.arange(len(x), device=x.device)
    target = torch.zeros_like(observed)
    target[each, site] = True
    query = Query(target, observed)
    read = observed if answers.has_marginals else observed | target
    blank = torch.zeros_like(x)
    there = x.nan_to_num(0.0) if x.is_floating_point() else x
    other = torch.where(there == 0, torch.ones_like(x), there)
    own = x[each, site].double()[:, None]
    try:
        check_query(answers.conditional, query)
        (before, by_category), (again, _), (after, _) = (
            _evaluated(answers, torch.where(read, x, fill), query, site, own) for fill in (blank, blank, other)
        )
        sums = _by_value(answers, torch.where(read, x, blank), query, site) if enumerates else None
    except FlexgenError as error:
        if error.argument in ("marginals", "log_probs"):
            raise  # the answer has the wrong form
        return False  # a model need not answer every query; diagnostics report those that it refuses
    name = type(answers.conditional).__name__
    noise = _differ(before, again, unit)
    if noise is not None:
        raise FlexgenError(
            "model",
            f"{name} gives two answers to the same query, which differ by up to {noise:.2g} nats: its answers are "
            "random, and so would be all effects",
            "Turn off what draws inside it (dropout, noise, sampled masks), or fix its seed in every call.",
        )
    change = _differ(before, after, unit)
    if change is not None:
        raise FlexgenError(
            "model",
            f"{name} reads places that are not observed: its answers change by up to {change:.2g} nats with the "
            "values there, and the contract is that what stands there is never read",
            "Blank them first, as in torch.where(query.observed, x, 0), and give the network query.observed beside it.",
        )
    if by_category:
        _check_sums(answers, before, site, name, unit)
    elif sums is not None:
        _check_sum(sums.logsumexp(-1), f"log_prob of {name}", unit)
    return True


def _evaluated(answers: SiteAnswers, x: Tensor, query: Query, site: Tensor, own: Tensor) -> tuple[Tensor, bool]:
    """Log-probabilities of every category ``[b, K]``, or of the data's own value ``[b, 1]``; which of the two."""
    conditional, each, by_category = answers.conditional, torch.arange(len(x), device=x.device), False
    began = time.perf_counter()
    if isinstance(conditional, HasMarginals):
        marginals = conditional.marginals(x, query)
        if isinstance(marginals, CategoricalMarginals):
            found, by_category = marginals.log_probs[each, site], True
        else:
            filled = x.clone()
            filled[each, site] = own[:, 0].to(x.dtype)
            found = marginals.log_prob(filled)[each, site][:, None]
    else:
        assert isinstance(conditional, HasLogProb)
        found = conditional.log_prob(x, query)[:, None]
    answers.cost += Cost(len(x), 1, time.perf_counter() - began, len(x))
    return found.double(), by_category


def _by_value(answers: SiteAnswers, x: Tensor, query: Query, site: Tensor) -> Tensor:
    """log p of every category ``[b, K]`` from `log_prob` alone; -inf beyond a site's own, NaN where it has none."""
    counts = torch.tensor(answers.conditional.space.num_categories, device=x.device)[site]
    columns = []
    for code in range(max(answers.num_categories)):
        filled = x.clone()
        known = code < counts
        filled[torch.arange(len(x), device=x.device), site] = torch.where(known, code, 0).to(x.dtype)
        found = _evaluated(answers, filled, query, site, filled[:, :1])[0][:, 0]
        columns.append(torch.where(known, found, torch.where(counts > 0, -torch.inf, torch.nan)))
    return torch.stack(columns, dim=-1)


def _differ(before: Tensor, after: Tensor, unit: float) -> float | None:
    """The largest change, in nats, if any is more than rounding makes of one computation done twice."""
    same = (before == after) | (before.isnan() & after.isnan())
    change = torch.where(same, 0.0, (after - before).abs().nan_to_num(torch.inf))
    allowed = _UNITS * unit * (1.0 + torch.where(before.isfinite(), before, 0.0).abs())
    return float(change.max()) if bool((change > allowed).any()) else None


def _check_sums(answers: SiteAnswers, log_probs: Tensor, site: Tensor, name: str, unit: float) -> None:
    counts = torch.tensor(answers.conditional.space.num_categories, device=site.device)[site]
    width = log_probs.shape[-1]
    categorical = counts > 0
    if not bool(categorical.any()):
        return
    log_probs, counts, site = log_probs[categorical], counts[categorical], site[categorical]
    if int(counts.max()) > width:
        short = int(counts.argmax())
        raise FlexgenError(
            "marginals",
            f"of {name} have {width} categories, but site {int(site[short])} of its space has {int(counts[short])}",
            "Return log-probabilities [B, N, K] of all K categories.",
        )
    beyond = torch.arange(width, device=site.device) >= counts[:, None]
    outside = log_probs.masked_fill(~beyond, -torch.inf).logsumexp(-1).exp().nan_to_num(0.0)
    if float(outside.max()) > _SUM:
        worst = int(outside.argmax())
        raise FlexgenError(
            "marginals",
            f"of {name} have {width} categories, and give {float(outside[worst]):.3g} to those beyond the "
            f"{int(counts[worst])} that site {int(site[worst])} of its space has",
            "Let the space say how many categories there are, or set the others to -inf before log_softmax.",
        )
    inside = log_probs.masked_fill(beyond, 0.0)
    if bool((inside >= 0).all()) and bool(((inside.sum(-1) - 1.0).abs() < _SUM).all()):
        raise FlexgenError("marginals", f"of {name} are probabilities, not their logarithms", "Return their log().")
    _check_sum(log_probs.masked_fill(beyond, -torch.inf).logsumexp(-1), f"marginals of {name}", unit)


def _check_sum(log_sums: Tensor, what: str, unit: float) -> None:
    """Sums over a site's categories; impossible contexts (0 or NaN) have none."""
    miss = torch.where(log_sums.isfinite(), log_sums.abs(), 0.0)
    if float(miss.max()) > max(_SUM, _UNITS * unit):
        total = float(log_sums[int(miss.argmax())].exp())
        verb = "are" if what.startswith("marginals") else "is"
        raise FlexgenError(
            what.split()[0],
            f"{what.partition(' ')[2]} {verb} not normalised: the probabilities of a site's categories sum to "
            f"{total:.4g}, not 1",
            "Return log-probabilities, as log_softmax(-1) makes them.",
        )
