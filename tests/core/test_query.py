"""Queries: construction, refusals, and the chain rule."""

import pytest
import torch

import flexgen as fg
from flexgen.errors import QueryError


def test_of_names_sites_by_number():
    query = fg.Query.of(target=[3], observed=[0, 1, 2], num_sites=8)
    assert query.target.nonzero().flatten().tolist() == [3]
    assert query.observed.nonzero().flatten().tolist() == [0, 1, 2]
    assert query.marginalised.nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert repr(query) == "Query(3 | 0-2; 4 of 8 sites marginalised)"


def test_complete_and_rest():
    assert fg.Query.complete(1, num_sites=3) == fg.Query.of([1], [0, 2], num_sites=3)
    assert fg.Query.rest(torch.tensor([True, False])) == fg.Query.of([1], [0], num_sites=2)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: fg.Query.of([1], [1], num_sites=3), "observed: overlaps target at 1 site.*first at site 1"),
        (lambda: fg.Query.of([3], num_sites=3), "target: holds site 3. Sites are numbered 0 to 2"),
        (lambda: fg.Query.of([0], [-1], num_sites=3), "observed: holds site -1"),
        (lambda: fg.Query(torch.ones(3), torch.zeros(3)), "target: must be a boolean tensor, got torch.float32"),
        (lambda: fg.Query([True], [False]), "target: must be a boolean tensor, got list"),
        (
            lambda: fg.Query(torch.ones(3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)),
            r"observed: has shape \(4,\), but target has \(3,\)",
        ),
        (lambda: fg.Query(*[torch.zeros(1, 2, 3, dtype=torch.bool)] * 2), r"target: has shape \(1, 2, 3\)"),
        (lambda: fg.Query(*[torch.zeros(2, 3, dtype=torch.bool)] * 2).expand(5), "query: has 2 rows, but x has 5"),
        (lambda: fg.Query.of([0], num_sites=1)[0:1], "query: has no rows to select from"),
    ],
)
def test_bad_queries_are_refused_by_name(build, text):
    with pytest.raises(QueryError, match=text):
        build()


def test_empty_target_and_empty_observed_are_queries():
    nothing = fg.Query.of([], [], num_sites=2)
    assert list(nothing.chain()) == []
    assert repr(nothing) == "Query(nothing | nothing; 2 of 2 sites marginalised)"


def test_chain_visits_targets_in_order():
    query = fg.Query.of([1, 3, 5], [0], num_sites=6)
    steps = list(query.chain(torch.tensor([5, 4, 3, 2, 1, 0])))
    assert steps == [
        fg.Query.of([5], [0], num_sites=6),
        fg.Query.of([3], [0, 5], num_sites=6),
        fg.Query.of([1], [0, 3, 5], num_sites=6),
    ]


def test_chain_of_rows_with_different_queries_and_orders():
    generator = torch.Generator().manual_seed(0)
    role = torch.randint(3, (50, 7), generator=generator)
    query = fg.Query(role == 0, role == 1)
    order = fg.rng.permutation(50, 7, generator=generator)
    steps = list(query.chain(order))
    assert len(steps) == int(query.target.sum(-1).max())
    for row in range(50):
        wanted = [site for site in order[row].tolist() if query.target[row, site]]
        seen = set(query.observed[row].nonzero().flatten().tolist())
        for t, step in enumerate(steps):
            target = step.target[row].nonzero().flatten().tolist()
            assert target == ([wanted[t]] if t < len(wanted) else [])
            assert set(step.observed[row].nonzero().flatten().tolist()) == seen
            seen |= set(target)


@pytest.mark.parametrize("order", [[0, 0, 2], [0, 1], [1, 2, 3]])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(
        QueryError, match=r"order: has shape .* no permutation of the 3 sites. Every row names each of 0"
    ):
        next(fg.Query.of([0, 1], num_sites=3).chain(torch.tensor(order)))


def test_one_order_a_row_turns_one_query_into_a_batch():
    query = fg.Query.of([0, 1], num_sites=2)
    first, second = query.chain(torch.tensor([[0, 1], [1, 0]]))
    assert first.target.tolist() == [[True, False], [False, True]]
    assert second.observed.tolist() == [[True, False], [False, True]]
