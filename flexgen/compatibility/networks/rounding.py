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

Two things are known best by the conditional itself: where its arithmetic is coarse (a table model maps a column to a
latent in float64, and rounds the latent to float32: a column near 1e5 loses nothing), and which values stand for
themselves (zero in a zero-inflated column, a code: they are not rounded, and beside them lies another distribution).
It may say so, see `HasRoundoff`. Of one that does not, values that repeat in a column are taken to stand for
themselves, and whether it computes in float64 is tried out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flexgen.checks import is_number, kind_of
from flexgen.compatibility.networks.sites import Requests, SiteAnswers
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, Gaussian, GaussianMixture, JointTable

__all__ = ["HasRoundoff", "Rounding", "moved", "stands_for_itself", "unit_roundoff", "variants"]

_OPERATIONS = 16.0  # units of roundoff by which a log-probability may be off for its own arithmetic
_SAFETY = 4.0  # the largest of the moves that were tried, to the largest that could be
_QUESTIONS, _MOVES, _FEW_MOVES = 64, 8, 2
_MOST_PARAMETERS = 1 << 28  # of a module that is copied to move its weights: 1 GiB in float32
_TF32_EPS = 2.0**-10  # ten bits behind the point
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53  # units of roundoff
_TABLES = (JointTable, ConditionalTables, Gaussian, GaussianMixture)  # families that compute in float64 throughout
_COARSE_STEP, _FINE_STEP = 2.0**-28, 2.0**-34  # both below float32's roundoff and far above float64's
_LINEAR = 0.02  # by which the answers to the two may miss the ratio of the steps
_ATOM_SHARE, _ATOM_ROWS = 0.05, 5  # of a rounded column's rows, from which on a value stands for itself


@runtime_checkable
class HasRoundoff(Conditional, Protocol):
    """A conditional that knows what rounding does to it. Optional: of others it is measured from outside."""

    @property
    def unit_roundoff(self) -> float:
        """u of the coarsest arithmetic that its answers pass, such as 2^-24 for float32."""
        ...

    def moved_by_roundoff(self, *, generator: torch.Generator) -> Conditional:
        """The same conditional with each number that it rounds moved by about one roundoff, by random signs.

        A copy: its rounded inputs and its weights are moved; values that stand for themselves (codes, atoms) are not.
        """
        ...


@dataclass(frozen=True)
class Rounding:
    """An answer L, in nats, is off by at most ``relative * (1 + |L|)``.

    Args:
        relative: a small positive number; 1e-6 suits float32 networks that inherit little.
        unit: unit roundoff of the arithmetic, by which derivatives are probed; default: a sixteenth of `relative`.
    """

    relative: float
    unit: float | None = None

    def __post_init__(self) -> None:
        for name in ("relative", "unit"):
            value = getattr(self, name)
            if (value is not None or name == "relative") and not (is_number(value) and 0 < value < math.inf):
                raise FlexgenError(name, f"is {kind_of(value)}", "Pass a positive number, such as 1e-6.")

    @classmethod
    def given(cls, rounding: Any) -> Rounding | None:
        """What an option `rounding` says: itself, a number for ``relative``, or None."""
        if rounding is None or isinstance(rounding, Rounding):
            return rounding
        if not is_number(rounding) or not 0 < rounding < math.inf:
            fix = "Pass flexgen.compatibility.Rounding(1e-6), a number such as 1e-6, or None: it is then measured."
            raise FlexgenError("rounding", f"is {kind_of(rounding)}", fix)
        return cls(float(rounding))

    @property
    def unit_roundoff(self) -> float:
        return self.relative / _OPERATIONS if self.unit is None else self.unit

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

        Precision is what the conditional says (`HasRoundoff`), or that of its weights, or of the arithmetic torch is
        set to; float64 for the exact families. What an answer comes in does not tell what it was computed in: a
        conditional that may compute in float64 (its weights do, or it has real sites and no weights) is moved by 2^-28
        and by 2^-34. Only in float64 the changes are as 64 to 1; otherwise it is held to float32. At most 64 questions
        are asked, up to twelve times. With few rows to spend, fewer, and the largest change counts for more.
        """
        conditional = answers.conditional
        unit, generator = unit_roundoff(conditional), torch.Generator().manual_seed(0)
        passes = _passes(conditional, x, _MOVES)
        row, site = observed.nonzero(as_tuple=True)
        if len(row) == 0 or passes == 0:
            return cls(_OPERATIONS * unit, unit)
        number, safety, num_moves = _QUESTIONS, _SAFETY, _MOVES
        if most is not None and most < _QUESTIONS * passes:
            num_moves, safety = _FEW_MOVES, 4 * _SAFETY
            number = max(most // _passes(conditional, x, num_moves), 1)
        chosen = torch.randperm(len(row), generator=generator)[:number].to(row.device)
        row, site = row[chosen], site[chosen]
        rows, sets, still = x[row].clone(), observed[row].scatter(1, site[:, None], False), stands_for_itself(x)[row]
        before = _log_prob(answers, rows, sets, site)
        if _may_be_double(conditional, x) and _is_double(answers, rows, sets, site, before, still, generator):
            unit = _DOUBLE
        worst = 0.0
        for other, near in variants(answers, rows, still, unit, generator, num_moves):
            worst = max(worst, _largest(before, _log_prob(other, near, sets, site)))
            if other is not answers:
                answers.cost += other.cost
        return cls(max(_OPERATIONS * unit, safety * worst), unit)

    @staticmethod
    def least(conditional: Conditional, x: Tensor) -> int:
        """Rows without which nothing can be measured, for data like x; 0 where nothing has to be."""
        return _passes(conditional, x, _FEW_MOVES)

    @staticmethod
    def most(conditional: Conditional, x: Tensor) -> int:
        """Rows that a measurement takes at most."""
        return _QUESTIONS * _passes(conditional, x, _MOVES)


def unit_roundoff(conditional: Conditional) -> float:
    """u of the arithmetic a conditional says it computes in: half the gap between 1 and the next number.

    The coarsest of its weights' and of what torch is set to on their device: autocast, and products of float32
    matrices or convolutions in TF32 or bfloat16. What a model switches on inside its own forward is not seen. Where
    nothing else is known, float32's.
    """
    if isinstance(conditional, HasRoundoff):
        return max(conditional.unit_roundoff, _DOUBLE)
    if isinstance(conditional, _TABLES):
        return _DOUBLE
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


def variants(
    answers: SiteAnswers, rows: Tensor, still: Tensor, unit: float, generator: torch.Generator, num_moves: int
) -> Iterator[tuple[SiteAnswers, Tensor]]:
    """Computations that arithmetic cannot tell from p(x_i | x_C) at these rows: other answers, or other rows.

    Args:
        answers: of the conditional.
        rows: ``[B, N]``.
        still: bool ``[B, N]``, entries that stand for themselves.
        unit: of roundoff.
        generator: of the signs.
        num_moves: of inputs, or of a conditional that moves itself.
    """
    conditional = answers.conditional
    if isinstance(conditional, HasRoundoff):
        for _ in range(num_moves):
            other = conditional.moved_by_roundoff(generator=generator)
            yield SiteAnswers(other, batch_size=answers.batch_size), rows
        return
    real = _real(conditional).to(rows.device)
    if bool(real.any()):
        for _ in range(num_moves):
            yield answers, torch.where(real & ~still, moved(rows, unit, generator), rows)
    if _has_weights(conditional):
        assert isinstance(conditional, nn.Module)
        # Twice the roundoff, so that rounding to the weight's own precision leaves a move.
        other = _with_moved_weights(conditional, 2.0 * unit, generator)
        yield SiteAnswers(other, batch_size=answers.batch_size), rows


def moved(values: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """Every number times 1 + u or 1 - u."""
    signs = 2.0 * torch.randint(2, values.shape, generator=generator).double().to(values.device) - 1.0
    return (values.double() * (1.0 + unit * signs)).to(values.dtype)


def _real(conditional: Conditional) -> Tensor:
    return torch.tensor([site.kind == "real" for site in conditional.space.sites])


def _has_weights(conditional: Conditional) -> bool:
    return isinstance(conditional, nn.Module) and 0 < _num_parameters(conditional) <= _MOST_PARAMETERS


def _passes(conditional: Conditional, x: Tensor, num_moves: int) -> int:
    """How often each question is asked; 0 where nothing has to be."""
    if isinstance(conditional, HasRoundoff):
        return 1 + num_moves
    others = num_moves * bool(_real(conditional).any()) + _has_weights(conditional)
    return 1 + others + 2 * _may_be_double(conditional, x) if others else 0


def stands_for_itself(x: Tensor) -> Tensor:
    """Entries that are no rounded numbers as far as the data tell, bool ``[R, N]``.

    In a column of which most values are there once, those that repeat: a number with a density does not. In a column
    of repeated (rounded) values, those with a twentieth of the rows.
    """
    still = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    for site, column in enumerate(x.unbind(1)):
        known = ~column.isnan() if column.is_floating_point() else torch.ones_like(column, dtype=torch.bool)
        _, of, count = torch.unique(column[known], return_inverse=True, return_counts=True)
        rounded = 2 * int((count == 1).sum()) < int(known.sum())
        least = max(_ATOM_ROWS, _ATOM_SHARE * int(known.sum())) if rounded else 2
        still[known, site] = count[of] >= least
    return still


def _may_be_double(conditional: Conditional, x: Tensor) -> bool:
    """Whether a conditional that is held to float32 might compute in float64, and can be tried."""
    if isinstance(conditional, (*_TABLES, HasRoundoff)):
        return False
    if isinstance(conditional, nn.Module):
        numbers = [*conditional.parameters(), *conditional.buffers()]
        dtypes = {n.dtype for n in numbers if n.is_floating_point()}
        if dtypes and dtypes != {torch.float64}:
            return False
    return _has_weights(conditional) or (x.dtype == torch.float64 and bool(_real(conditional).any()))


def _is_double(
    answers: SiteAnswers,
    rows: Tensor,
    sets: Tensor,
    site: Tensor,
    before: Tensor,
    still: Tensor,
    generator: torch.Generator,
) -> bool:
    """Whether answers follow moves of inputs and weights that float32 would lose or round up."""
    conditional, state = answers.conditional, generator.get_state()
    where = _real(conditional).to(rows.device) & ~still & (rows.dtype == torch.float64)
    changes = []
    for step in (_COARSE_STEP, _FINE_STEP):
        generator.set_state(state)  # the same signs
        # The value asked for stays: a density's own arithmetic does not tell what its parameters were computed in.
        near = torch.where(where & sets, moved(rows, step, generator), rows)
        other = answers
        if _has_weights(conditional):
            assert isinstance(conditional, nn.Module)
            other = SiteAnswers(_with_moved_weights(conditional, step, generator), batch_size=answers.batch_size)
        changes.append((_log_prob(other, near, sets, site) - before).nan_to_num(0.0, 0.0, 0.0))
        if other is not answers:
            answers.cost += other.cost
    coarse, fine = changes
    largest = float(coarse.abs().max())
    return largest > 0 and float((coarse - _COARSE_STEP / _FINE_STEP * fine).abs().max()) < _LINEAR * largest


def _float32_products(module: nn.Module, device: str) -> float:
    """eps of products of float32 matrices on a device."""
    precision = torch.get_float32_matmul_precision()
    if precision == "medium":
        return torch.finfo(torch.bfloat16).eps
    convolves = any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())
    if device == "cuda" and (precision == "high" or (convolves and torch.backends.cudnn.allow_tf32)):
        return _TF32_EPS
    return torch.finfo(torch.float32).eps


def _with_moved_weights(conditional: nn.Module, unit: float, generator: torch.Generator) -> Conditional:
    changed = copy.deepcopy(conditional)
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.is_floating_point():
                parameter.copy_(moved(parameter, unit, generator))
    return changed  # type: ignore[return-value]


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _log_prob(answers: SiteAnswers, x: Tensor, observed: Tensor, site: Tensor) -> Tensor:
    own = x.gather(1, site[:, None]).double()
    return answers.log_prob(Requests(site, lambda some: (x[some], observed[some])), own)[:, 0]


def _largest(before: Tensor, after: Tensor) -> float:
    change = ((after - before).abs() / (1.0 + before.abs())).nan_to_num(0.0, 0.0, 0.0)
    return float(change.max()) if len(change) else 0.0
