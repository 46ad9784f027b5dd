"""Gibbs sampling: redraw the free sites one after the other (or block by block), each given all others."""

from __future__ import annotations

from flexgen.conditional import Conditional
from flexgen.rng import Streams
from samplers.driver import ChainSampler
from samplers.kernels import Info, KernelState, ScanKernel
from samplers.reducibility import ReducibilityWatch, watched
from samplers.scans import Scan
from samplers.schedule import run

__all__ = ["GibbsKernel", "GibbsSampler"]


class GibbsKernel(ScanKernel):
    """One sweep of Gibbs updates; of blocks, where the scan is `scans.blocked`.

    Guarantee: if the conditionals are those of one joint, that joint is invariant under every scan, and with clamped
    sites so is the joint given their values.

    Args:
        conditional: answers the queries.
        scan: in which order the free sites are visited.
    """

    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
        return state.moved(run(self.conditional, state.x, self.sweep(state), generator=streams.fold_in("gibbs"))), {}

    def watched(self, watch: ReducibilityWatch) -> GibbsKernel:
        """The same kernel, whose one-site answers `watch` sees; it draws the same numbers."""
        return GibbsKernel(watched(self.conditional, watch), scan=self.scan)


class GibbsSampler(ChainSampler):
    """Gibbs sampler over many chains in one batch; see `run` for clamping, warm-up, observers and resuming.

    Guarantee: if the conditionals are those of one joint, that joint is invariant under every scan, and with clamped
    sites so is the joint given their values. The chains converge to it if they can reach every state.

    Caveats: learned conditionals are in general incompatible. The chain (a *pseudo-Gibbs* sampler, or dependency
    network) then converges to a distribution that depends on the scan and need not have any of the conditionals
    (``flexgen.exact.kernels.stationary`` computes it for tables). `MetropolisSampler` corrects towards a given energy.

    Cost: one evaluation of all chains for every free site and sweep.

    Args:
        conditional: answers the queries.
        scan: in which order the free sites are visited.

    Sources: Geman & Geman (1984); for incompatible conditionals Heckerman et al. (2000), *Dependency networks*.

    >>> GibbsSampler(model.conditional(), scan=scans.random()).run(chains=256, draws=1000, warmup=500)  # doctest: +SKIP
    """

    def __init__(self, conditional: Conditional, *, scan: Scan) -> None:
        super().__init__(GibbsKernel(conditional, scan=scan))
        self.conditional = conditional
        self.scan = scan
