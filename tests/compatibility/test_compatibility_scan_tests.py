"""Tests of draws of different scans: their size under autocorrelation, their power, and what they refuse."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen.compatibility.samples.scans import classifier_scan_test, cut, energy_scan_test, features
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.rng import stream
from flexgen.space import Space
from tests.compatibility.samples import gibbs_draws
from tests.conditionals import generator

ALARM = 1e-4
SIGNIFICANCE = 0.05

# Two sites that hold each other fast: a Gibbs chain needs about 20 sweeps to forget.
STICKY = JointTable(torch.tensor([[0.46, 0.04], [0.04, 0.46]])).conditional_tables()
# Sites that disagree on whether they depend on each other (Heckerman et al. 2000): a law for each order.
DISAGREEING = ConditionalTables([torch.tensor([[0.9, 0.2], [0.1, 0.8]]), torch.tensor([[0.3, 0.7], [0.3, 0.7]])])


def tolerance(rate: float, num: int) -> float:
    return float(stats.norm.isf(ALARM / 2)) * math.sqrt(rate * (1 - rate) / num)


def replicated(
    tables: ConditionalTables, replicates: int, chains: int, draws: int, scans: tuple[object, ...]
) -> list[dict[str, Tensor]]:
    """Draws of each scan for each replicate, of chains that have converged."""
    all_draws = {
        str(scan): gibbs_draws(tables, scan, chains=replicates * chains, draws=draws, warmup=60, seed=7).view(
            replicates, chains, draws, -1
        )
        for scan in scans
    }
    return [{name: values[r] for name, values in all_draws.items()} for r in range(replicates)]


def ar1(correlation: float, chains: int, draws: int, seed: int, mean: float = 0.0) -> Tensor:
    """Stationary autoregressions with standard normal law, two independent sites."""
    source = stream(seed, "ar1")
    noise = torch.randn(chains, draws, 2, generator=source, dtype=torch.float64)
    x = [noise[:, 0]]
    for t in range(1, draws):
        x.append(correlation * x[-1] + math.sqrt(1 - correlation**2) * noise[:, t])
    return torch.stack(x, 1) + mean


@pytest.mark.statistical
@pytest.mark.parametrize("replicates", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_compatibility_energy_test_has_its_size_though_scans_mix_at_different_speeds(replicates: int) -> None:
    """An order of sites mixes twice as fast as random sites; 16 chains of each."""
    p, settled = [], []
    for r, draws in enumerate(replicated(STICKY, replicates, 16, 16, ((0, 1), "random"))):
        result = energy_scan_test(draws, generator=generator(r), num_permutations=99, max_draws=128)
        p.append(result.p_value)
        settled.extend(result.settled.values())
    assert abs(sum(x <= SIGNIFICANCE for x in p) / len(p) - SIGNIFICANCE) < tolerance(SIGNIFICANCE, len(p))
    assert abs(sum(x <= SIGNIFICANCE for x in settled) / len(settled) - SIGNIFICANCE) < tolerance(
        SIGNIFICANCE, len(settled)
    )


@pytest.mark.statistical
def test_compatibility_naive_test_that_shuffles_draws_is_rejected() -> None:
    """unit=1 takes every draw for independent: the wrong test. Its size gives it away."""
    rejected, num = 0, 40
    for r, draws in enumerate(replicated(STICKY, num, 16, 8, ((0, 1), "random"))):
        rejected += energy_scan_test(draws, generator=generator(r), unit=1, num_permutations=99).p_value <= SIGNIFICANCE
    assert rejected / num > SIGNIFICANCE + tolerance(SIGNIFICANCE, num)


@pytest.mark.statistical
def test_compatibility_blocks_of_few_long_chains_have_their_size() -> None:
    p, num = [], 150
    slow, fast = ar1(0.8, 4 * num, 2000, 0), ar1(0.2, 4 * num, 2000, 1)
    for r, chains in enumerate(torch.arange(4 * num).view(num, 4)):
        draws = {"slow": slow[chains], "fast": fast[chains]}
        result = energy_scan_test(draws, generator=generator(r), num_permutations=99, max_draws=128)
        assert result.unit.startswith("blocks of ")
        assert not result.settled
        p.append(result.p_value)
    assert sum(x <= SIGNIFICANCE for x in p) / len(p) < SIGNIFICANCE + tolerance(SIGNIFICANCE, len(p))


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("unit", "replicates"), [("auto", 30), (1, 3), pytest.param("auto", 400, marks=pytest.mark.slow)]
)
def test_compatibility_classifier_keeps_chains_whole(unit: str | int, replicates: int) -> None:
    """On whole chains it has its size; the wrong test takes each draw for a unit, knows the chains, and refutes."""
    p = []
    for r in range(replicates):
        draws = {"a": ar1(0.97, 16, 8, 2 * r), "b": ar1(0.97, 16, 8, 2 * r + 1)}
        result = classifier_scan_test(draws, generator=generator(r), unit=unit, num_permutations=99)
        p.append(result.p_value)
    if unit == "auto":
        assert stats.kstest(p, "uniform").pvalue > ALARM
        assert sum(x <= SIGNIFICANCE for x in p) / replicates < SIGNIFICANCE + tolerance(SIGNIFICANCE, replicates)
    else:
        assert all(x <= SIGNIFICANCE for x in p)  # by chance .05^3


def test_compatibility_laws_of_incompatible_scans_are_told_apart() -> None:
    (draws,) = replicated(DISAGREEING, 1, 64, 16, ((0, 1), (1, 0), "random"))
    for result in (
        energy_scan_test(draws, generator=generator(0)),
        classifier_scan_test(draws, generator=generator(0)),
    ):
        assert result.verdict == "refuted"
        assert [(pair.first, pair.second) for pair in result.pairs] == [
            ("(0, 1)", "(1, 0)"),
            ("(0, 1)", "random"),
            ("(1, 0)", "random"),
        ]
        assert result.p_value == pytest.approx(3 / 1000)  # all three, by Bonferroni
        text = str(result)
        assert text.startswith("one distribution of all scans: refuted at significance 0.05 (p = 0.003, ")
        assert "64 whole chains of each scan" in text
        assert json.loads(json.dumps(result.to_dict()))["verdict"] == "refuted"


@pytest.mark.statistical
def test_compatibility_energy_and_area_estimate_what_the_laws_give() -> None:
    """The two stationary laws are known, and with them the energy distance and the best area of any classifier."""
    (draws,) = replicated(DISAGREEING, 1, 256, 16, ((0, 1), (1, 0)))
    p = torch.tensor([0.123, 0.287, 0.177, 0.413], dtype=torch.float64)
    q = torch.tensor([0.27, 0.14, 0.03, 0.56], dtype=torch.float64)
    states = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    distance = (states[:, None] != states).sum(-1).to(torch.float64).sqrt()
    across = 2 * p @ distance @ q
    share = float((across - p @ distance @ p - q @ distance @ q) / across)
    (pair,) = energy_scan_test(draws, generator=generator(0)).pairs
    z = float(stats.norm.isf(ALARM / 2))
    assert abs(pair.effect - share) < z * pair.standard_error
    assert pair.standard_error < 0.3 * share
    order = (q / p).argsort()
    area = float((q[order] * (p[order].cumsum(0) - p[order] / 2)).sum())
    (pair,) = classifier_scan_test(draws, generator=generator(0)).pairs
    assert abs(pair.effect - area) < z * pair.standard_error
    assert pair.standard_error < 0.03


@pytest.mark.statistical
def test_compatibility_energy_errors_are_the_spread_of_estimates() -> None:
    effects, errors = [], []
    for r, draws in enumerate(replicated(DISAGREEING, 200, 32, 8, ((0, 1), (1, 0)))):
        (pair,) = energy_scan_test(draws, generator=generator(r), num_permutations=19, max_draws=256).pairs
        effects.append(pair.effect)
        errors.append(pair.standard_error)
    spread = float(torch.tensor(effects).std())
    assert float(torch.tensor(errors).mean()) == pytest.approx(spread, rel=4.5 / math.sqrt(2 * 200))


def test_compatibility_dependence_is_seen_where_marginals_agree() -> None:
    """Two bits, equal or independent: expected numbers of differing sites are the same, distances are not."""
    source = stream(0, "bits")
    bits = torch.randint(2, (2, 64, 8, 1), generator=source)
    other = torch.randint(2, (64, 8, 1), generator=source)
    draws = {"equal": bits[0].expand(-1, -1, 2), "independent": torch.cat([bits[1], other], -1)}
    assert energy_scan_test(draws, generator=generator(0)).verdict == "refuted"


def test_compatibility_chains_that_still_move_conclude_nothing() -> None:
    drift = torch.linspace(3, 0, 16)[None, :, None]
    draws = {"settled": ar1(0.3, 32, 16, 0), "moving": ar1(0.3, 32, 16, 1) + drift}
    result = energy_scan_test(draws, generator=generator(0))
    assert result.p_value == 0.001
    assert result.unsettled == ("moving",)
    assert result.verdict == "not measured"
    first, *others = str(result).splitlines()
    assert first.startswith(
        "one distribution of all scans: nothing is concluded (p = 0.001, energy distance; 32 whole chains"
    )
    assert "refuted" not in str(result)
    assert "chains of moving had not converged" in others[-1]


def test_compatibility_same_generator_same_answer() -> None:
    draws = {"a": ar1(0.5, 16, 8, 0), "b": ar1(0.5, 16, 8, 1)}
    before = torch.random.get_rng_state()
    for test in (energy_scan_test, classifier_scan_test):
        assert test(draws, generator=generator(3)) == test(draws, generator=generator(3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_compatibility_block_length_follows_the_autocorrelation() -> None:
    lengths = []
    for correlation in (0.0, 0.5, 0.9):
        draws = {"a": ar1(correlation, 4, 20_000, 0), "b": ar1(0.0, 4, 20_000, 1)}
        lengths.append(cut(draws).draws["a"].shape[1])
    for length, time in zip(lengths, (1, 3, 19), strict=True):  # (1 + r) / (1 - r)
        assert 14 * time < length < 80 * time


def test_compatibility_balance_and_thinning() -> None:
    draws = {"a": torch.arange(20)[:, None, None].expand(20, 50, 1), "b": torch.arange(16 * 3).view(16, 3, 1) % 5}
    units = cut(draws, "chain").balanced().thinned(64)
    assert [tuple(units.draws[name].shape) for name in "ab"] == [(16, 2, 1), (16, 2, 1)]


def test_compatibility_categories_and_numbers_become_points() -> None:
    space = Space.from_dict(
        {
            "sites": [
                {"kind": "categorical", "num_categories": 3, "shape": [], "name": "a"},
                {"kind": "real", "num_categories": 0, "shape": [], "name": "b"},
            ]
        }
    )
    source = stream(0, "points")
    codes = torch.randint(3, (16, 4, 1), generator=source).double()
    numbers = 5 * torch.randn(16, 4, 1, generator=source, dtype=torch.float64)
    draws = {name: torch.cat([codes, numbers], -1) for name in "ab"}
    points = features(cut(draws, "chain", space), space)["a"].flatten(0, 1)
    assert points.shape == (64, 4)
    assert points[:, 3].std() == pytest.approx(1.0, rel=0.02)
    indicators = points[:, :3]
    different = (codes.flatten()[:, None] != codes.flatten()).double()
    torch.testing.assert_close(torch.cdist(indicators, indicators), different, atol=1e-7, rtol=0)


def test_compatibility_swapped_axes_are_noticed() -> None:
    swapped = {"a": ar1(0.9, 8, 500, 0).transpose(0, 1), "b": ar1(0.9, 8, 500, 1).transpose(0, 1)}
    with pytest.raises(DataError, match=re.escape("samplers return [draws, chains, N]: call draws.transpose(0, 1)")):
        energy_scan_test(swapped, generator=generator(0))


@pytest.mark.parametrize(
    ("draws", "options", "text"),
    [
        ({"a": (16, 4, 2)}, {}, "draws: holds 1 scan(s). Pass the draws of two scans or more"),
        ({"a": (16, 4, 2), "b": (16, 4, 3)}, {}, "draws: differ between scans in sites or in dtype"),
        ({"a": (16, 4), "b": (16, 4)}, {}, "draws['a']: has shape (16, 4). Pass [chains, draws, N]"),
        ({"a": (4, 4, 2), "b": (16, 4, 2)}, {"unit": "chain"}, "of scan 'a' give 4 independent units (whole chains)"),
        (
            {"a": (4, 40, 2), "b": (4, 40, 2)},
            {},
            "are too few to tell how far apart they must be (4 chains of 40 draws)",
        ),
        ({"a": (16, 4, 2), "b": (16, 4, 2)}, {"unit": "row"}, "unit: is 'row'. Pass 'auto', 'chain', or the number"),
        ({"a": (16, 4, 2), "b": (16, 4, 2)}, {"significance": 0}, "significance: is 0. Pass a probability"),
        ({"a": (16, 4, 2), "b": (16, 4, 2)}, {"num_permutations": 5}, "num_permutations: is 5. Pass at least 19"),
        (
            {"a": (16, 4, 2), "b": (16, 4, 2)},
            {"space": Space.real(3)},
            "draws['a']: has shape (16, 4, 2). Pass 3 sites",
        ),
    ],
)
def test_compatibility_bad_draws(draws: dict[str, tuple[int, ...]], options: dict[str, object], text: str) -> None:
    values = {name: torch.randn(shape, generator=stream(0, name), dtype=torch.float64) for name, shape in draws.items()}
    option = next(iter(options), None) if text.split(":")[0] in options else None
    with pytest.raises(FlexgenError, match=re.escape(text)) as error:
        energy_scan_test(values, generator=generator(0), **options)
    assert type(error.value) is (FlexgenError if option else DataError)


@pytest.mark.parametrize("test", [energy_scan_test, classifier_scan_test])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"draws": torch.zeros(2, 16, 4, 2)}, "draws: is a Tensor. Pass a dict: name of a scan -> its draws"),
        ({"draws": 5}, "draws: is 5. Pass a dict"),
        ({"draws": {"a": "x", "b": "y"}}, "draws['a']: is 'x', which holds no numbers"),
        ({"draws": {"a": None, "b": None}}, "draws['a']: is None, which holds no numbers"),
        (
            {"draws": dict.fromkeys("ab", torch.zeros(16, 4, 2, dtype=torch.complex64))},
            "draws['a']: holds torch.complex64",
        ),
        ({"generator": None}, "generator: is None. Pass a torch.Generator, or a whole number as seed."),
        ({"generator": "a"}, "generator: is 'a'. Pass a torch.Generator"),
        ({"significance": "a"}, "significance: is 'a'. Pass a probability"),
        ({"significance": None}, "significance: is None. Pass a probability"),
        ({"unit": 2.5}, "unit: is 2.5. Pass 'auto', 'chain', or the number"),
        ({"unit": 0}, "unit: is 0. Pass 'auto', 'chain', or the number"),
        ({"space": 3}, "space: is 3. Pass a flexgen Space, or None."),
        ({"max_draws": "a"}, "max_draws: is 'a'. Pass a whole number"),
    ],
)
def test_compatibility_draws_and_options_that_cannot_be_used(test: Any, options: dict[str, Any], text: str) -> None:
    draws = {"a": ar1(0.0, 16, 4, 0), "b": ar1(0.0, 16, 4, 1)}
    with pytest.raises(FlexgenError, match=re.escape(text)) as error:
        test(**{"draws": draws, "generator": 0, **options})
    assert type(error.value) is (DataError if "draws" in options else FlexgenError)


def test_compatibility_seeds_and_numpy_numbers_are_taken() -> None:
    draws = {"a": ar1(0.5, 16, 8, 0), "b": ar1(0.5, 16, 8, 1)}
    first = energy_scan_test(draws, generator=np.int64(3), unit=np.int64(4))
    assert first == energy_scan_test({k: v.numpy() for k, v in draws.items()}, generator=3, unit=4)


def test_compatibility_bad_folds_and_numbers() -> None:
    draws = {"a": ar1(0.0, 16, 4, 0), "b": ar1(0.0, 16, 4, 1)}
    with pytest.raises(FlexgenError, match=re.escape("num_folds: is 9, of 16 units. Pass 8 or fewer.")):
        classifier_scan_test(draws, generator=generator(0), num_folds=9)
    draws["b"][0, 0, 0] = math.nan
    with pytest.raises(DataError, match=re.escape("draws['b']: holds a number that is not finite")):
        energy_scan_test(draws, generator=generator(0))
