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

from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.exact import ConditionalTables, Gaussian, GaussianMixture, JointTable

if TYPE_CHECKING:
    from flexgen.conditional import Conditional

__all__ = ["Rounding", "moved", "unit_roundoff"]

_OPERATIONS = 16.0  # units of roundoff by which a log-probability may be off for its own arithmetic
_SAFETY = 4.0  # the largest of the moves that were tried, to the largest that could be
_QUESTIONS, _MOVES = 64, 8
_MOST_PARAMETERS = 1 << 28  # of a module that is copied to move its weights: 1 GiB in float32
_TF32_EPS = 2.0**-10  # ten bits behind the point
_DOUBLE = (JointTable, ConditionalTables, Gaussian, GaussianMixture)  # families that compute in float64 throughout


@dataclass(frozen=True)
class Rounding:
    """An answer L, in nats, is off by at most ``relative * (1 + |L|)``."""

    relative: float

    def of(self, log_probs: Tensor) -> Tensor:
        """The most that each log-probability may be off."""
        return self.relative * (1.0 + log_probs.abs())

    @classmethod
    def measured(cls, answers: SiteAnswers, x: Tensor, observed: Tensor, *, most: int | None = None) -> Rounding:
        """From the precision of a conditional, and how its answers change where inputs and weights move by as much.

        Args:
            answers: of the conditional; the probes are counted in their cost.
            x: ``[R, N]``, data rows.
            observed: bool ``[R, N]``.
            most: rows that may pass the network; at least `least`.

        Precision is that of its parameters, or of the arithmetic that torch is set to; float64 for the exact families;
        float32 for anything else, since the type of an answer is not that of the computation. At most 64
        queries are evaluated, nine times where there are real sites, and once more where there are weights. With few
        rows to spend, fewer, and the largest change counts for more.
        """
        conditional = answers.conditional
        unit = unit_roundoff(conditional)
        generator = torch.Generator().manual_seed(0)
        row, site = observed.nonzero(as_tuple=True)
        real = torch.tensor([s.kind == "real" for s in conditional.space.sites], device=x.device)
        num_moves, weighs = _MOVES * bool(real.any()), _has_weights(conditional)
        if len(row) == 0 or not (num_moves or weighs):
            return cls(_OPERATIONS * unit)
        number, safety = _QUESTIONS, _SAFETY
        if most is not None and most < _QUESTIONS * (1 + num_moves + weighs):
            num_moves = min(num_moves, 2)
            number, safety = max(most // (1 + num_moves + weighs), 1), 4 * _SAFETY
        chosen = torch.randperm(len(row), generator=generator)[:number].to(row.device)
        row, site = row[chosen], site[chosen]
        base, sets = x[row].clone(), observed[row].scatter(1, site[:, None], False)
        before = _log_prob(answers, base, sets, site)
        worst = 0.0
        if num_moves:
            rows = torch.cat([torch.where(real, moved(base, unit, generator), base) for _ in range(num_moves)])
            after = _log_prob(answers, rows, sets.repeat(num_moves, 1), site.repeat(num_moves))
            worst = _largest(before.repeat(num_moves), after)
        if weighs:
            assert isinstance(conditional, nn.Module)
            other = SiteAnswers(_with_moved_weights(conditional, unit, generator), batch_size=answers.batch_size)
            worst = max(worst, _largest(before, _log_prob(other, base, sets, site)))
            answers.cost += other.cost
        return cls(max(_OPERATIONS * unit, safety * worst))

    @staticmethod
    def least(conditional: Conditional) -> int:
        """Rows without which nothing can be measured; 0 where nothing has to be."""
        num_moves = 2 * any(site.kind == "real" for site in conditional.space.sites)
        return 1 + num_moves + _has_weights(conditional) if num_moves or _has_weights(conditional) else 0

    @staticmethod
    def most(conditional: Conditional) -> int:
        """Rows that a measurement takes at most."""
        num_moves, weighs = _MOVES * any(s.kind == "real" for s in conditional.space.sites), _has_weights(conditional)
        return _QUESTIONS * (1 + num_moves + weighs) if num_moves or weighs else 0


def unit_roundoff(conditional: Conditional) -> float:
    """u of the arithmetic a conditional computes in: half the gap between 1 and the next number.

    The coarsest of its weights' and of what torch is set to on their device: autocast, and products of float32
    matrices or convolutions in TF32 or bfloat16. What a model switches on inside its own forward is not seen.
    """
    if isinstance(conditional, _DOUBLE):
        return torch.finfo(torch.float64).eps / 2
    eps = [torch.finfo(torch.float32).eps]
    if isinstance(conditional, nn.Module):
        weights = [p for p in conditional.parameters() if p.is_floating_point()]
        eps += [torch.finfo(p.dtype).eps for p in weights]
        for device in {p.device.type for p in weights}:
            if torch.is_autocast_enabled(device):
                eps.append(torch.finfo(torch.get_autocast_dtype(device)).eps)
            if any(p.dtype == torch.float32 and p.device.type == device for p in weights):
                eps.append(_float32_products(conditional, device))
    return max(eps) / 2


def _float32_products(module: nn.Module, device: str) -> float:
    """eps of products of float32 matrices on a device."""
    precision = torch.get_float32_matmul_precision()
    if precision == "medium":
        return torch.finfo(torch.bfloat16).eps
    convolves = any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())
    if device == "cuda" and (precision == "high" or (convolves and torch.backends.cudnn.allow_tf32)):
        return _TF32_EPS
    return torch.finfo(torch.float32).eps


def _has_weights(conditional: Conditional) -> bool:
    return isinstance(conditional, nn.Module) and 0 < _num_parameters(conditional) <= _MOST_PARAMETERS


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
