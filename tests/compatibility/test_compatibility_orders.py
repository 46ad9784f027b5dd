"""Order gaps against the chain rule written out."""

from __future__ import annotations

import pytest
import torch

from flexgen import exact
from flexgen.compatibility import SiteAnswers, order_gaps
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.errors import FlexgenError
from flexgen.query import Query
from samplers import any_order
from tests.compatibility.planted import Counted, Planted
from tests.compatibility.single_precision import LogProbOnly
from tests.conditionals import generator

NUM_SITES = 5


def planted() -> Planted:
    return Planted(exact.JointTable.random((2,) * NUM_SITES, generator=generator(1)), 0.4, 0.5)


def some_rows(number: int = 9) -> torch.Tensor:
    return torch.randint(2, (number, NUM_SITES), generator=generator(2)).double()


@pytest.mark.parametrize("wrap", [lambda m: m, LogProbOnly])
def test_log_probs_are_those_of_the_chain_rule(wrap: object) -> None:
    x, orders = some_rows(), torch.stack([torch.randperm(NUM_SITES, generator=generator(k)) for k in range(3)])
    result = order_gaps(wrap(planted()), x, orders=orders)  # type: ignore[operator]
    for k, order in enumerate(orders):
        torch.testing.assert_close(
            result.log_probs[:, k], any_order.log_prob(planted(), x, orders=order), atol=1e-12, rtol=0
        )
    effect = result.effect()
    assert effect.values[:3].tolist() == pytest.approx(
        [float(result.log_probs[0, a] - result.log_probs[0, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    )


def test_a_joint_has_no_gap() -> None:
    law = exact.JointTable.random((2, 3, 4), generator=generator(3))
    x = law.space.states()[::5]
    result = order_gaps(law, x, orders=4)
    torch.testing.assert_close(
        result.log_probs, law.log_prob(x, Query.of(range(3), num_sites=3))[:, None].expand(-1, 4)
    )
    assert result.effect().verdict() == "not refuted"
    assert bool((result.effect().values.abs() <= result.effect().floors).all())


def test_targets_contexts_and_missing_entries() -> None:
    counted, x = Counted(planted()), some_rows()
    x[0, 2] = torch.nan
    target = torch.tensor([True, True, True, False, False])
    given = torch.tensor([False, False, False, True, False])
    result = order_gaps(counted, x, target=target, observed=given, rounding=Rounding(1e-6))
    assert result.num_targets.tolist() == [2] + [3] * 8
    assert all(row[4] is None for row in counted.rows)
    clean = x[1:]
    forward = any_order.log_prob(
        planted(), clean, Query.of([0, 1, 2], [3], num_sites=5), orders=result.orders[1:, 0][None]
    )
    torch.testing.assert_close(result.log_probs[1:, 0], forward, atol=1e-12, rtol=0)


def test_rows_that_begin_alike_are_evaluated_once() -> None:
    counted, x = Counted(planted()), some_rows(50)
    result = order_gaps(SiteAnswers(counted), x, orders=2, rounding=Rounding(1e-6))
    empty = [row for row in counted.rows if all(v is None for v in row)]
    assert result.cost.forwards == result.cost.needed
    assert len(empty) == 1
    assert result.cost.forwards < 2 * NUM_SITES * 50 / 2


def test_random_orders() -> None:
    a, b = (order_gaps(planted(), some_rows(), orders=3, generator=s).orders for s in (1, 2))
    assert not torch.equal(a, b)
    assert torch.equal(a, order_gaps(planted(), some_rows(), orders=3, generator=1).orders)
    assert torch.equal(a[:, 1], a[:, 0].flip(-1))
    # A row's orders do not depend on how many rows there are.
    assert torch.equal(a[:4], order_gaps(planted(), some_rows()[:4], orders=3, generator=1).orders)


@pytest.mark.parametrize(
    ("orders", "text"),
    [
        (1, "orders: is 1. A gap needs at least 2 orders"),
        (2.5, r"orders: is 2\.5\. Pass a whole number"),
        (torch.tensor([[0, 1, 2, 3, 4]]), "orders: holds one order. A gap needs two"),
        (torch.tensor([[0, 1, 2, 3, 3], [0, 1, 2, 3, 4]]), "or rows that are no permutation"),
    ],
)
def test_bad_orders(orders: object, text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        order_gaps(planted(), some_rows(), orders=orders)  # type: ignore[arg-type]


def test_rows_with_one_target_have_no_gap() -> None:
    x = some_rows(6)
    x[2, 1:], x[4] = torch.nan, torch.nan
    gaps = order_gaps(planted(), x)
    assert gaps.num_targets.tolist() == [5, 5, 1, 5, 0, 5]
    assert gaps.effect().rows.tolist() == [0, 1, 3, 5]
    x[:] = torch.nan
    assert order_gaps(planted(), x).effect().verdict() == "not measured"
    with pytest.raises(FlexgenError, match=r"x: has shape \(5,\)"):
        order_gaps(planted(), x[0])
    with pytest.raises(FlexgenError, match="target: is a list"):
        order_gaps(planted(), x, target=[0])
