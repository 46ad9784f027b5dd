"""What results of the exact tier print, alone on the last line of a cell too."""

from __future__ import annotations

import torch

from flexgen.compatibility import (
    GaussianConditionals,
    check_gaussian,
    check_tables,
    closest_gaussian,
    closest_joint,
    scan_divergence,
    stationary_gaussian,
)
from flexgen.compatibility.repair import random_scan
from tests.compatibility.worked_examples import COIN, PRESS, SIX, pair

LEANS = GaussianConditionals(torch.tensor([[0.0, 0.5], [0.25, 0.0]]), torch.tensor([1.0, 2.0]))


def test_compatibility_results_print_a_sentence_not_their_tensors() -> None:
    scanned = random_scan(COIN)
    for result, says in {
        check_tables(COIN): "incompatible: no joint; largest log-odds gap 0.693147 nats\n",
        closest_joint(COIN): "closest joint (I): ",
        scan_divergence(COIN, (0, 1), (1, 0)): "total variation 0.0833333; KL ",
        scanned: "distribution of the random scan over 2 x 2 states; under it its conditionals gain "
        f"{scanned.gain():.6g} nats",
        stationary_gaussian(LEANS, (0, 1)): "normal distribution of 2 sites: means 0, 0; standard deviations ",
        stationary_gaussian(LEANS): "mixture of normal distributions of 2 sites: ",
        check_gaussian(LEANS): "incompatible: x0 depends on x1",
        closest_gaussian(LEANS): "closest joint (I): sum of KL(r || r_{-i} q_i), nats = ",
    }.items():
        assert repr(result) == str(result)
        assert repr(result).startswith(says)
        assert "tensor(" not in repr(result)


def test_compatibility_the_gap_that_decided_is_the_one_named() -> None:
    """Every rectangle of SIX has a zero, so no log odds ratio differs; a loop of six states multiplies to 1/8."""
    assert check_tables(SIX).log_odds_gap == 0
    assert str(check_tables(SIX)).startswith("incompatible: no joint; gap of 2.07944 nats round a loop of 6 states\n")
    crossed = check_tables(pair([[1, 0], [0, 1]], [[0, 1], [1, 0]]))
    assert str(crossed).startswith("incompatible: no joint; a possible move that another conditional rules out\n")
    assert str(check_tables(PRESS)).startswith("compatible: one joint; largest log-odds gap ")
