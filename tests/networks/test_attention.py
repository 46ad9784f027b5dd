"""Attention by every backend that runs here equals softmax written out."""

from __future__ import annotations

import importlib.util
import logging
import math

import pytest
import torch
from torch import Tensor

from flexgen.errors import ConfigError
from flexgen.networks.attention import attend, resolve_backend


def written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhqk,bhkd->bhqd", (scores if bias is None else scores + bias).softmax(-1), v)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("rows_of_bias", [0, 1, 3])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_backends_equal_softmax_written_out(backend: str, rows_of_bias: int) -> None:
    if backend == "flex":
        try:
            resolve_backend("flex", "cpu")
        except ConfigError as error:
            pytest.skip(str(error))
    source = torch.Generator().manual_seed(0)
    q = torch.randn(3, 2, 5, 16, generator=source)
    k, v = torch.randn(2, 3, 2, 7, 16, generator=source)
    bias = None
    if rows_of_bias:
        bias = torch.randn(rows_of_bias, 2, 5, 7, generator=source)
        bias[..., torch.randperm(7, generator=source)[:3]] = -math.inf
    torch.testing.assert_close(attend(q, k, v, bias, backend=backend), written_out(q, k, v, bias), atol=1e-5, rtol=1e-5)


def test_gradients_of_sdpa_reach_the_bias() -> None:
    source = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 4, 8, generator=source)
    first = torch.randn(1, 2, 4, 4, generator=source)
    grads = []
    for form in (lambda b: attend(q, k, v, b), lambda b: written_out(q, k, v, b)):
        bias = first.clone().requires_grad_()
        form(bias).square().sum().backward()
        assert bias.grad is not None
        grads.append(bias.grad)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_auto_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    resolve_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="flexgen.networks.attention"):
        assert resolve_backend("auto", "cpu") == "sdpa"
        assert resolve_backend("auto", "cpu") == "sdpa"
    assert caplog.messages == ["attention by sdpa on cpu"]  # once a process


def test_a_backend_asked_for_by_name_runs_or_says_why_not() -> None:
    text = "attention_backend: is 'xformers', which cannot run on cpu: .*Use 'auto' or 'sdpa'"
    with pytest.raises(ConfigError, match=text) as caught:
        resolve_backend("xformers", "cpu")
    if importlib.util.find_spec("xformers") is None:
        assert "No module named 'xformers'" in str(caught.value)
    with pytest.raises(ConfigError, match="attention_backend: is 'fast'"):
        resolve_backend("fast", "cpu")
