"""Score asymmetry against its closed form, and its errors against the spread of its estimates."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexgen.compatibility.networks.scores import linear_score_asymmetry, score_asymmetry
from flexgen.errors import DataError, FlexgenError
from flexgen.rng import stream
from tests.conditionals import generator

A = torch.randn(6, 6, generator=stream(0, "matrix"), dtype=torch.float64)
ROWS = torch.randn(12, 6, generator=stream(0, "rows"), dtype=torch.float64)


def test_compatibility_linear_score_by_its_traces() -> None:
    expected = float((torch.trace(A @ A.T) - torch.trace(A @ A)) / (2 * torch.trace(A @ A.T)))
    assert linear_score_asymmetry(A) == pytest.approx(expected, abs=1e-12)
    assert linear_score_asymmetry(A + A.T) == pytest.approx(0.0, abs=1e-15)
    assert linear_score_asymmetry(A - A.T) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.statistical
def test_compatibility_probes_estimate_a_linear_score() -> None:
    result = score_asymmetry(lambda x: x @ A.T, ROWS, generator=generator(0), num_probes=64)
    assert abs(result.value - linear_score_asymmetry(A)) < 4 * result.probe_error
    assert result.probe_error < 0.01
    assert result.evaluations == 12 * 64


@pytest.mark.statistical
def test_compatibility_wrong_estimate_from_the_row_sums_is_rejected() -> None:
    """Without random signs (all +1) the answer is that of one direction: far outside the error."""
    ones = torch.ones(6, dtype=torch.float64)
    forward, backward = A @ ones, A.T @ ones
    wrong = float(((forward - backward) ** 2).sum() / (2 * (forward**2 + backward**2).sum()))
    result = score_asymmetry(lambda x: x @ A.T, ROWS, generator=generator(0), num_probes=64)
    assert abs(result.value - wrong) > 8 * result.probe_error


def test_compatibility_the_share_at_each_row_is_that_of_its_jacobian() -> None:
    """s(x) = (A + x_0 B) x has another Jacobian at each row; autograd gives it whole."""

    def score(x: Tensor) -> Tensor:
        return torch.tanh(x @ A.T) * (1 + x[:, :1] ** 2)

    result = score_asymmetry(score, ROWS[:3], generator=generator(0), num_probes=2000)
    jacobians = [torch.autograd.functional.jacobian(score, row[None])[0, :, 0] for row in ROWS[:3]]
    expected = torch.tensor([linear_score_asymmetry(j) for j in jacobians], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(result.per_row, dtype=torch.float64), expected, atol=0.02, rtol=0)
    whole = sum(((j - j.T) ** 2).sum() for j in jacobians) / (4 * sum((j**2).sum() for j in jacobians))
    assert abs(result.value - float(whole)) < 4.5 * result.probe_error


@pytest.mark.statistical
def test_compatibility_errors_are_the_spread_over_probes_and_over_rows() -> None:
    def score(x: Tensor) -> Tensor:
        return torch.tanh(x @ A.T) * (1 + x[:, :1] ** 2)

    num, fixed, fresh, probe_errors, errors = 300, [], [], [], []
    for r in range(num):
        result = score_asymmetry(score, ROWS, generator=generator(r), num_probes=8)
        fixed.append(result.value)
        probe_errors.append(result.probe_error)
        rows = torch.randn(60, 6, generator=stream(r, "fresh"), dtype=torch.float64)
        result = score_asymmetry(score, rows, generator=generator(r), num_probes=4)
        fresh.append(result.value)
        errors.append(result.standard_error)
    # A spread of 300 estimates is known within 4.5 / sqrt(600) = 18 %; ratios add some of their own.
    assert torch.tensor(probe_errors).mean() == pytest.approx(float(torch.tensor(fixed).std()), rel=0.2)
    assert torch.tensor(errors).mean() == pytest.approx(float(torch.tensor(fresh).std()), rel=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compatibility_a_gradient_is_symmetric_up_to_its_floor(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)).to(dtype)

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0]

    result = score_asymmetry(gradient, ROWS.to(dtype), generator=generator(0), num_probes=16)
    assert result.value < 10 * result.floor
    assert result.floor < (1e-13 if dtype == torch.float32 else 1e-30)
    planted = score_asymmetry(lambda x: gradient(x) + 1e-4 * x.flip(1) * torch.arange(6).to(x), ROWS.to(dtype),
                              generator=generator(0), num_probes=16)  # fmt: skip
    assert planted.value > 100 * planted.floor


def test_compatibility_events_and_attention_are_followed() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8, generator=stream(0, "events"))

    def score(x: Tensor) -> Tensor:
        q = layer.in_proj_weight.chunk(3)
        return nn.functional.scaled_dot_product_attention(*(x @ w.T for w in q))

    result = score_asymmetry(score, x, generator=generator(0), num_probes=4)
    assert 0 < result.value < 1
    assert layer.in_proj_weight.grad is None
    assert len(result.per_row) == 2


def test_compatibility_score_result_reads_and_repeats() -> None:
    before = torch.random.get_rng_state()
    first, second = (score_asymmetry(lambda x: x @ A.T, ROWS, generator=generator(3)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.per_row == second.per_row
    assert str(first).startswith(f"score asymmetry {first.value:.3g} ± ")
    assert "12 rows x 8 probes, 96 evaluations" in str(first)
    assert json.loads(json.dumps(first.to_dict()))["value"] == first.value


class Once(torch.autograd.Function):
    """Twice x, which autograd follows once only."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(_: Any, pulled: Tensor) -> Tensor:
        return 2 * pulled


@pytest.mark.parametrize(
    ("score", "x", "text"),
    [
        (lambda x: x, torch.zeros(3), "x: has shape (3,) and dtype torch.float32. Pass real rows [B, *event]."),
        (lambda x: x[:, :1], torch.zeros(3, 2), "score: maps (3, 2) to (3, 1). A score has the shape of x."),
        (lambda x: x.detach(), torch.zeros(3, 2), "score: does not depend on x as far as autograd sees"),
        (lambda _: None, torch.zeros(3, 2), "score: returned None. A score maps a tensor to one of its shape."),
        (lambda x: x, [[0, 1]], "x: has shape (1, 2) and dtype torch.int64. Pass real rows"),
        (lambda x: x, "rows", "x: is 'rows', which holds no numbers"),
        (lambda x: x, torch.full((3, 2), torch.nan), "x: holds a number that is not finite"),
        (
            lambda x: nn.Linear(2, 2)(torch.ones_like(x)),
            torch.zeros(3, 2),
            "score: does not depend on x as far as autograd sees",
        ),
        (Once.apply, torch.zeros(3, 2), "score: cannot be differentiated twice ("),
        (lambda x: x * 0.0, torch.zeros(3, 2), "score: has a Jacobian that is not finite, or zero everywhere"),
    ],
)
def test_compatibility_bad_scores(score: object, x: Tensor, text: str) -> None:
    with pytest.raises(DataError, match=re.escape(text)):
        score_asymmetry(score, x, generator=generator(0))


def test_compatibility_bad_matrix() -> None:
    with pytest.raises(DataError, match=re.escape("matrix: has shape (2, 3). Pass a square matrix that is not zero.")):
        linear_score_asymmetry(torch.ones(2, 3))
    with pytest.raises(DataError, match=re.escape("matrix: is 'a', which holds no numbers")):
        linear_score_asymmetry("a")
    with pytest.raises(DataError, match="matrix: holds a number that is not finite"):
        linear_score_asymmetry(torch.full((2, 2), torch.nan))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"score": 3}, "score: is 3, which cannot be called"),
        ({"generator": None}, "generator: is None. Pass a torch.Generator"),
        ({"generator": "a"}, "generator: is 'a'. Pass a torch.Generator"),
        ({"num_probes": 1}, "num_probes: is 1. Pass at least 2."),
    ],
)
def test_compatibility_options_of_scores_that_cannot_be_used(options: dict[str, Any], text: str) -> None:
    with pytest.raises(FlexgenError, match=re.escape(text)) as error:
        score_asymmetry(**{"score": lambda x: x @ A.T, "x": ROWS, "generator": 0, **options})
    assert type(error.value) is FlexgenError
