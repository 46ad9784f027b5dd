"""Diagnostics of masked language models, against their own conditionals asked by hand, one row at a time."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor

import flexgen as fg
from flexgen.compatibility import SiteAnswers, Values, circulation, exact_blocks, order_gaps, rectangles
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.errors import DataError
from flexgen.query import Query
from tests.adapters.test_transformers_mlm_samplers import K, N, complete_conditionals
from tests.adapters.tiny_mlm import by_hand, network, tiny

EXACT = Rounding(1e-14)
TEXTS = ["ABCA", "AB", "CBA", "C", "BBAC", "CA"]


def test_rectangles_are_those_of_the_tables_by_hand() -> None:
    mlm = tiny(N)
    effect = rectangles(mlm, mlm.space.states(), pairs=torch.tensor([[0, 1]])).effect()
    # The gaps of all rectangles (a, a'), (b, b') of sites 0 and 1 given x_2, from the tables.
    difference = complete_conditionals().block_table(0).log() - complete_conditionals().block_table(1).log()
    a, b, c, d, rest = torch.cartesian_prod(*[torch.arange(K)] * 5).T
    gaps = difference[a, b, rest] + difference[c, d, rest] - difference[c, b, rest] - difference[a, d, rest]
    assert len(effect) == K**N * (K - 1) ** 2
    nearest = (effect.values[:, None] - gaps).abs().amin(1)
    assert nearest.max() < 1e-9
    assert effect.verdict() == "refuted"


def test_blocks_are_the_network_asked_by_hand() -> None:
    mlm = tiny(4)
    row, block = mlm.encode("ABCA"), [0, 2, 3]
    (tables,) = exact_blocks(mlm, row, torch.tensor(block)).tables
    states = torch.cartesian_prod(*[torch.arange(K)] * 3)
    x = row.repeat(len(states), 1)
    x[:, block] = states
    for place, site in enumerate(block):
        expected = by_hand(network(), x, Query.complete(site, num_sites=4), lengths=[4] * len(x))[:, site].exp()
        others = states[:, place] == 0  # its own value is not read
        found = tables.block_table(place).movedim(place, -1).reshape(-1, K)
        torch.testing.assert_close(found, expected[others], atol=1e-10, rtol=0)


def together(texts: list[str] = TEXTS) -> tuple[fg.adapters.MaskedLanguageModel, Tensor]:
    wide = tiny(4, variable_length=True)
    return wide, wide.encode(texts)


def test_rows_of_different_lengths_have_the_rectangles_that_they_have_alone() -> None:
    wide, x = together()
    effect = rectangles(wide, x, rounding=EXACT).effect()
    for row, text in enumerate(TEXTS):
        alone = tiny(len(text))
        found = effect.values[effect.rows == row]
        if len(text) == 1:
            assert len(found) == 0
            continue
        expected = rectangles(alone, alone.encode([text]), rounding=EXACT).effect()
        torch.testing.assert_close(found, expected.values, atol=1e-9, rtol=0)
        assert torch.equal(effect.sites[effect.rows == row], expected.sites)


def test_and_the_circulations_order_gaps_and_blocks() -> None:
    wide, x = together()
    short = [row for row, text in enumerate(TEXTS) if len(text) == 2]
    alone = tiny(2)
    pair, nothing = torch.tensor([[0, 1]]), torch.zeros(4, dtype=torch.bool)
    found = circulation(wide, x, pairs=pair, observed=nothing, rounding=EXACT)
    expected = circulation(alone, x[short, :2], pairs=pair, observed=nothing[:2], rounding=EXACT)
    torch.testing.assert_close(found.values[short], expected.values, atol=1e-9, rtol=0)
    random = circulation(wide, x, rounding=EXACT)
    absent = wide.absent(x)
    assert not bool((random.observed & absent[:, None]).any())
    assert len(random.effects()[0]) == sum(len(t) * (len(t) - 1) // 2 for t in TEXTS) * K * K

    orders = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    gaps = order_gaps(wide, x, orders=orders, rounding=EXACT)
    expected_gaps = order_gaps(alone, x[short, :2], orders=torch.tensor([[0, 1], [1, 0]]), rounding=EXACT)
    torch.testing.assert_close(gaps.log_probs[short], expected_gaps.log_probs, atol=1e-9, rtol=0)
    assert sorted(gaps.effect().rows.tolist()) == [row for row, text in enumerate(TEXTS) if len(text) > 1]

    (block,) = exact_blocks(wide, x[short[:1]], [0, 1]).tables
    (expected_block,) = exact_blocks(alone, x[short[:1], :2], [0, 1]).tables
    for site in range(2):
        torch.testing.assert_close(block.block_table(site), expected_block.block_table(site), atol=1e-9, rtol=0)


def test_the_absent_code_is_no_value_of_a_site() -> None:
    wide, x = together()
    answers = SiteAnswers(wide)
    assert answers.num_categories == (K,) * 4
    assert Values(max_categories=K).widths(answers.num_categories).tolist() == [K] * 4
    for values in (Values(max_categories=K), Values(max_categories=1), Values("data", max_categories=1)):
        result = rectangles(wide, x, values=values, pool=x, rounding=EXACT)
        assert float(result.values_i[result.valid.any(-1)].max()) < K


def test_a_diagnosis_of_rows_of_different_lengths() -> None:
    wide, x = together(TEXTS * 3)
    report = fg.diagnose(wide, x, budget=1500, names=[f"place {i}" for i in range(4)])
    assert report.verdict == "refuted"
    assert {"rectangle gap", "circulation", "order gap", "block scan divergence"} <= set(report.effects)
    lengths = torch.tensor([len(text) for text in TEXTS * 3])
    for effect in report.effects.values():
        if effect.sites.shape[1]:
            assert bool((effect.sites < lengths[effect.rows][:, None]).all())
    titles = [tick.get_text() for tick in report.plot().axes[0].get_xticklabels()]
    assert titles == [f"place {i}" for i in range(4)]
    assert not any("Not measured" in line for line in report.caveats)


def test_a_diagnosis_of_strings() -> None:
    """A thousand rows as text; places are named by tokens and rows by their text."""
    mlm = tiny(4, variable_length=True)
    texts = [TEXTS[i % len(TEXTS)] for i in range(1000)]
    report = fg.diagnose(mlm, texts, budget=1500)
    encoded = fg.diagnose(mlm, mlm.encode(texts), budget=1500)
    assert report.to_dataframe().drop(columns="seconds").equals(encoded.to_dataframe().drop(columns="seconds"))
    series = fg.diagnose(mlm, pd.Series(texts), budget=1500)
    assert series.examples == report.examples
    assert {example.context for example in report.examples} <= set(TEXTS)
    assert all(set(pair) <= set("ABC") for example in report.examples for pair in example.values)
    assert "“" in repr(report)


def test_texts_that_cannot_be_diagnosed() -> None:
    mlm = tiny(4, variable_length=True)
    with pytest.raises(DataError, match=r"data: is one string\. Pass a list of strings, one a row"):
        fg.diagnose(mlm, "ABCA")  # type: ignore[call-overload]
    with pytest.raises(DataError, match=r"texts\[1\]: has 5 tokens, the model's rows 4"):
        fg.diagnose(mlm, ["ABC", "ABCAB"])
    with pytest.raises(DataError, match=r"texts\[1\]: has a blank at place 1"):
        fg.diagnose(mlm, ["ABC", "A_C"])
    with pytest.raises(DataError, match="data: holds strings, which JointTable does not encode"):
        fg.diagnose(fg.exact.JointTable.random((2, 2), generator=torch.Generator().manual_seed(0)), ["01", "11"])
