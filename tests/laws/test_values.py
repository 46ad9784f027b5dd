"""Laws that depend on values, and corrupted input."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from samplers import laws

FALSE_ALARM = 1e-6
ROWS, COLUMNS = 8000, 6


def table(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(ROWS, 1, generator=generator)
    return common + torch.randn(ROWS, COLUMNS, generator=generator)


def missing_rate(law: laws.Law, x: torch.Tensor) -> torch.Tensor:
    present = torch.ones_like(x, dtype=torch.bool)
    return law.draw(present, x=x, generator=torch.Generator().manual_seed(1)).query.target.double().mean(0)


def bound(rate: float) -> float:
    return float(stats.norm.isf(FALSE_ALARM / (2 * COLUMNS)) * math.sqrt(rate * (1 - rate) / ROWS))


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_mar_and_mnar_have_their_marginal_rate(rate: float) -> None:
    x, drivers = table(), (0, 3)
    mar = laws.LogisticMissing.mar(x, drivers=drivers, rate=rate, generator=torch.Generator().manual_seed(0))
    found = missing_rate(mar, x)
    assert (found[list(drivers)] == 0).all()
    others = [i for i in range(COLUMNS) if i not in drivers]
    assert (found[others] - rate).abs().max() < bound(rate)
    assert (missing_rate(laws.LogisticMissing.mnar(x, rate=rate), x) - rate).abs().max() < bound(rate)


@pytest.mark.statistical
def test_quantile_missingness_has_its_marginal_rate() -> None:
    x = table()
    law = laws.QuantileMissing.fit(x, drivers=range(COLUMNS), quantile=0.7, rate=0.5)
    assert (missing_rate(law, x) - 0.15).abs().max() < bound(0.15)
    below = laws.QuantileMissing.fit(x, drivers=[-1, 0, 0, 0, 0, 0], quantile=0.4, rate=1.0, beyond="below")
    found = missing_rate(below, x)
    assert found[0] == 0
    assert torch.allclose(found[1:], torch.tensor(0.4, dtype=torch.float64), atol=1e-3)


@pytest.mark.statistical
def test_self_masked_hides_large_values_and_mar_does_not_look_at_them() -> None:
    x, present = table(), torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    hidden = (
        laws.LogisticMissing.mnar(x, rate=0.3, slope=3.0).draw(present, x=x, generator=torch.Generator()).query.target
    )
    assert x[hidden].mean() > x[~hidden].mean() + 1.0
    # MAR: given the drivers, the value of the hidden column itself does not matter, not even that it is NaN.
    mar = laws.LogisticMissing.mar(x, drivers=(0,), rate=0.3, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 1:] = math.nan
    held = present.clone()
    held[:, 1:] = False
    assert torch.equal(mar.probability(x, present), mar.probability(other, held))


def test_fitting_ignores_missing_entries() -> None:
    x = table()
    holes = x.clone()
    holes[::2, 1] = math.nan
    law = laws.LogisticMissing.mnar(holes, rate=0.3)
    present = ~holes.isnan()
    rate = law.probability(holes, present)[present[:, 1], 1].mean()
    assert float(rate) == pytest.approx(0.3, abs=1e-5)


def test_what_a_network_is_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(200, 40, generator=generator) < 0.9
    x, random_values = torch.randint(100, (200, 40), generator=generator), torch.full((200, 40), -1)
    drawn = laws.bert(rate=0.5).draw(present, generator=generator)
    shown, visible = drawn.shown(x, random_values)
    assert drawn.kept is not None
    assert drawn.replaced is not None
    assert torch.equal(visible, drawn.query.observed | drawn.kept | drawn.replaced)
    assert (shown[drawn.replaced] == -1).all()
    assert torch.equal(shown[~drawn.replaced], x[~drawn.replaced])
    assert (drawn.query.target[drawn.kept]).all()  # visible but scored
    assert not (visible & ~present).any()


def test_a_plain_draw_shows_what_is_observed() -> None:
    drawn = laws.mae().draw(torch.ones(3, 8, dtype=torch.bool), generator=torch.Generator())
    x = torch.randn(3, 8, 2, generator=torch.Generator())
    shown, visible = drawn.shown(x, torch.zeros_like(x))
    assert shown is x
    assert torch.equal(visible, drawn.query.observed)
    corrupted = laws.Corrupted(laws.mae(), replace=1.0, keep=0.0)
    drawn = corrupted.draw(torch.ones(3, 8, dtype=torch.bool), generator=torch.Generator())
    shown, visible = drawn.shown(x, torch.zeros_like(x))
    assert visible.all()
    assert (shown[drawn.query.target] == 0).all()
