"""Tests for counted and fitted conditionals: against explicit contrasts, other optimisers, and their size and power."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from flexgen.compatibility import rectangle_rank
from flexgen.compatibility.samples import counts as counted
from flexgen.compatibility.samples.counts import bootstrap_p_values, bootstrap_test, refits_test, wald_test
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import JointTable
from flexgen.rng import stream
from tests.compatibility.samples import GAPPED, JOINT, gapped, sample_counts
from tests.conditionals import generator

ALARM = 1e-4  # of each test's tolerance
SIGNIFICANCE = 0.05


def tolerance(rate: float, num: int) -> float:
    """Half width of the interval that a rate of `num` replicates misses with probability ALARM."""
    return float(stats.norm.isf(ALARM / 2)) * math.sqrt(rate * (1 - rate) / num)


def rejection_rate(first: Tensor, second: Tensor, num_rows: int, replicates: int, seed: int = 0) -> float:
    counts = sample_counts([first, second], num_rows, replicates, seed)
    _, statistic = counted.fit_wald(counts + 0.5)
    return float((statistic > stats.chi2.isf(SIGNIFICANCE, 4)).double().mean())


@pytest.mark.parametrize(("shape", "rank"), [((2, 2), 1), ((3, 3), 4), ((2, 3), 2), ((2, 2, 2), 5), ((3, 3, 3), 28)])
def test_compatibility_equations_are_as_many_as_contrasts(shape: tuple[int, ...], rank: int) -> None:
    assert rectangle_rank(shape) == rank
    contrasts = counted._contrasts(shape)
    assert contrasts.shape[0] == rank
    joint = JointTable.random(shape, generator=generator(1))
    logs = torch.stack([t.log() for t in joint.conditional_tables().tables])
    assert (contrasts @ logs.flatten()).abs().max() < 1e-12  # compatible: every equation holds
    logs[0].flatten()[0] += 0.3
    assert (contrasts @ logs.flatten()).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (2, 3, 2)])
def test_compatibility_wald_statistic_equals_the_quadratic_form(shape: tuple[int, ...]) -> None:
    """Wald's statistic by its definition: contrasts of log counts, their covariance from 1 / counts."""
    joints = [JointTable.random(shape, generator=generator(seed)).p for seed in range(len(shape))]
    counts = sample_counts(joints, 200, 5, seed=3) + 0.5
    contrasts = counted._contrasts(shape)
    gap = counts.log().flatten(1) @ contrasts.T  # [R, df]
    covariance = (contrasts / counts.flatten(1)[:, None]) @ contrasts.T
    expected = (gap * torch.linalg.solve(covariance, gap)).sum(-1)
    torch.testing.assert_close(counted.fit_wald(counts)[1], expected, rtol=1e-9, atol=0)


def test_compatibility_chunks_do_not_change_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = sample_counts([JOINT, GAPPED], 100, 7, seed=0) + 0.5
    whole = counted.fit_wald(counts)[1], counted.fit_likelihood(counts)
    monkeypatch.setattr(counted, "_CHUNK_ENTRIES", 200)
    torch.testing.assert_close(counted.fit_wald(counts)[1], whole[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(counted.fit_likelihood(counts), whole[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 2)])
def test_compatibility_likelihood_equals_a_general_optimiser(shape: tuple[int, ...]) -> None:
    joints = [JointTable.random(shape, generator=generator(seed)).p for seed in range(len(shape))]
    counts = sample_counts(joints, 60, 1, seed=5) + 0.5
    found = counted.fit_likelihood(counts)

    def loss(f: object) -> tuple[float, object]:
        joint = torch.tensor(f, dtype=torch.float64).view(1, *shape).requires_grad_()
        value = -(counts * counted.log_conditionals_of(joint)).sum()
        (gradient,) = torch.autograd.grad(value, joint)
        return float(value.detach()), gradient.flatten().numpy()

    best = optimize.minimize(loss, torch.zeros(math.prod(shape)).numpy(), jac=True, method="BFGS", tol=1e-9)
    assert float(-(counts * counted.log_conditionals_of(found)).sum()) <= best.fun + 1e-6
    ratio = float(counted.likelihood_ratio(counts, found))
    assert ratio > 0.1
    assert ratio == pytest.approx(float(counted.fit_wald(counts)[1]), rel=0.5)  # the same to first order


def test_compatibility_likelihood_of_exact_conditionals_returns_their_joint() -> None:
    found = counted.fit_likelihood(torch.stack([JOINT, JOINT])[None] * 1000)
    torch.testing.assert_close(found.exp() / found.exp().sum(), JOINT[None], atol=1e-10, rtol=0)


@pytest.mark.statistical
def test_compatibility_wald_size_and_power_at_several_sample_sizes() -> None:
    """The published figures of this test, and 5 % within the binomial interval where the sample is large."""
    replicates, published = 4000, 1000  # the published rates rest on about 1000 replicates
    for num_rows, size, power in ((90, 0.026, 0.035), (300, 0.042, 0.15), (1000, 0.053, 0.49), (5000, 0.041, 1.0)):
        found_size = rejection_rate(JOINT, JOINT, num_rows, replicates)
        found_power = rejection_rate(JOINT, GAPPED, num_rows, replicates, seed=1)
        for found, expected in ((found_size, size), (found_power, power)):
            rate = min((found + expected) / 2, 0.998)
            assert abs(found - expected) < tolerance(rate, replicates) + tolerance(rate, published)
        if num_rows >= 1000:
            assert abs(found_size - SIGNIFICANCE) < tolerance(SIGNIFICANCE, replicates)
        assert found_size < SIGNIFICANCE + tolerance(SIGNIFICANCE, replicates)


@pytest.mark.statistical
def test_compatibility_three_sites_have_their_size() -> None:
    joint = JointTable.random((2, 2, 2), generator=generator(2), concentration=3.0).p
    counts = sample_counts([joint] * 3, 2000, 3000, seed=4)
    _, statistic = counted.fit_wald(counts + 0.5)
    assert stats.kstest(statistic.numpy(), stats.chi2(5).cdf).pvalue > ALARM


@pytest.mark.statistical
def test_compatibility_wrong_test_that_forgets_one_sample_error_is_rejected() -> None:
    """Takes the second conditional as known: its own size, and with it this file's way of measuring, is far off."""
    counts = sample_counts([JOINT, JOINT], 1000, 2000, seed=0) + 0.5
    contrasts = counted._contrasts((3, 3))
    gap = counts.log().flatten(1) @ contrasts.T
    known = counts.clone()
    known[:, 1] = math.inf
    covariance = (contrasts / known.flatten(1)[:, None]) @ contrasts.T
    statistic = (gap * torch.linalg.solve(covariance, gap)).sum(-1)
    size = float((statistic > stats.chi2.isf(SIGNIFICANCE, 4)).double().mean())
    assert abs(size - SIGNIFICANCE) > 5 * tolerance(SIGNIFICANCE, 2000)


@pytest.mark.statistical
def test_compatibility_bootstrap_has_its_size_in_small_samples_and_more_power_than_wald() -> None:
    replicates, num_rows = 2000, 90
    counts = sample_counts([JOINT, JOINT], num_rows, replicates, seed=0)
    # With 39 draws, p <= .05 has probability exactly .05 for a continuous statistic.
    _, p = bootstrap_p_values(counts, None, stream(0, "size"), num_draws=39)
    assert abs(float((p <= SIGNIFICANCE).double().mean()) - SIGNIFICANCE) < tolerance(SIGNIFICANCE, replicates)
    counts = sample_counts([JOINT, gapped(1.5)], num_rows, 1000, seed=1)
    _, p = bootstrap_p_values(counts, None, stream(0, "power"), num_draws=39)
    _, statistic = counted.fit_wald(counts + 0.5)
    assert (p <= SIGNIFICANCE).double().mean() > (statistic > stats.chi2.isf(SIGNIFICANCE, 4)).double().mean() + 0.05


def test_compatibility_redraw_keeps_contexts_and_follows_the_law() -> None:
    counts = sample_counts([JOINT, GAPPED], 2000, 1, seed=0)
    seen = counted.totals_of(counts).repeat(400, 1, 1, 1)
    law = counted.log_conditionals_of(JOINT.log()[None]).expand_as(seen)
    new = counted.redraw(seen, law, generator=stream(0, "redraw"))
    for i in range(2):
        assert torch.equal(new[:, i].sum(i + 1), seen[:, i].select(i + 1, 0))
    expected = seen[0] * law[0].exp()
    z = (new.mean(0) - expected) / (seen[0] * law[0].exp() * (1 - law[0].exp()) / len(new)).sqrt()
    assert z.abs().max() < stats.norm.isf(ALARM / 2 / z.numel())


def test_compatibility_bootstrap_takes_a_projection_and_repeats_itself() -> None:
    counts = list(sample_counts([JOINT, GAPPED], 300, 1, seed=8)[0])
    seen = []

    def project(tables: object) -> Tensor:
        seen.append(tables)
        return JOINT

    first = bootstrap_test(counts, generator=generator(0), num_draws=99, project=project)
    assert first == bootstrap_test(counts, generator=generator(0), num_draws=99, project=project)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0].tables[0].sum(0), torch.ones(3, dtype=torch.float64))
    assert first.statistic == pytest.approx(bootstrap_test(counts, generator=generator(1), num_draws=19).statistic)
    with pytest.raises(DataError, match=r"project: returned a table of shape \(2,\)"):
        bootstrap_test(counts, generator=generator(0), project=lambda _: torch.ones(2))


def test_compatibility_refuted_names_the_planted_rectangle() -> None:
    counts = list(sample_counts([JOINT, gapped(2.0)], 5000, 1, seed=0)[0])
    test = wald_test(counts)
    assert test.verdict == "refuted"
    assert test.p_value < 1e-10
    assert test.num_rows == (5000, 5000)
    assert test.degrees_of_freedom == 4
    (a, b), (c, d) = test.worst.values
    assert 0 in (a, b)  # the planted cell is (0, 2)
    assert 2 in (c, d)
    assert abs(abs(test.worst.gap) - 2.0) < 4.5 * test.worst.standard_error
    assert str(test).startswith("compatibility refuted at significance 0.05: Wald test on log odds ratios, statistic")
    assert "x0 in {" in str(test)
    assert json.loads(json.dumps(test.to_dict()))["worst"]["sites"] == [0, 1]
    assert bootstrap_test(counts, generator=generator(0), num_draws=99).p_value == 0.01


def test_compatibility_worst_rectangle_of_three_sites_has_its_gap_and_error() -> None:
    joints = [JointTable.random((2, 3, 2), generator=generator(seed)).p for seed in range(3)]
    counts = sample_counts(joints, 500, 1, seed=0)[0]
    worst = wald_test(list(counts)).worst
    (i, j), ((a, b), (c, d)) = worst.sites, worst.values

    def cell(site: int, u: int, v: int) -> float:
        state = list(worst.context)
        state[i], state[j] = u, v
        return float(counts[site][tuple(state)]) + 0.5

    cells = [(a, c, 1), (a, d, -1), (b, c, -1), (b, d, 1)]
    gap = sum(sign * (math.log(cell(i, u, v)) - math.log(cell(j, u, v))) for u, v, sign in cells)
    error = math.sqrt(sum(1 / cell(site, u, v) for site in (i, j) for u, v, _ in cells))
    assert worst.gap == pytest.approx(gap)
    assert worst.standard_error == pytest.approx(error)


def test_compatibility_reach_of_large_tables_sees_every_rectangle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps of neighbouring values are small and add up: what they sum to decides about a margin."""
    size = 64
    trend = torch.linspace(0, 2.8, size, dtype=torch.float64)
    first = torch.full((size, size), 1e7, dtype=torch.float64)
    second = (first * (trend[:, None] * trend).exp()).round()  # gap of (a, b), (c, d): (t_a - t_b) (t_c - t_d)
    test = wald_test([first, second], margin=1.0)
    assert test.worst.values == ((0, 63), (0, 63))
    assert test.worst.gap == pytest.approx(-(2.8**2), abs=1e-3)
    _, reach = counted.gaps_of_counts(torch.stack([first, second]), 0.05)
    assert reach > 2.8**2
    # Beside a corner of all cells, whatever is looked at at once.
    small = sample_counts([JOINT, GAPPED], 500, 1, seed=3)[0] + 0.5
    whole = counted.gaps_of_counts(small, 0.05)
    monkeypatch.setattr(counted, "_TOGETHER", 1)
    assert counted.gaps_of_counts(small, 0.05) == whole


@pytest.mark.statistical
def test_compatibility_within_margin_is_claimed_only_if_true() -> None:
    """At a gap of exactly the margin, the claim may be wrong in 5 % of samples; with no gap it is made."""
    claims = 0
    for counts in sample_counts([JOINT, gapped(0.6)], 3000, 300, seed=0):
        claims += wald_test(list(counts), margin=0.6).verdict == "equivalent within margin"
    assert claims / 300 < SIGNIFICANCE + tolerance(SIGNIFICANCE, 300)
    made = [wald_test(list(c), margin=0.6) for c in sample_counts([JOINT, JOINT], 30000, 50, seed=1)]
    assert sum(test.verdict == "equivalent within margin" for test in made) > 40
    assert "margin: 0.6 in log odds ratios" in str(made[0])


@pytest.mark.statistical
def test_compatibility_refits_have_their_size_and_chi_squared_would_not() -> None:
    num_refits, replicates, noise = 20, 2000, 0.1
    source, logs = generator(0), JointTable(JOINT).conditional_tables().tables
    truth = torch.stack([t.log() for t in logs])
    p_values, statistics = [], []
    for _ in range(replicates):
        estimate = truth + noise * torch.randn(truth.shape, generator=source, dtype=torch.float64)
        refits = estimate + noise * torch.randn(num_refits, *truth.shape, generator=source, dtype=torch.float64)
        test = refits_test(list(estimate.exp()), refits.exp())
        p_values.append(test.p_value)
        statistics.append(test.statistic)
    assert stats.kstest(p_values, "uniform").pvalue > ALARM
    naive = (torch.tensor(statistics) > stats.chi2.isf(SIGNIFICANCE, 4)).double().mean()
    assert abs(float(naive) - SIGNIFICANCE) > 3 * tolerance(SIGNIFICANCE, replicates)


def test_compatibility_refits_leave_out_equations_that_cannot_vary() -> None:
    truth = torch.stack([t.log() for t in JointTable(JOINT).conditional_tables().tables])
    pattern = torch.zeros(2, 3, 3, dtype=torch.float64)
    pattern[0, 0, 0] = 1.0  # refits move along one line only
    moves = torch.randn(30, generator=generator(0), dtype=torch.float64)
    refits = truth + 0.1 * moves[:, None, None, None] * pattern
    test = refits_test(list(truth.exp()), refits.exp())
    assert test.degrees_of_freedom == 1
    assert test.p_value > 0.9
    far = truth + pattern.roll(1, -1)  # a gap where no refit ever goes
    assert refits_test(list(far.exp()), refits.exp()).p_value == 0.0


@pytest.mark.parametrize(
    ("counts", "options", "text"),
    [
        ([torch.ones(3)], {}, "counts: holds 1 table(s) of shape (3,). Pass one table of counts a site"),
        ([torch.ones(2, 2), torch.ones(2, 3)], {}, "counts[1]: has shape (2, 3), counts[0] (2, 2)"),
        ([torch.ones(2, 2), torch.ones(2, 2) / 2], {}, "counts[1]: holds a number that is no count"),
        ([torch.ones(2, 2), torch.zeros(2, 2)], {}, "counts[1]: holds no row"),
        ([torch.ones(2, 2), torch.ones(2, 2)], {}, "counts: hold one table twice, for sites 0 and 1"),
        ([torch.ones(1, 2), torch.ones(1, 2)], {}, "counts: has shape (1, 2). Leave out sites of a single value"),
        (
            [torch.arange(8).view(2, 2, 2) + k // 2 for k in range(3)],
            {},
            "counts: hold one table twice, for sites 0 and 1",
        ),
        ([torch.ones(65, 65)] * 2, {}, "counts: has 4225 states. Test blocks of sites of up to 4096."),
        ([torch.eye(2), torch.ones(2, 2)], {"correction": 0.0}, "correction: is 0, and some cell is empty"),
        (
            [torch.ones(2, 2), torch.eye(2)],
            {"significance": 5},
            "significance: is 5. Pass a probability between 0 and 1",
        ),
        ([torch.ones(2, 2), torch.eye(2)], {"margin": -1}, "margin: is -1. Pass a positive gap"),
    ],
)
def test_compatibility_bad_counts(counts: list[Tensor], options: dict[str, float], text: str) -> None:
    with pytest.raises(FlexgenError if options else DataError, match=re.escape(text)):
        wald_test(counts, **options)


def test_compatibility_bad_refits() -> None:
    laws = [torch.full((2, 2), 0.5)] * 2
    with pytest.raises(DataError, match=re.escape("refits: are 1 for 1 equations. Pass at least twice as many")):
        refits_test(laws, torch.full((1, 2, 2, 2), 0.5))
    with pytest.raises(DataError, match=re.escape("refits: has shape (4, 2, 2), estimates (2, 2, 2)")):
        refits_test(laws, torch.full((4, 2, 2), 0.5))
    with pytest.raises(DataError, match="refits: hold a probability of 0"):
        refits_test(laws, torch.zeros(4, 2, 2, 2))
    with pytest.raises(DataError, match="refits: are all alike"):
        refits_test(laws, torch.full((4, 2, 2, 2), 0.5))
    with pytest.raises(DataError, match="refits: hold a probability of nan"):
        refits_test(laws, torch.full((4, 2, 2, 2), math.nan))
    with pytest.raises(DataError, match="estimates: hold a probability of inf"):
        refits_test([laws[0], laws[0] / 0], torch.rand(4, 2, 2, 2, generator=generator(0)))
    with pytest.raises(DataError, match=re.escape("estimates: have shapes []. Pass N tables of N axes")):
        refits_test([], torch.full((4, 2, 2, 2), 0.5))
    with pytest.raises(DataError, match=re.escape("estimates: have shapes [(2, 2), (3, 3)]")):
        refits_test([laws[0], torch.ones(3, 3)], torch.full((4, 2, 2, 2), 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compatibility_refits_of_one_joint_model_are_never_apart(dtype: torch.dtype) -> None:
    """Conditionals of fitted joints differ from refit to refit, their gaps do not: there is no equation to test."""
    joints = [JointTable.random((3, 3), generator=generator(seed)).conditional_tables().tables for seed in range(20)]
    refits = torch.stack([torch.stack(list(tables)) for tables in joints]).to(dtype)
    test = refits_test(list(refits[0]), refits)
    assert test.degrees_of_freedom == 0
    assert test.statistic == 0
    assert test.p_value == 1.0
    far = refits[0].clone()
    far[0, 0, 0] *= 1.1
    assert refits_test(list(far), refits).p_value == 0.0


@pytest.mark.parametrize(
    ("counts", "options", "text"),
    [
        (3, {}, "counts: is 3. Pass a list of tables, one a site."),
        (["a", "b"], {}, "counts[0]: is 'a', which holds no numbers"),
        ([torch.ones(2, 2), torch.eye(2)], {"correction": 1e-300}, "correction: is 1e-300. Pass 0.5, or 0"),
        ([torch.ones(2, 2), torch.eye(2)], {"correction": "a"}, "correction: is 'a'. Pass 0.5, or 0"),
        ([torch.ones(2, 2), torch.eye(2)], {"correction": math.inf}, "correction: is inf. Pass 0.5, or 0"),
        ([torch.ones(2, 2), torch.eye(2)], {"margin": math.inf}, "margin: is inf. Pass a positive gap"),
        ([torch.ones(2, 2), torch.eye(2)], {"margin": "a"}, "margin: is 'a'. Pass a positive gap"),
        ([torch.ones(2, 2), torch.eye(2)], {"significance": "a"}, "significance: is 'a'. Pass a probability"),
        ([torch.ones(2, 2), torch.eye(2)], {"project": 3}, "project: is 3, which cannot be called"),
        ([torch.ones(2, 2), torch.eye(2)], {"project": lambda _: None}, "project: is None, which holds no numbers"),
        (
            [torch.ones(2, 2), torch.eye(2)],
            {"project": lambda _: torch.full((2, 2), math.inf)},
            "project: returned a table that is not positive and finite",
        ),
        ([torch.ones(2, 2), torch.eye(2)], {"generator": None}, "generator: is None. Pass a torch.Generator"),
        ([torch.ones(2, 2), torch.eye(2)], {"generator": "a"}, "generator: is 'a'. Pass a torch.Generator"),
        ([torch.ones(2, 2), torch.eye(2)], {"num_draws": "a"}, "num_draws: is 'a'. Pass a whole number"),
    ],
)
def test_compatibility_counts_and_options_that_cannot_be_used(counts: Any, options: dict[str, Any], text: str) -> None:
    """Data raise DataError, options their own kind."""
    of_data = not options or "project: is None" in text or "project: returned" in text
    with pytest.raises(FlexgenError, match=re.escape(text)) as error:
        bootstrap_test(counts, **{"generator": 0, **options})
    assert type(error.value) is (DataError if of_data else FlexgenError)


def test_compatibility_counts_that_cannot_be_weighed_are_told() -> None:
    counts = [torch.eye(3, dtype=torch.float64) * 1e18, torch.ones(3, 3, dtype=torch.float64)]
    with pytest.raises(DataError, match="counts: are too unequal for double precision"):
        wald_test(counts, correction=1e-3)
