"""Exact kernels: invariance of joints under every scan, and the laws of incompatible conditionals."""

from __future__ import annotations

import itertools

import pytest
import torch

from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.exact import ConditionalTables, JointTable, kernels
from flexgen.query import Query
from tests.conditionals import generator


def joint(shape: tuple[int, ...], seed: int = 0) -> JointTable:
    return JointTable.random(shape, generator=generator(seed))


def incompatible() -> ConditionalTables:
    noise = torch.rand(3, 2, 3, 2, generator=generator(1), dtype=torch.float64) + 0.05
    return ConditionalTables([noise[site] / noise[site].sum(site, keepdim=True) for site in range(3)])


@pytest.mark.parametrize("order", [*itertools.permutations(range(3)), (0, 1, 0, 2), ((0, 2), 1), ((2, 1, 0),)])
def test_a_joint_is_invariant_under_every_scan(order: tuple[int, ...]) -> None:
    law = joint((2, 3, 2))
    kernel, pi = kernels.sweep_kernel(law, order), law.p.flatten()
    assert (kernel.sum(-1) - 1).abs().max() < 1e-14
    assert (pi @ kernel - pi).abs().max() < 1e-12
    assert (kernels.stationary(kernel) - pi).abs().max() < 1e-12


def test_a_joint_is_invariant_under_random_scans() -> None:
    law = joint((2, 3, 2))
    pi = law.p.flatten()
    for kernel in (
        kernels.random_scan_kernel(law),
        law.conditional_tables().kernel("random"),
        kernels.random_scan_kernel(law, blocks=[(0, 1), 2], weights=[0.3, 0.7]),
    ):
        assert (pi @ kernel - pi).abs().max() < 1e-12
        # Reversible: detailed balance.
        flow = pi[:, None] * kernel
        assert (flow - flow.T).abs().max() < 1e-15


def test_twelve_binary_sites_are_invariant_without_a_kernel() -> None:
    law = joint((2,) * 12)
    tables, source = law.conditional_tables(), generator(2)
    for _ in range(5):
        order = torch.randperm(12, generator=source).tolist()
        assert (kernels.sweep(law.p, tables, order) - law.p).abs().max() < 1e-12


def test_the_kernel_is_what_sampling_does() -> None:
    """Row s of a site kernel holds the complete conditional's probabilities, state by state."""
    tables = incompatible()
    states = tables.space.states()
    for site in range(3):
        expected = torch.zeros(12, 12, dtype=torch.float64)
        query = Query.complete(site, num_sites=3)
        log_prob = tables.log_prob(states, query)
        for now, then in itertools.product(range(12), repeat=2):
            others = torch.arange(3) != site
            if torch.equal(states[now][others], states[then][others]):
                expected[now, then] = log_prob[then].exp()
        torch.testing.assert_close(tables.transition_matrix(site), expected, atol=1e-14, rtol=0)


def test_a_sweep_updates_its_first_site_first() -> None:
    tables = incompatible()
    product = tables.transition_matrix(2) @ tables.transition_matrix(0) @ tables.transition_matrix(1)
    torch.testing.assert_close(tables.kernel((2, 0, 1)), product, atol=1e-14, rtol=0)


def test_pseudo_gibbs_laws_depend_on_the_scan() -> None:
    tables = incompatible()
    laws = {}
    for order in itertools.permutations(range(3)):
        kernel = tables.kernel(order)
        pi = kernels.stationary(kernel)
        assert (pi @ kernel - pi).abs().max() < 1e-12
        # Agrees with the limit of repeated sweeps from any start.
        law = torch.full((2, 3, 2), 1 / 12, dtype=torch.float64)
        for _ in range(200):
            law = kernels.sweep(law, tables, order)
        assert (law.flatten() - pi).abs().max() < 1e-12
        laws[order] = pi
    assert (laws[0, 1, 2] - laws[2, 1, 0]).abs().max() > 1e-3
    # Rotating a scan moves the law along by one update, so (1, 2, 0) follows from (0, 1, 2).
    moved = kernels.sweep(laws[0, 1, 2].view(2, 3, 2), tables, [0]).flatten()
    torch.testing.assert_close(moved, laws[1, 2, 0], atol=1e-13, rtol=0)


def test_random_scan_is_the_mixture_of_fixed_scans_for_two_sites_only() -> None:
    noise = torch.rand(2, 3, 2, generator=generator(3), dtype=torch.float64)
    two = ConditionalTables([noise[site] / noise[site].sum(site, keepdim=True) for site in range(2)])
    mixed = (kernels.stationary(two.kernel((0, 1))) + kernels.stationary(two.kernel((1, 0)))) / 2
    torch.testing.assert_close(kernels.stationary(two.kernel("random")), mixed, atol=1e-13, rtol=0)
    three = incompatible()
    scans = list(itertools.permutations(range(3)))
    mixed = torch.stack([kernels.stationary(three.kernel(order)) for order in scans]).mean(0)
    assert (kernels.stationary(three.kernel("random")) - mixed).abs().max() > 1e-4


def test_stationary_law_with_transient_states_and_tiny_entries() -> None:
    transient = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.1, 0.9], [0.0, 0.9, 0.1]])
    assert kernels.stationary(transient.double() / transient.double().sum(-1, keepdim=True))[0] == 0
    rate = 1e-30
    pi = kernels.stationary(torch.tensor([[1 - rate, rate], [0.5, 0.5]], dtype=torch.float64))
    assert float(pi[1]) == pytest.approx(2 * rate, rel=1e-12)


def test_errors() -> None:
    copying = JointTable(torch.tensor([[0.5, 0.0], [0.0, 0.5]])).conditional_tables()
    with pytest.raises(FlexgenError, match="kernel: is reducible: 2 closed classes of states"):
        kernels.stationary(copying.kernel((0, 1)))
    with pytest.raises(FlexgenError, match=r"kernel: is not stochastic \(a row sum is off by 0.1\)"):
        kernels.stationary(torch.tensor([[0.5, 0.6], [0.5, 0.5]], dtype=torch.float64))
    with pytest.raises(FlexgenError, match="have 16384 states, too many for a dense kernel"):
        kernels.site_kernel(joint((2,) * 14), 0)
    with pytest.raises(UnsupportedQueryError, match=r"block: holds sites \[0, 1\]"):
        kernels.site_kernel(incompatible(), (0, 1))
    with pytest.raises(FlexgenError, match=r"block: holds 3. Name distinct sites among 0 to 2"):
        kernels.site_kernel(incompatible(), 3)
    with pytest.raises(
        FlexgenError, match=r"weights: is \(0.5, 0.6, 0.1\), which sums to 1.2. Give probabilities that sum to 1"
    ):
        kernels.random_scan_kernel(incompatible(), weights=[0.5, 0.6, 0.1])
