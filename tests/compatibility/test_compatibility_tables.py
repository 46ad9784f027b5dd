"""Verdicts on complete conditionals: worked examples, zeros, loops of any length, and counts of constraints."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import flexgen as fg
from flexgen.compatibility import ConditionalFamily, check_tables, rectangle_rank
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from tests.compatibility.worked_examples import (
    COIN,
    CROSSED,
    ONE_WAY,
    PATH,
    PATH_JOINT,
    PRESS,
    PRESS_JOINT,
    SIX,
    pair,
    random_joint,
    random_tables,
    table,
)


def has_conditionals(joint: JointTable, tables: ConditionalTables) -> bool:
    """Whether a law has the conditionals wherever it has mass."""
    return all(
        bool((joint.p - joint.p.sum(site, keepdim=True) * stated).abs().max() < 1e-12)
        for site, stated in enumerate(tables.tables)
    )


def test_worked_examples() -> None:
    for tables, joint in ((PRESS, PRESS_JOINT), (PATH, PATH_JOINT)):
        found = check_tables(tables)
        assert (found.verdict, found.unique, found.violation) == ("compatible", True, None)
        assert found.joint is not None
        torch.testing.assert_close(found.joint.p, joint, atol=1e-12, rtol=0)
    gaps = {COIN: math.log(2), ONE_WAY: math.log(36), CROSSED: 3.1863384}
    for tables, gap in gaps.items():
        found = check_tables(tables)
        assert (found.verdict, found.unique, found.joint) == ("incompatible", None, None)
        assert found.log_odds_gap == pytest.approx(gap, abs=1e-5)
        assert found.violation is not None
        assert found.violation.gap == pytest.approx(found.log_odds_gap, abs=1e-12)


def test_log_odds_gap_is_the_difference_of_two_log_odds_ratios() -> None:
    a, b = CROSSED.tables
    log_odds = [float(t.log()[0, 0] + t.log()[1, 1] - t.log()[0, 1] - t.log()[1, 0]) for t in (a, b)]
    assert check_tables(CROSSED).log_odds_gap == pytest.approx(abs(log_odds[0] - log_odds[1]), abs=1e-12)


def test_a_loop_of_six_decides_where_all_rectangles_agree() -> None:
    found = check_tables(SIX, labels={"drug": ["a", "b", "c"], "dose": ["low", "mid", "high"]})
    assert found.verdict == "incompatible"
    assert found.log_odds_gap == 0
    assert found.violation is not None
    assert found.violation.kind == "loop"
    assert found.violation.ratio == pytest.approx(1 / 8, abs=1e-12)
    assert len(found.violation.states) == len(set(found.violation.states)) == 6
    text = str(found)
    assert "loop of 6 states" in text
    assert "p(dose=mid | drug=b) = 0.5, back p(dose=high | drug=b) = 0.5" in text


def test_every_step_of_a_loop_is_an_entry_of_the_tables() -> None:
    tables = random_tables((2, 3, 4), 3)
    found = check_tables(tables)
    assert found.violation is not None
    states = found.violation.states
    log_ratio = 0.0
    for k, here in enumerate(states):
        there = states[(k + 1) % len(states)]
        (site,) = [i for i in range(3) if here[i] != there[i]]
        step = found.violation.steps[k]
        assert step.forward == float(tables.tables[site][there])  # type: ignore[index]
        assert step.backward == float(tables.tables[site][here])  # type: ignore[index]
        log_ratio += math.log(step.forward / step.backward)
    assert log_ratio == pytest.approx(found.violation.gap, abs=1e-12)
    assert found.violation.gap == pytest.approx(found.log_odds_gap, abs=1e-12)


def brute_force_gap(tables: ConditionalTables) -> float:
    """The largest |difference of log odds ratios|, rectangle by rectangle."""
    worst = 0.0
    for i, j in itertools.combinations(range(len(tables.shape)), 2):
        difference = (tables.tables[i].log() - tables.tables[j].log()).movedim((i, j), (-2, -1))
        for d in difference.reshape(-1, tables.shape[i], tables.shape[j]):
            for a, c in itertools.combinations(range(d.shape[0]), 2):
                for b, e in itertools.combinations(range(d.shape[1]), 2):
                    worst = max(worst, abs(float(d[a, b] - d[a, e] - d[c, b] + d[c, e])))
    return worst


@pytest.mark.parametrize("shape", [(2, 2), (3, 4), (2, 3, 3), (2, 2, 2, 2)])
def test_the_log_odds_gap_against_all_rectangles(shape: tuple[int, ...]) -> None:
    tables = random_tables(shape, 5)
    assert check_tables(tables).log_odds_gap == pytest.approx(brute_force_gap(tables), abs=1e-12)


@pytest.mark.parametrize("shape", [(5,), (4, 7), (2, 3, 4), (2,) * 10, (1, 3, 2)])
def test_conditionals_of_a_joint_are_compatible(shape: tuple[int, ...]) -> None:
    joint = random_joint(shape, 1)
    found = check_tables(joint.conditional_tables())
    assert (found.verdict, found.unique) == ("compatible", True)
    assert found.joint is not None
    torch.testing.assert_close(found.joint.p, joint.p, atol=1e-13, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_joints_with_zeros(seed: int) -> None:
    """Half the states impossible: the joint may fall into parts, and contexts without mass are weak."""
    weights = random_joint((3, 4, 3), seed).p
    holes = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(seed + 50)) < 0.5
    joint = JointTable.from_unnormalised(weights * ~holes)
    tables = joint.conditional_tables(undefined="uniform")
    found = check_tables(tables)
    assert found.joint is not None
    assert has_conditionals(found.joint, tables)
    contexts = all(bool((joint.p.sum(site) > 0).all()) for site in range(3))
    assert (found.verdict == "compatible") == contexts
    assert found.joints is not None
    # Each extreme joint is one of the laws, and only they are: `joint` is a mixture of them.
    count = int(found.joints.max()) + 1
    assert found.unique == (count == 1)
    for k in range(count):
        one = JointTable.from_unnormalised(found.joint.p * (found.joints == k))
        assert has_conditionals(one, tables)
        if count == 1:
            torch.testing.assert_close(one.p, joint.p, atol=1e-13, rtol=0)


def test_copies_have_many_joints() -> None:
    found = check_tables(pair([[1, 0], [0, 1]], [[1, 0], [0, 1]]))
    assert (found.verdict, found.unique, found.violation) == ("compatible", False, None)
    assert found.joint is not None
    assert found.joint.p.tolist() == [[0.5, 0], [0, 0.5]]
    assert found.joints is not None
    assert found.joints.tolist() == [[0, -1], [-1, 1]]


def test_weakly_compatible_where_an_exit_is_never_retaken() -> None:
    """All leads to the state (0, 0), which both conditionals keep; other contexts are never reached."""
    tables = pair([[1, 0.5], [0, 0.5]], [[1, 0], [0.5, 0.5]])
    found = check_tables(tables)
    assert (found.verdict, found.unique) == ("weakly compatible", True)
    assert found.joint is not None
    assert found.joint.p.tolist() == [[1, 0], [0, 0]]
    assert found.violation is not None
    assert found.violation.kind == "support"
    assert found.violation.gap == math.inf
    assert found.violation.ratio == 0


def test_one_good_part_beside_a_bad_one_is_weakly_compatible() -> None:
    """Values 0 and 1 share a joint, values 2 and 3 do not, and no conditional leads from one part to the other."""
    good = JointTable(table([[0.4, 0.1], [0.2, 0.3]])).conditional_tables()
    tables = ConditionalTables(
        [torch.block_diag(good.tables[0], COIN.tables[0]), torch.block_diag(good.tables[1], COIN.tables[1])]
    )
    found = check_tables(tables)
    assert (found.verdict, found.unique) == ("weakly compatible", True)
    assert found.joint is not None
    torch.testing.assert_close(found.joint.p[:2, :2], table([[0.4, 0.1], [0.2, 0.3]]), atol=1e-13, rtol=0)
    assert found.violation is not None
    assert found.violation.gap == pytest.approx(math.log(2), abs=1e-12)
    assert all(state[0] in (2, 3) for state in found.violation.states)


def test_a_move_without_a_way_back_is_named() -> None:
    tables = pair([[0.5, 0.5], [0.5, 0.5]], [[1, 0], [0.5, 0.5]])
    found = check_tables(tables, labels={"rain": ["no", "yes"], "wet": ["no", "yes"]})
    assert found.verdict == "incompatible"
    assert found.violation is not None
    assert str(found.violation) == (
        "p(rain=no | wet=yes) = 0.5, but p(wet=yes | rain=no) = 0: a move without a way back."
    )


@pytest.mark.parametrize("length", [3, 8, 40])
@pytest.mark.parametrize("twist", [0.0, 0.3])
def test_loops_of_any_length(length: int, twist: float) -> None:
    """A ring of 2 x length states without a single rectangle: only the whole ring decides."""
    joint = torch.zeros(length, length, dtype=torch.float64)
    ring = torch.rand(2 * length, generator=torch.Generator().manual_seed(length), dtype=torch.float64) + 0.1
    here = torch.arange(length)
    joint[here, here], joint[here, (here + 1) % length] = ring[:length], ring[length:]
    a, b = JointTable.from_unnormalised(joint).conditional_tables().tables
    odds = torch.ones(length, length, dtype=torch.float64)
    odds[0, 0] = math.exp(twist)
    tables = ConditionalTables([a, b * odds / (b * odds).sum(1, keepdim=True)])
    found = check_tables(tables)
    if twist == 0:
        assert found.verdict == "compatible"
    else:
        assert found.verdict == "incompatible"
        assert found.violation is not None
        assert len(found.violation.states) == 2 * length
        assert found.violation.gap == pytest.approx(twist, abs=1e-9)
    assert found.log_odds_gap == 0


def rectangle_matrix(shape: tuple[int, ...]) -> np.ndarray:
    """One row a rectangle, over the logarithms of all entries of all complete conditionals."""
    states = np.arange(math.prod(shape)).reshape(shape)
    rows = []
    for i, j in itertools.combinations(range(len(shape)), 2):
        moved = np.moveaxis(states, (i, j), (-2, -1)).reshape(-1, shape[i], shape[j])
        for square in moved:
            for a, b in itertools.product(range(1, shape[i]), range(1, shape[j])):
                row = np.zeros((len(shape), states.size))
                corners = (square[0, 0], square[a, b], square[0, b], square[a, 0])
                for corner, sign in zip(corners, (1, 1, -1, -1), strict=True):
                    row[i, corner] += sign
                    row[j, corner] -= sign
                rows.append(row.reshape(-1))
    return np.array(rows)


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (2, 2, 2), (3, 3, 3), (2, 2, 2, 2), (2, 3, 4), (2, 5)])
def test_rank_of_the_rectangles(shape: tuple[int, ...]) -> None:
    assert np.linalg.matrix_rank(rectangle_matrix(shape)) == rectangle_rank(shape)
    if len(set(shape)) == 1:
        n, v = len(shape), shape[0]
        assert rectangle_rank(shape) == n * v ** (n - 1) * (v - 1) - (v**n - 1)


def test_rounding_is_tolerated_as_asked() -> None:
    joint = random_joint((3, 3), 2)
    rounded = ConditionalTables([t.float().double() for t in joint.conditional_tables().tables])
    assert check_tables(rounded).verdict == "compatible"
    assert check_tables(rounded, tolerance=1e-12).verdict == "incompatible"
    off = check_tables(rounded, tolerance=0.0)
    assert off.violation is not None
    assert 0 < off.violation.gap < 1e-5


def test_the_public_face() -> None:
    tables = fg.exact.ConditionalTables([PRESS.tables[0], PRESS.tables[1]])
    result = fg.compatibility.check_tables(tables)
    assert result.is_compatible
    assert str(result).startswith("compatible: one joint; largest log-odds gap")


def test_errors() -> None:
    many = torch.full((2,) * 17, 0.5, dtype=torch.float64)
    with pytest.raises(FlexgenError, match=r"131072 states, but exact checks take 1 to 65536 \(2\^16\)"):
        check_tables(ConditionalTables([many] * 17))
    with pytest.raises(FlexgenError, match="tables: is a JointTable"):
        check_tables(random_joint((2, 2), 0))  # type: ignore[arg-type]
    with pytest.raises(FlexgenError, match=r"labels: name \(2, 3\) categories, but the sites have \(3, 3\)"):
        check_tables(PRESS, labels=[["a", "b"], ["a", "b", "c"]])
    with pytest.raises(FlexgenError, match="tolerance: is -1"):
        check_tables(PRESS, tolerance=-1)
    family = ConditionalFamily.of_tables(PRESS)
    with pytest.raises(FlexgenError, match="labels: are given beside a ConditionalFamily"):
        check_tables(family, labels=[[0, 1, 2]] * 2)
