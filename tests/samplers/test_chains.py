"""Diagnostics against theory and against ArviZ."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from flexgen.errors import FlexgenError
from samplers import chains


def ar1(rho: float, num_draws: int, num_chains: int, num_sites: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_draws, num_chains, num_sites, generator=generator, dtype=torch.float64)
    for t in range(1, num_draws):
        x[t] = rho * x[t - 1] + (1 - rho**2) ** 0.5 * x[t]
    return x


@pytest.fixture(scope="module")
def arviz() -> object:
    pytest.importorskip("arviz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        return arviz


@pytest.mark.parametrize("shape", [(4, 2), (5, 2), (7, 3), (50, 4), (201, 3), (1000, 4)])
@pytest.mark.parametrize("kind", ["independent", "slow", "antithetic", "categorical", "shifted"])
def test_agrees_with_arviz(arviz: object, shape: tuple[int, int], kind: str) -> None:
    rho = {"slow": 0.9, "antithetic": -0.7}.get(kind, 0.0)
    draws = ar1(rho, *shape, 5)
    if kind == "categorical":
        draws = ((draws > 0.3).long() + (draws > 1)).double()
    if kind == "shifted":
        draws = draws + torch.arange(shape[1])[:, None]
    values = draws.transpose(0, 1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for got, reference in (
            (chains.rhat(draws), lambda x: arviz.rhat(x)),  # type: ignore[attr-defined]
            (chains.ess(draws), lambda x: arviz.ess(x)),  # type: ignore[attr-defined]
            (chains.ess(draws, kind="tail"), lambda x: arviz.ess(x, method="tail")),  # type: ignore[attr-defined]
            (chains.ess(draws, kind="mean"), lambda x: arviz.ess(x, method="mean")),  # type: ignore[attr-defined]
        ):
            expected = np.array([float(reference(values[..., i])) for i in range(values.shape[-1])])
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_ess_of_squares_and_values_of_an_ar1(rho: float) -> None:
    """ESS / n is (1 - rho) / (1 + rho) for values and (1 - rho^2) / (1 + rho^2) for squares, whose lag-1 is rho^2."""
    num_draws, num_chains, num_sites = 2000, 4, 100
    x = ar1(rho, num_draws, num_chains, num_sites)
    for draws, factor in ((x, (1 - rho) / (1 + rho)), (x**2, (1 - rho**2) / (1 + rho**2))):
        size = chains.ess(draws, kind="mean") / (num_draws * num_chains)
        # Mean over independent quantities. Truncation of the sum leaves a bias, of order tau / n at most.
        error = size.std() / num_sites**0.5
        bias = 20 * factor / (num_draws * min(factor, 1.0))
        assert abs(size.mean() - factor) < 5 * error + bias
    wrong = chains.ess(x**2, kind="mean").mean() / (num_draws * num_chains)
    if rho == 0.9:
        assert abs(wrong - (1 - rho) / (1 + rho)) > 0.02


def test_rhat_notices_location_and_scale() -> None:
    x = ar1(0.0, 500, 4, 1)
    assert chains.rhat(x) < 1.01
    assert chains.rhat(x + torch.tensor([0.0, 0, 0, 2])[:, None]) > 1.1
    assert chains.rhat(x * torch.tensor([1.0, 1, 1, 5])[:, None]) > 1.1, "only the folded R-hat sees scale"


def test_constant_quantities() -> None:
    draws = torch.ones(10, 2, 3)
    assert chains.ess(draws).tolist() == [20.0] * 3
    assert chains.rhat(draws).isnan().all()


def test_shapes_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = ar1(0.3, 40, 3, 8)
    whole = chains.ess(draws)
    monkeypatch.setattr(chains, "_CHUNK", 300)
    torch.testing.assert_close(chains.ess(draws), whole)
    assert chains.rhat(draws.view(40, 3, 2, 4)).shape == (2, 4)


def test_errors() -> None:
    with pytest.raises(FlexgenError, match=r"draws: have shape \(3, 2\). Pass \[S, B, ...\]: at least 4 draws"):
        chains.ess(torch.zeros(3, 2))
    with pytest.raises(FlexgenError, match=r"kind: is 'best'. Choose one of 'bulk', 'tail', 'mean'"):
        chains.ess(torch.zeros(5, 2), kind="best")  # type: ignore[arg-type]


def test_to_arviz(arviz: object) -> None:  # noqa: ARG001
    draws = ar1(0.0, 20, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = chains.to_arviz(draws, ["a", "b"])
    np.testing.assert_array_equal(data.posterior["b"].values, draws[..., 1].T.numpy())
