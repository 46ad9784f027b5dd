"""Masked language models as conditionals, against the same networks asked by hand, one row at a time."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.adapters import MaskedLanguageModel
from flexgen.adapters.forward_passes import _batches, _distinct
from flexgen.conditional import CanSample, HasLogProb, HasMarginals
from flexgen.errors import FlexgenError, QueryError, SpaceError
from flexgen.query import Query
from flexgen.rng import Streams
from tests.adapters.tiny_mlm import LETTERS, by_hand, network, tiny, tokenizer
from tests.conditionals import generator

LENGTHS = [5, 2, 5, 1, 3, 4, 2]


def rows(lengths: list[int] = LENGTHS, *, num_categories: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes ``[B, max length]``, absent behind each row's end, and a random half of the places, bool."""
    x = torch.randint(num_categories, (len(lengths), max(lengths)), generator=generator(seed))
    absent = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return x.masked_fill(absent, num_categories), torch.rand(x.shape, generator=generator(seed + 1)) < 0.5


def assert_answers(found: Tensor, expected: Tensor) -> None:
    known = ~expected.isnan()
    torch.testing.assert_close(found[known], expected[known], atol=1e-10, rtol=0)


def test_it_can_do_what_it_says() -> None:
    mlm = tiny(5)
    assert isinstance(mlm, HasMarginals)
    assert isinstance(mlm, HasLogProb)
    assert isinstance(mlm, CanSample)
    assert mlm.space.num_categories == (3,) * 5
    assert tiny(4, variable_length=True).space.num_categories == (4,) * 4
    assert tiny(4, alphabet=None).space.num_categories == (5,) * 4
    assert repr(mlm) == "MaskedLanguageModel(BertForMaskedLM, 5 sites, alphabet ABC)"


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Esm", "DistilBert"])
def test_answers_of_rows_of_one_length(kind: str) -> None:
    model = network(kind)
    mlm = MaskedLanguageModel(model, tokenizer(), num_sites=4, alphabet="ABC")
    x, observed = rows([4] * 12)
    query = Query.rest(observed)
    assert_answers(mlm.marginals(x, query).log_probs, by_hand(model, x, query, lengths=[4] * 12))


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Esm", "DistilBert"])
@pytest.mark.parametrize("max_tokens", [1, 13, 1000])
def test_answers_of_rows_of_different_lengths_are_those_of_each_row_alone(kind: str, max_tokens: int) -> None:
    model = network(kind)
    mlm = MaskedLanguageModel(
        model, tokenizer(), num_sites=5, alphabet="ABC", variable_length=True, max_tokens=max_tokens
    )
    x, observed = rows()
    query = mlm.rest(x, observed)
    log_probs = mlm.marginals(x, query).log_probs
    assert_answers(log_probs[..., :3], by_hand(model, x, query, lengths=LENGTHS))
    assert (log_probs[..., 3][query.target] == -math.inf).all()  # nothing asked for is absent
    assert torch.isfinite(mlm.marginals(x, query).log_prob(x)).all()
    # An absent site is not a masked one: with masks behind its end a row has other answers.
    masked = by_hand(model, x.clamp_max(2), Query.rest(observed & ~mlm.absent(x)), lengths=[5] * 7)
    with pytest.raises(AssertionError):
        assert_answers(log_probs[..., :3], torch.where(query.target[..., None], masked, torch.nan))


def test_a_site_that_is_neither_asked_for_nor_observed_is_masked() -> None:
    mlm = tiny(5)
    x, observed = rows([5] * 8)
    target = ~observed & (torch.rand(x.shape, generator=generator(3)) < 0.5)
    query = Query(target, observed)
    expected = by_hand(network(), x, Query.rest(observed), lengths=[5] * 8)
    expected[~target.any(-1)] = torch.nan  # rows that ask for nothing are not evaluated
    assert_answers(mlm.marginals(x, query).log_probs, expected)


def test_an_answer_is_restricted_to_the_alphabet() -> None:
    x, query = torch.zeros(1, 3, dtype=torch.int64), Query.rest(torch.tensor([True, False, True]))
    assert tiny(3, alphabet=None).alphabet.symbols == tuple(LETTERS)
    whole = tiny(3, alphabet=None).marginals(x, query).log_probs[0, 1]  # A_A
    part = tiny(3, alphabet="CA").marginals(x + 1, query).log_probs[0, 1]  # A is the second letter
    torch.testing.assert_close(part, whole[[2, 0]].log_softmax(-1), atol=1e-12, rtol=0)


def test_the_chain_rule_by_hand() -> None:
    mlm = tiny(5, variable_length=True)
    x, observed = rows()
    query = mlm.rest(x, observed)
    expected = torch.zeros(len(x), dtype=torch.float64)
    for step in query.chain():
        masked = by_hand(network(), x, Query.rest(step.observed), lengths=LENGTHS)
        at = masked.nan_to_num().gather(-1, x.clamp_max(2)[..., None])[..., 0]
        expected += torch.where(step.target, at, 0.0).sum(-1)
    torch.testing.assert_close(mlm.log_prob(x, query), expected, atol=1e-10, rtol=0)
    assert (expected[query.target.sum(-1) > 1] < 0).all()


def test_equal_rows_pass_once_and_rows_without_a_question_not_at_all() -> None:
    mlm = tiny(4, variable_length=True)
    x = mlm.encode(["ABC", "ABC", "ABCA", "BBC", "ACC", "ABC"])
    observed = torch.tensor([[True, False, True, False]] * 5 + [[True] * 4])
    query = mlm.rest(x, observed)
    mlm.marginals(x, query)
    # "A_C" three times, of which one with a fourth letter open; "B_C"; the last asks for nothing.
    assert (mlm.forwards.rows, mlm.forwards.batches) == (3, 1)
    assert mlm.forwards.tokens == 3 * 6
    mlm.resized(4).marginals(x[2:3], Query.complete(1, num_sites=4))
    assert mlm.forwards.rows == 4  # the count is shared
    mlm.forwards.reset()
    mlm.marginals(x, Query.of([], [0, 1, 2], num_sites=4))
    assert (mlm.forwards.rows, mlm.forwards.batches, mlm.forwards.tokens) == (0, 0, 0)


def test_one_letter_asked_in_every_context_costs_one_row_a_context() -> None:
    mlm = tiny(4)
    x = mlm.space.states()
    mlm.marginals(x, Query.complete(2, num_sites=4))
    assert mlm.forwards.rows == 3**3
    together = mlm.marginals(x, Query.complete(2, num_sites=4)).log_probs
    assert together.shape == (81, 4, 3)
    assert_answers(together[:, 2], by_hand(network(), x, Query.complete(2, num_sites=4), lengths=[4] * 81)[:, 2])


def test_rows_may_ask_for_different_sites() -> None:
    mlm = tiny(4)
    x, _ = rows([4] * 4)
    query = Query.rest(~torch.eye(4, dtype=torch.bool))
    assert_answers(mlm.marginals(x, query).log_probs, by_hand(network(), x, query, lengths=[4] * 4))
    assert mlm.forwards.batches == 1


@pytest.mark.parametrize("budget", [1, 5, 12, 13, 40])
def test_batches_fit_the_budget_and_could_not_be_larger(budget: int) -> None:
    lengths = sorted([4] * 7 + [1, 2, 3, 3, 6, 9, 9])
    batches = list(_batches(lengths, budget))
    assert [row for batch in batches for row in range(len(lengths))[batch]] == list(range(len(lengths)))
    for batch in batches:
        size = batch.stop - batch.start
        assert size == 1 or size * lengths[batch.stop - 1] <= budget
        if batch.stop < len(lengths):
            assert (size + 1) * lengths[batch.stop] > budget
    assert list(_batches([], budget)) == []


def test_equal_rows_are_found_also_where_hashes_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randint(3, (500, 4), generator=generator(6))
    for _ in range(2):
        first, copy_of = _distinct(x)
        assert torch.equal(x[first][copy_of], x)
        assert sorted(map(tuple, x[first].tolist())) == sorted(set(map(tuple, x.tolist())))
        assert (first[copy_of] <= torch.arange(500)).all()
        # From here on every hash is the row's sum.
        monkeypatch.setattr(torch, "randint", lambda _, shape, **__: torch.zeros(shape, dtype=torch.int64))


def test_dropout_is_off_and_the_mode_is_left_alone() -> None:
    model = network(dropout=0.3)
    mlm = MaskedLanguageModel(model, tokenizer(), num_sites=4, alphabet="ABC")
    x, observed = rows([4] * 6)
    expected = mlm.marginals(x, Query.rest(observed)).log_probs
    model.train()
    state = torch.get_rng_state()
    try:
        assert torch.equal(mlm.marginals(x, Query.rest(observed)).log_probs, expected)
        assert model.training
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        model.eval()


def test_gradients_flow_where_they_are_asked_for() -> None:
    x, observed = rows([4] * 6)
    query = Query.rest(observed)
    assert not tiny(4).log_prob(x, query).requires_grad
    mlm = tiny(4, differentiable=True)
    assert mlm.resized(4).differentiable
    bias = network().cls.predictions.bias
    answers = mlm.marginals(x, query)
    (gradient,) = torch.autograd.grad(answers.log_prob(x)[query.target].sum(), bias)
    # d log softmax(l)[k] / d l = 1_k - softmax(l), of the alphabet's tokens 5, 6, 7 alone.
    hits = torch.nn.functional.one_hot(x, 3).double() - answers.log_probs.detach().exp()
    expected = torch.zeros(10, dtype=torch.float64)
    expected[5:8] = hits[query.target].sum(0)
    torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=0)
    with torch.no_grad():
        assert not mlm.log_prob(x, query).requires_grad


def test_networks_of_other_precision() -> None:
    x, observed = rows([4] * 6)
    query = Query.rest(observed)
    expected = tiny(4).marginals(x, query).log_probs
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.5)):
        model = copy.deepcopy(network()).to(dtype)
        found = MaskedLanguageModel(model, tokenizer(), num_sites=4, alphabet="ABC").marginals(x, query).log_probs
        assert found.dtype == torch.float64
        torch.testing.assert_close(found[query.target].exp().sum(-1), torch.ones(int(query.target.sum())).double())
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_draws_of_a_row_do_not_depend_on_the_rows_beside_it() -> None:
    mlm = tiny(5, variable_length=True)
    x, observed = rows()
    query = mlm.rest(x, observed)
    whole = mlm.sample(x, query, generator=Streams(1, 7))
    for row in range(7):
        alone = mlm.sample(x[row : row + 1], query[row : row + 1], generator=Streams(1, torch.tensor([row])))
        assert torch.equal(alone[0], whole[row])
    assert torch.equal(mlm.absent(whole), mlm.absent(x))
    assert torch.equal(whole[~query.target], x[~query.target])


def test_it_is_a_module_that_can_be_copied_and_moved() -> None:
    mlm = tiny(4)
    assert not mlm.training
    assert [id(weight) for weight in mlm.parameters()] == [id(weight) for weight in network().parameters()]
    other = copy.deepcopy(mlm).to(torch.float32)
    x, observed = rows([4] * 6)
    query = Query.rest(observed)
    found, expected = (model.marginals(x, query).log_probs for model in (other, mlm))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.equal(found, expected)
    assert next(mlm.parameters()).dtype == torch.float64


def test_floats_hold_codes_as_well() -> None:
    mlm = tiny(4)
    x, observed = rows([4] * 6)
    query = Query.rest(observed)
    spoilt = x.double().masked_fill(~observed, math.nan)
    assert torch.equal(mlm.marginals(spoilt, query).log_probs, mlm.marginals(x, query).log_probs)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_sites": 0}, "num_sites: is 0. Pass at least 1"),
        ({"num_sites": 23}, "num_sites: is 23. This model reads at most 22 tokens of a row"),
        ({"max_tokens": 0}, "max_tokens: is 0. Pass at least 1"),
        ({"alphabet": ""}, "alphabet: is empty"),
        ({"alphabet": "ABA"}, "alphabet: holds 'A' twice"),
        ({"alphabet": "AX"}, "alphabet: holds 'X', which is no token of this tokenizer"),
        ({"alphabet": ["A", "[SEP]"]}, r"alphabet: holds the special token '\[SEP\]'"),
    ],
)
def test_arguments(options: dict[str, Any], text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        MaskedLanguageModel(network(), tokenizer(), **{"num_sites": 4, **options})


def test_models_and_tokenizers_that_do_not_fit() -> None:
    with pytest.raises(FlexgenError, match="alphabet: holds 'F', for which the model has no logit"):
        MaskedLanguageModel(network(), tokenizer("ABCDEF"), num_sites=4)
    with pytest.raises(FlexgenError, match="tokenizer: is an object without a mask token"):
        MaskedLanguageModel(network(), object(), num_sites=4)
    mlm = MaskedLanguageModel(network().bert, tokenizer(), num_sites=4)
    with pytest.raises(FlexgenError, match=r"model: answers with BaseModelOutput.*, which has no logits"):
        mlm.marginals(torch.zeros(1, 4), Query.of([0], num_sites=4))


def test_values_that_are_no_rows() -> None:
    mlm = tiny(4, variable_length=True)
    gap = torch.tensor([[0, 3, 1, 3]])
    everything = Query.of([], range(4), num_sites=4)
    with pytest.raises(SpaceError, match=r"observes site 1 of row 0 to be absent \(code 3\), but not every later one"):
        mlm.marginals(gap, everything)
    with pytest.raises(SpaceError, match=r"x: holds 4 at row 0, site '3'"):
        mlm.marginals(torch.tensor([[0, 1, 1, 4]]), everything)
    with pytest.raises(SpaceError, match=r"x: holds 3 at row 0, site '3'"):
        tiny(4).marginals(torch.tensor([[0, 1, 1, 3]]), everything)
    with pytest.raises(QueryError, match="has 2 rows, but x has 1"):
        mlm.marginals(gap, everything.expand(2))
    with pytest.raises(FlexgenError, match="absent_code: is of a model whose rows all have 4 tokens"):
        _ = tiny(4).absent_code


def test_queries_over_another_number_of_sites_are_refused() -> None:
    mlm = tiny(4)
    x, query = mlm.encode(["ABCA"]), Query.complete(1, num_sites=5)
    for answer in (mlm.marginals, mlm.log_prob, lambda x, query: mlm.sample(x, query, generator=generator(0))):
        with pytest.raises(QueryError, match=r"^query: is over 5 sites, but (the model's rows have|x has) 4\. "):
            answer(x, query)
    with pytest.raises(QueryError, match=r"^observed: has shape \(5,\)\. Pass booleans \[N\] = \[4\]"):
        mlm.rest(x, torch.ones(5, dtype=torch.bool))


def test_features_are_the_last_hidden_layer() -> None:
    mlm = tiny(4)
    x = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    query = Query.of([1], [0, 3], num_sites=4)
    found = mlm.features(x, query)
    cut = tokenizer()
    for row, words in enumerate(["A [MASK] [MASK] A", "C [MASK] [MASK] A"]):
        words = words.replace("A", LETTERS[0]).replace("C", LETTERS[2])
        with torch.no_grad():
            output = network()(**cut(words, return_tensors="pt"), output_hidden_states=True)
        torch.testing.assert_close(found[row], output.hidden_states[-1][0, 1:-1], atol=1e-10, rtol=0)
    longer = tiny(4, variable_length=True)
    short = torch.tensor([[0, 1, longer.absent_code, longer.absent_code]])
    features = longer.features(short, longer.rest(short))
    assert (features[0, 2:] == 0).all()
    torch.testing.assert_close(features[:, :2], tiny(2).features(short[:, :2], Query.of([0, 1], num_sites=2)))
