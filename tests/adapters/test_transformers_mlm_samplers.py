"""Samplers on a masked language model, against its own conditionals enumerated as tables."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen import exact
from flexgen.exact import kernels
from flexgen.query import Query
from samplers import GibbsSampler, MetropolisSampler, any_order, parallel, scans
from samplers.tempering import ParallelTempering, TemperedConditional
from tests.adapters.tiny_mlm import by_hand, network, tiny
from tests.conditionals import generator

N, K = 3, 3
FALSE_ALARM = 1e-6  # of each chi-square test
CHAINS = 6000  # each gives one draw, hence independent


def complete_conditionals() -> exact.ConditionalTables:
    """The network's own, asked by hand."""
    states = tiny(N).space.states()
    tables = []
    for site in range(N):
        query = Query.complete(site, num_sites=N)
        answers = by_hand(network(), states, query, lengths=[N] * len(states))[:, site]  # [S, K]
        tables.append(answers.gather(-1, states[:, site, None]).exp().view(K, K, K))
    return exact.ConditionalTables(tables)


def p_value(draws: Tensor, law: Tensor) -> float:
    """Of independent draws ``[n, N]`` from a law over all states ``[S]``; cells expecting fewer than ten are pooled."""
    place = (draws * torch.tensor([K**2, K, 1])).sum(-1)
    counts = torch.bincount(place, minlength=K**N).double()
    expected = law * len(draws)
    rare = expected < 10
    counts, expected = (torch.cat([v[~rare], v[rare].sum()[None]]) for v in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    return float(stats.chi2.sf(float(((counts - expected) ** 2 / expected).sum()), len(expected) - 1))


@pytest.mark.statistical
def test_gibbs_chains_have_the_law_of_their_scan() -> None:
    tables, mlm = complete_conditionals(), tiny(N)
    order = (2, 0, 1)
    laws = {
        "systematic": kernels.stationary(kernels.sweep_kernel(tables, order)),
        "another order": kernels.stationary(kernels.sweep_kernel(tables, order[::-1])),
        "random": kernels.stationary(kernels.random_scan_kernel(tables)),
    }
    fixed = GibbsSampler(mlm, scan=scans.systematic(order)).run(
        chains=CHAINS, draws=1, warmup=14, generator=generator(1)
    )
    assert p_value(fixed.draws[0], laws["systematic"]) > FALSE_ALARM
    assert p_value(fixed.draws[0], laws["another order"]) < FALSE_ALARM  # what a wrong scan would have drawn
    # One sweep a step for all chains: at most as many distinct rows as the two other sites have states.
    assert mlm.forwards.rows <= 15 * N * K ** (N - 1) + 1 + K + K**2
    random = GibbsSampler(mlm, scan=scans.random()).run(chains=CHAINS, draws=1, warmup=14, generator=generator(2))
    assert p_value(random.draws[0], laws["random"]) > FALSE_ALARM
    assert p_value(random.draws[0], laws["another order"]) < FALSE_ALARM


def test_any_order_log_likelihoods_are_those_of_the_chain_rule_by_hand() -> None:
    mlm = tiny(N)
    x = mlm.space.states()
    for order in itertools.permutations(range(N)):
        expected = torch.zeros(len(x), dtype=torch.float64)
        for step, site in enumerate(order):
            query = Query.of([site], order[:step], num_sites=N)
            answers = by_hand(network(), x, query, lengths=[N] * len(x))[:, site]
            expected += answers.gather(-1, x[:, site, None])[:, 0]
        found = any_order.log_prob(mlm, x, orders=torch.tensor(order))
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0).double())


@pytest.mark.statistical
def test_metropolis_steps_leave_the_law_of_the_energy_as_it_is() -> None:
    mlm, order = tiny(N), torch.tensor([1, 2, 0])
    energy = any_order.energy(mlm, order)
    law = torch.softmax(-energy(mlm.space.states()), 0)
    nothing = torch.zeros(CHAINS, N, dtype=torch.int64)
    start = mlm.sample(nothing, mlm.rest(nothing), generator=generator(3), order=order)
    assert p_value(start, law) > FALSE_ALARM
    result = MetropolisSampler(mlm, energy, scan=scans.systematic()).run(x=start, draws=3, generator=generator(4))
    assert p_value(result.draws[-1], law) > FALSE_ALARM
    assert (result.draws[-1] != start).any(-1).float().mean() > 0.3
    gibbs = GibbsSampler(mlm, scan=scans.systematic()).run(x=start, draws=3, generator=generator(4))
    assert p_value(gibbs.draws[-1], law) < FALSE_ALARM  # without the correction


def test_rows_of_different_lengths_in_one_batch_of_chains() -> None:
    mlm = tiny(4, variable_length=True)
    x = mlm.encode(["ABCA", "AB", "C"]).repeat(4, 1)
    clamped = mlm.absent(x)
    clamped[:, 0] = True
    result = GibbsSampler(mlm, scan=scans.random()).run(x=x, clamped=clamped, draws=5, generator=generator(4))
    assert torch.equal(result.draws[:, clamped], x[clamped].expand(5, -1))
    assert (result.draws[:, ~clamped] < mlm.absent_code).all()
    assert {len(text) for text in mlm.decode(result.draws[-1])} == {4, 2, 1}


def test_absent_sites_stay_absent_without_being_clamped() -> None:
    """Every sampler of chains, over the adapter and over what wraps it."""
    mlm = tiny(4, variable_length=True)
    x = mlm.encode(["ABCA", "AB", "C"])
    scan = scans.systematic()

    def energy(x: Tensor) -> Tensor:
        return -mlm.log_prob(x, mlm.rest(x))

    samplers = [
        GibbsSampler(mlm, scan=scan),
        GibbsSampler(mlm, scan=scans.blocked([[0, 3], [1, 2]])),
        GibbsSampler(TemperedConditional(mlm, 0.5), scan=scan),
        MetropolisSampler(mlm, energy, scan=scan),
        ParallelTempering(mlm, energy, betas=[1.0, 0.5], scan=scan),
    ]
    for sampler in samplers:
        for clamped in (None, torch.tensor([False, True, False, False])):
            result = sampler.run(x=x, clamped=clamped, draws=6, generator=0)
            assert torch.equal(mlm.absent(result.draws.flatten(0, 1)), mlm.absent(x).repeat(6, 1))
            free = ~result.state.clamped
            assert (result.draws != x)[:, free[:: len(free) // 3]].any(), "present sites move"
    more = samplers[0].run(state=samplers[0].run(x=x, draws=1, generator=0).state, draws=5)
    assert [len(text) for text in mlm.decode(more.draws[-1])] == [4, 2, 1]
    drawn = samplers[0].run(x=x, initialise=True, draws=1, generator=0)
    assert {len(text) for text in mlm.decode(drawn.draws[-1])} == {4}  # a start of its own: every free site is drawn


def test_a_short_row_has_the_likelihood_that_it_has_alone() -> None:
    mlm = tiny(4, variable_length=True)
    x = mlm.encode(["ABCA", "ABC", "BCA"])
    order = torch.tensor([3, 1, 0, 2])
    together = any_order.log_prob(mlm, x, mlm.rest(x), orders=order)
    alone = any_order.log_prob(tiny(3), x[1:, :3], orders=order[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-10, rtol=0)
    # Without mlm.rest an absent site would be asked for, which no row can hold there.
    assert torch.equal(any_order.log_prob(mlm, x, orders=order).isinf(), torch.tensor([False, True, True]))


@pytest.mark.parametrize("rule", ["confidence", "random"])
def test_parallel_decoding_within_its_budget(rule: str) -> None:
    mlm = tiny(6)
    x, query = mlm.encode_query(["A_____", "AB____", "______"])
    out = parallel.sample(mlm, x, query, num_steps=2, rule=rule, generator=generator(5))  # type: ignore[arg-type]
    assert mlm.forwards.batches == 2
    assert torch.equal(out[query.observed], x[query.observed])
    assert all(len(text) == 6 for text in mlm.decode(out))
