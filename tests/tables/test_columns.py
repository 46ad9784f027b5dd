"""Column kinds and their maps: inferred right, invertible, and normalised in the units of the data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from flexgen.tables.columns import Column, ColumnMaps, fit_column
from flexgen.tables.conditional import TableMarginals
from flexgen.tables.members import LatentMarginals

NUM_ROWS = 400


def draw(name: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    z = rng.normal(size=NUM_ROWS)
    columns: dict[str, np.ndarray] = {
        "normal": 3 + 2 * z,
        "lognormal": np.exp(z),
        "two humps": np.where(rng.random(NUM_ROWS) < 0.5, z - 4, z + 4),
        "counts": rng.poisson(600, NUM_ROWS).astype(float),
        "rounded": np.round(z, 1),
        "offset steps": 0.37 + 0.25 * np.round(30 * z),
        "few": rng.choice([0.0, 1.0, 2.5, 7.0], NUM_ROWS, p=[0.1, 0.5, 0.3, 0.1]),
        "two levels": (z > 1).astype(float),
        "zero inflated": np.where(rng.random(NUM_ROWS) < 0.4, 0.0, np.exp(z)),
        "censored": np.clip(z, -1.0, 0.8),
        "heavy ties": rng.choice(np.r_[rng.normal(size=8), rng.normal(size=200)], NUM_ROWS),
        "large": 1e12 * (5 + z),
        "small": 1e-12 * z,
        "constant": np.full(NUM_ROWS, 4.5),
        "gaps": np.where(rng.random(NUM_ROWS) < 0.3, np.nan, z),
        "one value": np.r_[2.0, np.full(NUM_ROWS - 1, np.nan)],
        "no value": np.full(NUM_ROWS, np.nan),
    }
    return columns[name]


KINDS = {
    "normal": "real", "lognormal": "real", "two humps": "real", "counts": "lattice", "rounded": "lattice",
    "offset steps": "lattice", "few": "ordinal", "two levels": "ordinal", "zero inflated": "real", "censored": "real",
    "large": "real", "small": "real", "constant": "constant", "gaps": "real", "one value": "constant",
    "no value": "constant",
}  # fmt: skip
NUMERIC = [name for name, kind in KINDS.items() if kind != "constant"]


def fitted(name: str) -> Column:
    return fit_column(draw(name), integer=name == "counts")


def mixture_of(maps: ColumnMaps, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """A lopsided latent mixture, the same in every row: log weights, means, sds ``[B, S, 2]``."""
    numbers = (torch.tensor([0.7, 0.3]).double().log(), torch.tensor([-0.4, 1.1]).double(), torch.tensor([0.8, 0.3]))
    weights, means, sds = (n.double().expand(num_rows, len(maps.numeric), 2) for n in numbers)
    return weights, means, sds


def total_probability(column: Column) -> float:
    """By enumeration where values are discrete; else by quadrature over the latent's image, with the atoms added."""
    maps = ColumnMaps([column])

    def log_prob(values: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(values)[:, None]
        return maps.log_prob(x, *mixture_of(maps, len(x)))[:, 0].numpy()

    if column.kind == "ordinal":
        return float(np.exp(log_prob(np.array(column.levels))).sum())
    reach = torch.linspace(-7, 6, 4001, dtype=torch.float64)[:, None]
    ends = maps.inverse(reach)[:, 0].numpy()
    if column.kind == "lattice":
        steps = np.arange(
            round((ends[0] - column.offset) / column.step), round((ends[-1] - column.offset) / column.step)
        )
        width = 1.0 if column.unit_mass else column.step
        return float(np.exp(log_prob(column.offset + column.step * steps)).sum() * width)
    ends = np.unique(np.r_[ends, column.knots_x])
    nodes, weights = np.polynomial.legendre.leggauss(8)
    half, middle = 0.5 * np.diff(ends)[:, None], 0.5 * (ends[1:] + ends[:-1])[:, None]
    points = (middle + half * nodes).ravel()
    points = np.where(np.isin(points, column.levels), np.nextafter(points, np.inf), points)  # atoms come on their own
    smooth = (np.exp(log_prob(points)) * (half * weights).ravel()).sum()
    return float(smooth + np.exp(log_prob(np.array(column.levels))).sum())


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_recognised(name: str) -> None:
    column = fitted(name)
    assert column.kind == KINDS[name]
    assert len(column.levels) == {"zero inflated": 1, "censored": 2, "few": 4, "two levels": 2}.get(
        name, 1 if column.kind == "constant" else 0
    )
    if column.kind == "lattice":
        assert column.step == pytest.approx({"counts": 1.0, "rounded": 0.1, "offset steps": 0.25}[name], rel=1e-9)
    assert Column.from_dict(json.loads(json.dumps(column.to_dict()))) == column


def test_whole_numbers_keep_step_one_however_fine() -> None:
    x = np.random.default_rng(0).geometric(1e-4, 500).astype(float)
    assert fit_column(x, integer=True).step == 1.0
    assert fit_column(x, integer=False).kind == "real"


def test_codes_have_no_latent() -> None:
    maps = ColumnMaps([fit_column(np.array([0.0, 2.0, 1.0]), num_categories=3), fitted("normal")])
    assert maps.numeric.tolist() == [1]
    assert maps.categorical.tolist() == [0]
    assert maps.num_categories == (3,)


@pytest.mark.parametrize("name", NUMERIC)
def test_probabilities_sum_to_one_in_data_units(name: str) -> None:
    # Latents beyond [-7, 6] hold 1e-12; the quadrature's error, by halving its cells, is below 1e-8.
    assert abs(total_probability(fitted(name)) - 1) < 1e-6


def test_a_dropped_jacobian_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from flexgen.tables import columns, splines

    def without_slope(knots: tuple[Tensor, Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = value(knots, x)
        return y, 0.0 * log_slope

    value = splines.value_and_log_slope
    monkeypatch.setattr(columns.splines, "value_and_log_slope", without_slope)
    assert abs(total_probability(fitted("lognormal")) - 1) > 0.01


@pytest.mark.parametrize("name", [*NUMERIC, "constant"])
def test_there_and_back(name: str) -> None:
    x = draw(name)
    maps = ColumnMaps([fitted(name)])
    data = torch.from_numpy(x)[:, None]
    y = maps(data)
    if name == "constant":
        assert y.shape == (NUM_ROWS, 0)
        return
    assert torch.equal(y.isnan(), data.isnan())
    lower, upper = maps.cells(data)
    known = ~data.isnan()
    assert ((lower <= y) & (y <= upper))[known].all()
    back = maps.inverse(y)
    assert torch.equal(back.isnan(), data.isnan())
    spread = float(np.nanmax(np.abs(x)))
    # Discrete values come back to rounding; elsewhere a flat stretch magnifies the rounding of y.
    torch.testing.assert_close(back, data, rtol=0, atol=1e-9 * spread, equal_nan=True)
    in_order = maps.inverse(torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None])
    assert (in_order.diff(dim=0) >= -1e-12 * spread).all()


@pytest.mark.parametrize("name", NUMERIC)
def test_far_outside_the_data_latents_are_finite_and_only_levels_are_impossible(name: str) -> None:
    x = draw(name)
    low, high = np.nanmin(x), np.nanmax(x)
    far = torch.tensor([low - s * (high - low) for s in (1, 1e3)] + [high + s * (high - low) for s in (1, 1e3)])
    maps = ColumnMaps([fitted(name)])
    data = far.double()[:, None]
    y = maps(data)
    assert torch.isfinite(y).all()
    assert (y.diff(dim=0)[2:] >= 0).all()
    log_prob = maps.log_prob(data, *mixture_of(maps, 4))
    assert (log_prob == -torch.inf).all() if maps.is_ordinal.all() else torch.isfinite(log_prob).all()
    assert torch.isfinite(maps.inverse(torch.tensor([[-100.0], [100.0]], dtype=torch.float64))).all()


@pytest.mark.parametrize("name", NUMERIC)
def test_the_latent_is_roughly_standard_normal(name: str) -> None:
    """The maps are fitted by likelihood under N(0, 1), so that no other normal may be much likelier."""
    x = draw(name)
    data = torch.from_numpy(x[~np.isnan(x)])[:, None]
    maps = ColumnMaps([fitted(name)])
    zero = torch.zeros(len(data), 1, 1, dtype=torch.float64)
    score = [float(maps.log_prob(data, zero, zero + m, zero + s).mean()) for m in (-0.3, 0, 0.3) for s in (0.7, 1, 1.4)]
    assert max(score) == score[4]  # mean 0, sd 1


@given(
    values=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=8, unique=True),
    counts=st.lists(st.integers(1, 30), min_size=8, max_size=8),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_multiset_of_numbers_gets_a_map(values: list[float], counts: list[int]) -> None:
    x = np.concatenate([np.full(c, v) for v, c in zip(values, counts, strict=False)])
    if 0 < np.ptp(x) < 1e-90:
        return
    column = fit_column(x)
    maps = ColumnMaps([column])
    data = torch.from_numpy(x)[:, None]
    if column.kind == "constant":
        assert len(values) == 1
        return
    y = maps(data)
    assert torch.isfinite(y).all()
    assert torch.isfinite(maps.log_prob(data, *mixture_of(maps, len(x)))).all()
    torch.testing.assert_close(maps.inverse(y), data, rtol=0, atol=1e-9 * np.abs(x).max())


# Answers in data units ------------------------------------------------------------------------------------------------


def marginals_of(name: str, num_rows: int = 1) -> TableMarginals:
    maps = ColumnMaps([fitted(name)])
    weights, means, sds = mixture_of(maps, num_rows)
    return TableMarginals(maps, LatentMarginals(weights, means, sds, torch.zeros(num_rows, 0, 1)))


def enumerated(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Data values at 200 001 quantiles of the latent mixture, all equally likely."""
    marginals = marginals_of(name)
    grid = np.linspace(-8, 6, 400_001)
    cdf = 0.7 * stats.norm.cdf((grid + 0.4) / 0.8) + 0.3 * stats.norm.cdf((grid - 1.1) / np.float32(0.3))
    p = (np.arange(200_001) + 0.5) / 200_001
    return marginals.maps.inverse(torch.from_numpy(np.interp(p, cdf, grid))[:, None])[:, 0].numpy(), p


@pytest.mark.parametrize("name", NUMERIC)
def test_mean_sd_and_quantiles(name: str) -> None:
    """Levels are summed; elsewhere Gauss-Hermite quadrature errs, where g is steep, by half the largest weight.

    That is 0.14 of 16 nodes' weights, of a step that is at most two sd high; where g has no step it errs by far less.
    """
    values, p = enumerated(name)
    marginals = marginals_of(name)
    spread = values.std()
    steep = name in ("two humps", "zero inflated", "censored")
    share = 0.28 if steep else 1e-4 if marginals.maps.columns[0].kind == "ordinal" else 0.02
    assert abs(float(marginals.mean()) - values.mean()) < share * spread
    assert abs(float(marginals.sd()) - spread) < share * spread
    for q in (0.02, 0.5, 0.9):
        near = np.interp([q - 1e-4, q + 1e-4], p, values)
        found = float(marginals.quantile(q))
        assert near[0] - 1e-9 * spread <= found <= near[1] + 1e-9 * spread


@pytest.mark.statistical
@pytest.mark.parametrize("name", NUMERIC)
def test_draws_follow_the_answer(name: str) -> None:
    """Kolmogorov-Smirnov distance below its 1 - 1e-6 quantile, sqrt(log(2e6) / 2n); conservative where discrete."""
    num_draws = 4000
    draws = marginals_of(name, num_draws).sample(generator=torch.Generator().manual_seed(3))[:, 0].numpy()
    values, _ = enumerated(name)
    values = np.sort(values)
    bound = math.sqrt(math.log(2e6) / 2 / num_draws)

    def distance(sample: np.ndarray) -> float:
        at = np.unique(np.r_[values[::100], sample])
        ours = np.searchsorted(np.sort(sample), at, side="right") / len(sample)
        return float(np.abs(ours - np.searchsorted(values, at, side="right") / len(values)).max())

    assert distance(draws) < bound
    right = marginals_of(name, num_draws)
    moved = LatentMarginals(
        right.latents.log_weights, right.latents.means + 0.5, right.latents.sds, right.latents.log_probs
    )
    wrong = TableMarginals(right.maps, moved).sample(generator=torch.Generator().manual_seed(3))
    assert distance(wrong[:, 0].numpy()) > bound


@pytest.mark.parametrize("name", ["few", "two levels"])
def test_the_mode_of_levels_is_the_likeliest(name: str) -> None:
    marginals = marginals_of(name)
    levels = torch.tensor(marginals.maps.columns[0].levels, dtype=torch.float64)[:, None]
    log_probs = marginals_of(name, len(levels)).log_prob(levels)
    assert float(marginals.mode()) == float(levels[log_probs.argmax()])


def sites_drawn_one_by_one() -> Callable[[int], Tensor]:
    maps = ColumnMaps([fitted("normal"), fit_column(np.array([0.0, 1.0]), num_categories=2), fitted("few")])
    weights, means, sds = mixture_of(maps, 2000)
    log_probs = torch.tensor([0.2, 0.8], dtype=torch.float64).log().expand(2000, 1, 2)
    marginals = TableMarginals(maps, LatentMarginals(weights, means, sds, log_probs))
    return lambda site: marginals.sample_site(site, generator=torch.Generator().manual_seed(site))


@pytest.mark.statistical
def test_draws_of_one_site_follow_the_same_law() -> None:
    """Two samples of 2000, Kolmogorov-Smirnov, false alarm 1e-6."""
    one = sites_drawn_one_by_one()
    for site, name in ((0, "normal"), (2, "few")):
        values, _ = enumerated(name)
        ours, theirs = np.sort(one(site).numpy()), np.sort(values)
        at = np.unique(np.r_[ours, theirs[::100]])
        gap = np.searchsorted(ours, at, "right") / len(ours) - np.searchsorted(theirs, at, "right") / len(theirs)
        assert np.abs(gap).max() < math.sqrt(math.log(2e6) / 2 / len(ours))
    assert stats.binomtest(int(one(1).sum()), 2000, 0.8).pvalue > 1e-6


def test_masses_of_whole_numbers_sum_to_one_over_all_of_them() -> None:
    """Also over those between and beyond the levels, which never occurred."""
    x = np.repeat([0.0, 2.0, 4.0, 6.0], [10, 20, 15, 30])
    maps = ColumnMaps([fit_column(x, integer=True)])
    assert maps.is_ordinal.all()
    values = torch.arange(-3.0, 12.0, dtype=torch.float64)[:, None]
    total = maps.log_prob(values, *mixture_of(maps, len(values))).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-9)
