"""Effects: estimates by hand, intervals by their coverage, verdicts."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from flexgen.compatibility.effects import Cost, Effect
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
    estimate = e.weighted()
    assert estimate.value == pytest.approx((1 + 3 + 2 * 2) / 4)
    assert e.uniform().value == pytest.approx(2.0)
    # rows' totals 4 and 4 of masses 2 and 2: residuals are zero, so is the width
    assert (estimate.low, estimate.high) == pytest.approx((2.0, 2.0))
    assert estimate.floor == pytest.approx(0.1)
    residuals = torch.tensor([4 - 2 * 2.0, 2 - 2.0])
    assert e.uniform().high - 2.0 == pytest.approx(
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
    large, small = effect([1.0, 1.2, 0.9], [0, 1, 2], floor=1e-3), effect([1e-5, 2e-5, 0.0], [0, 1, 2], floor=1e-3)
    assert large.verdict() == "refuted"
    assert large.verdict(margin=0.5) == "refuted"
    assert large.verdict(margin=2.0) == "equivalent within margin"
    assert small.verdict() == "not refuted"
    assert small.verdict(margin=0.1) == "equivalent within margin"
    unsure = effect([0.0, 5.0], [0, 1])
    assert unsure.verdict(margin=0.1) == "not refuted"
    assert effect([3.0, 2.0], [0, 0]).verdict() == "not refuted"  # one row is no sample
    with pytest.raises(FlexgenError, match=r"margin: is -1\. Pass a positive number of nats, or None"):
        large.verdict(margin=-1)


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
        (lambda e: e.weighted(method="z"), "method: is 'z'. Choose 't' or 'bootstrap'"),
    ],
)
def test_bad_arguments(call: object, text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        call(effect([1.0, 2.0], [0, 1]))  # type: ignore[operator]
    with pytest.raises(FlexgenError, match=r"rows: has 3 entries\. Pass 2, one a value"):
        effect([1.0, 2.0], [0, 1, 2])
