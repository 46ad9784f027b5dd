"""A test of compatibility for conditionals fitted to data by any method, from their refits to resamples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from flexgen.checks import kind_of
from flexgen.compatibility.exact.cycles import rectangle_rank
from flexgen.compatibility.networks.effects import Verdict
from flexgen.compatibility.samples.arguments import check_significance, numbers
from flexgen.compatibility.samples.estimated import EstimatedTest
from flexgen.errors import DataError

__all__ = ["refits_test"]

_MAX_ENTRIES = 4096  # of all tables together: the equations come from a dense decomposition


def refits_test(estimates: Sequence[Tensor], refits: Tensor, *, significance: float = 0.05) -> EstimatedTest:
    """Test for conditionals fitted by any method, whose sampling error is known from refits to resampled rows.

    Hotelling's T-squared of all log odds ratio gaps, their covariance estimated from the refits. The conditionals may
    be fitted to the same rows: refits of one resample belong together, and carry the covariance between conditionals.
    Gaps that no refit moves (of fits without interactions) are left out of the degrees of freedom; where such a gap is
    not zero, no sampling error explains it, and the p-value is 0.

    Args:
        estimates: for each site p(x_i | rest), ``[V_0, .., V_{N-1}]``, positive.
        refits: ``[R, N, V_0, .., V_{N-1}]``, all conditionals fitted anew to R bootstrap resamples of the rows.
        significance: probability of refuting compatible conditionals.

    Raises:
        DataError: tables that are not positive, fewer than twice as many refits as equations, or refits that are all
            alike.
        FlexgenError: a significance that is no probability.
    """
    check_significance(significance)
    laws, others, roundoff = _checked(estimates, refits)
    contrasts = _contrasts(laws.shape[1:])
    if len(others) < 2 * len(contrasts):
        raise DataError(
            "refits", f"are {len(others)} for {len(contrasts)} equations", "Pass at least twice as many refits."
        )
    if len(others) > 1 and bool((others == others[0]).all()):
        raise DataError("refits", "are all alike", "Fit each to a resample of the rows, drawn with replacement.")
    gap = contrasts @ laws.log().flatten()
    spread = torch.cov((others.log().flatten(1) @ contrasts.T).T)
    values, vectors = torch.linalg.eigh(spread.reshape(len(contrasts), -1))
    # What rounding of the tables, or of their logarithms, moves is not moved.
    rounding = roundoff * max(float(others.log().abs().max()), 1.0)
    kept = (values > 1e-9 * values[-1]) & (values > (16 * rounding) ** 2)
    along = vectors[:, kept].T @ gap
    rank, num_refits = int(kept.sum()), len(others)
    statistic = float((along**2 / values[kept]).sum())
    still = (vectors[:, ~kept].T @ gap).abs()
    # A gap that no refit moves, and that is there, is no sampling error.
    rigid = len(still) > 0 and float(still.max()) > max(1e-6, 16 * rounding * math.sqrt(laws.numel()))
    p_value = 0.0 if rigid else 1.0
    if rank and not rigid:
        ratio = statistic * (num_refits - rank) / (rank * (num_refits - 1))
        p_value = float(stats.f.sf(ratio, rank, num_refits - rank))
    verdict: Verdict = "refuted" if p_value < significance else "not refuted"
    rows = (num_refits,) * len(laws)
    return EstimatedTest(
        "Hotelling test from refits", statistic, rank, p_value, significance, rows, None, None, verdict
    )


def _checked(estimates: Any, refits: Any) -> tuple[Tensor, Tensor, float]:
    """Tables ``[N, V_0, ..]`` and ``[R, N, V_0, ..]``, float64, and the roundoff of those that were passed."""
    fix = "Pass N tables of N axes as estimates, and [R, N, V_0, ..] as refits."
    if isinstance(estimates, str) or not isinstance(estimates, Iterable):
        raise DataError("estimates", f"is {kind_of(estimates)}", fix)
    tables = [numbers(f"estimates[{i}]", table, fix) for i, table in enumerate(estimates)]
    others = numbers("refits", refits, fix)
    shapes = {tuple(table.shape) for table in tables}
    if len(tables) < 2 or len(shapes) > 1 or tables[0].ndim != len(tables):
        raise DataError("estimates", f"have shapes {[tuple(table.shape) for table in tables]}", fix)
    shape = (len(tables), *tables[0].shape)
    if others.shape[1:] != shape:
        raise DataError("refits", f"has shape {tuple(others.shape)}, estimates {shape}", fix)
    if min(shape[1:]) < 2:
        raise DataError("estimates", f"have shape {shape[1:]}", "Leave out sites of a single value.")
    if math.prod(shape) > _MAX_ENTRIES:
        raise DataError("estimates", f"hold {math.prod(shape)} probabilities", f"Test blocks of up to {_MAX_ENTRIES}.")
    kinds = {table.dtype for table in (*tables, others) if table.is_floating_point()}
    roundoff = max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float64).eps)
    laws, others = torch.stack([t.to("cpu", torch.float64) for t in tables]), others.to("cpu", torch.float64)
    for argument, values in (("estimates", laws), ("refits", others)):
        wrong = ~((values > 0) & values.isfinite())
        if bool(wrong.any()):
            worst = float(values[wrong][0])
            raise DataError(argument, f"hold a probability of {worst:g}", "Log odds ratios need positive tables.")
    return laws, others, roundoff


def _contrasts(shape: Sequence[int]) -> Tensor:
    """Orthonormal equations of compatible log conditionals, ``[df, N * S]``: what no f and g_i can explain."""
    num_states, num_sites = math.prod(shape), len(shape)
    states = torch.arange(num_states).view(*shape)
    joint = torch.eye(num_states, dtype=torch.float64).repeat(num_sites, 1)  # f, in every conditional
    columns = [joint]
    for i in range(num_sites):
        lines = states.movedim(i, 0)[0].flatten()
        line_of = states.select(i, 0).unsqueeze(i).expand(*shape).flatten()
        own = torch.zeros(num_sites, num_states, len(lines), dtype=torch.float64)
        own[i] = (line_of[:, None] == lines).to(torch.float64)
        columns.append(own.flatten(0, 1))  # g_i, in the i-th conditional only
    vectors: Tensor = torch.linalg.svd(torch.cat(columns, 1))[0]
    return vectors[:, num_sites * num_states - rectangle_rank(shape) :].T
