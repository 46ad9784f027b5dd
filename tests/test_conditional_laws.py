"""The laws every conditional of the package obeys, each checked on every case of `tests/conditionals.py`.

The checks are plain functions of a case, so that conditionals that are wrong on purpose, at the end, can be shown to
fail them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen.conditional import (
    CanSample,
    HasDecoder,
    HasFeatures,
    HasLogProb,
    HasMarginals,
    MarginalConditional,
    marginals_at,
    take_at,
)
from flexgen.query import Query
from flexgen.rng import Streams
from samplers import any_order, parallel
from tests.conditionals import CASES, Case, generator, random_queries, random_x

FALSE_ALARM = 1e-6  # of each chi-square test
NUM_DRAWS = 20_000
NUM_POINTS = 301  # of the quadrature of a real site; half-odd cells, so that the rule is the midpoint rule


def need(model: Any, capability: type) -> Any:
    if not isinstance(model, capability):
        pytest.skip(f"no {capability.__name__}")
    return model


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def spoil(x: Tensor, places: Tensor) -> Tensor:
    return torch.where(places, math.nan, x)


def one_row(query: Query, row: int) -> Query:
    return Query(query.target[row], query.observed[row])


def enumerate_answers(case: Case, x: Tensor, query: Query) -> tuple[list[Tensor], Tensor]:
    """Points of each target of one row ``[n_t]``, and the probability of every combination ``[n_1, .., n_T]``.

    Categorical sites give all codes, integer sites all numbers within `half_width`; real sites the midpoints of equal
    cells, whose volume is multiplied in.
    """
    model = case.make()
    targets = query.target.nonzero().flatten().tolist()
    points, log_volume = [], 0.0
    for site in targets:
        categories = model.space.sites[site].num_categories
        if categories:
            points.append(torch.arange(categories, dtype=x.dtype))
        elif model.space.sites[site].kind == "integer":
            points.append(torch.arange(-case.half_width, case.half_width + 1, dtype=x.dtype))
        else:
            cell = 2 * case.half_width / NUM_POINTS
            points.append(-case.half_width + cell * (torch.arange(NUM_POINTS, dtype=x.dtype) + 0.5))
            log_volume += math.log(cell)
    grid = torch.cartesian_prod(*points).view(-1, len(targets))
    rows = x.expand(len(grid), -1).clone()
    rows[:, targets] = grid
    probability = (model.log_prob(rows, query) + log_volume).exp()  # type: ignore[attr-defined]
    return points, probability.view([len(p) for p in points])


def check_normalisation(case: Case) -> None:
    need(case.make(), HasLogProb)
    x, queries = random_x(case, 6), random_queries(case, 6, most_targets=2)
    for row in range(6):
        _, probability = enumerate_answers(case, x[row], one_row(queries, row))
        assert abs(float(probability.double().sum()) - 1) < 100 * case.tolerance


def check_draws_match_log_prob(case: Case) -> None:
    need(case.make(), CanSample)
    need(case.make(), HasLogProb)
    x, queries = random_x(case, 3), random_queries(case, 3, most_targets=2)
    for row in range(3):
        query = one_row(queries, row)
        points, probability = enumerate_answers(case, x[row], query)
        expanded = x[row].expand(NUM_DRAWS, -1)
        draws = case.make().sample(expanded, query, generator=generator(11))  # type: ignore[attr-defined]
        cells = torch.zeros(NUM_DRAWS, dtype=torch.int64)
        expected = probability.double()
        for axis, site in enumerate(query.target.nonzero().flatten().tolist()):
            values = draws[:, site].contiguous()
            if case.make().space.sites[site].kind != "real":
                cell_of_point = torch.arange(len(points[axis]))
                cell_of_draw = (values - points[axis][0]).long()
            else:  # cells of about equal probability, whose borders are borders of the quadrature
                others = [a for a in range(expected.ndim) if a != axis]
                mass = probability.double().sum(others) if others else probability.double()
                cell_of_point = (mass.cumsum(0) * 8).floor().clamp(0, 7).long()
                spacing = float(points[axis][1] - points[axis][0])
                at = ((values - points[axis][0]) / spacing + 0.5).floor().clamp(0, NUM_POINTS - 1).long()
                cell_of_draw = cell_of_point[at]
            num_cells = int(cell_of_point.max()) + 1
            shape = list(expected.shape)
            shape[axis] = num_cells
            expected = torch.zeros(shape, dtype=torch.float64).index_add_(axis, cell_of_point, expected)
            cells = cells * num_cells + cell_of_draw
        counts = torch.bincount(cells, minlength=expected.numel()).double()
        expected = expected.flatten() * NUM_DRAWS / expected.sum()
        rare = expected < 10  # pooled, as the chi-square approximation needs
        assert counts[expected == 0].sum() == 0
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        counts, expected = counts[expected > 0], expected[expected > 0]
        statistic = float(((counts - expected).square() / expected).sum())
        assert stats.chi2.sf(statistic, max(1, len(expected) - 1)) > FALSE_ALARM


def check_chain_rule(case: Case) -> None:
    model = need(case.make(), HasLogProb)
    x, query = random_x(case, 32), random_queries(case, 32)
    num_sites = x.shape[1]
    order = torch.rand(32, num_sites, generator=generator(12)).argsort(-1)
    joint = model.log_prob(x, query) if case.chain == "any" else model.log_prob(x, query, order=order)
    chained = torch.stack([model.log_prob(x, step) for step in query.chain(order)]).sum(0)
    torch.testing.assert_close(chained, joint, atol=num_sites * case.tolerance, rtol=0)


def check_only_the_target_changes(case: Case) -> None:
    model = need(case.make(), CanSample)
    query = random_queries(case, 64)
    x = spoil(random_x(case, 64), ~query.observed)
    before = bits(x).clone()
    out = model.sample(x, query, generator=generator(13))
    assert torch.equal(bits(x), before), "the input was changed"
    assert torch.equal(bits(out)[~query.target], before[~query.target])
    assert torch.isfinite(out[query.target]).all()


def check_unobserved_values_are_not_read(case: Case) -> None:
    model, query, x = case.make(), random_queries(case, 64), random_x(case, 64)
    if isinstance(model, HasLogProb):
        spoilt = spoil(x, query.marginalised)
        torch.testing.assert_close(model.log_prob(spoilt, query), model.log_prob(x, query), rtol=0, atol=0)
    if isinstance(model, CanSample):
        a = model.sample(x, query, generator=generator(14))
        b = model.sample(spoil(x, ~query.observed), query, generator=generator(14))
        assert torch.equal(a[query.target], b[query.target])
    if isinstance(model, HasMarginals):
        a, b = (model.marginals(v, query).mean() for v in (x, spoil(x, ~query.observed)))
        assert torch.equal(a[query.target], b[query.target])


def check_empty_sets(case: Case) -> None:
    model, x = case.make(), random_x(case, 8)
    nothing = torch.zeros(x.shape, dtype=torch.bool)
    for observed in (nothing, ~nothing, random_queries(case, 8).observed):
        query = Query(nothing, observed)
        if isinstance(model, HasLogProb):
            assert torch.equal(model.log_prob(x, query).double(), torch.zeros(8, dtype=torch.float64))
        if isinstance(model, CanSample):
            assert torch.equal(model.sample(x, query, generator=generator(15)), x)
    if case.queries == "any":
        everything = Query(~nothing, nothing)
        if isinstance(model, HasLogProb):
            assert torch.isfinite(model.log_prob(x, everything)).all()
        if isinstance(model, CanSample):
            assert torch.isfinite(model.sample(spoil(x, ~nothing), everything, generator=generator(15))).all()


def check_rows_are_independent(case: Case) -> None:
    """Different queries in one batch, the same rows one by one, and one query for all rows give equal answers."""
    model = need(case.make(), HasLogProb)
    x, query = random_x(case, 24), random_queries(case, 24)
    together = model.log_prob(x, query)
    single = torch.cat([model.log_prob(x[row : row + 1], query[row : row + 1]) for row in range(24)])
    torch.testing.assert_close(together, single, atol=case.tolerance, rtol=0)
    shared = one_row(query, 0)
    torch.testing.assert_close(model.log_prob(x, shared)[:1], together[:1], atol=case.tolerance, rtol=0)
    if isinstance(model, HasMarginals):
        means = model.marginals(x, query).mean()
        one = torch.cat([model.marginals(x[r : r + 1], query[r : r + 1]).mean() for r in range(24)])
        torch.testing.assert_close(means, one, atol=10 * case.tolerance, rtol=0)


def check_marginals(case: Case) -> None:
    """At a single target the marginal is the answer; entries elsewhere are finite."""
    model = need(case.make(), HasMarginals)
    x, query = random_x(case, 32), random_queries(case, 32, most_targets=1)
    marginals = model.marginals(x, query)
    assert marginals.mean().shape == marginals.mode().shape == x.shape
    assert torch.isfinite(marginals.mean()).all()
    assert torch.isfinite(marginals.log_prob(x)).all()
    draw = marginals.sample(generator=generator(16))
    assert draw.shape == x.shape
    at_target = marginals.log_prob(x)[query.target]
    torch.testing.assert_close(at_target, model.log_prob(x, query), atol=10 * case.tolerance, rtol=0)
    modes = torch.where(query.target, marginals.mode().to(x.dtype), x)
    assert (marginals.log_prob(modes)[query.target] >= at_target - case.tolerance).float().mean() > 0.9


def check_named_sites(case: Case) -> None:
    """Answers for named sites are those for all sites, at these, in the order of the names, which rows may share."""
    model = need(case.make(), HasMarginals)
    x, query = random_x(case, 16), random_queries(case, 16)
    num_sites = x.shape[1]
    everywhere = model.marginals(x, query)
    by_row = torch.rand(16, num_sites, generator=generator(19)).argsort(-1)[:, : num_sites - 1]
    for sites in (torch.arange(num_sites).flip(0), by_row[0], by_row, by_row[:, :1], by_row[:, :0]):
        named = marginals_at(model, x, query, sites)
        is_target = take_at(query.target, sites)
        values = take_at(x, sites)
        pairs = [
            (named.log_prob(values), everywhere.log_prob(x)),
            (named.mean(), everywhere.mean()),
            (named.mode(), everywhere.mode()),
        ]
        for found, whole in pairs:
            assert found.shape == is_target.shape
            expected = take_at(whole, sites)
            torch.testing.assert_close(
                found[is_target], expected[is_target], atol=10 * case.tolerance, rtol=case.tolerance
            )
        draw = named.sample(generator=generator(20))
        assert draw.shape == is_target.shape
        assert torch.isfinite(named.log_prob(torch.where(is_target, draw, 0).to(x.dtype))[is_target]).all()


@dataclass
class Forgetful:
    """A conditional without its decoder."""

    right: Any

    @property
    def space(self) -> Any:
        return self.right.space

    def log_prob(self, x: Tensor, query: Query) -> Tensor:
        return self.right.log_prob(x, query)

    def sample(self, x: Tensor, query: Query, *, generator: Any) -> Tensor:
        return self.right.sample(x, query, generator=generator)

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> Any:
        return self.right.marginals(x, query, sites=sites)


class ForgetfulNetwork(Forgetful, MarginalConditional):
    """Of one that draws by its marginals."""

    log_prob = MarginalConditional.log_prob
    sample = MarginalConditional.sample


def check_decoder(case: Case) -> None:
    """What is decoded with a memory is what is decoded without, and the memory answers as the conditional does."""
    model = need(case.make(), HasDecoder)
    plain = (ForgetfulNetwork if isinstance(model, MarginalConditional) else Forgetful)(model)
    x, query = random_x(case, 24), random_queries(case, 24)
    x = spoil(x, ~query.observed)
    close = {"atol": 10 * case.tolerance, "rtol": 10 * case.tolerance}
    full = random_x(case, 24)
    num_sites = x.shape[1]
    orders = torch.rand(2, 24, num_sites, generator=generator(21)).argsort(-1)
    for order in (None, orders[0], orders[0, 0]):
        for source in (lambda: generator(22), lambda: Streams(5, 24)):
            a, b = (any_order.sample(m, x, query, order=order, generator=source()) for m in (model, plain))
            torch.testing.assert_close(a, b, equal_nan=True, **close)
    for chosen in (orders, orders[:, 0]):
        a, b = (any_order.log_prob(m, full, query, orders=chosen) for m in (model, plain))
        torch.testing.assert_close(a, b, **close)
    steps = min(2, int(query.target.sum(-1).max()))
    for rule in ("confidence", "random"):
        for remask in (0.0, 0.5):
            a, b = (
                parallel.sample(m, x, query, num_steps=steps, rule=rule, remask=remask, generator=Streams(6, 24))
                for m in (model, plain)
            )
            torch.testing.assert_close(a, b, equal_nan=True, **close)
    # Sites that become known, alike in all rows or not, and not in every row.
    decoder, nothing = model.start(full, Query(~query.observed, query.observed)), torch.zeros_like(query.observed)
    known = query.observed
    for sites in (orders[0][:, :1], orders[0][:, 1:3]):
        new = ~known.gather(1, sites)
        decoder.append(sites, take_at(full, sites), given=new)
        known = known.scatter(1, sites, True)
        named = torch.arange(num_sites)
        found, expected = decoder.marginals(named), model.marginals(full, Query(~known, known), sites=named)
        torch.testing.assert_close(found.log_prob(full)[~known], expected.log_prob(full)[~known], **close)
        torch.testing.assert_close(found.mean()[~known], expected.mean()[~known], **close)
    assert not nothing.any()
    first = model.start(full, Query(~nothing, nothing))
    first.append(torch.tensor([1]), full[:, 1:2])
    alone = nothing.clone()
    alone[:, 1] = True
    sites = torch.tensor([0, 2])
    expected = model.marginals(full, Query(~alone, alone), sites=sites)
    torch.testing.assert_close(
        first.marginals(sites).log_prob(full[:, sites]), expected.log_prob(full[:, sites]), **close
    )


def check_features(case: Case) -> None:
    """One vector a site, a function of what is observed: it moves with observed values, and with no others."""
    model = need(case.make(), HasFeatures)
    x, query = random_x(case, 24), random_queries(case, 24)
    found = model.features(x, query)
    assert found.ndim == 3
    assert found.shape[:2] == x.shape
    assert torch.isfinite(found).all()
    assert torch.equal(model.features(spoil(x, ~query.observed), query), found)
    one = torch.cat([model.features(x[row : row + 1], query[row : row + 1]) for row in range(24)])
    torch.testing.assert_close(found, one, atol=1e-5, rtol=1e-5)
    other = torch.stack([(x[:, i] + 1) % (k or 2) for i, k in enumerate(model.space.num_categories)], -1)
    moved = (model.features(other, query) - found).abs().amax((1, 2)) > 1e-6
    assert torch.equal(moved, query.observed.any(-1))


def check_randomness(case: Case) -> None:
    """Same generator, same draw; keyed streams ignore the batch; the global generator is left alone."""
    model = need(case.make(), CanSample)
    x, query = random_x(case, 16), random_queries(case, 16)
    state = torch.get_rng_state()
    a = model.sample(x, query, generator=generator(17))
    b = model.sample(x, query, generator=generator(17))
    other = model.sample(x, query, generator=generator(18))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    whole = model.sample(x, query, generator=Streams(5, 16))
    for rows in (slice(0, 1), slice(3, 9)):
        part = model.sample(x[rows], query[rows], generator=Streams(5, torch.arange(16)[rows]))
        torch.testing.assert_close(part, whole[rows], atol=10 * case.tolerance, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)


CHECKS: list[Any] = [
    check_normalisation,
    pytest.param(check_draws_match_log_prob, marks=pytest.mark.statistical),
    check_chain_rule,
    check_only_the_target_changes,
    check_unobserved_values_are_not_read,
    check_empty_sets,
    check_rows_are_independent,
    check_marginals,
    check_named_sites,
    check_decoder,
    check_features,
    check_randomness,
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_law(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


# Conditionals that are wrong on purpose, and the check that must notice.


@dataclass
class Wrong:
    """A right conditional with one method replaced."""

    right: Any
    fault: str

    @property
    def space(self) -> Any:
        return self.right.space

    def log_prob(self, x: Tensor, query: Query) -> Tensor:
        if self.fault == "reads unobserved":
            return self.right.log_prob(x, query) + 0.0 * x.sum(-1)
        answer = self.right.log_prob(x, query)
        if self.fault == "not normalised":
            return answer + 0.01 * query.target.sum(-1)
        if self.fault == "sums marginals":
            return torch.where(query.target, self.right.marginals(x, query).log_prob(x), 0.0).sum(-1)
        return answer + answer.mean() if self.fault == "couples rows" else answer

    def sample(self, x: Tensor, query: Query, *, generator: Any) -> Tensor:
        if self.fault == "independent draws":
            return torch.where(query.target, self.right.marginals(x, query).sample(generator=generator).to(x.dtype), x)
        if self.fault == "touches observed":
            return self.right.sample(x, query, generator=generator) + 1e-12
        if self.fault == "global generator":
            torch.rand(1)
        return self.right.sample(x, query, generator=generator)

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> Any:
        if sites is not None and self.fault == "names in another order":
            sites = sites.sort(-1).values
        return self.right.marginals(x, query, sites=sites)

    def features(self, x: Tensor, query: Query) -> Tensor:
        values = torch.where(query.observed, x, 0.0) if self.fault != "reads what is hidden" else x
        return torch.stack([values, query.expand(len(x)).observed.to(x.dtype)], -1).cumsum(1)

    def start(self, x: Tensor, query: Query) -> Any:
        decoder = self.right.start(x, query)
        if self.fault == "forgets what is appended":
            decoder.append = lambda *_, **__: None
        if self.fault == "takes what is not given":
            append = type(decoder).append
            decoder.append = lambda sites, values, given=None: append(decoder, sites, values.nan_to_num(0.0))  # noqa: ARG005
        return decoder


FAULTS: dict[str, Callable[[Case], None]] = {
    "not normalised": check_normalisation,
    "sums marginals": check_chain_rule,
    "independent draws": check_draws_match_log_prob,
    "touches observed": check_only_the_target_changes,
    "reads unobserved": check_unobserved_values_are_not_read,
    "couples rows": check_rows_are_independent,
    "global generator": check_randomness,
    "names in another order": check_named_sites,
    "forgets what is appended": check_decoder,
    "takes what is not given": check_decoder,
    "reads what is hidden": check_features,
}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("case", "fault"),
    list(itertools.product([case for case in CASES if case.name in ("joint-table", "gaussian")], FAULTS)),
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_wrong_conditional_is_rejected(case: Case, fault: str) -> None:
    state = torch.get_rng_state()
    wrong = Case("wrong", lambda: Wrong(case.make(), fault))
    with pytest.raises(AssertionError):
        FAULTS[fault](wrong)
    torch.set_rng_state(state)
