"""Tests of compatibility for conditionals that were counted or fitted from data, and so carry sampling error.

Estimates of compatible conditionals never agree exactly. The question here is whether they disagree by more than their
sampling error. See docs/compatibility/estimated.md; `counted` holds the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility import counted
from flexgen.compatibility.effects import Verdict
from flexgen.compatibility.rectangle_gaps import LogOddsGap, gaps_of_counts
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.rng import Randomness

__all__ = ["EstimatedTest", "bootstrap_test", "refits_test", "wald_test"]

_MAX_STATES = 4096
_DRAWN_ENTRIES = 1 << 21  # float64 entries of new counts held at once


@dataclass(frozen=True)
class EstimatedTest:
    """Whether estimated conditionals disagree by more than their sampling error.

    Args:
        method: the test's name.
        statistic: its value, large where the conditionals disagree.
        degrees_of_freedom: independent equations that compatibility puts on the conditionals.
        p_value: probability of a statistic this large if the conditionals that were estimated are compatible.
        level: of the verdict, and of the intervals behind it.
        num_rows: rows of each sample (or refits of each conditional).
        worst: the rectangle whose two log odds ratios differ by most standard errors, where the test looks at them.
        margin: the gap in log odds ratios that the user holds negligible, if one was given.
        verdict: "refuted" if p_value is below the level; "equivalent within margin" if every rectangle's gap is, by its
            interval, under the margin; else "not refuted".
    """

    method: str
    statistic: float
    degrees_of_freedom: int
    p_value: float
    level: float
    num_rows: tuple[int, ...]
    worst: LogOddsGap | None
    margin: float | None
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"compatibility {self.verdict} at level {self.level:g}: {self.method}, statistic {self.statistic:.4g} "
            f"with {self.degrees_of_freedom} degrees of freedom, p = {self.p_value:.3g}",
            f"  rows: {', '.join(map(str, self.num_rows))}",
        ]
        if self.worst is not None:
            lines.append(f"  largest gap for its error: {self.worst}")
        if self.margin is not None:
            lines.append(f"  margin: {self.margin:g} in log odds ratios")
        return "\n".join(lines)


def wald_test(
    counts: Sequence[Tensor], *, level: float = 0.05, margin: float | None = None, correction: float = 0.5
) -> EstimatedTest:
    """Wald test that conditionals counted from independent samples share a joint.

    ``counts[i]`` counts the states of sample i, from which p(x_i | rest) is read; nothing else of that sample is used,
    so its rests may be chosen by design. Compatibility holds iff p(x_i | rest) and p(x_j | rest) have the same log odds
    ratio on every rectangle of two sites. The statistic weighs all of them by their covariance, and is chi-squared in
    large samples.

    Measured for a 3 x 3 table: the size is below 5 % (2 to 3 %) at 90 rows a sample and near 5 % from 300 on; in small
    samples `bootstrap_test` has more power.

    Args:
        counts: for each of N sites a table ``[V_0, .., V_{N-1}]``, from independent samples: one table counted once and
            passed N times is compatible by construction.
        level: probability of refuting compatible conditionals.
        margin: a gap in log odds ratios that is negligible to the user; it adds the verdict "equivalent within margin".
        correction: added to every cell (Haldane 1956, Anscombe 1956), which keeps logarithms finite.

    Raises:
        DataError: tables that are not counts of independent samples over the same sites, or too large (over 4096
            states).
    """
    tables = _checked_counts(counts, level, margin, correction)
    smoothed = tables + correction
    _, statistic = counted.fit_wald(smoothed[None])
    degrees = counted.degrees_of_freedom(tables.shape[1:])
    p_value = float(stats.chi2.sf(float(statistic), degrees))
    return _result("Wald test on log odds ratios", tables, smoothed, float(statistic), p_value, level, margin)


def bootstrap_test(
    counts: Sequence[Tensor],
    *,
    generator: Randomness,
    num_draws: int = 999,
    project: Callable[[ConditionalTables], Tensor | JointTable] | None = None,
    level: float = 0.05,
    margin: float | None = None,
    correction: float = 0.5,
) -> EstimatedTest:
    """Parametric bootstrap of the likelihood ratio: new samples are drawn from the closest joint's conditionals.

    The statistic is twice the log-likelihood that free conditionals gain over those of the best joint. Its law is
    simulated instead of taken to be chi-squared: `num_draws` times, every sample's values of x_i are drawn anew given
    the rests that it saw, from the joint closest to the estimates. The model is MCARtest's bootstrap for marginals
    (Berrett & Samworth 2023), with conditionals in their place.

    Args:
        counts, level, margin, correction: as for `wald_test`.
        generator: of the new samples.
        num_draws: how many; p-values are multiples of 1 / (num_draws + 1).
        project: the joint to draw from, a `JointTable` or ``[V_0, .., V_{N-1}]``, given the counted conditionals; for
            example ``lambda tables: closest_joint(tables, kind="I").joint``. Default: the joint of greatest likelihood,
            which weighs each conditional law by how often it was seen.

    Raises:
        DataError: as `wald_test`.
    """
    tables = _checked_counts(counts, level, margin, correction)
    whole_number("num_draws", num_draws, 19, DataError)
    smoothed = tables + correction
    law = None if project is None else _projected(project, smoothed).log()[None]
    source = rng.stream(rng.seed_from(generator), "bootstrap", device=tables.device)
    statistic, p_value = (
        float(answer[0])
        for answer in bootstrap_p_values(tables[None], law, source, num_draws=num_draws, correction=correction)
    )
    return _result("parametric bootstrap of the likelihood ratio", tables, smoothed, statistic, p_value, level, margin)


def bootstrap_p_values(
    counts: Tensor, law: Tensor | None, generator: torch.Generator, *, num_draws: int, correction: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Statistics and p-values, ``[R]`` each, of many data sets ``[R, N, V_0, ..]``: to measure size and power.

    Args:
        law: log joints ``[R, V_0, ..]`` to draw from; None: those of greatest likelihood.
    """
    smoothed = counts + correction
    best = counted.fit_likelihood(smoothed)
    observed = counted.likelihood_ratio(smoothed, best)
    log_conditionals = counted.conditionals(best if law is None else law)
    totals, drawn = counted.totals(counts), []
    together = max(1, _DRAWN_ENTRIES // counts.numel())
    for start in range(0, num_draws, together):
        copies = min(together, num_draws - start)
        laws, seen = (t.repeat(copies, *[1] * (t.ndim - 1)) for t in (log_conditionals, totals))
        new = counted.redraw(seen, laws, generator=generator) + correction
        drawn.append(counted.likelihood_ratio(new, counted.fit_likelihood(new)).view(copies, -1))
    # Equal up to rounding counts as at least as large: small tables repeat themselves.
    as_large = torch.cat(drawn) >= observed - 1e-9 * observed.abs()
    return observed, (1 + as_large.sum(0)).to(torch.float64) / (num_draws + 1)


def refits_test(estimates: Sequence[Tensor], refits: Tensor, *, level: float = 0.05) -> EstimatedTest:
    """Test for conditionals fitted by any method, whose sampling error is known from refits to resampled rows.

    Hotelling's T-squared of all log odds ratio gaps, their covariance estimated from the refits. The conditionals may
    be fitted to the same rows: refits of one resample belong together, and carry the covariance between conditionals.
    Gaps that no refit moves (of fits without interactions) are left out of the degrees of freedom.

    Args:
        estimates: for each site p(x_i | rest), ``[V_0, .., V_{N-1}]``, positive.
        refits: ``[R, N, V_0, .., V_{N-1}]``, all conditionals fitted anew to R bootstrap resamples of the rows.
        level: probability of refuting compatible conditionals.

    Raises:
        DataError: tables that are not positive, or fewer than twice as many refits as equations.
    """
    _check_level(level)
    laws = torch.stack([torch.as_tensor(t).to(torch.float64) for t in estimates])
    others = torch.as_tensor(refits).to(torch.float64)
    if others.shape[1:] != laws.shape or laws.ndim != len(laws) + 1:
        raise DataError(
            "refits",
            f"has shape {tuple(others.shape)}, estimates {tuple(laws.shape)}",
            "Pass N tables of N axes as estimates, and [R, N, V_0, ..] as refits.",
        )
    if bool((laws <= 0).any()) or bool((others <= 0).any()):
        raise DataError("estimates", "or refits hold a probability of 0", "Log odds ratios need positive tables.")
    shape = laws.shape[1:]
    contrasts = _contrasts(shape)
    if len(others) < 2 * len(contrasts):
        raise DataError(
            "refits", f"are {len(others)} for {len(contrasts)} equations", "Pass at least twice as many refits."
        )
    gap = contrasts @ laws.log().flatten()
    spread = torch.cov((others.log().flatten(1) @ contrasts.T).T)
    values, vectors = torch.linalg.eigh(spread.reshape(len(contrasts), -1))
    kept = values > 1e-9 * values[-1]
    along = vectors[:, kept].T @ gap
    rank, num_refits = int(kept.sum()), len(others)
    statistic = float((along**2 / values[kept]).sum())
    ratio = statistic * (num_refits - rank) / (rank * (num_refits - 1))
    # A gap that no refit moves, and that is there, is no sampling error.
    rigid = float((vectors[:, ~kept].T @ gap).abs().max()) > 1e-6 if rank < len(values) else False
    p_value = 0.0 if rigid else float(stats.f.sf(ratio, rank, num_refits - rank))
    verdict: Verdict = "refuted" if p_value < level else "not refuted"
    rows = (num_refits,) * len(laws)
    return EstimatedTest("Hotelling test from refits", statistic, rank, p_value, level, rows, None, None, verdict)


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
    return vectors[:, num_sites * num_states - counted.degrees_of_freedom(shape) :].T


def _projected(project: Callable[[ConditionalTables], Tensor | JointTable], smoothed: Tensor) -> Tensor:
    tables = ConditionalTables([t / t.sum(i, keepdim=True) for i, t in enumerate(smoothed)])
    answer = project(tables)
    joint = answer.p if isinstance(answer, JointTable) else torch.as_tensor(answer).to(torch.float64)
    if joint.shape != smoothed.shape[1:] or not bool((joint > 0).all()):
        raise FlexgenError(
            "project",
            f"returned a table of shape {tuple(joint.shape)} with smallest entry {float(joint.min()):.3g}",
            f"Return a positive joint of shape {tuple(smoothed.shape[1:])}.",
        )
    return joint


def _result(
    method: str,
    tables: Tensor,
    smoothed: Tensor,
    statistic: float,
    p_value: float,
    level: float,
    margin: float | None,
) -> EstimatedTest:
    worst, reach = gaps_of_counts(smoothed, level)
    verdict: Verdict = "not refuted"
    if p_value < level:
        verdict = "refuted"
    elif margin is not None and reach < margin:
        verdict = "equivalent within margin"
    rows = tuple(int(t.sum()) for t in tables)
    degrees = counted.degrees_of_freedom(tables.shape[1:])
    return EstimatedTest(method, statistic, degrees, p_value, level, rows, worst, margin, verdict)


def _checked_counts(counts: Sequence[Tensor], level: float, margin: float | None, correction: float) -> Tensor:
    """Counts as float64 ``[N, V_0, ..]``."""
    _check_level(level)
    if margin is not None and not margin > 0:
        raise DataError("margin", f"is {margin}", "Pass a positive gap in log odds ratios, or None.")
    if not correction >= 0:
        raise DataError("correction", f"is {correction}", "Pass 0.5, or 0 where no cell is empty.")
    tables = [torch.as_tensor(table).detach().to(torch.float64) for table in counts]
    shape = tuple(tables[0].shape) if tables else ()
    if len(tables) < 2 or len(shape) != len(tables):
        raise DataError(
            "counts",
            f"holds {len(tables)} table(s) of shape {shape}",
            "Pass one table of counts a site, two sites or more, each with one axis a site.",
        )
    for i, table in enumerate(tables):
        if tuple(table.shape) != shape:
            raise DataError(f"counts[{i}]", f"has shape {tuple(table.shape)}, counts[0] {shape}", "Count all sites.")
        if not bool(((table >= 0) & (table == table.round()) & table.isfinite()).all()):
            raise DataError(f"counts[{i}]", "holds a number that is no count", "Pass whole numbers, 0 or more.")
        if not table.any():
            raise DataError(f"counts[{i}]", "holds no row", "Count at least one row a sample.")
    if min(shape) < 2:
        raise DataError("counts", f"has shape {shape}", "Leave out sites of a single value.")
    if math.prod(shape) > _MAX_STATES:
        raise DataError("counts", f"has {math.prod(shape)} states", f"Test blocks of sites of up to {_MAX_STATES}.")
    if all(torch.equal(table, tables[0]) for table in tables):
        raise DataError(
            "counts",
            "are one table, passed for every site",
            "Conditionals counted from one sample share its joint: count each from a sample of its own.",
        )
    if correction == 0 and not all(bool((table > 0).all()) for table in tables):
        raise DataError("correction", "is 0, and some cell is empty", "Pass correction=0.5.")
    return torch.stack(tables)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise DataError("level", f"is {level}", "Pass a probability between 0 and 1, such as 0.05.")
