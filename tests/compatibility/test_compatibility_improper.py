"""Conditionals whose only joint has no finite mass: x | y ~ Exp(y) and y | x ~ Exp(x) (Casella & George 1992).

Every log odds ratio agrees, as exp(-xy) has it, but exp(-xy) has no integral on the quarter plane. Cut to a box
[0, B]², the joint is proper: x has density (1 - exp(-Bx)) / (x Z), Z = γ + log B² + E1(B²), which has no
limit in B.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import exp1
from torch import Tensor

from flexgen.compatibility import check_tables, closest_joint, stationary
from flexgen.exact import ConditionalTables

BOX, MASS, MEAN = 5.0, 3.7960914897702684, 1.2644584602183186
EULER = 0.5772156649015329


def grid(box: float, size: int) -> tuple[Tensor, ConditionalTables]:
    """Midpoints of cells, and both exponential laws cut to the box, on them: each normalised by itself."""
    x = (torch.arange(size, dtype=torch.float64) + 0.5) * box / size
    rates, values = x[None, :], x[:, None]
    given_y = rates * torch.exp(-rates * values)  # density of x (rows) at rate y
    given_x = values * torch.exp(-values * rates)  # density of y (columns) at rate x
    return x, ConditionalTables([given_y / given_y.sum(0), given_x / given_x.sum(1, keepdim=True)])


def mass_of(box: float) -> float:
    """Z, the integral of exp(-xy) over the box."""
    return EULER + 2 * math.log(box) + float(exp1(box**2))


def mean_of(box: float) -> float:
    return (box - (1 - math.exp(-(box**2))) / box) / mass_of(box)


def mean_on_grid(box: float, size: int) -> float:
    x, tables = grid(box, size)
    joint = check_tables(tables).joint
    assert joint is not None
    return float(joint.p.sum(1) @ x)


def test_compatibility_of_exponentials_in_a_box() -> None:
    x, tables = grid(BOX, 50)
    found = check_tables(tables)
    assert (found.verdict, found.unique) == ("compatible", True)
    assert found.log_odds_gap < 1e-11
    assert found.joint is not None
    expected = torch.exp(-x[:, None] * x)
    torch.testing.assert_close(found.joint.p, expected / expected.sum(), rtol=1e-10, atol=0)
    for scan in ("random", (0, 1), (1, 0)):
        torch.testing.assert_close(stationary(tables, scan), found.joint.p, rtol=0, atol=1e-10)
    assert closest_joint(tables).objective < 1e-9


def test_compatibility_of_exponentials_matches_the_closed_forms() -> None:
    """Midpoint sums err by the square of the cell: a quarter for half of it, and next to nothing extrapolated."""
    coarse, fine = mean_on_grid(BOX, 60), mean_on_grid(BOX, 120)
    assert (fine - MEAN) / (coarse - MEAN) == pytest.approx(1 / 4, abs=0.02)
    assert (4 * fine - coarse) / 3 == pytest.approx(MEAN, abs=1e-4)
    x, tables = grid(BOX, 120)
    joint = check_tables(tables).joint
    assert joint is not None
    density = (1 - torch.exp(-BOX * x)) / (x * MASS) * BOX / 120
    assert float((joint.p.sum(1) - density).abs().max()) < 2e-3 * float(density.max())
    assert mass_of(BOX) == pytest.approx(MASS, rel=1e-12)
    assert mean_of(BOX) == pytest.approx(MEAN, rel=1e-12)


def test_compatibility_on_a_grid_does_not_show_that_a_joint_is_improper() -> None:
    """Whatever the box, the verdict is the same; that there is no law shows in where it goes as the box grows."""
    verdicts = {check_tables(grid(box, 40)[1]).verdict for box in (2.0, 5.0, 8.0)}
    assert verdicts == {"compatible"}
    masses = [mass_of(box) for box in (5.0, 50.0, 500.0)]
    assert masses[2] - masses[1] == pytest.approx(masses[1] - masses[0], abs=1e-9)  # log B² for ever
    means = [mean_of(box) for box in (5.0, 50.0, 500.0)]
    assert means[0] < means[1] / 4 < means[2] / 16
