"""Closest joints: worked examples, lower bounds that hold, other solvers, and the certificate under any law."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from flexgen.compatibility import ClosestJoint, ConditionalFamily, closest_joint, product_of_conditionals, stationary
from flexgen.compatibility.exact.closest import misfit
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables
from tests.compatibility.worked_examples import (
    COIN,
    CROSSED,
    PATH,
    PATH_JOINT,
    PRESS,
    PRESS_JOINT,
    SIX,
    generator,
    pair,
    random_joint,
    random_tables,
    table,
)

KINDS = ("I", "AG", "LP", "L2")


def distance(p: Tensor, tables: ConditionalTables, kind: str) -> float:
    """What each kind measures, straight from its definition."""
    total = 0.0
    for site, q in enumerate(tables.tables):
        rest = p.sum(site, keepdim=True)
        own = p / rest
        if kind == "I":
            total += float(torch.where(p > 0, p * (own / q).log(), 0.0).sum())
        elif kind == "AG":
            total += float(torch.where(q > 0, q * (q / own).log(), 0.0).sum())
        elif kind == "LP":
            total = max(total, float((p - q * rest).abs().max()))
        else:
            total += float((p - q * rest).square().sum())
    return total


def test_worked_examples() -> None:
    """Figures of a quasi-Newton solver, to the digits that it gave."""
    expected = {
        (COIN, "I"): (0.007226770488, [[0.3132599311, 0.1867400689], [0.2712910583, 0.2287089417]]),
        (COIN, "AG"): (0.014623168848, [[0.3166329183, 0.1904592701], [0.2672830475, 0.225624764]]),
        (CROSSED, "I"): (0.150459680953, [[0.3350692238, 0.2268484683], [0.2187984866, 0.2192838219]]),
        (CROSSED, "AG"): (0.288629152442, [[0.3177258016, 0.2151840142], [0.2390432058, 0.2280469784]]),
    }
    for (tables, kind), (objective, joint) in expected.items():
        found = closest_joint(tables, kind=kind)  # type: ignore[arg-type]
        assert found.objective == pytest.approx(objective, abs=1e-9)
        torch.testing.assert_close(found.joint.p, table(joint), atol=1e-9, rtol=0)
    assert closest_joint(SIX, kind="LP").objective == pytest.approx(1 / 36, abs=1e-10)
    assert closest_joint(COIN, kind="LP").objective == pytest.approx(1 / 48, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tables", "joint"), [(PRESS, PRESS_JOINT), (PATH, PATH_JOINT)])
def test_compatible_tables_have_their_joint(tables: ConditionalTables, joint: Tensor, kind: str) -> None:
    found = closest_joint(tables, kind=kind)  # type: ignore[arg-type]
    torch.testing.assert_close(found.joint.p, joint, atol=1e-8, rtol=0)
    assert found.objective < 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 2), (3, 4), (2, 3, 2), (2, 2, 2, 2)])
def test_the_bound_proves_the_joint(kind: str, shape: tuple[int, ...]) -> None:
    tables = random_tables(shape, len(shape))
    found = closest_joint(tables, kind=kind)  # type: ignore[arg-type]
    assert found.objective == pytest.approx(distance(found.joint.p, tables, kind), rel=1e-9)
    assert found.bound <= found.objective
    assert found.gap < 1e-9
    for seed in range(20):  # no law is closer: far ones and near ones
        other = random_joint(shape, seed).p
        for mix in (1.0, 0.1, 0.001):
            law = mix * other + (1 - mix) * found.joint.p
            assert distance(law, tables, kind) >= found.bound - 1e-12
    assert "optimal to within" in str(found)


def test_against_other_solvers() -> None:
    tables = random_tables((3, 2, 2), 7)

    def loss(theta: np.ndarray, kind: str) -> float:
        return distance(torch.from_numpy(theta).softmax(0).view(3, 2, 2), tables, kind)

    for kind in ("I", "AG", "L2"):
        peer = minimize(loss, np.zeros(12), args=(kind,), method="BFGS", options={"gtol": 1e-9})
        found = closest_joint(tables, kind=kind)  # type: ignore[arg-type]
        assert found.objective <= peer.fun + 1e-12
        assert found.objective == pytest.approx(peer.fun, abs=1e-7)
    matrix = misfit(ConditionalFamily.of_tables(SIX)).toarray()
    peer, _ = nnls(np.vstack([matrix, np.ones(9)]), np.append(np.zeros(18), 1.0))
    np.testing.assert_allclose(closest_joint(SIX, "L2").joint.p.flatten(), peer / peer.sum(), atol=1e-9)


def test_arnold_gokhale_is_a_fixed_point() -> None:
    """P = Σ_i q_i / Σ_i (1 / P_{-i}), up to a factor."""
    tables = random_tables((3, 4), 1)
    p = closest_joint(tables, kind="AG").joint.p
    total = sum(tables.tables) / sum(1 / p.sum(site, keepdim=True).expand(3, 4) for site in range(2))
    torch.testing.assert_close(total / total.sum(), p, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(12))
def test_contexts_without_mass_have_a_proof_too(seed: int) -> None:
    """No tables give states (2, 0, .) mass but the one whose context they are: the best laws are a limit."""
    raw = torch.rand((3, 2, 2), generator=generator(seed), dtype=torch.float64) + 0.1
    raw[2, 0] = 0
    sums = [raw.sum(site, keepdim=True) for site in range(3)]
    q = [torch.where(each > 0, raw / each, torch.full_like(raw, 1 / raw.shape[i])) for i, each in enumerate(sums)]
    q[1][0, :, 0] = torch.tensor([0.9, 0.1])
    tables = ConditionalTables(q)
    found = closest_joint(tables, "AG")
    assert found.objective > 0.01
    assert found.gap < 1e-9
    peer = minimize(
        lambda theta: distance(torch.from_numpy(theta).softmax(0).view(3, 2, 2), tables, "AG"),
        np.zeros(12),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    assert found.bound <= peer.fun + 1e-9
    assert found.bound == pytest.approx(peer.fun, abs=1e-4)


def test_many_zeros_have_a_proof() -> None:
    for seed in range(40):
        shape, source, q = [(3, 3), (2, 2, 2), (4, 3), (2, 3, 3)][seed % 4], generator(seed), []
        for site in range(len(shape)):
            raw = torch.rand(shape, generator=source, dtype=torch.float64) + 0.05
            raw = raw * (torch.rand(shape, generator=source) > 0.35)
            total = raw.sum(site, keepdim=True)
            q.append(torch.where(total > 0, raw / total, torch.full_like(raw, 1 / shape[site])))
        found = closest_joint(ConditionalTables(q), "AG")
        assert found.gap < 1e-9, seed


def test_what_is_not_proved_is_not_called_optimal() -> None:
    unproved = ClosestJoint("AG", random_joint((2, 2), 0), 0.5, 0.0, "distance")
    assert "without a proof that no joint is closer" in repr(unproved)


def test_weak_compatibility_is_a_distance_of_zero() -> None:
    weak = pair([[1, 0.5], [0, 0.5]], [[1, 0], [0.5, 0.5]])
    for kind in ("I", "LP", "L2"):
        found = closest_joint(weak, kind=kind)  # type: ignore[arg-type]
        assert found.objective < 1e-10
        torch.testing.assert_close(found.joint.p, table([[1, 0], [0, 0]]), atol=1e-9, rtol=0)
    assert closest_joint(COIN, "LP").bound > 0.02


def test_parts_that_are_never_compared() -> None:
    """Two parts of the support: the closer one takes all the mass."""
    tables = ConditionalTables([torch.block_diag(COIN.tables[k], CROSSED.tables[k]) for k in range(2)])
    found = closest_joint(tables, "I")
    assert found.joint.p[2:].sum() == 0
    torch.testing.assert_close(found.joint.p[:2, :2], closest_joint(COIN, "I").joint.p, atol=1e-9, rtol=0)
    assert found.gap < 1e-9
    for kind in KINDS:
        assert closest_joint(tables, kind).gap < 1e-9  # type: ignore[arg-type]


def test_the_certificate_holds_under_any_law() -> None:
    """Σ_i E_p KL(p_i || q_i) is at least the certificate, for 1000 random tables and laws; tight at the closest."""
    for shape in ((2, 2), (2, 3), (2, 2, 2), (3, 3)):
        size = len(shape)
        noise = torch.rand(size, 250, *shape, generator=generator(size), dtype=torch.float64) + 0.02
        q = [noise[i] / noise[i].sum(i + 1, keepdim=True) for i in range(size)]
        found = [closest_joint(ConditionalTables([each[row] for each in q])) for row in range(250)]
        certificate = torch.tensor([each.bound for each in found], dtype=torch.float64)
        closest = torch.stack([each.joint.p for each in found])
        p = torch.rand(250, *shape, generator=generator(3), dtype=torch.float64) + 1e-3
        near = (torch.arange(250) % 2 == 1).view(-1, *[1] * size)
        p = torch.where(near, closest * (1 + 0.1 * p), p)
        p = p / p.flatten(1).sum(1).view(-1, *[1] * size)
        excess = sum(
            (p * (p / p.sum(i + 1, keepdim=True) / q[i]).log()).flatten(1).sum(1) - certificate / size
            for i in range(size)
        )
        assert isinstance(excess, Tensor)
        assert float(excess.min()) > -1e-12
        assert float(excess[1::2].median()) < 0.02
        assert all(each.gap < 1e-10 for each in found)


def test_general_families() -> None:
    """p(x_0 | x_1) and p(x_1 | x_2), p(x_2 | x_0) of one joint are at distance zero; of two joints they are not."""

    def given(p: Tensor, i: int, j: int) -> Tensor:
        both = p.sum(3 - i - j)
        both = both if i < j else both.T
        return both / both.sum(0, keepdim=True)

    one, two = random_joint((2, 3, 2), 1).p, random_joint((2, 3, 2), 2).p
    for kind in ("I", "LP", "L2"):
        same = ConditionalFamily(one.shape, [(i, [j], given(one, i, j)) for i, j in ((0, 1), (1, 2), (2, 0))])
        assert closest_joint(same, kind).objective < 1e-10  # type: ignore[arg-type]
        mixed = ConditionalFamily(
            one.shape, [(0, [1], given(one, 0, 1)), (1, [0], given(two, 1, 0)), (2, [0], given(one, 2, 0))]
        )
        found = closest_joint(mixed, kind)  # type: ignore[arg-type]
        assert found.objective > 1e-4
        assert found.gap < 1e-9
    with pytest.raises(FlexgenError, match="tables: marginalise sites out, where 'AG' is not convex"):
        closest_joint(mixed, "AG")


def test_the_product_of_conditionals_is_no_joint() -> None:
    with pytest.warns(UserWarning, match="is not the joint, even where the conditionals have one"):
        product = product_of_conditionals(PRESS)
    assert 0.5 * float((product.p - PRESS_JOINT).abs().sum()) == pytest.approx(0.1314984708, abs=1e-9)
    with pytest.warns(UserWarning, match="is not the joint"):
        product = product_of_conditionals(CROSSED)
    expected = [[0.3573969982, 0.203374226], [0.1954732971, 0.2437554787]]
    torch.testing.assert_close(product.p, table(expected), atol=1e-9, rtol=0)
    assert distance(product.p, CROSSED, "AG") == pytest.approx(0.31529717, abs=1e-8)


def test_ten_binary_sites() -> None:
    tables = random_tables((2,) * 10, 1)
    for kind in ("I", "AG"):
        found = closest_joint(tables, kind)  # type: ignore[arg-type]
        assert found.gap < 1e-9 * (1 + found.objective)
        assert found.objective <= distance(stationary(tables), tables, kind)


def test_errors() -> None:
    with pytest.raises(FlexgenError, match=r"kind: is 'MRF'\. Choose 'I', 'AG', 'LP' or 'L2'"):
        closest_joint(COIN, "MRF")  # type: ignore[arg-type]
    nowhere = pair([[1, 0], [0, 1]], [[0, 1], [1, 0]])
    with pytest.raises(FlexgenError, match="leave no state that all conditionals give mass"):
        closest_joint(nowhere, "I")
    for kind in ("AG", "LP", "L2"):
        assert closest_joint(nowhere, kind).objective > 0.1  # type: ignore[arg-type]
    with pytest.raises(FlexgenError, match="have 4096 states, but the linear programme takes at most 2048"):
        closest_joint(random_tables((2,) * 12, 0), "LP")
