"""Metropolis-Hastings and tempering: exact detailed balance, laws, rates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flexgen.conditional import CategoricalMarginals
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.exact import ConditionalTables, JointTable, kernels
from flexgen.query import Query
from flexgen.rng import Randomness
from samplers import GibbsSampler, MetropolisSampler, ParallelTempering, TemperedConditional, any_order, scans
from samplers.metropolis import MetropolisMove
from samplers.schedule import SiteQuery
from tests.samplers.tabulated import FALSE_ALARM, GaussianSites, TabulatedMarginals, p_value

JOINT = JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(4), concentration=0.7)
CHAINS = 6_000


def energy(x: Tensor) -> Tensor:
    return -JOINT.p[tuple(x.long().T)].log()


class Forced(TabulatedMarginals):
    """Marginals that draw what they are told."""

    value = 0

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        forced = self.value

        class Marginals(CategoricalMarginals):
            def sample(self, *, generator: Randomness) -> Tensor:  # noqa: ARG002
                return torch.full(self.log_probs.shape[:2], forced)

        return Marginals(super().marginals(x, query).log_probs)


def test_detailed_balance_is_exact() -> None:
    model = Forced(3, seed=2)
    move = MetropolisMove(model, energy)
    states = model.space.states()
    law = JOINT.p.flatten()
    for site in range(3):
        query = next(iter(scans.systematic().over(torch.arange(3) == site).walk(states, generator=torch.Generator())))
        assert isinstance(query, SiteQuery)
        transition = torch.zeros(8, 8, dtype=torch.float64)
        for value in (0, 1):
            model.value = value
            proposal, _, log_ratio = move.propose(states, energy(states), query, generator=torch.Generator())
            q = model.marginals(states, query).log_prob(proposal)[:, site].exp()
            reached = (proposal * torch.tensor([4, 2, 1])).sum(-1)
            accepted = log_ratio.exp().clamp_max(1.0)
            transition[range(8), reached] += q * accepted
            transition[range(8), range(8)] += q * (1 - accepted)
        torch.testing.assert_close(transition.sum(1), torch.ones(8, dtype=torch.float64), atol=1e-14, rtol=0)
        flow = law[:, None] * transition
        assert (flow - flow.T).abs().max() < 1e-15, "not reversible"
        assert (law @ transition - law).abs().max() < 1e-15


@pytest.mark.statistical
@pytest.mark.parametrize("scan", [scans.systematic(), scans.random(), scans.blocked([[0, 1], [2]])], ids=str)
def test_correction_gives_the_energys_law_from_incompatible_proposals(scan: scans.Scan) -> None:
    model = TabulatedMarginals(3, seed=2)
    result = MetropolisSampler(model, energy, scan=scan).run(chains=CHAINS, draws=1, warmup=40, generator=0)
    assert p_value(result.draws[-1], JOINT.p) > FALSE_ALARM
    rate = result.statistics["acceptance_rate"]
    assert rate.shape == (3,)
    assert ((rate > 0.2) & (rate < 1)).all()
    uncorrected = GibbsSampler(model, scan=scan).run(chains=CHAINS, draws=1, warmup=40, generator=0)
    assert p_value(uncorrected.draws[-1], JOINT.p) < 1e-12


def test_the_energys_own_conditionals_are_always_accepted() -> None:
    result = MetropolisSampler(JOINT, energy, scan=scans.systematic()).run(chains=100, draws=20, generator=0)
    assert result.statistics["acceptance_rate"].tolist() == [1.0] * 3


@pytest.mark.statistical
def test_correction_towards_the_any_order_likelihood() -> None:
    model = TabulatedMarginals(3, seed=2)
    orders = torch.tensor([[0, 1, 2], [2, 0, 1]])
    law = any_order.log_prob(model, model.space.states(), orders=orders).exp()
    target = any_order.energy(model, orders)
    result = MetropolisSampler(model, target, scan=scans.systematic()).run(
        chains=CHAINS, draws=1, warmup=25, generator=0
    )
    assert p_value(result.draws[-1], law) > FALSE_ALARM


def test_tempered_conditionals_are_those_of_the_powered_joint() -> None:
    states = JOINT.space.states()
    for beta in (0.0, 0.3, 2.0):
        powered = JointTable.from_unnormalised(JOINT.p**beta)
        for site in range(3):
            query = Query.complete(site, num_sites=3)
            expected = powered.marginals(states, query).log_probs[:, site]
            got = TemperedConditional(JOINT, beta).marginals(states, query).log_probs[:, site]
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.statistical
def test_tempered_gibbs_samples_the_powered_joint() -> None:
    sampler = GibbsSampler(TemperedConditional(JOINT, 0.4), scan=scans.systematic())
    draws = sampler.run(chains=CHAINS, draws=1, warmup=25, generator=0).draws[-1]
    assert p_value(draws, JOINT.p**0.4 / (JOINT.p**0.4).sum()) > FALSE_ALARM


BIMODAL = JointTable.from_unnormalised(torch.tensor([[1.0, 1e-7], [1e-7, 2.0]], dtype=torch.float64))


@pytest.mark.statistical
@pytest.mark.parametrize("corrected", [False, True])
def test_parallel_tempering_crosses_where_gibbs_cannot(corrected: bool) -> None:
    def bimodal_energy(x: Tensor) -> Tensor:
        return -BIMODAL.p[tuple(x.long().T)].log()

    start = torch.zeros(2000, 2, dtype=torch.int64)
    tempering = ParallelTempering(
        BIMODAL, bimodal_energy, betas=[1.0, 0.5, 0.2, 0.05], scan=scans.systematic(), corrected=corrected
    )
    result = tempering.run(x=start, draws=1, warmup=120, generator=0)
    assert result.draws.shape == (1, 2000, 2)
    assert result.state.x.shape == (8000, 2)
    assert p_value(result.draws[-1], BIMODAL.p) > FALSE_ALARM
    assert ((result.statistics["swap_rate"] > 0) & (result.statistics["swap_rate"] <= 1)).all()
    with pytest.warns(UserWarning, match="never moved"):
        stuck = GibbsSampler(BIMODAL, scan=scans.systematic()).run(x=start, draws=1, warmup=120, generator=0)
    assert p_value(stuck.draws[-1], BIMODAL.p) < 1e-12


def test_incompatible_sweep_kernel_differs_from_the_corrected_law() -> None:
    """The reason to correct: the pseudo-Gibbs law of these conditionals is far from the energy's."""
    tables = ConditionalTables(TabulatedMarginals(3, seed=2).tables())
    law = kernels.stationary(kernels.sweep_kernel(tables, range(3)))
    assert (law - JOINT.p.flatten()).abs().sum() > 0.1


def test_errors_name_argument_and_fix() -> None:
    model = TabulatedMarginals(3)
    with pytest.raises(FlexgenError, match=r"energy: returned shape \(2, 3\). Return one number a row, \[2\]"):
        MetropolisSampler(model, lambda x: x, scan=scans.systematic()).run(chains=2, draws=1, generator=0)
    with pytest.raises(UnsupportedQueryError, match=r"conditional: GaussianSites has no density"):
        MetropolisSampler(GaussianSites(torch.eye(2)), lambda x: x.sum(-1), scan=scans.systematic()).run(
            x=torch.zeros(2, 2), draws=1, generator=0
        )
    with pytest.raises(UnsupportedQueryError, match=r"conditional: MetropolisMove has no marginals"):
        MetropolisSampler(model, energy, scan=scans.coloured([[], [], []])).run(chains=2, draws=1, generator=0)
    with pytest.raises(FlexgenError, match=r"betas: are \[0.5, 1.0\]. Give falling inverse temperatures"):
        ParallelTempering(model, energy, betas=[0.5, 1.0], scan=scans.systematic())
    with pytest.raises(UnsupportedQueryError, match=r"conditional: GaussianSites has no marginals to temper"):
        ParallelTempering(GaussianSites(torch.eye(2)), energy, betas=[1.0], scan=scans.systematic())
    with pytest.raises(FlexgenError, match=r"beta: is -1"):
        TemperedConditional(model, -1)
