"""Schedules say which query comes next; `run` is the one loop that evaluates it.

A schedule is a value: printable, serialisable, its cost known before it runs. Its `walk` is a coroutine that yields a
step and is sent the state that followed, so that an adaptive schedule sees the state and a fixed one ignores it. A
step is a `Query`, answered by ``conditional.sample``, or a `Factorized` query, whose targets are drawn from their
marginals in one evaluation.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from flexgen import rng
from flexgen.answers import Answers, AnyQuery, answers_of, check_query
from flexgen.checks import flag, kind_of, real_tensor
from flexgen.conditional import (
    BernoulliMarginals,
    CategoricalMarginals,
    Conditional,
    Decoder,
    HasDecoder,
    HasMarginals,
    MarginalConditional,
    Marginals,
    marginals_at,
    put_at,
    take_at,
    takes_sites,
    target_sites,
)
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Randomness, Streams

__all__ = ["Factorized", "Schedule", "SiteQuery", "SitewiseMarginals", "Step", "Walk", "first_in_order", "run"]


@dataclass(frozen=True, eq=False)
class Factorized:
    """One evaluation, every target drawn from its own marginal p(x_i | x_C).

    Exact for one target, or for targets that are independent given C; else a draw from a product, not from the joint.

    Args:
        query: targets and observed sites.
        keep: from the draws' log-probabilities ``[B, N]`` to the targets to keep, bool ``[B, N]``. Default: all.
    """

    query: Query
    keep: Callable[[Tensor], Tensor] | None = None


Step = Query | Factorized
Walk = Generator[Step, Tensor, None]

# The queries of as many steps are made at once as have so many booleans together.
_BOOLEANS_AT_ONCE = 1 << 20


@runtime_checkable
class Schedule(Protocol):
    """Which query comes next, given the state."""

    @property
    def num_evaluations(self) -> int:
        """Evaluations, of a whole batch each, by a conditional that needs one evaluation a target."""
        ...

    @property
    def critical_path(self) -> int:
        """The longest sequence of evaluations in which each must wait for the one before."""
        ...

    def walk(self, x: Tensor, *, generator: Randomness) -> Walk:
        """The steps; ``walk.send(x)`` passes the state that followed the last one.

        `x` is a buffer that changes between steps: a walk that needs it later copies it.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form, which the class's ``from_dict`` reads."""
        ...


@runtime_checkable
class SitewiseMarginals(Protocol):
    """Marginals that can draw one site alone; optional, and worth having where a draw of all sites is slow."""

    def sample_site(self, site: int | Tensor, *, generator: Randomness) -> Tensor:
        """Draws ``[B, *site]`` at one site, or at one a row, int64 ``[B]``."""
        ...


class SiteQuery(Query):
    """A query for at most one site a row, which remembers the site's number.

    Reading the number off the booleans costs a device synchronisation, and a network can use it to compute one site's
    answer alone.

    Attributes:
        site: an int where all rows share the target; int64 ``[B]`` where they do not.
        asks: bool ``[B]``: rows that have a target; None where all have. `site` is arbitrary in the others.
    """

    site: int | Tensor
    asks: Tensor | None

    @property
    def sites(self) -> Tensor:
        """The site as `flexgen.conditional.marginals_at` takes it, int64 ``[1]`` or ``[B, 1]``."""
        if isinstance(self.site, Tensor):
            return self.site[:, None]
        sites: Tensor | None = self.__dict__.get("_sites")
        if sites is None:  # a fixed scan visits its queries many times
            sites = torch.tensor([self.site], device=self.device)
            object.__setattr__(self, "_sites", sites)
        return sites

    @classmethod
    def make(cls, target: Tensor, observed: Tensor, site: int | Tensor, asks: Tensor | None = None) -> SiteQuery:
        query = cls._trusted(target, observed)
        assert isinstance(query, SiteQuery)
        object.__setattr__(query, "site", site)
        object.__setattr__(query, "asks", asks)
        return query

    @classmethod
    def complete_rows(cls, sites: Tensor, asks: Tensor | None, num_sites: int) -> Iterator[SiteQuery]:
        """The complete conditionals of one site a row, step after step.

        Args:
            sites: int64 ``[T, B]``, the site of each step and row.
            asks: bool ``[T, B]``, the rows that have a target; None where all have.
            num_sites: N.
        """
        each = max(1, _BOOLEANS_AT_ONCE // max(1, num_sites * sites.shape[1]))  # steps
        for start in range(0, len(sites), each):
            part = sites[start : start + each]
            asking = [None] * len(part) if asks is None else asks[start : start + each].unbind()
            target = torch.zeros(*part.shape, num_sites, dtype=torch.bool, device=part.device)  # [T, B, N]
            target.scatter_(2, part[..., None], True if asks is None else asks[start : start + each, :, None])
            yield from map(cls.make, target.unbind(), (~target).unbind(), part.unbind(), asking)


def run(
    conditional: Conditional,
    x: Tensor,
    schedule: Schedule,
    *,
    generator: Randomness | int | None,
    progress: bool = False,
) -> Tensor:
    """Asks `conditional` the queries of `schedule`, one after the other, until it has no more.

    Args:
        conditional: answers the queries; `CanSample`, or `HasMarginals` where the schedule has factorised queries.
        x: ``[B, N, *site]``, the state to start from; not changed.
        schedule: which query comes next.
        generator: randomness of the schedule's choices and of the draws. With `Streams` a row's result does not depend
            on the rows beside it.
        progress: show a progress bar on stderr.

    Returns:
        The state after the last step, a new tensor.
    """
    if not callable(getattr(schedule, "walk", None)):  # isinstance would evaluate its costs, every sweep
        raise FlexgenError(
            "schedule", f"is {kind_of(schedule)}, which has no walk", "A scan becomes a schedule by scan.over(free)."
        )
    real_tensor("x", x, "[B, N, *site]", error=FlexgenError)
    progress = flag("progress", progress)
    check_answers(conditional, x, schedule)
    places = _Places(rng.resolve(generator, x.device), len(x), x.device)
    with (
        torch.no_grad(),
        progress_bar(schedule.num_evaluations if progress else None, type(schedule).__name__) as advance,
    ):
        x = x.clone(memory_format=torch.contiguous_format)
        walk = schedule.walk(x, generator=places.choices)
        remembers = bool(getattr(schedule, "only_adds", False)) and isinstance(conditional, HasDecoder)
        memory = _Memory(conditional) if remembers else None  # type: ignore[arg-type]
        step = next(walk, None)
        while step is not None:
            places.enter_step()
            x = _answer(conditional, x, step, places) if memory is None else memory.answer(x, step, places)
            advance()
            places.leave_step()
            try:
                step = walk.send(x)
            except StopIteration:
                break
    return x


class _Places:
    """The random streams of a run: a part of their own for every step, and for what the schedule chooses before it.

    What a row draws is then independent of how many numbers the rows beside it needed. With a ``torch.Generator``
    there are no parts.
    """

    UNIFORMS_AT_ONCE = 16

    def __init__(self, generator: Randomness, num_rows: int, device: torch.device) -> None:
        self.num_rows = num_rows
        self.device = device
        self._whole = generator.fork("run") if isinstance(generator, Streams) else generator
        self.choices = self._part("choices")
        self._seed = self.choices.seed if isinstance(self.choices, Streams) else 0
        self._step = 0
        self._block = -1
        self._uniforms = torch.empty(0)
        self._logits: Tensor | None = None
        self._first_entries: Tensor | None = None

    def enter_step(self) -> None:
        self._step += 1

    def leave_step(self) -> None:
        if isinstance(self.choices, Streams):  # the walk has this very object
            self.choices.seed, self.choices.counter = rng.key(self._seed, self._step), 0

    def draws(self) -> Randomness:
        """The randomness of this step."""
        return self._part("step", self._step)

    def uniforms(self) -> Tensor:
        """The uniform numbers of this step, float64 ``[B]``; drawn for several steps at once, which is far cheaper."""
        block, place = divmod(self._step - 1, self.UNIFORMS_AT_ONCE)
        if block != self._block:
            shape = (self.num_rows, self.UNIFORMS_AT_ONCE)
            part = self._part("uniforms", block)
            # Of 32 bits each where the generator is counted: half the price of 53, and fine enough for any chain.
            if isinstance(part, Streams):
                self._uniforms = part.words(shape).T.to(torch.float64, memory_format=torch.contiguous_format)
                self._uniforms *= 2.0**-32
            else:
                self._uniforms = rng.uniform(shape, generator=part, dtype=torch.float64).T.contiguous()
            self._block, self._logits = block, None
        return self._uniforms[place]

    def logits(self) -> Tensor:
        """The logits of `uniforms`; -inf at 0, and finite elsewhere, since a uniform number is below 1."""
        self.uniforms()
        if self._logits is None:
            self._logits = self._uniforms.logit()
        return self._logits[(self._step - 1) % self.UNIFORMS_AT_ONCE]

    def first_entries(self, num_sites: int) -> Tensor:
        """Where each row begins in a flat ``[B * N]``, int64 ``[B]``."""
        if self._first_entries is None:
            self._first_entries = num_sites * torch.arange(self.num_rows, device=self.device)
        return self._first_entries

    def _part(self, *parts: int | str) -> Randomness:
        return self._whole.fold_in(*parts) if isinstance(self._whole, Streams) else self._whole


# Of schedules that were walked, such as the sweeps of a scan: what the conditional declared.
_CHECKED: weakref.WeakKeyDictionary[Schedule, Answers] = weakref.WeakKeyDictionary()


def check_answers(conditional: Conditional, x: Tensor, schedule: Schedule) -> None:
    """Raises if the schedule asks what the conditional declares not to answer; walks it once, without any evaluation.

    Raises:
        UnsupportedQueryError: names the query and what the conditional answers.
    """
    answers = answers_of(conditional)
    try:
        known = _CHECKED.get(schedule)
    except TypeError:  # a schedule of one's own that cannot be hashed or referred to weakly is walked each time
        known = None
    if isinstance(answers, AnyQuery) or known == answers:
        return
    nothing = torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
    walk = schedule.walk(x, generator=torch.Generator(x.device).manual_seed(0))
    step = next(walk, None)
    while step is not None:
        check_query(conditional, step.query if isinstance(step, Factorized) else step)
        if isinstance(step, Factorized) and step.keep is not None:
            step.keep(nothing)
        try:
            step = walk.send(x)
        except StopIteration:
            break
    with contextlib.suppress(TypeError):
        _CHECKED[schedule] = answers


def _answer(conditional: Conditional, x: Tensor, step: Step, places: _Places) -> Tensor:
    """The state after one step; may reuse the storage of `x`."""
    check_query(conditional, step.query if isinstance(step, Factorized) else step)
    if isinstance(step, Factorized):
        return _draw_factorized(conditional, x, step, places.draws())
    if isinstance(step, SiteQuery) and draws_by_marginals(conditional):
        assert isinstance(conditional, MarginalConditional)
        return _draw_site(conditional, x, step, places)
    draw = getattr(conditional, "sample", None)  # isinstance of a protocol costs as much as a small evaluation
    if draw is None:
        raise UnsupportedQueryError(
            "conditional", f"{type(conditional).__name__} cannot draw samples", "Pass one that has sample()."
        )
    drawn: Tensor = draw(x, step, generator=places.draws())
    return drawn


def draws_by_marginals(conditional: Conditional) -> bool:
    """Whether a one-site sample of `conditional` is a draw from one evaluation of its marginals, by its base class."""
    return isinstance(conditional, MarginalConditional) and type(conditional).sample is MarginalConditional.sample


class _Memory:
    """Answers the steps of a schedule that only adds, by a decoder that is told what is new."""

    def __init__(self, conditional: HasDecoder) -> None:
        self.conditional = conditional
        self.decoder: Decoder | None = None
        self.known: Tensor | None = None

    def answer(self, x: Tensor, step: Step, places: _Places) -> Tensor:
        query = (step.query if isinstance(step, Factorized) else step).expand(len(x))
        check_query(self.conditional, query)
        if self.decoder is None or self.known is None:
            self.decoder = self.conditional.start(x, query)
        else:
            new = query.observed & ~self.known
            sites, given = target_sites(Query._trusted(new, torch.zeros_like(new)))
            if sites.shape[1]:
                self.decoder.append(sites, take_at(x, sites), given=None if bool(given.all()) else given)
        self.known = query.observed
        if isinstance(step, Factorized):
            sites, is_target = target_sites(query)
            return _fill_factorized(x, step, sites, is_target, self.decoder.marginals(sites), places.draws())
        if isinstance(step, SiteQuery):
            if draws_by_marginals(self.conditional):
                return _fill_site(x, step, self.decoder.marginals(step.sites), True, places)
            draw = self.decoder.sample(step.sites, generator=places.draws())  # type: ignore[attr-defined]
            return torch.where(step.target.view(*step.target.shape, *(1,) * (x.ndim - 2)), draw.to(x.dtype), x)
        return _answer(self.conditional, x, step, places)


def _draw_site(conditional: MarginalConditional, x: Tensor, query: SiteQuery, places: _Places) -> Tensor:
    """What ``conditional.sample`` does for one target, without its chain, and drawing that target alone."""
    alone = takes_sites(conditional)
    marginals = marginals_at(conditional, x, query, query.sites) if alone else conditional.marginals(x, query)
    return _fill_site(x, query, marginals, alone, places)


def _fill_site(x: Tensor, query: SiteQuery, marginals: Marginals, alone: bool, places: _Places) -> Tensor:
    """The state with the query's site drawn; `alone`: the marginals are of that site only."""
    site, asks = query.site, query.asks
    x = x.contiguous()
    # One index over rows and sites costs half of what an index of each costs.
    entry = None if isinstance(site, int) else places.first_entries(x.shape[1]) + site  # [B]
    if isinstance(marginals, BernoulliMarginals):
        logits = marginals.logits  # [B, 1] or [B, N]
        at = logits[:, 0] if alone else logits[:, site] if entry is None else logits.flatten()[entry]  # [B]
        draw = places.logits() >= -at
    elif isinstance(marginals, CategoricalMarginals):
        log_probs = marginals.log_probs  # [B, 1, K] or [B, N, K]
        at = log_probs[:, 0] if alone else log_probs[:, site] if entry is None else log_probs.flatten(0, 1)[entry]
        draw = _invert(at, places)  # [B]
    elif alone:
        draw = marginals.sample(generator=places.draws())[:, 0]  # [B, *site]
    elif isinstance(marginals, SitewiseMarginals):
        draw = marginals.sample_site(site, generator=places.draws())  # [B, *site]
    else:
        return _fill(x, query.target, marginals.sample(generator=places.draws()))
    draw = draw.to(x.dtype)
    values = x[:, site] if entry is None else x.flatten(0, 1)  # a view of x
    if asks is not None:
        before = values if entry is None else values[entry]
        draw = torch.where(asks.view(-1, *(1,) * (draw.ndim - 1)), draw, before)
    if entry is None:
        values.copy_(draw)
    else:
        values.index_copy_(0, entry, draw)
    return x


def _invert(log_probs: Tensor, places: _Places) -> Tensor:
    """The categories at which the distribution functions of ``[B, K]`` pass the step's uniform numbers.

    Like ``rng.categorical``: a category whose log-probability is -inf is never drawn.
    """
    if log_probs.shape[-1] == 2:  # u >= p_0 / (p_0 + p_1), in logits, whose share of the work is done for many steps
        return places.logits() >= log_probs[:, 0] - log_probs[:, 1]
    cdf = log_probs.to(torch.float64).exp().cumsum(-1)  # [B, K]
    total = cdf[:, -1]
    # Rounding must not reach the total, which would push the draw past the last category that has mass.
    threshold = torch.minimum(places.uniforms() * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cdf <= threshold[:, None]).sum(-1)


def _draw_factorized(conditional: Conditional, x: Tensor, step: Factorized, generator: Randomness) -> Tensor:
    if not isinstance(conditional, HasMarginals):
        raise UnsupportedQueryError(
            "conditional",
            f"{type(conditional).__name__} has no marginals, which this schedule draws several sites from at once",
            "Pass one that has marginals(), or a schedule of one site at a time.",
        )
    target = step.query.target
    if not takes_sites(conditional):
        marginals = conditional.marginals(x, step.query)
        draw = marginals.sample(generator=generator).to(x.dtype)
        if step.keep is not None:
            target = step.keep(marginals.log_prob(draw))
        return _fill(x, target, draw)
    sites, is_target = target_sites(step.query)
    marginals = marginals_at(conditional, x, step.query, sites)
    return _fill_factorized(x, step, sites, is_target, marginals, generator)


def _fill_factorized(
    x: Tensor, step: Factorized, sites: Tensor, is_target: Tensor, marginals: Marginals, generator: Randomness
) -> Tensor:
    """The state with targets drawn from marginals of `sites`, as many as the step keeps."""
    draw = marginals.sample(generator=generator).to(x.dtype)  # [B, S, *site]
    if step.keep is not None:
        log_probs = put_at(
            torch.zeros(x.shape[:2], device=x.device, dtype=torch.float64), sites, marginals.log_prob(draw).double()
        )
        target = step.keep(log_probs)
        is_target = is_target & take_at(target.expand(len(x), -1), sites)
    if is_target.ndim == 2:
        draw = torch.where(is_target.view(*is_target.shape, *(1,) * (x.ndim - 2)), draw, take_at(x, sites))
    return put_at(x, sites, draw)


def _fill(x: Tensor, target: Tensor, draw: Tensor) -> Tensor:
    return torch.where(target.view(*target.shape, *(1,) * (x.ndim - 2)), draw.to(x.dtype), x)


def first_in_order(sites: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's members of a set, in the order in which `order` visits them.

    Args:
        sites: bool ``[B, N]``, the set.
        order: int64 ``[N]`` or ``[B, N]``, permutations of all sites.

    Returns:
        int64 ``[B, N]``, members first and the others behind them; int64 ``[B]``, how many members there are.
    """
    order = order.expand(sites.shape)
    outside = ~sites.gather(1, order)  # [B, N] by place in the order
    return order.gather(1, outside.to(torch.uint8).argsort(dim=1, stable=True)), sites.sum(1)


def query_to_dict(query: Query) -> dict[str, Any]:
    return {"target": query.target.tolist(), "observed": query.observed.tolist()}


def query_from_dict(data: Mapping[str, Any]) -> Query:
    return Query(torch.tensor(data["target"], dtype=torch.bool), torch.tensor(data["observed"], dtype=torch.bool))


@contextmanager
def progress_bar(total: int | None, label: str) -> Iterator[Callable[[], object]]:
    """A tqdm bar's ``update``, or nothing where `total` is None; tqdm is imported only where a bar is shown."""
    if total is None:
        yield lambda: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label) as bar:
        yield bar.update
