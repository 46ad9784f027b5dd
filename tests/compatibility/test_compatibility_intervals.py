"""Intervals from few rows, of dense and of sparse effects: coverage, false equivalence, and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen.compatibility import Effect
from flexgen.compatibility.networks.intervals import IntervalMethod, rows_for

REPLICATES = 250
BAND = 4 * math.sqrt(0.95 * 0.05 / REPLICATES)  # 4 binomial standard errors: false alarm 6e-5
ROWS, QUICK_ROWS, QUICK = (7, 11, 32, 64, 200), (7, 80), ("dense, skewed", "a tenth", "one of thirty")

Plant = Callable[[int, torch.Generator], Tensor]


def dense(spread: float, size: float) -> Plant:
    """Lognormal sizes of mean `size`."""

    def plant(number: int, source: torch.Generator) -> Tensor:
        noise = torch.randn(number, generator=source, dtype=torch.float64)
        return size * (spread * noise - spread**2 / 2).exp()

    return plant


def sparse(share: float, size: float, background: float = 0.0, *, varies: bool = False) -> Plant:
    """A share of contexts has the effect `size` (exponential, if it varies), others `background` on average."""

    def plant(number: int, source: torch.Generator) -> Tensor:
        u, v, w = torch.rand(3, number, generator=source, dtype=torch.float64)
        scale = -w.log() if varies else torch.ones_like(w)
        return torch.where(u < share, size * scale, 2 * background * v)

    return plant


PLANTS: dict[str, tuple[Plant, float]] = {
    "dense, even": (dense(0.3, 0.2), 0.2),
    "dense, skewed": (dense(1.0, 0.2), 0.2),
    "a third": (sparse(1 / 3, 1.0), 1 / 3),
    "a tenth": (sparse(0.1, 1.0), 0.1),
    "a tenth, varying": (sparse(0.1, 1.0, varies=True), 0.1),
    "a tenth, large": (sparse(0.1, 2.5), 0.25),
    "a tenth on a background": (sparse(0.1, 1.0, 0.01), 0.1 + 0.9 * 0.01),
    "one of thirty": (sparse(1 / 30, 2.0), 2 / 30),
    "one of a hundred": (sparse(0.01, 2.0, 1e-3), 0.02 + 0.99e-3),
}


def effect(sizes: Tensor, unit: str = "nats") -> Effect:
    number = len(sizes)
    return Effect("gap", sizes, torch.ones(number), torch.arange(number), torch.zeros(number, 2), 1e-9, unit=unit)


def rates(plant: Plant, truth: float, rows: int, method: IntervalMethod = "bounded") -> tuple[float, float]:
    """Coverage, and how often the effect is called within a margin just below its mean."""
    source, hits, claims = torch.Generator().manual_seed(rows), 0, 0
    for _ in range(REPLICATES):
        found = effect(plant(rows, source))
        estimate = found.weighted(method=method)
        hits += estimate.low <= truth <= estimate.high
        # As the verdict was before: an interval below the margin, and nothing else.
        claims += estimate.high < truth if method == "t" else found.verdict(0.999 * truth) == "equivalent within margin"
    return hits / REPLICATES, claims / REPLICATES


def tiers() -> list[object]:
    """Few of them in the default tier, all in the slow one."""
    quick = [pytest.param(name, QUICK_ROWS, id=name) for name in QUICK]
    return [*quick, *(pytest.param(name, ROWS, id=f"{name}, all", marks=pytest.mark.slow) for name in PLANTS)]


@pytest.mark.statistical
@pytest.mark.parametrize(("name", "numbers"), tiers())
def test_intervals_cover_dense_and_sparse_effects_from_few_rows_and_many(name: str, numbers: tuple[int, ...]) -> None:
    plant, truth = PLANTS[name]
    for rows in numbers:
        coverage, claims = rates(plant, truth, rows)
        assert coverage >= 0.95 - BAND, rows
        assert claims <= 0.05 + BAND, rows
        if rows < 30:
            assert claims == 0


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["a tenth", "a tenth, large", "one of thirty"])
def test_the_interval_of_students_t_is_rejected(name: str) -> None:
    """The wrong interval: of seven rows that show nothing it makes "nothing there, for certain"."""
    plant, truth = PLANTS[name]
    coverage, claims = rates(plant, truth, 7, "t")
    assert coverage < 0.95 - BAND
    assert claims > 0.05 + BAND
    unseen = (1 - (0.1 if name.startswith("a tenth") else 1 / 30)) ** 7
    assert abs(1 - coverage - unseen) < 0.1  # that is why


@pytest.mark.parametrize(("seen", "rows"), [(0, 7), (0, 300), (3, 20), (20, 20)])
def test_of_zeros_and_ones_it_is_clopper_and_pearsons(seen: int, rows: int) -> None:
    sizes = (torch.arange(rows) < seen).double()
    found = effect(sizes, "total variation").weighted()
    exact = stats.binomtest(seen, rows).proportion_ci(0.95, method="exact")
    # 4000 points of the simplex: a quantile's level is off by 4 sqrt(.025 .975 / 4000) = .01 at most
    for value, level in ((found.low, 0.025), (found.high, 0.975)):
        beta = stats.beta(seen, rows - seen + 1) if level < 0.5 else stats.beta(seen + 1, rows - seen)
        if 0 < value < 1:
            assert abs(beta.cdf(value) - level) < 0.01
    if seen == 0:
        assert found.low == 0
        assert found.high == pytest.approx(exact.high, rel=1e-2)
    assert found.high <= 1


def test_with_many_rows_it_is_students_t() -> None:
    sizes = dense(0.5, 0.2)(1000, torch.Generator().manual_seed(1))
    bounded, t = effect(sizes).weighted(unseen=0.0), effect(sizes).weighted(method="t")
    assert bounded.value == t.value
    assert abs(bounded.low - t.low) < 0.1 * (t.high - t.low)
    assert abs(bounded.high - t.high) < 0.2 * (t.high - t.low)
    # What is allowed for contexts that were not seen: 3.7 of 2 nats over the number of rows, at most.
    assert 0 < effect(sizes).weighted().high - bounded.high < 3.7 * 2 / 1000


def test_rows_that_an_equivalence_takes() -> None:
    for margin in (0.01, 0.1, 0.5):
        needed = rows_for(margin, 0.95, 2.0)
        nothing = torch.zeros(needed)
        assert effect(nothing).weighted().high <= margin * 1.001
        assert effect(nothing[1:]).verdict(margin) == "not refuted" or needed == 30
    assert effect(torch.zeros(29)).verdict(5.0) == "not refuted"
    assert effect(torch.zeros(30)).verdict(5.0) == "equivalent within margin"
