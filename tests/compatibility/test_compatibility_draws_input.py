"""What the tests of draws take, runs of samplers among it, and what their results print."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import flexgen as fg
from flexgen.compatibility.networks.scores import score_asymmetry
from flexgen.compatibility.repair.excess_risk import excess_pseudo_log_likelihood
from flexgen.compatibility.samples.impact import block_variation, statistic_change
from flexgen.compatibility.samples.scans import classifier_scan_test, energy_scan_test
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.rng import stream
from samplers import GibbsSampler, scans

DISAGREEING = ConditionalTables([torch.tensor([[0.9, 0.2], [0.1, 0.8]]), torch.tensor([[0.3, 0.7], [0.3, 0.7]])])
STICKY = JointTable(torch.tensor([[0.46, 0.04], [0.04, 0.46]])).conditional_tables()
RUNS = {
    name: GibbsSampler(DISAGREEING, scan=scans.systematic(order)).run(chains=32, draws=10, warmup=20, generator=seed)
    for seed, (name, order) in enumerate({"forward": (0, 1), "back": (1, 0)}.items())
}
BARE = {name: run.draws.transpose(0, 1) for name, run in RUNS.items()}


def first_site(x: Tensor) -> Tensor:
    return x[:, 0].double()


def answers(draws: Any) -> list[Any]:
    return [
        energy_scan_test(draws, generator=0, num_permutations=99),
        classifier_scan_test(draws, generator=0, num_permutations=99),
        block_variation(draws, [[0], [0, 1]], generator=0),
        statistic_change(draws, first_site),
    ]


def test_compatibility_runs_of_samplers_are_taken_as_they_are() -> None:
    expected = answers(BARE)
    assert answers(RUNS) == expected
    assert expected[0].num_units == 32  # chains, not draws
    # Floats of a run that hold categories are categories; and anything with .draws will do.
    floats = {name: SimpleNamespace(draws=run.draws.double().numpy()) for name, run in RUNS.items()}
    assert answers(floats) == expected
    assert answers({**BARE, "back": RUNS["back"]}) == expected


def test_compatibility_runs_that_hold_no_draws_are_told_by_name() -> None:
    hollow = GibbsSampler(DISAGREEING, scan=scans.systematic()).run(chains=16, draws=4, generator=0, store=False)
    with pytest.raises(FlexgenError, match=re.escape("draws['a']: were not stored. Run with store=True")):
        energy_scan_test({"a": hollow, "b": hollow}, generator=0)
    flat = SimpleNamespace(draws=torch.zeros(16, 4))
    with pytest.raises(DataError, match=re.escape("draws['a']: holds draws of shape (16, 4)")):
        energy_scan_test({"a": flat, "b": flat}, generator=0)
    with pytest.raises(DataError, match=re.escape("draws['a']: is a SimpleNamespace, and no table of numbers")):
        energy_scan_test({"a": SimpleNamespace(), "b": flat}, generator=0)


def test_compatibility_read_only_arrays_raise_no_warning() -> None:
    arrays = {name: draws.numpy().copy() for name, draws in BARE.items()}
    for array in arrays.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers(arrays) == answers(BARE)
    flipped = {name: array[:, ::-1] for name, array in arrays.items()}  # torch takes no negative strides
    assert statistic_change(flipped, first_site).scans[0].value == statistic_change(BARE, first_site).scans[0].value


def test_compatibility_classifier_says_that_it_does_not_look_at_convergence() -> None:
    result = classifier_scan_test(BARE, generator=0, num_permutations=99)
    assert "32 whole chains of each scan" in str(result)
    assert "no whole chains" not in str(result)
    assert str(result).endswith("whether the chains had converged this test does not look at; energy_scan_test does")
    assert result.settled is None
    assert result.unsettled == ()
    blocks = energy_scan_test(BARE, generator=0, unit=5, num_permutations=99)
    assert str(blocks).endswith("units are no whole chains: whether the chains had converged was not tested")
    whole = energy_scan_test(BARE, generator=0, num_permutations=99)
    assert "converged" not in str(whole)


def test_compatibility_swapped_axes_of_slow_chains_print_no_verdict() -> None:
    """Twenty draws of 256 slow chains, passed as twenty chains: their halves differ, and nothing holds."""
    swapped = {}
    for seed in range(2):
        run = GibbsSampler(STICKY, scan=scans.systematic()).run(chains=256, draws=20, warmup=0, generator=seed)
        swapped[f"run {seed}"] = run.draws[:, run.draws.sum((0, 2)).argsort()]  # halves that stay apart
    result = energy_scan_test(swapped, generator=0, num_permutations=999)
    assert result.unsettled
    assert result.verdict == "not measured"
    assert "refuted" not in str(result)
    assert "nothing is concluded" in str(result).splitlines()[0]
    assert "[chains, draws, N]" in str(result).splitlines()[-1]


def test_compatibility_variation_lies_within_its_interval() -> None:
    below = 0
    for seed in range(20):
        draws = {name: torch.randint(2, (16, 4, 2), generator=stream(seed, name)) for name in "ab"}
        for entry in block_variation(draws, [[0], [0, 1]], generator=seed).entries:
            assert 0 <= entry.low <= entry.value <= entry.high <= 1
            below += entry.unclipped < 0
    assert below > 5
    same = {"a": draws["a"], "b": draws["a"].flip(0)}  # frequencies that tie exactly are no certainty
    (entry,) = block_variation(same, [[0]], generator=0).entries
    assert entry.plug_in == entry.value == 0
    # The error of a difference of two means over 16 units, at most half the units' spread each.
    spread = float(same["a"][..., 0].double().mean(1).std())
    assert entry.high == pytest.approx(2.042 * spread * (2 / 16) ** 0.5, rel=1e-3)


def test_compatibility_results_show_their_text() -> None:
    law = JointTable(torch.tensor([[0.27, 0.14], [0.03, 0.56]]))
    score = score_asymmetry(lambda x: x @ torch.eye(2).to(x), torch.ones(3, 2), generator=0)
    excess = excess_pseudo_log_likelihood(DISAGREEING, law, law.space.states())
    results = [*answers(BARE), score, excess]
    for result in results:
        assert repr(result) == str(result)
        assert len(repr(result).splitlines()) < 12
        assert result == replace(result)  # equal by value, as before
    energy, _, variation, change, *_ = results
    parts = [*energy.pairs, *variation.entries, *change.scans, *change.changes, score]
    for part in parts:
        assert repr(part) == str(part)
        assert "\n" not in repr(part)
    assert "(± one standard error)" in str(energy)
    assert "± one Monte Carlo standard error, in brackets intervals of 95%" in str(change)
    assert "(one standard error" in str(score)


def test_compatibility_excess_risk_is_worded_for_what_was_passed() -> None:
    law = JointTable(torch.tensor([[0.27, 0.14], [0.03, 0.56]]))
    states = law.space.states()
    assert "the joint gains " in str(excess_pseudo_log_likelihood(DISAGREEING, law, states))
    text = str(excess_pseudo_log_likelihood(DISAGREEING, STICKY, states))
    assert "the other model gains " in text
    assert "joint" not in text
    frame = pd.DataFrame(np.asarray(states), columns=["a", "b"])
    assert str(excess_pseudo_log_likelihood(DISAGREEING, STICKY, frame)) == text
    assert fg.compatibility.ExcessRisk(-1.0, -0.9, 0.1, 0.0, 0.1, 0.1, 0.95, None, 4).names == ("network", "joint")
