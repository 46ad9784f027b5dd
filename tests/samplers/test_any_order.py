"""Any-order and parallel decoding against laws found by enumeration."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from flexgen.errors import FlexgenError, SpaceError, UnsupportedQueryError
from flexgen.exact import JointTable
from flexgen.query import Query
from flexgen.space import Space
from samplers import AnyOrder, ParallelDecode, any_order, parallel, run, scans
from samplers.schedule import Schedule
from tests.samplers.tabulated import FALSE_ALARM, GaussianSites, TabulatedMarginals, p_value

ALL = Query.of(range(3), num_sites=3)
ORDERS = torch.tensor(list(itertools.permutations(range(3))))


def any_order_law(model: TabulatedMarginals, orders: Tensor) -> Tensor:
    """The mixture of the chain rules over the orders, by the base class's own log_prob."""
    states = model.space.states()
    return torch.stack([model.log_prob(states, ALL, order=order).exp() for order in orders]).mean(0)


def confidence_law(model: TabulatedMarginals) -> Tensor:
    """Greedy confidence decoding, one site a step: all masked sites are drawn, the likeliest draw is kept."""
    law = torch.zeros(2**3, dtype=torch.float64)

    def decode(values: dict[int, int], weight: float) -> None:
        masked = [site for site in range(3) if site not in values]
        if not masked:
            law[int("".join(str(values[site]) for site in range(3)), 2)] += weight
            return
        x = torch.tensor([[values.get(site, 0) for site in range(3)]])
        log_probs = model.marginals(x, Query.of(masked, values, num_sites=3)).log_probs[0]
        for draw in itertools.product((0, 1), repeat=len(masked)):
            scores = [float(log_probs[site, value]) for site, value in zip(masked, draw, strict=True)]
            best = max(range(len(masked)), key=lambda i: scores[i])
            decode({**values, masked[best]: draw[best]}, weight * math.exp(sum(scores)))

    decode({}, 1.0)
    return law


def test_log_prob_averages_likelihoods_over_orders() -> None:
    model = TabulatedMarginals(3)
    states = model.space.states()
    law = any_order_law(model, ORDERS)
    torch.testing.assert_close(any_order.log_prob(model, states, orders=ORDERS).exp(), law, atol=1e-14, rtol=0)
    assert abs(law.sum() - 1) < 1e-12
    each_row = ORDERS[:, None].expand(-1, len(states), -1)
    torch.testing.assert_close(any_order.log_prob(model, states, orders=each_row).exp(), law, atol=1e-14, rtol=0)


def test_log_prob_with_random_orders_is_an_unbiased_likelihood() -> None:
    model = TabulatedMarginals(3)
    state = torch.tensor([[1, 0, 1]])
    num = 4000
    got = any_order.log_prob(model, state.expand(num, -1), orders=2, generator=0).exp()
    each = torch.stack([any_order.log_prob(model, state, orders=order).exp() for order in ORDERS])
    error = each.std(correction=0) / math.sqrt(2 * num)
    assert abs(got.mean() - each.mean()) < 5 * error  # false alarm 6e-7


def test_log_prob_of_a_joint_is_the_same_in_every_order() -> None:
    joint = JointTable.random((2, 3, 2), generator=torch.Generator().manual_seed(0))
    states = joint.space.states()
    for query in (Query.of([0, 2], num_sites=3), Query.of([1, 2], [0], num_sites=3), Query.of([], [1], num_sites=3)):
        got = any_order.log_prob(joint, states, query, orders=3, generator=1)
        torch.testing.assert_close(got, joint.log_prob(states, query), atol=1e-12, rtol=0)


def test_cost_is_one_evaluation_a_target() -> None:
    model = TabulatedMarginals(4)
    query = Query(
        torch.tensor([[True, True, False, False], [True, True, True, False]]), torch.zeros(2, 4, dtype=torch.bool)
    )
    schedule = AnyOrder(query)
    model.num_evaluations = 0
    run(model, torch.zeros(2, 4, dtype=torch.int64), schedule, generator=0)
    assert schedule.num_evaluations == schedule.critical_path == model.num_evaluations == 3


@pytest.mark.statistical
def test_any_order_draws_follow_the_mixture_and_given_orders_their_own_law() -> None:
    model = TabulatedMarginals(3)
    x = torch.zeros(40_000, 3, dtype=torch.int64)
    mixture, first = any_order_law(model, ORDERS), any_order_law(model, ORDERS[:1])
    draws = any_order.sample(model, x, ALL, generator=0)
    assert p_value(draws, mixture) > FALSE_ALARM
    assert p_value(draws, first) < 1e-12, "the test would not notice a fixed order"
    assert p_value(any_order.sample(model, x, ALL, generator=1, order=ORDERS[0]), first) > FALSE_ALARM
    assert not x.any()


@pytest.mark.statistical
@pytest.mark.parametrize("noise_schedule", ["cosine", "linear"])
def test_random_rule_with_one_site_a_step_is_any_order(noise_schedule: str) -> None:
    model = TabulatedMarginals(3)
    x = torch.zeros(40_000, 3, dtype=torch.int64)
    decode = lambda steps: parallel.sample(  # noqa: E731
        model, x, ALL, num_steps=steps, rule="random", noise_schedule=noise_schedule, generator=3
    )
    law = any_order_law(model, ORDERS)
    assert p_value(decode(3), law) > FALSE_ALARM
    assert p_value(decode(1), law) < 1e-12, "the product of marginals is another law"


@pytest.mark.statistical
def test_confidence_rule_with_one_site_a_step_follows_its_own_law() -> None:
    model = TabulatedMarginals(3)
    x = torch.zeros(40_000, 3, dtype=torch.int64)
    draws = parallel.sample(model, x, ALL, num_steps=3, generator=4)
    assert p_value(draws, confidence_law(model)) > FALSE_ALARM
    assert p_value(draws, any_order_law(model, ORDERS)) < 1e-12
    # Much noise makes every choice but the last at random, the confidence immaterial: the any-order law again.
    noisy = parallel.sample(model, x, ALL, num_steps=3, temperature=1e9, generator=5)
    assert p_value(noisy, any_order_law(model, ORDERS)) > FALSE_ALARM


@pytest.mark.parametrize("rule", ["confidence", "random"])
@pytest.mark.parametrize("noise_schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("num_steps", "remask"), [(1, 0.0), (3, 0.0), (6, 0.0), (4, 0.5), (11, 0.7)])
def test_budget_is_exact_and_every_target_is_filled(
    rule: str, noise_schedule: str, num_steps: int, remask: float
) -> None:
    model = TabulatedMarginals(6)
    target = torch.tensor([[True] * 6, [True, True, False, False, False, False], [False] * 6])
    observed = ~target & torch.tensor([True, True, True, True, True, False])
    schedule = ParallelDecode(Query(target, observed), num_steps, rule, 0.5, noise_schedule, remask)
    assert isinstance(schedule, Schedule)
    walk_targets = []
    x = torch.full((3, 6), 7)  # a value of no site, to see what was filled
    x = torch.where(observed, 1, x)

    class Recording(TabulatedMarginals):
        def marginals(self, x: Tensor, query: Query) -> object:
            walk_targets.append(query.target)
            assert not (query.observed & (x == 7)).any(), "conditions on a site that was never filled"
            return super().marginals(x, query)

    filled = run(Recording(6), x, schedule, generator=0)
    assert schedule.num_evaluations == len(walk_targets) == num_steps
    assert (filled[target] < 2).all()
    assert torch.equal(filled[~target], x[~target])
    again = ParallelDecode.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert torch.equal(run(model, x, again, generator=0), filled)


def test_any_order_schedule_round_trips_through_json() -> None:
    schedule = AnyOrder(Query.of([0, 2], [1], num_sites=3), torch.tensor([2, 1, 0]))
    again = AnyOrder.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again.query == schedule.query
    assert torch.equal(again.order, schedule.order)
    assert "2 evaluations" in repr(schedule)


def test_missing_values_are_refused_where_they_would_be_read() -> None:
    joint = JointTable.random((2, 2), generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0.0, float("nan")]])
    assert not any_order.sample(joint, x, Query.of([1], [0], num_sites=2), generator=0).isnan().any()
    for decode in (
        lambda q: any_order.sample(joint, x, q, generator=0),
        lambda q: parallel.sample(joint, x, q, num_steps=1, generator=0),
    ):
        with pytest.raises(SpaceError, match=r"x: holds NaN at row 0, site 1, which the query conditions on"):
            decode(Query.of([0], [1], num_sites=2))
    with pytest.raises(SpaceError, match="which the query reads"):
        any_order.log_prob(joint, x, orders=torch.tensor([0, 1]))


def test_errors_name_argument_and_fix() -> None:
    model = TabulatedMarginals(3)
    x = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(FlexgenError, match=r"num_steps: is 4, but no row has more than 3 target\(s\). Give at most 3"):
        parallel.sample(model, x, ALL, num_steps=4, generator=0)
    with pytest.raises(FlexgenError, match=r"rule: is 'best'"):
        ParallelDecode(ALL, 1, "best")  # type: ignore[arg-type]
    with pytest.raises(FlexgenError, match=r"generator: is not given, but orders are to be drawn"):
        any_order.log_prob(model, x, orders=2)
    with pytest.raises(FlexgenError, match=r"order: holds rows that are no permutation of the 3 sites"):
        any_order.sample(model, x, ALL, generator=0, order=torch.tensor([0, 1, 1]))
    with pytest.raises(UnsupportedQueryError, match=r"conditional: GaussianSites has no density"):
        any_order.log_prob(GaussianSites(torch.eye(3)), x, orders=torch.arange(3))
    with pytest.raises(UnsupportedQueryError, match=r"conditional: GaussianSites has no marginals"):
        parallel.sample(GaussianSites(torch.eye(3)), x, ALL, num_steps=1, generator=0)
    with pytest.raises(FlexgenError, match=r"schedule: is a Systematic, which has no walk.*scan.over\(free\)"):
        run(model, x, scans.systematic(), generator=0)  # type: ignore[arg-type]


def test_empty_target_and_empty_space() -> None:
    model = TabulatedMarginals(3)
    x = torch.ones(2, 3, dtype=torch.int64)
    nothing = Query.of([], [0], num_sites=3)
    assert torch.equal(any_order.sample(model, x, nothing, generator=0), x)
    assert torch.equal(parallel.sample(model, x, nothing, num_steps=0, generator=0), x)
    assert any_order.log_prob(model, x, nothing, orders=1, generator=0).tolist() == [0.0, 0.0]
    assert Space.binary(3) == model.space
