"""Circulations against their definition, and their two parts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from flexgen import exact
from flexgen.compatibility import circulation, order_gaps, rectangles
from flexgen.compatibility.networks.circulation import random_contexts
from flexgen.conditional import CategoricalMarginals
from flexgen.errors import FlexgenError
from flexgen.query import Query
from tests.compatibility.planted import Counted, Planted
from tests.conditionals import generator

SHAPE = (2, 2, 2, 2, 2)


def planted(theta: float = 0.3, tilt: float = 0.5) -> Planted:
    return Planted(exact.JointTable.random(SHAPE, generator=generator(1)), theta, tilt)


def some_rows(number: int = 12) -> Tensor:
    return torch.randint(2, (number, len(SHAPE)), generator=generator(2)).double()


def one_site(model: Planted, x: Tensor, site: int, value: float, observed: list[int], held: dict[int, float]) -> float:
    row = x.clone()
    for other, number in held.items():
        row[other] = number
    query = Query.of([site], [*observed, *held], num_sites=len(x))
    return float(model.marginals(row[None], query).log_probs[0, site, int(value)])


def test_every_cell_equals_the_definition() -> None:
    model, x = planted(), some_rows(4)
    result = circulation(model, x, generator=1)
    c = result.values
    for row, p in itertools.product(range(4), range(result.pairs.shape[1])):
        i, j = result.pairs[row, p].tolist()
        given = result.observed[row, p].nonzero()[:, 0].tolist()
        assert i not in given
        assert j not in given
        for k, m in itertools.product(range(2), range(2)):
            a, b = float(result.values_i[row, p, k]), float(result.values_j[row, p, m])
            expected = (
                one_site(model, x[row], i, a, given, {})
                + one_site(model, x[row], j, b, given, {i: a})
                - one_site(model, x[row], j, b, given, {})
                - one_site(model, x[row], i, a, given, {j: b})
            )
            assert float(c[row, p, k, m]) == pytest.approx(expected, abs=1e-12)


def test_interaction_part_is_what_rectangles_see() -> None:
    model, x = planted(), some_rows()
    rest = torch.ones(len(x), len(SHAPE), dtype=torch.bool)
    parts = circulation(model, x, observed=rest)
    interaction, marginal = parts.parts()
    torch.testing.assert_close(interaction + marginal, parts.values)
    one, other = rectangles(model, x).interactions()
    torch.testing.assert_close(interaction, other - one, atol=1e-12, rtol=0)
    # A two by two table of gap g has double-centred cells of size g / 4.
    inner = (parts.pairs < len(SHAPE) - 1).all(-1)
    expected = (model.gap(x) / 4)[:, None].expand(-1, parts.pairs.shape[1])[inner]
    torch.testing.assert_close(interaction[inner].abs().amax((-1, -2)), expected, atol=1e-12, rtol=0)


class WrongMargins:
    """Complete conditionals of one joint, one-site margins of another: rectangles cannot see it."""

    def __init__(self) -> None:
        self.law = exact.JointTable.random((3, 3), generator=generator(3))
        self.other = exact.JointTable.random((3, 3), generator=generator(4))
        self.space = self.law.space

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        query = query.expand(len(x))
        alone = ~query.observed.any(-1)
        given, free = self.law.marginals(x, query).log_probs, self.other.marginals(x, query).log_probs
        return CategoricalMarginals(torch.where(alone[:, None, None], free, given))


def test_wrong_margins_are_seen_by_the_marginal_part_alone() -> None:
    model = WrongMargins()
    x = torch.randint(3, (20, 2), generator=generator(5))
    whole, interaction, marginal = circulation(model, x).effects()
    assert rectangles(model, x).effect().verdict() == "not refuted"
    assert interaction.verdict() == "not refuted"
    assert marginal.verdict() == whole.verdict() == "refuted"
    assert whole.weighted().value == pytest.approx(marginal.weighted().value, rel=1e-6)


def test_weights_of_a_joint_are_its_probabilities() -> None:
    law = exact.JointTable.random((3, 4), generator=generator(6))
    result = circulation(law, torch.tensor([[1, 2]]))
    whole = result.effects()[0]
    a, b = result.values_i[0, 0, :3].long(), result.values_j[0, 0, :4].long()
    torch.testing.assert_close(whole.weights, law.p[a][:, b].flatten(), atol=1e-12, rtol=0)
    assert whole.cost.forwards == 1 + 3 + 4


def test_cost_is_one_head_and_a_row_a_value() -> None:
    counted = Counted(planted())
    x, pairs = some_rows(5), torch.tensor([[0, 3]])
    rest = torch.ones(5, len(SHAPE), dtype=torch.bool)
    result = circulation(counted, x, pairs=pairs, observed=rest, rounding=rectangles(planted(), x).rounding)
    contexts = len({tuple(row) for row in x[:, [1, 2, 4]].tolist()})
    assert result.cost.forwards == len(counted.rows) == len(set(counted.rows)) == contexts * (1 + 2 + 2)


def test_an_adjacent_swap_of_the_chain_rule_is_a_circulation() -> None:
    model, x = planted(), some_rows(6)
    orders = torch.tensor([[2, 0, 3, 1, 4], [2, 3, 0, 1, 4]])
    gaps = order_gaps(model, x, orders=orders).log_probs
    given = torch.tensor([False, False, True, False, False])
    result = circulation(model, x, pairs=torch.tensor([[0, 3]]), observed=given)
    # At the data's own cell: log p(0|2) + log p(3|2,0) - log p(3|2) - log p(0|2,3).
    torch.testing.assert_close(gaps[:, 0] - gaps[:, 1], result.values[:, 0, 0, 0], atol=1e-12, rtol=0)


@pytest.mark.statistical
def test_random_contexts_have_uniform_sizes() -> None:
    allowed = torch.ones(6000, 6, dtype=torch.bool)
    allowed[:, 2] = False
    chosen = random_contexts(allowed, seed=1)
    assert not bool(chosen[:, 2].any())
    sizes = torch.bincount(chosen.sum(-1), minlength=6)[:6].double()
    # Chi-square with 5 degrees of freedom exceeds 30.9 with chance 1e-5.
    assert float(((sizes - 1000).square() / 1000).sum()) < 30.9
    each = torch.rand(6000, 6, generator=generator(7)) < 0.5  # the wrong law: every site with chance a half
    each[:, 2] = False
    wrong = torch.bincount(each.sum(-1), minlength=6)[:6].double()
    assert float(((wrong - 1000).square() / 1000).sum()) > 30.9


def test_missing_entries_are_neither_asked_nor_given() -> None:
    model, x = Counted(planted()), some_rows(10)
    x[:, 3] = torch.nan
    result = circulation(model, x)
    assert all(row[3] is None for row in model.rows)
    assert not bool(result.valid[(result.pairs == 3).any(-1)].any())
    assert len(result.effects()[0]) == 10 * 6 * 4


def test_bad_shapes() -> None:
    with pytest.raises(FlexgenError, match=r"pairs: has shape \(2, 1, 2\)\. Pass \[P, 2\] or \[12, P, 2\]"):
        circulation(planted(), some_rows(), pairs=torch.tensor([[[0, 1]], [[0, 1]]]))
    with pytest.raises(FlexgenError, match=r"observed: has shape \(12, 1, 5\), torch.bool. .* \[12, 10, 5\]"):
        circulation(planted(), some_rows(), observed=torch.ones(12, 1, 5, dtype=torch.bool))
    with pytest.raises(FlexgenError, match=r"observed: holds torch.int64"):
        circulation(planted(), some_rows(), observed=torch.ones(12, 5, dtype=torch.int64))
    with pytest.raises(FlexgenError, match=r"x: has shape \(5,\)"):
        circulation(planted(), some_rows()[0])
