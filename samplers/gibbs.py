"""Gibbs sampling: redraw the free sites one after the other (or block by block), each given all others."""

from __future__ import annotations

from torch import Tensor

from flexgen.rng import Streams
from samplers.driver import ChainSampler
from samplers.reducibility import ReducibilityWatch, watched
from samplers.scans import Sweep
from samplers.schedule import run

__all__ = ["GibbsSampler"]


class GibbsSampler(ChainSampler):
    """Gibbs sampler over many chains in one batch; see `run` for clamping, warm-up, observers and resuming.

    Guarantee: if the conditionals are those of one joint, that joint is invariant under every scan, and with clamped
    sites so is the joint given their values. The chains converge to it if they can reach every state.

    Caveats: learned conditionals are in general incompatible. The chain (a *pseudo-Gibbs* sampler, or dependency
    network) then converges to a distribution that depends on the scan and need not have any of the conditionals
    (``flexgen.exact.kernels.stationary`` computes it for tables). `MetropolisSampler` corrects towards a given energy.

    Cost: one evaluation of all chains for every free site and sweep.

    Sources: Geman & Geman (1984); for incompatible conditionals Heckerman et al. (2000), *Dependency networks*.

    >>> GibbsSampler(model.conditional(), scan=scans.random()).run(chains=256, draws=1000, warmup=500)  # doctest: +SKIP
    """

    def _sweep(self, x: Tensor, sweep: Sweep, streams: Streams, watch: ReducibilityWatch | None) -> Tensor:
        return run(watched(self.conditional, watch), x, sweep, generator=streams)
