"""States, lines, and what can be reached: the graphs on which zeros and loops are decided.

A *line* is the set of states that a conditional p(x_P | x_-P) chooses among: one for every value of the other sites. An
update goes from a state to its line (always possible) and from the line to one of its states (where the conditional
is positive). Joining states through lines keeps the graph at 2 S edges a conditional, whatever the number of
categories, and its strongly connected components are those of the chain of states.

Everything is vectorised over states; no loop runs over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components

__all__ = ["Bools", "Floats", "Ints", "closed_components", "line_numbers", "potentials", "spanning_forest"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def line_numbers(shape: Sequence[int], target: Sequence[int]) -> tuple[Ints, int]:
    """The line of every state when the sites `target` are updated, int64 ``[S]``, and the number of lines."""
    context = [1 if site in target else size for site, size in enumerate(shape)]
    num_lines = math.prod(context)
    line: Ints = np.broadcast_to(np.arange(num_lines).reshape(context), tuple(shape)).flatten()
    return line, num_lines


def closed_components(num_nodes: int, source: Ints, sink: Ints) -> Ints:
    """For each node the number of its strongly connected component if no edge leaves that component, else -1."""
    edges = csr_matrix((np.ones(len(source), dtype=np.int8), (source, sink)), shape=(num_nodes, num_nodes))
    num_components, label = connected_components(edges, directed=True, connection="strong")
    label = np.asarray(label)
    closed = np.ones(num_components, dtype=bool)
    closed[label[source[label[source] != label[sink]]]] = False
    number = np.where(closed, np.cumsum(closed) - 1, -1)
    return np.asarray(number[label])


def spanning_forest(num_nodes: int, one: Ints, other: Ints, roots: Ints) -> Ints:
    """Breadth-first trees from `roots`, one in each connected component: every node's parent, a root's being itself.

    Nodes that no root reaches are their own parents too.
    """
    # One node more, joined to all roots, makes one search of many.
    source = np.concatenate([one, np.full(len(roots), num_nodes)])
    sink = np.concatenate([other, roots])
    edges = csr_matrix((np.ones(len(source), dtype=np.int8), (source, sink)), shape=(num_nodes + 1, num_nodes + 1))
    _, parent = breadth_first_order(edges, num_nodes, directed=False)
    parent = parent[:num_nodes].astype(np.int64)
    alone = (parent < 0) | (parent == num_nodes)
    return np.where(alone, np.arange(num_nodes), parent)


def potentials(parent: Ints, step: Floats) -> Floats:
    """The sum of `step` from every node up to its root, ``[num_nodes]``; a root's own step counts as zero.

    Each round doubles the distance that every node looks ahead, so a path of S nodes takes log2 S rounds.
    """
    ancestor = parent.copy()
    total = np.where(parent == np.arange(len(parent)), 0.0, step)
    while (ancestor[ancestor] != ancestor).any():
        total = total + total[ancestor]
        ancestor = ancestor[ancestor]
    return total
