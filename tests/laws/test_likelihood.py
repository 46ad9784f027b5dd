"""Weighted losses are likelihoods: exact identities, by enumeration on a tabulated model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from samplers import laws
from samplers.laws.base import Law

SHAPE = (2, 3, 2, 2)
NUM_SITES = len(SHAPE)


def joint(seed: int = 0) -> Tensor:
    """A joint law of four sites in general position, float64."""
    table = torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.05
    return table / table.sum()


def incompatible() -> dict[tuple[frozenset[int], int], Tensor]:
    """log p(x_i | x_C) for every C and i, each from another joint: no joint has them all, as in a trained network."""
    answers = {}
    for mask in range(1 << NUM_SITES):
        observed = frozenset(i for i in range(NUM_SITES) if mask >> i & 1)
        for site in set(range(NUM_SITES)) - observed:
            answers[observed, site] = log_conditional(joint(seed=100 * mask + site), site, observed)
    return answers


def log_conditional(p: Tensor, site: int, observed: frozenset[int]) -> Tensor:
    """log p(x_site | x_observed) as a table that broadcasts over all states."""
    others = [i for i in range(NUM_SITES) if i != site and i not in observed]
    numerator = p.sum(others, keepdim=True) if others else p
    return (numerator / numerator.sum(site, keepdim=True)).log()


def expected_loss(law: Law, answers: dict[tuple[frozenset[int], int], Tensor], data: Tensor) -> float:
    """E over the law and the data of sum(weight * -log p(x_i | x_C) over i in P)."""
    support = law.support(NUM_SITES)
    total = 0.0
    for (query, probability), weight in zip(support, support.weight.tolist(), strict=True):
        observed = frozenset(query.observed.nonzero().flatten().tolist())
        for site in query.target.nonzero().flatten().tolist():
            total += probability * weight * float((data * -answers[observed, site]).sum())
    return total


def any_order_loss(answers: dict[tuple[frozenset[int], int], Tensor], data: Tensor) -> float:
    """The mean over all orders of the chain rule's loss."""
    orders = list(itertools.permutations(range(NUM_SITES)))
    total = 0.0
    for order in orders:
        for step, site in enumerate(order):
            total += float((data * -answers[frozenset(order[:step]), site]).sum())
    return total / len(orders)


def entropy(p: Tensor) -> float:
    return float(-(p * p.log()).sum())


@pytest.mark.parametrize(
    "law",
    [
        laws.any_order(),
        laws.mdlm(epsilon=0.0),
        laws.power_cardinality(1.0, "likelihood"),
        laws.power_cardinality(-1.5, "likelihood"),
        laws.Prefix(laws.UniformSize(0, leave=1), ahead=1, order="random", weight="likelihood"),
        laws.Prefix(laws.UniformSize(0, leave=1), order="random", weight="likelihood"),
    ],
    ids=repr,
)
def test_weighted_losses_are_the_any_order_loss(law: Law) -> None:
    """MDLM's 1/t, ARDM's n/|P| and importance weights of other sizes are one loss, on any model, compatible or not."""
    answers, data = incompatible(), joint(seed=1)
    assert expected_loss(law, answers, data) == pytest.approx(any_order_loss(answers, data), rel=1e-12)


def test_mdlm_with_a_floor_is_within_it() -> None:
    answers, data = incompatible(), joint(seed=1)
    loss = any_order_loss(answers, data)
    assert abs(expected_loss(laws.mdlm(1e-3), answers, data) - loss) < 4 * 1e-3 * loss
    assert abs(expected_loss(laws.mdlm(0.2), answers, data) - loss) > 1e-2 * loss


@pytest.mark.parametrize("weight", ["one", "mean"])
def test_other_weights_are_another_loss(weight: laws.Weight) -> None:
    answers, data = incompatible(), joint(seed=1)
    other = expected_loss(laws.uniform_cardinality(weight), answers, data)
    assert abs(other / any_order_loss(answers, data) - 1) > 0.1


def test_causal_is_the_chain_rule() -> None:
    p = joint()
    answers = {(frozenset(range(i)), i): log_conditional(p, i, frozenset(range(i))) for i in range(NUM_SITES)}
    assert expected_loss(laws.causal(), answers, p) == pytest.approx(entropy(p), rel=1e-12)


def test_mac_is_the_mean_marginal_likelihood() -> None:
    """Of a uniform subset of uniform size, whose chain rule in site order its multiplicity |S| pays for."""
    p, total = joint(), 0.0
    answers = {
        (frozenset(c), i): log_conditional(p, i, frozenset(c))
        for i in range(NUM_SITES)
        for size in range(NUM_SITES)
        for c in itertools.combinations([j for j in range(NUM_SITES) if j < i], size)
    }
    for size in range(1, NUM_SITES + 1):
        for inside in itertools.combinations(range(NUM_SITES), size):
            outside = [i for i in range(NUM_SITES) if i not in inside]
            marginal = p.sum(outside) if outside else p
            total += entropy(marginal) / (NUM_SITES * math.comb(NUM_SITES, size))
    assert expected_loss(laws.mac(), answers, p) == pytest.approx(total, rel=1e-12)
