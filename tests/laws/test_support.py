"""Draws agree with the law, where the law can be written down: enumeration, chi-square, closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from flexgen.errors import UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Randomness, Streams
from samplers import laws
from samplers.laws.base import Law, Rows, Sets, Side

FALSE_ALARM = 1e-6
DRAWS = 20_000

# Laws over a few sites, small enough to enumerate.
FINITE: dict[str, tuple[Law, int]] = {
    "bernoulli": (laws.Bernoulli(0.3), 4),
    "mdlm": (laws.mdlm(), 4),
    "beta": (laws.Bernoulli(laws.Beta(0.5, 2.5)), 4),
    "truncated_normal": (laws.Bernoulli(laws.TruncatedNormal(0.55, 0.25, 0.5, 1.0)), 4),
    "any_order": (laws.any_order(), 5),
    "k + 1": (laws.power_cardinality(), 5),
    "power_likelihood": (laws.power_cardinality(-2.0, "likelihood"), 4),
    "fixed_count": (laws.FixedCount(2, "mean"), 5),
    "share": (laws.FixedCount(0.5), 6),
    "maskgit": (laws.maskgit(), 5),
    "mage": (laws.mage(), 5),
    "mac": (laws.mac(), 5),
    "simformer": (laws.simformer(), 4),
    "simformer_tasks": (laws.simformer_tasks([0, 1], [2, 3, 4]), 5),
    "causal": (laws.causal(), 6),
    "prefix_random": (laws.Prefix(laws.UniformSize(0, leave=1), ahead=2, order="random"), 4),
    "prefix_order": (laws.Prefix(laws.UniformSize(0), ahead=1, order=(2, 0, 3, 1)), 4),
    "t5": (laws.t5(0.4, 2), 10),
    "t5_many_spans": (laws.t5(0.5, 1), 9),
    "ul2": (laws.ul2(("S", "X")), 8),
    "strided": (laws.Strided(3), 7),
    "words": (laws.Tied(laws.Bernoulli(0.4), laws.Labels((0, 0, 1, 2, 1))), 5),
    "tubes": (laws.Tied(laws.FixedCount(2), laws.Patches((3, 2, 2), (3, 1, 1))), 12),
    "rectangle": (laws.Rectangle((3, 4), 0.3, 0.8), 12),
    "box": (laws.Mixture([laws.Box((2, 4), 0, 0, 1, 0.5), laws.Box((2, 4), 0, 0.25, 0.5, 0.75)]), 8),
    "product": (laws.Product([([0, 3], laws.Bernoulli(0.5)), ([2, 1], laws.causal())]), 4),
    "swap": (laws.Swap(laws.causal()), 4),
    "within": (laws.Within(laws.simformer(), laws.Bernoulli(0.7)), 4),
}
EVERY_LAW = pytest.mark.parametrize("name", FINITE)


def chi_square(law: Law, num_sites: int, drawn_from: Law | None = None, generator: Randomness | None = None) -> float:
    """p-value of draws against the enumerated law; 0 for a draw outside the support.

    Cells expected fewer than 10 times are pooled, so that the chi-square law holds well into the tail.
    """
    support = law.support(num_sites)
    place = {(*q.target.tolist(), *q.observed.tolist()): i for i, (q, _) in enumerate(support)}
    present = torch.ones(DRAWS, num_sites, dtype=torch.bool)
    generator = torch.Generator().manual_seed(17) if generator is None else generator
    query = (drawn_from or law).draw(present, generator=generator).query
    counts = torch.zeros(len(support), dtype=torch.float64)
    codes, repeats = torch.cat([query.target, query.observed], -1).unique(dim=0, return_counts=True)
    for code, repeat in zip(codes.tolist(), repeats.tolist(), strict=True):
        if tuple(code) not in place:
            return 0.0
        counts[place[tuple(code)]] += repeat
    expected = support.probability * DRAWS
    rare = expected < 10
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if len(expected) == 1:
        return 1.0
    return float(stats.chi2.sf(float(((counts - expected) ** 2 / expected).sum()), len(expected) - 1))


@pytest.mark.statistical
@EVERY_LAW
def test_draws_follow_the_enumerated_law(name: str) -> None:
    law, num_sites = FINITE[name]
    assert chi_square(law, num_sites) > FALSE_ALARM
    assert chi_square(law, num_sites, generator=Streams(23, DRAWS)) > FALSE_ALARM


@EVERY_LAW
def test_the_support_is_a_law(name: str) -> None:
    law, num_sites = FINITE[name]
    support = law.support(num_sites)
    assert (support.probability > 0).all()
    assert support.probability.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert (support.weight >= 0).all()
    assert len({(*q.target.tolist(), *q.observed.tolist()) for q, _ in support}) == len(support)


@EVERY_LAW
@pytest.mark.parametrize("side", ["target", "observed"])
def test_closed_forms_agree_with_enumeration(name: str, side: Side) -> None:
    law, num_sites = FINITE[name]
    inclusion, pmf = law.inclusion(num_sites, side), law.cardinality_pmf(num_sites, side)
    torch.testing.assert_close(inclusion, Law.inclusion(law, num_sites, side), rtol=0, atol=1e-9)
    torch.testing.assert_close(pmf, Law.cardinality_pmf(law, num_sites, side), rtol=0, atol=1e-9)
    size = torch.arange(num_sites + 1, dtype=torch.float64)
    assert float(pmf @ size) == pytest.approx(float(inclusion.sum()), abs=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize("name", [name for name in FINITE if name not in ("mdlm", "beta", "power_likelihood")])
def test_weights_agree_with_enumeration(name: str) -> None:
    """The mean of weight times |P|, which every loss is made of; a normal bound at the stated false-alarm rate."""
    law, num_sites = FINITE[name]
    support = law.support(num_sites)
    mean = float((support.probability * support.weight * support.query.target.sum(-1)).sum())
    present = torch.ones(DRAWS, num_sites, dtype=torch.bool)
    drawn = law.draw(present, generator=torch.Generator().manual_seed(2))
    products = drawn.weight.double() * drawn.query.target.sum(-1)
    bound = stats.norm.isf(FALSE_ALARM / 2) * float(products.std()) / math.sqrt(DRAWS)
    assert float(products.mean()) == pytest.approx(mean, abs=bound + 1e-5 * mean)


class LeftmostFirst(Law):
    """Wrong on purpose: the right sizes, but subsets are not uniform: the first sites are favoured slightly."""

    def draw_sets(self, rows: Rows) -> Sets:
        count = laws.UniformSize(1).draw(rows.num_present, generator=rows.generator)
        keys = rows.uniform(rows.num_sites) * torch.linspace(0.9, 1.0, rows.num_sites)
        return rows.rest(keys.argsort(-1).argsort(-1) < count[:, None])


class EmptyTargets(Law):
    """Wrong on purpose: sizes from 0, so that some queries ask for nothing."""

    def draw_sets(self, rows: Rows) -> Sets:
        return laws.FixedCount(laws.UniformSize(0)).draw_sets(rows)


@pytest.mark.statistical
def test_wrong_laws_are_caught() -> None:
    assert chi_square(laws.any_order(), 5, drawn_from=LeftmostFirst()) < FALSE_ALARM
    assert chi_square(laws.any_order(), 5, drawn_from=EmptyTargets()) == 0.0
    assert chi_square(laws.any_order(), 5, drawn_from=laws.power_cardinality()) < FALSE_ALARM


def test_causal_support_is_exact() -> None:
    support = laws.causal().support(5)
    found = {(q.target.nonzero().item(), *q.observed.nonzero().flatten().tolist()): p for q, p in support}
    assert found == {(i, *range(i)): pytest.approx(0.2) for i in range(5)}


def test_a_given_query_is_the_only_one() -> None:
    ((query, probability),) = laws.Given(target=[2], observed=[0]).support(4)
    assert query == Query.of([2], [0], num_sites=4)
    assert probability == 1.0


def test_laws_that_cannot_be_enumerated_say_so() -> None:
    with pytest.raises(UnsupportedQueryError, match=r"law: Blocks cannot be enumerated over 36 sites\. Draw from it"):
        laws.beit((6, 6), 14).support(36)
    with pytest.raises(UnsupportedQueryError, match=r"num_sites: is 40: 2\^40 subsets\. Enumerate over 16 sites"):
        laws.any_order().support(40)
