"""Rounded tables, rare events, and chains that hardly mix: verdicts and laws at any scale of probabilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexgen.compatibility import ConditionalFamily, check_tables, scan_divergence, stationary
from flexgen.compatibility.exact.family import as_family
from flexgen.compatibility.exact.programmes import Cone, check_linear
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from tests.compatibility.test_compatibility_general import given
from tests.compatibility.worked_examples import PRESS, SIX, generator, random_joint, random_tables, table

RING = ((0, [1]), (1, [2]), (2, [0]))


def single(t: Tensor) -> Tensor:
    return t.float()


def four_digits(t: Tensor) -> Tensor:
    t = (t * 1e4).round() / 1e4
    return t / t.sum(0, keepdim=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rounded", "tolerance"), [(single, 1e-3), (single, 1e-5), (four_digits, 1e-2)])
def test_compatibility_of_rounded_pairs(rounded: Callable[[Tensor], Tensor], tolerance: float, seed: int) -> None:
    """All six p(x_a | x_b) of one joint of three sites, rounded: compatible within what rounding does to logarithms."""
    p = random_joint((3, 3, 3), seed).p
    stated = [given(p, a, [b]) for a, b in itertools.permutations(range(3), 2)]
    family = ConditionalFamily(p.shape, [(a, b, rounded(t)) for a, b, t in stated])
    found = check_tables(family, tolerance=tolerance)
    assert (found.verdict, found.unique, found.violation) == ("compatible", False, None)
    assert found.joint is not None
    assert Cone(family, tolerance).misfit(found.joint.p.flatten().numpy()) < tolerance + 1e-8
    # One table of another joint is no rounding.
    q = random_joint((3, 3, 3), seed + 10).p
    wrong = ConditionalFamily(p.shape, [(a, b, rounded(t)) for a, b, t in [*stated[1:], given(q, *stated[0][:2])]])
    assert check_tables(wrong, tolerance=tolerance).verdict == "incompatible"


@pytest.mark.parametrize("mass", [1e-3, 1e-8, 1e-10, 1e-12])
def test_compatibility_of_rare_events(mass: float) -> None:
    """x_0 = 0 is rare, not impossible; a conflict given x_0 = 0 is seen at any mass, as is a zero."""
    p = random_joint((3, 3, 3), 0).p.clone()
    p[0] *= mass / float(p[0].sum())
    p /= p.sum()
    stated = [given(p, *each) for each in RING]
    found = check_tables(ConditionalFamily(p.shape, stated))
    assert (found.verdict, found.unique) == ("compatible", False)
    assert found.joint is not None
    torch.testing.assert_close(found.joint.p.sum((1, 2)), p.sum((1, 2)), rtol=1e-5, atol=0)
    # What is said of it counts all the same: here p(x_2 | x_0 = 0) and p(x_2 | x_0 = 0, x_1) disagree.
    turned = given(p, 2, [0, 1])
    turned[2][:, 0] = turned[2][:, 0].flip(0)
    found = check_tables(ConditionalFamily(p.shape, [*stated, given(p, 1, [0]), turned]))
    assert found.verdict == "incompatible"
    assert "shown by linear programming" in str(found.violation)


def complete_with_zeros(seed: int) -> tuple[ConditionalTables, float]:
    """Complete conditionals: of a joint with holes and rare values, rounded, or with an entry of one moved."""
    source = generator(seed)
    num_sites = 2 + seed % 2
    shape = tuple(int(v) for v in torch.randint(2, 4, (num_sites,), generator=source))
    weights = torch.rand(shape, generator=source, dtype=torch.float64).square() + 1e-4
    weights = torch.where(torch.rand(shape, generator=source) < (seed % 4) * 0.2, 0.0, weights)
    weights.select(0, 0).mul_(10.0 ** -(seed % 12))
    if not weights.any():
        weights += 1
    tables = list(JointTable.from_unnormalised(weights).conditional_tables(undefined="uniform").tables)
    kind = seed // 4 % 4
    if kind == 1:
        state = tuple(int(torch.randint(v, (), generator=source)) for v in shape)
        tables[0][state] *= 1.5
    if kind == 2:
        tables[1][torch.rand(shape, generator=source) < 0.2] = 0.0
        tables[1] += torch.where(tables[1].sum(1, keepdim=True) > 0, 0.0, 1.0)
    if kind == 3:
        tables = [t.float() for t in tables]
    tables = [t.double() / t.double().sum(site, keepdim=True) for site, t in enumerate(tables)]
    return ConditionalTables(tables), 1e-4 if kind == 3 else 1e-6


def test_compatibility_by_linear_programme_and_by_graph_agree() -> None:
    """Two routes that share no code, on families that the graph decides."""
    seen: dict[tuple[str, bool | None], int] = {}
    for seed in range(96):
        tables, tolerance = complete_with_zeros(seed)
        graph, linear = check_tables(tables, tolerance=tolerance), check_linear(as_family(tables), tolerance)
        verdict = "incompatible" if linear.joint is None else "compatible" if linear.covers else "weakly compatible"
        unique = None if linear.joint is None else linear.unique
        assert (verdict, unique) == (graph.verdict, graph.unique), seed
        assert (linear.violation is None) == (verdict == "compatible")
        seen[verdict, unique] = seen.get((verdict, unique), 0) + 1
    assert {verdict for verdict, _ in seen} == {"compatible", "weakly compatible", "incompatible"}
    assert {unique for _, unique in seen} == {True, False, None}


def test_compatibility_violations_are_about_what_can_happen() -> None:
    """x_0 = 1 never happens, so that its larger disagreement says nothing; the smaller one, at x_0 = 0, does."""
    never = table([[1.0], [0.0]])[:, 0]
    y = table([[0.5, 0.9], [0.5, 0.1]])  # p(x_1 | x_0)
    z = torch.full((2, 2), 0.5, dtype=torch.float64)  # p(x_2 | x_0)
    z_later, y_later = z[:, :, None].repeat(1, 1, 2), y[:, :, None].repeat(1, 1, 2)
    z_later[:, 0, :] = table([[0.51, 0.49], [0.49, 0.51]])
    z_later[:, 1, :] = table([[0.1, 0.9], [0.9, 0.1]])
    stated = [(0, [], never), (1, [0], y), (2, [0], z), (2, [0, 1], z_later), (1, [0, 2], y_later)]
    found = check_tables(ConditionalFamily((2, 2, 2), stated))
    assert (found.verdict, found.method) == ("incompatible", "chain")
    assert found.violation is not None
    assert "x0=1" not in str(found.violation)
    assert found.violation.gap == pytest.approx(math.log(0.5 / 0.49), abs=1e-9)
    stated[3] = (2, [0, 1], torch.where(torch.tensor([[True], [False]]), z[:, :, None], z_later))
    assert check_tables(ConditionalFamily((2, 2, 2), stated)).verdict == "weakly compatible"


# Chains that hardly mix.


def two_halves(size: int, coupling: float, *, twisted: bool = False) -> ConditionalTables:
    """Of a joint of two sites whose states fall into two halves, each leading to the other with some 1e-11."""
    p = torch.rand(size, size, generator=generator(size), dtype=torch.float64) + 0.1
    half = torch.arange(size) < size // 2
    joint = JointTable.from_unnormalised(torch.where(half[:, None] == half, p, p * coupling))
    tables = list(joint.conditional_tables().tables)
    if twisted:
        tables[1] = tables[1] * (1 + 0.1 * torch.rand(size, size, generator=generator(0), dtype=torch.float64))
        tables[1] = tables[1] / tables[1].sum(1, keepdim=True)
    return ConditionalTables(tables)


@pytest.mark.parametrize(("size", "coupling"), [(20, 1e-11), (20, 1e-6), (60, 1e-9)])
def test_compatibility_of_scans_that_hardly_mix(size: int, coupling: float) -> None:
    """A joint's law for every scan, although πK = π to rounding leaves it open by 1e-16 over 1 - |λ_2|."""
    tables = two_halves(size, coupling)
    joint = check_tables(tables).joint
    assert joint is not None
    for scan in ("random", (0, 1)):
        assert 0.5 * float((stationary(tables, scan) - joint.p).abs().sum()) < 1e-9
    assert scan_divergence(tables, "random", (0, 1)).tv < 1e-9
    torch.testing.assert_close(stationary(joint), joint.p, rtol=0, atol=1e-16)


def test_compatibility_of_slow_scans_without_a_joint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eliminated where they are small enough; else refused, with what is known of the error."""
    tables = two_halves(18, 1e-11, twisted=True)
    # Each half is left at a rate of its own: the law of the two halves against each other, by hand.
    law = stationary(tables, (0, 1))
    kernel = tables.kernel((0, 1))
    first = ((torch.arange(18) < 9)[:, None] & (torch.arange(18) < 9)).flatten()
    flow_out = (law.flatten()[first] @ kernel[first][:, ~first]).sum()
    flow_in = (law.flatten()[~first] @ kernel[~first][:, first]).sum()
    assert float(flow_out / flow_in) == pytest.approx(1, abs=1e-9)
    monkeypatch.setattr("flexgen.compatibility.exact.stationary._ELIMINATED_ENTRIES", 0)
    with pytest.raises(FlexgenError, match=r"mix too slowly under this scan: 1 - \|λ_2\| is about .*e-1[12]"):
        stationary(tables, (0, 1))
    assert 0.5 * float((stationary(tables, (0, 1), tolerance=1e-4) - law).abs().sum()) < 1e-2


def test_compatibility_two_conditionals_of_one_target() -> None:
    p = random_joint((2, 3), 0).p
    family = ConditionalFamily((2, 3), [given(p, 0, [1]), given(p, 0, []), given(p, 1, [0])])
    with pytest.raises(FlexgenError, match=r"tables: state 2 conditionals of the target x0\. Keep one"):
        stationary(family)


# What is refused, each by its name.


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        (0, r"scan: has the order 0\. Write an order as a tuple"),
        (None, "scan: has the order None"),
        (("a", "b"), "scan: names the site 'a'"),
        ((0.5, 1), "scan: names the site 0.5"),
        ((True, 0), "scan: names the site True"),
        ({0: 0.5, 1: 0.5}, "scan: has the order 0"),
        ({(0, 1): math.nan}, "scan: has weights"),
        ({(0, 1): "a"}, "scan: has weights"),
        ({}, "scan: has weights"),
    ],
)
def test_compatibility_scans_that_are_none(scan: object, message: str) -> None:
    with pytest.raises(FlexgenError, match=message):
        stationary(PRESS, scan)


def test_compatibility_exact_arguments() -> None:
    half = torch.full((2, 2), 0.5)
    for tables in (torch.ones(2, 2), [half, half]):
        with pytest.raises(FlexgenError, match="tables: is a"):
            stationary(tables)
    for tolerance in (math.nan, math.inf, -1.0, "a", True):
        with pytest.raises(FlexgenError, match="tolerance: is"):
            check_tables(SIX, tolerance=tolerance)
        with pytest.raises(FlexgenError, match="tolerance: is"):
            stationary(SIX, tolerance=tolerance)
    entries = [
        ((0, half), r"conditionals\[0\]: has 2 parts"),
        (("a", [1], half), r"conditionals\[0\]: has target 'a'"),
        ((0.5, [1], half), r"conditionals\[0\]: has target 0.5"),
        ((True, [1], half), r"conditionals\[0\]: has target True"),
        ((0, 1, half), r"conditionals\[0\] observed: is 1"),
        ((0, [1], "a"), r"conditionals\[0\]: has a table that is 'a'"),
    ]
    for entry, message in entries:
        with pytest.raises(FlexgenError, match=message):
            ConditionalFamily((2, 2), [entry])
    with pytest.raises(FlexgenError, match="shape: is 4"):
        ConditionalFamily(4, [])
    for labels in ([1, 2], 3):
        with pytest.raises(FlexgenError, match="labels: is"):
            check_tables(random_tables((2, 2), 0), labels=labels)
    with pytest.raises(FlexgenError, match="labels: of x1 hold 'a' twice"):
        check_tables(random_tables((2, 2), 0), labels=["ab", "aa"])
