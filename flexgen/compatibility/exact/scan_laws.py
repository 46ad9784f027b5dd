"""The laws that Gibbs sampling converges to, scan by scan, without Monte Carlo.

Where conditionals have a joint, every scan that updates all sites leaves it invariant. Where they have none, sampling
still converges, to the *pseudo-Gibbs* law of its scan, and scans differ (Heckerman et al., Dependency Networks, JMLR
2000). For two sites the random scan's law is the average of both orders' laws; for more it is not. For every law p

    Σ_i E_p KL(p_i || π_i)  <=  Σ_i E_p KL(p_i || q_i),        π the random scan's law, q the conditionals

(Takabatake & Akaho, arXiv 2604.01117): no unary loss of the random scan's law is worse than that of the conditionals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from flexgen.compatibility.exact.cycles import check_graph
from flexgen.compatibility.exact.family import ConditionalFamily, as_family, check_tolerance
from flexgen.compatibility.exact.gaussian import GaussianConditionals
from flexgen.compatibility.exact.gaussian_laws import GaussianScanDivergence, gaussian_scan_divergence
from flexgen.compatibility.exact.scan_chain import Scan, ScanChain
from flexgen.compatibility.exact.scan_solvers import ROUNDING, eliminated, krylov, spectral_gap
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.exact.kernels import HasBlockTables

__all__ = ["Scan", "ScanDivergence", "closed_classes", "scan_divergence", "stationary"]

_DENSE_ENTRIES = 1 << 16  # a class of up to 256 states is eliminated state by state, accurate in every entry
_ELIMINATED_ENTRIES = 1 << 21  # of a class that nothing else solves: some seconds
_ACCURATE = 1e-9  # errors of a law beyond which something better is looked for
_SAME_NATS = 1e-12


def stationary(
    tables: HasBlockTables, scan: Scan = "random", *, closed_class: int | None = None, tolerance: float = 1e-12
) -> Tensor:
    """The stationary law of a scan, float64 ``[V_0, .., V_{N-1}]``.

    Args:
        tables: `fg.exact.ConditionalTables`, a `ConditionalFamily` or a `fg.exact.JointTable`; at most 2^16 states.
        scan: ``"random"``: each step updates a site (a family: the target of one of its conditionals) chosen evenly.
            An order such as ``(0, 1, 2)`` or ``((0, 2), 1)``: the law at the end of a sweep that updates x_0, then x_1,
            then x_2. A mixture ``{(0, 1, 2): 0.5, (2, 1, 0): 0.5}``: each sweep takes an order with its probability.
            Sites of a `ConditionalFamily` with labels go by name too: ``("weather", "mood")``. Samplers' scans that
            visit a site chosen evenly, or sites or blocks in a fixed order, are understood.
        closed_class: which of several closed classes (numbered as in `closed_classes`) the chain runs in.
        tolerance: the result is checked: the total variation of πK against π must not exceed it, nor that over
            1 - |λ_2|, which is about the error of π, its square root (1e-6).

    Raises:
        FlexgenError: more than 2^16 states; a chain with several closed classes, each with its own law, where none was
            chosen; a chain that mixes too slowly; a tolerance or a scan that is none; a random scan of a family with
            two conditionals of one target.

    Classes of up to 256 states are eliminated state by state without subtractions (Grassmann, Taksar & Heyman 1985), so
    even tiny probabilities are accurate relative to their size. Larger ones are solved by GMRES on π(I - K) = 0; K is
    never formed, and each product costs O(N S). Where the chain mixes so slowly that this is no good, the joint of the
    conditionals is taken if they have one to rounding; else up to 1448 states are eliminated all the same, in seconds.
    Transient states get exactly zero.
    """
    check_tolerance(tolerance, "total variation")
    chain = ScanChain(tables, scan)
    members = chain.members(closed_class)
    size = len(members)
    if size * max(size, chain.num_states // 16) <= _DENSE_ENTRIES:
        return eliminated(chain, members, tolerance)
    if isinstance(tables, JointTable):
        return _restricted(tables.p, members)  # every scan leaves it as it is
    law, residual = krylov(chain, members, tolerance)
    gap = spectral_gap(chain, members, law)
    error = max(residual, ROUNDING) / gap
    if residual <= tolerance and error <= _ACCURATE:
        return law
    joint = _joint(tables)
    if joint is not None:
        return _restricted(joint, members)
    if size * chain.num_states <= _ELIMINATED_ENTRIES:
        return eliminated(chain, members, max(tolerance, ROUNDING * size))
    if residual <= tolerance and error <= math.sqrt(tolerance):
        return law
    raise FlexgenError(
        "tables",
        f"mix too slowly under this scan: 1 - |λ_2| is about {gap:.2g}, so the law is known to {error:.2g} in total "
        f"variation, not to {math.sqrt(tolerance):.2g}",
        "Raise the tolerance, or update sites that hang together as one block.",
    )


def closed_classes(tables: HasBlockTables, scan: Scan = "random") -> Tensor:
    """The closed classes of a scan's chain, int64 ``[V_0, .., V_{N-1}]``: 0, 1, .., and -1 at transient states.

    Each class has a stationary law of its own, and the chain ends up in one of them.
    """
    chain = ScanChain(tables, scan)
    return torch.from_numpy(chain.classes()).view(chain.shape)


@dataclass(frozen=True, eq=False)
class ScanDivergence:
    """How far the laws of two scans lie apart.

    Args:
        tv: total variation, 0 to 1: the largest difference that any event's probability makes.
        kl: KL(first || second), nats; infinite where only the first law has mass.
        kl_reverse: KL(second || first), nats.
        first, second: the laws, ``[V_0, .., V_{N-1}]``.
    """

    tv: float
    kl: float
    kl_reverse: float
    first: Tensor
    second: Tensor

    def __str__(self) -> str:
        return f"total variation {self.tv:.6g}; KL {self.kl:.6g} nats, reversed {self.kl_reverse:.6g} nats"

    __repr__ = __str__


@overload
def scan_divergence(tables: HasBlockTables, first: Scan, second: Scan) -> ScanDivergence: ...


@overload
def scan_divergence(tables: GaussianConditionals, first: Scan, second: Scan) -> GaussianScanDivergence: ...


def scan_divergence(
    tables: HasBlockTables | GaussianConditionals, first: Scan, second: Scan
) -> ScanDivergence | GaussianScanDivergence:
    """Total variation and KL divergences between the stationary laws of two scans; arguments as in `stationary`.

    Of `GaussianConditionals`: KL divergences between the normal laws of two fixed orders.
    """
    if isinstance(tables, GaussianConditionals):
        return gaussian_scan_divergence(tables, first, second)
    one, two = stationary(tables, first), stationary(tables, second)
    return ScanDivergence(0.5 * float((one - two).abs().sum()), _kl(one, two), _kl(two, one), one, two)


def _kl(p: Tensor, q: Tensor) -> float:
    """KL(p || q) in nats."""
    p, q = p[p > 0], q[p > 0]
    # p log(p/q) - p + q is non-negative term by term: no cancellation where p is near q.
    return float((torch.special.xlogy(p, p / q) - p + q).sum().clamp_min(0.0) + (1 - q.sum()).clamp_min(0.0))


def _restricted(joint: Tensor, members: np.ndarray) -> Tensor:
    """An invariant law, given that the chain is in one closed class."""
    inside = torch.zeros(joint.numel(), dtype=torch.bool)
    inside[torch.from_numpy(members)] = True
    law = torch.where(inside.view(joint.shape), joint, 0.0)
    return law / law.sum()


def _joint(tables: HasBlockTables) -> Tensor | None:
    """The joint of complete conditionals, if they have one to rounding.

    However slowly a chain mixes, relative errors of the entries of its kernel change its law by no more than 2 S times
    as much (O'Cinneide 1993). So the law of conditionals that are compatible but for 1e-12 is their joint.
    """
    if not isinstance(tables, ConditionalTables | ConditionalFamily):
        return None
    family = as_family(tables)
    found = check_graph(family, _SAME_NATS) if family.is_complete else None
    if found is None or found.joint is None or not found.covers:
        return None
    return torch.from_numpy(found.joint).view(family.shape)
