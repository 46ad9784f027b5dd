"""Tempering: conditionals at another inverse temperature, and replicas that exchange states."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from flexgen import rng
from flexgen.answers import Answers, answers_of
from flexgen.checks import as_numbers, callable_, entries, instance, kind_of, number
from flexgen.conditional import (
    BernoulliMarginals,
    CategoricalMarginals,
    Conditional,
    HasMarginals,
    MarginalConditional,
    absent_in,
    marginals_at,
)
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.space import Space
from samplers.driver import ChainSampler
from samplers.kernels import Info, KernelState, Ratio, ScanKernel, replicated
from samplers.metropolis import Energy, MetropolisMove
from samplers.scans import Scan
from samplers.schedule import run

__all__ = ["ParallelTempering", "TemperedConditional", "TemperingKernel"]


class TemperedConditional(MarginalConditional):
    """Categorical marginals raised to the power beta and normalised again.

    Guarantee: for the complete conditionals of a joint p these are the complete conditionals of p^beta / Z, so a Gibbs
    sampler over them samples p^beta / Z.

    Caveat: for other queries they are *not* the marginals of p^beta (the power of a sum is no sum of powers), and a
    decode with them samples another distribution. beta > 1 sharpens, beta < 1 flattens, 0 is uniform over what is
    possible.

    Args:
        conditional: has categorical marginals.
        beta: inverse temperature, a number or ``[B]``, one a row.
    """

    def __init__(self, conditional: HasMarginals, beta: float | Tensor) -> None:
        instance("conditional", conditional, HasMarginals, "Pass one with categorical marginals.")
        given = as_numbers("beta", beta)
        if given.ndim > 1 or not bool(((given >= 0) & given.isfinite()).all()):
            raise FlexgenError("beta", f"is {kind_of(beta)}", "An inverse temperature is not negative.")
        self.conditional = conditional
        self.beta = beta if isinstance(beta, int | float | Tensor) else given

    @property
    def space(self) -> Space:
        return self.conditional.space

    def absent(self, x: Tensor) -> Tensor:
        """Where rows of different lengths have ended, as the conditional says."""
        return absent_in(self.conditional, x)

    @property
    def answers(self) -> Answers:
        return answers_of(self.conditional)

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> CategoricalMarginals:
        if sites is None:
            marginals = self.conditional.marginals(x, query)
        else:
            marginals = marginals_at(self.conditional, x, query, sites)
        if not isinstance(marginals, CategoricalMarginals):
            raise UnsupportedQueryError(
                "conditional", f"gives {type(marginals).__name__}", "Only categorical marginals can be tempered."
            )
        if isinstance(marginals, BernoulliMarginals):
            logits = marginals.logits  # [B, N]
            power = self.beta if not isinstance(self.beta, Tensor) else self.beta.to(logits.dtype)[:, None]
            return BernoulliMarginals(torch.where(logits.isinf(), logits, logits * power))  # the impossible stays so
        log_probs = marginals.log_probs  # [B, N, K]
        beta = self.beta if not isinstance(self.beta, Tensor) else self.beta.to(log_probs.dtype)[:, None, None]
        impossible = log_probs == -torch.inf  # stays so, also at beta = 0
        return CategoricalMarginals(
            (log_probs.masked_fill(impossible, 0.0) * beta).masked_fill(impossible, -torch.inf).log_softmax(-1)
        )


class TemperingKernel(ScanKernel):
    """A sweep of every replica at its own temperature, then a swap; see `ParallelTempering`.

    Each chain has R rows of x, one a temperature. Info: ``swap_rate``, ``[R - 1]``, and of a corrected kernel
    ``acceptance_rate``, ``[N]``, over all temperatures.

    Args:
        conditional: has categorical marginals.
        energy: ``[B, N]`` to ``[B]``, -log p up to a constant.
        betas: inverse temperatures, falling, the first 1.
        scan: as for the Gibbs sampler.
        corrected: make every update a Metropolis-Hastings step against the energy.
    """

    def __init__(
        self, conditional: Conditional, energy: Energy, *, betas: Sequence[float], scan: Scan, corrected: bool = False
    ) -> None:
        super().__init__(conditional, scan=scan)
        fix = "Give falling inverse temperatures that begin with 1.0."
        values = [number("betas", beta, 0.0, fix=fix) for beta in entries("betas", betas, fix)]
        callable_("energy", energy, "Pass a function from [B, N] to [B].")
        if not values or values[0] != 1.0 or any(a <= b for a, b in itertools.pairwise(values)) or values[-1] < 0:
            raise FlexgenError("betas", f"are {values}", fix)
        if not isinstance(conditional, HasMarginals):
            raise UnsupportedQueryError(
                "conditional",
                f"{type(conditional).__name__} has no marginals to temper",
                "Pass one that has marginals().",
            )
        self.energy = energy
        self.betas = values
        self.corrected = corrected
        self.num_replicas = len(values)

    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
        x = state.x  # [B * R, N]
        betas = torch.tensor(self.betas, dtype=torch.float64, device=x.device)
        row_betas = betas.repeat(len(streams))  # [B * R]
        assert isinstance(self.conditional, HasMarginals)
        tempered: Conditional = TemperedConditional(self.conditional, row_betas)
        move = MetropolisMove(tempered, lambda x: self.energy(x).double() * row_betas)
        sweep_streams = replicated(streams.fold_in("sweep"), self.num_replicas)
        x = run(move if self.corrected else tempered, x, self.sweep(state), generator=sweep_streams)
        x, swap_rate = self._swap(x, betas, streams.fold_in("swap"))
        info = {"swap_rate": swap_rate}
        if self.corrected:
            info["acceptance_rate"] = Ratio(move.num_accepted, move.num_proposed)
        return state.moved(x), info

    def _swap(self, x: Tensor, betas: Tensor, streams: Streams) -> tuple[Tensor, Ratio]:
        replicas = self.num_replicas
        energy = self.energy(x).double().view(-1, replicas)  # [B, R]
        u = rng.uniform((len(streams), replicas), generator=streams, dtype=torch.float64)  # the last is the coin
        log_ratio = (betas[:-1] - betas[1:]) * (energy[:, :-1] - energy[:, 1:])  # [B, R - 1]
        parity = (u[:, -1:] < 0.5).long()  # [B, 1]: pairs (0,1), (2,3), .. or (1,2), (3,4), ..
        tried = torch.arange(replicas - 1, device=x.device) % 2 == parity
        swapped = tried & (torch.log1p(-u[:, :-1]) < log_ratio)
        source = torch.arange(replicas, device=x.device).repeat(len(energy), 1)  # [B, R]
        source[:, :-1] += swapped.long()
        source[:, 1:] -= swapped.long()
        rows = torch.arange(len(energy), device=x.device)[:, None]
        swapped_x = x.view(-1, replicas, *x.shape[1:])[rows, source].view(x.shape)
        return swapped_x, Ratio(swapped.sum(0).cpu(), tried.sum(0).cpu())


class ParallelTempering(ChainSampler):
    """Each chain carries one replica a temperature; neighbours exchange states after every sweep.

    Replica r makes Gibbs sweeps with the conditionals at beta_r. Then, in each chain, either the even or the odd pairs
    of neighbouring temperatures (a coin says which) swap states with probability

        min(1, exp((beta_r - beta_s) (E(x_r) - E(x_s)))).

    Draws are those of the first replica, at beta = 1.

    Guarantee: the product of exp(-beta_r E) / Z_r is invariant if the conditional's complete conditionals are those of
    exp(-E), or, with ``corrected=True``, for any conditional: every update is then a Metropolis-Hastings step.

    Caveat: without the correction and with a conditional that is not the energy's, swaps and sweeps pull towards
    different laws.

    Cost: replicas times the evaluations of a Gibbs sampler, in one batch, and one energy a sweep.

    Args:
        conditional: has categorical marginals.
        energy: ``[B, N]`` to ``[B]``, -log p up to a constant.
        betas: inverse temperatures, falling, the first 1.
        scan: as for the Gibbs sampler.
        corrected: make every update a Metropolis-Hastings step against the energy.

    The result's ``statistics["swap_rate"]`` is ``[R - 1]``, by pair of neighbours.

    Source: Geyer (1991); Earl & Deem (2005).
    """

    def __init__(
        self, conditional: Conditional, energy: Energy, *, betas: Sequence[float], scan: Scan, corrected: bool = False
    ) -> None:
        kernel = TemperingKernel(conditional, energy, betas=betas, scan=scan, corrected=corrected)
        super().__init__(kernel)
        self.conditional = conditional
        self.energy = energy
        self.betas = kernel.betas
        self.scan = scan
        self.corrected = corrected
