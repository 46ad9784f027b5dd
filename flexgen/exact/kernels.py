"""Exact transition kernels of Gibbs samplers on finite spaces: oracles without Monte Carlo.

Names here -> in the literature: a `law` is a row vector π over the S states (row-major); a `kernel` is K with
K[s, s'] = p(next = s' | now = s), so that one step takes π to πK, and `sweep_kernel(.., (a, b))` is K_a K_b.

For a joint π, πK = π for every scan, to rounding. For incompatible conditionals the left eigenvector of K is the
law that Gibbs sampling with that scan converges to, the pseudo-Gibbs law; it depends on the scan (Heckerman et al.,
Dependency Networks, JMLR 2000).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from flexgen.checks import (
    MOST_ENTRIES,
    entries,
    kind_of,
    number,
    probabilities,
    real_tensor,
    whole_number,
    whole_numbers,
)
from flexgen.errors import FlexgenError

__all__ = ["HasBlockTables", "as_block", "random_scan_kernel", "site_kernel", "stationary", "sweep", "sweep_kernel"]

Block = int | Sequence[int]

_MAX_STATES = 1 << 13  # a dense kernel of 2^13 states is 512 MiB


class HasBlockTables(Protocol):
    """What a kernel is built from: `JointTable` (any block) and `ConditionalTables` (single sites)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def block_table(self, block: Block) -> Tensor:
        """p(x_block | rest), one axis a site."""
        ...


def as_block(block: Block, num_sites: int) -> tuple[int, ...]:
    """A site or several as a tuple of distinct site numbers."""
    num_sites = whole_number("num_sites", num_sites, most=MOST_ENTRIES)
    fix = f"Name distinct sites among 0 to {num_sites - 1}."
    single = isinstance(block, int | np.integer) and not isinstance(block, bool)
    sites = whole_numbers("block", (block,) if single else block, fix, most=num_sites - 1)
    if not sites or len(set(sites)) < len(sites):
        raise FlexgenError("block", f"is {kind_of(block)}", fix)
    return sites


def sweep(law: Tensor, tables: HasBlockTables, order: Iterable[Block]) -> Tensor:
    """The law after updating the blocks of `order` one after the other, without ever forming a kernel.

    Args:
        law: ``[V_0, .., V_{N-1}]``, or with leading batch dimensions.
        tables: a `JointTable` or `ConditionalTables`; moved to the device of `law`.
        order: sites, or blocks of sites.

    An update of block A replaces π(x) by π(x_-A) p(x_A | x_-A): O(S) work, so 2^20 states are no trouble.
    """
    num_sites = len(_checked_tables(tables).shape)
    real_tensor("law", law, f"{list(tables.shape)}", error=FlexgenError)
    if tuple(law.shape)[law.ndim - num_sites :] != tuple(tables.shape):
        raise FlexgenError("law", f"has shape {tuple(law.shape)}", f"Pass {list(tables.shape)}, a probability a state.")
    for block in _scan("order", order):
        axes = [site - num_sites for site in as_block(block, num_sites)]  # counted from the end
        law = law.sum(axes, keepdim=True) * tables.block_table(block).to(law.device)
    return law


def site_kernel(tables: HasBlockTables, block: Block) -> Tensor:
    """The kernel of updating one site (or, from a joint, one block), float64 ``[S, S]``."""
    return sweep_kernel(tables, (block,))


def sweep_kernel(tables: HasBlockTables, order: Iterable[Block]) -> Tensor:
    """The kernel of a systematic scan, float64 ``[S, S]``: the first of `order` is updated first."""
    num_states = math.prod(_checked_tables(tables).shape)
    if num_states > _MAX_STATES:
        raise FlexgenError(
            "tables",
            f"have {num_states} states, too many for a dense kernel (limit {_MAX_STATES})",
            "Use kernels.sweep, which moves a law through a scan without forming the kernel.",
        )
    points = torch.eye(num_states, dtype=torch.float64).view(num_states, *tables.shape)  # [S, V_0, .., V_{N-1}]
    kernel: Tensor = rearrange(sweep(points, tables, order), "s ... -> s (...)")
    return kernel


def random_scan_kernel(
    tables: HasBlockTables, *, blocks: Sequence[Block] | None = None, weights: Sequence[float] | None = None
) -> Tensor:
    """The kernel of updating one block chosen at random, float64 ``[S, S]``.

    Args:
        tables: a `JointTable` or `ConditionalTables`.
        blocks: what may be chosen; default: every single site.
        weights: probabilities of the blocks; default: equal.
    """
    blocks = range(len(_checked_tables(tables).shape)) if blocks is None else _scan("blocks", blocks)
    weights = [1 / max(len(blocks), 1)] * len(blocks) if weights is None else weights
    weights = probabilities("weights", weights, len(blocks), "blocks", "block")
    kernel = torch.zeros((), dtype=torch.float64)
    for block, weight in zip(blocks, weights, strict=True):
        kernel = kernel + weight * site_kernel(tables, block)
    return kernel


def stationary(kernel: Tensor, *, tolerance: float = 1e-12) -> Tensor:
    """The law π with πK = π, float64 ``[S]``; transient states get exactly zero.

    Args:
        kernel: ``[S, S]``, rows summing to one.
        tolerance: the result is checked: max |πK - π| must not exceed it.

    Raises:
        FlexgenError: if rows do not sum to one, or if several laws are stationary (the chain has more than one
            closed class of states).

    Elimination of states without subtraction (Grassmann, Taksar & Heyman 1985), so that even tiny probabilities are
    accurate relative to their size; O(S^3): seconds at S = 1024.
    """
    number("tolerance", tolerance, 0.0)
    real_tensor("kernel", kernel, "[S, S]", ndim=2, error=FlexgenError)
    if kernel.shape[0] != kernel.shape[1] or not 0 < len(kernel) <= _MAX_STATES:
        raise FlexgenError("kernel", f"has shape {tuple(kernel.shape)}", f"Pass [S, S], S at most {_MAX_STATES}.")
    kernel = kernel.detach().to("cpu", torch.float64)
    off = float((kernel.sum(-1) - 1).abs().max())
    if not off <= 1e-9 or bool((kernel < 0).any()):
        raise FlexgenError(
            "kernel", f"is not stochastic (a row sum is off by {off:.3g})", "Rows are laws of the next state."
        )
    members = _closed_class(kernel)
    reduced = kernel[members][:, members].clone()
    for last in range(len(reduced) - 1, 0, -1):
        # Censor the chain on the states before `last`: what left to `last` returns along its outgoing rates.
        reduced[:last, last] /= reduced[last, :last].sum()
        reduced[:last, :last].addr_(reduced[:last, last], reduced[last, :last])
    weights = torch.ones(len(reduced), dtype=torch.float64)
    for state in range(1, len(reduced)):
        weights[state] = weights[:state] @ reduced[:state, state]
    law = torch.zeros(len(kernel), dtype=torch.float64)
    law[members] = weights / weights.sum()
    error = float((law @ kernel - law).abs().max())
    if error > tolerance:
        raise FlexgenError(
            "kernel",
            f"has no accurate stationary law: |πK - π| is {error:.3g}, above {tolerance:.3g}",
            "Normalise its rows to full precision.",
        )
    return law


def _closed_class(kernel: Tensor) -> Tensor:
    """The states, int64, of the one communicating class that no path leaves."""
    edges = csr_matrix(kernel.numpy() > 0)
    num_classes, label = connected_components(edges, directed=True, connection="strong")
    source, sink = edges.nonzero()
    leaving = label[source] != label[sink]
    closed = np.setdiff1d(np.arange(num_classes), label[source[leaving]])
    if len(closed) > 1:
        raise FlexgenError(
            "kernel",
            f"is reducible: {len(closed)} closed classes of states, each with its own stationary law",
            "Start from a law and use kernels.sweep, or make the conditionals positive.",
        )
    return torch.from_numpy(np.flatnonzero(label == closed[0]))


def _checked_tables(tables: HasBlockTables) -> HasBlockTables:
    if not callable(getattr(tables, "block_table", None)) or isinstance(tables, type):
        raise FlexgenError("tables", f"is {kind_of(tables)}", "Pass a JointTable or ConditionalTables.")
    return tables


def _scan(argument: str, order: Iterable[Block]) -> tuple[Block, ...]:
    return entries(argument, order, "Pass a list of sites, or of blocks of sites.", most=1 << 16)
