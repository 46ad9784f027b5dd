"""Families of complete conditionals on the graph of states: which joints they have, and what refutes them.

A distribution r has p(x_P | x_-P) as its conditional iff r(x) = r(x_-P) p(x_P | x_-P) for all x. So r's support is a
union of *closed classes* of states, those that updates never leave; within a class every state of a line has positive
probability from every conditional (each move has a reverse), and the ratios of moves to their reverses multiply to
one round every loop, of whatever length. Conversely every closed class with both properties carries exactly one such
distribution, found by following ratios along a tree. The family is *weakly compatible* iff some class has both, and
*compatible* iff such classes reach every value that any conditional observes. (Emerson, arXiv 2608.31120, for two
sites; the same holds for any number.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components

from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.exact.family import (
    ConditionalFamily,
    StatedConditional,
    Violation,
    loop_violation,
    support_violation,
)
from flexgen.errors import FlexgenError

__all__ = [
    "Bools",
    "Floats",
    "Ints",
    "check_graph",
    "closed_components",
    "line_numbers",
    "rectangle_rank",
    "worst_rectangle",
]


@dataclass(frozen=True)
class GraphCheck:
    """What the graph of states says.

    Args:
        joints: int64 ``[S]``, the number of the joint that a state belongs to, -1 where none.
        joint: ``[S]``, the mixture of all joints with equal weights; None if there is none.
        num_joints: how many extreme joints there are.
        covers: whether they reach every line.
        violation: None iff there is a joint and it covers every line.
        rectangle: the worst one.
    """

    joints: Ints
    joint: Floats | None
    num_joints: int
    covers: bool
    violation: Violation | None
    rectangle: Rectangle


class _Graph:
    """States, lines and the closed classes of a family of complete conditionals."""

    def __init__(self, family: ConditionalFamily) -> None:
        self.family, self.num_states = family, family.num_states
        lines = [line_numbers(family.shape, conditional.target) for conditional in family.conditionals]
        starts = np.cumsum([self.num_states, *(count for _, count in lines)])
        # Nodes: the states, then the lines of one conditional after the other.
        self.line = np.stack([number + start for (number, _), start in zip(lines, starts[:-1], strict=True)])  # [M, S]
        self.law_of_line = np.repeat(np.arange(len(lines)), [count for _, count in lines])
        self.num_nodes = int(starts[-1])
        self.table = np.stack([conditional.table.numpy().reshape(-1) for conditional in family.conditionals])  # [M, S]
        self.positive = self.table > 0
        self.state = np.broadcast_to(np.arange(self.num_states), self.line.shape)
        self.closed = self._closed_classes()  # [num_nodes]

    def _closed_classes(self) -> Ints:
        every = np.concatenate([conditional.target for conditional in self.family.conditionals])
        if self.positive.all() and len(np.unique(every)) == self.family.num_sites:
            return np.zeros(self.num_nodes, dtype=np.int64)
        source = np.concatenate([self.state.reshape(-1), self.line[self.positive]])
        sink = np.concatenate([self.line.reshape(-1), self.state[self.positive]])
        return closed_components(self.num_nodes, source, sink)

    def one_way(self, where: Bools) -> Violation | None:
        """The most probable move, to a state of `where` (bool ``[S]``), that no conditional takes back."""
        lost = where & ~self.positive.all(0)
        if not lost.any():
            return None
        to = int(np.where(lost, self.table.max(0), -1.0).argmax())
        gain, loss = int(self.table[:, to].argmax()), int(self.table[:, to].argmin())
        if self.table[gain, to] == 0:
            return None
        return support_violation(self.family, to, self.family.conditionals[gain], self.family.conditionals[loss])

    def solve(self, reversible: Bools) -> tuple[Ints, Floats, Floats]:
        """Potentials over the states of `reversible` (bool ``[S]``): parents, log weights, residuals ``[M, S]``.

        A residual is what the loop closed by an edge multiplies to, in nats; zero on the trees themselves.
        """
        edge = np.broadcast_to(reversible, self.line.shape)
        one, other = self.state[edge], self.line[edge]
        members = np.flatnonzero(reversible)
        _, first = np.unique(self.closed[members], return_index=True)
        parent = spanning_forest(self.num_nodes, one, other, members[first])
        with np.errstate(divide="ignore"):
            log_table = np.log(self.table)
        step = np.zeros(self.num_nodes)
        states, lines = np.arange(self.num_states), np.arange(self.num_states, self.num_nodes)
        via = parent[: self.num_states]
        inner = via >= self.num_states  # states with a line as parent: log r(x) = log r(line) + log p(x | line)
        step[states[inner]] = log_table[self.law_of_line[via[inner] - self.num_states], states[inner]]
        via = parent[self.num_states :]
        inner = via < self.num_states
        step[lines[inner]] = -log_table[self.law_of_line[inner], via[inner]]
        log_weight = potentials(parent, step)
        residual = np.where(edge, log_weight[: self.num_states] - log_weight[self.line] - log_table, 0.0)
        return parent, log_weight[: self.num_states], residual

    def loop(self, parent: Ints, distribution: int, state: int) -> Violation:
        """The loop that the edge between a state and its line closes with the tree."""
        down, up = self._to_root(parent, state), self._to_root(parent, int(self.line[distribution, state]))
        while len(down) > 1 and len(up) > 1 and down[-2] == up[-2]:  # leave the way that both share
            down.pop()
            up.pop()
        nodes = down[:-1] + up[::-1]  # alternates between states and lines, and closes on itself
        while nodes[0] >= self.num_states:
            nodes.append(nodes.pop(0))
        distributions = [self.family.conditionals[self.law_of_line[node - self.num_states]] for node in nodes[1::2]]
        return loop_violation(self.family, nodes[::2], distributions)

    @staticmethod
    def _to_root(parent: Ints, node: int) -> list[int]:
        path = [node]
        while parent[path[-1]] != path[-1]:
            path.append(int(parent[path[-1]]))
        return path


def check_graph(family: ConditionalFamily, tolerance: float) -> GraphCheck:
    """All joints of a family of complete conditionals; loops that multiply to exp(`tolerance`) or less are good."""
    graph = _Graph(family)
    rectangle = worst_rectangle(family)
    closed = graph.closed[: graph.num_states]
    num_classes = int(closed.max()) + 1
    lost = (closed >= 0) & ~graph.positive.all(0)
    good = np.ones(num_classes, dtype=bool)
    good[closed[lost]] = False
    reversible = (closed >= 0) & good[closed]
    joint, worst_loop = None, None
    if reversible.any():
        parent, log_weight, residual = graph.solve(reversible)
        off = np.abs(residual)
        good[closed[reversible & (off.max(0) > tolerance)]] = False
        joint = _mixture(log_weight, closed, good)
        if off.max() > tolerance:
            distribution, state = (int(k) for k in np.unravel_index(off.argmax(), off.shape))
            worst_loop = functools.partial(graph.loop, parent, distribution, state)
    joints = np.where((closed >= 0) & good[closed], closed, -1)
    joints[joints >= 0] = np.unique(joints[joints >= 0], return_inverse=True)[1]
    covered = np.zeros(graph.num_nodes, dtype=bool)
    covered[graph.line[:, joints >= 0]] = True
    covers = bool(covered[graph.num_states :].all())
    violation = None
    if not covers:
        violation = graph.one_way(lost)
        if violation is None and rectangle.gap > tolerance and (closed[list(rectangle.states)] >= 0).all():
            violation = loop_violation(family, rectangle.states, rectangle.distributions * 2)
        elif violation is None:
            violation = graph.one_way(joints < 0) if worst_loop is None else worst_loop()
    return GraphCheck(joints, joint, int(good.sum()), covers, violation, rectangle)


def _mixture(log_weight: Floats, closed: Ints, good: Bools) -> Floats | None:
    """The equal mixture of the distributions of all good classes, ``[S]``."""
    num_good = int(good.sum())
    if not num_good:
        return None
    member = (closed >= 0) & good[closed]
    highest = np.full(len(good), -np.inf)
    np.maximum.at(highest, closed[member], log_weight[member])
    weight = np.where(member, np.exp(log_weight - np.where(member, highest[closed], log_weight)), 0.0)
    total = np.bincount(closed[member], weight[member], minlength=len(good))
    return np.where(member, weight / np.where(member, total[closed], 1.0) / num_good, 0.0)


# States, lines, and what can be reached: the graphs on which zeros and loops are decided.
#
# A *line* is the set of states that a conditional p(x_P | x_-P) chooses among: one for every value of the other
# sites. An update goes from a state to its line (always possible) and from the line to one of its states (where the
# conditional is positive). Joining states through lines keeps the graph at 2 S edges a conditional, whatever the
# number of categories, and its strongly connected components are those of the chain of states.
#
# Everything is vectorised over states; no loop runs over them.

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


# Rectangles of log odds: the local test of two conditionals against each other.
#
# p(x_P | x_C) and p(x_P' | x_C') over the same sites (P ∪ C = P' ∪ C', P and P' disjoint) share their odds ratios
#
#     log p(a | b) + log p(a' | b') - log p(a' | b) - log p(a | b')
#
# whenever a joint has both: with positive entries and all else fixed these are the loops of length 4. For positive
# complete conditionals of single sites they decide compatibility; their rank is `rectangle_rank`.


@dataclass(frozen=True)
class Rectangle:
    """The rectangle in which two conditionals' log odds ratios differ most.

    Args:
        gap: nats.
        states: its four corners as state numbers, (a, b), (a', b), (a', b'), (a, b'); `first` moves a, `second` b.
        distributions: `first` and `second`; none where no two conditionals share a rectangle of positive entries (`gap`
            is 0).
    """

    gap: float = 0.0
    states: tuple[int, ...] = ()
    distributions: tuple[StatedConditional, ...] = ()


def rectangle_rank(shape: Sequence[int]) -> int:
    """How many independent rectangle constraints all complete conditionals over `shape` must satisfy.

    Σ_i (V_i - 1) Π_{j≠i} V_j - (Π V - 1): the free parameters of the conditionals less those of a joint; for N sites of
    V categories N V^(N-1) (V-1) - (V^N - 1). The degrees of freedom of tests of compatibility.

    Raises:
        FlexgenError: a shape that is not one size a site, each at least one.
    """
    if not hasattr(shape, "__len__") or isinstance(shape, str | bytes):
        raise FlexgenError("shape", f"is {kind_of(shape)}", "Pass the number of categories of every site: (2, 3).")
    shape = [whole_number("shape", size, 1) for size in shape]
    num_states = math.prod(shape)
    return sum(num_states // size * (size - 1) for size in shape) - (num_states - 1)


def worst_rectangle(family: ConditionalFamily) -> Rectangle:
    """The largest |difference of log odds ratios| over all rectangles of positive entries."""
    worst = Rectangle()
    conditionals = family.conditionals
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.log(conditional.table.numpy()) for conditional in conditionals]
        for k, first in enumerate(conditionals):
            for other in range(k):
                if first.sites == conditionals[other].sites and not set(first.target) & set(conditionals[other].target):
                    worst = _worst_of(family, (first, logs[k]), (conditionals[other], logs[other]), worst)
    return worst


def _worst_of(
    family: ConditionalFamily,
    one: tuple[StatedConditional, Floats],
    two: tuple[StatedConditional, Floats],
    worst: Rectangle,
) -> Rectangle:
    """The worse of `worst` and the worst rectangle of two conditionals."""
    if math.prod(family.shape[i] for i in one[0].target) > math.prod(family.shape[i] for i in two[0].target):
        one, two = two, one  # the loop below runs over the categories of the first
    (first, log_first), (second, log_second) = one, two
    targets = (*first.target, *second.target)
    axes = [site for site in range(family.num_sites) if site not in targets] + list(targets)
    num_a = math.prod(family.shape[site] for site in first.target)
    num_b = math.prod(family.shape[site] for site in second.target)
    # Where either is zero the difference is infinite or nan; fmax and fmin skip nan.
    difference = log_first - log_second
    difference = np.where(np.isfinite(difference), difference, np.nan).transpose(axes).reshape(-1, num_a, num_b)
    for a in range(num_a - 1):
        rows = difference[:, a + 1 :] - difference[:, a, None]  # [rest, a' > a, b]
        spread = np.fmax.reduce(rows, -1) - np.fmin.reduce(rows, -1)  # [rest, a' > a]
        gap = float(np.fmax.reduce(spread, None))
        if gap > worst.gap:
            rest, step = (int(k) for k in np.unravel_index(np.nanargmax(spread), spread.shape))
            low, high = int(np.nanargmin(rows[rest, step])), int(np.nanargmax(rows[rest, step]))
            corners = np.array([(a, low), (a + 1 + step, low), (a + 1 + step, high), (a, high)])
            flat = (rest * num_a + corners[:, 0]) * num_b + corners[:, 1]
            codes = np.empty((family.num_sites, 4), dtype=np.int64)
            codes[axes] = np.unravel_index(flat, [first.table.shape[site] for site in axes])
            states = tuple(np.asarray(np.ravel_multi_index(tuple(codes), family.shape)).tolist())
            worst = Rectangle(gap, states, (first, second))
    return worst
