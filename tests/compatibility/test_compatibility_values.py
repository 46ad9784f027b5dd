"""Values that are drawn stand for all values: sums over them are without bias, and exact where all are drawn."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from flexgen import exact
from flexgen.compatibility import Effect, SiteAnswers, Values, circulation, rectangles
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.networks.sites import Requests
from flexgen.conditional import CategoricalMarginals
from flexgen.errors import FlexgenError
from flexgen.query import Query
from flexgen.rng import Randomness, categorical
from flexgen.space import Site, Space
from tests.conditionals import generator

K, REPEATS = 20, 4000
EXACT = Rounding(1e-14)


def peaky(seed: int = 0, shape: tuple[int, ...] = (K, K)) -> exact.ConditionalTables:
    """Tables of no joint, whose probabilities differ by factors of a thousand."""
    logits = 2.5 * torch.randn(len(shape), *shape, generator=generator(seed), dtype=torch.float64)
    return exact.ConditionalTables([t.softmax(i) for i, t in enumerate(logits)])


class Circular:
    """One-site answers for any context, of no joint: the whole of p(i | C) is drawn from x_C."""

    def __init__(self) -> None:
        self.space, self.tables = Space.categorical([K, K]), peaky(4)
        self.heads = (2 * torch.randn(2, K, generator=generator(5), dtype=torch.float64)).log_softmax(-1)

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        query = query.expand(len(x))
        given = self.tables.marginals(torch.where(query.observed, x, 0), Query.complete(0, num_sites=2)).log_probs
        other = self.tables.marginals(torch.where(query.observed, x, 0), Query.complete(1, num_sites=2)).log_probs
        both = torch.stack([given[:, 0], other[:, 1]], 1)
        return CategoricalMarginals(torch.where(query.observed.any(-1)[:, None, None], both, self.heads))


@pytest.mark.parametrize("num_others", [K - 1, K + 5])
def test_all_categories_drawn_are_the_enumeration(num_others: int) -> None:
    x = torch.randint(K, (12, 2), generator=generator(1))
    every, drawn = Values(max_categories=K), Values(num_others=num_others, max_categories=8)
    for one, other in (
        (rectangles(peaky(), x, values=every).effect(), rectangles(peaky(), x, values=drawn).effect()),
        (circulation(Circular(), x, values=every).effects()[0], circulation(Circular(), x, values=drawn).effects()[0]),
    ):
        assert len(one) == len(other)
        for how in ("weighted", "uniform"):
            a, b = getattr(one, how)(), getattr(other, how)()
            assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=1e-12)


def test_few_possible_categories_are_all_drawn() -> None:
    p = torch.rand(K, K, generator=generator(2), dtype=torch.float64)
    p[6:], p[:, 6:] = 0.0, 0.0
    tables = exact.ConditionalTables([(p[:6, :6] + 0.1 * k) / (p[:6, :6] + 0.1 * k).sum(k, True) for k in (0, 1)])
    wide = [torch.zeros(K, K).double() for _ in range(2)]
    for k, table in enumerate(tables.tables):
        wide[k][:6, :6] = table
        wide[k].movedim(k, 0)[0, 6:] = 1.0  # given what is impossible
    x = torch.randint(6, (8, 2), generator=generator(3))
    few = exact.ConditionalTables(wide)
    one, other = (rectangles(few, x, values=v).effect() for v in (Values(max_categories=K), Values(num_others=7)))
    assert len(other) == 8 * 25
    assert other.weighted().value == pytest.approx(one.weighted().value, rel=1e-12)


class Whole:
    """A site of whole numbers, Poisson of mean 3 cut at 30, in any context."""

    space = Space((Site("integer"), Site("real")))
    log_p = torch.arange(31.0).double() * math.log(3) - torch.lgamma(torch.arange(31.0).double() + 1) - 3

    def marginals(self, x: Tensor, query: Query) -> Whole.Masses:  # noqa: ARG002
        return self.Masses(len(x))

    class Masses:
        def __init__(self, num_rows: int) -> None:
            self.num_rows = num_rows

        def log_prob(self, x: Tensor) -> Tensor:
            return Whole.log_p[x.long().clamp(0, 30)]

        def sample(self, *, generator: Randomness) -> Tensor:
            return categorical(Whole.log_p.expand(self.num_rows, 2, -1), generator=generator).double()


def off(values: Tensor, truth: float) -> float:
    """Standard errors."""
    return abs(float(values.mean()) - truth) / (float(values.std()) / math.sqrt(len(values)))


def chosen_sum(model: object, values: Values, x: Tensor, f: Tensor, *, wrong: bool = False) -> Tensor:
    """Estimates of sum_k f(k) for each row, from the values chosen at site 0."""
    some = Requests(
        torch.zeros(len(x), dtype=torch.int64), lambda r: (x[r], torch.tensor([False, True]).expand(len(r), 2))
    )
    found = values.choose(SiteAnswers(model), some, x[:, 0], x, seed=1)
    density = found.log_probs if wrong else found.log_density
    return torch.where(found.valid, f[found.values.nan_to_num(0.0).long()] / density.exp(), 0.0).sum(-1)


@pytest.mark.statistical
def test_sums_over_values_are_without_bias() -> None:
    """5 standard errors: false alarm 6e-7 each. As if draws without replacement were with it: rejected."""
    x = torch.tensor([[3, 7]]).repeat(REPEATS, 1)
    f = peaky().tables[0][:, 7] * torch.randn(K, generator=generator(6), dtype=torch.float64).square()
    for num_others in (1, 2, 6):
        assert off(chosen_sum(peaky(), Values(num_others=num_others), x, f), float(f.sum())) < 5
    assert off(chosen_sum(peaky(), Values(num_others=6), x, f, wrong=True), float(f.sum())) > 5
    # Values of other rows: of those that the pool holds.
    pool = torch.randint(K, (50, 2), generator=generator(7))
    x = torch.cat([pool, x])
    held = torch.zeros(K).double().index_fill(0, torch.unique(x[:, 0]), 1.0)
    for num_others in (2, 9):
        found = chosen_sum(peaky(), Values("data", num_others), x, f * held)[50:]
        assert off(found, float((f * held).sum())) < 5


@pytest.mark.statistical
def test_whole_numbers_are_drawn_with_their_multiplicity() -> None:
    x = torch.tensor([[2.0, 0.0]]).repeat(REPEATS, 1).double()
    f = Whole.log_p.exp() * torch.arange(31.0).double().square()
    assert off(chosen_sum(Whole(), Values(num_others=6), x, f), float(f.sum())) < 5


def per_row(effect: Effect) -> Tensor:
    """The weighted mean of each row's table."""
    total, mass = (torch.zeros(REPEATS).double() for _ in range(2))
    total.index_add_(0, effect.rows, effect.weights * effect.values.abs())
    return total / mass.index_add_(0, effect.rows, effect.weights)


@pytest.mark.statistical
def test_the_weighted_mean_of_draws_is_that_of_all_values_up_to_the_bias_of_a_ratio() -> None:
    """A ratio N / D of unbiased sums is off by -cov(N / D, D) / E D (Hartley & Ross 1954): at most sd(N / D) cv(D).

    D is measured by itself; the mean of 4000 tables may be off by 5 standard errors more, false alarm 6e-7. Draws
    without replacement that are weighed as if they were with it are off by more.
    """
    tables, x = peaky(), torch.tensor([[3, 7]])
    truth = rectangles(tables, x, values=Values(max_categories=K)).effect().weighted().value
    for num_others in (2, 12):
        result = rectangles(tables, x.repeat(REPEATS, 1), values=Values(num_others=num_others), rounding=EXACT)
        cells = result.valid.clone()
        cells[..., 0, :], cells[..., :, 0] = False, False
        joint = result.forward + result.backward[..., :1, :] - result.forward[..., :1, :]
        mass = torch.where(cells, (joint - result.log_density).exp(), 0.0).sum((1, 2, 3))
        means = per_row(result.effect())
        reach = float(means.std()) * float(mass.std() / mass.mean()) + 5 * float(means.std()) / math.sqrt(REPEATS)
        assert abs(float(means.mean()) - truth) < reach
    as_if = dataclasses.replace(result, log_density=result.forward[..., :, :1] + result.backward[..., :1, :])
    assert abs(float(per_row(as_if.effect()).mean()) - truth) > reach


def test_numbers_that_are_none() -> None:
    with pytest.raises(FlexgenError, match="num_others: is 0"):
        Values(num_others=0)
    with pytest.raises(FlexgenError, match=r"max_categories: is 2\.5"):
        Values(max_categories=2.5)
