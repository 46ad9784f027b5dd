"""A scan's Markov chain on states, without its kernel: how it moves laws, which closed classes it has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.exact.family import MAX_STATES, ConditionalFamily
from flexgen.compatibility.exact.graph import closed_components, line_numbers
from flexgen.compatibility.exact.scan_orders import Order, weighted_orders
from flexgen.errors import FlexgenError
from flexgen.exact import kernels
from flexgen.exact.kernels import HasBlockTables

__all__ = ["Scan", "ScanChain"]

Block: TypeAlias = int | str | Sequence[int] | Sequence[str]  # sites by number or, of a family with labels, by name
Scan: TypeAlias = Literal["random"] | Iterable[Block] | Mapping[tuple[Block, ...], float]


class ScanChain:
    """A scan as a mixture of orders of blocks, and how it moves laws."""

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
                f"have {self.num_states} states, but exact laws take at most {MAX_STATES} (2^16)",
                "Take blocks of fewer sites, or compare draws of different scans.",
            )
        self.orders = _orders(tables, scan)  # (weight, order)

    def move(self, law: Tensor) -> Tensor:
        """The law after one sweep (or one step of a random scan)."""
        moved = torch.zeros((), dtype=torch.float64)
        for weight, order in self.orders:
            moved = moved + weight * kernels.sweep(law, self.tables, order)
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
        """The states, ascending, of the closed class that is asked for."""
        label = self.classes()
        count = int(label.max()) + 1
        if closed_class is None and count > 1:
            updated = {site for _, order in self.orders for block in order for site in block}
            still = [site for site in range(len(self.shape)) if site not in updated]
            starts = [tuple(map(int, np.unravel_index(int((label == k).argmax()), self.shape))) for k in range(2)]
            reason = f"site {still[0]} is never updated" if still else f"{starts[0]} never leads to {starts[1]}"
            raise FlexgenError(
                "scan",
                f"gives a reducible chain of {count} closed classes of states ({reason}), each with its own law",
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
