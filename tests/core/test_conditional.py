"""The joint answers that `MarginalConditional` derives from one-site marginals."""

import pytest
import torch

import flexgen as fg
from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.errors import UnsupportedQueryError


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
