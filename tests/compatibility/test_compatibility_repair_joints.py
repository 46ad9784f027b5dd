"""Joints made from networks: distilled energies, ensembles of orders, the law of the random scan."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen.compatibility import closest_joint, pseudo_log_likelihood, rectangles, stationary
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import SiteAnswers
from flexgen.compatibility.repair import (
    EnergyModel,
    OrderEnsemble,
    PottsNetwork,
    TableEnergy,
    TargetedPseudoLikelihood,
    distil,
    random_scan,
)
from flexgen.compatibility.repair.distillation import complete_conditionals
from flexgen.errors import DataError, FlexgenError, SpaceError, UnsupportedQueryError
from flexgen.exact import ConditionalTables, Gaussian, JointTable
from flexgen.query import Query
from flexgen.space import Space
from flexgen.training import TrainingSettings
from samplers import GibbsSampler, MetropolisSampler, any_order, scans
from tests.compatibility.planted import Planted


def random_tables(*shape: int, seed: int = 0) -> ConditionalTables:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(shape), *shape, generator=generator, dtype=torch.float64) + 0.05
    return ConditionalTables([each / each.sum(site, keepdim=True) for site, each in enumerate(noise)])


def whole_batch(num_states: int, num_steps: int) -> TrainingSettings:
    """Descent on the whole objective: the rows of a step are all states."""
    return TrainingSettings(
        num_steps=num_steps,
        batch_size=num_states,
        lr=0.3,
        num_warmup_steps=0,
        weight_decay=0.0,
        grad_clip=None,
        validate_every=num_steps,
    )


def free(space: Space) -> EnergyModel:
    return EnergyModel(space, TableEnergy(space))


# Distillation.


def test_compatibility_distilled_table_is_the_closest_joint() -> None:
    """Three sites of equally many categories: every context is seen equally often, which is the AG objective.

    Tolerance: near its minimum the objective F of the energies exceeds it by c |distance|^2 / 2 or more, c the least
    curvature but for the constant; so an excess e is a distance of log-probabilities of at most sqrt(2 e / c), here
    twice that. The excess itself is known, since `closest_joint` proves its optimum.
    """
    tables = random_tables(3, 3, 3)
    states = tables.space.states()
    closest = closest_joint(tables, kind="AG")
    result = distil(tables, states, model=free(tables.space), settings=whole_batch(27, 200), progress=False)
    assert result.cost.forwards == 27  # 3 sites x 9 contexts, each once
    # 3 rows share each context: the sum over contexts is 27 / 3 times the mean over rows.
    excess = 9 * result.kl - closest.objective
    assert -1e-12 < excess < 1e-7

    def objective(energies: Tensor) -> Tensor:
        model = EnergyModel(tables.space, torch.nn.Identity())
        model.network.forward = lambda x: energies[x @ torch.tensor([9, 3, 1])]
        return TargetedPseudoLikelihood()(model, batch, torch.Generator()).sum() / 3

    batch = {"x": states, "targets": complete_conditionals(SiteAnswers(tables), states)}
    optimum = -closest.joint.p.log().flatten()
    assert float(objective(optimum)) == pytest.approx(closest.objective, abs=1e-10)
    curvature = torch.linalg.eigvalsh(torch.autograd.functional.hessian(objective, optimum))
    assert abs(float(curvature[0])) < 1e-10  # the constant
    reach = 2 * math.sqrt(2 * max(excess, 1e-12) / float(curvature[1]))
    assert reach < 0.01
    torch.testing.assert_close(result.model.table().p, closest.joint.p, rtol=reach, atol=0)
    # The law of a scan is another joint.
    assert float((stationary(tables, "random") / closest.joint.p - 1).abs().max()) > 10 * reach


def test_compatibility_distillation_recovers_a_joint_that_is_there() -> None:
    joint = JointTable.random((2, 3, 2), generator=torch.Generator().manual_seed(4))
    tables = joint.conditional_tables()
    result = distil(
        tables, joint.space.states(), model=free(joint.space), settings=whole_batch(12, 300), progress=False
    )
    assert result.kl < 1e-7
    torch.testing.assert_close(result.model.table().p, joint.p, rtol=0, atol=1e-4)
    assert "conditionals lose" in str(result)


def test_compatibility_distilled_potts_network_has_no_gap() -> None:
    """Whatever its weights, in float64 to rounding; and it holds pairwise laws exactly."""
    model = Planted(JointTable.random((2,) * 4, generator=torch.Generator().manual_seed(0)), 0.1)
    x = model.space.states()
    energy = EnergyModel(model.space, PottsNetwork(model.space, width=16, depth=1)).double()
    result = distil(model, x, model=energy, num_sites=2, settings=whole_batch(16, 60), progress=False)
    assert rectangles(model, x, rounding=Rounding(1e-14)).effect().uniform().value > 0.1
    assert rectangles(result.model, x, rounding=Rounding(1e-14)).effect().uniform().value < 1e-12
    untrained = TargetedPseudoLikelihood()
    targets = complete_conditionals(SiteAnswers(model), x)
    fresh = EnergyModel(model.space).double()
    before = untrained(fresh, {"x": x, "targets": targets}, torch.Generator()).mean()
    assert result.kl < 0.5 * float(before.detach())


def test_compatibility_targets_are_the_networks_conditionals_and_sites_are_drawn_without_bias() -> None:
    joint = JointTable.random((2, 3, 4), generator=torch.Generator().manual_seed(4))
    x = joint.space.states()
    answers = SiteAnswers(joint)
    targets = complete_conditionals(answers, x)
    assert answers.cost.forwards == 12 + 8 + 6
    for site, table in enumerate(joint.conditional_tables().tables):
        lines = table.movedim(site, -1).log()
        rest = [x[:, other] for other in range(3) if other != site]
        expected = lines[rest[0], rest[1]]
        torch.testing.assert_close(targets[:, site, : joint.p.shape[site]], expected)
        assert (targets[:, site, joint.p.shape[site] :] == -math.inf).all()
    model = free(joint.space)
    batch = {"x": x, "targets": targets}
    with torch.no_grad():
        every = TargetedPseudoLikelihood()(model, batch, torch.Generator())
        # The mean over all choices of two of three sites, in closed form: each site stands in 2 of the 3 choices.
        draws = torch.stack(
            [TargetedPseudoLikelihood(2)(model, batch, torch.Generator().manual_seed(s)) for s in range(600)]
        )
    off = (draws.mean(0) - every) / (draws.std(0) / math.sqrt(600))
    assert float(off.abs().max()) < 5  # 24 rows: a false alarm below 2e-5
    # By hand: the first state's first site under the uniform model.
    q = joint.conditional_tables().tables[0][:, 0, 0]
    alone = TargetedPseudoLikelihood()(model, {"x": x[:1], "targets": targets[:1]}, torch.Generator())
    rest = sum(
        float((t * (t * len(t)).log()).sum())
        for t in (q, joint.conditional_tables().tables[1][0, :, 0], joint.conditional_tables().tables[2][0, 0])
    )
    assert float(alone.detach()) == pytest.approx(rest, rel=1e-12)


@pytest.mark.statistical
def test_compatibility_metropolis_correction_has_the_distilled_joint_as_its_law() -> None:
    """Chains start from the joint; after 3 sweeps a chi-square test of independent chains: false alarm 1e-6.

    The same number of uncorrected sweeps (wrong) is rejected.
    """
    tables = random_tables(2, 3, 2, seed=3)
    model = free(tables.space)
    with torch.no_grad():
        model.network.energies += torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # type: ignore[operator]
    law = model.table().p.flatten()
    num_chains = 20_000
    start = tables.space.states()[torch.multinomial(law, num_chains, True, generator=torch.Generator().manual_seed(2))]

    def p_value(sampler: GibbsSampler | MetropolisSampler) -> float:
        result = sampler.run(chains=num_chains, draws=1, warmup=2, x=start, generator=5)
        last = result.draws[-1].long()
        state = (last * torch.tensor([6, 2, 1])).sum(-1)
        counts = torch.bincount(state, minlength=12).double()
        return float(stats.chisquare(counts.numpy(), (num_chains * law).numpy()).pvalue)

    scan = scans.systematic()
    assert p_value(MetropolisSampler(tables, model.energy, scan=scan)) > 1e-6
    assert p_value(GibbsSampler(model, scan=scan)) > 1e-6  # the joint's own conditionals
    assert p_value(GibbsSampler(tables, scan=scan)) < 1e-6


# Ensembles of orders.


def incompatible() -> Planted:
    return Planted(JointTable.random((2,) * 4, generator=torch.Generator().manual_seed(0)), 0.3)


def test_compatibility_order_ensemble_is_a_joint() -> None:
    model = incompatible()
    orders = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
    ensemble = OrderEnsemble(model, orders)
    states = model.space.states()
    log_p = ensemble.log_prob(states)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    each = torch.stack([any_order.log_prob(model, states, orders=order) for order in orders])
    torch.testing.assert_close(log_p, each.logsumexp(0) - math.log(3))
    assert (log_p >= each.mean(0) - 1e-12).all()
    assert float((each[0].exp() - each[1].exp()).abs().sum()) > 0.05  # the orders do disagree
    table = ensemble.table()
    torch.testing.assert_close(table.p.flatten(), log_p.exp())
    # Its complete conditionals are those of that joint, and have no gap.
    for site in range(4):
        query = Query.complete(site, num_sites=4)
        torch.testing.assert_close(ensemble.log_prob(states, query), table.log_prob(states, query))
    assert rectangles(ensemble, states, rounding=Rounding(1e-14)).effect().uniform().value < 1e-12
    assert rectangles(model, states, rounding=Rounding(1e-14)).effect().uniform().value > 0.3
    single = OrderEnsemble(model, orders[1])
    torch.testing.assert_close(single.log_prob(states), each[1])


@pytest.mark.statistical
def test_compatibility_order_ensemble_draws_what_it_says() -> None:
    """Chi-square over 16 states, 20 000 draws: false alarm 1e-6. Draws of one of its orders (wrong) are rejected."""
    model = incompatible()
    ensemble = OrderEnsemble(model, torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    expected = 20_000 * ensemble.table().p.flatten()

    def p_value(source: OrderEnsemble) -> float:
        x = source.draw(20_000, generator=7)
        state = (x * torch.tensor([8, 4, 2, 1])).sum(-1)
        return float(stats.chisquare(torch.bincount(state, minlength=16).numpy(), expected.numpy()).pvalue)

    assert p_value(ensemble) > 1e-6
    assert p_value(OrderEnsemble(model, ensemble.orders[0])) < 1e-6


def test_compatibility_metropolis_correction_towards_an_ensemble_is_invariant() -> None:
    """Exactly: one step of each site, by summing over proposals. Acceptance is symmetric: detailed balance."""
    model = incompatible()
    ensemble = OrderEnsemble.random(model, 3, generator=0)
    law, states = ensemble.table().p.flatten(), model.space.states()
    energy = ensemble.energy(states)
    for site in range(4):
        query = Query.complete(site, num_sites=4)
        log_q = model.marginals(states, query).log_probs[:, site]  # [S, 2]
        flip = states.clone()
        flip[:, site] = 1 - flip[:, site]
        to = (flip * torch.tensor([8, 4, 2, 1])).sum(-1)
        forth = log_q.gather(1, flip[:, site, None])[:, 0]
        back = log_q.gather(1, states[:, site, None])[:, 0]
        move = (forth + (energy - energy[to] + back - forth).clamp_max(0.0)).exp()
        flow = law * move
        torch.testing.assert_close(flow, flow[to], rtol=1e-12, atol=0)


def test_compatibility_order_ensemble_of_real_sites() -> None:
    joint = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
    ensemble = OrderEnsemble(joint, torch.tensor([[0, 1], [1, 0]]))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ensemble.log_prob(x), joint.log_prob(x, Query.of([0, 1], num_sites=2)))
    assert ensemble.draw(3, generator=0).shape == (3, 2)
    with pytest.raises(UnsupportedQueryError, match="not finite"):
        ensemble.log_prob(x, Query.complete(0, num_sites=2))


# The random scan.


def test_compatibility_random_scan_never_has_a_worse_unary_loss() -> None:
    """At every state, of 100 random families; a fixed order has no such bound, and breaks it."""
    broken = 0
    for seed in range(100):
        tables = random_tables(*((2, 2, 2) if seed % 2 else (3, 2, 2)), seed=seed)
        repaired = random_scan(tables)
        assert (repaired.gains >= 0).all()
        states = tables.space.states()
        direct = pseudo_log_likelihood(repaired.joint, states) - pseudo_log_likelihood(tables, states)
        torch.testing.assert_close(repaired.gains.flatten(), direct.clamp_min(0.0), rtol=0, atol=1e-9)
        assert float(direct.min()) > -1e-9
        fixed = JointTable(stationary(tables, (0, 1, 2)))
        broken += float((pseudo_log_likelihood(fixed, states) - pseudo_log_likelihood(tables, states)).min()) < -1e-3
        # Under its own law the gain is the network's whole excess risk, which the certificate bounds from below.
        if seed < 10:
            assert repaired.gain() >= closest_joint(tables, kind="I").objective - 1e-9
    assert broken > 50


def test_compatibility_random_scan_of_a_joint_changes_nothing() -> None:
    joint = JointTable.random((2, 3), generator=torch.Generator().manual_seed(0))
    repaired = random_scan(joint.conditional_tables())
    torch.testing.assert_close(repaired.joint.p, joint.p)
    assert float(repaired.gains.max()) < 1e-10
    with pytest.raises(FlexgenError, match="distribution: has shape"):
        repaired.gain(torch.ones(3))


# What is refused.


def test_compatibility_joints_say_what_they_cannot_answer() -> None:
    model = free(Space.categorical([2, 2, 2]))
    x = model.space.states()
    with pytest.raises(UnsupportedQueryError, match=r"asks for .* in row 0, which takes sums over states"):
        model.log_prob(x, Query.of([0, 1], [2], num_sites=3))
    with pytest.raises(UnsupportedQueryError, match="normalising constant"):
        EnergyModel(Space.categorical([2] * 17)).table()
    with pytest.raises(SpaceError, match="is not finite"):
        EnergyModel(Space.real(2))
    with pytest.raises(SpaceError, match="use PottsNetwork"):
        TableEnergy(Space.categorical([2] * 21))
    with pytest.raises(DataError, match=r"x: has shape .* or missing entries"):
        distil(model, torch.full((2, 3), torch.nan))
    with pytest.raises(FlexgenError, match="no permutation of the 3 sites"):
        OrderEnsemble(model, torch.tensor([0, 1, 1]))


def test_compatibility_energy_answers_complete_queries_as_its_table() -> None:
    space = Space.categorical([2, 3, 2])
    model = EnergyModel(space, PottsNetwork(space, width=8, depth=1, seed=3)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table, states = model.table(), space.states()
    torch.testing.assert_close(model.log_prob(states).exp().detach(), table.p.flatten())
    for site in range(3):
        query = Query.complete(site, num_sites=3)
        torch.testing.assert_close(model.log_prob(states, query).detach(), table.log_prob(states, query))
        draws = model.sample(states, query, generator=torch.Generator().manual_seed(0))
        assert torch.equal(torch.where(query.target, 0, draws), torch.where(query.target, 0, states))
