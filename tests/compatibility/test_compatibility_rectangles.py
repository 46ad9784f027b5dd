"""Rectangles against enumeration and closed form; their cost against an independent count."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexgen import exact
from flexgen.compatibility import SiteAnswers, Values, derivative_gaps, rectangles
from flexgen.compatibility.networks.rectangles import double_centred
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query
from tests.compatibility.planted import Counted, Planted
from tests.compatibility.single_precision import LogProbOnly
from tests.conditionals import generator

SHAPE = (2, 3, 4, 2)


def incompatible(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> exact.ConditionalTables:
    noise = torch.rand(len(shape), *shape, generator=generator(seed), dtype=torch.float64) + 0.1
    return exact.ConditionalTables([t / t.sum(i, keepdim=True) for i, t in enumerate(noise)])


def rows_of(shape: tuple[int, ...], number: int, seed: int = 1) -> Tensor:
    return torch.stack([torch.randint(k, (number,), generator=generator(seed + i)) for i, k in enumerate(shape)], 1)


def gaussian(num_sites: int = 4, seed: int = 3) -> exact.Gaussian:
    root = torch.randn(num_sites, 2 * num_sites, generator=generator(seed), dtype=torch.float64)
    return exact.Gaussian(torch.linspace(-1, 1, num_sites), root @ root.T / num_sites)


def draws(law: exact.Gaussian, number: int, seed: int = 4) -> Tensor:
    start, num_sites = torch.zeros(number, law.space.num_sites, dtype=torch.float64), law.space.num_sites
    return law.sample(start, Query.of(range(num_sites), num_sites=num_sites), generator=generator(seed))


@pytest.mark.parametrize("kind", ["marginals", "log_prob"])
def test_every_rectangle_of_tables_equals_enumeration(kind: str) -> None:
    tables, x = incompatible(), rows_of(SHAPE, 6)
    law = tables if kind == "marginals" else LogProbOnly(tables)
    result = rectangles(law, x)
    forward, backward = result.log_cross_ratios()
    seen = 0
    for row, p in itertools.product(range(len(x)), range(len(result.pairs))):
        i, j = result.pairs[p].tolist()

        def at(site: int, a: Tensor, b: Tensor, row: int = row, i: int = i, j: int = j) -> float:
            state = x[row].clone()
            state[i], state[j] = a, b
            return float(tables.tables[site][tuple(state.tolist())].log())

        for k, m in itertools.product(range(1, SHAPE[i]), range(1, SHAPE[j])):
            assert bool(result.valid[row, p, k, m])
            a, b = result.values_i[row, p], result.values_j[row, p]
            for site, ratio in ((i, forward), (j, backward)):
                expected = at(site, a[0], b[0]) + at(site, a[k], b[m]) - at(site, a[k], b[0]) - at(site, a[0], b[m])
                assert float(ratio[row, p, k, m]) == pytest.approx(expected, abs=1e-12)
            seen += 1
    assert seen == len(result.effect())


def test_interactions_are_double_centred_tables() -> None:
    tables, x = incompatible(), rows_of(SHAPE, 3)
    result = rectangles(tables, x, pairs=torch.tensor([[1, 2]]))
    forward, backward = result.interactions()
    for row in range(len(x)):
        order = result.values_i[row, 0, :3].long(), result.values_j[row, 0, :4].long()
        for site, found in ((1, forward), (2, backward)):
            table = tables.tables[site].log()[x[row, 0], :, :, x[row, 3]]
            centred = table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()
            torch.testing.assert_close(found[row, 0, :3, :4], centred[order[0]][:, order[1]], atol=1e-12, rtol=0)
    assert bool(forward[:, 0, 3].isnan().all())  # site 1 has three categories


def test_interactions_of_a_joint_agree_and_rectangles_follow_from_them() -> None:
    law = exact.JointTable.random(SHAPE, generator=generator(5))
    result = rectangles(law, rows_of(SHAPE, 8))
    one, other = result.interactions()
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0, equal_nan=True)
    ratio, _ = result.log_cross_ratios()
    from_centred = one[..., :1, :1] + one - one[..., :, :1] - one[..., :1, :]
    torch.testing.assert_close(from_centred[result.valid], ratio[result.valid], atol=1e-12, rtol=0)


def test_weights_are_the_probability_of_the_opposite_corner() -> None:
    law = exact.JointTable.random(SHAPE, generator=generator(6))
    x = rows_of(SHAPE, 1)
    result = rectangles(law, x, pairs=torch.tensor([[1, 2]]))
    effect = result.effect()
    p = law.p[x[0, 0], :, :, x[0, 3]]
    a, b = result.values_i[0, 0, 1:3].long(), result.values_j[0, 0, 1:4].long()
    expected = p[a][:, b].flatten()
    torch.testing.assert_close(effect.weights, expected / expected.sum(), atol=1e-12, rtol=0)


def test_cost_is_the_stated_minimum() -> None:
    num_rows = 16
    tables = Counted(Planted(exact.JointTable.random((2,) * 8, generator=generator(7)), 0.1))
    x = rows_of((2,) * 8, num_rows)
    pairs = torch.combinations(torch.arange(8), 2)[::3]
    result = rectangles(SiteAnswers(tables, batch_size=7), x, pairs=pairs, rounding=Rounding(1e-6))
    # Rows of different data rows coincide in so small a space: fewer than stated are evaluated.
    assert result.cost.forwards == len(tables.rows) == result.cost.needed
    assert max(tables.batches) == 7
    assert result.cost.batches == len(tables.batches)
    num_sites = len(pairs.unique())
    assert result.cost.forwards <= num_rows * (num_sites + 2 * len(pairs))

    wide = Counted(gaussian(9))
    x = draws(gaussian(9), num_rows)
    pairs = torch.combinations(torch.arange(9), 2)[::2]
    result = rectangles(wide, x, pairs=pairs, values=Values("model", num_others=4), rounding=Rounding(1e-14))
    stated = num_rows * (len(pairs.unique()) + len(pairs) * (4 + 4))
    assert result.cost.forwards == len(wide.rows) == len(set(wide.rows)) == stated == result.cost.needed


def test_results_do_not_depend_on_the_batch_size() -> None:
    law, x = gaussian(), draws(gaussian(), 10)
    whole = rectangles(law, x, generator=3).effect()
    parts = rectangles(SiteAnswers(law, batch_size=3), x, generator=3).effect()
    torch.testing.assert_close(whole.values, parts.values, atol=1e-11, rtol=0)
    torch.testing.assert_close(whole.weights, parts.weights, atol=1e-11, rtol=0)
    assert not torch.equal(rectangles(law, x, generator=4).values_i, rectangles(law, x, generator=3).values_i)


@pytest.mark.parametrize("source", ["model", "data"])
def test_real_sites_against_the_precision_matrix(source: str) -> None:
    law, x = gaussian(), draws(gaussian(), 20)
    result = rectangles(law, x, values=Values(source))  # type: ignore[arg-type]
    i, j = result.pairs.unbind(1)
    step_i = result.values_i - result.values_i[..., :1]
    step_j = result.values_j - result.values_j[..., :1]
    expected = -law.precision[i, j][:, None, None] * step_i[..., :, None] * step_j[..., None, :]
    for ratio in result.log_cross_ratios():
        torch.testing.assert_close(ratio[result.valid], expected[result.valid], atol=1e-10, rtol=0)
    if source == "data":
        assert bool(torch.isin(result.values_i, x).all())


class Regressions:
    """x_i | rest normal with mean sum_j B_ij x_j and variance s_i^2: a joint exists iff B_ij / s_i^2 is symmetric."""

    def __init__(self, coefficients: Tensor, variances: Tensor) -> None:
        self.coefficients, self.variances = coefficients, variances
        self.space = gaussian(len(variances)).space

    def marginals(self, x: Tensor, query: Query) -> exact.GaussianMixtureMarginals:
        known = torch.where(query.expand(len(x)).observed, x, 0.0)
        mean = (known @ self.coefficients.T)[..., None]
        return exact.GaussianMixtureMarginals(
            torch.zeros_like(mean), mean, self.variances.sqrt()[:, None].expand_as(mean)
        )


def test_incompatible_regressions_have_the_gap_of_their_coefficients() -> None:
    coefficients = torch.tensor([[0.0, 0.55, -0.15], [0.4, 0.0, -0.26666666666666666], [-0.3, -0.4, 0.0]]).double()
    variances = torch.tensor([0.5, 2 / 3, 1.0], dtype=torch.float64)
    model = Regressions(coefficients, variances)
    x = torch.randn(12, 3, generator=generator(8), dtype=torch.float64)
    weight = coefficients / variances[:, None]  # only sites 0 and 1 disagree: 1.1 against 0.6
    gaps = derivative_gaps(model, x, spread=torch.ones(3))
    expected = torch.tensor([weight[i, j] - weight[j, i] for i, j in gaps.sites.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gaps.values, expected, atol=1e-6, rtol=0)  # 0.2666.. is rounded to float32 above
    result = rectangles(model, x)
    step = (result.values_i - result.values_i[..., :1])[..., :, None] * (result.values_j - result.values_j[..., :1])[
        ..., None, :
    ]
    one, other = result.log_cross_ratios()
    torch.testing.assert_close((one - other)[:, 0], 0.5 * step[:, 0], atol=1e-6, rtol=0)
    assert result.effect().verdict() == "refuted"


def test_mixed_derivatives_are_those_of_the_joint() -> None:
    law = gaussian()
    gaps = derivative_gaps(law, draws(law, 10))
    assert bool((gaps.values.abs() <= gaps.floors).all())
    assert gaps.cost.forwards == 2 * 10 * 4  # and once more to see what rounding does

    class Mute(LogProbOnly):
        def marginals(self, x: Tensor, query: Query) -> object:
            with torch.no_grad():
                return law.marginals(x, query)

    with pytest.raises(UnsupportedQueryError, match="Mute answers without gradient in what it observes"):
        derivative_gaps(Mute(law), draws(law, 3))
    with pytest.raises(UnsupportedQueryError, match="sites: holds '0', which is not real"):
        derivative_gaps(exact.JointTable.random((2, 2), generator=generator()), rows_of((2, 2), 3).double(),
                        sites=torch.tensor([0, 1]))  # fmt: skip


def test_missing_entries_and_contexts() -> None:
    law, x = gaussian(), draws(gaussian(), 8)
    x[0, 1] = x[3, 2] = torch.nan
    result = rectangles(law, x)
    absent = (result.pairs[:, 0] == 1) | (result.pairs[:, 1] == 1)
    assert not bool(result.valid[0, absent].any())
    assert bool(result.valid[0, ~absent].any())
    assert bool((result.effect().values.abs() <= result.effect().floors).all())
    pair = torch.tensor([[0, 1]])
    observed = torch.tensor([True, True, False, False]).expand(8, -1)
    counted = Counted(law)
    rectangles(counted, x, pairs=pair, observed=observed)
    assert all(row[2] is None and row[3] is None for row in counted.rows)


def test_impossible_categories_are_left_out() -> None:
    p = torch.rand(3, 3, 2, generator=generator(9), dtype=torch.float64)
    p[2] = 0.0
    law = exact.JointTable.from_unnormalised(p)
    x = torch.tensor([[0, 1, 0], [1, 2, 1]])
    result = rectangles(law, x)
    assert not bool((result.valid[:, 0, :, 0] & (result.values_i[:, 0] == 2)).any())
    assert bool((result.effect().values.abs() <= result.effect().floors).all())


def test_double_centring_sees_valid_cells_only() -> None:
    table = torch.arange(9.0, dtype=torch.float64).view(3, 3).square()
    valid = torch.tensor([True, True, False])
    cells = valid[:, None] & torch.tensor([True, True, True])
    small = table[:2] - table[:2].mean(0) - table[:2].mean(1, keepdim=True) + table[:2].mean()
    torch.testing.assert_close(double_centred(table, cells)[:2], small)


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        (torch.tensor([[0, 0]]), r"pairs: holds \[0, 0\]\. Name two different sites of 0 to 3"),
        (torch.tensor([[0, 9]]), r"pairs: holds \[0, 9\]"),
        (torch.tensor([0, 1]), r"pairs: has shape \(2,\)"),
    ],
)
def test_bad_pairs(pairs: Tensor, text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        rectangles(incompatible(), rows_of(SHAPE, 2), pairs=pairs)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda t, x: rectangles(t, x[0]), r"x: has shape \(4,\)\. Pass rows \[R, 4\], a column a site"),
        (lambda t, x: rectangles(t, x[:, :3]), r"x: has shape \(2, 3\)\. Pass rows \[R, 4\]"),
        (lambda t, x: rectangles(t, x, observed=[3, 4]), r"observed: is a list\. Pass a tensor"),
        (lambda t, x: rectangles(t, x, observed=torch.ones(4)), "observed: holds torch.float32"),
        (lambda t, x: rectangles(t, x, pairs=[[0, 1]]), r"pairs: is a list\. Pass a tensor of whole numbers"),
        (lambda t, x: rectangles(t, x, values="model"), "values: is 'model'"),
        (lambda t, x: rectangles(t, x, pool=x[0]), r"pool: has shape \(4,\)"),
        (lambda t, x: rectangles(t, x, generator="a"), "generator: is 'a'"),
        (lambda _, x: derivative_gaps(gaussian(), x[0].double()), r"x: has shape \(4,\)"),
        (lambda _, x: derivative_gaps(gaussian(), x.double(), sites=[9]), "sites: holds 9"),
        (lambda _, x: derivative_gaps(gaussian(), x.double(), spread=torch.ones(2)), r"spread: have shape \(2,\)"),
    ],
)
def test_bad_arguments(call: Callable[[object, Tensor], object], text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        call(incompatible(), rows_of(SHAPE, 2))


def test_whole_numbers_at_real_sites_are_numbers() -> None:
    law, x = gaussian(), 3 * rows_of((5,) * 4, 8)
    gaps, floats = derivative_gaps(law, x), derivative_gaps(law, x.double())
    torch.testing.assert_close(gaps.values, floats.values)
    assert len(gaps) == 8 * 6


def test_what_cannot_be_asked() -> None:
    class Draws:
        space = gaussian().space

    with pytest.raises(UnsupportedQueryError, match="conditional: Draws has no density"):
        SiteAnswers(Draws())
    with pytest.raises(UnsupportedQueryError, match=r"source: is 'model', but the conditional answers log_prob alone"):
        rectangles(LogProbOnly(gaussian()), draws(gaussian(), 3), values=Values("model"))
    with pytest.raises(FlexgenError, match="num_others: is 0"):
        Values(num_others=0)
    with pytest.raises(FlexgenError, match="batch_size: is 0"):
        SiteAnswers(gaussian(), batch_size=0)
