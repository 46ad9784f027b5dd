"""Linear-Gaussian conditionals: verdicts, the law of each scan, and the closest joint."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from flexgen.compatibility import (
    GaussianConditionals,
    check_gaussian,
    closest_gaussian,
    scan_divergence,
    stationary,
    stationary_gaussian,
)
from flexgen.errors import FlexgenError
from flexgen.exact import Gaussian
from tests.compatibility.worked_examples import generator, table

PRECISION = table([[2, -0.6, 0.3], [-0.6, 1.5, 0.4], [0.3, 0.4, 1]])
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
JOINT = Gaussian.from_precision(MEAN, PRECISION)


def disturbed() -> GaussianConditionals:
    """The joint's conditionals, but x_0 leans on x_1 by 0.55 instead of 0.3."""
    whole = GaussianConditionals.of_joint(JOINT)
    coefficients = whole.coefficients.clone()
    coefficients[0, 1] = 0.55
    return GaussianConditionals(coefficients, whole.variances, names=["a", "b", "c"])


def test_a_joint_comes_back() -> None:
    conditionals = GaussianConditionals.of_joint(JOINT)
    torch.testing.assert_close(conditionals.coefficients[0], torch.tensor([0, 0.3, -0.15], dtype=torch.float64))
    found = check_gaussian(conditionals)
    assert (found.verdict, found.unique, found.violation, found.worst_pair) == ("compatible", True, None, None)
    assert found.joint is not None
    torch.testing.assert_close(found.joint.mean, MEAN, atol=1e-13, rtol=0)
    torch.testing.assert_close(found.joint.covariance, JOINT.covariance, atol=1e-13, rtol=0)
    assert found.asymmetry < 1e-15
    scans = ["random", (2, 0, 1, 2), {(0, 1, 2): 0.25, (1, 0, 2): 0.75}]
    for scan in scans:
        law = stationary_gaussian(conditionals, scan)  # type: ignore[arg-type]
        torch.testing.assert_close(law.covariance, JOINT.covariance, atol=1e-12, rtol=0)
        torch.testing.assert_close(law.mean, MEAN, atol=1e-12, rtol=0)


def test_an_asymmetric_pair_is_named() -> None:
    found = check_gaussian(disturbed())
    assert (found.verdict, found.joint, found.worst_pair) == ("incompatible", None, (0, 1))
    assert found.asymmetry == pytest.approx(0.347524023428458, abs=1e-12)
    assert found.pair_gap == pytest.approx(0.5 / math.sqrt(2 * 1.5), abs=1e-12)
    assert found.violation == ("a depends on b by b/s² = 1.1, but b on a by 0.6; a joint has one number for both.")


def test_symmetric_but_improper() -> None:
    """Besag's condition holds, but the function that has these conditionals cannot be normalised."""
    coefficients = table([[0, 0.9, 0.9], [0.9, 0, 0.9], [0.9, 0.9, 0]])
    found = check_gaussian(GaussianConditionals(coefficients, torch.ones(3)))
    assert (found.verdict, found.pair_gap, found.worst_pair) == ("incompatible", 0, None)
    assert found.smallest_eigenvalue == pytest.approx(-0.8, abs=1e-12)
    assert found.violation is not None
    assert "not positive definite" in found.violation
    with pytest.raises(FlexgenError, match="conditionals: diverge under this scan"):
        stationary_gaussian(GaussianConditionals(coefficients, torch.ones(3)), (0, 1, 2))
    with pytest.raises(FlexgenError, match="conditionals: diverge under this scan: no stationary covariance"):
        stationary_gaussian(GaussianConditionals(coefficients, torch.ones(3)), "random")


def test_laws_of_all_orders() -> None:
    """Figures of another program."""
    expected = {
        (0, 1, 2): [0.9331751979, 0.5105764963, -0.4841831579, 1.0232595228, -0.562476758, 1.3702456506],
        (0, 2, 1): [0.9424673482, 0.52254997, -0.5458613651, 1.0340464223, -0.5938491288, 1.4081421853],
        (1, 0, 2): [0.9424673482, 0.6578029016, -0.5458613651, 1.0340464223, -0.6109594394, 1.4081421853],
        (1, 2, 0): [0.9331751979, 0.6471642512, -0.5148990645, 1.0232595228, -0.562476758, 1.3702456506],
        (2, 0, 1): [0.9331751979, 0.5105764963, -0.5148990645, 1.0232595228, -0.571358466, 1.3702456506],
        (2, 1, 0): [0.9424673482, 0.6578029016, -0.5378383486, 1.0340464223, -0.5938491288, 1.4081421853],
    }
    upper = torch.triu_indices(3, 3)
    laws = []
    for order, entries in expected.items():
        law = stationary_gaussian(disturbed(), order)
        assert law.is_normal
        torch.testing.assert_close(
            law.covariance[upper[0], upper[1]], torch.tensor(entries, dtype=torch.float64), atol=1e-9, rtol=0
        )
        laws.append(law.covariance)
    apart = max(float((a - b).abs().max()) for a, b in itertools.combinations(laws, 2))
    assert apart == pytest.approx(0.1472264052546126, abs=1e-12)


def updated(covariance: Tensor, conditionals: GaussianConditionals, site: int) -> Tensor:
    """A covariance after one update, from the definition."""
    move = torch.eye(conditionals.num_sites, dtype=torch.float64)
    move[site] = conditionals.coefficients[site]
    out: Tensor = move @ covariance @ move.T
    out[site, site] += conditionals.variances[site]
    return out


@pytest.mark.parametrize("size", [3, 40])
def test_random_scans_and_mixtures_are_fixed_points(size: int) -> None:
    root = torch.randn(size, 3 * size, generator=generator(size), dtype=torch.float64)
    whole = GaussianConditionals.of_joint(Gaussian.from_precision(torch.zeros(size), root @ root.T / (3 * size)))
    noise = torch.randn(size, size, generator=generator(1), dtype=torch.float64) * 0.3 / size
    conditionals = GaussianConditionals(whole.coefficients + noise.fill_diagonal_(0), whole.variances)
    assert check_gaussian(conditionals).verdict == "incompatible"
    law = stationary_gaussian(conditionals)
    assert not law.is_normal
    moved = sum(updated(law.covariance, conditionals, site) for site in range(size)) / size
    torch.testing.assert_close(moved, law.covariance, atol=1e-11, rtol=0)
    orders = {tuple(range(size)): 0.5, tuple(range(size))[::-1]: 0.5}
    law = stationary_gaussian(conditionals, orders)
    total = torch.zeros(size, size, dtype=torch.float64)
    for order, weight in orders.items():
        one = law.covariance
        for site in order:
            one = updated(one, conditionals, site)
        total += weight * one
    torch.testing.assert_close(total, law.covariance, atol=1e-11, rtol=0)


def excess(covariance: Tensor, conditionals: GaussianConditionals) -> float:
    """Σ_i E KL(r_i || q_i) of a normal law with the conditionals' mean, nats."""
    precision = covariance.inverse()
    total = 0.0
    for site in range(conditionals.num_sites):
        regression = -conditionals.coefficients[site].clone()
        regression[site] = 1.0
        error = float(regression @ covariance @ regression)
        stated, own = float(conditionals.variances[site]), 1 / float(precision[site, site])
        total += 0.5 * (math.log(stated / own) - 1 + error / stated)
    return total


def test_the_closest_joint() -> None:
    conditionals = disturbed()
    found = closest_gaussian(conditionals)
    assert found.residual < 1e-12
    assert found.objective == pytest.approx(excess(found.joint.covariance, conditionals), abs=1e-12)

    def loss(entries: np.ndarray) -> float:
        root = torch.zeros(3, 3, dtype=torch.float64)
        root[tuple(torch.tril_indices(3, 3))] = torch.from_numpy(entries)
        return excess(root @ root.T, conditionals)

    start = torch.linalg.cholesky(JOINT.covariance)[tuple(torch.tril_indices(3, 3))].numpy()
    peer = minimize(loss, start, method="BFGS", options={"gtol": 1e-8})
    assert found.objective <= peer.fun + 1e-12
    assert found.objective == pytest.approx(peer.fun, abs=1e-9)
    for seed in range(50):  # the certificate: no law has less
        root = torch.randn(3, 3, generator=generator(seed), dtype=torch.float64)
        law = 0.05 * root @ root.T + 0.95 * found.joint.covariance
        assert excess(law, conditionals) > found.objective - 1e-12


def test_the_closest_joint_of_compatible_conditionals_is_theirs() -> None:
    found = closest_gaussian(GaussianConditionals.of_joint(JOINT))
    torch.testing.assert_close(found.joint.covariance, JOINT.covariance, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.joint.mean, MEAN, atol=1e-12, rtol=0)
    assert found.objective < 1e-14


@pytest.mark.parametrize("size", [2, 10, 50])
def test_the_closest_joint_of_wild_conditionals(size: int) -> None:
    """Far from any joint, and no scan need converge; the projection exists nevertheless."""
    coefficients = torch.randn(size, size, generator=generator(size), dtype=torch.float64).fill_diagonal_(0)
    variances = torch.rand(size, generator=generator(0), dtype=torch.float64) + 0.1
    found = closest_gaussian(GaussianConditionals(coefficients, variances))
    assert found.residual < 1e-8
    assert found.objective > 1e-3


def test_errors() -> None:
    eye = torch.eye(2)
    with pytest.raises(FlexgenError, match="coefficients: are not zero on the diagonal"):
        GaussianConditionals(eye, torch.ones(2))
    with pytest.raises(FlexgenError, match=r"variances: hold -1.0\. Variances are positive"):
        GaussianConditionals(torch.zeros(2, 2), torch.tensor([1.0, -1.0]))
    with pytest.raises(FlexgenError, match=r"variances: has shape \(2,\) or is not finite"):
        GaussianConditionals(torch.zeros(3, 3), torch.ones(2))
    two = GaussianConditionals(1 - eye, torch.ones(2))
    with pytest.raises(FlexgenError, match=r"scan: is \(0,\)\. Update each of the sites 0 to 1"):
        stationary_gaussian(two, (0,))
    with pytest.raises(FlexgenError, match="coefficients: leave the mean undetermined"):
        closest_gaussian(two)


def test_divergence_between_scans() -> None:
    """Against torch's KL of the two normal laws."""
    conditionals = disturbed()
    found = scan_divergence(conditionals, ("a", "b", "c"), (2, 1, 0))
    one, two = (torch.distributions.MultivariateNormal(law.mean, law.covariance) for law in (found.first, found.second))
    assert found.kl == pytest.approx(float(torch.distributions.kl_divergence(one, two)), rel=1e-9)
    assert found.kl_reverse == pytest.approx(float(torch.distributions.kl_divergence(two, one)), rel=1e-9)
    assert found.kl > 1e-3
    assert repr(found).startswith(f"KL {found.kl:.6g} nats")
    assert scan_divergence(GaussianConditionals.of_joint(JOINT), (0, 1, 2), (2, 1, 0)).kl < 1e-20
    with pytest.raises(FlexgenError, match=r"second: is a scan drawn at random.*stationary_gaussian"):
        scan_divergence(conditionals, (0, 1, 2), "random")
    with pytest.raises(FlexgenError, match=r"tables: is a GaussianConditionals.*: stationary_gaussian"):
        stationary(conditionals, "random")  # type: ignore[arg-type]
