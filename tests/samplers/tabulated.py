"""Conditionals small enough to enumerate, and a test of draws against an exact law."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from flexgen import rng
from flexgen.conditional import CategoricalMarginals, HasLogProb, HasMarginals, MarginalConditional
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Space
from samplers.schedule import Factorized, Step

# Probability with which a correct sampler fails a statistical test, for a seed drawn at random.
FALSE_ALARM = 1e-6


class TabulatedMarginals(MarginalConditional):
    """Binary marginals with an entry of their own for every query: as incompatible as can be."""

    def __init__(self, num_sites: int, *, seed: int = 0, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = scale * torch.randn(3**num_sites, num_sites, generator=generator, dtype=torch.float64)
        self.num_sites = num_sites
        self.num_evaluations = 0

    @property
    def space(self) -> Space:
        return Space.binary(self.num_sites)

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        self.num_evaluations += 1
        code = torch.where(query.observed, x.long() + 1, 0)  # [B, N]: 0 unobserved, 1 + value observed
        row = (code * 3 ** torch.arange(self.num_sites)).sum(-1)
        logits = self.logits[row]  # [B, N]
        return CategoricalMarginals(torch.stack([torch.zeros_like(logits), logits], -1).log_softmax(-1))

    def tables(self) -> list[Tensor]:
        """The complete conditionals, one table a site."""
        states = self.space.states()
        tables = []
        for site in range(self.num_sites):
            log_probs = self.marginals(states, Query.complete(site, num_sites=self.num_sites)).log_prob(states)
            tables.append(log_probs[:, site].exp().view((2,) * self.num_sites))
        return tables


class GaussianSites:
    """Complete conditionals of the normal law with mean 0 and the given precision matrix."""

    def __init__(self, precision: Tensor) -> None:
        self.precision = precision
        self.space = Space.real(len(precision))

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        diagonal = self.precision.diagonal()
        mean = x - (x @ self.precision) / diagonal
        draw = mean + diagonal.rsqrt() * rng.normal(x.shape, generator=generator, dtype=torch.float64)
        return torch.where(query.target, draw, x)


def markov_chain_joint(sizes: Sequence[int], *, seed: int = 0) -> Tensor:
    """A positive joint in which every site depends on its two neighbours only, ``[V_0, .., V_{N-1}]``."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(tuple(sizes), dtype=torch.float64)
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        factor = (1.5 * torch.randn(a, b, generator=generator, dtype=torch.float64)).exp()
        weights = weights * factor.view(*(1,) * i, a, b, *(1,) * (len(sizes) - i - 2))
    return weights / weights.sum()


def step_kernel(conditional: HasLogProb | HasMarginals, step: Step) -> Tensor:
    """The exact transition matrix ``[S, S]`` of one step of a schedule, a query of shape ``[N]`` or ``[1, N]``."""
    states = conditional.space.states()
    query = step.query if isinstance(step, Factorized) else step
    target, observed = query.target.view(-1), query.observed.view(-1)
    kernel = torch.zeros(len(states), len(states), dtype=torch.float64)
    for i, state in enumerate(states):
        reached = ((states == state) | target).all(1)  # all places outside the target stay
        there = states[reached]
        if isinstance(step, Factorized):
            assert isinstance(conditional, HasMarginals)
            log_probs = conditional.marginals(there, Query(target, observed)).log_prob(there)[:, target].sum(-1)
        else:
            assert isinstance(conditional, HasLogProb)
            log_probs = conditional.log_prob(there, Query(target, observed))
        kernel[i, reached] = log_probs.exp()
    return kernel


def p_value(draws: Tensor, law: Tensor) -> float:
    """Pearson's chi-square test of independent draws ``[n, N]`` against an exact law, ``[V_0, ..]`` or ``[S]``.

    States expected fewer than five times are pooled.
    """
    from scipy.stats import chi2  # slow to import, and child processes import this module

    space = Space.binary(draws.shape[1]) if law.ndim == 1 and draws.shape[1] > 1 else Space.categorical(law.shape)
    strides = torch.tensor([int(torch.tensor(space.num_categories[i + 1 :]).prod()) for i in range(space.num_sites)])
    counts = torch.bincount((draws.long() * strides).sum(-1), minlength=space.num_states).double()
    expected = law.flatten() * len(draws)
    impossible = expected == 0
    if bool((counts[impossible] > 0).any()):
        return 0.0
    rare = (expected < 5) & ~impossible
    pairs = [(counts[~rare & ~impossible], expected[~rare & ~impossible])]
    if bool(rare.any()):
        pairs.append((counts[rare].sum()[None], expected[rare].sum()[None]))
    observed, mean = (torch.cat(column) for column in zip(*pairs, strict=True))
    statistic = float(((observed - mean) ** 2 / mean).sum())
    return float(chi2.sf(statistic, len(mean) - 1))
