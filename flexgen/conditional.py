"""Things that answer queries.

A conditional declares its `Space` and whichever capabilities it has: `CanSample`, `HasLogProb`, `HasMarginals`. They
are separate protocols, because a diffusion model samples without a density and a masked network has marginals only.

Shared contract, tested for every conditional of the package:

* ``x`` is ``[B, N, *site]``; values at unobserved sites are never read.
* `marginals` answers for all sites, or for those alone that are named by ``sites``.
* `sample` fills the target; observed sites come back bit-identical, and so does every other site.
* `log_prob` is in nats, ``[B]``, joint over the target; an empty target has log-probability 0.
* Randomness is the keyword argument ``generator``; the global generator of torch is never touched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from flexgen import rng
from flexgen.answers import AnyQuery, Prefixes, answers_of, check_query
from flexgen.checks import instance, kind_of
from flexgen.errors import FlexgenError, SpaceError, UnsupportedQueryError
from flexgen.query import Query, question
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = [
    "BernoulliMarginals",
    "CanSample",
    "CategoricalMarginals",
    "Conditional",
    "Decoder",
    "HasDecoder",
    "HasFeatures",
    "HasLogProb",
    "HasMarginals",
    "MarginalConditional",
    "Marginals",
    "SelectedMarginals",
    "absent_in",
    "check_marginals",
    "marginals_at",
    "put_at",
    "select_marginals",
    "take_at",
    "takes_sites",
    "target_sites",
]


@runtime_checkable
class Conditional(Protocol):
    """Anything that answers queries over a space."""

    @property
    def space(self) -> Space: ...


@runtime_checkable
class CanSample(Conditional, Protocol):
    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        """x with the target drawn jointly from p(x_P | x_C); same shape, a new tensor."""
        ...


@runtime_checkable
class HasLogProb(Conditional, Protocol):
    def log_prob(self, x: Tensor, query: Query) -> Tensor:
        """log p(x_P | x_C) in nats, ``[B]``, joint over the target."""
        ...


class Marginals(Protocol):
    """The one-site answers p(x_i | x_C) at every site of a batch of rows, or at the S sites that were named.

    With named sites every N below is an S, and values go in and come out in the order of the names. Entries at
    observed sites are meaningless and finite.
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x_i | x_C), ``[B, N]``, each site on its own."""
        ...

    def sample(self, *, generator: Randomness) -> Tensor:
        """Independent draws, ``[B, N]``: a draw from the *product* of the marginals, not from the joint."""
        ...

    def mean(self) -> Tensor:
        """Expected value, ``[B, N]`` (of the code, where the site is categorical)."""
        ...

    def mode(self) -> Tensor:
        """Most probable value, ``[B, N]``."""
        ...


@runtime_checkable
class HasMarginals(Conditional, Protocol):
    def marginals(self, x: Tensor, query: Query) -> Marginals:
        """p(x_i | x_C) for every target i, each on its own.

        A conditional that can compute some sites alone takes ``sites`` besides, a keyword: int64 ``[S]`` for all rows
        or ``[B, S]``, and answers for these alone. Callers use `marginals_at`, which serves both kinds.
        """
        ...


class Decoder(Protocol):
    """A conditional in the middle of a decode: remembers what it computed of the sites that are known so far."""

    def marginals(self, sites: Tensor) -> Marginals:
        """p(x_i | all that is known) at sites int64 ``[S]`` or ``[B, S]``, each on its own."""
        ...

    def append(self, sites: Tensor, values: Tensor, *, given: Tensor | None = None) -> None:
        """Makes sites known.

        Args:
            sites: int64 ``[S]`` or ``[B, S]``, not known before.
            values: ``[B, S, *site]``.
            given: bool ``[B, S]``; entries that are False are no news, as in rows that have no target left.
        """
        ...


@runtime_checkable
class HasDecoder(Conditional, Protocol):
    """A conditional that answers a growing set of observed sites for less than one evaluation each.

    Any-order and parallel decoding use `start` where it is offered; draws and densities are the plain ones up to
    rounding. A decoder of a conditional that has a `sample` of its own has ``sample(sites, *, generator)``, too: what
    ``conditional.sample`` would draw at one site a row ``[B, 1]``, from the same random numbers.
    """

    def start(self, x: Tensor, query: Query) -> Decoder:
        """A decoder that knows the observed sites of the query."""
        ...


@runtime_checkable
class HasFeatures(Conditional, Protocol):
    """A conditional with an encoder, whose representations of the sites serve other tasks."""

    def features(self, x: Tensor, query: Query) -> Tensor:
        """What the encoder makes of each site given the observed ones, ``[B, N, D]``.

        A function of the observed values alone, and of which sites are observed; it carries gradients where the
        conditional's answers do.
        """
        ...


def take_at(values: Tensor, sites: Tensor) -> Tensor:
    """The entries of ``[B, N, ..]`` at sites ``[S]`` or ``[B, S]``: ``[B, S, ..]``."""
    if sites.ndim == 1:
        return values.index_select(1, sites)
    return values[torch.arange(len(sites), device=sites.device)[:, None], sites]


def put_at(values: Tensor, sites: Tensor, new: Tensor) -> Tensor:
    """A copy of ``[B, N, ..]`` with ``[B, S, ..]`` at sites ``[S]`` or ``[B, S]``."""
    if sites.ndim == 1:
        out = values.clone()
        if len(sites) and int(sites[-1] - sites[0]) == len(sites) - 1 and bool((sites.diff() == 1).all()):
            out[:, int(sites[0]) : int(sites[-1]) + 1] = new  # eight times as fast
            return out
        return out.index_copy_(1, sites, new)
    return values.index_put((torch.arange(len(sites), device=sites.device)[:, None], sites), new)


def target_sites(query: Query) -> tuple[Tensor, Tensor]:
    """The targets' numbers, to name them to `marginals_at`.

    Returns:
        Sites int64 ``[S]`` where all rows share a query ``[N]``, else ``[B, S]`` with S the targets of the fullest row;
        and which entries are targets, bool of the same shape. The others repeat sites that are none.
    """
    if not query.is_batched:
        known: tuple[Tensor, Tensor] | None = query.__dict__.get("_targets")
        if known is None:  # a scan asks the same queries in every sweep
            sites = query.target.nonzero().flatten()
            known = (sites, torch.ones_like(sites, dtype=torch.bool))
            object.__setattr__(query, "_targets", known)
        return known
    counts = query.target.sum(-1)  # [B]
    most = int(counts.max()) if len(counts) else 0
    order = (~query.target).to(torch.uint8).argsort(dim=1, stable=True)  # targets first
    return order[:, :most], torch.arange(most, device=query.device) < counts[:, None]


class CategoricalMarginals:
    """Marginals of categorical sites.

    Args:
        log_probs: ``[B, N, K]``, normalised over K (as ``log_softmax`` does, which is not checked); -inf beyond a
            site's own number of categories.
    """

    def __init__(self, log_probs: Tensor) -> None:
        if not isinstance(log_probs, Tensor) or log_probs.ndim != 3:
            wrong = (
                f"has shape {tuple(log_probs.shape)}" if isinstance(log_probs, Tensor) else f"is {kind_of(log_probs)}"
            )
            raise FlexgenError("log_probs", wrong, "Pass [B, N, K]: an entry for each row, site and category.")
        self.log_probs = log_probs

    def log_prob(self, x: Tensor) -> Tensor:
        # Places that the caller will not read may hold anything.
        if not isinstance(x, Tensor) or x.shape != self.log_probs.shape[:2] or x.is_complex() or x.is_sparse:
            told = f"has shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else f"is {kind_of(x)}"
            fix = f"Pass codes {list(self.log_probs.shape[:2])}, one a row and site."
            raise FlexgenError("x", told, fix)
        if not self.log_probs.shape[-1]:
            raise FlexgenError("log_probs", f"has shape {tuple(self.log_probs.shape)}", "Pass one category or more.")
        codes = x.nan_to_num(0.0, 0.0, 0.0).long().clamp(0, self.log_probs.shape[-1] - 1)  # [B, N]
        return self.log_probs.gather(-1, codes[..., None]).squeeze(-1)

    def sample(self, *, generator: Randomness) -> Tensor:
        return rng.categorical(self.log_probs, generator=generator)

    def mean(self) -> Tensor:
        codes = torch.arange(self.log_probs.shape[-1], device=self.log_probs.device, dtype=self.log_probs.dtype)
        return self.log_probs.exp() @ codes

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def at(self, sites: Tensor) -> CategoricalMarginals:
        """The same answers at sites ``[S]`` or ``[B, S]`` alone."""
        return CategoricalMarginals(take_at(self.log_probs, sites))

    @property
    def shape(self) -> torch.Size:
        """``[B, N]``."""
        return self.log_probs.shape[:2]


class BernoulliMarginals(CategoricalMarginals):
    """Marginals of binary sites from one logit each, without a softmax over two categories.

    Args:
        logits: ``[B, N]``, log p(x_i = 1) - log p(x_i = 0), as a network's last layer gives it; may be infinite.
    """

    def __init__(self, logits: Tensor) -> None:
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            wrong = f"has shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"is {kind_of(logits)}"
            raise FlexgenError("logits", wrong, "Pass [B, N]: the log-odds of category 1 for each row and site.")
        self.logits = logits

    @functools.cached_property
    def log_probs(self) -> Tensor:  # type: ignore[override]
        """``[B, N, 2]``, for whoever reads categories."""
        return nn.functional.logsigmoid(torch.stack([-self.logits, self.logits], -1))

    def log_prob(self, x: Tensor) -> Tensor:
        sign = torch.where(x.nan_to_num(0.0) >= 1, 1.0, -1.0).to(self.logits.dtype)
        return nn.functional.logsigmoid(sign * self.logits)

    def sample(self, *, generator: Randomness) -> Tensor:
        # The very numbers at which the two categories' distribution function is inverted.
        logits = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        u = rng.uniform(logits.shape, generator=generator, dtype=logits.dtype)
        return (u >= torch.sigmoid(-logits)).long()

    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    def mode(self) -> Tensor:
        return (self.logits > 0).long()

    def at(self, sites: Tensor) -> BernoulliMarginals:
        return BernoulliMarginals(take_at(self.logits, sites))

    @property
    def shape(self) -> torch.Size:
        return self.logits.shape


class SelectedMarginals:
    """Answers for some sites, read off answers for all.

    Args:
        marginals: of all sites of `x`.
        x: ``[B, N, *site]``, for its shape, type and device.
        sites: int64 ``[S]`` or ``[B, S]``.
    """

    def __init__(self, marginals: Marginals, x: Tensor, sites: Tensor) -> None:
        self.marginals, self.sites = marginals, sites
        self._blank = torch.zeros_like(x)

    def log_prob(self, x: Tensor) -> Tensor:
        everywhere = put_at(self._blank.to(x.dtype), self.sites, x)
        return take_at(self.marginals.log_prob(everywhere), self.sites)

    def sample(self, *, generator: Randomness) -> Tensor:
        draw_one = getattr(self.marginals, "sample_site", None)
        if draw_one is not None and self.sites.shape[-1] == 1:
            site = int(self.sites[0]) if self.sites.ndim == 1 else self.sites[:, 0]
            one: Tensor = draw_one(site, generator=generator)
            return one[:, None]
        return take_at(self.marginals.sample(generator=generator), self.sites)

    def mean(self) -> Tensor:
        return take_at(self.marginals.mean(), self.sites)

    def mode(self) -> Tensor:
        return take_at(self.marginals.mode(), self.sites)


def select_marginals(marginals: Marginals, x: Tensor, sites: Tensor) -> Marginals:
    """Answers for all sites of `x`, cut down to some; see `marginals_at`."""
    if "at" in vars(type(marginals)):  # its own: a subclass may draw otherwise than its base
        chosen: Marginals = marginals.at(sites)  # type: ignore[attr-defined]
        return chosen
    return SelectedMarginals(marginals, x, sites)


@functools.lru_cache(maxsize=512)
def _has_sites(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters
    return "sites" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def takes_sites(conditional: HasMarginals) -> bool:
    """Whether the conditional computes the marginals of named sites alone: its method has a parameter ``sites``."""
    method = conditional.marginals
    function = getattr(method, "__func__", method)
    declared: bool | None = getattr(function, "_takes_sites", None)
    return _has_sites(function) if declared is None else declared


def marginals_at(conditional: HasMarginals, x: Tensor, query: Query, sites: Tensor) -> Marginals:
    """p(x_i | x_C) at some sites alone, ``[B, S]`` where marginals of all sites have ``[B, N]``.

    A conditional whose `marginals` has a parameter ``sites`` computes these alone; the answers of others are cut down.

    Args:
        conditional: has marginals.
        x: ``[B, N, *site]``.
        query: what is observed.
        sites: int64 ``[S]``, the same for all rows, or ``[B, S]``.
    """
    if takes_sites(conditional):
        found = conditional.marginals(x, query, sites=sites)  # type: ignore[call-arg]
        check_marginals(found, x, conditional, num_sites=sites.shape[-1])
        return found
    marginals = conditional.marginals(x, query)
    check_marginals(marginals, x, conditional)
    return select_marginals(marginals, x, sites)


def check_marginals(marginals: Any, x: Tensor, owner: object, *, num_sites: int | None = None) -> None:
    """Raises unless `owner` answered a query about `x` with marginals of its rows and sites; costs half a µs.

    Args:
        num_sites: how many sites were named; None: none were, and all of x are meant.

    Raises:
        FlexgenError: names the owner's class, what it returned and what to return.
    """
    if isinstance(marginals, CategoricalMarginals):
        found = marginals.shape
        if found == (len(x), x.shape[1] if num_sites is None else num_sites):
            return
        binary = isinstance(marginals, BernoulliMarginals)
        shape = found if binary else marginals.log_probs.shape
        what, K = ("logits", "") if binary else ("log-probabilities", ", K")
        wrong = f"have shape {tuple(shape)}, but x has {tuple(x.shape)}"
        fix = f"Return {what} [B, N{K}] = [{x.shape[0]}, {x.shape[1]}{K}]."
        if num_sites is not None:
            wrong += f" and {num_sites} sites were named"
            fix = f"Return {what} [B, S{K}] = [{x.shape[0]}, {num_sites}{K}], in the order of `sites`."
    elif not isinstance(marginals, Tensor | Distribution) and (
        hasattr(marginals, "sample") or hasattr(marginals, "log_prob")
    ):
        return
    else:
        wrong = f"are {kind_of(marginals)}"
        if isinstance(marginals, Tensor):
            wrong += f" of shape {tuple(marginals.shape)}"
        if isinstance(marginals, Distribution):
            wrong += ", a distribution of torch, which draws from the global generator"
        fix = (
            "Return CategoricalMarginals(log_probs) of log-probabilities [B, N, K], for real sites "
            "flexgen.exact.GaussianMixtureMarginals, or an object with log_prob, sample, mean and mode."
        )
    raise FlexgenError("marginals", f"of {type(owner).__name__} {wrong}", fix)


class _MissingSpace:
    """Stands where a subclass gives its space; other than a property it lets ``self.space = ...`` do so, too."""

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise SpaceError(
            "space",
            f"is missing in {owner.__name__}",
            "Set a class attribute or self.space, for example Space.categorical([3, 3]), or define a property.",
        )


class MarginalConditional:
    """The joint answers that follow from one-site marginals by the chain rule; base of the masked networks.

    A subclass gives `space` and `marginals`; `sample` and `log_prob` walk ``query.chain()``, one evaluation a target.
    The order of the chain matters as far as the marginals are incompatible: see ``samplers.any_order``. Whoever asks
    a subclass's `marginals`, its answer passes `check_marginals`.
    """

    if TYPE_CHECKING:

        @property
        def space(self) -> Space: ...

    else:
        space = _MissingSpace()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls).get("marginals")
        if inspect.isfunction(own):
            cls.marginals = _checked(own)  # type: ignore[method-assign]

    def marginals(self, x: Tensor, query: Query) -> Marginals:  # noqa: ARG002
        name = type(self).__name__
        fix = "Define marginals(self, x, query), which returns CategoricalMarginals or the like."
        raise FlexgenError("marginals", f"are missing in {name}", fix)

    def log_prob(self, x: Tensor, query: Query, *, order: Tensor | None = None, factorized: bool = False) -> Tensor:
        """log p(x_P | x_C) in nats, ``[B]``.

        Args:
            x: ``[B, N]``.
            query: targets and observed sites.
            order: int64 ``[N]`` or ``[B, N]``, the permutation of sites in which the chain rule visits the targets.
            factorized: sum the marginals of all targets given C instead, as if they were independent. One evaluation,
                and the log-probability of another model, unless the targets are independent given C.

        Targets that are independent by what `answers` declares are always summed, in one evaluation.
        """
        rows = question(x, query)
        instance("factorized", factorized, bool, "Pass True or False.")
        if factorized and order is not None:
            raise UnsupportedQueryError("order", "is given with factorized=True", "A product has no order: drop one.")
        if factorized or answers_of(self).factorizes(query):
            return self._sum_at_targets(x, query)
        query = rows
        total: Tensor | None = None
        for step in self._chain(query, order):
            term = self._sum_at_targets(x, step)
            total = term if total is None else total + term
        return x.new_zeros(len(x), dtype=torch.get_default_dtype()) if total is None else total

    def sample(self, x: Tensor, query: Query, *, generator: Randomness, order: Tensor | None = None) -> Tensor:
        """x with the target drawn by the chain rule, in the given order.

        Targets that are independent by what `answers` declares are drawn in one evaluation.
        """
        rows = question(x, query)
        if answers_of(self).factorizes(query):
            sites, is_target = target_sites(query)
            draw = marginals_at(self, x, query, sites).sample(generator=generator).to(x.dtype)
            if sites.ndim == 2:
                draw = torch.where(_over_events(is_target, x), draw, take_at(x, sites))
            return put_at(x, sites, draw)
        query = rows
        for step in self._chain(query, order):
            if takes_sites(self):
                sites = step.target.long().argmax(-1, keepdim=True)  # [B, 1]; 0 in rows that have no target left
                draw = marginals_at(self, x, step, sites).sample(generator=generator)
            else:
                draw = self.marginals(x, step).sample(generator=generator)
            x = torch.where(_over_events(step.target, x), draw.to(x.dtype), x)
        return x.clone() if not query.target.any() else x

    def _chain(self, query: Query, order: Tensor | None) -> Iterator[Query]:
        """The chain rule's queries, all of which are among those that `answers` declares."""
        answers = answers_of(self)
        if isinstance(answers, AnyQuery):
            return query.chain(order)
        if order is None and isinstance(answers, Prefixes):
            order = torch.tensor(answers.order, device=query.device)
        steps = list(query.chain(order))
        for step in steps:  # all of them, before the first is evaluated
            check_query(self, step)
        return iter(steps)

    def _sum_at_targets(self, x: Tensor, query: Query) -> Tensor:
        """The sum of the targets' own log-probabilities given the observed sites, ``[B]``."""
        if not takes_sites(self):
            return torch.where(query.target, self.marginals(x, query).log_prob(x), 0.0).sum(-1)
        sites, is_target = target_sites(query)
        log_probs = marginals_at(self, x, query, sites).log_prob(take_at(x, sites))  # [B, S]
        return torch.where(is_target, log_probs, 0.0).sum(-1)


def _over_events(sites: Tensor, x: Tensor) -> Tensor:
    """bool ``[.., N]``, made to broadcast against x ``[B, N, *site]``."""
    return sites.view(*sites.shape, *(1,) * (x.ndim - 2))


def absent_in(conditional: Any, x: Tensor) -> Tensor:
    """Sites behind the ends of rows, bool ``[B, N]``, where a conditional knows such: ``absent(x)``.

    They count as observed: to draw one would make its row longer.
    """
    find: Callable[[Tensor], Tensor] | None = getattr(conditional, "absent", None)
    return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if find is None else find(x)


def _checked(answer: Callable[..., Any]) -> Callable[..., Any]:
    """A subclass's method with its answers checked; takes ``sites`` whether the method does so itself or not."""
    native = _has_sites(answer)

    @functools.wraps(answer)
    def marginals(self: MarginalConditional, x: Tensor, *rest: Any, sites: Tensor | None = None, **named: Any) -> Any:
        if sites is None or native:
            if sites is not None:
                named["sites"] = sites
            found = answer(self, x, *rest, **named)
            check_marginals(found, x, self, num_sites=None if sites is None else sites.shape[-1])
            return found
        found = answer(self, x, *rest, **named)
        check_marginals(found, x, self)
        return select_marginals(found, x, sites)

    marginals._takes_sites = native  # type: ignore[attr-defined]
    return marginals
