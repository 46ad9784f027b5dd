"""Tests of compatibility for conditionals that were counted from data, and so carry sampling error.

Estimates of compatible conditionals never agree exactly. The question here is whether they disagree by more than their
sampling error. See docs/compatibility/estimated.md; `counted` holds the arithmetic, `fitted` the test for fits of any
method.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.arguments import (
    check_callable,
    check_generator,
    check_margin,
    check_significance,
    numbers,
)
from flexgen.compatibility.exact.cycles import rectangle_rank
from flexgen.compatibility.exact.family import ConditionalFamily, Labels
from flexgen.compatibility.networks.effects import Verdict
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.rng import Randomness

__all__ = [
    "EstimatedTest",
    "LogOddsGap",
    "bootstrap_p_values",
    "bootstrap_test",
    "refits_test",
    "wald_test",
]

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
        _, statistic = fit_wald(smoothed[None])
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

    The statistic is twice the log-likelihood that free conditionals gain over those of the best joint. Its distribution
    is simulated instead of taken to be chi-squared: `num_draws` times, every sample's values of x_i are drawn anew
    given the rests that it saw, from the joint closest to the estimates. The model is MCARtest's bootstrap for
    marginals (Berrett & Samworth 2023), with conditionals in their place.

    Args:
        counts, labels, significance, margin, correction: as for `wald_test`.
        generator: of the new samples, or a seed.
        num_draws: how many; p-values are multiples of 1 / (num_draws + 1).
        project: the joint to draw from, a `JointTable` or ``[V_0, .., V_{N-1}]``, given the counted conditionals; for
            example ``lambda tables: closest_joint(tables, kind="I").joint``. Default: the joint of greatest likelihood,
            which weighs each conditional distribution by how often it was seen. Categories that were never seen are not
            in it.

    Raises:
        DataError, FlexgenError: as `wald_test`; a projection that returns no positive joint.
    """
    source = rng.seed_from(check_generator(generator))
    if project is not None:
        check_callable("project", project, "Pass a function of ConditionalTables that returns a joint, or None.")
    read = _checked_counts(counts, labels, significance, margin, correction)
    whole_number("num_draws", num_draws, 19)
    smoothed = read.tables + correction
    distribution = None if project is None else _projected(project, smoothed).log()[None]
    stream = rng.stream(source, "bootstrap")
    with _solvable(smoothed):
        found = bootstrap_p_values(read.tables[None], distribution, stream, num_draws=num_draws, correction=correction)
    statistic, p_value = (float(answer[0]) for answer in found)
    return _result(
        "parametric bootstrap of the likelihood ratio", read, smoothed, statistic, p_value, significance, margin
    )


def bootstrap_p_values(
    counts: Tensor, distribution: Tensor | None, generator: torch.Generator, *, num_draws: int, correction: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Statistics and p-values, ``[R]`` each, of many data sets ``[R, N, V_0, ..]``: to measure size and power.

    Args:
        distribution: log joints ``[R, V_0, ..]`` to draw from; None: those of greatest likelihood.
    """
    smoothed = counts + correction
    best = fit_likelihood(smoothed)
    observed = likelihood_ratio(smoothed, best)
    log_conditionals = log_conditionals_of(best if distribution is None else distribution)
    totals, drawn = totals_of(counts), []
    together = max(1, _DRAWN_ENTRIES // counts.numel())
    for start in range(0, num_draws, together):
        copies = min(together, num_draws - start)
        distributions, seen = (t.repeat(copies, *[1] * (t.ndim - 1)) for t in (log_conditionals, totals))
        new = redraw(seen, distributions, generator=generator) + correction
        drawn.append(likelihood_ratio(new, fit_likelihood(new)).view(copies, -1))
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
    """Counts so unequal that double precision cannot weigh them against each other raise an error."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise DataError(
            "counts",
            f"are too unequal for double precision: {float(smoothed.min()):.3g} to {float(smoothed.max()):.3g} a cell",
            "Leave out values that are all but unseen, or pass a larger correction.",
        ) from error


# The arithmetic of complete conditionals counted from samples, one sample a site, vectorised over replicates.
#
# Counts are ``[R, N, V_0, .., V_{N-1}]``, float64: replicate, site, state. ``counts[r, i]`` are the states seen in
# sample i, from which p(x_i | rest) is counted; nothing else of that sample is used.
#
# The conditionals are compatible iff there are functions f of the state (the joint's log-probability) and g_i of the
# other sites with log p(x_i | rest) = f - g_i for every i. That is a linear model, and both the Wald test and the
# likelihood below are its fits: by weighted least squares to the logarithms of the counts (Grizzle, Starmer & Koch
# 1969), and by maximum likelihood of the conditionals. Every g_i is eliminated in closed form: a fit solves S
# equations.
#
# Names here -> in the text: joint -> f, lines -> states that differ in x_i alone, information -> minus the Hessian.

_CHUNK_ENTRIES = 1 << 22  # float64 entries of [R, S, S] held at once: 32 MiB
_MAX_STEPS = 50


def fit_wald(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares of log counts: the joint f, up to a constant, and the Wald statistic.

    The residual sum of squares *is* the Wald statistic of all log odds ratios at once, whatever basis of them is taken.

    Args:
        counts: positive (add one half to every cell first).

    Returns:
        f ``[R, V_0, ..]`` and the statistic ``[R]``.
    """
    pieces = [_fit_wald(part) for part in _chunks(counts)]
    return torch.cat([joint for joint, _ in pieces]), torch.cat([statistic for _, statistic in pieces])


def _fit_wald(counts: Tensor) -> tuple[Tensor, Tensor]:
    logs = counts.log()
    pull = sum(counts[:, i] * _centred(logs[:, i], counts[:, i], i + 1) for i in range(counts.shape[1]))
    assert isinstance(pull, Tensor)
    joint = _solve(_information(counts), pull)
    residuals = [counts[:, i] * _centred(logs[:, i] - joint, counts[:, i], i + 1) ** 2 for i in range(counts.shape[1])]
    return joint, torch.stack(residuals, 1).flatten(1).sum(1)


def fit_likelihood(counts: Tensor) -> Tensor:
    """The joint, ``[R, V_0, ..]`` in logarithms, whose conditionals make the counts most likely.

    Maximises sum_i sum_x counts_i(x) log r(x_i | rest) over joints r, which is concave in log r: Newton's method from
    the weighted least squares, halving steps that overshoot. It is the Arnold-Gokhale projection of the counted
    conditionals with the distribution given each rest weighed by how often that rest was seen.

    Args:
        counts: positive.
    """
    return torch.cat([_fit_likelihood(part) for part in _chunks(counts)])


def _fit_likelihood(counts: Tensor) -> Tensor:
    seen = totals_of(counts)
    joint, _ = _fit_wald(counts)
    value = _log_likelihood(counts, joint)
    for _ in range(_MAX_STEPS):
        expected = seen * log_conditionals_of(joint).exp()
        gradient = (counts - expected).sum(1)  # [R, V_0, ..]
        step = _solve(_information(expected), gradient)
        gain = (gradient * step).flatten(1).sum(1)  # twice what is left to gain, near the optimum
        if bool((gain <= 1e-10 * counts.flatten(1).sum(1)).all()):
            break
        scale = torch.ones_like(value)
        for _ in range(30):
            proposal = joint + step * scale.view(-1, *[1] * (joint.ndim - 1))
            new_value = _log_likelihood(counts, proposal)
            worse = new_value < value - 1e-12 * value.abs()
            if not bool(worse.any()):
                break
            scale = torch.where(worse, scale / 2, scale)
        joint, value = proposal, new_value
    return joint


def likelihood_ratio(counts: Tensor, joint: Tensor) -> Tensor:
    """Twice the log-likelihood that the free conditionals gain over those of `joint`, ``[R]``."""
    return 2 * ((counts * (counts.log() - totals_of(counts).log())).flatten(1).sum(1) - _log_likelihood(counts, joint))


def log_conditionals_of(joint: Tensor) -> Tensor:
    """log p(x_i | rest) of joints given as logarithms ``[R, V_0, ..]``, for every site: ``[R, N, V_0, ..]``."""
    return torch.stack([joint.log_softmax(i + 1) for i in range(joint.ndim - 1)], 1)


def redraw(seen: Tensor, log_conditionals: Tensor, *, generator: torch.Generator) -> Tensor:
    """New counts of the same contexts: in sample i every rest that was seen m times draws m values of x_i.

    Args:
        seen: ``[R, N, V_0, ..]``, how often each state's rest was seen; constant along axis i of sample i.
        log_conditionals: same shape.
    """
    drawn = []
    for i in range(seen.shape[1]):
        probability = log_conditionals[:, i].movedim(i + 1, 0).exp()  # [V_i, R, ..]
        left = seen[:, i].movedim(i + 1, 0)[0].clone()
        mass = torch.ones_like(left)
        values = []
        for p in probability[:-1]:  # a multinomial as a chain of binomials
            share = torch.where(mass > 0, p / mass, 0.0).clamp(0.0, 1.0)
            number = torch.binomial(left, share, generator=generator)
            values.append(number)
            left, mass = left - number, (mass - p).clamp_min(0.0)
        drawn.append(torch.stack([*values, left]).movedim(0, i + 1))
    return torch.stack(drawn, 1)


def _log_likelihood(counts: Tensor, joint: Tensor) -> Tensor:
    return (counts * log_conditionals_of(joint)).flatten(1).sum(1)


def totals_of(counts: Tensor) -> Tensor:
    """How often each state's rest was seen in sample i, spread over x_i."""
    return torch.stack(
        [counts[:, i].sum(i + 1, keepdim=True).expand_as(counts[:, i]) for i in range(counts.shape[1])], 1
    )


def _centred(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Less their weighted mean along each line: the best g_i is eliminated."""
    return values - (weights * values).sum(axis, keepdim=True) / weights.sum(axis, keepdim=True)


def _information(weights: Tensor) -> Tensor:
    """sum_i [Diag(w_i) - w_i w_i^T / (sum of the line)] within the lines of site i, ``[R, S, S]``."""
    shape = weights.shape[2:]
    states = torch.arange(math.prod(shape), device=weights.device).view(shape)
    out = torch.diag_embed(weights.flatten(2).sum(1))
    for i, line_total in enumerate(totals_of(weights).unbind(1)):
        line = states.select(i, 0).unsqueeze(i).expand(shape).flatten()  # its first state names a line
        share = (weights[:, i] / line_total).flatten(1)
        same = (line[:, None] == line).to(weights.dtype)
        out -= share[:, :, None] * weights[:, i].flatten(1)[:, None, :] * same
    return out


def _solve(information: Tensor, pull: Tensor) -> Tensor:
    """The minimiser with f = 0 in the first state: f matters up to a constant only."""
    factor = torch.linalg.cholesky(information[:, 1:, 1:])
    solution = torch.cholesky_solve(pull.flatten(1)[:, 1:, None], factor)[..., 0]
    return torch.nn.functional.pad(solution, (1, 0)).view(pull.shape)


def _chunks(counts: Tensor) -> Sequence[Tensor]:
    return torch.split(counts, max(1, _CHUNK_ENTRIES // math.prod(counts.shape[2:]) ** 2))


# Tables of counts as users have them, tensors or data frames with names of their own, read for the tests on counts.

_MAX_STATES = 4096
_FIX = "Pass whole numbers, 0 or more."


@dataclass(frozen=True, eq=False)
class CountTables:
    """Counts of the categories that were seen.

    Args:
        tables: float64 ``[N, V_0, .., V_{N-1}]``, of the categories that some sample saw.
        names: of the sites.
        categories: of each site, those never seen among them.
        kept: of each site the codes of those that some sample saw.
    """

    tables: Tensor
    names: tuple[str, ...]
    categories: tuple[tuple[Hashable, ...], ...]
    kept: tuple[tuple[int, ...], ...]

    @property
    def never_seen(self) -> tuple[str, ...]:
        """What no sample holds, in the users' words: ``"smoker=never"``."""
        return tuple(
            f"{name}={label}"
            for name, labels, kept in zip(self.names, self.categories, self.kept, strict=True)
            for code, label in enumerate(labels)
            if code not in kept
        )

    @property
    def unseen_rests(self) -> tuple[int, ...]:
        """Of each site i the number of rests that sample i never holds, so that no row is about p(x_i | rest)."""
        return tuple(int((table.sum(i) == 0).sum()) for i, table in enumerate(self.tables))

    def labelled(self, gap: LogOddsGap) -> LogOddsGap:
        """A rectangle of `tables` in the codes and the words of all categories."""
        codes = tuple(kept[code] for kept, code in zip(self.kept, gap.context, strict=True))
        values = tuple(
            (self.kept[site][a], self.kept[site][b]) for site, (a, b) in zip(gap.sites, gap.values, strict=True)
        )
        in_words = [
            f"{self.names[site]} in {{{self.categories[site][a]}, {self.categories[site][b]}}}"
            for site, (a, b) in zip(gap.sites, values, strict=True)
        ]
        given = [f"{self.names[k]}={self.categories[k][code]}" for k, code in enumerate(codes) if k not in gap.sites]
        where = ", ".join(in_words) + (f" given {', '.join(given)}" if given else "")
        return replace(gap, values=(values[0], values[1]), context=codes, where=where)


def read_counts(counts: Any, labels: Labels | None) -> CountTables:
    """Checked counts of independent samples over the same sites.

    Args:
        counts: for each site a table of counts; data frames are matched by the labels of their rows and columns.
        labels: names of sites and categories, as in `ConditionalFamily`. Default: those of the frames.

    Raises:
        DataError: tables that are not counts of independent samples over the same sites, or too large.
        FlexgenError: labels that do not fit.
    """
    if isinstance(counts, str) or not isinstance(counts, Iterable):
        raise DataError("counts", f"is {kind_of(counts)}", "Pass a list of tables, one a site.")
    parts = list(counts)
    if len(parts) == 2 and all(_is_frame(part) for part in parts):
        parts, labels = _aligned(parts, labels)
    tables = [numbers(f"counts[{i}]", table, _FIX).to("cpu", torch.float64) for i, table in enumerate(parts)]
    _check(tables)
    shape = tuple(tables[0].shape)
    uniform = ConditionalTables([torch.full(shape, 1 / size, dtype=torch.float64) for size in shape])
    family = ConditionalFamily.of_tables(uniform, labels=labels)  # which reads and checks labels
    stacked = torch.stack(tables)
    kept = []
    for site in range(len(shape)):
        seen = stacked.movedim(site + 1, 0).flatten(1).any(1)
        kept.append(seen.nonzero()[:, 0])
        stacked = stacked.index_select(site + 1, kept[-1])
    return CountTables(stacked, family.names, family.labels, tuple(tuple(codes.tolist()) for codes in kept))


def _check(tables: Sequence[Tensor]) -> None:
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
            raise DataError(f"counts[{i}]", "holds a number that is no count", _FIX)
        if not table.any():
            raise DataError(f"counts[{i}]", "holds no row", "Count at least one row a sample.")
    if min(shape) < 2:
        raise DataError("counts", f"has shape {shape}", "Leave out sites of a single value.")
    if math.prod(shape) > _MAX_STATES:
        raise DataError("counts", f"has {math.prod(shape)} states", f"Test blocks of sites of up to {_MAX_STATES}.")
    for i, j in itertools.combinations(range(len(tables)), 2):
        if torch.equal(tables[i], tables[j]):
            raise DataError(
                "counts",
                f"hold one table twice, for sites {i} and {j}",
                "Conditionals counted from one sample share its joint: count each from a sample of its own.",
            )


def _is_frame(value: Any) -> bool:
    """A data frame of pandas, which is not imported for that."""
    return all(hasattr(value, name) for name in ("index", "columns", "to_numpy")) and getattr(value, "ndim", 0) == 2


def _ends_in_totals(table: np.ndarray[Any, Any]) -> bool:
    """Whether the last row and the last column are sums of others; of a table of two of each that may be chance."""
    return min(table.shape) > 2 and all(np.array_equal(part[-1], part[:-1].sum(0)) for part in (table, table.T))


def _listed(labels: Any) -> list[tuple[Hashable, ...]]:
    """The categories that labels name, site by site; none without labels."""
    groups = list(labels.values()) if isinstance(labels, Mapping) else () if labels is None else labels
    for each in (groups, *(groups if isinstance(groups, Iterable) else ())):
        if not isinstance(each, Iterable):
            raise FlexgenError("labels", f"is {kind_of(each)}", "Pass names with categories: {'sex': ['f', 'm'], ..}.")
    return [tuple(each) for each in groups]


def _aligned(frames: Sequence[Any], labels: Labels | None) -> tuple[list[np.ndarray[Any, Any]], Labels | None]:
    """Frames over the same categories in the same order, 0 where one lacks a category, and names for all."""
    axes = [[list(axis) for axis in (frame.index, frame.columns)] for frame in frames]
    titles = [[axis.name for axis in (frame.index, frame.columns)] for frame in frames]
    for i, (title, axis) in enumerate(zip(titles, axes, strict=True)):
        named = [(one, other) for one, other in zip(title, titles[0], strict=True) if None not in (one, other)]
        if any(one != other for one, other in named):
            raise DataError(f"counts[{i}]", f"is of {title}, counts[0] of {titles[0]}", "Count all in the same order.")
        for labelled in axis:
            if len(set(labelled)) < len(labelled):
                raise DataError(f"counts[{i}]", "has a row or a column twice", "Give each category one of its own.")
    categories = [list(dict.fromkeys([*first, *second])) for first, second in zip(*axes, strict=True)]
    given = _listed(labels)
    if len(given) == 2:
        numbered = [list(range(len(each))) for each in given]
        if all(set(each) <= set(mine) for each, mine in zip(categories, given, strict=True)):
            categories = [list(each) for each in given]
        elif all(set(each) <= set(mine) for each, mine in zip(categories, numbered, strict=True)):
            categories = numbered  # codes in the frames, words in the labels
        else:
            missing = [x for each, mine in zip(categories, given, strict=True) for x in each if x not in mine]
            raise FlexgenError("labels", f"lack {missing[0]!r}, which the frames hold", "Name all, or pass none.")
    if labels is None:
        names = [titles[0][k] if titles[0][k] is not None else titles[1][k] for k in range(2)]
        in_words = [f"x{k}" if name is None else str(name) for k, name in enumerate(names)]
        labels = dict(zip(in_words, categories, strict=True)) if len(set(in_words)) == 2 else categories
    tables = []
    for i, (frame, (rows, columns)) in enumerate(zip(frames, axes, strict=True)):
        values = numbers(f"counts[{i}]", frame, _FIX).numpy()
        if rows and columns and rows[-1] == columns[-1] and _ends_in_totals(values):
            raise DataError(f"counts[{i}]", f"holds its totals as {rows[-1]!r}", "Count without them: margins=False.")
        table = np.zeros([len(each) for each in categories], dtype=values.dtype)
        table[np.ix_([categories[0].index(x) for x in rows], [categories[1].index(x) for x in columns])] = values
        tables.append(table)
    return tables, labels


# Log odds ratios of counted conditionals, rectangle by rectangle, each with its standard error.

_TOGETHER = 1 << 20  # rectangles looked at at once


@dataclass(frozen=True)
class LogOddsGap:
    """How far two conditionals' log odds ratios are apart on a rectangle.

    Args:
        sites: (i, j).
        values: ((a, b), (c, d)): a against b at site i, c against d at site j.
        context: the values of all sites; those of i and j do not matter, and stand at a and c.
        gap: log odds ratio of p(x_i | rest) less that of p(x_j | rest), nats.
        standard_error: of the gap.
        where: the rectangle in words; empty: the numbers of sites and values are printed.
    """

    sites: tuple[int, int]
    values: tuple[tuple[int, int], tuple[int, int]]
    context: tuple[int, ...]
    gap: float
    standard_error: float
    where: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        (i, j), ((a, b), (c, d)) = self.sites, self.values
        given = ", ".join(f"x{k}={v}" for k, v in enumerate(self.context) if k not in self.sites)
        where = f"x{i} in {{{a}, {b}}}, x{j} in {{{c}, {d}}}" + (f" given {given}" if given else "")
        return f"{self.gap:+.3f} ± {self.standard_error:.3f} ({self.where or where})"

    def __repr__(self) -> str:
        return str(self)


def gaps_of_counts(counts: Tensor, significance: float) -> tuple[LogOddsGap | None, float]:
    """The rectangle with the most standard errors, and how far any gap may reach. Every rectangle is looked at.

    None and 0 where fewer than two sites have two values, and so no rectangle is there.

    Args:
        counts: ``[N, V_0, ..]``, positive.
        significance: the reach is the largest |gap| + z standard errors with z of this one-sided significance. That all
            gaps are under a margin is claimed only if each is, so that no correction for their number is due
            (intersection-union).
    """
    z = float(stats.norm.isf(significance))
    worst: tuple[float, LogOddsGap] | None = None
    reach = 0.0
    shape = counts.shape[1:]
    for i, j in itertools.combinations(range(len(counts)), 2):
        if min(shape[i], shape[j]) < 2:
            continue
        of_i, of_j = _pairs(shape[i]), _pairs(shape[j])  # [2, pairs]
        rest = shape.numel() // (shape[i] * shape[j])
        for ends in torch.split(of_i, max(1, _TOGETHER // (of_j.shape[1] * rest)), dim=1):
            gap, variance = _differences(counts[i], i, j, ends, of_j)
            other_gap, other_variance = _differences(counts[j], i, j, ends, of_j)
            gap, error = gap - other_gap, (variance + other_variance).sqrt()  # [pairs of i, pairs of j, context]
            reach = max(reach, float((gap.abs() + z * error).max()))
            ratio = gap.abs() / error
            place = int(ratio.argmax())
            most = float(ratio.flatten()[place])
            if worst is None or most > worst[0]:
                first, second, context = (int(k) for k in torch.unravel_index(torch.tensor(place), gap.shape))
                at = _context(context, shape, i, j)
                (a, b), (c, d) = ends[:, first].tolist(), of_j[:, second].tolist()
                at[i], at[j] = a, c
                found = LogOddsGap(
                    (i, j),
                    ((a, b), (c, d)),
                    tuple(at),
                    float(gap[first, second, context]),
                    float(error[first, second, context]),
                )
                worst = most, found
    return None if worst is None else worst[1], reach


def _pairs(size: int) -> Tensor:
    """Every two values of a site, ``[2, pairs]``."""
    return torch.triu_indices(size, size, 1)


def _context(number: int, shape: torch.Size, i: int, j: int) -> list[int]:
    """The values of all sites in a context of the pair (i, j), those of i and j being 0."""
    sizes = [1 if k in (i, j) else size for k, size in enumerate(shape)]
    return [int(k) for k in torch.unravel_index(torch.tensor(number), sizes)]


def _differences(counts: Tensor, i: int, j: int, of_i: Tensor, of_j: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds ratios of a table of counts and their variances, ``[pairs of i, pairs of j, context]``."""
    table = counts.movedim((i, j), (0, 1)).flatten(2) if counts.ndim > 2 else counts[..., None]  # [V_i, V_j, context]
    (a, b), (c, d) = of_i, of_j
    logs, inverse = table.log(), 1 / table
    row = logs[a] - logs[b]  # [pairs of i, V_j, context]
    spread = inverse[a] + inverse[b]
    return row[:, c] - row[:, d], spread[:, c] + spread[:, d]


# A test of compatibility for conditionals fitted to data by any method, from their refits to resamples.

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
    distributions, others, roundoff = _checked(estimates, refits)
    contrasts = _contrasts(distributions.shape[1:])
    if len(others) < 2 * len(contrasts):
        raise DataError(
            "refits", f"are {len(others)} for {len(contrasts)} equations", "Pass at least twice as many refits."
        )
    if len(others) > 1 and bool((others == others[0]).all()):
        raise DataError("refits", "are all alike", "Fit each to a resample of the rows, drawn with replacement.")
    gap = contrasts @ distributions.log().flatten()
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
    rigid = len(still) > 0 and float(still.max()) > max(1e-6, 16 * rounding * math.sqrt(distributions.numel()))
    p_value = 0.0 if rigid else 1.0
    if rank and not rigid:
        ratio = statistic * (num_refits - rank) / (rank * (num_refits - 1))
        p_value = float(stats.f.sf(ratio, rank, num_refits - rank))
    verdict: Verdict = "refuted" if p_value < significance else "not refuted"
    rows = (num_refits,) * len(distributions)
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
    distributions, others = torch.stack([t.to("cpu", torch.float64) for t in tables]), others.to("cpu", torch.float64)
    for argument, values in (("estimates", distributions), ("refits", others)):
        wrong = ~((values > 0) & values.isfinite())
        if bool(wrong.any()):
            worst = float(values[wrong][0])
            raise DataError(argument, f"hold a probability of {worst:g}", "Log odds ratios need positive tables.")
    return distributions, others, roundoff


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
