"""The joint answers that `MarginalConditional` derives from one-site marginals."""

import pytest
import torch
from torch.distributions import Categorical

import flexgen as fg
from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.errors import FlexgenError, SpaceError, UnsupportedQueryError
from samplers import GibbsSampler, any_order, scans


class Pair(MarginalConditional):
    """Two binary sites with p(x_0 = 1) = .3 and p(x_1 = x_0) = .9; exact marginals for every query."""

    space = fg.Space.binary(2)
    joint = torch.tensor([[0.63, 0.07], [0.03, 0.27]])

    def marginals(self, x, query):
        agree = torch.stack([x[:, 1], x[:, 0]], -1)  # the other site's value
        known = query.observed.flip(-1)  # whether the other site is observed
        p0, p1 = self.joint.sum(1), self.joint.sum(0)
        free = torch.stack([p0, p1]).expand(len(x), 2, 2)
        given = torch.stack([(self.joint / p1).T[agree[:, 0]], (self.joint.T / p0).T[agree[:, 1]]], 1)
        return CategoricalMarginals(torch.where(known[..., None], given, free).log())


STATES = Pair.space.states()


@pytest.mark.parametrize("order", [None, torch.tensor([1, 0]), torch.tensor([[0, 1], [1, 0]] * 2)])
def test_chain_rule_gives_the_joint(order):
    query = fg.Query.of([0, 1], num_sites=2)
    log_prob = Pair().log_prob(STATES, query, order=order)
    torch.testing.assert_close(log_prob.exp(), Pair.joint.flatten())


def test_a_product_of_marginals_must_be_asked_for():
    query = fg.Query.of([0, 1], num_sites=2)
    product = Pair().log_prob(STATES, query, factorized=True).exp()
    expected = torch.outer(Pair.joint.sum(1), Pair.joint.sum(0)).flatten()
    torch.testing.assert_close(product, expected)
    with pytest.raises(UnsupportedQueryError, match="order: is given with factorized=True"):
        Pair().log_prob(STATES, query, factorized=True, order=torch.tensor([0, 1]))


def test_empty_target():
    query = fg.Query.of([], [0], num_sites=2)
    assert Pair().log_prob(STATES, query).tolist() == [0.0] * 4
    drawn = Pair().sample(STATES, query, generator=torch.Generator())
    assert torch.equal(drawn, STATES)
    assert drawn.data_ptr() != STATES.data_ptr()


def test_capabilities_are_protocols():
    assert isinstance(Pair(), fg.CanSample)
    assert isinstance(Pair(), fg.HasLogProb)
    assert isinstance(Pair(), fg.HasMarginals)
    assert not isinstance(fg.Query, fg.HasMarginals)


def test_categorical_marginals():
    marginals = CategoricalMarginals(torch.tensor([[[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]]]).log())
    assert marginals.mode().tolist() == [[1, 0]]
    torch.testing.assert_close(marginals.mean(), torch.tensor([[1.1, 0.1]]))
    torch.testing.assert_close(marginals.log_prob(torch.tensor([[2.0, 1.0]])).exp(), torch.tensor([[0.3, 0.1]]))


class Answering(MarginalConditional):
    """Answers whatever it is told to."""

    space = fg.Space.categorical([3, 3])

    def __init__(self, answer):
        self.answer = answer

    def marginals(self, x, query):  # noqa: ARG002
        return self.answer(len(x))


def logits(*shape):
    return torch.zeros(*shape).log_softmax(-1)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda b: logits(b, 2, 3), r"marginals: of Answering are a Tensor of shape \(\d, 2, 3\). Return Categ"),
        (lambda b: Categorical(logits=logits(b, 2, 3)), r"marginals: of Answering are a Categorical, a distribution"),
        (lambda _: None, r"marginals: of Answering are None. Return CategoricalMarginals\(log_probs\)"),
        (lambda b: CategoricalMarginals(logits(b, 3)), r"log_probs: has shape \(\d, 3\). Pass \[B, N, K\]"),
        (lambda b: CategoricalMarginals(logits(b, 5, 3)), r"of Answering have shape \(\d, 5, 3\), .*\[\d, 2, K\]"),
    ],
)
def test_answers_that_are_no_marginals_are_named_wherever_they_are_asked(answer, text):
    model, query, x = Answering(answer), fg.Query.of([0, 1], num_sites=2), torch.zeros(4, 2)
    g = torch.Generator()
    for ask in (
        lambda: model.log_prob(x, query),
        lambda: model.log_prob(x, query, factorized=True),
        lambda: model.sample(x, query, generator=g),
        lambda: GibbsSampler(model, scan=scans.systematic()).run(x=x, draws=1, generator=0),
        lambda: any_order.log_prob(model, x, query, generator=0),
        lambda: fg.diagnose(model, x, budget=100),
    ):
        with pytest.raises(FlexgenError, match=text):
            ask()


def test_what_a_subclass_does_not_give_is_named():
    class Nothing(MarginalConditional):
        pass

    class Spaced(MarginalConditional):
        space = fg.Space.binary(2)

    x, query = torch.zeros(4, 2), fg.Query.of([0, 1], num_sites=2)
    for ask in (
        lambda: Nothing().space,
        lambda: GibbsSampler(Nothing(), scan=scans.systematic()),
        lambda: fg.diagnose(Nothing(), x),
    ):
        with pytest.raises(SpaceError, match=r"space: is missing in Nothing\. Set a class attribute or self\.space"):
            ask()
    for ask in (
        lambda: Spaced().log_prob(x, query),
        lambda: GibbsSampler(Spaced(), scan=scans.systematic()).run(chains=2, draws=1, generator=0),
        lambda: fg.diagnose(Spaced(), x, budget=100),
    ):
        with pytest.raises(
            FlexgenError, match=r"marginals: are missing in Spaced\. Define marginals\(self, x, query\)"
        ):
            ask()


@pytest.mark.parametrize("bases", [(MarginalConditional,), (torch.nn.Module, MarginalConditional)])
def test_the_space_may_be_set_in_the_constructor(bases):
    class Sized(*bases):
        def __init__(self, num_sites):
            super().__init__()
            self.space = fg.Space.binary(num_sites)

    assert Sized(3).space.num_sites == 3
    assert isinstance(Sized(3), fg.HasMarginals)


def test_a_subclass_of_a_subclass_is_checked_once_more_and_still_answers():
    class Tempered(Pair):
        def marginals(self, x, query):
            return CategoricalMarginals((2 * super().marginals(x, query).log_probs).log_softmax(-1))

    assert Tempered().log_prob(STATES, fg.Query.of([0, 1], num_sites=2)).shape == (4,)
