"""What rounding alone makes of a log-probability, and so of a statistic: the floating-point floor.

A statistic is a sum of log-probabilities L_k with coefficients c_k. If each carries an error of at most e_k, the
statistic carries at most sum |c_k| e_k. That is its floor: on a network whose exact answers have a joint, no value
exceeds it.

What is e_k? A log-probability read off `log_softmax`, or a log-density, is a sum of numbers of the size of L and of
1, in arithmetic of unit roundoff u (2^-24 in float32): e = 16 u (1 + |L|) covers it. The rest is inherited: a
network rounds its inputs, weights and activations. By backward error analysis (Wilkinson 1963; Higham 2002, chapter
1) a stable evaluation is the exact one at inputs and weights that are moved by some u, relatively. So they are
moved, by a random sign times u, and the answers compared: what the network calls different where arithmetic cannot
tell is noise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flexgen.compatibility.sites import Requests, SiteAnswers
from flexgen.exact import ConditionalTables, Gaussian, GaussianMixture, JointTable

if TYPE_CHECKING:
    from flexgen.conditional import Conditional

__all__ = ["Rounding", "moved", "unit_roundoff"]

_OPERATIONS = 16.0  # units of roundoff by which a log-probability may be off for its own arithmetic
_SAFETY = 4.0  # the largest of the moves that were tried, to the largest that could be
_QUESTIONS, _MOVES = 64, 8
_MOST_PARAMETERS = 1 << 28  # of a module that is copied to move its weights: 1 GiB in float32
_DOUBLE = (JointTable, ConditionalTables, Gaussian, GaussianMixture)  # families that compute in float64 throughout


@dataclass(frozen=True)
class Rounding:
    """An answer L, in nats, is off by at most ``relative * (1 + |L|)``."""

    relative: float

    def of(self, log_probs: Tensor) -> Tensor:
        """The most that each log-probability may be off."""
        return self.relative * (1.0 + log_probs.abs())

    @classmethod
    def measured(cls, answers: SiteAnswers, x: Tensor, observed: Tensor) -> Rounding:
        """From the precision of a conditional, and how its answers change where inputs and weights move by as much.

        Args:
            answers: of the conditional; the probes are counted in their cost.
            x: ``[R, N]``, data rows.
            observed: bool ``[R, N]``.

        Precision is that of its parameters; float64 for the exact families; float32 for anything else, since what a
        conditional answers in does not tell what it computed in. At most 64 questions are asked, nine times where
        there are real sites, and twice more where there are weights.
        """
        unit = unit_roundoff(answers.conditional)
        generator = torch.Generator().manual_seed(0)
        row, site = observed.nonzero(as_tuple=True)
        if len(row) == 0:
            return cls(_OPERATIONS * unit)
        chosen = torch.randperm(len(row), generator=generator)[:_QUESTIONS].to(row.device)
        row, site = row[chosen], site[chosen]
        base, sets = x[row].clone(), observed[row].scatter(1, site[:, None], False)
        before = _log_prob(answers, base, sets, site)
        real = torch.tensor([s.kind == "real" for s in answers.conditional.space.sites], device=x.device)
        worst = 0.0
        if bool(real.any()):
            rows = torch.cat([torch.where(real, moved(base, unit, generator), base) for _ in range(_MOVES)])
            after = _log_prob(answers, rows, sets.repeat(_MOVES, 1), site.repeat(_MOVES))
            worst = _largest(before.repeat(_MOVES), after)
        conditional = answers.conditional
        if isinstance(conditional, nn.Module) and 0 < _num_parameters(conditional) <= _MOST_PARAMETERS:
            other = SiteAnswers(_with_moved_weights(conditional, unit, generator), batch_size=answers.batch_size)
            worst = max(worst, _largest(before, _log_prob(other, base, sets, site)))
            answers.cost += other.cost
        return cls(max(_OPERATIONS * unit, _SAFETY * worst))


def unit_roundoff(conditional: Conditional) -> float:
    """u of the arithmetic a conditional computes in: half the gap between 1 and the next number."""
    if isinstance(conditional, _DOUBLE):
        return torch.finfo(torch.float64).eps / 2
    kinds = [torch.float32]
    if isinstance(conditional, nn.Module):
        kinds += [p.dtype for p in conditional.parameters() if p.is_floating_point()]
    return max(torch.finfo(kind).eps for kind in kinds) / 2


def moved(values: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """Every number times 1 + u or 1 - u."""
    signs = 2.0 * torch.randint(2, values.shape, generator=generator).to(values.device) - 1.0
    return (values.double() * (1.0 + unit * signs)).to(values.dtype)


def _with_moved_weights(conditional: nn.Module, unit: float, generator: torch.Generator) -> Conditional:
    changed = copy.deepcopy(conditional)
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.is_floating_point():
                # Twice the roundoff, so that rounding to the weight's own precision leaves a move.
                parameter.copy_(moved(parameter, 2.0 * unit, generator))
    return changed  # type: ignore[return-value]


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _log_prob(answers: SiteAnswers, x: Tensor, observed: Tensor, site: Tensor) -> Tensor:
    own = x.gather(1, site[:, None]).double()
    return answers.log_prob(Requests(site, lambda some: (x[some], observed[some])), own)[:, 0]


def _largest(before: Tensor, after: Tensor) -> float:
    change = ((after - before).abs() / (1.0 + before.abs())).nan_to_num(0.0, 0.0, 0.0)
    return float(change.max()) if len(change) else 0.0
