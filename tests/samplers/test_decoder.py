"""Decoders with a memory do less work than evaluations do, for the same draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flexgen import exact
from flexgen.conditional import HasDecoder
from flexgen.query import Query
from samplers import any_order, parallel
from tests.conditionals import RememberingNetwork, generator
from tests.test_conditional_laws import Forgetful, ForgetfulNetwork

NUM_SITES = 12
WHOLE = Query.of(range(NUM_SITES), num_sites=NUM_SITES)


class Entries(TorchDispatchMode):
    """Counts the entries of all tensors that are computed."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out


def gaussian() -> exact.Gaussian:
    root = torch.randn(NUM_SITES, 30, generator=generator(0), dtype=torch.float64)
    return exact.Gaussian(torch.arange(NUM_SITES).double(), root @ root.T / 30)


def table() -> exact.JointTable:
    return exact.JointTable.random((2,) * NUM_SITES, generator=generator(1))


DECODES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "any order": lambda m, x: any_order.sample(m, x, WHOLE, generator=0),
    "one order": lambda m, x: any_order.sample(m, x, WHOLE, order=torch.arange(NUM_SITES).flip(0), generator=0),
    "log_prob": lambda m, x: any_order.log_prob(m, x, orders=2, generator=0),
    "parallel": lambda m, x: parallel.sample(m, x, WHOLE, num_steps=6, generator=0),
}


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("make", [gaussian, table])
def test_exact_conditionals_compute_less(make: Callable[[], Any], decode: str) -> None:
    model, x = make(), torch.zeros(32, NUM_SITES, dtype=torch.float64)
    found, work = [], []
    for one in (model, Forgetful(model)):
        with Entries() as entries:
            found.append(DECODES[decode](one, x))
        work.append(entries.total)
    torch.testing.assert_close(*found, atol=1e-9, rtol=1e-9)
    assert work[0] < work[1]


@pytest.mark.parametrize("decode", DECODES)
def test_a_network_embeds_every_site_once(decode: str) -> None:
    model, x = RememberingNetwork(NUM_SITES), torch.zeros(32, NUM_SITES, dtype=torch.int64)
    assert isinstance(model, HasDecoder)
    forgetful = ForgetfulNetwork(model)
    with_memory = DECODES[decode](model, x)
    embedded, model.num_embedded = model.num_embedded, 0
    without = DECODES[decode](forgetful, x)
    assert torch.equal(with_memory, without)  # whole numbers are added: bit for bit
    num_decodes = 2 if decode == "log_prob" else 1
    assert embedded <= 32 * NUM_SITES * num_decodes  # each site once
    assert model.num_embedded >= 2 * embedded


def test_a_gaussian_decoder_stays_exact_over_many_sites() -> None:
    """Close to singular: the last variances are 1e-6 of the first."""
    num_sites = 60
    distance = (torch.arange(num_sites)[:, None] - torch.arange(num_sites)).abs().double()
    law = exact.Gaussian(torch.zeros(num_sites), torch.exp(-distance / 20) + 1e-6 * torch.eye(num_sites))
    whole = Query.of(range(num_sites), num_sites=num_sites)
    x = law.sample(torch.zeros(8, num_sites).double(), whole, generator=generator(2))
    orders = torch.rand(3, 8, num_sites, generator=generator(3)).argsort(-1)
    # Each of 60 terms carries a few roundings, magnified by the condition number of at most 2e6.
    torch.testing.assert_close(
        any_order.log_prob(law, x, orders=orders),
        law.log_prob(x, whole),
        atol=60 * 2e6 * 8 * 2.2e-16,
        rtol=0,
    )
