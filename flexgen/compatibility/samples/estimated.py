"""Tests of compatibility for conditionals that were counted from data, and so carry sampling error.

Estimates of compatible conditionals never agree exactly. The question here is whether they disagree by more than their
sampling error. See docs/compatibility/estimated.md; `counted` holds the arithmetic, `fitted` the test for fits of any
method.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.exact.cycles import rectangle_rank
from flexgen.compatibility.exact.family import Labels
from flexgen.compatibility.networks.effects import Verdict
from flexgen.compatibility.samples import counted
from flexgen.compatibility.samples.arguments import (
    check_callable,
    check_generator,
    check_margin,
    check_significance,
    numbers,
)
from flexgen.compatibility.samples.count_tables import CountTables, read_counts
from flexgen.compatibility.samples.rectangle_gaps import LogOddsGap, gaps_of_counts
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.rng import Randomness

__all__ = ["EstimatedTest", "bootstrap_p_values", "bootstrap_test", "wald_test"]

_DRAWN_ENTRIES = 1 << 21  # float64 entries of new counts held at once


@dataclass(frozen=True)
class EstimatedTest:
    """Whether estimated conditionals disagree by more than their sampling error.

    Args:
        method: the test's name.
        statistic: its value, large where the conditionals disagree.
        degrees_of_freedom: independent equations that compatibility puts on the conditionals.
        p_value: probability of a statistic this large if the conditionals that were estimated are compatible.
        significance: of the verdict, and of the intervals behind it.
        num_rows: rows of each sample (or refits of each conditional).
        worst: the rectangle whose two log odds ratios differ by most standard errors, where the test looks at them.
        margin: the gap in log odds ratios that the user holds negligible, if one was given.
        verdict: "refuted" if p_value is below the significance; "equivalent within margin" if every rectangle's gap is,
            by its interval, under the margin (and every category was seen); "not measured" where what was seen leaves
            no equation to test; else "not refuted".
        names: of the sites, where the test knows them.
        never_seen: categories that no sample holds, such as "smoker=never": they are left out, and nothing is said
            about them.
        unseen_rests: for each site i the number of rests that sample i never holds. Nothing there is tested in effect:
            the correction alone fills p(x_i | rest), with errors of its size.
    """

    method: str
    statistic: float
    degrees_of_freedom: int
    p_value: float
    significance: float
    num_rows: tuple[int, ...]
    worst: LogOddsGap | None
    margin: float | None
    verdict: Verdict
    names: tuple[str, ...] = ()
    never_seen: tuple[str, ...] = ()
    unseen_rests: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        verdict = f"{self.verdict} at significance {self.significance:g}"
        lines = [
            f"compatibility {'not tested' if self.verdict == 'not measured' else verdict}: {self.method}, "
            f"statistic {self.statistic:.4g} with {self.degrees_of_freedom} degrees of freedom, p = {self.p_value:.3g}",
            f"  rows: {', '.join(map(str, self.num_rows))}",
        ]
        if self.worst is not None:
            lines.append(f"  largest gap for its error, in log odds ratios (± one standard error): {self.worst}")
        if self.never_seen:
            lines.append(f"  never seen, left out and not tested: {', '.join(self.never_seen)}")
        if any(self.unseen_rests):
            rests = ", ".join(
                f"{number} of p({name} | rest)"
                for name, number in zip(self.names, self.unseen_rests, strict=True)
                if number
            )
            lines.append(f"  rests without a row, where nothing is tested: {rests}")
        if self.margin is not None:
            lines.append(f"  margin: {self.margin:g} in log odds ratios")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def wald_test(
    counts: Sequence[Any],
    *,
    labels: Labels | None = None,
    significance: float = 0.05,
    margin: float | None = None,
    correction: float = 0.5,
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
            passed N times is compatible by construction. Two data frames, such as pandas.crosstab gives, are matched
            by their labels; a category that one of them lacks counts as 0 there. Categories that no sample saw are
            left out, which the result says.
        labels: what the result calls sites and categories: a mapping of names to categories, or one sequence of
            categories a site. Default: those of the frames, otherwise x0, x1, .. with 0, 1, ..
        significance: probability of refuting compatible conditionals.
        margin: a gap in log odds ratios that is negligible to the user; it adds the verdict "equivalent within margin".
        correction: added to every cell (Haldane 1956, Anscombe 1956), which keeps logarithms finite.

    Raises:
        DataError: tables that are not counts of independent samples over the same sites, or too large (over 4096
            states).
        FlexgenError: options that cannot be used.
    """
    read = _checked_counts(counts, labels, significance, margin, correction)
    smoothed = read.tables + correction
    with _solvable(smoothed):
        _, statistic = counted.fit_wald(smoothed[None])
    degrees = rectangle_rank(smoothed.shape[1:])
    p_value = float(stats.chi2.sf(float(statistic), degrees))
    return _result("Wald test on log odds ratios", read, smoothed, float(statistic), p_value, significance, margin)


def bootstrap_test(
    counts: Sequence[Any],
    *,
    generator: Randomness | int,
    labels: Labels | None = None,
    num_draws: int = 999,
    project: Callable[[ConditionalTables], Tensor | JointTable] | None = None,
    significance: float = 0.05,
    margin: float | None = None,
    correction: float = 0.5,
) -> EstimatedTest:
    """Parametric bootstrap of the likelihood ratio: new samples are drawn from the closest joint's conditionals.

    The statistic is twice the log-likelihood that free conditionals gain over those of the best joint. Its law is
    simulated instead of taken to be chi-squared: `num_draws` times, every sample's values of x_i are drawn anew given
    the rests that it saw, from the joint closest to the estimates. The model is MCARtest's bootstrap for marginals
    (Berrett & Samworth 2023), with conditionals in their place.

    Args:
        counts, labels, significance, margin, correction: as for `wald_test`.
        generator: of the new samples, or a seed.
        num_draws: how many; p-values are multiples of 1 / (num_draws + 1).
        project: the joint to draw from, a `JointTable` or ``[V_0, .., V_{N-1}]``, given the counted conditionals; for
            example ``lambda tables: closest_joint(tables, kind="I").joint``. Default: the joint of greatest likelihood,
            which weighs each conditional law by how often it was seen. Categories that were never seen are not in it.

    Raises:
        DataError, FlexgenError: as `wald_test`; a projection that returns no positive joint.
    """
    source = rng.seed_from(check_generator(generator))
    if project is not None:
        check_callable("project", project, "Pass a function of ConditionalTables that returns a joint, or None.")
    read = _checked_counts(counts, labels, significance, margin, correction)
    whole_number("num_draws", num_draws, 19)
    smoothed = read.tables + correction
    law = None if project is None else _projected(project, smoothed).log()[None]
    stream = rng.stream(source, "bootstrap")
    with _solvable(smoothed):
        found = bootstrap_p_values(read.tables[None], law, stream, num_draws=num_draws, correction=correction)
    statistic, p_value = (float(answer[0]) for answer in found)
    return _result(
        "parametric bootstrap of the likelihood ratio", read, smoothed, statistic, p_value, significance, margin
    )


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


def _projected(project: Callable[[ConditionalTables], Tensor | JointTable], smoothed: Tensor) -> Tensor:
    tables = ConditionalTables([t / t.sum(i, keepdim=True) for i, t in enumerate(smoothed)])
    answer = project(tables)
    fix = f"Return a positive joint of shape {tuple(smoothed.shape[1:])}."
    joint = answer.p if isinstance(answer, JointTable) else numbers("project", answer, fix).to(torch.float64)
    if joint.shape != smoothed.shape[1:]:
        raise DataError("project", f"returned a table of shape {tuple(joint.shape)}", fix)
    if not bool(((joint > 0) & joint.isfinite()).all()):
        raise DataError("project", "returned a table that is not positive and finite", fix)
    return joint


def _result(
    method: str,
    read: CountTables,
    smoothed: Tensor,
    statistic: float,
    p_value: float,
    significance: float,
    margin: float | None,
) -> EstimatedTest:
    worst, reach = gaps_of_counts(smoothed, significance)
    degrees = rectangle_rank(smoothed.shape[1:])
    statistic, p_value = (statistic, p_value) if degrees else (0.0, 1.0)  # rounding aside
    verdict: Verdict = "not refuted" if degrees else "not measured"
    if p_value < significance:
        verdict = "refuted"
    elif margin is not None and worst is not None and reach < margin and not read.never_seen:
        verdict = "equivalent within margin"
    return EstimatedTest(
        method,
        statistic,
        degrees,
        p_value,
        significance,
        tuple(int(table.sum()) for table in read.tables),
        None if worst is None else read.labelled(worst),
        margin,
        verdict,
        read.names,
        read.never_seen,
        read.unseen_rests,
    )


def _checked_counts(
    counts: Any, labels: Labels | None, significance: float, margin: float | None, correction: float
) -> CountTables:
    check_significance(significance)
    check_margin(margin, "gap in log odds ratios")
    if not isinstance(correction, int | float) or not (correction == 0 or 1e-3 <= correction < math.inf):
        raise FlexgenError(
            "correction", f"is {kind_of(correction)}", "Pass 0.5, or 0 where no cell is empty; .001 is the least."
        )
    read = read_counts(counts, labels)
    if correction == 0 and not bool((read.tables > 0).all()):
        raise FlexgenError("correction", "is 0, and some cell is empty", "Pass correction=0.5.")
    return read


@contextlib.contextmanager
def _solvable(smoothed: Tensor) -> Iterator[None]:
    """Counts so unequal that double precision cannot weigh them against each other are told as such."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise DataError(
            "counts",
            f"are too unequal for double precision: {float(smoothed.min()):.3g} to {float(smoothed.max()):.3g} a cell",
            "Leave out values that are all but unseen, or pass a larger correction.",
        ) from error
