"""The two closest joints that are measured by relative entropy, as convex problems in log-probabilities.

`Information`, the I-projection: the least f(r) = Σ_m KL(r || r_{-m} q_m) over laws r. f is convex and homogeneous of
degree one, so with G(x) = Σ_m log r(x_P | x_C) / q_m(x_P | x_C), its gradient,

    f(p) >= E_p G >= min_x G(x)    for every law p, whatever r:

a lower bound that anybody can check, equal to f(r) = E_r G at the optimum.

`ArnoldGokhale`: the least Σ_m Σ_{x_C} KL(q_m(. | x_C) || P(. | x_C)) over laws P, every context counting alike (Arnold
& Gokhale 1998). Convex in log P. For any conditionals R_m with Σ_m R_m = Σ_m q_m at every state the objective is at
least Σ_m Σ_{x_C} H(R_m) - H(q_m), and exceeds it by Σ_m Σ_{x_C} KL(R_m || P_m). R_m = P_m (1 - h + E_m h), h being
Newton's step, is such a family. Rounding: R is one for tables that differ from those stated by 1e-11 at most.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from flexgen.compatibility.exact.family import ConditionalFamily, ConditionalLaw
from flexgen.compatibility.exact.graph import line_numbers
from flexgen.compatibility.exact.newton import Point, conjugate_gradients

__all__ = ["ArnoldGokhale", "Information"]

_NEGLIGIBLE = (0.0, 1e-12, 1e-10, 1e-8, 1e-6)  # tried in turn until the gap is proved to be
_PROVED = 1e-10  # relative
_ROUNDING = 1e-11  # of sums of tables


class _Entropies:
    """What both problems share: a support, its connected parts, and conditionals of a law given by its logarithm."""

    def __init__(self, family: ConditionalFamily, support: Tensor) -> None:
        self.family, self.support = family, support
        self.tables = [law.table for law in family.conditionals]
        self.others = [tuple(i for i in range(family.num_sites) if i not in law.sites) for law in family.conditionals]
        self.part = self._parts()  # [S], the connected part of each state of the support
        self.num_parts = int(self.part.max()) + 1

    def _parts(self) -> Tensor:
        """Parts of the support that no conditional compares; a law may share its mass among them at will."""
        if not self.family.is_complete or bool(self.support.all()):
            return torch.zeros(self.family.num_states, dtype=torch.int64)
        member = self.support.flatten().numpy()
        source, sink, start = [], [], self.family.num_states
        for law in self.family.conditionals:
            line, count = line_numbers(self.family.shape, law.target)
            source.append(np.flatnonzero(member))
            sink.append(line[member] + start)
            start += count
        rows, columns = np.concatenate(source), np.concatenate(sink)
        edges = csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(start, start))
        label = connected_components(edges, directed=False)[1][: self.family.num_states]
        part = np.zeros(self.family.num_states, dtype=np.int64)
        part[member] = np.unique(label[member], return_inverse=True)[1]
        return torch.from_numpy(part)

    def start(self) -> Tensor:
        """The uniform law on the support, as logarithms."""
        return torch.where(self.support, 0.0, -torch.inf).double()

    def normalised(self, theta: Tensor) -> Tensor:
        """theta, each part a law of its own; shaped as a table."""
        flat = torch.where(self.support, theta, -torch.inf).flatten()
        if self.num_parts == 1:
            return (flat - flat.logsumexp(0)).view(self.family.shape)
        top = torch.full((self.num_parts,), -torch.inf, dtype=flat.dtype).scatter_reduce(0, self.part, flat, "amax")
        total = self.total((flat - top[self.part]).exp())
        return (flat - top[self.part] - total.log()[self.part]).view(self.family.shape)

    def total(self, values: Tensor) -> Tensor:
        """Sums over each part, ``[num_parts]``."""
        return torch.zeros(self.num_parts, dtype=values.dtype).index_add_(0, self.part, values.flatten())

    def log_conditionals(self, theta: Tensor) -> list[Tensor]:
        """log p(x_P | x_C) for every conditional of the family; zero where the law has no mass."""
        logs = []
        for law, others in zip(self.family.conditionals, self.others, strict=True):
            joint = theta.logsumexp(others, keepdim=True) if others else theta
            log = joint - joint.logsumexp(law.target, keepdim=True)
            logs.append(torch.where(joint > -torch.inf, log, 0.0))
        return logs


class Information(_Entropies):
    """min_r Σ_m KL(r || r_{-m} q_m), over laws on the states that every conditional gives mass."""

    def __init__(self, family: ConditionalFamily) -> None:
        support = torch.ones(family.shape, dtype=torch.bool)
        for law in family.conditionals:
            support = support & (law.table > 0)
        super().__init__(family, support)
        self.log_tables = [torch.where(table > 0, table.log(), 0.0) for table in self.tables]

    def scores(self, theta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """G, and the log conditionals it is made of."""
        logs = self.log_conditionals(theta)
        score = torch.zeros(self.family.shape, dtype=torch.float64)
        for log, table in zip(logs, self.log_tables, strict=True):
            score = score + (log - table)
        return score, logs

    def at(self, theta: Tensor) -> Point:
        theta = self.normalised(theta)
        law = theta.exp()
        score, logs = self.scores(theta)
        values = self.total(law * score)  # [num_parts], f of each part
        lowest = torch.full_like(values, torch.inf).scatter_reduce(
            0, self.part, torch.where(self.support, score, torch.inf).flatten(), "amin"
        )
        gradient = law * (score - values[self.part].view(self.family.shape))
        conditionals = [log.exp() for log in logs]
        mass = [law.sum(others, keepdim=True) if others else law for others in self.others]

        def curvature(direction: Tensor) -> Tensor:
            product = torch.zeros_like(direction)
            for stated, others, total, conditional in zip(
                self.family.conditionals, self.others, mass, conditionals, strict=True
            ):
                mean = direction
                if others:
                    mean = torch.where(total > 0, (law * direction).sum(others, keepdim=True) / total, 0.0)
                product = product + (mean - (conditional * mean).sum(stated.target, keepdim=True))
            return law * product

        off = float((values - lowest).max())
        return Point(theta, float(values.sum()), gradient, len(self.tables) * law, off, curvature)

    def optimum(self, point: Point) -> tuple[Tensor, float, float]:
        """The law of the best parts, its objective and the lower bound."""
        law = point.theta.exp()
        score, _ = self.scores(point.theta)
        values = self.total(law * score)
        best = values <= values.min() + 1e-9
        law = law * best[self.part].view(self.family.shape)
        law = law / law.sum()
        return law, float((law * score).sum()), float(score[self.support].min())


class ArnoldGokhale(_Entropies):
    """min_P Σ_m Σ_{x_C} KL(q_m(. | x_C) || P(. | x_C)), over laws on the states that some conditional gives mass."""

    def __init__(self, family: ConditionalFamily) -> None:
        support = torch.zeros(family.shape, dtype=torch.bool)
        for law in family.conditionals:
            support = support | (law.table > 0)
        super().__init__(family, support)
        self.entropies = [torch.special.entr(table).sum() for table in self.tables]

    def at(self, theta: Tensor) -> Point:
        theta = self.normalised(theta)
        objective = 0.0
        gradient = torch.zeros(self.family.shape, dtype=torch.float64)
        weight = torch.zeros_like(gradient)
        conditionals = []
        for log, table, entropy in zip(self.log_conditionals(theta), self.tables, self.entropies, strict=True):
            conditional = torch.where(self.support, log.exp(), 0.0)
            objective -= float((table * log).sum() + entropy)
            gradient = gradient + (conditional - table)
            weight = weight + conditional
            conditionals.append(conditional)

        def curvature(direction: Tensor) -> Tensor:
            product = torch.zeros_like(direction)
            for stated, conditional in zip(self.family.conditionals, conditionals, strict=True):
                product = product + conditional * self._deviation(stated, conditional, direction)
            return product

        return Point(theta, objective, gradient, weight, float(gradient.abs().sum()), curvature)

    def optimum(self, point: Point) -> tuple[Tensor, float, float]:
        """The law, its objective and the lower bound of the dual."""
        bound = 0.0  # no divergence is negative
        for share in _NEGLIGIBLE:
            bound = min(point.objective, max(bound, self._bound(point, share)))
            if point.objective - bound <= _PROVED * (1 + point.objective):
                break
        law = point.theta.exp() / self.num_parts
        return law / law.sum(), point.objective, bound

    def _bound(self, point: Point, share: float) -> float:
        """The dual at R_m = P_m (1 - h + E_m h), P_m being zero where it is below `share` of the state's largest P_m.

        In the limit of the best laws some contexts have no mass, but conditionals all the same. Near it P_m is tiny at
        the states that lead there, h is large and such an R_m may be negative; in the limit both are zero.
        """
        logs = self.log_conditionals(point.theta)
        whole = [torch.where(self.support, log.exp(), 0.0) for log in logs]
        least = share * torch.stack(whole).amax(0)
        kept = [torch.where(each >= least, each, 0.0) for each in whole]
        kept = [
            each / each.sum(law.target, keepdim=True) for law, each in zip(self.family.conditionals, kept, strict=True)
        ]
        weight = torch.stack(kept).sum(0)
        asked = torch.stack(self.tables).sum(0)

        def curvature(direction: Tensor) -> Tensor:
            product = torch.zeros_like(direction)
            for stated, conditional in zip(self.family.conditionals, kept, strict=True):
                product = product + conditional * self._deviation(stated, conditional, direction)
            return product

        right, step = weight - asked, torch.zeros_like(weight)
        largest = float(right.abs().max())
        if largest > _ROUNDING:  # steps beyond rounding go astray
            solving = replace(point, weight=weight, curvature=curvature)
            step = conjugate_gradients(solving, right, accuracy=min(0.1, max(1e-12, 0.1 * _ROUNDING / largest)))
        off, gap = -asked, 0.0
        for stated, conditional, each in zip(self.family.conditionals, kept, whole, strict=True):
            answer = conditional * (1 - self._deviation(stated, conditional, step))
            if bool((answer < 0).any()):
                return 0.0
            off = off + answer
            gap += float((torch.special.xlogy(answer, answer / each.clamp_min(1e-300)) - answer + each).sum())
        if float(off.abs().max()) > _ROUNDING:  # no sum of the tables: it proves nothing
            return 0.0
        return point.objective - gap - abs(float(torch.where(self.support, off * point.theta, 0.0).sum()))

    @staticmethod
    def _deviation(stated: ConditionalLaw, conditional: Tensor, direction: Tensor) -> Tensor:
        """The direction less its conditional mean."""
        return direction - (conditional * direction).sum(stated.target, keepdim=True)
