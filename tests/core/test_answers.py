"""What a conditional declares to answer, and that all else is refused before any work."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexgen as fg
from flexgen import exact
from flexgen.answers import AnyQuery, Blocks, CompleteConditionals, Prefixes, Whole, answers_of, check_query
from flexgen.conditional import BernoulliMarginals, CategoricalMarginals, MarginalConditional
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.laws import MaskDraw
from flexgen.query import Query
from flexgen.space import Space
from flexgen.training import MaskedLikelihood
from samplers import AnyOrder, GibbsSampler, any_order, laws, parallel, run, scans


def all_queries(num_sites: int) -> list[tuple[frozenset[int], frozenset[int]]]:
    """(target, observed) of all 3^N queries."""
    return [
        (frozenset(i for i, r in enumerate(roles) if r == 1), frozenset(i for i, r in enumerate(roles) if r == 2))
        for roles in itertools.product(range(3), repeat=num_sites)
    ]


SITES = frozenset(range(4))
ORDER = (2, 0, 3, 1)
LEFT, RIGHT = frozenset({0, 2}), frozenset({1, 3})


def is_prefix(sites: frozenset[int]) -> bool:
    return sites == frozenset(ORDER[: len(sites)])


# By definition, of a target P that is not empty and an observed set C.
DEFINITIONS: dict[str, tuple[Any, Callable[[frozenset[int], frozenset[int]], bool]]] = {
    "any": (AnyQuery(), lambda p, c: not p & c),
    "complete": (CompleteConditionals(), lambda p, c: len(p) == 1 and p | c == SITES),
    "whole": (Whole(), lambda p, c: p == SITES and not c),
    "blocks": (Blocks([LEFT, RIGHT]), lambda p, c: (p <= LEFT or p <= RIGHT) and p | c == SITES),
    "independent blocks": (
        Blocks([LEFT, RIGHT], independent=True),
        lambda p, c: (p <= LEFT and c >= RIGHT) or (p <= RIGHT and c >= LEFT),
    ),
    "prefixes": (Prefixes(ORDER), lambda p, c: is_prefix(c) and is_prefix(c | p)),
    "either": (CompleteConditionals() | Whole(), lambda p, c: p == SITES or (len(p) == 1 and p | c == SITES)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_allowed_are_the_queries_of_the_definition(name: str) -> None:
    answers, definition = DEFINITIONS[name]
    queries = all_queries(4)
    rows = [Query.of(p, c, num_sites=4) for p, c in queries]
    batch = Query(torch.stack([q.target for q in rows]), torch.stack([q.observed for q in rows]))
    expected = [not p or definition(p, c) for p, c in queries]
    assert answers.allows(batch).tolist() == expected
    assert [bool(answers.allows(row)) for row in rows] == expected
    assert any(expected)
    assert name == "any" or not all(expected)


def test_only_independent_blocks_factorize() -> None:
    query = Query.of([0, 2], [1, 3], num_sites=4)
    assert Blocks([LEFT, RIGHT], independent=True).factorizes(query)
    assert not Blocks([LEFT, RIGHT], independent=True).factorizes(Query.of([0, 1], [2, 3], num_sites=4))
    assert not Blocks([LEFT, RIGHT]).factorizes(query)
    assert not AnyQuery().factorizes(query)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Blocks([[0, 1], [1, 2]]),
            "blocks: hold site 1 twice. Put every site, numbered from 0, in exactly one",
        ),
        (lambda: Blocks([[0], [2]]), "blocks: leave out sites below 2"),
        (lambda: Prefixes([0, 2]), "order: is no permutation of the 2 sites"),
    ],
)
def test_wrong_declarations_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(FlexgenError, match=message):
        make()


def test_what_is_no_declaration_is_refused() -> None:
    class Said:
        answers = "everything"

    with pytest.raises(FlexgenError, match=r"answers: of Said is 'everything'. Set it to a value of flexgen.answers"):
        answers_of(Said())


def test_a_refusal_names_row_query_and_what_is_answered() -> None:
    tables = exact.JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(0)).conditional_tables()
    target = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(
        UnsupportedQueryError,
        match=r"query: is Query\(0-1 \| 2\) in row 1, which ConditionalTables does not answer: it answers only "
        r"the complete conditionals p\(x_i \| rest\)\. Ask what it answers",
    ):
        check_query(tables, Query(target, ~target))
    check_query(object(), Query(target, ~target))  # declares nothing: answers any query


# A restricted Boltzmann machine as the documentation teaches it.


class Machine(nn.Module, MarginalConditional):
    def __init__(self, num_visible: int, num_hidden: int, seed: int = 0) -> None:
        super().__init__()
        self.space = Space.binary(num_visible + num_hidden)
        self.sides = (num_visible, num_hidden)
        self.answers = Blocks(
            [range(num_visible), range(num_visible, num_visible + num_hidden)],
            independent=True,
        )
        source = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_visible, num_hidden, generator=source).double())
        self.bias = nn.Parameter(torch.randn(num_visible + num_hidden, generator=source).double())
        self.questions: list[Query] = []

    def marginals(self, x: Tensor, query: Query) -> BernoulliMarginals:
        self.questions.append(query)
        known = torch.where(query.observed, x, 0).to(self.weight.dtype)
        visible, hidden = known.split(self.sides, -1)
        return BernoulliMarginals(torch.cat([hidden @ self.weight.T, visible @ self.weight], -1) + self.bias)

    def table(self) -> exact.JointTable:
        states = self.space.states().double()
        visible, hidden = states.split(self.sides, -1)
        log_p = ((visible @ self.weight) * hidden).sum(-1) + states @ self.bias
        return exact.JointTable(log_p.detach().softmax(0).view((2,) * self.space.num_sites))


def test_questions_of_samplers_are_those_that_are_declared() -> None:
    machine = Machine(3, 2)
    for scan in (scans.systematic(), scans.random(), scans.blocked(machine.answers.blocks)):
        GibbsSampler(machine, scan=scan).run(chains=4, draws=3, generator=0)
    assert machine.questions
    assert all(bool(machine.answers.allows(query).all()) for query in machine.questions)


def test_a_block_is_drawn_and_scored_in_one_evaluation() -> None:
    machine, table = Machine(3, 2), Machine(3, 2).table()
    states = machine.space.states()
    query = Query.of([0, 1, 2], [3, 4], num_sites=5)
    expected = table.log_prob(states, query)
    torch.testing.assert_close(machine.log_prob(states, query), expected, atol=1e-9, rtol=0)
    by_row = query.expand(len(states))
    torch.testing.assert_close(machine.log_prob(states, by_row), expected, atol=1e-9, rtol=0)
    assert len(machine.questions) == 2
    draws = [machine.sample(states, q, generator=torch.Generator().manual_seed(0)) for q in (query, by_row)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0][:, 3:], states[:, 3:])
    assert len(machine.questions) == 4


@pytest.mark.statistical
def test_block_gibbs_samples_the_joint() -> None:
    from scipy import stats

    machine = Machine(3, 2)
    scan = scans.blocked(machine.answers.blocks)
    x = GibbsSampler(machine, scan=scan).run(chains=20_000, draws=1, warmup=40, generator=0).draws[0]  # type: ignore[index]
    counts = torch.bincount((x * torch.tensor([16, 8, 4, 2, 1])).sum(-1), minlength=32).double()

    def p_value(p: Tensor) -> float:
        return float(stats.chisquare(counts, 20_000 * p).pvalue)

    assert p_value(machine.table().p.flatten()) > 1e-6  # false-alarm rate; all expected counts exceed 5
    assert p_value(Machine(3, 2, seed=1).table().p.flatten()) < 1e-6


def test_a_large_machine_starts_at_random_and_fast() -> None:
    machine = Machine(784, 500)
    began = time.process_time()
    found = GibbsSampler(machine, scan=scans.blocked(machine.answers.blocks)).run(chains=2, draws=1, generator=0)
    assert len(machine.questions) == 2  # one for each side: none for the start, which is uniform
    assert found.draws is not None
    assert time.process_time() - began < 10  # 1,284 evaluations and a wrong start before


WHOLE = Query.of(range(5), num_sites=5)
REFUSED: dict[str, Callable[[Machine, Tensor], object]] = {
    "a chain": lambda m, x: m.sample(x, WHOLE, generator=torch.Generator()),
    "a joint density": lambda m, x: m.log_prob(x, WHOLE),
    "any-order decoding": lambda m, x: any_order.sample(m, x, Query.of(range(5), num_sites=5), generator=0),
    "any-order density": lambda m, x: any_order.log_prob(m, x, orders=2, generator=0),
    "parallel decoding": lambda m, x: parallel.sample(m, x, Query.of(range(5), num_sites=5), num_steps=3, generator=0),
    "a schedule": lambda m, x: run(m, x, AnyOrder(Query.of([0, 3], [1, 2, 4], num_sites=5)), generator=0),
    "blocks across the sides": lambda m, x: GibbsSampler(m, scan=scans.blocked([[0, 3], [1, 2, 4]])).run(x=x, draws=1),
    "training": lambda m, x: MaskedLikelihood(laws.uniform_cardinality()).check(m, x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_questions_are_refused_before_any_work(name: str) -> None:
    machine = Machine(3, 2)
    x = machine.space.states()
    with pytest.raises(UnsupportedQueryError, match="which Machine does not answer: it answers only sites of one"):
        REFUSED[name](machine, x)
    assert not machine.questions


def test_training_on_what_is_answered_is_not_refused() -> None:
    class Sides:
        def draw(self, present: Tensor, *, generator: Any, x: Any = None) -> MaskDraw:  # noqa: ARG002
            query = Query.of([0, 1, 2], [3, 4], num_sites=5).expand(len(present))
            return MaskDraw(query, torch.ones(len(present)))

    machine = Machine(3, 2)
    MaskedLikelihood(Sides()).check(machine, machine.space.states())


def test_diagnose_measures_what_is_answered_and_says_what_is_not() -> None:
    machine = Machine(3, 2).eval()
    x = machine.table().sample(torch.zeros(50, 5).long(), Query.of(range(5), num_sites=5), generator=torch.Generator())
    report = fg.diagnose(machine, x, budget=2000)
    assert all(bool(machine.answers.allows(query).all()) for query in machine.questions)
    assert "rectangle gap" in report.effects
    assert report.effects["rectangle gap"].values.abs().max() < 1e-9
    assert "circulation gap" not in report.effects
    assert "does not answer" in str(report.caveats)


class LeftToRight(MarginalConditional):
    """A Markov chain that reads from left to right only."""

    space = Space.categorical([3] * 4)
    answers = Prefixes(range(4))
    table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]).double()

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        query = query.expand(len(x))
        assert bool(self.answers.allows(query).all()), "asked what it cannot know"
        codes = torch.where(query.observed, x, 0).long()
        before = codes.roll(1, 1)
        log_probs = self.table[before].log()
        log_probs[:, 0] = torch.tensor([0.5, 0.3, 0.2]).log()
        return CategoricalMarginals(log_probs)


def test_an_autoregressive_model_decodes_in_its_order_and_refuses_gibbs_and_diagnose() -> None:
    model, x = LeftToRight(), torch.zeros(20, 4, dtype=torch.int64)
    everything = Query.of(range(4), num_sites=4)
    states = model.space.states()
    torch.testing.assert_close(model.log_prob(states, everything).exp().sum().double(), torch.tensor(1.0).double())
    order = torch.arange(4)
    drawn = any_order.sample(model, x, everything, generator=0, order=order)
    assert drawn.shape == x.shape
    later = GibbsSampler(model, scan=scans.systematic())
    with pytest.raises(UnsupportedQueryError, match="it answers only the next sites of its order"):
        later.run(chains=3, draws=1, generator=0)
    with pytest.raises(UnsupportedQueryError, match=r"Compatibility is about conditionals that overlap"):
        fg.diagnose(model, drawn, budget=100)
    with pytest.raises(UnsupportedQueryError, match="does not answer"):
        any_order.sample(model, x, everything, generator=0, order=order.flip(0))


def test_wrappers_declare_what_they_wrap() -> None:
    from samplers import TemperedConditional

    assert answers_of(TemperedConditional(Machine(3, 2), 0.5)) == Machine(3, 2).answers
