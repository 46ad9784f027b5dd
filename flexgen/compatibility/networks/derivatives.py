"""Infinitesimal rectangles: mixed second derivatives of real sites' log densities, by automatic differentiation.

If two real sites have a joint given the rest, then

    d^2 / dx_i dx_j  log p(x_i | x_j, C)  =  d^2 / dx_i dx_j  log p(x_j | x_i, C),

both being the derivative of its logarithm: the limit of the log odds ratio over the rectangle's area. One row and
its two backward passes give the derivatives of a site's answer with every other site, so that N rows hold all pairs
of a context; finite rectangles (`rectangles`) see further than the point, and need no derivatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from flexgen.compatibility.networks.arguments import checked_observed, checked_rows, checked_sites, numbers
from flexgen.compatibility.networks.diagnostic import Diagnostic, Found, Plan, Subject
from flexgen.compatibility.networks.effects import Cost, Effect
from flexgen.compatibility.networks.rectangles import all_pairs
from flexgen.compatibility.networks.rounding import Rounding, stands_for_itself, unit_roundoff, variants
from flexgen.compatibility.networks.sites import SiteAnswers
from flexgen.conditional import Conditional, HasMarginals
from flexgen.errors import UnsupportedQueryError
from flexgen.query import Query

__all__ = ["DerivativeDiagnostic", "derivative_gaps", "mixed_derivatives", "spread_of"]

_PROBED_ROWS, _SAFETY, _OPERATIONS = 16, 4.0, 16.0


def derivative_gaps(
    conditional: Conditional | SiteAnswers,
    x: Tensor,
    *,
    sites: Tensor | None = None,
    observed: Tensor | None = None,
    spread: Tensor | None = None,
    rounding: Rounding | None = None,
) -> Effect:
    """H_ij - H_ji at every data row and pair of real sites, times the spreads of both, in nats.

    Args:
        conditional: its marginals are differentiable in x, twice (or `SiteAnswers` of one).
        x: ``[R, N]``, data rows, NaN where an entry is missing.
        sites: int64 ``[S]``, real sites; default: all of them.
        observed: bool ``[R, N]``, the context and the sites; default: every present entry.
        spread: ``[N]``, what counts as a step of each site; default: the standard deviation of x.
        rounding: of the answers; default: that of the conditional's weights, or float32's.

    Raises:
        UnsupportedQueryError: no marginals, answers without gradient, or a site that is not real.

    Cost: a row a site and data row, with two backward passes; a few more to measure rounding.
    """
    return _gaps(conditional, x, sites, observed, spread, rounding)[0]


def _gaps(
    conditional: Conditional | SiteAnswers,
    x: Tensor,
    sites: Tensor | None,
    observed: Tensor | None,
    spread: Tensor | None,
    rounding: Rounding | None,
) -> tuple[Effect, Tensor]:
    """The effect, and the derivatives d^2 log p(x_i | rest) / dx_i dx_j in units of spreads, ``[R, S, S]``."""
    answers = conditional if isinstance(conditional, SiteAnswers) else SiteAnswers(conditional)
    space, before = answers.conditional.space, answers.cost
    x = checked_rows("x", x, space.num_sites)
    x = x if x.is_floating_point() else x.double()
    is_real = torch.tensor([site.kind == "real" for site in space.sites])
    sites = is_real.nonzero()[:, 0] if sites is None else checked_sites("sites", sites, space.num_sites, (1,))
    sites, device = torch.unique(sites), x.device
    if not bool(is_real[sites].all()):
        wrong = int(sites[~is_real[sites]][0])
        raise UnsupportedQueryError("sites", f"holds {space.names[wrong]!r}, which is not real", "Name real sites.")
    present = answers.present_in(x)
    observed = checked_observed("observed", observed, present)
    spread = spread_of(x, present) if spread is None else numbers("spread", spread, space.num_sites).to(device)
    pairs = sites[all_pairs(len(sites))].to(device)
    every = mixed_derivatives(answers, x, sites, observed)  # [R, S, N]
    one = _by_pairs(every, pairs, sites)  # [2, R, P]

    # Noise: what moving the inputs by rounding does, and that of matrices of these numbers, whose error is of the
    # size of the dimension times the largest of them (diagonal included), in units of roundoff.
    unit = rounding.unit_roundoff if rounding else unit_roundoff(answers.conditional)
    generator = torch.Generator().manual_seed(0)
    other, rows = next(variants(answers, x[:_PROBED_ROWS], stands_for_itself(x)[:_PROBED_ROWS], unit, generator, 1))
    near = mixed_derivatives(other, rows, sites, observed[:_PROBED_ROWS])
    step = spread[pairs].prod(-1).double()  # [P]
    noise = (_by_pairs(near, pairs, sites) - one[:, :_PROBED_ROWS]).abs().nan_to_num(0.0).amax((0, 1)) * step  # [P]
    among = every[..., sites.to(device)] * spread[sites.to(device), None] * spread[sites.to(device)]  # [R, S, S]
    largest = among.abs().nan_to_num(0.0).amax((1, 2))  # [R]
    floor = 2 * _SAFETY * noise + (_OPERATIONS * unit * len(sites) * largest)[:, None]  # [R, P]
    gap = (one[0] - one[1]) * step
    row, pair = (observed[:, pairs].all(-1)).nonzero(as_tuple=True)
    values = gap[row, pair]
    effect = Effect(
        "derivative gap",
        values,
        torch.ones_like(values),
        row,
        pairs[pair],
        floor[row, pair],
        answers.cost - before,
    )
    return effect, among


def spread_of(x: Tensor, present: Tensor) -> Tensor:
    """Standard deviation of every column's present entries, float64 ``[N]``."""
    count = present.sum(0).clamp_min(2)
    mean = torch.where(present, x.double(), 0.0).sum(0) / count
    return (torch.where(present, (x.double() - mean).square(), 0.0).sum(0) / (count - 1)).sqrt()


def mixed_derivatives(answers: SiteAnswers, x: Tensor, sites: Tensor, observed: Tensor) -> Tensor:
    """d^2 log p(x_i | rest) / dx_i dx_j, float64 ``[R, S, N]``, for i in `sites`; NaN where the row has no x_i.

    Args:
        answers: of a conditional with differentiable marginals.
        x: ``[R, N]``.
        sites: int64 ``[S]``.
        observed: bool ``[R, N]``.
    """
    if not isinstance(answers.conditional, HasMarginals):
        raise UnsupportedQueryError("conditional", "has no marginals to differentiate", "Use rectangles.")
    out = torch.full((*x.shape[:1], len(sites), x.shape[1]), torch.nan, dtype=torch.float64, device=x.device)
    row, slot = observed[:, sites.to(x.device)].nonzero(as_tuple=True)
    for some in torch.split(torch.arange(len(row), device=x.device), answers.batch_size):
        r, s = row[some], slot[some]
        site = sites.to(x.device)[s][:, None]  # [b, 1]
        target = torch.zeros_like(observed[r]).scatter(1, site, True)
        values = x[r].nan_to_num(0.0).requires_grad_()
        query = Query(target, observed[r] & ~target)
        mixed = _mixed(answers.conditional, values, query, site)
        if mixed is None:
            name = type(answers.conditional).__name__
            raise UnsupportedQueryError(
                "conditional", f"{name} answers without gradient in what it observes", "Use rectangles."
            )
        out[r, s] = mixed.double()
        answers.cost += Cost(forwards=len(some), batches=1, needed=len(some))
    return out


def _mixed(conditional: HasMarginals, x: Tensor, query: Query, site: Tensor) -> Tensor | None:
    """Derivatives of each row's slope in its site ``[b, 1]`` with every site, ``[b, N]``; None without gradients."""
    with torch.enable_grad():
        try:
            log_prob = conditional.marginals(x, query).log_prob(x).gather(1, site).sum()
            if not log_prob.requires_grad:
                return None
            (first,) = torch.autograd.grad(log_prob, x, create_graph=True)
        except RuntimeError:  # torch's: operations in place, or without a derivative
            return None
        if not bool((first.detach() * query.observed).any()):  # detached from what it observes
            return None
        slope = first.gather(1, site).sum()
        if not slope.requires_grad:  # a constant slope
            return torch.zeros_like(x)
        (second,) = torch.autograd.grad(slope, x, allow_unused=True)
    return torch.zeros_like(x) if second is None else second.detach()


def _by_pairs(mixed: Tensor, pairs: Tensor, sites: Tensor) -> Tensor:
    """H_ij and H_ji of the pairs, ``[2, R, P]``, from ``[R, S, N]``."""
    place = torch.searchsorted(sites.to(pairs.device), pairs)  # [P, 2]; sites are sorted
    return torch.stack([mixed[:, place[:, 0], pairs[:, 1]], mixed[:, place[:, 1], pairs[:, 0]]])


_MOST_ROWS = 1024
_SAME = 1e-4  # by which second derivatives may differ between rows, relative to the largest, and still be the same


class DerivativeDiagnostic(Diagnostic):
    """Mixed derivatives of real sites, all of them if they can be had."""

    name = "mixed derivatives"
    effects: ClassVar[Mapping[str, str]] = {
        "derivative gap": "mixed derivative of log p(i|j) against that of log p(j|i), times the spread of both sites"
    }
    share = 0.05

    def applies(self, subject: Subject) -> bool:
        return len(subject.real_sites) > 1

    def least(self, subject: Subject) -> float:  # noqa: ARG002
        return 8.0  # two sites in two rows, twice

    def plan(self, subject: Subject, forwards: float, source: torch.Generator) -> Plan:
        real = subject.real_sites
        number, most_rows = min(len(real), int(forwards / 4 + 1e-9)), min(_MOST_ROWS, len(subject.order))
        if number < 2 or not most_rows:
            return Plan.nothing()
        sites = real[torch.randperm(len(real), generator=source)[:number].sort().values]
        contexts = int(forwards / number + 1e-9)  # the first 16 rows are evaluated twice
        rows = subject.order[: min(most_rows, max(contexts // 2, contexts - _PROBED_ROWS) if contexts > 1 else 0)]
        what = f"{number} real sites in each of {len(rows)} data rows"
        cost = number * (len(rows) + min(len(rows), _PROBED_ROWS))
        return Plan(rows, cost, what, sites, len(real) * (len(real) - 1) // 2)

    def measure(self, subject: Subject, x: Tensor, plan: Plan, part: slice) -> Found:  # noqa: ARG002
        spread = spread_of(subject.pool, subject.answers.present_in(subject.pool))
        effect, among = _gaps(subject.answers, x, plan.choices, None, spread, subject.rounding)
        return Found([effect], notes=_improper(among))


def _improper(among: Tensor) -> list[str]:
    """What second derivatives ``[R, S, S]`` that are the same in all rows say: of a Gaussian they are the precision.

    Agreement of all pairs makes that matrix symmetric, and no more: only if it is positive definite does the density
    that the conditionals agree on have a finite integral.
    """
    whole = among[among.isfinite().all(-1).all(-1)]
    if len(whole) < 2:
        return []
    precision = -whole.mean(0)
    largest = float(precision.abs().max())
    if not largest or float((whole + precision).abs().max()) > _SAME * largest:
        return []  # no Gaussian
    lowest = float(torch.linalg.eigvalsh((precision + precision.mT) / 2).min())
    if lowest > -_SAME * largest:
        return []
    return [
        "No proper joint: the conditionals of the real sites look Gaussian (their second derivatives are the same in "
        f"all rows), and their precision matrix is not positive definite (lowest eigenvalue {lowest:.3g} in units of "
        "the spreads): what they agree on has no finite integral."
    ]
