"""Null calibration: nothing is found where nothing is; what was planted is found at its size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import flexgen as fg
from flexgen import exact
from flexgen.compatibility import Effect, SiteAnswers, rectangles
from flexgen.compatibility.networks.rounding import Rounding, unit_roundoff
from flexgen.conditional import CategoricalMarginals, Conditional
from flexgen.query import Query
from flexgen.space import Space
from tests.compatibility.planted import Planted
from tests.compatibility.single_precision import Float32Mixture, Float32Table
from tests.conditionals import generator

REPLICATES = 300


def tables(shape: tuple[int, ...], power: int) -> tuple[Conditional, Tensor]:
    law = exact.JointTable.random(shape, generator=generator(1))
    law = exact.JointTable.from_unnormalised(law.p**power)
    return Float32Table(law), law.space.states()[torch.randint(law.p.numel(), (100,), generator=generator(2))]


def with_zeros(shape: tuple[int, ...], possible: Tensor) -> tuple[Conditional, Tensor]:
    """A joint over the possible states, bool, which axes of the shape follow."""
    p = torch.rand(shape, generator=generator(1), dtype=torch.float64) + 0.1
    law = exact.JointTable.from_unnormalised(p * possible.view(*possible.shape, *(1,) * (p.ndim - possible.ndim)))
    chosen = torch.multinomial(law.p.flatten(), 100, replacement=True, generator=generator(2))
    return Float32Table(law), law.space.states()[chosen]


def normals(num_sites: int, offset: float, ridge: float, *, mixed: bool) -> tuple[Conditional, Tensor]:
    root = torch.randn(num_sites, num_sites + 1, generator=generator(3), dtype=torch.float64)
    covariance = root @ root.T / num_sites + ridge * torch.eye(num_sites)
    law: exact.Gaussian | exact.GaussianMixture = exact.Gaussian(torch.full((num_sites,), offset), covariance)
    if mixed:
        means = offset + torch.randn(2, num_sites, generator=generator(4), dtype=torch.float64)
        law = exact.GaussianMixture(torch.tensor([0.4, 0.6]), means, torch.stack([covariance, covariance.flip(0, 1)]))
    start = torch.zeros(100, num_sites, dtype=torch.float64)
    x = law.sample(start, Query.of(range(num_sites), num_sites=num_sites), generator=generator(5))
    return Float32Mixture(law), x


NULLS = {
    "table": lambda: tables((2, 3, 2, 4), 1),
    "peaky table": lambda: tables((2, 3, 2, 4), 6),
    "many categories": lambda: tables((9, 9, 9), 3),
    "zeros": lambda: with_zeros((3, 3, 2, 3), (torch.arange(3)[:, None] + torch.arange(3)) % 3 != 2),
    "copies": lambda: with_zeros((3, 3, 2, 3), torch.eye(3, dtype=torch.bool)),
    "gaussian": lambda: normals(4, 0.0, 1.0, mixed=False),
    "far from zero": lambda: normals(4, 1000.0, 1.0, mixed=False),
    "ill-conditioned": lambda: normals(6, 10.0, 0.03, mixed=False),
    "mixture": lambda: normals(5, 5.0, 0.1, mixed=True),
}


@pytest.mark.parametrize("name", NULLS)
def test_no_diagnostic_of_a_compatible_float32_network_exceeds_its_floor(name: str) -> None:
    model, x = NULLS[name]()
    report = fg.diagnose(model, x, budget=2500)
    assert report.verdict == "not refuted"
    assert len(report.effects) >= 5
    for effect in report.effects.values():
        assert bool((effect.values.abs() <= effect.floors).all()), effect.name
        assert float(effect.values.abs().max()) > 0  # rounding is there
    assert report.summary().headline().startswith("Compatibility is not refuted")


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("budget", [60, 250])
def test_nor_where_little_is_spent_on_measuring_the_floor(name: str, budget: int) -> None:
    model, x = NULLS[name]()
    for effect in fg.diagnose(model, x, budget=budget, generator=1).effects.values():
        assert bool((effect.values.abs() <= effect.floors).all()), effect.name


class SinglePlanted(Planted):
    """A planted incompatibility whose answers are rounded to float32."""

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        return CategoricalMarginals(super().marginals(x, query).log_probs.float())


@pytest.mark.parametrize("what", ["floor", "seven floors"])
def test_a_gap_of_twice_the_floor_is_found_and_hidden_by_a_floor_seven_times_too_large(what: str) -> None:
    """Of uniform binary sites every |log p| is log 2: the floor is that of eight of them, 8 16 u (1 + log 2) nats.

    A gap of twice that is above it; a floor seven times too large would call it rounding.
    """
    floor = 8 * 16 * 2.0**-24 * (1 + math.log(2))
    law = exact.JointTable.from_unnormalised(torch.ones((2,) * 6))
    model, x = SinglePlanted(law, 2 * floor / 4), torch.randint(2, (80, 6), generator=generator(9))
    rounding = None if what == "floor" else Rounding(7 * 16 * 2.0**-24)
    effect = rectangles(model, x, rounding=rounding).effect()
    assert effect.verdict() == ("refuted" if what == "floor" else "not refuted")
    if what == "floor":
        assert fg.diagnose(model, x, budget=2000).verdict == "refuted"
        torch.testing.assert_close(effect.floors, torch.full_like(effect.floors, floor), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["gaussian", "far from zero", "ill-conditioned", "mixture"])
def test_measured_rounding_is_of_the_size_of_rounding(name: str) -> None:
    """Against the same law in float64: not below what is seen, and at most 4 (safety) times 16 operations of it.

    Or, where inputs and weights hardly matter, the 16 units of roundoff of the answer's own arithmetic.
    """
    model, x = NULLS[name]()
    assert isinstance(model, Float32Mixture)
    rough = rectangles(model, x)
    fine = rectangles(in_double(model), x, rounding=Rounding(1e-14))
    assert torch.equal(rough.valid, fine.valid)
    place = (rough.values_i == fine.values_i)[..., :, None] & (rough.values_j == fine.values_j)[..., None, :]
    cells = rough.valid & place
    seen = ((rough.forward - fine.forward).abs() / (1 + fine.forward.abs()))[cells]
    assert float(seen.max()) <= rough.rounding.relative <= max(64 * float(seen.max()), 16 * 2.0**-24)


def in_double(model: Float32Mixture) -> Conditional:
    """The same numbers, computed with in float64."""
    return exact.GaussianMixture(model.weights.double(), model.means.double(), model.covariances.double())


@pytest.mark.parametrize(
    ("setting", "eps"), [("nothing", 2.0**-23), ("autocast", 2.0**-7), ("medium", 2.0**-7), ("double", 2.0**-52)]
)
def test_precision_that_torch_is_told_to_use_is_seen(setting: str, eps: float) -> None:
    network = Deep(torch.float64 if setting == "double" else torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if setting in ("medium", "double") else "highest")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
            assert unit_roundoff(network) == max(eps, 2.0**-23) / 2  # what it says, before it is tried
            x = torch.randint(3, (20, 6), generator=generator(6)).double()
            assert Rounding.measured(SiteAnswers(network), x, x > -1).relative >= 16 * eps / 2
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_floor_that_ignores_inputs_is_exceeded() -> None:
    """The wrong floor, of the answers' own arithmetic alone: rounding of inputs near 1000 is a thousand times that."""
    model, x = normals(4, 1000.0, 1.0, mixed=False)
    naive = rectangles(model, x, rounding=Rounding(16 * 2.0**-24)).effect()
    assert bool((naive.values.abs() > naive.floors).any())
    assert naive.verdict() == "refuted"


class Deep(nn.Module):
    """A network of which only the last layer's sign symmetry is known; its float64 copy tells its true noise."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        width = 64
        layers: list[nn.Module] = [nn.Linear(12, width)]
        for _ in range(6):
            layers += [nn.Tanh(), nn.Linear(width, width)]
        self.body = nn.Sequential(*layers, nn.Tanh(), nn.Linear(width, 6 * 3))
        for k, p in enumerate(self.body.parameters()):
            p.data = 2.0 * torch.randn(p.shape, generator=generator(k)) / math.sqrt(p.shape[-1])
        self.to(dtype).eval()
        self.dtype = dtype
        self.space = Space.categorical([3] * 6)

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        known = query.expand(len(x)).observed.to(self.dtype)
        inputs = torch.cat([known * (x.to(self.dtype) - 1), known], dim=1)
        return CategoricalMarginals(self.body(inputs).view(len(x), 6, 3).log_softmax(-1))


def test_noise_of_a_deep_network_is_below_its_measured_rounding() -> None:
    single, double = Deep(torch.float32), Deep(torch.float64)
    x = torch.randint(3, (40, 6), generator=generator(6)).double()
    before = {name: p.clone() for name, p in single.named_parameters()}
    rough, fine = rectangles(single, x, rounding=None), rectangles(double, x)
    noise = (rough.forward - fine.forward).abs()[rough.valid]
    allowed = rough.rounding.of(rough.forward)[rough.valid]
    assert bool((noise <= allowed).all())
    assert float(allowed.max()) < 1e-2
    assert all(torch.equal(p, before[name]) for name, p in single.named_parameters())  # weights were moved in a copy
    assert rough.effect().verdict() == "refuted"


def population() -> tuple[Planted, float]:
    """A planted network, and the mean gap over its law of contexts."""
    model = Planted(exact.JointTable.random((2,) * 7, generator=generator(7)), 0.02, tilt=0.7, num_dials=3)
    return model, float((model.law.p.flatten() * model.gap(model.space.states())).sum())


@pytest.mark.statistical
def test_a_planted_incompatibility_is_recovered_in_95_percent_of_replicates() -> None:
    model, truth = population()
    pairs, states, answers = torch.tensor([[0, 1], [1, 3]]), model.space.states(), SiteAnswers(model)
    hits = torch.zeros(2)
    for replicate in range(REPLICATES):
        chosen = torch.multinomial(model.law.p.flatten(), 50, replacement=True, generator=generator(100 + replicate))
        found = rectangles(answers, states[chosen], pairs=pairs, rounding=Rounding(1e-14)).effect()
        assert found.verdict() == "refuted"
        # The wrong way: both pairs of a row, which have one gap, counted as observations of their own.
        wrong = Effect(found.name, found.values, found.weights, torch.arange(len(found)), found.sites)
        estimates = (e.weighted(method="t") for e in (found, wrong))
        hits += torch.tensor([e.low <= truth <= e.high for e in estimates])
    share, wrong_share = (hits / REPLICATES).tolist()
    band = 4 * math.sqrt(0.95 * 0.05 / REPLICATES)  # 4 binomial standard errors: false alarm 6e-5
    assert abs(share - 0.95) < band
    assert 0.95 - wrong_share > band


def test_planted_gaps_are_found_exactly() -> None:
    model = Planted(exact.JointTable.random((2,) * 5, generator=generator(8)), 0.02, tilt=0.7)
    x = model.space.states()
    result = rectangles(model, x).effect()
    inner = (result.sites < 4).all(-1)
    torch.testing.assert_close(result.values.abs()[inner], model.gap(x)[result.rows[inner]], atol=1e-12, rtol=0)
