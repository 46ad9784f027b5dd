"""Floors: rounding of this conditional, whatever its columns hold; and gaps that no floor may hide."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import flexgen as fg
from flexgen import exact
from flexgen.compatibility import HasRoundoff, Rounding, SiteAnswers, rectangles
from flexgen.compatibility.networks.rounding import stands_for_itself, unit_roundoff
from flexgen.conditional import Conditional
from flexgen.data import load_table
from flexgen.errors import FlexgenError
from flexgen.exact import GaussianMixtureMarginals
from flexgen.query import Query
from flexgen.space import Space
from flexgen.tables import TableConditional
from tests.compatibility.single_precision import Float32Mixture
from tests.conditionals import generator
from tests.tables.small import EXACT, NETWORK

SEVERAL = dataclasses.replace(NETWORK, num_networks=2, num_steps=60, width=32)
LEAST_FLOOR, PLANTED = 1e-3, 1e-2  # nats


def normals(num_rows: int = 150, seed: int = 0) -> np.ndarray:
    """Four correlated standard normal columns."""
    rng = np.random.default_rng(seed)
    root = np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0.3, 0.2, 0.93, 0], [-0.5, 0.3, 0.2, 0.79]])
    found: np.ndarray = rng.normal(size=(num_rows, 4)) @ root.T
    return found


def zero_inflated() -> pd.DataFrame:
    z = normals()
    return pd.DataFrame({"a": z[:, 0], "b": np.where(z[:, 1] > 0.2, 0.0, np.exp(z[:, 2])), "c": z[:, 3], "d": z[:, 1]})


def censored() -> pd.DataFrame:
    z = normals()
    z[:, 0], z[:, 1] = z[:, 0].clip(-0.7123, 0.9377), z[:, 1].clip(max=0.3331)
    return pd.DataFrame(1.7 * z + 11.1, columns=list("abcd"))


def rounded() -> pd.DataFrame:
    z = normals()
    z[:, 0], z[:, 1], z[:, 2] = z[:, 0].round(1), (z[:, 1] / 0.7).round() * 0.7, z[:, 2].round(2)
    return pd.DataFrame(z, columns=list("abcd"))


def far() -> pd.DataFrame:
    """Values near 1e5, of spread 1."""
    return pd.DataFrame(1e5 + normals(), columns=list("abcd"))


COLUMNS = {"zero-inflated": zero_inflated, "censored": censored, "rounded": rounded, "far from zero": far}


class PlantedTable:
    """A table model of which one column's density is tilted by what another holds: a gap beside its own.

    log p(target | C) changes by size * (sign of the source's z-score) * (sign of the target's) before normalisation
    over the two halves of the target's line, each half having its probability known: a rectangle of values on both
    sides of both medians changes by 4 size nats from the target's direction, and not at all from the source's.
    """

    def __init__(self, model: TableConditional, size: float, target: int, source: int, medians: Tensor) -> None:
        self.model, self.size, self.target, self.source, self.medians = model, size, target, source, medians
        self.space = model.space

    @property
    def unit_roundoff(self) -> float:
        return self.model.unit_roundoff

    def moved_by_roundoff(self, *, generator: torch.Generator) -> PlantedTable:
        moved = self.model.moved_by_roundoff(generator=generator)
        return PlantedTable(moved, self.size, self.target, self.source, self.medians)

    def marginals(self, x: Tensor, query: Query) -> Tilted:
        observed = query.expand(len(x)).observed
        side = torch.where(
            observed[:, self.source], (x[:, self.source] > self.medians[self.source]).double() * 2 - 1, 0
        )
        return Tilted(self.model.marginals(x, query), self.size * side, self.target, self.medians[self.target])


class Tilted:
    """Marginals of a table with one column's density multiplied by exp(tilt) above a value and exp(-tilt) below."""

    def __init__(self, base: object, tilt: Tensor, target: int, median: Tensor) -> None:
        self.base, self.tilt, self.target, self.median = base, tilt, target, median

    def log_prob(self, x: Tensor) -> Tensor:
        out: Tensor = self.base.log_prob(x)  # type: ignore[attr-defined]
        above = (x[:, self.target] > self.median).double() * 2 - 1
        return out.index_add(1, torch.tensor([self.target]), (self.tilt * above)[:, None])

    def sample(self, *, generator: object) -> Tensor:
        return self.base.sample(generator=generator)  # type: ignore[attr-defined, no-any-return]


def check_floors(model: Conditional, x: Tensor, *, budget: int = 1500) -> fg.compatibility.Report:
    report = fg.diagnose(model, x, budget=budget)
    assert len(report.effects) >= 5
    for name, effect in report.effects.items():
        assert effect.weighted().floor < LEAST_FLOOR, name
        assert effect.uniform().floor < LEAST_FLOOR, name
    return report


def in_double(model: TableConditional) -> TableConditional:
    """The same weights, computed with in float64."""
    double = copy.deepcopy(model)
    for member in double.members:
        for part in member.children():  # the exact base is in float64 anyway
            part.double()
        member.double()
    return double


def check_against_double(model: TableConditional, x: Tensor, *, exceed: bool = False) -> None:
    """What float32 does to rectangles is below its floor, and the floor is no more than a hundred times that."""
    rows = x[:12]
    rough = rectangles(model, rows, generator=1)
    fine = rectangles(in_double(model), rows, generator=1, rounding=Rounding(1e-14))
    same = (rough.values_i == fine.values_i)[..., :, None] & (rough.values_j == fine.values_j)[..., None, :]
    cells = rough.valid & fine.valid & same
    seen = ((rough.forward - fine.forward).abs() / (1 + fine.forward.abs()))[cells]
    assert int(cells.sum()) > 100
    assert 0 < float(seen.max()) <= rough.rounding.relative
    assert exceed or rough.rounding.relative <= max(100 * float(seen.max()), 16 * 2.0**-24)


def fitted(frame: pd.DataFrame, settings: object = SEVERAL) -> tuple[TableConditional, Tensor]:
    model = fg.TableModel.fit(frame, settings=settings, progress=False)  # type: ignore[arg-type]
    return model.conditional(), model.schema.encode(frame)


@pytest.mark.parametrize("name", COLUMNS)
def test_floors_are_small_whatever_columns_hold_and_gaps_of_a_hundredth_are_found(name: str) -> None:
    model, x = fitted(COLUMNS[name]())
    assert isinstance(model, HasRoundoff)
    check_floors(model, x)
    check_against_double(model, x)
    medians = x.median(0).values
    planted = PlantedTable(model, PLANTED / 4, 3, 0, medians)
    pairs = torch.tensor([[0, 3]])
    before, after = (rectangles(m, x[:60], pairs=pairs, generator=2).effect() for m in (model, planted))
    # Where the corners lie on both sides of both medians the gap is moved by 4 size, elsewhere not: nothing of that
    # may be called rounding. A floor of f hides a move of less than f; the measure of both is one floor each.
    assert torch.equal(before.rows, after.rows)
    move = (after.values - before.values).abs()
    crossing = move > PLANTED / 2
    assert int(crossing.sum()) >= 10
    torch.testing.assert_close(move[crossing], torch.full_like(move[crossing], PLANTED), atol=1e-9, rtol=0)
    assert bool((after.floors[crossing] < PLANTED / 10).all())


QUICK_TABLES = {"iris": None, "diabetes": ["age", "sex", "bmi", "s3", "s4", "s5"], "linnerud": None}


@pytest.mark.parametrize("name", QUICK_TABLES)
def test_floors_of_real_tables(name: str) -> None:
    frame = load_table(name)
    columns = QUICK_TABLES[name]
    check_floors(*fitted(frame if columns is None else frame[columns]))


@pytest.mark.slow
@pytest.mark.parametrize("name", fg.data.table_names())
def test_floors_of_every_table_as_a_user_meets_them(name: str) -> None:
    frame = load_table(name)
    if name == "digits":  # 65 columns; the middle of the picture and the label
        frame = frame[[*frame.columns[18:30], "target"]]
    model = fg.TableModel.fit(frame, progress=False)
    x = model.schema.encode(frame)
    report = check_floors(model.conditional(), x, budget=20_000)
    assert report.verdict == "refuted"  # pools of members share no joint, and no floor hides it
    assert report.effects["rectangle gap"].share_above_floor > 0.5
    check_against_double(model.conditional(), x, exceed=True)


def test_an_atom_that_is_moved_is_a_floor_of_hundreds_of_nats() -> None:
    """The wrong way: inputs moved from outside, off their atoms."""

    class Plain:
        """Hides what the conditional knows."""

        def __init__(self, model: TableConditional) -> None:
            self.model, self.space = model, model.space

        def marginals(self, x: Tensor, query: Query) -> object:
            return self.model.marginals(x, query)

    model, x = fitted(censored())
    everything = torch.ones_like(x, dtype=torch.bool)
    found = Rounding.measured(SiteAnswers(Plain(model)), x, everything)
    assert found.relative < 1e-4  # values that repeat are left where they are
    atom = x[x[:, 0] == x[:, 0].max()][:1]  # one row tells nothing about its columns
    assert Rounding.measured(SiteAnswers(Plain(model)), atom, everything[:1]).relative > 1
    assert Rounding.measured(SiteAnswers(model), atom, everything[:1]).relative < 1e-4


def test_values_that_stand_for_themselves() -> None:
    column = torch.tensor([0.0, 0.0, 1.5, 2.5, 3.5, 4.5, math.nan], dtype=torch.float64)
    assert stands_for_itself(column[:, None])[:, 0].tolist() == [True, True, False, False, False, False, False]
    rounded = torch.cat([torch.arange(40.0).repeat_interleave(2), torch.full((8,), -1.0)])
    assert stands_for_itself(rounded[:, None])[:, 0].tolist() == [False] * 80 + [True] * 8


# Float64 --------------------------------------------------------------------------------------------------------------


class Linear:
    """x_i given the rest is normal, its mean linear: of a Gaussian, with a tilt of one weight that breaks the joint."""

    def __init__(self, dtype: torch.dtype, offset: float, tilt: float) -> None:
        root = torch.randn(3, 3, generator=generator(1), dtype=torch.float64)
        precision = root @ root.T + torch.eye(3)
        self.weights = -(precision / precision.diagonal()[:, None]).fill_diagonal_(0.0)
        self.weights[0, 1] += tilt
        self.weights = self.weights.to(dtype)
        self.sds = precision.diagonal().rsqrt().to(dtype)
        self.offset, self.dtype, self.space = offset, dtype, Space.real(3)
        self.gap = tilt * float(precision[0, 0])

    def marginals(self, x: Tensor, query: Query) -> GaussianMixtureMarginals:
        observed = query.expand(len(x)).observed
        centred = torch.where(observed, x.to(self.dtype) - self.offset, 0.0)
        means = self.offset + centred @ self.weights.T
        empty = torch.zeros_like(means)[..., None]
        return GaussianMixtureMarginals(empty, means[..., None], self.sds.expand_as(means)[..., None])


class LinearModule(nn.Module):
    """The same as a module."""

    def __init__(self, dtype: torch.dtype, offset: float, tilt: float) -> None:
        super().__init__()
        self.plain, self.space = Linear(dtype, offset, tilt), Space.real(3)
        self.plain.weights = nn.Parameter(self.plain.weights)
        self.weights = self.plain.weights
        self.eval()

    def marginals(self, x: Tensor, query: Query) -> GaussianMixtureMarginals:
        return self.plain.marginals(x, query)


@pytest.mark.parametrize("kind", [Linear, LinearModule])
def test_a_model_that_computes_in_float64_has_its_floor(kind: Callable[..., Conditional]) -> None:
    x = 1e5 + torch.randn(60, 3, generator=generator(2), dtype=torch.float64)
    present = torch.ones_like(x, dtype=torch.bool)
    double, single = (kind(dtype, 1e5, 0.02) for dtype in (torch.float64, torch.float32))
    fine, rough = (Rounding.measured(SiteAnswers(model), x, present) for model in (double, single))
    assert fine.unit == 2.0**-53
    assert rough.unit == 2.0**-24
    assert fine.relative < 1e-8
    assert rough.relative > 1e-3  # at 1e5 float32 tells values apart by no less than 0.008
    report = fg.diagnose(double, x, budget=2000)
    assert report.verdict == "refuted"
    assert max(effect.weighted().floor for effect in report.effects.values()) < 1e-6
    gaps = report.effects["derivative gap"]
    torch.testing.assert_close(
        gaps.values[(gaps.sites == torch.tensor([0, 1])).all(1)].abs() / gaps.values.abs().max(),
        torch.ones(int((gaps.sites == torch.tensor([0, 1])).all(1).sum()), dtype=torch.float64),
        atol=1e-6,
        rtol=0,
    )


def test_a_planted_gap_at_1e5_is_found_in_float64_and_drowns_in_float32() -> None:
    x = 1e5 + torch.randn(60, 3, generator=generator(2), dtype=torch.float64)
    for dtype, verdict in ((torch.float64, "refuted"), (torch.float32, "not refuted")):
        assert rectangles(Linear(dtype, 1e5, 1e-3), x).effect().verdict() == verdict


def test_float64_networks_of_categories_are_told_from_those_that_compute_in_float32() -> None:
    class Net(nn.Module):
        def __init__(self, compute: torch.dtype) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3, generator=generator(3), dtype=torch.float64))
            self.space, self.compute = Space.categorical([3] * 4), compute
            self.eval()

        def marginals(self, x: Tensor, query: Query) -> fg.conditional.CategoricalMarginals:
            known = query.expand(len(x)).observed
            one_hot = (nn.functional.one_hot(x.long(), 3) * known[..., None]).to(self.compute)
            logits = torch.einsum("bjc,ijkc->bik", one_hot, self.weight.to(self.compute))
            return fg.conditional.CategoricalMarginals(logits.double().log_softmax(-1))

    x = torch.randint(3, (50, 4), generator=generator(4))
    for compute, unit in ((torch.float64, 2.0**-53), (torch.float32, 2.0**-24)):
        found = Rounding.measured(SiteAnswers(Net(compute)), x, torch.ones_like(x, dtype=torch.bool))
        assert found.unit == unit
        assert found.relative >= 16 * unit


def test_a_gaussian_of_float32_is_not_taken_for_one_of_float64() -> None:
    law = exact.Gaussian(torch.zeros(3), torch.eye(3) + 0.5)
    x = law.sample(torch.zeros(50, 3).double(), Query.of([0, 1, 2], num_sites=3), generator=generator(5))
    found = Rounding.measured(SiteAnswers(Float32Mixture(law)), x, torch.ones_like(x, dtype=torch.bool))
    assert found.unit == 2.0**-24
    assert unit_roundoff(law) == 2.0**-53


# diagnose(rounding=...) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", [1e-5, Rounding(1e-5)])
def test_rounding_of_ones_own(rounding: Rounding | float) -> None:
    model, x = fitted(zero_inflated(), EXACT)
    report = fg.diagnose(model, x, budget=800, rounding=rounding)
    assert any("exact to 1e-05" in sentence for sentence in report.assumptions)
    effect = report.effects["order gap"]
    assert float(effect.floors.min()) >= 2 * 4 * 1e-5
    assert fg.diagnose(model, x, budget=800, rounding=0.5).verdict == "not refuted"


@pytest.mark.parametrize("rounding", ["a", 0.0, -1e-6, math.inf, math.nan, True])
def test_what_is_no_rounding_is_refused(rounding: object) -> None:
    law = exact.JointTable.random((2, 2), generator=generator(6))
    with pytest.raises(FlexgenError, match=r"rounding: is .* Pass flexgen.compatibility.Rounding"):
        fg.diagnose(law, law.space.states(), rounding=rounding)  # type: ignore[call-overload]
    with pytest.raises(FlexgenError, match="relative: is"):
        Rounding(rounding)


def test_a_table_of_exact_members_is_held_to_the_accuracy_of_its_masses() -> None:
    """A table of real columns and one Gaussian has a joint: whatever is found is rounding, and below its floor."""
    model, x = fitted(far(), dataclasses.replace(EXACT, classes=(1,)))
    alone = TableConditional(model.space, model.maps, [model.members[0]], torch.zeros_like(model.log_weights[:1]))
    report = fg.diagnose(alone, x, budget=1500)
    assert report.verdict == "not refuted"
    for effect in report.effects.values():
        assert bool((effect.values.abs() <= effect.floors).all()), effect.name
        assert effect.weighted().floor < 1e-6
