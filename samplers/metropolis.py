"""Metropolis-Hastings: conditionals propose, an energy decides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flexgen import rng
from flexgen.answers import Answers, answers_of
from flexgen.checks import callable_
from flexgen.conditional import CanSample, Conditional, HasLogProb, HasMarginals, marginals_at, take_at
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Randomness, Streams
from flexgen.space import Space
from samplers.driver import ChainSampler
from samplers.kernels import Info, KernelState, Ratio, ScanKernel
from samplers.scans import Scan, systematic
from samplers.schedule import SiteQuery, run

__all__ = ["Energy", "MetropolisKernel", "MetropolisMove", "MetropolisSampler"]

Energy = Callable[[Tensor], Tensor]
"""-log of an unnormalised probability: ``[B, N, *site]`` to ``[B]``; +inf where it vanishes."""


class MetropolisSampler(ChainSampler):
    """Metropolis-Hastings over many chains, with a conditional's draws as the proposals.

    Each step of the scan proposes x'_P from q(x_P | x_C) and accepts with probability

        min(1, exp(E(x) - E(x')) q(x_P | x_C) / q(x'_P | x_C)),    C: all sites outside P.

    Guarantee: exp(-E) is invariant, whatever the conditionals, and each step is reversible; incompatible conditionals
    cost acceptance, not correctness. With the complete conditionals of exp(-E) itself everything is accepted and the
    sampler is the Gibbs sampler. Ratios are float64.

    Caveats: where q vanishes and exp(-E) does not, the chain may be unable to go. Draws of a correction against an
    any-order likelihood (``samplers.any_order.energy``) cost as many evaluations as the model has sites, per step.

    Cost: per step one evaluation of the conditional if it has marginals (else three) and one of the energy.

    Args:
        conditional: proposes; needs `sample` and `log_prob`, or marginals.
        energy: ``[B, N]`` to ``[B]``, the negative log of the unnormalised target.
        scan: one-site or blocked; the result's ``statistics["acceptance_rate"]`` is ``[N]``, by site.

    Source: Hastings (1970).
    """

    def __init__(self, conditional: Conditional, energy: Energy, *, scan: Scan) -> None:
        super().__init__(MetropolisKernel(conditional, energy, scan=scan))
        self.conditional = conditional
        self.energy = energy
        self.scan = scan


class MetropolisMove:
    """One Metropolis-Hastings step in the shape of a conditional, so that `run` can walk it.

    Unlike a conditional it reads the target's present values: ``sample(x, query)`` is a move from x, and what it
    leaves invariant is exp(-E), not p(x_P | x_C) drawn afresh.

    Args:
        conditional: proposes.
        energy: ``[B, N]`` to ``[B]``.
    """

    def __init__(self, conditional: Conditional, energy: Energy) -> None:
        self.conditional = conditional
        self.energy = energy
        num_sites = conditional.space.num_sites
        self.num_accepted = torch.zeros(num_sites, dtype=torch.int64)
        self.num_proposed = torch.zeros(num_sites, dtype=torch.int64)
        self._known: tuple[Tensor, Tensor] | None = None

    @property
    def space(self) -> Space:
        return self.conditional.space

    @property
    def answers(self) -> Answers:
        """Those of the conditional that proposes."""
        return answers_of(self.conditional)

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        # Drawn first: the proposals of other rows may need more numbers than this row's.
        u = rng.uniform((len(x),), generator=generator, dtype=torch.float64)
        energy = self._energy_of(x)
        proposal, proposed_energy, log_ratio = self.propose(x, energy, query, generator=generator)
        # u < ratio in logs; log1p(-u) is finite, since u < 1. A NaN (both energies infinite) is refused.
        accepted = torch.log1p(-u) < log_ratio  # [B]
        self._count(accepted, query)
        x = torch.where(accepted.view(-1, *(1,) * (x.ndim - 1)), proposal, x)
        self._known = (x, torch.where(accepted, proposed_energy, energy))
        return x

    def propose(
        self, x: Tensor, energy: Tensor, query: Query, *, generator: Randomness
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A proposal, its energy, and the log of the Hastings ratio, ``[B]`` float64."""
        proposal, log_q_back, log_q_forth = _propose(self.conditional, x, query, generator)
        proposed_energy = self._evaluate(proposal)
        return proposal, proposed_energy, energy - proposed_energy + log_q_back - log_q_forth

    def _energy_of(self, x: Tensor) -> Tensor:
        """The energy of the present state, which the last step has computed if it ended in this very tensor."""
        if self._known is not None and self._known[0] is x:
            return self._known[1]
        return self._evaluate(x)

    def _evaluate(self, x: Tensor) -> Tensor:
        energy = self.energy(x).to(torch.float64)
        if energy.shape != (len(x),):
            raise FlexgenError(
                "energy", f"returned shape {tuple(energy.shape)}", f"Return one number a row, [{len(x)}]."
            )
        return energy

    def _count(self, accepted: Tensor, query: Query) -> None:
        target = query.target.expand(len(accepted), -1)
        self.num_proposed += target.sum(0).cpu()
        self.num_accepted += (target & accepted[:, None]).sum(0).cpu()


class MetropolisKernel(ScanKernel):
    """One sweep of Metropolis-Hastings updates; see `MetropolisSampler`. Info: ``acceptance_rate``, ``[N]``.

    Guarantee: exp(-E) is invariant, whatever the conditionals.

    Args:
        conditional: proposes; needs `sample` and `log_prob`, or marginals.
        energy: ``[B, N]`` to ``[B]``, the negative log of the unnormalised target.
        scan: one-site or blocked; default: systematic.
    """

    def __init__(self, conditional: Conditional, energy: Energy, *, scan: Scan | None = None) -> None:
        super().__init__(conditional, scan=systematic() if scan is None else scan)
        callable_("energy", energy, "Pass a function from [B, N] to [B].")
        self.energy = energy

    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
        move = MetropolisMove(self.conditional, self.energy)
        x = run(move, state.x, self.sweep(state), generator=streams.fold_in("metropolis"))
        return state.moved(x), {"acceptance_rate": Ratio(move.num_accepted, move.num_proposed)}


def _propose(conditional: Conditional, x: Tensor, query: Query, generator: Randomness) -> tuple[Tensor, Tensor, Tensor]:
    """A proposal with log q of going back and of going forth, ``[B]`` float64."""
    if isinstance(query, SiteQuery) and isinstance(conditional, HasMarginals):
        marginals = marginals_at(conditional, x, query, query.sites)
        draw = marginals.sample(generator=generator).to(x.dtype)  # [B, 1, *site]
        target = query.target.view(*query.target.shape, *(1,) * (x.ndim - 2))
        proposal = torch.where(target, draw, x)

        def log_q(value: Tensor) -> Tensor:
            log_probs = marginals.log_prob(take_at(value, query.sites)).double()[:, 0]
            return log_probs if query.asks is None else torch.where(query.asks, log_probs, 0.0)

        return proposal, log_q(x), log_q(proposal)
    if not isinstance(conditional, CanSample) or not isinstance(conditional, HasLogProb):
        raise UnsupportedQueryError(
            "conditional",
            f"{type(conditional).__name__} has no density, which the acceptance ratio needs",
            "Pass a conditional with sample() and log_prob().",
        )
    proposal = conditional.sample(x, query, generator=generator)
    return proposal, conditional.log_prob(x, query).double(), conditional.log_prob(proposal, query).double()
