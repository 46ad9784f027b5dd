"""Things that answer queries.

A conditional declares its `Space` and whichever capabilities it has: `CanSample`, `HasLogProb`, `HasMarginals`. They
are separate protocols, because a diffusion model samples without a density and a masked network has marginals only.

Shared contract, tested for every conditional of the package:

* ``x`` is ``[B, N, *site]``; what stands at unobserved places is never read.
* `sample` fills the target; observed sites come back bit-identical, and so does every other place.
* `log_prob` is in nats, ``[B]``, joint over the target; an empty target has log-probability 0.
* Randomness is the keyword argument ``generator``; the global generator of torch is never touched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from flexgen import rng
from flexgen.checks import kind_of
from flexgen.errors import FlexgenError, SpaceError, UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = [
    "CanSample",
    "CategoricalMarginals",
    "Conditional",
    "HasLogProb",
    "HasMarginals",
    "MarginalConditional",
    "Marginals",
    "absent_in",
    "check_marginals",
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
    """The one-site answers p(x_i | x_C) at every site of a batch of rows.

    Entries at observed sites are meaningless and finite.
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
        """p(x_i | x_C) for every target i, each on its own."""
        ...


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
        codes = x.nan_to_num(0.0).long().clamp(0, self.log_probs.shape[-1] - 1)  # [B, N]
        return self.log_probs.gather(-1, codes[..., None]).squeeze(-1)

    def sample(self, *, generator: Randomness) -> Tensor:
        return rng.categorical(self.log_probs, generator=generator)

    def mean(self) -> Tensor:
        codes = torch.arange(self.log_probs.shape[-1], device=self.log_probs.device, dtype=self.log_probs.dtype)
        return self.log_probs.exp() @ codes

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)


def check_marginals(marginals: Any, x: Tensor, owner: object) -> None:
    """Raises unless `owner` answered a question about `x` with marginals of its rows and sites; costs half a µs.

    Raises:
        FlexgenError: names the owner's class, what it returned and what to return.
    """
    if isinstance(marginals, CategoricalMarginals):
        found = marginals.log_probs.shape
        if found[:2] == x.shape[:2]:
            return
        wrong = f"have shape {tuple(found)}, but x has {tuple(x.shape)}"
        fix = f"Return log-probabilities [B, N, K] = [{x.shape[0]}, {x.shape[1]}, K]."
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
            query: what is asked.
            order: int ``[N]`` or ``[B, N]``, the permutation of sites in which the chain rule visits the targets.
            factorized: sum the marginals of all targets given C instead, as if they were independent. One evaluation,
                and the log-probability of another model.
        """
        query = query.expand(len(x))
        if factorized:
            if order is not None:
                raise UnsupportedQueryError(
                    "order", "is given with factorized=True", "A product has no order: drop one."
                )
            log_probs = self.marginals(x, query).log_prob(x)
            return torch.where(query.target, log_probs, 0.0).sum(-1)
        total: Tensor | None = None
        for step in query.chain(order):
            log_probs = self.marginals(x, step).log_prob(x)  # [B, N]
            term = torch.where(step.target, log_probs, 0.0).sum(-1)
            total = term if total is None else total + term
        return x.new_zeros(len(x), dtype=torch.get_default_dtype()) if total is None else total

    def sample(self, x: Tensor, query: Query, *, generator: Randomness, order: Tensor | None = None) -> Tensor:
        """x with the target drawn by the chain rule, in the given order."""
        query = query.expand(len(x))
        for step in query.chain(order):
            draw = self.marginals(x, step).sample(generator=generator)
            x = torch.where(step.target, draw.to(x.dtype), x)
        return x.clone() if not query.target.any() else x


def absent_in(conditional: Any, x: Tensor) -> Tensor:
    """Sites behind the ends of rows, bool ``[B, N]``, where a conditional knows such: ``absent(x)``.

    They count as observed: to draw one would make its row longer.
    """
    find: Callable[[Tensor], Tensor] | None = getattr(conditional, "absent", None)
    return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if find is None else find(x)


def _checked(answer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(answer)
    def marginals(self: MarginalConditional, x: Tensor, *rest: Any, **named: Any) -> Any:
        found = answer(self, x, *rest, **named)
        check_marginals(found, x, self)
        return found

    return marginals
