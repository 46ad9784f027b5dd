"""Warnings about chains that cannot reach all states, or have not yet forgotten where they began.

A scan of Gibbs updates explores every state only if the conditionals leave it a way. Two sites that determine each
other (x_1 = x_0) never move one at a time, however long the chain; the remedy is to update them as a block. Sites that
almost do move slowly, which R-hat shows.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from flexgen.answers import Answers, answers_of
from flexgen.conditional import (
    CanSample,
    CategoricalMarginals,
    Conditional,
    HasMarginals,
    MarginalConditional,
    Marginals,
    marginals_at,
    take_at,
)
from flexgen.errors import UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Space
from samplers import chains as diagnostics
from samplers.schedule import SiteQuery, draws_by_marginals

__all__ = ["MixingWarning", "ReducibilityWatch", "ReducibleWarning", "warn_if_stuck", "warn_if_unmixed"]

# The first sweeps of the warm-up are watched; fewer visits than this say nothing.
MAX_SWEEPS = 20
MIN_VISITS = 10
# A chain that stands still for this many sweeps is worth a word.
MIN_STILL_SWEEPS = 100
# R-hat from which chains have not mixed; and the rate at which independent draws may pass it, over all sites of a run.
LARGEST_RHAT = 1.1
FALSE_ALARM = 1e-6
# Numbers that the check of a run looks at: of more chains and draws, evenly chosen ones.
_LOOKED_AT = 1 << 21
# R-hat of few draws calls chains unmixed that are only autocorrelated.
_LEAST_DRAWS = 40


class ReducibleWarning(UserWarning):
    """Chains that seem unable to reach all states: deterministic conditionals, or a chain that never moved."""


class MixingWarning(UserWarning):
    """Chains whose draws differ from each other, or whose late draws differ from their early ones."""


class ReducibilityWatch:
    """Notes how often each chain visited each site, and whether it ever had a choice there.

    Args:
        space: of the sites; a site with one category needs no choice.
        free: bool ``[N]`` or ``[B, N]``.
        num_rows: B.
    """

    def __init__(self, space: Space, free: Tensor, num_rows: int) -> None:
        single = torch.tensor([site.num_categories == 1 for site in space.sites], device=free.device)
        self.has_choice = single.expand(num_rows, -1).clone()  # [B, N]
        self.num_visits = torch.zeros(num_rows, space.num_sites, dtype=torch.int32, device=free.device)  # [B, N]

    def note(self, marginals: Marginals, query: SiteQuery) -> None:
        if not isinstance(marginals, CategoricalMarginals):
            return
        log_probs = marginals.log_probs  # [B, N, K], or [B, 1, K] of the query's site alone
        at = log_probs[:, 0] if log_probs.shape[1] == 1 else take_at(log_probs, query.sites)[:, 0]
        has_choice = at.amax(-1) < 0  # [B]
        if isinstance(query.site, int):
            self.num_visits[:, query.site] += 1
            self.has_choice[:, query.site] |= has_choice
        else:
            rows = torch.arange(len(self.has_choice), device=query.device)
            is_target = query.target[rows, query.site]  # [B]
            self.num_visits[rows, query.site] += is_target
            self.has_choice[rows, query.site] |= is_target & has_choice

    def stuck(self) -> Tensor:
        """Bool ``[B, N]``: places that were deterministic given the rest at every one of enough visits."""
        return ~self.has_choice & (self.num_visits >= MIN_VISITS)


def watched(conditional: Conditional, watch: ReducibilityWatch | None) -> Conditional:
    """The conditional, with `watch` looking on; it draws the same numbers."""
    if watch is None or not isinstance(conditional, HasMarginals):
        return conditional
    return (
        _WatchedMarginals(conditional, watch)
        if draws_by_marginals(conditional)
        else _WatchedSampler(conditional, watch)
    )


class _Watched:
    def __init__(self, conditional: HasMarginals, watch: ReducibilityWatch) -> None:
        self._conditional = conditional
        self._watch = watch

    @property
    def space(self) -> Space:
        return self._conditional.space

    @property
    def answers(self) -> Answers:
        return answers_of(self._conditional)

    def _marginals(self, x: Tensor, query: Query, sites: Tensor | None) -> Marginals:
        if sites is None:
            return self._conditional.marginals(x, query)
        return marginals_at(self._conditional, x, query, sites)


class _WatchedMarginals(_Watched, MarginalConditional):
    """Notes marginals as they pass."""

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> Marginals:
        marginals = self._marginals(x, query, sites)
        if isinstance(query, SiteQuery):
            self._watch.note(marginals, query)
        return marginals


class _WatchedSampler(_Watched):
    """Asks for the marginals of a one-site query besides drawing its answer, where they can be had."""

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> Marginals:
        return self._marginals(x, query, sites)

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        if isinstance(query, SiteQuery):
            with contextlib.suppress(UnsupportedQueryError):
                self._watch.note(self._marginals(x, query, query.sites), query)
        if not isinstance(self._conditional, CanSample):
            raise UnsupportedQueryError(
                "conditional", f"{type(self._conditional).__name__} cannot draw samples", "Pass one that has sample()."
            )
        return self._conditional.sample(x, query, generator=generator)


def warn_if_stuck(
    watches: Iterable[ReducibilityWatch], moved: Tensor, free: Tensor, num_sweeps: int, names: Sequence[str]
) -> bool:
    """Warns about sites without a choice, or else about chains that never moved; returns whether it did.

    Args:
        moved: bool ``[B]``, chains whose state ever changed from one sweep to the next.
        free: bool ``[N]`` or ``[B, N]``.
        num_sweeps: how many sweeps the chains had for it; below `MIN_STILL_SWEEPS` standing still says nothing.
    """
    stuck = torch.cat([watch.stuck() for watch in watches])  # [B, N]
    if bool(stuck.any()):
        sites = ", ".join(repr(names[i]) for i in stuck.any(0).nonzero().flatten().tolist()[:5])
        warnings.warn(
            "The conditional was deterministic (probability exactly 1) at every watched visit of "
            f"{int(stuck.any(1).sum())} of {len(stuck)} chains to the site(s) {sites}. Sites that determine each other "
            "never move one at a time: update them together with scans.blocked, or remove one of them.",
            ReducibleWarning,
            stacklevel=3,
        )
        return True
    still = ~moved & free.expand(len(moved), -1).any(1)
    if num_sweeps >= MIN_STILL_SWEEPS and bool(still.any()):
        warnings.warn(
            f"{int(still.sum())} of {len(still)} chains never moved in {num_sweeps} sweeps. The conditional may be "
            "deterministic, or leave these states only very rarely; their draws say nothing about the distribution.",
            ReducibleWarning,
            stacklevel=3,
        )
        return True
    return False


def warn_if_unmixed(draws: Tensor, names: Sequence[str]) -> None:
    """Warns about sites whose R-hat says that the chains have not mixed.

    That is above `LARGEST_RHAT`, and above what independent draws of as many chains would pass at a rate of
    `FALSE_ALARM`: between chains of n draws the ratio of the mean squares has Fisher's F distribution.

    Args:
        draws: ``[S, B, N, *site]``; of fewer than 40 draws nothing is said.
        names: of the sites.
    """
    if len(draws) < _LEAST_DRAWS or not draws.numel():
        return
    from scipy.special import fdtri  # the quantiles of Fisher's F; slow to import

    # Chains first: all of them tell little more than some, and the draws are what R-hat compares.
    each = draws[0, 0].numel()
    num_chains = min(draws.shape[1], max(4, _LOOKED_AT // (each * len(draws))))
    chains = draws[:, torch.linspace(0, draws.shape[1] - 1, num_chains).long()]
    num_draws = min(len(draws), max(100, _LOOKED_AT // (each * num_chains)))
    chains = chains[torch.linspace(0, len(draws) - 1, num_draws).long()].flatten(2).double()  # [S, B, n]
    half = num_draws // 2
    bound = float(fdtri(2 * num_chains - 1, 2 * num_chains * (half - 1), 1.0 - FALSE_ALARM / each))
    threshold = max(LARGEST_RHAT, ((half - 1 + bound) / half) ** 0.5)
    plain = diagnostics.plain_rhat(chains)  # cheap: R-hat proper is for the sites that this one finds
    suspects = (plain > threshold).nonzero().flatten()
    found = diagnostics.rhat(chains[..., suspects]) if len(suspects) else plain[:0]
    suspects, found = suspects[found > threshold], found[found > threshold]
    if not len(suspects):
        return
    per_site = each // draws.shape[2]
    worst: dict[str, float] = {}
    for i in found.argsort(descending=True).tolist():
        worst.setdefault(names[int(suspects[i]) // per_site], float(found[i]))
    told = ", ".join(f"{value:.2f} at {name!r}" for name, value in itertools.islice(worst.items(), 5))
    more = f" and {len(worst) - 5} more" if len(worst) > 5 else ""
    warnings.warn(
        f"The chains have not mixed: R-hat is {told}{more} (of {len(names)} site(s); it should be below 1.01). Run "
        "longer, with more warm-up, or update sites that depend on each other together: scans.blocked([[0, 1], [2]]), "
        "or of a TableModel scan=model.scan().",
        MixingWarning,
        stacklevel=3,
    )
