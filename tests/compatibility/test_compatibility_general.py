"""Families that marginalise sites out: circulation, chains, linear programmes, and the family itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from flexgen.compatibility import ConditionalFamily, check_tables
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.exact import JointTable
from tests.compatibility.worked_examples import PRESS, PRESS_JOINT, random_joint, table

Stated = tuple[int, list[int], Tensor]


def given(p: Tensor, target: int, observed: list[int]) -> Stated:
    """(target, observed, p(x_target | x_observed)) of a joint."""
    out = [site for site in range(p.ndim) if site != target and site not in observed]
    both = p.sum(out) if out else p
    kept = sorted([target, *observed])
    both = both.permute([kept.index(site) for site in (target, *observed)])
    return target, observed, both / both.sum(0, keepdim=True)


def all_one_site(p: Tensor) -> list[Stated]:
    """p(x_i | x_C) for every i and C."""
    sites = range(p.ndim)
    return [
        given(p, i, list(c))
        for i in sites
        for k in sites
        for c in itertools.combinations([j for j in sites if j != i], k)
    ]


def test_all_one_site_conditionals_of_a_joint() -> None:
    p = random_joint((2, 3, 2, 2), 0).p
    found = check_tables(ConditionalFamily(p.shape, all_one_site(p)))
    assert (found.verdict, found.unique, found.method) == ("compatible", True, "chain")
    assert found.joint is not None
    torch.testing.assert_close(found.joint.p, p, atol=1e-14, rtol=0)


@pytest.mark.parametrize("wrong", [0, 5, 9, 11])
def test_the_worst_circulation_is_named(wrong: int) -> None:
    """One conditional of twelve comes from another joint: circulations through it are off, by hand too."""
    p, q = random_joint((2, 3, 2), 1).p, random_joint((2, 3, 2), 2).p
    stated = all_one_site(p)
    stated[wrong] = given(q, *stated[wrong][:2])
    found = check_tables(ConditionalFamily(p.shape, stated))
    assert (found.verdict, found.method) == ("incompatible", "chain")
    tables = {(i, tuple(c)): t for i, c, t in stated}

    def log(i: int, c: tuple[int, ...], x: tuple[int, ...]) -> float:
        return math.log(float(tables[i, tuple(sorted(c))][(x[i], *(x[j] for j in sorted(c)))]))

    worst = max(
        abs(log(i, c, x) + log(j, (*c, i), x) - log(j, c, x) - log(i, (*c, j), x))
        for x in itertools.product(range(2), range(3), range(2))
        for i, j in itertools.combinations(range(3), 2)
        for k in range(2)
        for c in itertools.combinations([s for s in range(3) if s not in (i, j)], k)
    )
    assert found.violation is not None
    assert found.violation.gap == pytest.approx(worst, abs=1e-12)
    assert "two ways to one probability" in str(found.violation)


def test_matching_marginals_do_not_make_conditionals_match() -> None:
    """Both marginals are even and each conditional keeps them so; their odds ratios 16 and 9/4 differ."""
    even, a, b = table([0.5, 0.5]), table([[0.8, 0.2], [0.2, 0.8]]), table([[0.6, 0.4], [0.4, 0.6]])  # type: ignore[list-item]
    family = ConditionalFamily((2, 2), [(0, [], even), (1, [], even), (0, [1], a), (1, [0], b)])
    found = check_tables(family)
    assert found.verdict == "incompatible"
    assert found.log_odds_gap == pytest.approx(math.log(16) - math.log(9 / 4), abs=1e-12)
    assert found.violation is not None
    assert found.violation.gap == pytest.approx(math.log(2), abs=1e-12)  # 0.2 against 0.1


def test_a_ring_of_pairs_by_linear_programme() -> None:
    p, q = random_joint((2, 3, 2), 3).p, random_joint((2, 3, 2), 4).p
    ring = [(0, [1]), (1, [2]), (2, [0])]
    found = check_tables(ConditionalFamily(p.shape, [given(p, *each) for each in ring]))
    assert (found.verdict, found.unique, found.method) == ("compatible", False, "linear programme")
    assert found.joint is not None
    for each in ring:
        torch.testing.assert_close(given(found.joint.p, *each)[2], given(p, *each)[2], atol=1e-7, rtol=0)
    found = check_tables(ConditionalFamily(p.shape, [given(p, 0, [1]), given(q, 1, [0]), given(p, 2, [0])]))
    assert (found.verdict, found.unique, found.joint) == ("incompatible", None, None)
    assert found.violation is not None
    assert found.violation.kind == "bound"


def test_a_linear_programme_finds_a_unique_joint() -> None:
    """Complete conditionals of three sites, of which one is replaced by p(x_2 | x_0): still one joint."""
    p = random_joint((2, 2, 2), 5).p
    stated = [given(p, 0, [1, 2]), given(p, 1, [0, 2]), given(p, 2, [0])]
    found = check_tables(ConditionalFamily(p.shape, stated))
    assert (found.verdict, found.unique, found.method) == ("compatible", True, "linear programme")
    assert found.joint is not None
    torch.testing.assert_close(found.joint.p, p, atol=1e-7, rtol=0)


def test_weak_by_chain_and_by_linear_programme() -> None:
    """x_0 is always 0, so what is stated for x_0 = 1 is never observed."""
    sure, copy = table([1.0, 0.0]), table([[0.5, 0.1], [0.5, 0.9]])  # type: ignore[list-item]
    found = check_tables(ConditionalFamily((2, 2), [(0, [], sure), (1, [0], copy)]))
    assert (found.verdict, found.unique, found.method) == ("weakly compatible", True, "chain")
    assert str(found.violation) == "every joint gives x0=1 probability zero, but a conditional observes it."
    always = table([[1.0, 1.0], [0.0, 0.0]])
    third = table([[0.5, 0.5], [0.5, 0.5]])
    found = check_tables(ConditionalFamily((2, 2, 2), [(0, [1], always), (1, [0], copy), (2, [0], third)]))
    assert (found.verdict, found.method) == ("weakly compatible", "linear programme")
    assert found.violation is not None


def test_complete_families_of_blocks() -> None:
    p = random_joint((2, 3, 2), 6).p
    blocks = [
        ([2, 0], [1], (p / p.sum((0, 2), keepdim=True)).permute(2, 0, 1)),
        (1, [0, 2], (p / p.sum(1, keepdim=True)).movedim(1, 0)),
    ]
    found = check_tables(ConditionalFamily(p.shape, blocks))
    assert (found.verdict, found.unique, found.method) == ("compatible", True, "graph")
    assert found.joint is not None
    torch.testing.assert_close(found.joint.p, p, atol=1e-14, rtol=0)
    found = check_tables(ConditionalFamily(p.shape, blocks[:1]))  # says nothing about x_1 on its own
    assert (found.verdict, found.unique) == ("compatible", False)
    q = random_joint((2, 3, 2), 7).p
    blocks[1] = (1, [0, 2], (q / q.sum(1, keepdim=True)).movedim(1, 0))
    found = check_tables(ConditionalFamily(p.shape, blocks))
    assert found.verdict == "incompatible"
    assert found.violation is not None
    assert found.violation.gap == pytest.approx(found.log_odds_gap, abs=1e-12)


def test_tables_and_families_agree() -> None:
    family = ConditionalFamily.of_tables(PRESS, labels={"row": "abc", "column": "xyz"})
    assert repr(family) == "ConditionalFamily(2 complete conditionals over 3 x 3 states)"
    assert family.is_complete
    found = check_tables(family)
    assert found.joint is not None
    torch.testing.assert_close(found.joint.p, PRESS_JOINT, atol=1e-14, rtol=0)
    assert isinstance(found.joint, JointTable)


def test_errors() -> None:
    half = table([0.5, 0.5])  # type: ignore[list-item]
    with pytest.raises(FlexgenError, match="conditionals: name no site 1"):
        ConditionalFamily((2, 2), [(0, [], half)])
    with pytest.raises(FlexgenError, match=r"conditionals\[0\]: has a table of shape \(2,\), not \(2, 3\)"):
        ConditionalFamily((2, 3), [(0, [1], half)])
    with pytest.raises(FlexgenError, match=r"conditionals\[1\]: sums to 1.2 over its targets, not 1"):
        ConditionalFamily((2, 2), [(0, [], half), (1, [], table([0.6, 0.6]))])  # type: ignore[list-item]
    with pytest.raises(FlexgenError, match=r"conditionals\[0\]: has target 0 and observed \(0,\)"):
        ConditionalFamily((2, 2), [(0, [0], half)])
    with pytest.raises(FlexgenError, match=r"conditionals\[0\]: has entries that are negative or not finite"):
        ConditionalFamily((2,), [(0, [], table([1.5, -0.5]))])  # type: ignore[list-item]
    with pytest.raises(FlexgenError, match=r"131072 states, but exact checks take 1 to 65536"):
        ConditionalFamily((2,) * 17, [(site, [], half) for site in range(17)])
    many = ConditionalFamily((2,) * 12, [(s, [(s + 1) % 12], torch.full((2, 2), 0.5)) for s in range(12)])
    with pytest.raises(FlexgenError, match="have 4096 states, but the linear programme takes at most 2048"):
        check_tables(many)
    twice = ConditionalFamily((2, 2), [(0, [], half), (1, [], half), (0, [1], torch.full((2, 2), 0.5))])
    with pytest.raises(UnsupportedQueryError, match="the target of 2 of the stated conditionals"):
        twice.block_table(0)
