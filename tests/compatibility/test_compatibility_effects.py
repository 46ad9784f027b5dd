"""Effects: estimates by hand, intervals by their coverage, verdicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats

from flexgen.compatibility.networks.effects import Cost, Effect
from flexgen.errors import FlexgenError

ROWS, WITHIN, REPLICATES = 40, 12, 600


def effect(values: list[float], rows: list[int], weights: list[float] | None = None, **options: object) -> Effect:
    size = len(values)
    return Effect(
        "gap",
        torch.tensor(values, dtype=torch.float64),
        torch.ones(size) if weights is None else torch.tensor(weights),
        torch.tensor(rows),
        torch.zeros(size, 2, dtype=torch.int64),
        **options,  # type: ignore[arg-type]
    )


def test_a_ratio_of_row_totals_by_hand() -> None:
    e = effect([1.0, -3.0, 2.0], [0, 0, 1], [1.0, 1.0, 2.0], floor=0.1)
    estimate = e.weighted(method="t")
    assert estimate.value == pytest.approx((1 + 3 + 2 * 2) / 4)
    assert e.uniform().value == pytest.approx(2.0)
    # rows' totals 4 and 4 of masses 2 and 2: residuals are zero, so is the width
    assert (estimate.low, estimate.high) == pytest.approx((2.0, 2.0))
    assert estimate.floor == pytest.approx(0.1)
    residuals = torch.tensor([4 - 2 * 2.0, 2 - 2.0])
    assert e.uniform(method="t").high - 2.0 == pytest.approx(
        float(stats.t.ppf(0.975, 1) * (2 * residuals.square().sum()).sqrt() / 3)
    )


def lognormal_rows(generator: torch.Generator) -> Effect:
    """Values of a row share its scale, so clusters matter. E |value| = exp(s^2 / 2) E |noise| = exp(0.18)."""
    scale = (0.6 * torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)).exp()
    noise = 2 * torch.rand(ROWS, WITHIN, generator=generator, dtype=torch.float64)
    sign = torch.randint(2, (ROWS, WITHIN), generator=generator) * 2 - 1
    values, rows = (scale * noise * sign).flatten(), torch.arange(ROWS).repeat_interleave(WITHIN)
    return Effect("gap", values, torch.ones(len(values)), rows, torch.zeros(len(values), 2, dtype=torch.int64))


def covered(method: str, *, by_row: bool = True) -> float:
    truth, generator, hits = math.exp(0.18), torch.Generator().manual_seed(1), 0
    replicates = REPLICATES if method == "t" else 300
    for _ in range(replicates):
        e = lognormal_rows(generator)
        if not by_row:  # the wrong way: every value an observation of its own
            e = Effect("gap", e.values, e.weights, torch.arange(len(e)), e.sites)
        estimate = e.weighted(method=method)  # type: ignore[arg-type]
        hits += estimate.low <= truth <= estimate.high
    return hits / replicates


@pytest.mark.statistical
def test_intervals_cover() -> None:
    # Skewed totals of 40 rows: Student's t loses up to 3 % of its coverage (Edgeworth, skewness 2.3 / sqrt(40) of the
    # mean), the studentised bootstrap less. Bands: 4 binomial standard errors, false alarm 6e-5, around 0.92 .. 0.95.
    t, bootstrap = covered("t"), covered("bootstrap")
    assert 0.92 - 4 * math.sqrt(0.92 * 0.08 / REPLICATES) < t < 0.95 + 4 * math.sqrt(0.05 * 0.95 / REPLICATES)
    assert 0.93 - 4 * math.sqrt(0.93 * 0.07 / 300) < bootstrap < 0.95 + 4 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.statistical
def test_intervals_that_ignore_rows_are_rejected() -> None:
    assert covered("t", by_row=False) < 0.92 - 4 * math.sqrt(0.92 * 0.08 / REPLICATES)


def test_verdicts() -> None:
    rows = list(range(120))
    large = effect([1.0, 1.2, 0.9] * 40, rows, floor=1e-3)
    small = effect([1e-5, 2e-5, 0.0] * 40, rows, floor=1e-3)
    assert large.verdict() == "refuted"
    assert large.verdict(margin=0.5) == "refuted"
    assert large.verdict(margin=2.0) == "equivalent within margin"
    assert small.verdict() == "not refuted"
    assert small.verdict(margin=0.1) == "equivalent within margin"
    assert small.verdict(margin=1e-6) == "not refuted"  # the interval is not below it, but rounding explains all
    few = effect([1e-5, 2e-5, 0.0], [0, 1, 2], floor=1e-3)
    assert few.verdict(margin=5.0) == "not refuted"  # three rows carry no equivalence
    assert few.rows_for(5.0) == 30
    assert small.verdict(margin=0.1, unseen=10.0) == "not refuted"
    assert (small.rows_for(0.1), small.rows_for(0.1, unseen=10.0)) == (72, 368)
    with pytest.raises(FlexgenError, match=r"margin: is -1\. Pass a positive number of nats, or None"):
        large.verdict(margin=-1)


def test_one_value_above_its_floor_refutes() -> None:
    """A network's answers have no sampling noise; only how large the effect is elsewhere takes two rows."""
    one_row = effect([5.0, 5.0], [0, 0], floor=1e-3)
    assert one_row.verdict() == one_row.verdict(margin=10.0) == "refuted"
    assert math.isnan(one_row.weighted().low)
    one_value = effect([2e-3] + [0.0] * 99, list(range(100)), floor=1e-3)
    assert one_value.weighted().low < one_value.weighted().floor  # the mean is no evidence
    assert one_value.verdict() == "refuted"
    assert one_value.verdict(margin=0.1) == "equivalent within margin"
    assert effect([0.0] * 100, list(range(100)), floor=1e-3).verdict() == "not refuted"
    unlikely = effect([5.0, 0.0], [0, 1], [0.0, 1.0], floor=1e-3)
    assert unlikely.weighted().value == 0.0
    assert unlikely.verdict() == "refuted"


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_nothing_measured_is_no_verdict(values: list[float]) -> None:
    nothing = effect(values, list(range(len(values))))
    assert nothing.verdict() == nothing.verdict(margin=1.0) == "not measured"
    assert math.isnan(nothing.weighted().value)


def test_effects_of_different_rows_join_with_the_weights_they_were_given() -> None:
    whole = effect([1.0, math.nan, 2.0, 3.0, 4.0], [0, 0, 1, 1, 2], [1.0, 5.0, 2.0, 3.0, 4.0], floor=0.1, cost=Cost(4))
    first = effect([1.0, math.nan, 2.0, 3.0], [0, 0, 1, 1], [1.0, 5.0, 2.0, 3.0], floor=0.1, cost=Cost(3))
    rest = effect([4.0], [0], [4.0], floor=0.1, cost=Cost(1)).at_rows(torch.tensor([2]))
    both = Effect.joined([first, rest])
    for name in ("values", "weights", "uniform_weights", "rows", "floor"):
        torch.testing.assert_close(getattr(both, name), getattr(whole, name), atol=1e-12, rtol=0)
    assert both.cost == whole.cost


def test_impossible_places() -> None:
    e = effect([1.0, math.nan, math.inf, 2.0], [0, 0, 1, 1])
    assert len(e) == 3
    assert e.num_infinite == 1
    assert e.uniform().value == pytest.approx(1.5)
    assert e.verdict(margin=10.0) == "refuted"  # an infinite gap is within no margin
    assert float(e.weights.sum()) == pytest.approx(1.0)


def test_by_sites_and_frames() -> None:
    sites = torch.tensor([[0, 1], [0, 2], [0, 1], [0, 2]])
    values = torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.float64)
    e = Effect("gap", values, torch.tensor([3.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]), sites, 0.5, Cost(7))
    frame = e.by_sites()
    assert frame["uniform"].tolist() == [2.0, 3.0]
    assert frame["weighted"].tolist() == [1.5, 3.0]
    assert frame["largest"].tolist() == [3.0, 4.0]
    assert e.to_dataframe().columns.tolist() == ["effect", "site_0", "site_1", "value", "floor", "weight", "row"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda e: e.weighted(level=95), "level: is 95. Pass a coverage between 0 and 1"),
        (lambda e: e.weighted(level="a"), "level: is 'a'. Pass a coverage between 0 and 1"),
        (lambda e: e.weighted(method="z"), "method: is 'z'. Choose 'bounded', 't' or 'bootstrap'"),
        (lambda e: e.weighted(unseen=-1.0), "unseen: is -1.0. Pass a number of nats, 0 or more"),
        (lambda e: e.verdict(margin="a"), "margin: is 'a'. Pass a positive number of nats"),
        (lambda e: e.verdict(margin=math.inf), "margin: is inf"),
        (lambda e: e.verdict(margin=math.nan), "margin: is nan"),
        (lambda _: effect([1.0, 2.0], [0, 1, 2]), r"rows: have shape \(3,\)\. Pass 2 entries, one a value"),
        (lambda _: effect([1.0, 2.0], [0, 1], [1.0, -1.0]), "weights: hold -1. Pass numbers of zero or more"),
        (lambda _: effect([1.0, 2.0], [0, 1], [1.0, math.nan]), "weights: hold nan"),
        (lambda _: effect([1.0, 2.0], [0, 1], floor=-1.0), "floor: hold -1"),
        (lambda e: dataclasses.replace(e, values=[1.0, 2.0]), "values: is a list. Pass a tensor"),
        (
            lambda e: dataclasses.replace(e, values=torch.ones(2, 1)),
            r"values: have shape \(2, 1\)\. Pass values, \[M\]",
        ),
        (lambda e: dataclasses.replace(e, sites=torch.zeros(2)), r"sites: have shape \(2,\)"),
    ],
)
def test_bad_arguments(call: Callable[[Effect], object], text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        call(effect([1.0, 2.0], [0, 1]))
