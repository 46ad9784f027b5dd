"""The random scan as a repair: the conditionals of its distribution are never worse than the network's, state by state.

Updating a site chosen at random leaves π(x) = 1/N sum_i π(x_{-i}) q_i(x_i | x_{-i}). Divide by π(x): the ratios
q_i / π_i, π_i = π(x_i | x_{-i}), average to one at every state. Their geometric mean is then at most one:

    sum_i log π_i(x_i | x_{-i})  >=  sum_i log q_i(x_i | x_{-i})    at every state x.

So no data whatever can favour the network's conditionals by pseudo-likelihood (Takabatake & Akaho, arXiv 2604.01117,
state the mean over any distribution). No fixed order of the scan has such a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen.checks import kind_of
from flexgen.compatibility.exact.stationary import stationary
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, JointTable

__all__ = ["RandomScan", "random_scan"]


@dataclass(frozen=True, eq=False)
class RandomScan:
    """The distribution of the random scan, and what it gains.

    Args:
        joint: the distribution π.
        gains: float64 ``[V_0, .., V_{N-1}]``, sum_i log π_i - log q_i at each state, nats, never negative; NaN at
            states that π rules out.
    """

    joint: JointTable
    gains: Tensor

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.joint.shape))
        gain = f"under it its conditionals gain {self.gain():.6g} nats a row"
        return f"distribution of the random scan over {shape} states; {gain}"

    __repr__ = __str__

    def gain(self, distribution: Tensor | None = None) -> float:
        """sum_i E_p KL(p_i || q_i) - sum_i E_p KL(p_i || π_i), nats a row, under data of a distribution p; default: π
        itself.

        Under π it is all of the network's excess risk.

        Raises:
            FlexgenError: a distribution of another shape, or with mass where π has none.
        """
        p = self.joint.p if distribution is None else torch.as_tensor(distribution).to(torch.float64)
        if p.shape != self.gains.shape:
            raise FlexgenError("distribution", f"has shape {tuple(p.shape)}", f"Pass {tuple(self.gains.shape)}.")
        if bool((self.gains.isnan() & (p > 0)).any()):
            raise FlexgenError(
                "distribution", "has mass on states that the random scan never visits", "Leave them out."
            )
        return float(torch.where(p > 0, p * self.gains, 0.0).sum())


def random_scan(tables: ConditionalTables) -> RandomScan:
    """The distribution of the random scan over finite sites, with its gain over the conditionals at every state.

    Args:
        tables: all complete conditionals, of at most 2^16 states: a small model, or a block of sites of a large one
            (`exact_blocks`).

    Raises:
        FlexgenError: other conditionals, or what `stationary` raises.

    Of a large network one has the distribution by its draws: ``GibbsSampler(network, scan=scans.random())``.

    What stays: nothing is trained; draws cost what any scan's do. What changes: the distribution, and with it every
        conditional.
    """
    if not isinstance(tables, ConditionalTables):
        raise FlexgenError(
            "tables",
            f"is {kind_of(tables)}",
            "Pass fg.exact.ConditionalTables, all complete conditionals: of other families the gain has no such bound.",
        )
    distribution = stationary(tables, "random")
    joint = JointTable(distribution)
    gains = torch.zeros_like(distribution)
    for site, table in enumerate(tables.tables):
        rest = distribution.sum(site, keepdim=True)
        gains = gains + (distribution.log() - rest.log() - table.log())
    # Rounding may leave a gain of zero a little below it.
    return RandomScan(joint, torch.where(distribution > 0, gains.clamp_min(0.0), torch.nan))
