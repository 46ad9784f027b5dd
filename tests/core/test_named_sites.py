"""Marginals of named sites: who is asked for them, and that conditionals which know nothing of them go on working."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flexgen import exact, rng
from flexgen.conditional import (
    BernoulliMarginals,
    CategoricalMarginals,
    MarginalConditional,
    SelectedMarginals,
    marginals_at,
    put_at,
    take_at,
    takes_sites,
    target_sites,
)
from flexgen.errors import FlexgenError
from flexgen.laws import MaskDraw
from flexgen.query import Query
from flexgen.space import Space
from flexgen.training import masked_likelihood
from samplers import GibbsSampler, any_order, parallel, scans


class Counting(MarginalConditional):
    """Independent sites, each with its own probabilities; counts the sites that it computed."""

    def __init__(self, num_sites: int = 6, num_categories: int = 3) -> None:
        self.space = Space.categorical([num_categories] * num_sites)
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(num_sites, num_categories, generator=generator, dtype=torch.float64)
        self.computed = 0

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> CategoricalMarginals:  # noqa: ARG002
        named = torch.arange(self.space.num_sites) if sites is None else sites
        named = named.expand(len(x), -1)
        self.computed += named.numel()
        return CategoricalMarginals(self.logits.log_softmax(-1)[named])


class Plain(Counting):
    """The same, of before sites could be named."""

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:  # type: ignore[override]
        return super().marginals(x, query)


def rows(num: int = 8) -> Tensor:
    return torch.randint(3, (num, 6), generator=torch.Generator().manual_seed(1))


everything = Query(torch.ones(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool))


def test_who_takes_sites() -> None:
    assert takes_sites(Counting())
    assert not takes_sites(Plain())
    assert takes_sites(exact.JointTable.random((2, 2), generator=torch.Generator()))


def test_the_old_signature_answers_named_sites() -> None:
    new, old, x = Counting(), Plain(), rows()
    sites = torch.tensor([4, 1])
    by_row = torch.tensor([[5], [0]] * 4)
    for named in (sites, by_row):
        assert torch.equal(
            marginals_at(old, x, everything, named).log_prob(take_at(x, named)),
            marginals_at(new, x, everything, named).log_prob(take_at(x, named)),
        )
        found = old.marginals(x, everything, sites=named)  # the base class adds the argument
        assert torch.equal(found.mode(), new.marginals(x, everything, sites=named).mode())


@pytest.mark.parametrize(
    ("ask", "computed"),
    [
        (lambda c, x: GibbsSampler(c, scan=scans.random()).run(x=x, draws=2, generator=0), 8 * 6 * 2),
        (lambda c, x: GibbsSampler(c, scan=scans.systematic()).run(x=x, draws=2, generator=0), 8 * 6 * 2),
        (lambda c, x: any_order.log_prob(c, x, orders=2, generator=0), 8 * 6 * 2),
        (lambda c, x: any_order.sample(c, x, everything, generator=0), 8 * 6),
        (lambda c, x: c.log_prob(x, everything), 8 * 6),
        (lambda c, x: c.sample(x, everything, generator=torch.Generator()), 8 * 6),
        # Half of the targets are left for the second of two steps.
        (
            lambda c, x: parallel.sample(c, x, everything, num_steps=2, noise_schedule="linear", generator=0),
            8 * (6 + 3),
        ),
        (lambda c, x: masked_likelihood(c, x, MaskDraw(Query.of([3], [0], num_sites=6), torch.ones(8))), 8),
    ],
    ids=[
        "random scan",
        "systematic scan",
        "log_prob",
        "any order",
        "chain log_prob",
        "chain sample",
        "parallel",
        "loss",
    ],
)
def test_only_what_is_used_is_computed(ask, computed: int) -> None:  # type: ignore[no-untyped-def]
    conditional = Counting()
    ask(conditional, rows())
    assert conditional.computed == computed


def test_gibbs_draws_do_not_depend_on_the_signature() -> None:
    def draws(conditional: MarginalConditional, scan: scans.Scan) -> Tensor:
        found = GibbsSampler(conditional, scan=scan).run(x=rows(), draws=5, generator=0).draws
        assert found is not None
        return found

    for scan in (scans.random(), scans.systematic(), scans.random_permutation()):
        assert torch.equal(draws(Counting(), scan), draws(Plain(), scan))


def test_target_sites() -> None:
    target = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    sites, is_target = target_sites(Query(target, torch.zeros_like(target)))
    assert [row[keep].tolist() for row, keep in zip(sites, is_target, strict=True)] == [[0, 2], [1], []]
    sites, is_target = target_sites(Query(target[0], torch.zeros(3, dtype=torch.bool)))
    assert sites.tolist() == [0, 2]
    assert bool(is_target.all())


def test_put_at_undoes_take_at() -> None:
    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    for sites in (torch.tensor([3, 0]), torch.tensor([[3, 0], [1, 2], [4, 0], [2, 3]])):
        new = torch.full((4, 2, 2), 7.0)
        out = put_at(x, sites, new)
        assert torch.equal(take_at(out, sites), new)
        assert int((out == 7.0).sum()) == new.numel()


def test_marginals_without_at_are_selected() -> None:
    class Forced(CategoricalMarginals):
        def sample(self, *, generator: rng.Randomness) -> Tensor:  # noqa: ARG002
            return torch.full(self.shape, 2)

    class Own(Counting):
        def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:  # type: ignore[override]
            return Forced(super().marginals(x, query).log_probs)

    found = marginals_at(Own(), rows(), everything, torch.tensor([1]))
    assert isinstance(found, SelectedMarginals)
    assert torch.equal(found.sample(generator=torch.Generator()), torch.full((8, 1), 2))


def test_answers_of_another_size_are_refused() -> None:
    class Wrong(Counting):
        def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> CategoricalMarginals:  # noqa: ARG002
            return super().marginals(x, query)

    with pytest.raises(FlexgenError, match=r"of Wrong have shape \(8, 6, 3\).*2 sites were named.*\[8, 2, K\]"):
        marginals_at(Wrong(), rows(), everything, torch.tensor([1, 2]))


# Binary sites by one logit.


def test_bernoulli_marginals_are_those_of_torch() -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    x = torch.randint(2, (50, 4), generator=torch.Generator().manual_seed(1))
    peer = torch.distributions.Bernoulli(logits=logits)
    own = BernoulliMarginals(logits)
    torch.testing.assert_close(own.log_prob(x), peer.log_prob(x.double()), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(own.mean(), peer.mean)
    torch.testing.assert_close(own.mode(), peer.mode.long())
    torch.testing.assert_close(
        own.log_probs, torch.stack([peer.log_prob(logits * 0), peer.log_prob(logits * 0 + 1)], -1)
    )
    assert torch.equal(own.at(torch.tensor([2])).logits, logits[:, 2:3])


@pytest.mark.parametrize("source", [lambda: torch.Generator().manual_seed(3), lambda: rng.Streams(3, 200)])
def test_bernoulli_draws_are_the_categorical_ones(source) -> None:  # type: ignore[no-untyped-def]
    logits = 3 * torch.randn(200, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    one = BernoulliMarginals(logits)
    assert torch.equal(one.sample(generator=source()), CategoricalMarginals(one.log_probs).sample(generator=source()))
    wrong = BernoulliMarginals(-logits).sample(generator=source())
    assert not torch.equal(wrong, one.sample(generator=source()))


def test_certain_binary_sites_are_certain() -> None:
    own = BernoulliMarginals(torch.tensor([[torch.inf, -torch.inf]]).expand(10_000, -1))
    assert torch.equal(
        own.sample(generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 0]]).expand(10_000, -1)
    )
    assert own.log_prob(torch.tensor([[1, 0]]).expand(10_000, -1)).eq(0).all()
    assert own.log_prob(torch.tensor([[0, 1]]).expand(10_000, -1)).eq(-torch.inf).all()


class Field(nn.Module, MarginalConditional):
    """An Ising chain by logits."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space.binary(4)
        self.coupling = nn.Parameter(torch.tensor([[0, 1, 0, 0], [1, 0, -2, 0], [0, -2, 0, 1], [0, 0, 1, 0]]).double())

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> BernoulliMarginals:
        logits = torch.where(query.observed, x, 0).double() @ self.coupling
        return BernoulliMarginals(logits if sites is None else take_at(logits, sites))


def test_gibbs_draws_of_logits_are_those_of_categories() -> None:
    class Categories(Field):
        def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:  # type: ignore[override]
            return CategoricalMarginals(super().marginals(x, query).log_probs)

    x = torch.zeros(64, 4, dtype=torch.int64)
    for scan in (scans.random(), scans.systematic()):
        a, b = (GibbsSampler(c, scan=scan).run(x=x, draws=20, generator=0).draws for c in (Field(), Categories()))
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(FlexgenError, match=r"logits: has shape \(2, 3, 2\)"):
        BernoulliMarginals(torch.zeros(2, 3, 2))
    with pytest.raises(FlexgenError, match="logits: is "):
        BernoulliMarginals([0.0])  # type: ignore[arg-type]
