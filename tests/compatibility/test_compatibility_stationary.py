"""Laws of scans: worked examples, dense eliminations, reducible chains, mixtures, and the bound on unary losses."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from flexgen.compatibility import ConditionalFamily, closed_classes, scan_divergence, stationary
from flexgen.compatibility.exact.scan_orders import Scan
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.exact import ConditionalTables, JointTable, kernels
from samplers import scans
from tests.compatibility.worked_examples import (
    COIN,
    ONE_WAY,
    SIX,
    SIX_LAST_X,
    SIX_LAST_Y,
    generator,
    pair,
    random_joint,
    random_tables,
    table,
)


@pytest.mark.parametrize(
    ("tables", "last_y", "last_x"),
    [
        (SIX, SIX_LAST_Y, SIX_LAST_X),
        (COIN, table([[4, 2], [3, 3]]) / 12, table([[7, 5], [7, 5]]) / 24),
        (ONE_WAY, table([[0.123, 0.287], [0.177, 0.413]]), table([[0.27, 0.14], [0.03, 0.56]])),
    ],
)
def test_worked_examples(tables: ConditionalTables, last_y: Tensor, last_x: Tensor) -> None:
    exactly = {"atol": 1e-13, "rtol": 0.0}
    torch.testing.assert_close(stationary(tables, scan=(0, 1)), last_y, **exactly)
    torch.testing.assert_close(stationary(tables, scan=(1, 0)), last_x, **exactly)
    torch.testing.assert_close(stationary(tables, scan="random"), (last_x + last_y) / 2, **exactly)
    apart = scan_divergence(tables, (0, 1), (1, 0))
    assert apart.tv == pytest.approx(float((last_x - last_y).abs().sum() / 2), abs=1e-13)
    mass = last_y > 0
    assert apart.kl == pytest.approx(float((last_y * (last_y / last_x).log())[mass].sum()), abs=1e-13)
    assert apart.kl_reverse == pytest.approx(float((last_x * (last_x / last_y).log())[mass].sum()), abs=1e-13)


def test_one_order_shows_dependence_and_the_other_hides_it() -> None:
    """Heckerman et al. (2000): y does not look at x, so a law that ends with y has them independent."""
    hidden, shown = stationary(ONE_WAY, (0, 1)), stationary(ONE_WAY, (1, 0))
    assert (hidden - hidden.sum(1, keepdim=True) * hidden.sum(0)).abs().max() < 1e-15
    assert (shown - shown.sum(1, keepdim=True) * shown.sum(0)).abs().max() > 0.1


@pytest.mark.parametrize("order", [*itertools.permutations(range(3)), (0, 1, 0, 2)])
def test_every_order_against_elimination_and_krylov(order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    tables = random_tables((3, 2, 4), 2)
    expected = kernels.stationary(tables.kernel(order)).view(3, 2, 4)
    torch.testing.assert_close(stationary(tables, order), expected, atol=1e-14, rtol=0)
    monkeypatch.setattr("flexgen.compatibility.exact.stationary._DENSE_ENTRIES", 0)
    torch.testing.assert_close(stationary(tables, order), expected, atol=1e-12, rtol=0)


def test_random_scans_and_mixtures() -> None:
    tables = random_tables((3, 2, 4), 4)
    expected = kernels.stationary(tables.kernel("random")).view(3, 2, 4)
    torch.testing.assert_close(stationary(tables), expected, atol=1e-14, rtol=0)
    by_site = {(site,): 1 / 3 for site in range(3)}
    torch.testing.assert_close(stationary(tables, by_site), expected, atol=1e-14, rtol=0)
    kernel = 0.3 * tables.kernel((0, 1, 2)) + 0.7 * tables.kernel((2, 1, 0))
    mixed = stationary(tables, {(0, 1, 2): 0.3, (2, 1, 0): 0.7})
    torch.testing.assert_close(mixed, kernels.stationary(kernel).view(3, 2, 4), atol=1e-14, rtol=0)
    laws = [stationary(tables, order) for order in itertools.permutations(range(3))]
    assert (torch.stack(laws).mean(0) - expected).abs().max() > 1e-4  # with three sites no average of fixed scans


def test_ten_binary_sites() -> None:
    """Too many for elimination: the law is invariant, and rotating a scan moves it along by one update."""
    tables = random_tables((2,) * 10, 6)
    order = tuple(range(10))
    law = stationary(tables, order)
    assert (kernels.sweep(law, tables, order) - law).abs().sum() < 2e-12
    rotated = stationary(tables, (*order[1:], 0))
    torch.testing.assert_close(kernels.sweep(law, tables, [0]), rotated, atol=1e-13, rtol=0)
    joint = random_joint((2,) * 10, 6)
    torch.testing.assert_close(stationary(joint.conditional_tables()), joint.p, atol=1e-14, rtol=0)


def test_slow_mixing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight sites that hang together: the chain crosses between its two modes once in some 10^6 steps."""
    states = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
    joint = JointTable.from_unnormalised((0.22 * states.sum(1).square() + 0.05 * states.sum(1)).exp().view((2,) * 8))
    monkeypatch.setattr("flexgen.compatibility.exact.stationary._DENSE_ENTRIES", 0)
    law = stationary(joint.conditional_tables())
    assert 0.5 * float((law - joint.p).abs().sum()) < 1e-6


def test_a_family_with_zeros_moves_along_its_classes() -> None:
    copies = pair([[1, 0], [0, 1]], [[1, 0], [0, 1]])
    assert closed_classes(copies).tolist() == [[0, -1], [-1, 1]]
    with pytest.raises(FlexgenError, match=r"2 closed classes of states \(\(0, 0\) never leads to \(1, 1\)\)"):
        stationary(copies)
    assert stationary(copies, closed_class=1).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(FlexgenError, match=r"closed_class: is 2\. This chain has classes 0 to 1"):
        stationary(copies, closed_class=2)
    tables = random_tables((2, 2, 2), 0)
    with pytest.raises(FlexgenError, match=r"4 closed classes .*\(site 1 is never updated\)|2 closed classes"):
        stationary(tables, (0, 2))
    fixed = stationary(tables, (0, 2), closed_class=1)
    assert fixed[:, 0].sum() == 0
    assert float(fixed.sum()) == pytest.approx(1)


def test_classes_belong_to_the_scan() -> None:
    """x becomes what y is not, and y what x is: periodic under a fixed order, whose law is still unique."""
    tables = pair([[0, 1], [1, 0]], [[1, 0], [0, 1]])
    assert closed_classes(tables, (0, 1)).tolist() == [[0, -1], [-1, 0]]
    assert stationary(tables, (0, 1)).tolist() == [[0.5, 0], [0, 0.5]]
    assert closed_classes(tables).tolist() == [[0, 0], [0, 0]]
    torch.testing.assert_close(stationary(tables), table([[1, 1], [1, 1]]) / 4, atol=1e-14, rtol=0)


def test_transient_states_have_exactly_no_mass() -> None:
    law = stationary(pair([[1, 0.5], [0, 0.5]], [[1, 0], [0.5, 0.5]]))
    assert law.tolist() == [[1, 0], [0, 0]]


def test_blocks_and_conditionals_that_read_a_part() -> None:
    joint = random_joint((2, 3, 2), 8)
    torch.testing.assert_close(stationary(joint, ((0, 2), 1)), joint.p, atol=1e-14, rtol=0)
    two = joint.marginal([0, 1]).p  # p(x_1 | x_0) reads neither itself nor x_2
    given = joint.p.sum((1, 2))
    parts = [
        (0, [], given),
        (1, [0], (two / two.sum(1, keepdim=True)).T),
        (2, [0, 1], (joint.p / two[..., None]).movedim(2, 0)),
    ]
    family = ConditionalFamily(joint.shape, parts)
    torch.testing.assert_close(stationary(family, (0, 1, 2)), joint.p, atol=1e-14, rtol=0)
    with pytest.raises(UnsupportedQueryError, match=r"block: is \(0, 1\), the target of 0 of the stated"):
        stationary(family, ((0, 1), 2))


def unary_losses(p: Tensor, tables: list[Tensor]) -> Tensor:
    """Σ_i E_p KL(p_i || t_i) for batches of laws and conditionals, ``[B]``."""
    loss = torch.zeros(len(p), dtype=torch.float64)
    for site, stated in enumerate(tables):
        own = p / p.sum(site + 1, keepdim=True)
        loss += (p * (own.log() - stated.log())).flatten(1).sum(1)
    return loss


def fc_bound_gaps(shape: tuple[int, ...], scan: Scan, count: int = 250) -> Tensor:
    """Right side less left side of the bound, for random conditionals and laws, `count` of them."""
    size = len(shape)
    noise = torch.rand(size, count, *shape, generator=generator(size), dtype=torch.float64).square() + 1e-3
    q = [noise[i] / noise[i].sum(i + 1, keepdim=True) for i in range(size)]
    pi = torch.stack([stationary(ConditionalTables([each[row] for each in q]), scan) for row in range(count)])
    p = torch.rand(count, *shape, generator=generator(9), dtype=torch.float64) + 1e-3
    near = (torch.arange(count) % 2 == 1).view(-1, *[1] * size)  # half of the laws are near pi, where it is tight
    p = torch.where(near, pi * (0.5 + p), p)
    p = p / p.flatten(1).sum(1).view(-1, *[1] * size)
    return unary_losses(p, q) - unary_losses(p, [pi / pi.sum(i + 1, keepdim=True) for i in range(size)])


def test_random_scans_lose_no_more_than_the_conditionals() -> None:
    """Takabatake & Akaho's bound on 1000 instances; laws of fixed orders, which it does not cover, break it."""
    for shape in ((2, 2), (3, 2), (2, 2, 2), (3, 3)):
        assert float(fc_bound_gaps(shape, "random").min()) > -1e-12
    assert float(fc_bound_gaps((2, 2, 2), (0, 1, 2), 100).min()) < -1e-3


def test_errors() -> None:
    big = JointTable.random((2,) * 17, generator=generator(0))
    with pytest.raises(FlexgenError, match=r"have 131072 states, but exact distributions take at most 65536 \(2\^16\)"):
        stationary(big)
    with pytest.raises(FlexgenError, match=r"scan: is 'systematic'\. Say 'random'"):
        stationary(COIN, "systematic")  # type: ignore[arg-type]
    with pytest.raises(FlexgenError, match=r"scan: has weights \[0.5, 0.6\]"):
        stationary(COIN, {(0, 1): 0.5, (1, 0): 0.6})
    with pytest.raises(FlexgenError, match="scan: holds an empty order"):
        stationary(COIN, ())
    with pytest.raises(FlexgenError, match=r"scan: holds 2\. Name distinct sites among 0 to 1"):
        stationary(COIN, (0, 2))


def test_tables_need_not_be_contiguous() -> None:
    """As conditionals of a network are, whose target comes last before `movedim`."""
    tables = random_tables((3, 2, 4), 0)
    turned = ConditionalTables([t.movedim(i, -1).contiguous().movedim(-1, i) for i, t in enumerate(tables.tables)])
    assert not all(t.is_contiguous() for t in turned.tables)
    for scan in ("random", (0, 1, 2), (2, 0, 1)):
        torch.testing.assert_close(stationary(turned, scan), stationary(tables, scan), rtol=0, atol=1e-14)


def test_sites_by_name() -> None:
    tables = random_tables((2, 3, 2), 4)
    labels = {"weather": ["dry", "wet"], "mood": ["low", "even", "high"], "walk": ["no", "yes"]}
    named = ConditionalFamily.of_tables(tables, labels=labels)
    for scan, numbered in (
        (("weather", "mood", "walk"), (0, 1, 2)),
        ({("walk", "mood", "weather"): 0.5, ("mood", 0, "walk"): 0.5}, {(2, 1, 0): 0.5, (1, 0, 2): 0.5}),
    ):
        law = stationary(tables, numbered)  # type: ignore[arg-type]
        torch.testing.assert_close(stationary(named, scan), law, atol=1e-15, rtol=0)  # type: ignore[arg-type]
    assert scan_divergence(named, ("walk", "mood", "weather"), (2, 1, 0)).tv == 0


def test_scans_of_samplers() -> None:
    tables, joint = random_tables((2, 3, 2), 4), random_joint((2, 3, 2), 4)
    for scan, same in (
        (scans.random(), "random"),
        (scans.systematic(), (0, 1, 2)),
        (scans.systematic((2, 0, 1)), (2, 0, 1)),
    ):
        torch.testing.assert_close(stationary(tables, scan), stationary(tables, same), atol=1e-15, rtol=0)  # type: ignore[arg-type]
    law = stationary(joint, scans.blocked([(0, 1), (2,)]))  # type: ignore[arg-type]
    torch.testing.assert_close(law, joint.p, atol=1e-14, rtol=0)
    mixture = dict.fromkeys(itertools.permutations(range(3)), 1 / 6)
    permuted = stationary(tables, scans.random_permutation())  # type: ignore[arg-type]
    torch.testing.assert_close(permuted, stationary(tables, mixture), atol=1e-14, rtol=0)  # type: ignore[arg-type]
    with pytest.raises(
        FlexgenError, match=r"scan: is Coloured\(.*\)\)\), which draws several .*\. Pass 'random', a tuple"
    ):
        stationary(tables, scans.coloured([[1], [0], []]))  # type: ignore[arg-type]
