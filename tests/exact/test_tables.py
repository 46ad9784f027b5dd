"""Tables against brute-force enumeration, and their error texts."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from flexgen.errors import FlexgenError, QueryError, SpaceError, UnsupportedQueryError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.exact import tables as tables_module
from flexgen.query import Query
from flexgen.rng import Streams
from tests.conditionals import generator

SHAPE = (2, 3, 2)


def joint(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> JointTable:
    return JointTable.random(shape, generator=generator(seed))


def all_queries(num_sites: int) -> Query:
    """Every assignment of sites to target, observed, neither."""
    roles = torch.tensor(list(itertools.product(range(3), repeat=num_sites)))
    return Query(roles == 0, roles == 1)


def brute_force(p: torch.Tensor, x: list[int], target: list[bool], observed: list[bool]) -> float:
    both = evidence = 0.0
    for state in itertools.product(*map(range, p.shape)):
        agrees = [s == v for s, v in zip(state, x, strict=True)]
        if all(a for a, o in zip(agrees, observed, strict=True) if o):
            evidence += float(p[state])
            if all(a for a, t in zip(agrees, target, strict=True) if t):
                both += float(p[state])
    return math.log(both / evidence)


@pytest.mark.parametrize("chunk", [1 << 21, 30])
def test_every_query_of_every_state_equals_enumeration(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "_CHUNK_ENTRIES", chunk)
    law, queries = joint(), all_queries(3)
    for state in law.space.states():
        answers = law.log_prob(state.expand(27, -1), queries)
        expected = [
            brute_force(law.p, state.tolist(), queries.target[row].tolist(), queries.observed[row].tolist())
            for row in range(27)
        ]
        torch.testing.assert_close(answers, torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=0)


def test_marginals_equal_single_target_answers() -> None:
    law, queries = joint(), all_queries(3)
    x = torch.tensor([1, 2, 0]).expand(27, -1)
    marginals = law.marginals(x, queries)
    for site, size in enumerate(SHAPE):
        free = ~queries.observed[:, site]
        only = torch.arange(3) == site
        query = Query(only.expand(27, -1)[free], queries.observed[free])
        for value in range(size):
            y = x[free].clone()
            y[:, site] = value
            torch.testing.assert_close(
                marginals.log_probs[free, site, value], law.log_prob(y, query), atol=1e-13, rtol=0
            )
    assert (marginals.mode()[queries.observed] == x[queries.observed]).all()


def test_streams_draw_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    law, query = joint(), Query.of([0, 1], [2], num_sites=3)
    x = torch.zeros(50, 3, dtype=torch.int64)
    whole = law.sample(x, query, generator=Streams(3, 50))
    monkeypatch.setattr(tables_module, "_CHUNK_ENTRIES", 24)
    assert torch.equal(law.sample(x, query, generator=Streams(3, 50)), whole)
    assert whole.dtype == torch.int64


def test_zeros() -> None:
    law = JointTable(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    copy = Query.of([1], [0], num_sites=2)
    x = torch.tensor([[0, 1], [1, 1]])
    assert law.log_prob(x, copy).tolist() == [-math.inf, 0.0]
    for seed in range(5):
        assert law.sample(x, copy, generator=generator(seed)).tolist() == [[0, 0], [1, 1]]
    three = JointTable.from_unnormalised(torch.tensor([[1.0, 1.0], [2.0, 4.0], [0.0, 0.0]]))
    impossible = torch.tensor([[1, 0], [2, 0]])
    for method in (three.log_prob, three.marginals, lambda x, q: three.sample(x, q, generator=generator())):
        with pytest.raises(QueryError, match=r"x: observes an event of probability zero in row 1 \(sites \[0\]\)"):
            method(impossible, copy)
    # Nothing is asked of the impossible row: no error.
    nothing = Query(torch.tensor([[False, True], [False, False]]), torch.tensor([[True, False], [True, False]]))
    assert three.log_prob(impossible, nothing)[1] == 0
    assert torch.isfinite(three.marginals(impossible, nothing).mean()).all()
    with pytest.raises(FlexgenError, match=r"leaves p\(x_i \| rest\) undefined for i in \(1,\): 1 states"):
        three.conditional_tables()
    tables = three.conditional_tables(undefined="uniform")
    torch.testing.assert_close(tables.tables[1][2], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_marginal_permutes_and_sums() -> None:
    law = joint()
    torch.testing.assert_close(law.marginal([2, 0]).p, law.p.sum(1).T)
    torch.testing.assert_close(law.marginal([2, 0, 1]).p, law.p.permute(2, 0, 1))


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (torch.tensor([0.5, 0.6]), "p: sums to 1.1, not 1. Divide it by its sum, or call JointTable.from_unnormalised"),
        (torch.tensor([1.5, -0.5]), "p: holds -0.5 at state (1,). Probabilities are finite and non-negative."),
        (torch.tensor([math.nan, 1.0]), "p: holds nan at state (0,)"),
        (torch.tensor(1.0), "p: has shape (). Pass one axis a site"),
    ],
)
def test_bad_joint(p: torch.Tensor, text: str) -> None:
    with pytest.raises(FlexgenError, match=re.escape(text)):
        JointTable(p)


def test_all_zero_weights() -> None:
    with pytest.raises(FlexgenError, match="weights: are all zero"):
        JointTable.from_unnormalised(torch.zeros(2, 2))


def test_values_outside_the_table() -> None:
    with pytest.raises(SpaceError, match="holds 3 at row 0, site '1'"):
        joint().log_prob(torch.tensor([[0, 3, 0]]), Query.of([1], [0], num_sites=3))


def test_complete_conditionals_agree_with_their_joint() -> None:
    law = joint()
    tables, states = law.conditional_tables(), law.space.states()
    x = states.repeat(3, 1)
    target = torch.eye(3, dtype=torch.bool).repeat_interleave(len(states), 0)
    query = Query.rest(~target)
    torch.testing.assert_close(tables.log_prob(x, query), law.log_prob(x, query), atol=1e-13, rtol=0)
    a, b = tables.marginals(x, query), law.marginals(x, query)
    torch.testing.assert_close(a.log_probs[target], b.log_probs[target], atol=1e-13, rtol=0)
    draws = tables.sample(x, query, generator=generator(1))
    assert torch.equal(draws[~target], x[~target])


@pytest.mark.parametrize(
    ("target", "observed"),
    [([0, 1], [2]), ([0], [1]), ([0], []), ([0, 1, 2], [])],
    ids=["two", "partial", "one", "all"],
)
def test_questions_that_need_a_joint(target: list[int], observed: list[int]) -> None:
    tables, query = joint().conditional_tables(), Query.of(target, observed, num_sites=3)
    x = torch.zeros(2, 3, dtype=torch.int64)
    for method in (tables.log_prob, tables.marginals, lambda x, q: tables.sample(x, q, generator=generator())):
        with pytest.raises(UnsupportedQueryError, match="no joint is known, only the complete conditionals") as error:
            method(x, query)
        assert "Ask for one target with all other sites observed, or use a JointTable." in str(error.value)


def test_bad_conditionals() -> None:
    a = torch.tensor([[0.5, 0.1], [0.5, 0.9]])
    with pytest.raises(
        FlexgenError, match=re.escape("tables[1]: sums to 0.6 over axis 1 at x0=0, not 1. tables[1] is p(x_1 |")
    ) as error:
        ConditionalTables([a, a])
    assert str(error.value).endswith("It sums to 1 over axis 0: are its axes in the order of the sites?")
    with pytest.raises(FlexgenError, match=re.escape("tables[1]: has shape (2, 3), but tables[0] has (2, 2)")):
        ConditionalTables([a, torch.full((2, 3), 1 / 3)])
    with pytest.raises(FlexgenError, match=re.escape("tables: holds 1 tables of shape (2, 2)")):
        ConditionalTables([a])
    with pytest.raises(FlexgenError, match=re.escape("tables: holds 0 tables")):
        ConditionalTables([])


def test_the_callers_tables_are_left_alone() -> None:
    p = torch.full((2, 2), 0.25, dtype=torch.float64)
    before = p.clone()
    list_of_tables = [p * 2, p * 2]
    ConditionalTables(list_of_tables)
    JointTable(p)
    assert torch.equal(p, before)
    assert all(torch.equal(t, before * 2) for t in list_of_tables)
