"""The conditionals that `tests/test_conditional_laws.py` holds to the shared contract.

To add one, append a `Case` to `CASES`: a name, a function that builds it (small, seeded), and what it can answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flexgen import exact
from flexgen.conditional import CategoricalMarginals, Conditional, MarginalConditional
from flexgen.query import Query
from flexgen.space import Site, Space
from flexgen.tables import TableConditional, TableSettings, fit_table
from samplers.laws import power_cardinality

__all__ = ["CASES", "Case", "RememberingNetwork", "generator", "random_queries", "random_x"]


@dataclass(frozen=True)
class Case:
    """A conditional under test.

    Args:
        name: the test's id.
        make: builds it, the same every time.
        queries: ``"any"``, or ``"complete"`` for one target with everything else observed.
        chain: ``"any"`` if the chain rule holds in every order (a joint exists), ``"stated"`` if `log_prob` takes
            ``order=`` and agrees with its own single-target answers in that order.
        tolerance: nats by which two evaluations of one question may differ, from the arithmetic's precision.
        half_width: real sites: the quadrature runs from -half_width to half_width, which must hold all mass; integer
            sites: so does the enumeration.
    """

    name: str
    make: Callable[[], Conditional]
    queries: Literal["any", "complete"] = "any"
    chain: Literal["any", "stated"] = "any"
    tolerance: float = 1e-9
    half_width: float = 12.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_x(case: Case, num_rows: int, *, seed: int = 1) -> Tensor:
    """Rows anywhere in the space, float64 ``[B, N]``."""
    space, source = case.make().space, generator(seed)
    columns = [
        torch.randint(site.num_categories, (num_rows,), generator=source).double()
        if site.kind == "categorical"
        else torch.randn(num_rows, generator=source, dtype=torch.float64)
        for site in space.sites
    ]
    columns = [c.round() if site.kind == "integer" else c for c, site in zip(columns, space.sites, strict=True)]
    return torch.stack(columns, dim=-1)  # N of [B] -> [B, N]


def random_queries(case: Case, num_rows: int, *, seed: int = 2, most_targets: int | None = None) -> Query:
    """A query a row that this case can answer, with one target at least; sites in neither set where it can."""
    num_sites, source = case.make().space.num_sites, generator(seed)
    ranks = torch.rand(num_rows, num_sites, generator=source).argsort(-1)
    if case.queries == "complete":
        return Query(ranks == 0, ranks != 0)
    most = num_sites if most_targets is None else most_targets
    num_targets = torch.randint(1, most + 1, (num_rows, 1), generator=source)
    target = ranks < num_targets
    return Query(target, ~target & (torch.rand(num_rows, num_sites, generator=source) < 0.6))


def _gaussian() -> exact.Gaussian:
    root = torch.randn(4, 8, generator=generator(3), dtype=torch.float64)
    return exact.Gaussian(torch.tensor([0.5, -1.0, 0.0, 1.0]), root @ root.T / 8)


def _mixture() -> exact.GaussianMixture:
    root = torch.randn(3, 4, 8, generator=generator(4), dtype=torch.float64)
    means = 1.5 * torch.randn(3, 4, generator=generator(5), dtype=torch.float64)
    return exact.GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, root @ root.mT / 8)


def _tables() -> exact.ConditionalTables:
    """Positive and incompatible: each table is normalised noise."""
    noise = torch.rand(4, 2, 3, 2, 2, generator=generator(6), dtype=torch.float64) + 0.1
    return exact.ConditionalTables([noise[site] / noise[site].sum(site, keepdim=True) for site in range(4)])


@functools.cache
def _table(seed: int = 8) -> TableConditional:
    """A real, an integer and two categorical columns; a Gaussian, class mixtures and one network, pooled."""
    source = generator(seed)
    z = torch.randn(150, 3, generator=source, dtype=torch.float64).cumsum(1) / torch.tensor([1.0, 2.0, 3.0])
    noise = torch.randn(150, 2, generator=source, dtype=torch.float64)
    kind, flag = (z[:, 1] + noise[:, 0] > 0).double() + (z[:, 2] > 0.3), (z[:, 0] > 0.5 * noise[:, 1]).double()
    space = Space((Site("real", name="a"), Site("categorical", 3), Site("integer", name="b"), Site("categorical", 2)))
    x = torch.stack([z[:, 0], kind, (8 * z[:, 2]).round(), flag], dim=1)
    settings = TableSettings(
        num_networks=1, num_steps=12, small_width=16, small_depth=1, num_components=3, restarts=1, classes=(2,)
    )
    conditional, _ = fit_table(x, space, power_cardinality(), settings, seed=0, progress=False)
    assert [column.kind for column in conditional.maps.columns] == ["real", "categorical", "lattice", "categorical"]
    return conditional


class RememberingNetwork(nn.Module, MarginalConditional):
    """p(x_i | x_C) from a sum of one vector for each observed site, which a decoder adds to as sites become known.

    The vectors are whole numbers, so that the sum is exact in any order.

    Attributes:
        num_embedded: rows times sites that were looked up, the network's work.
    """

    def __init__(self, num_sites: int = 4, num_categories: int = 3, width: int = 8) -> None:
        super().__init__()
        self.space = Space.categorical([num_categories] * num_sites)
        vectors = torch.randint(-3, 4, (num_sites, num_categories, width), generator=generator(9))
        head = torch.randn(num_sites, num_categories, width, generator=generator(10), dtype=torch.float64)
        self.vectors, self.head = nn.Parameter(vectors.double()), nn.Parameter(head)
        self.num_embedded = 0

    def embed(self, sites: Tensor, values: Tensor, given: Tensor) -> Tensor:
        """The sum of the vectors of sites ``[B, S]`` that are given, ``[B, width]``."""
        self.num_embedded += int(given.sum())
        return torch.where(given[..., None], self.vectors[sites, torch.where(given, values, 0).long()], 0.0).sum(1)

    @torch.no_grad()
    def answer(self, known: Tensor, sites: Tensor | None) -> CategoricalMarginals:
        named = torch.arange(self.space.num_sites) if sites is None else sites
        logits = (self.head[named.expand(len(known), -1)] * torch.tanh(0.2 * known)[:, None, None]).sum(-1)
        return CategoricalMarginals(logits.log_softmax(-1))

    @torch.no_grad()
    def known(self, x: Tensor, query: Query) -> Tensor:
        observed = query.expand(len(x)).observed
        return self.embed(torch.arange(self.space.num_sites).expand(len(x), -1), x, observed)

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> CategoricalMarginals:
        return self.answer(self.known(x, query), sites)

    def features(self, x: Tensor, query: Query) -> Tensor:
        return torch.tanh(0.2 * self.known(x, query))[:, None] * self.head.detach().mean(1)

    def start(self, x: Tensor, query: Query) -> RememberingDecoder:
        return RememberingDecoder(self, self.known(x, query))


class RememberingDecoder:
    def __init__(self, network: RememberingNetwork, known: Tensor) -> None:
        self.network, self.known = network, known

    def marginals(self, sites: Tensor) -> CategoricalMarginals:
        return self.network.answer(self.known, sites)

    @torch.no_grad()
    def append(self, sites: Tensor, values: Tensor, *, given: Tensor | None = None) -> None:
        sites = sites.expand(len(self.known), -1)
        given = torch.ones_like(sites, dtype=torch.bool) if given is None else given
        self.known = self.known + self.network.embed(sites, values, given)


def _masked_language_model() -> Conditional:
    from tests.adapters.tiny_mlm import tiny  # loads transformers, which takes seconds

    return tiny(4)


CASES = [
    Case("joint-table", lambda: exact.JointTable.random((2, 3, 2, 2), generator=generator(7))),
    Case("conditional-tables", _tables, queries="complete"),
    Case("gaussian", _gaussian),
    Case("gaussian-mixture", _mixture),
    # The network computes in float32.
    Case("table", _table, chain="stated", tolerance=1e-5, half_width=40.0),
    Case("remembering-network", RememberingNetwork, chain="stated"),
    Case("masked-language-model", _masked_language_model, chain="stated"),
]
