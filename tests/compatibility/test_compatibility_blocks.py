"""Exact blocks: enumerated tables, and what scans of them make."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from flexgen import exact
from flexgen.compatibility import exact_blocks, stationary
from flexgen.compatibility.networks.blocks import scan_distribution
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.space import Space
from tests.compatibility.planted import Counted, Planted
from tests.compatibility.single_precision import Float32Table
from tests.conditionals import generator


def tables_of(shape: tuple[int, ...], seed: int = 0) -> exact.ConditionalTables:
    noise = torch.rand(len(shape), *shape, generator=generator(seed), dtype=torch.float64) + 0.1
    return exact.ConditionalTables([t / t.sum(i, keepdim=True) for i, t in enumerate(noise)])


def test_blocks_are_slices_of_the_tables() -> None:
    tables = tables_of((2, 3, 4, 2))
    x = torch.tensor([[0, 1, 2, 1], [1, 2, 3, 0]])
    counted = Counted(tables)
    blocks = exact_blocks(counted, x, torch.tensor([[1, 2], [0, 3]]))
    for place, site in ((0, 1), (1, 2)):
        torch.testing.assert_close(blocks.tables[0].tables[place], tables.tables[site][0, :, :, 1], atol=1e-12, rtol=0)
    for place, site in ((0, 0), (1, 3)):
        torch.testing.assert_close(blocks.tables[1].tables[place], tables.tables[site][:, 2, 3], atol=1e-12, rtol=0)
    assert blocks.cost.forwards == (4 + 3) + (2 + 2)
    assert len(counted.rows) >= blocks.cost.forwards


def test_scans_of_two_binary_sites() -> None:
    # Site 0 copies site 1 loosely; site 1 ignores site 0. Whoever is last decides: dependent, or independent.
    a = torch.tensor([[0.9, 0.2], [0.1, 0.8]], dtype=torch.float64)
    b = torch.tensor([[0.3, 0.7], [0.3, 0.7]], dtype=torch.float64)
    blocks = exact_blocks(exact.ConditionalTables([a, b]), torch.tensor([[0, 0]]), torch.tensor([0, 1]))
    laws = blocks.scan_distributions(0)
    torch.testing.assert_close(
        laws[0, 1], torch.tensor([[0.123, 0.287], [0.177, 0.413]], dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        laws[1, 0], torch.tensor([[0.27, 0.14], [0.03, 0.56]], dtype=torch.float64), atol=1e-12, rtol=0
    )
    effect = blocks.effect()
    assert effect.values.tolist() == pytest.approx([0.294])
    assert effect.unit == "total variation"


def test_three_sites_of_a_planted_incompatibility() -> None:
    model = Planted(exact.JointTable.random((2,) * 5, generator=generator(1)), 0.4)
    x = torch.randint(2, (6, 5), generator=generator(2))
    effect = exact_blocks(model, x, torch.tensor([0, 1, 2])).effect()
    assert effect.verdict() == "refuted"
    assert exact_blocks(model, x, torch.tensor([0, 1, 2])).check(0).verdict == "incompatible"
    weaker = exact_blocks(Planted(model.law, 0.04), x, torch.tensor([0, 1, 2])).effect()
    # Divergence is linear in a small incompatibility: a tenth of it, to second order.
    torch.testing.assert_close(weaker.values * 10, effect.values, rtol=0.35, atol=0)


def test_rounding_moves_laws_less_than_the_floor() -> None:
    p = torch.rand(3, 3, 3, 2, generator=generator(3), dtype=torch.float64) ** 8  # probabilities down to 1e-10
    law = exact.JointTable.from_unnormalised(p + 1e-12)
    x = law.space.states()[::7]
    effect = exact_blocks(Float32Table(law), x, torch.tensor([0, 1, 2])).effect()
    assert bool((effect.values <= effect.floors).all())
    assert bool((effect.values > 0).any())
    assert float(effect.floors.max()) < 0.01


def test_a_block_of_a_joint_is_the_joint_given_the_rest() -> None:
    law = exact.JointTable.random((2, 3, 2, 2), generator=generator(4))
    blocks = exact_blocks(law, torch.tensor([[1, 0, 1, 0]]), torch.tensor([1, 3]))
    given = law.p[1, :, 1, :] / law.p[1, :, 1, :].sum()
    for order in ((1, 3), (3, 1)):
        torch.testing.assert_close(blocks.scan_distributions(0)[order], given, atol=1e-12, rtol=0)
    assert blocks.effect().verdict() == "not refuted"
    found = blocks.check(0)
    assert found.verdict == "compatible"
    torch.testing.assert_close(found.joint.p, given, atol=1e-12, rtol=0)


class Sites:
    """Only a space."""

    def __init__(self, num_sites: int) -> None:
        self.space = Space.binary(num_sites)

    def marginals(self, x: torch.Tensor, query: object) -> object: ...


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, x: exact_blocks(m, x.tolist(), torch.tensor([0, 1])), "x: is a list. Pass a tensor"),
        (lambda m, x: exact_blocks(m, x[0], torch.tensor([0, 1])), r"x: has shape \(3,\)\. Pass rows \[R, 3\]"),
        (lambda m, x: exact_blocks(m, x, torch.tensor([0, 9])), "sites: holds 9. Sites are numbered 0 to 2"),
        (lambda m, x: exact_blocks(m, x, torch.tensor([0, -1])), "sites: holds -1"),
        (lambda m, x: exact_blocks(m, x, "ab"), "sites: is 'ab'"),
        (lambda m, x: exact_blocks(m, x, torch.tensor([[0, 1]] * 3)), "sites: name 3 blocks, but x has 2 rows"),
        (lambda m, x: exact_blocks(m, x, [0, 1], observed=[3, 4]), "observed: is a list"),
        (lambda m, x: exact_blocks(m, x, [0, 1], observed=torch.ones(3)), "observed: holds torch.float32"),
        (lambda m, x: exact_blocks(m, x, [0, 1], labels=["ab", "ab"]), r"labels: name \[2, 2\] categories"),
        (lambda m, x: exact_blocks(m, x, [0, 1]).scan_distributions(9), "block: is 9. This has blocks 0 to 1"),
        (lambda m, x: exact_blocks(m, x, [0, 1]).check("a"), "block: is 'a'"),
        (lambda m, x: exact_blocks(m, x, [0, 1]).effect(max_orders=1), "max_orders: is 1"),
    ],
)
def test_bad_arguments(call: Callable[[object, torch.Tensor], object], text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        call(tables_of((2, 3, 2)), torch.zeros(2, 3, dtype=torch.int64))


def test_zeros_that_a_scan_never_meets_are_not_asked_for() -> None:
    """Whoever conditions on the impossible gets an error from a joint: only what the row leads to is asked."""
    p = torch.rand(3, 3, 2, generator=generator(7), dtype=torch.float64)
    places = torch.arange(3)
    p[(places[:, None] + places) % 3 == 2] = 0.0
    law = exact.JointTable.from_unnormalised(p)
    x = torch.tensor([[0, 0, 1], [2, 2, 0]])
    blocks = exact_blocks(law, x, torch.arange(3))
    assert blocks.effect().verdict() == "not refuted"
    assert len(blocks.effect()) == 2
    for block in range(2):
        for found in blocks.scan_distributions(block).values():
            torch.testing.assert_close(found, law.p, atol=1e-12, rtol=0)
    assert blocks.check(0).verdict != "incompatible"


@pytest.mark.parametrize("undefined", ["joint", "uniform"])
def test_copies_have_a_class_for_every_value(undefined: str) -> None:
    law = exact.JointTable(torch.diag(torch.tensor([0.3, 0.7], dtype=torch.float64)))
    model = law if undefined == "joint" else law.conditional_tables(undefined="uniform")
    blocks = exact_blocks(model, torch.tensor([[0, 0], [1, 1]]), [0, 1])
    assert blocks.effect().verdict() == "not refuted"
    assert [float(blocks.scan_distributions(b)[0, 1][b, b]) for b in (0, 1)] == [1.0, 1.0]


def test_a_row_that_leads_to_several_classes_has_no_law() -> None:
    """From (0, 0) either site may move away first, and stays where it is then."""
    a = torch.tensor([[0.5, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    blocks = exact_blocks(exact.ConditionalTables([a, b]), torch.tensor([[0, 0]]), [0, 1])
    assert bool(blocks.scan_distributions(0)[0, 1].isnan().all())
    assert blocks.effect().verdict() == "not measured"


def test_many_sites_in_some_of_their_orders() -> None:
    """Seven sites have 5040 orders; a sample of them, and their laws by the exact tier."""
    tables = tables_of((2,) * 7, seed=8)
    blocks = exact_blocks(tables, torch.zeros(1, 7, dtype=torch.int64), torch.arange(7))
    laws = blocks.scan_distributions(0, max_orders=6, generator=3)
    assert len(laws) == 6
    orders = list(laws)
    assert orders[1::2] == [order[::-1] for order in orders[::2]]
    assert orders != list(blocks.scan_distributions(0, generator=4))
    for order, law in laws.items():
        torch.testing.assert_close(law, stationary(tables, order), atol=1e-12, rtol=0)
    effect = blocks.effect(generator=3)
    stacked = torch.stack(list(laws.values())).flatten(1)
    assert float(effect.values) == pytest.approx(0.5 * float(torch.cdist(stacked, stacked, p=1).max()))
    assert effect.verdict() == "refuted"


def test_thousands_of_states() -> None:
    """A block of 20 x 20 x 20 states. Its floor in single precision covers what moving the tables by so much does."""
    logits = torch.randn(3, 20, 20, 20, generator=generator(9), dtype=torch.float64)
    tables = exact.ConditionalTables([t.softmax(i) for i, t in enumerate(logits)])
    blocks = exact_blocks(tables, torch.zeros(1, 3, dtype=torch.int64), torch.arange(3))
    assert blocks.cost.forwards == 3 * 400
    assert float(blocks.effect().floors) < 1e-9
    relative = 2e-5
    law = scan_distribution(tables, (0, 1, 2), [0, 0, 0], relative)
    assert law.floor < 1e-3
    sign = torch.where(tables.tables[0] > 1 / 20, relative, -relative)  # the worst is not far from this
    moved = exact.ConditionalTables([t.log().add(sign).softmax(i) for i, t in enumerate(tables.tables)])
    change = 0.5 * float((stationary(moved, (0, 1, 2)) - law.distribution).abs().sum())
    assert 0.02 * law.floor < change < law.floor


def test_checks_name_sites_and_categories() -> None:
    tables = tables_of((2, 3, 2))
    x = torch.zeros(1, 3, dtype=torch.int64)
    labels = {"sex": "fm", "stage": ["I", "II", "III"], "smoker": ("no", "yes")}
    for names in (labels, list(labels.values())):
        said = str(exact_blocks(tables, x, torch.tensor([0, 2]), labels=names).check(0))
        assert ("sex=" in said) == (names is labels)
        assert "yes" in said
    assert "x2=" in str(exact_blocks(tables, x, torch.tensor([0, 2])).check(0))


def test_what_cannot_be_enumerated() -> None:
    x = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(UnsupportedQueryError, match="sites: holds site '0', which is not categorical"):
        exact_blocks(exact.Gaussian(torch.zeros(3), torch.eye(3)), x, torch.tensor([0, 1]))
    many = exact.JointTable.random((2,) * 13, generator=generator(5))
    with pytest.raises(FlexgenError, match="sites: names a site twice"):
        exact_blocks(many, torch.zeros(1, 13), torch.tensor([1, 1]))
    with pytest.raises(FlexgenError, match=r"have 131072 states, which take 1114112 rows .* at most 65536 states"):
        exact_blocks(Sites(17), torch.zeros(1, 17), torch.arange(17))
    nothing = exact_blocks(many, torch.zeros(0, 13), torch.zeros(0, 2, dtype=torch.int64)).effect()
    assert len(nothing) == 0
    assert math.isnan(nothing.uniform().value)


def test_old_names_still_work_with_a_warning() -> None:
    blocks = exact_blocks(exact.JointTable.random((2, 2), generator=generator(1)), torch.zeros(1, 2).long(), [0, 1])
    with pytest.warns(DeprecationWarning, match="scan_laws is now called ExactBlocks.scan_distributions"):
        old = blocks.scan_laws(0)
    assert all(torch.equal(old[order], new) for order, new in blocks.scan_distributions(0).items())
