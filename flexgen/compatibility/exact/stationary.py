"""The distributions that Gibbs sampling converges to, scan by scan, without Monte Carlo.

Where conditionals have a joint, every scan that updates all sites leaves it invariant. Where they have none, sampling
still converges, to the *pseudo-Gibbs* distribution of its scan, and scans differ (Heckerman et al., Dependency
Networks, JMLR 2000). For two sites the random scan's distribution is the average of both orders' distributions; for
more it is not. For every distribution p

    Σ_i E_p KL(p_i || π_i)  <=  Σ_i E_p KL(p_i || q_i),        π the random scan's distribution, q the conditionals

(Takabatake & Akaho, arXiv 2604.01117): no unary loss of the random scan's distribution is worse than that of the
conditionals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, gmres
from torch import Tensor

from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.exact.cycles import Floats, check_graph, closed_components, line_numbers
from flexgen.compatibility.exact.family import MAX_STATES, ConditionalFamily, as_family, check_tolerance
from flexgen.compatibility.exact.gaussian import GaussianConditionals, GaussianScanDivergence, gaussian_scan_divergence
from flexgen.compatibility.exact.scan_orders import Order, Scan, weighted_orders
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, JointTable, kernels
from flexgen.exact.kernels import HasBlockTables

__all__ = ["ScanDivergence", "closed_classes", "scan_divergence", "stationary"]

_DENSE_ENTRIES = 1 << 16  # a class of up to 256 states is eliminated state by state, accurate in every entry
_ELIMINATED_ENTRIES = 1 << 21  # of a class that nothing else solves: some seconds
_ACCURATE = 1e-9  # errors of a distribution beyond which something better is looked for
_SAME_NATS = 1e-12


def stationary(
    tables: HasBlockTables, scan: Scan = "random", *, closed_class: int | None = None, tolerance: float = 1e-12
) -> Tensor:
    """The stationary distribution of a scan, float64 ``[V_0, .., V_{N-1}]``.

    Args:
        tables: `fg.exact.ConditionalTables`, a `ConditionalFamily` or a `fg.exact.JointTable`; at most 2^16 states.
        scan: ``"random"``: each step updates a site (a family: the target of one of its conditionals) chosen evenly.
            An order such as ``(0, 1, 2)`` or ``((0, 2), 1)``: the distribution at the end of a sweep that updates x_0,
            then x_1, then x_2. A mixture ``{(0, 1, 2): 0.5, (2, 1, 0): 0.5}``: each sweep takes an order with its
            probability. Sites of a `ConditionalFamily` with labels go by name too: ``("weather", "mood")``. Samplers'
            scans that visit a site chosen evenly, or sites or blocks in a fixed order, are understood.
        closed_class: which of several closed classes (numbered as in `closed_classes`) the chain runs in.
        tolerance: the result is checked: the total variation of πK against π must not exceed it, nor that over
            1 - |λ_2|, which is about the error of π, its square root (1e-6).

    Raises:
        FlexgenError: more than 2^16 states; a chain with several closed classes, each with its own distribution, where
            none was chosen; a chain that mixes too slowly; a tolerance or a scan that is none; a random scan of a
            family with two conditionals of one target.

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
    distribution, residual = krylov(chain, members, tolerance)
    gap = spectral_gap(chain, members, distribution)
    error = max(residual, ROUNDING) / gap
    if residual <= tolerance and error <= _ACCURATE:
        return distribution
    joint = _joint(tables)
    if joint is not None:
        return _restricted(joint, members)
    if size * chain.num_states <= _ELIMINATED_ENTRIES:
        return eliminated(chain, members, max(tolerance, ROUNDING * size))
    if residual <= tolerance and error <= math.sqrt(tolerance):
        return distribution
    raise FlexgenError(
        "tables",
        f"mix too slowly under this scan: 1 - |λ_2| is about {gap:.2g}, so the distribution is known to {error:.2g} in "
        f"total variation, not to {math.sqrt(tolerance):.2g}",
        "Raise the tolerance, or update sites that hang together as one block.",
    )


def closed_classes(tables: HasBlockTables, scan: Scan = "random") -> Tensor:
    """The closed classes of a scan's chain, int64 ``[V_0, .., V_{N-1}]``: 0, 1, .., and -1 at transient states.

    Each class has a stationary distribution of its own, and the chain ends up in one of them.
    """
    chain = ScanChain(tables, scan)
    return torch.from_numpy(chain.classes()).view(chain.shape)


@dataclass(frozen=True, eq=False)
class ScanDivergence:
    """How far the distributions of two scans lie apart.

    Args:
        tv: total variation, 0 to 1: the largest difference that any event's probability makes.
        kl: KL(first || second), nats; infinite where only the first distribution has mass.
        kl_reverse: KL(second || first), nats.
        first, second: the distributions, ``[V_0, .., V_{N-1}]``.
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
    """Total variation and KL divergences between the stationary distributions of two scans; arguments as in
    `stationary`.

    Of `GaussianConditionals`: KL divergences between the normal distributions of two fixed orders.
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
    """An invariant distribution, given that the chain is in one closed class."""
    inside = torch.zeros(joint.numel(), dtype=torch.bool)
    inside[torch.from_numpy(members)] = True
    distribution = torch.where(inside.view(joint.shape), joint, 0.0)
    return distribution / distribution.sum()


def _joint(tables: HasBlockTables) -> Tensor | None:
    """The joint of complete conditionals, if they have one to rounding.

    However slowly a chain mixes, relative errors of the entries of its kernel change its distribution by no more than 2
    S times as much (O'Cinneide 1993). So the distribution of conditionals that are compatible but for 1e-12 is their
    joint.
    """
    if not isinstance(tables, ConditionalTables | ConditionalFamily):
        return None
    family = as_family(tables)
    found = check_graph(family, _SAME_NATS) if family.is_complete else None
    if found is None or found.joint is None or not found.covers:
        return None
    return torch.from_numpy(found.joint).view(family.shape)


# A scan's Markov chain on states, without its kernel: how it moves distributions, which closed classes it has.


class ScanChain:
    """A scan as a mixture of orders of blocks, and how it moves distributions."""

    def __init__(self, tables: HasBlockTables, scan: Scan) -> None:
        if not hasattr(tables, "block_table"):
            raise FlexgenError(
                "tables",
                f"is {kind_of(tables)}",
                "Pass fg.exact.ConditionalTables, a ConditionalFamily or a fg.exact.JointTable. Of "
                "GaussianConditionals: stationary_gaussian. Of a network: fg.diagnose(model, data), or the tables of a "
                "few of its sites by fg.compatibility.exact_blocks.",
            )
        self.tables, self.shape = tables, tuple(tables.shape)
        self.num_states = math.prod(self.shape)
        if self.num_states > MAX_STATES:
            raise FlexgenError(
                "tables",
                f"have {self.num_states} states, but exact distributions take at most {MAX_STATES} (2^16)",
                "Take blocks of fewer sites, or compare draws of different scans.",
            )
        self.orders = _orders(tables, scan)  # (weight, order)

    def move(self, distribution: Tensor) -> Tensor:
        """The distribution after one sweep (or one step of a random scan)."""
        moved = torch.zeros((), dtype=torch.float64)
        for weight, order in self.orders:
            moved = moved + weight * kernels.sweep(distribution, self.tables, order)
        return moved

    def classes(self) -> np.ndarray:
        """The closed class of every state, int64 ``[S]``, -1 where it is transient."""
        blocks = {block for _, order in self.orders for block in order}
        tables = {block: self.tables.block_table(block) for block in blocks}
        updated = {site for block in blocks for site in block}
        if len(updated) == len(self.shape) and all(bool((table > 0).all()) for table in tables.values()):
            return np.zeros(self.num_states, dtype=np.int64)
        # Nodes: the states between sweeps, then for every update its lines and the states that it leads to.
        states, num_nodes = np.arange(self.num_states), self.num_states
        sources, sinks = [], []
        for _, order in self.orders:
            now = 0  # where the states before this update begin
            for k, block in enumerate(order):
                line, num_lines = line_numbers(self.shape, block)
                then = 0 if k == len(order) - 1 else num_nodes + num_lines
                positive = (tables[block] > 0).expand(self.shape).numpy().reshape(-1)
                sources += [now + states, (num_nodes + line)[positive]]
                sinks += [num_nodes + line, then + states[positive]]
                num_nodes += num_lines + (self.num_states if then else 0)
                now = then
        label = closed_components(num_nodes, np.concatenate(sources), np.concatenate(sinks))[: self.num_states]
        number = np.unique(label[label >= 0], return_inverse=True)[1]
        label[label >= 0] = number
        return label

    def members(self, closed_class: int | None) -> np.ndarray:
        """The states, ascending, of the chosen closed class."""
        label = self.classes()
        count = int(label.max()) + 1
        if closed_class is None and count > 1:
            updated = {site for _, order in self.orders for block in order for site in block}
            still = [site for site in range(len(self.shape)) if site not in updated]
            starts = [tuple(map(int, np.unravel_index(int((label == k).argmax()), self.shape))) for k in range(2)]
            reason = f"site {still[0]} is never updated" if still else f"{starts[0]} never leads to {starts[1]}"
            raise FlexgenError(
                "scan",
                f"gives a reducible chain of {count} closed classes of states ({reason}), "
                "each with its own distribution",
                f"Choose one by closed_class=0 to {count - 1}; closed_classes(tables, scan) shows them.",
            )
        chosen = whole_number("closed_class", 0 if closed_class is None else closed_class, 0)
        if chosen >= count:
            raise FlexgenError("closed_class", f"is {chosen}", f"This chain has classes 0 to {count - 1}.")
        return np.flatnonzero(label == chosen)


def _orders(tables: HasBlockTables, scan: Scan) -> list[tuple[float, Order]]:
    """A scan as orders with weights that sum to one."""
    num_sites = len(tables.shape)
    if not isinstance(tables, ConditionalFamily):
        return weighted_orders(scan, [(site,) for site in range(num_sites)], num_sites)
    if isinstance(scan, str):
        twice = [block for block in tables.blocks if tables.blocks.count(block) > 1]
        if twice:
            target = ", ".join(tables.names[site] for site in twice[0])
            raise FlexgenError(
                "tables",
                f"state {tables.blocks.count(twice[0])} conditionals of the target {target}",
                "Keep one conditional a target: a scan cannot tell which of them it should draw from.",
            )
    return weighted_orders(scan, tables.blocks, num_sites, tables.names)


# The distribution that a scan's chain leaves as it is: by elimination of states, or without a kernel by GMRES.

ROUNDING = 1e-16  # of πK, in total variation
_WARM_UP, _KRYLOV, _RESTARTS, _SMOOTHING, _ARNOLDI = 20, 80, 25, 20, 20


def eliminated(chain: ScanChain, members: np.ndarray, tolerance: float) -> Tensor:
    """The distribution of one closed class by elimination of its states."""
    inside = torch.from_numpy(members)
    points = torch.zeros(len(members), chain.num_states, dtype=torch.float64)
    points[torch.arange(len(members)), inside] = 1.0
    moved = chain.move(points.view(len(members), *chain.shape)).reshape(len(members), -1)  # contiguous as tables are
    rows = moved[:, inside]
    distribution = torch.zeros(chain.num_states, dtype=torch.float64)
    distribution[inside] = kernels.stationary(rows / rows.sum(-1, keepdim=True), tolerance=tolerance)
    return distribution.view(chain.shape)


def krylov(chain: ScanChain, members: np.ndarray, tolerance: float) -> tuple[Tensor, float]:
    """π(I - K) = 0 with Σ π = 1, by restarted GMRES on the states of one closed class; and how far πK is from π."""
    start = torch.zeros(chain.num_states, dtype=torch.float64)
    start[torch.from_numpy(members)] = 1 / len(members)
    distribution = start.view(chain.shape)
    for _ in range(_WARM_UP):
        distribution = chain.move(distribution)

    def moved(vector: Floats) -> Floats:
        return np.asarray(chain.move(torch.from_numpy(vector).view(chain.shape)).flatten())

    def balance(vector: Floats) -> Floats:  # π - πK + (Σ π) distribution: singular no more, and solved by Σ π = 1
        vector = vector.reshape(-1)
        return vector - moved(vector) + float(vector.sum()) * right

    right = distribution.flatten().numpy()
    operator = LinearOperator((chain.num_states,) * 2, matvec=balance, dtype=np.float64)
    solution, accuracy = right, 0.1 * tolerance / math.sqrt(chain.num_states)  # |v|_1 <= sqrt(S) |v|_2
    for _ in range(_RESTARTS):
        solution, _ = gmres(operator, right, x0=solution, rtol=0.0, atol=accuracy, restart=_KRYLOV, maxiter=1)
        distribution = torch.from_numpy(solution).clamp_min(0.0).view(chain.shape)
        for _ in range(_SMOOTHING):  # entries below the solver's accuracy come right by moving the distribution along
            distribution = chain.move(distribution)
        distribution = distribution / distribution.sum()
        error = 0.5 * float((chain.move(distribution) - distribution).abs().sum())
        if error <= tolerance:
            break
        solution = distribution.flatten().numpy()
    return distribution, error


def spectral_gap(chain: ScanChain, members: np.ndarray, distribution: Tensor) -> float:
    """About 1 - |λ_2| of a closed class, by Arnoldi's method on differences of distributions: slow modes come first."""
    stationary_law = distribution.flatten().numpy()

    def moved(vector: Floats) -> Floats:
        out = np.asarray(chain.move(torch.from_numpy(vector.reshape(chain.shape).copy())).flatten())
        return out - float(out.sum()) * stationary_law

    start = np.zeros(chain.num_states)
    start[members] = np.random.default_rng(0).standard_normal(len(members))
    operator = LinearOperator((chain.num_states,) * 2, matvec=moved, dtype=np.float64)
    try:
        values = eigs(operator, 1, which="LR", v0=moved(start), ncv=_ARNOLDI, tol=1e-2, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        values = error.eigenvalues if len(error.eigenvalues) else np.ones(1)
    slowest = float(values.real.max())
    return max(1 - slowest, ROUNDING)
