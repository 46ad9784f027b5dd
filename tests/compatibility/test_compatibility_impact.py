"""What incompatibility does: total variation of blocks, statistics and fit, against exact laws of scans."""

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

from flexgen.compatibility.repair.excess_risk import excess_pseudo_log_likelihood, pseudo_log_likelihood
from flexgen.compatibility.samples.impact import block_variation, statistic_change
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.rng import stream
from tests.compatibility.samples import gibbs_draws
from tests.conditionals import generator

ALARM = 1e-4
ORDERS = ((0, 1), (1, 0))
# Heckerman et al. (2000): the laws of the two orders, by hand.
DISAGREEING = ConditionalTables([torch.tensor([[0.9, 0.2], [0.1, 0.8]]), torch.tensor([[0.3, 0.7], [0.3, 0.7]])])
LAWS = {
    "(0, 1)": torch.tensor([[0.123, 0.287], [0.177, 0.413]], dtype=torch.float64),
    "(1, 0)": torch.tensor([[0.27, 0.14], [0.03, 0.56]], dtype=torch.float64),
}
TV = 0.294
AGREEING = JointTable(torch.tensor([[0.46, 0.04], [0.04, 0.46]])).conditional_tables()  # slow: 20 sweeps to forget


def tolerance(rate: float, num: int) -> float:
    return float(stats.norm.isf(ALARM / 2)) * math.sqrt(rate * (1 - rate) / num)


def replicated(tables: ConditionalTables, replicates: int, chains: int, draws: int) -> list[dict[str, Tensor]]:
    both = {
        str(scan): gibbs_draws(tables, scan, chains=replicates * chains, draws=draws, warmup=60, seed=5).view(
            replicates, chains, draws, -1
        )
        for scan in ORDERS
    }
    return [{name: values[r] for name, values in both.items()} for r in range(replicates)]


@pytest.mark.statistical
@pytest.mark.parametrize(("tables", "truth"), [(AGREEING, 0.0), (DISAGREEING, TV)], ids=["equal", "different"])
def test_compatibility_block_variation_is_debiased_and_covers(tables: ConditionalTables, truth: float) -> None:
    found = []
    for r, draws in enumerate(replicated(tables, 200, 32, 8)):
        (entry,) = block_variation(draws, [[0, 1]], generator=generator(r), num_splits=16).entries
        assert 0 <= entry.low <= entry.value <= entry.high <= 1
        found.append((entry.unclipped, entry.low, entry.high, entry.plug_in))
    value, low, high, plug_in = torch.tensor(found, dtype=torch.float64).T
    error = float(value.std()) / math.sqrt(len(value))
    assert abs(float(value.mean()) - truth) < float(stats.norm.isf(ALARM / 2)) * error
    covered = float(((low <= truth) & (truth <= high)).double().mean())
    assert covered > 0.95 - tolerance(0.95, len(value))
    if truth == 0:  # the observed variation, taken for the value, is the wrong estimate that must fail
        assert float(plug_in.mean()) > 2 * float(stats.norm.isf(ALARM / 2)) * error


@pytest.mark.statistical
def test_compatibility_wrong_interval_that_takes_draws_for_independent_is_rejected() -> None:
    missed = 0
    for r, draws in enumerate(replicated(AGREEING, 60, 16, 16)):
        (entry,) = block_variation(draws, [[0, 1]], generator=generator(r), unit=1, num_splits=16).entries
        missed += entry.low > 0
    assert missed / 60 > 0.05 + tolerance(0.05, 60)


@pytest.mark.statistical
def test_compatibility_many_states_and_few_draws_claim_nothing() -> None:
    """Two samples of one law over 256 states: observed variation is large, and is known to be noise."""
    source, low = stream(0, "states"), []
    for r in range(40):
        draws = {name: torch.randint(4, (32, 4, 4), generator=source) for name in "ab"}
        (entry,) = block_variation(draws, [[0, 1, 2, 3]], generator=generator(r), num_splits=16).entries
        assert entry.plug_in > 0.5
        low.append(entry.low)
    assert sum(x > 0 for x in low) / 40 < 0.05 + tolerance(0.05, 40)


def test_compatibility_block_variation_over_blocks_and_verdicts() -> None:
    (draws,) = replicated(DISAGREEING, 1, 256, 16)
    result = block_variation(draws, [[0], [1], [1, 0]], generator=generator(0))
    assert result.verdict == "refuted"
    assert result.largest.block == (1, 0)
    assert abs(result.largest.value - TV) < 0.05
    assert all(entry.high < 0.1 for entry in result.entries[:2])  # one-site laws are the same for both orders
    assert str(result).startswith(
        "total variation between scans: refuted (95% intervals over all; 256, 256 whole chains)"
    )
    assert "(0, 1) | (1, 0) on sites 1, 0: 0." in str(result)
    assert json.loads(json.dumps(result.to_dict()))["entries"][2]["block"] == [1, 0]
    assert block_variation(draws, [[0]], generator=generator(0), margin=0.1).verdict == "equivalent within margin"
    assert "margin: 0.1" in str(block_variation(draws, [[0]], generator=generator(0), margin=0.1))
    few = {name: values[:16, :2] for name, values in draws.items()}
    assert block_variation(few, [[0]], generator=generator(0), margin=0.01).verdict == "not refuted"


@pytest.mark.statistical
def test_compatibility_statistic_change_is_that_of_the_laws_and_covers() -> None:
    equal = lambda x: (x[:, 0] == x[:, 1]).double()  # noqa: E731
    truth = float((LAWS["(1, 0)"] - LAWS["(0, 1)"]).diagonal().sum())
    covered, naive, num = 0, 0, 400
    for draws in replicated(DISAGREEING, num, 32, 8):
        (change,) = statistic_change(draws, equal).changes
        covered += change.low <= truth <= change.high
    assert abs(covered / num - 0.95) < tolerance(0.95, num)
    for draws in replicated(AGREEING, num, 16, 8):  # the wrong error, of independent draws, must fail
        (change,) = statistic_change(draws, lambda x: x[:, 0].double(), unit=1).changes
        naive += change.low <= 0 <= change.high
    assert naive / num < 0.95 - 2 * tolerance(0.95, num)


@pytest.mark.statistical
def test_compatibility_correlations_are_compared_by_the_jackknife() -> None:
    def correlation(x: Tensor) -> Tensor:
        return torch.corrcoef(x.double().T)[0, 1]

    def of_law(p: Tensor) -> float:
        a, b = float(p[1].sum()), float(p[:, 1].sum())
        return (float(p[1, 1]) - a * b) / math.sqrt(a * (1 - a) * b * (1 - b))

    truth, covered, num = of_law(LAWS["(1, 0)"]) - of_law(LAWS["(0, 1)"]), 0, 150
    for draws in replicated(DISAGREEING, num, 32, 8):
        result = statistic_change(draws, correlation, per_draw=False)
        covered += result.changes[0].low <= truth <= result.changes[0].high
    assert abs(covered / num - 0.95) < tolerance(0.95, num)
    assert math.isnan(result.scans[0].ess)
    assert result.name == "correlation"


def test_compatibility_statistic_change_reads_and_decides() -> None:
    (draws,) = replicated(DISAGREEING, 1, 128, 16)
    both = lambda x: ((x[:, 0] == 1) & (x[:, 1] == 1)).double()  # noqa: E731
    result = statistic_change(draws, both, name="P(both)")
    assert result.verdict == "refuted"
    assert result.changes[0].in_sds == pytest.approx(result.changes[0].value / 0.5, rel=0.05)
    assert str(result).splitlines()[0] == (
        "P(both) across scans: refuted (± one Monte Carlo standard error, in brackets intervals of 95% over all pairs; "
        "128, 128 whole chains)"
    )
    assert "effective draws" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["name"] == "P(both)"
    assert statistic_change(draws, both, margin=0.5).verdict == "equivalent within margin"
    assert "margin: 0.5" in str(statistic_change(draws, both, margin=0.5))
    assert statistic_change(draws, lambda x: x[:, 0].double()).verdict == "not refuted"
    # A statistic that never varies has no error, and as many effective draws as draws.
    constant = statistic_change(draws, lambda x: torch.ones(len(x)))
    assert constant.scans[0].ess == 128 * 16
    assert constant.changes[0].value == constant.changes[0].high == 0


def test_compatibility_excess_risk_of_a_known_law_is_exact_and_above_the_certificate() -> None:
    law = JointTable(LAWS["(1, 0)"])
    states = law.space.states()
    weights = law.p.flatten()
    result = excess_pseudo_log_likelihood(DISAGREEING, law, states, weights=weights)
    truth = law.conditional_tables()
    expected = sum(
        float((law.p * (p.log() - q.log())).sum()) for p, q in zip(truth.tables, DISAGREEING.tables, strict=True)
    )
    assert result.gain == pytest.approx(expected, abs=1e-12)
    assert result.standard_error == 0
    # Any law r has sum_i KL(r_i || q_i) at least its minimum; here it is found by a scan over all laws of a grid.
    grid = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
    a, b, c = (t.flatten() for t in torch.meshgrid(grid, grid, grid, indexing="ij"))
    laws = torch.stack([a * b, a * (1 - b), (1 - a) * c, (1 - a) * (1 - c)], -1).view(-1, 2, 2)
    risks = sum(
        (laws * ((laws / laws.sum(1 + i, keepdim=True)).log() - q.log())).sum((1, 2))
        for i, q in enumerate(DISAGREEING.tables)
    )
    assert 0 < float(risks.min()) < result.gain


@pytest.mark.statistical
def test_compatibility_excess_risk_covers_on_rows() -> None:
    law = JointTable(LAWS["(1, 0)"])
    states = law.space.states()
    truth = excess_pseudo_log_likelihood(DISAGREEING, law, states, weights=law.p.flatten()).gain
    source, covered, num = stream(0, "rows"), 0, 200
    for _ in range(num):
        x = states[torch.multinomial(law.p.flatten(), 400, replacement=True, generator=source)]
        result = excess_pseudo_log_likelihood(DISAGREEING, law, x, batch_size=150)
        covered += result.low <= truth <= result.high
    assert abs(covered / num - 0.95) < tolerance(0.95, num)
    text = str(excess_pseudo_log_likelihood(DISAGREEING, law, x, certificate=0.01))
    assert "nats a row over 400 rows" in text
    assert "costs the network at least 0.0100" in text


def test_compatibility_pseudo_log_likelihood_sums_complete_conditionals() -> None:
    law = JointTable.random((2, 3, 2), generator=generator(0))
    states = law.space.states()
    expected = sum(t.flatten().log() for t in law.conditional_tables().tables)
    torch.testing.assert_close(pseudo_log_likelihood(law, states, batch_size=5), expected, atol=1e-12, rtol=0)


DRAWS = {name: torch.randint(2, (16, 8, 2), generator=stream(0, name)) for name in "ab"}


@pytest.mark.parametrize(
    ("blocks", "options", "text"),
    [
        ([0], {}, "blocks[0]: is 0. Pass lists of sites, such as [[0], [1, 2]]."),
        (0, {}, "blocks: is 0. Pass lists of sites"),
        (torch.tensor([0, 1]), {}, "blocks[0]: is 0. Pass lists of sites"),
        (["01"], {}, "blocks[0]: is '01'. Pass lists of sites"),
        ([[0.5]], {}, "blocks[0]: is 0.5. Pass a whole number"),
        ([[True]], {}, "blocks[0]: is True. Pass a whole number"),
        ([[-1]], {}, "blocks[0]: is -1. Pass at least 0."),
        ([[0]], {"margin": math.inf}, "margin: is inf. Pass a positive total variation"),
        ([[0]], {"margin": "a"}, "margin: is 'a'. Pass a positive total variation"),
        ([[0]], {"confidence": "a"}, "confidence: is 'a'. Pass a probability"),
        ([[0]], {"generator": "a"}, "generator: is 'a'. Pass a torch.Generator"),
        ([[0]], {"num_splits": 1}, "num_splits: is 1. Pass at least 2."),
        ([[0]], {"draws": 5}, "draws: is 5. Pass a dict"),
        ([[2]], {}, "blocks[0]: is [2]. Name sites 0 to 1, each once."),
        ([[0, 0]], {}, "blocks[0]: is [0, 0]"),
        ([], {}, "blocks: holds no block"),
        ([[0]], {"margin": -1.0}, "margin: is -1.0. Pass a positive total variation"),
        ([[0]], {"confidence": 95}, "confidence: is 95. Pass a probability"),
    ],
)
def test_compatibility_bad_blocks(blocks: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(FlexgenError, match=re.escape(text)) as error:
        block_variation(**{"draws": DRAWS, "blocks": blocks, "generator": 0, **options})
    assert type(error.value) is (DataError if "draws" in options else FlexgenError)


def test_compatibility_blocks_of_numpy_and_torch_are_taken() -> None:
    expected = block_variation(DRAWS, [[0], [1]], generator=0)
    assert block_variation(DRAWS, torch.tensor([[0], [1]]), generator=0) == expected
    assert block_variation(DRAWS, np.array([[0], [1]]), generator=0) == expected


@pytest.mark.parametrize(
    ("statistic", "options", "text"),
    [
        (3, {}, "statistic: is 3, which cannot be called"),
        (lambda _: None, {}, "statistic: is None, which holds no numbers. Return one number a draw"),
        (lambda _: None, {"per_draw": False}, "statistic: is None, which holds no numbers. Return one number, or"),
        (lambda _: "a", {}, "statistic: is 'a', which holds no numbers"),
        (lambda x: x[:, 0].to(torch.complex64), {}, "statistic: holds torch.complex64"),
        (lambda x: x[:, 0] * math.nan, {}, "statistic: is not finite at 128 of 128 draws of scan 'a'"),
        (lambda x: x[:, 0] / 0, {}, "statistic: is not finite at 128 of 128 draws of scan 'a'"),
        (
            lambda x: x[:, 0].double().mean() * math.nan,
            {"per_draw": False},
            "statistic: is nan for 16 of 16 units of scan 'a'",
        ),
        (
            lambda x: torch.tensor(1.0) if len(x) == 128 else math.inf,
            {"per_draw": False},
            "statistic: is inf for 15 of 16 units of scan 'a'",
        ),
        (lambda x: x[:, 0], {"margin": [1]}, "margin: is a list. Pass a positive change"),
        (lambda x: x[:, 0], {"confidence": 95}, "confidence: is 95. Pass a probability"),
        (lambda x: x[:, 0], {"draws": DRAWS["a"]}, "draws: is a Tensor. Pass a dict"),
    ],
)
def test_compatibility_statistics_that_cannot_be_used(statistic: Any, options: dict[str, Any], text: str) -> None:
    """NaN, inf and None are told; none of them is "not refuted"."""
    with pytest.raises(FlexgenError, match=re.escape(text)) as error:
        statistic_change(**{"draws": DRAWS, "statistic": statistic, **options})
    of_option = not callable(statistic) or {"margin", "confidence"} & set(options)
    assert type(error.value) is (FlexgenError if of_option else DataError)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"network": 3}, FlexgenError, "network: is 3, which has no space and log_prob"),
        ({"joint": 3}, FlexgenError, "joint: is 3, which has no space and log_prob"),
        ({"x": 5}, DataError, "x: has shape (). Pass two rows or more"),
        ({"x": "rows"}, DataError, "x: is 'rows', which holds no numbers"),
        ({"weights": torch.full((4,), math.nan)}, DataError, "weights: holds nan for row 0"),
        ({"weights": torch.tensor([1.5, -0.5, 0, 0])}, DataError, "weights: holds -0.5 for row 1"),
        ({"weights": "a"}, DataError, "weights: is 'a', which holds no numbers"),
        ({"weights": torch.ones(3) / 3}, DataError, "weights: has shape (3,), for 4 rows"),
        ({"certificate": math.nan}, FlexgenError, "certificate: is nan. Pass a number of nats"),
        ({"certificate": "a"}, FlexgenError, "certificate: is 'a'. Pass a number of nats"),
        ({"confidence": "a"}, FlexgenError, "confidence: is 'a'. Pass a probability"),
        ({"batch_size": "a"}, FlexgenError, "batch_size: is 'a'. Pass a whole number"),
    ],
)
def test_compatibility_excess_risk_that_cannot_be_measured(options: Any, kind: type[FlexgenError], text: str) -> None:
    law = JointTable(LAWS["(1, 0)"])
    with pytest.raises(FlexgenError, match=re.escape(text)) as error:
        excess_pseudo_log_likelihood(**{"network": DISAGREEING, "joint": law, "x": law.space.states(), **options})
    assert type(error.value) is kind


def test_compatibility_network_that_answers_nan_is_told() -> None:
    class Broken(JointTable):
        def log_prob(self, x: Tensor, query: Any) -> Tensor:
            return super().log_prob(x, query) * torch.tensor([1.0, math.nan, 1.0, 1.0])

    law = JointTable(LAWS["(1, 0)"])
    with pytest.raises(DataError, match=re.escape("joint: gives row 1 of x nan nats")):
        excess_pseudo_log_likelihood(DISAGREEING, Broken(law.p), law.space.states())


def test_compatibility_pseudo_log_likelihood_that_cannot_be_measured() -> None:
    law = JointTable(LAWS["(1, 0)"])
    with pytest.raises(FlexgenError, match=re.escape("conditional: is 3, which has no space and log_prob")):
        pseudo_log_likelihood(3, law.space.states())
    with pytest.raises(DataError, match=re.escape("x: has shape (2,). Pass one row or more, [B, N].")):
        pseudo_log_likelihood(law, law.space.states()[0])
    with pytest.raises(FlexgenError, match=re.escape("batch_size: is 0. Pass at least 1.")):
        pseudo_log_likelihood(law, law.space.states(), batch_size=0)


def test_compatibility_bad_statistics_and_rows() -> None:
    with pytest.raises(DataError, match=re.escape("statistic: maps draws [128, N] to shape (128, 2)")):
        statistic_change(DRAWS, lambda x: x.double())
    with pytest.raises(DataError, match=re.escape("statistic: maps all draws to shape (2,)")):
        statistic_change(DRAWS, lambda x: x.double().mean(0), per_draw=False)
    with pytest.raises(DataError, match=re.escape("draws: hold torch.float64. Pass integers")):
        block_variation({k: v.double() for k, v in DRAWS.items()}, [[0]], generator=generator(0))
    holes = JointTable(torch.tensor([[0.5, 0.0], [0.25, 0.25]]))
    states = holes.space.states()
    with pytest.raises(DataError, match="joint: holds row 1 of x impossible"):
        excess_pseudo_log_likelihood(DISAGREEING, holes, states)
    with pytest.raises(DataError, match="weights: sum to 2"):
        excess_pseudo_log_likelihood(DISAGREEING, holes, states, weights=torch.full((4,), 0.5))
    weighted = excess_pseudo_log_likelihood(DISAGREEING, holes, states, weights=holes.p.flatten())
    assert math.isfinite(weighted.gain)
    with pytest.raises(DataError, match=re.escape("x: has shape (1, 2). Pass two rows or more")):
        excess_pseudo_log_likelihood(DISAGREEING, holes, states[:1])
