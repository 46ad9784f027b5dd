"""What the Gaussian checks, closest joints and repairs of the exact tier refuse, each by its name."""

from __future__ import annotations

import math

import pytest
import torch

from flexgen.compatibility import (
    ConditionalFamily,
    GaussianConditionals,
    check_gaussian,
    check_tables,
    closest_gaussian,
    closest_joint,
    rectangle_rank,
    stationary,
    stationary_gaussian,
)
from flexgen.compatibility.repair import OrderEnsemble, random_scan
from flexgen.compatibility.samples.scans import cut
from flexgen.errors import DataError, FlexgenError
from flexgen.tables.conditional import TrainableTable
from tests.compatibility.worked_examples import PRESS, random_joint

PLAIN = GaussianConditionals(torch.tensor([[0.0, 0.5], [0.5, 0.0]]), torch.ones(2))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (2.0, 0.5)])
def test_compatibility_gaussians_on_the_edge_of_divergence(weights: tuple[float, float]) -> None:
    """b = (1, 1): I - B is singular. b = (-1, 1): the random scan's moments have no fixed point either."""
    b = torch.tensor([[0.0, weights[0]], [weights[1], 0.0]])
    with pytest.raises(FlexgenError, match=r"diverge under this scan|leave the mean undetermined"):
        stationary_gaussian(GaussianConditionals(b, torch.ones(2)))


@pytest.mark.parametrize(
    "scan", [0, None, ("a", "b"), (0.5, 1), {0: 0.5, 1: 0.5}, {(0, 1): math.nan}, ((0, 1),), (0,), {}]
)
def test_compatibility_gaussian_scans_that_are_none(scan: object) -> None:
    with pytest.raises(FlexgenError, match=r"scan: (is|has|names)"):
        stationary_gaussian(PLAIN, scan)


def test_compatibility_gaussian_arguments() -> None:
    for function in (check_gaussian, stationary_gaussian, closest_gaussian):
        with pytest.raises(FlexgenError, match="conditionals: is a Tensor"):
            function(torch.eye(2))
    for tolerance in (math.nan, math.inf, -1.0, "a"):
        with pytest.raises(FlexgenError, match="tolerance: is"):
            check_gaussian(PLAIN, tolerance=tolerance)
    assert check_gaussian(PLAIN, tolerance=0.0).verdict == "compatible"


@pytest.mark.parametrize("shape", [(0, 2), 4, (-2, 2), "22", (2.0, 2)])
def test_compatibility_rank_of_no_shape(shape: object) -> None:
    with pytest.raises(FlexgenError, match="shape: is"):
        rectangle_rank(shape)
    assert rectangle_rank(torch.Size((2, 3))) == 2


def test_compatibility_closest_joint_of_no_kind() -> None:
    for kind in (["I"], None, "i"):
        with pytest.raises(FlexgenError, match="kind: is"):
            closest_joint(PRESS, kind=kind)


def test_compatibility_repairs_of_what_they_cannot_repair() -> None:
    family = ConditionalFamily.of_tables(PRESS)
    for tables in (family, random_joint((2, 2), 0), torch.ones(2, 2)):
        with pytest.raises(FlexgenError, match=r"tables: is a .*Pass fg.exact.ConditionalTables"):
            random_scan(tables)
    for orders in ([[0, 1]], torch.tensor([[0.0, 1.0]]), torch.tensor(1), 3):
        with pytest.raises(FlexgenError, match="orders: "):
            OrderEnsemble(random_joint((2, 2), 0), orders)
    with pytest.raises(FlexgenError, match="conditional: is 3"):
        TrainableTable(3)  # type: ignore[arg-type]


def test_compatibility_units_of_no_draws() -> None:
    draws = {name: torch.randint(2, (16, 4, 2), generator=torch.Generator().manual_seed(0)) for name in "ab"}
    with pytest.raises(DataError, match="draws: is a Tensor"):
        cut(torch.zeros(2, 16, 4, 2))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"draws\['b'\]: is 'x'"):
        cut({**draws, "b": "x"})  # type: ignore[dict-item]
    for unit in ("chains", 0, 1.5, True, None):
        with pytest.raises(FlexgenError, match="unit: is"):
            cut(draws, unit=unit)  # type: ignore[arg-type]
    assert cut(draws, unit=torch.arange(3).numpy()[2]).kind == "blocks of 2 draws"


def test_compatibility_gaussian_variances_of_the_wrong_length() -> None:
    with pytest.raises(FlexgenError, match=r"variances: has shape \(2,\).*shape \(3,\)"):
        GaussianConditionals(torch.zeros(3, 3), torch.ones(2))


def test_compatibility_scans_of_unknown_sites_are_scans() -> None:
    with pytest.raises(FlexgenError, match=r"scan: holds 7\. Name distinct sites among 0 to 1"):
        stationary(PRESS, (0, 1, 7))
    with pytest.raises(FlexgenError, match=r"scan: names the site 'weather'.*names come with labels"):
        stationary(PRESS, ("weather", "mood"))
    named = ConditionalFamily.of_tables(PRESS, labels={"weather": "abc", "mood": "def"})
    with pytest.raises(FlexgenError, match=r"scan: names the site 'moo'.*use their names: weather, mood"):
        stationary(named, ("weather", "moo"))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[0.5, 0.5], [0.5, 0.4]], r"sums to 0\.9 over its targets at x1=1, not 1\. Normalise it"),
        ([[0.2, 0.8], [0.7, 0.3]], r"It sums to 1 over axis 1: transpose it, so that targets come first"),
        ([[0.33, 0.5], [0.66, 0.5]], r"sums to 0\.99 over its targets at x1=0, not 1\. If its entries are rounded"),
    ],
)
def test_compatibility_tables_that_do_not_sum_to_one(rows: list[list[float]], says: str) -> None:
    with pytest.raises(FlexgenError, match=r"conditionals\[0\]: .*" + says):
        ConditionalFamily((2, 2), [(0, [1], torch.tensor(rows))])
    with pytest.raises(FlexgenError, match=r"sums to 0\.9 over its targets, not 1"):
        ConditionalFamily((2,), [(0, [], torch.tensor([0.5, 0.4]))])


def test_compatibility_labels_without_categories() -> None:
    with pytest.raises(FlexgenError, match=r"labels: are \['a', 'b'\], names without categories\. Pass a dict"):
        ConditionalFamily.of_tables(PRESS, labels=["a", "b"])


def test_compatibility_networks_are_sent_to_the_tier_of_networks() -> None:
    for function in (stationary, check_tables):
        with pytest.raises(FlexgenError, match=r"tables: is a.*fg\.diagnose\(model, data\).*exact_blocks"):
            function(torch.nn.Linear(2, 2))
