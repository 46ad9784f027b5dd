"""Exact blocks: enumerated tables, and what scans of them make."""

from __future__ import annotations

import math

import pytest
import torch

from flexgen import exact
from flexgen.compatibility import exact_blocks
from flexgen.errors import FlexgenError, UnsupportedQueryError
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
    laws = blocks.scan_laws(0)
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
        torch.testing.assert_close(blocks.scan_laws(0)[order], given, atol=1e-12, rtol=0)
    assert blocks.effect().verdict() == "not refuted"
    found = blocks.check(0)
    assert found.verdict == "compatible"
    torch.testing.assert_close(found.joint.p, given, atol=1e-12, rtol=0)


def test_what_cannot_be_enumerated() -> None:
    x = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(UnsupportedQueryError, match="sites: holds site '0', which is not categorical"):
        exact_blocks(exact.Gaussian(torch.zeros(3), torch.eye(3)), x, torch.tensor([0, 1]))
    many = exact.JointTable.random((2,) * 13, generator=generator(5))
    with pytest.raises(FlexgenError, match="sites: have 8192 states"):
        exact_blocks(many, torch.zeros(1, 13), torch.arange(13))
    with pytest.raises(FlexgenError, match="sites: names a site twice"):
        exact_blocks(many, torch.zeros(1, 13), torch.tensor([1, 1]))
    nothing = exact_blocks(many, torch.zeros(0, 13), torch.zeros(0, 2, dtype=torch.int64)).effect()
    assert len(nothing) == 0
    assert math.isnan(nothing.uniform().value)
