"""The consistency penalty: zero where there is a joint, without bias, and its gradient lowers the gaps it penalises."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.compatibility import circulation, rectangles
from flexgen.compatibility.networks.rounding import Rounding
from flexgen.compatibility.repair import ConsistencyPenalty, Penalised
from flexgen.compatibility.repair.penalty import Places, rectangle_gaps
from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.errors import DataError, FlexgenError, SpaceError, UnsupportedQueryError
from flexgen.exact import JointTable
from flexgen.query import Query
from flexgen.space import Space
from flexgen.tables.conditional import TrainableTable
from flexgen.tables.settings import TableSettings
from flexgen.training import MaskedLikelihood, TensorData, TrainingSettings, train
from samplers import laws
from tests.adapters.tiny_mlm import tiny
from tests.compatibility.planted import Planted

SETTINGS = TrainingSettings(num_steps=150, batch_size=16, lr=0.05, weight_decay=0.0, num_warmup_steps=0)


class FreeLogits(nn.Module, MarginalConditional):
    """Softmax answers with logits W times the observed one-hots; compatible if W is symmetric."""

    def __init__(self, sizes: list[int], scale: float, *, dropout: float = 0.0) -> None:
        super().__init__()
        self._space = Space.categorical(sizes)
        width = len(sizes) * max(sizes)
        source = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(scale * torch.randn(width, width, generator=source, dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    @property
    def space(self) -> Space:
        return self._space

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        observed = query.expand(len(x)).observed
        most = max(self.space.num_categories)
        hot = torch.nn.functional.one_hot(x.long(), most).double() * observed[..., None]
        logits = (self.dropout(hot.flatten(1)) @ self.weight).view(len(x), -1, most)
        outside = torch.arange(most) >= torch.tensor(self.space.num_categories)[:, None]
        return CategoricalMarginals(logits.masked_fill(outside, -torch.inf).log_softmax(-1))


class LinearGaussian(nn.Module, MarginalConditional):
    """x_i | observed ~ N(sum of W_ij x_j over observed j, 1): complete conditionals have a joint iff W is symmetric."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._space = Space.real(len(weight))
        self.weight = nn.Parameter(weight.clone())

    @property
    def space(self) -> Space:
        return self._space

    def marginals(self, x: Tensor, query: Query) -> NormalMarginals:
        observed = query.expand(len(x)).observed
        off_diagonal = self.weight * (1 - torch.eye(len(self.weight), dtype=self.weight.dtype))
        return NormalMarginals(torch.where(observed, x, 0.0) @ off_diagonal.T)


class NormalMarginals:
    def __init__(self, means: Tensor) -> None:
        self.means = means

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * (x - self.means).square() - 0.5 * math.log(2 * math.pi)

    def sample(self, *, generator: rng.Randomness) -> Tensor:
        return self.means + rng.normal(self.means.shape, generator=generator, dtype=self.means.dtype)

    def mean(self) -> Tensor:
        return self.means

    mode = mean


def mean_gap(model: object, x: Tensor, what: str = "rectangles") -> float:
    measure = rectangles if what == "rectangles" else circulation
    result = measure(model, x, rounding=Rounding(1e-14))  # type: ignore[operator, arg-type]
    effect = result.effect() if what == "rectangles" else result.effects()[0]  # type: ignore[union-attr]
    return effect.uniform().value


@pytest.mark.parametrize("kind", ["rectangles", "circulations"])
def test_compatibility_penalty_is_zero_iff_there_is_a_joint(kind: str) -> None:
    joint = JointTable.random((2, 3, 2, 4), generator=torch.Generator().manual_seed(0))
    penalty = ConsistencyPenalty(kind, num_pairs=4)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    on_joint = penalty(joint, joint.space.states(), generator)  # type: ignore[arg-type]
    assert on_joint.shape == (48,)
    assert float(on_joint.max()) < 1e-24  # squares of rounding errors of float64
    broken = Planted(JointTable.random((2,) * 4, generator=generator), 0.05)
    assert float(penalty(broken, broken.space.states(), generator).mean()) > 1e-5  # type: ignore[arg-type]


def test_compatibility_rectangle_penalty_equals_the_planted_gap() -> None:
    """Every gap between sites but the last is 4 theta, every other one zero: half of the six pairs."""
    theta = 0.1
    model = Planted(JointTable.random((2,) * 4, generator=torch.Generator().manual_seed(2)), theta)
    penalty = ConsistencyPenalty(num_pairs=8)
    sizes = penalty.gaps(model, model.space.states(), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    nothing = sizes.abs() < 1e-12
    assert ((sizes.abs() - 4 * theta).abs() < 1e-12)[~nothing].all()
    assert 0 < int(nothing.sum()) < len(sizes)


def exact_rectangle_penalty(model: FreeLogits, x: Tensor) -> Tensor:
    """Over all pairs and other values, weighted by the model's answers at the row, ``[B]``; corner by corner."""
    num_sites, sizes = model.space.num_sites, model.space.num_categories

    def log_p(row: Tensor, site: int) -> Tensor:
        return model.marginals(row[None], Query.complete(site, num_sites=num_sites)).log_probs[0, site]

    def put(row: Tensor, site: int, value: int) -> Tensor:
        return torch.cat([row[:site], row.new_tensor([value]), row[site + 1 :]])

    means = []
    for row in x:
        total = torch.zeros((), dtype=torch.float64)
        for i, j in itertools.combinations(range(num_sites), 2):
            a, b = int(row[i]), int(row[j])
            p_i, p_j = log_p(row, i).exp(), log_p(row, j).exp()
            for c, d in itertools.product(range(sizes[i]), range(sizes[j])):
                if c == a or d == b:
                    continue
                chance = p_i[c] / (1 - p_i[a]) * p_j[d] / (1 - p_j[b])
                at_d, at_c = log_p(put(row, j, d), i), log_p(put(row, i, c), j)
                one = log_p(row, i)[a] + at_d[c] - log_p(row, i)[c] - at_d[a]
                other = log_p(row, j)[b] + at_c[d] - log_p(row, j)[d] - at_c[b]
                total = total + chance.detach() * (one - other).square()
        means.append(total / math.comb(num_sites, 2))
    return torch.stack(means)


@pytest.mark.statistical
def test_compatibility_penalty_and_its_gradient_are_without_bias() -> None:
    """False alarms: 5 standard errors each of two numbers, below 1e-5. A sampler of fixed pairs is rejected."""
    model = FreeLogits([2, 3, 2], 0.5)
    x = model.space.states()[:4]
    direction = torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    truth = exact_rectangle_penalty(model, x).mean()
    (slope,) = torch.autograd.grad(truth, model.weight)
    repeats, copies = 100, 10
    rows = x.repeat(copies, 1)
    values, slopes, wrong = [], [], []
    for repeat in range(repeats):
        loss = ConsistencyPenalty()(model, rows, rng.Streams(repeat, len(rows))).mean()
        values.append(loss.detach())
        slopes.append((torch.autograd.grad(loss, model.weight)[0] * direction).sum())
        wrong.append(of_the_first_pair(model, rows, repeat).mean())
    for found, expected in ((values, truth.detach()), (slopes, (slope * direction).sum())):
        assert abs(standard_errors_off(found, expected)) < 5
    assert abs(standard_errors_off(wrong, truth.detach())) > 5


def standard_errors_off(found: list[Tensor], expected: Tensor) -> float:
    each = torch.stack(found)
    return float((each.mean() - expected) / (each.std() / math.sqrt(len(each))))


def of_the_first_pair(model: FreeLogits, rows: Tensor, seed: int) -> Tensor:
    """Wrong: sites 0 and 1 always."""
    present = torch.ones_like(rows, dtype=torch.bool)
    given = present.clone()
    given[:, :2] = False
    names = torch.arange(len(rows)) + seed * len(rows)
    zero = torch.zeros(len(rows), dtype=torch.int64)
    with torch.no_grad():
        return rectangle_gaps(model, Places(rows, zero, zero + 1, given, ~present, names), None).square()


@pytest.mark.parametrize("kind", ["rectangles", "circulations"])
def test_compatibility_penalty_alone_trains_the_gaps_away(kind: str) -> None:
    model = FreeLogits([2, 3, 2], 0.5)
    x = model.space.states()
    before = mean_gap(model.eval(), x, kind)
    train(model, ConsistencyPenalty(kind), TensorData(x), SETTINGS, progress=False)  # type: ignore[arg-type]
    assert mean_gap(model, x, kind) < 0.1 * before


def test_compatibility_penalty_of_real_sites_makes_a_linear_gaussian_symmetric() -> None:
    weight = torch.tensor([[0.0, 0.6, 0.1], [0.1, 0.0, 0.4], [-0.2, 0.1, 0.0]], dtype=torch.float64)
    model = LinearGaussian(weight)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asymmetry = float((weight - weight.T).norm())
    # The gap of a rectangle is (W_ij - W_ji) (a - a') (b - b'): exact at every place.
    zero = ConsistencyPenalty()(LinearGaussian(weight + weight.T), x, torch.Generator().manual_seed(0))
    assert float(zero.detach().max()) < 1e-24
    train(model, ConsistencyPenalty(), TensorData(x), SETTINGS, progress=False)
    assert float((model.weight - model.weight.T).detach().norm()) < 0.05 * asymmetry
    assert float(model.weight.detach().norm()) > 0.3  # symmetric, and not merely zero


def test_compatibility_penalty_of_a_row_depends_on_its_stream_alone() -> None:
    model = FreeLogits([2, 3, 2, 3], 0.5)
    x = model.space.states()[:12]
    for penalty in (ConsistencyPenalty(num_pairs=2), ConsistencyPenalty("circulations"), ConsistencyPenalty(pool=x)):
        whole = penalty(model, x, rng.Streams(4, 12))
        part = penalty(model, x[5:8], rng.Streams(4, torch.arange(5, 8)))
        torch.testing.assert_close(part, whole[5:8], rtol=1e-12, atol=0)


def test_compatibility_penalty_leaves_out_what_is_missing() -> None:
    model = LinearGaussian(torch.tensor([[0.0, 0.6, 0.1], [0.1, 0.0, 0.4], [-0.2, 0.1, 0.0]], dtype=torch.float64))
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 1:] = torch.nan  # one value: no pair
    x[1, 0] = torch.nan
    penalty = ConsistencyPenalty(num_pairs=4)
    loss = penalty(model, x, rng.Streams(0, 3))
    assert float(loss[0].detach()) == 0.0
    loss.sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.isfinite().all()
    (of_second,) = torch.autograd.grad(penalty(model, x, rng.Streams(0, 3))[1], model.weight)
    assert not of_second[0].any()  # x_0 is missing in the second row
    assert not of_second[:, 0].any()
    mapping = {"x": x.nan_to_num(7.0), "present": ~x.isnan()}
    torch.testing.assert_close(penalty(model, mapping, rng.Streams(0, 3)), loss)


def test_compatibility_penalty_is_measured_without_dropout() -> None:
    model = FreeLogits([2, 2, 2], 0.5, dropout=0.5).train()
    x = model.space.states()
    first, second = (ConsistencyPenalty()(model, x, rng.Streams(0, 8)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert model.training
    assert model.dropout.training


def test_compatibility_penalty_caps_what_is_rare() -> None:
    model = FreeLogits([2, 2, 2], 3.0)
    x = model.space.states()
    gaps = ConsistencyPenalty().gaps(model, x, generator=rng.Streams(0, 8)).abs()
    capped = ConsistencyPenalty(cap=0.5)(model, x, rng.Streams(0, 8)).detach()
    assert float(gaps.min()) < 0.5 < float(gaps.max())
    torch.testing.assert_close(capped, torch.where(gaps <= 0.5, gaps**2, 0.5 * (2 * gaps - 0.5)))


def test_compatibility_penalised_objective_adds_up_and_moves() -> None:
    model = FreeLogits([2, 3, 2], 0.5)
    x = model.space.states()
    likelihood, penalty = MaskedLikelihood(laws.any_order()), ConsistencyPenalty()
    whole = Penalised(likelihood, penalty, weight=2.0, ramp=0.5)
    streams = rng.Streams(0, len(x))
    expected = likelihood(model, x, streams) + 2.0 * penalty(model, x, streams)
    torch.testing.assert_close(whole(model, x, rng.Streams(0, len(x))), expected)
    assert [whole.at(p).weight for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 2.0]
    assert "2 * ConsistencyPenalty('rectangles'" in repr(whole)
    before = mean_gap(model.eval(), x)
    train(model, whole, TensorData(x), SETTINGS, progress=False)
    assert mean_gap(model, x) < 0.3 * before


def test_compatibility_penalised_training_refuses_data_outside_the_space() -> None:
    penalised = Penalised(MaskedLikelihood(laws.uniform_cardinality()), ConsistencyPenalty())
    x = torch.zeros(8, 3, dtype=torch.int64)
    x[5, 1] = 2
    with pytest.raises(SpaceError, match=r"data: holds 2 at row 5, site '1'"):
        train(FreeLogits([2, 2, 2], 1.0), penalised, TensorData(x), SETTINGS, progress=False)


def test_compatibility_penalty_fine_tunes_a_masked_language_model() -> None:
    mlm = tiny(6, variable_length=True, differentiable=True)
    x = mlm.encode(["ABCABC", "ABCA", "CC", "A"])
    penalty = ConsistencyPenalty(num_pairs=2)
    loss = penalty(mlm, x, rng.Streams(0, 4))
    assert (loss[:3] > 0).all()
    assert float(loss[3].detach()) == 0.0  # one token: no pair
    gradients = torch.autograd.grad(loss.sum(), list(mlm.parameters()), allow_unused=True)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    # Absent sites stay absent: a row is the same question in a model of its own length.
    short = mlm.resized(2)
    places = penalty.gaps(mlm, x[2:3], generator=rng.Streams(0, torch.tensor([2])))
    one, other = rectangles(short, short.encode(["CC"]), rounding=Rounding(1e-9)).log_cross_ratios()
    gaps = (one - other).flatten()
    assert (torch.cdist(places[:, None].abs(), gaps[:, None].abs()).amin(1) < 1e-9).all()


def test_compatibility_penalty_fine_tunes_a_table_model() -> None:
    import flexgen as fg

    df = fg.data.load_table("diabetes").iloc[:60, :4]
    settings = TableSettings(num_networks=1, small_steps=2, small_width=8, small_depth=1, classes=(), ridges=(0.1,))
    model = fg.TableModel.fit(df, settings=settings, progress=False)
    network = TrainableTable(model.conditional())
    x = model.schema.encode(df)
    query = Query.complete(2, num_sites=4).expand(len(x))
    # Latent and data units differ by a constant a value.
    shift = (network.marginals(x, query).log_prob(x) - model.conditional().marginals(x, query).log_prob(x))[:, 2]
    other = Query.of([2], [0], num_sites=4).expand(len(x))
    again = (network.marginals(x, other).log_prob(x) - model.conditional().marginals(x, other).log_prob(x))[:, 2]
    torch.testing.assert_close(shift.detach(), again.detach(), rtol=0, atol=1e-5)  # float32 networks
    loss = ConsistencyPenalty(num_pairs=2)(network, x, rng.Streams(0, len(x)))
    assert loss.shape == (len(x),)
    weights = [w for w in network.parameters() if w.requires_grad]
    assert weights
    gradients = torch.autograd.grad(loss.mean(), weights, allow_unused=True)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


def test_compatibility_penalty_names_what_is_wrong() -> None:
    model = FreeLogits([2, 2], 0.5)
    with pytest.raises(
        FlexgenError, match=re.escape("kind: is 'squares'. Choose one of 'rectangles', 'circulations'.")
    ):
        ConsistencyPenalty("squares")  # type: ignore[arg-type]
    with pytest.raises(FlexgenError, match=r"cap: is 0\. Pass a positive number of nats, or None"):
        ConsistencyPenalty(cap=0)
    with pytest.raises(FlexgenError, match=r"num_pairs: is 0\. Pass at least 1"):
        ConsistencyPenalty(num_pairs=0)
    with pytest.raises(FlexgenError, match="pool: is given, but circulations"):
        ConsistencyPenalty("circulations", pool=model.space.states())
    with pytest.raises(DataError, match="pool: has shape"):
        ConsistencyPenalty(pool=torch.full((3, 2), torch.nan))
    with pytest.raises(UnsupportedQueryError, match="network: Linear has no marginals"):
        ConsistencyPenalty()(nn.Linear(2, 2), model.space.states(), torch.Generator())
    with pytest.raises(DataError, match="A penalty needs 'x' among them"):
        ConsistencyPenalty()(model, {"y": torch.zeros(2, 2)}, torch.Generator())
    with pytest.raises(FlexgenError, match="weight: is -1"):
        Penalised(ConsistencyPenalty(), ConsistencyPenalty(), weight=-1)
    with pytest.raises(FlexgenError, match="ramp: is 2"):
        Penalised(ConsistencyPenalty(), ConsistencyPenalty(), ramp=2)
