"""`fg.diagnose`: any model, no settings, a budget, the same report from the same generator."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import flexgen as fg
from flexgen import exact
from flexgen.compatibility import GaussianConditionals, Report, Values, rectangles
from flexgen.compatibility.networks import measurement
from flexgen.compatibility.networks.measurement import budget_of
from flexgen.compatibility.networks.rectangles import all_pairs
from flexgen.conditional import CategoricalMarginals
from flexgen.errors import DataError, FlexgenError, UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.space import Space
from tests.compatibility.planted import Counted, Planted
from tests.compatibility.single_precision import LogProbOnly
from tests.conditionals import generator
from tests.tables.small import NETWORK, mixed_table, with_gaps


@pytest.fixture(scope="module")
def table_model() -> fg.TableModel:
    return fg.TableModel.fit(mixed_table(120), settings=NETWORK, progress=False)


def planted(theta: float = 0.3) -> Planted:
    return Planted(exact.JointTable.random((2,) * 6, generator=generator(1)), theta, 0.5)


def some_rows(number: int = 80) -> torch.Tensor:
    return torch.randint(2, (number, 6), generator=generator(2))


def same(a: Report, b: Report, tolerance: float = 0.0) -> bool:
    return list(a.effects) == list(b.effects) and all(
        torch.allclose(x.values, y.values, atol=tolerance, rtol=tolerance) and torch.equal(x.rows, y.rows)
        for x, y in zip(a.effects.values(), b.effects.values(), strict=True)
    )


def test_a_table_model_by_its_data_frame(table_model: fg.TableModel) -> None:
    df = with_gaps(mixed_table(60, seed=5))
    report = fg.diagnose(table_model, df, budget=1500)
    assert report.verdict == "refuted"  # a pool of members has no joint
    assert report.names == table_model.schema.names
    assert {"rectangle gap", "circulation", "order gap", "block scan divergence"} <= set(report.effects)
    assert any("mixed derivatives" in line for line in report.caveats)  # a table model answers without gradient
    assert "TableModel" in repr(report)
    rows = report.effects["rectangle gap"].rows
    assert int(rows.max()) < 60


def test_the_same_generator_gives_the_same_report_whatever_the_batch() -> None:
    whole = fg.diagnose(planted(), some_rows(), budget=2000, generator=4)
    assert same(whole, fg.diagnose(planted(), some_rows(), budget=2000, generator=4))
    assert same(whole, fg.diagnose(planted(), some_rows(), budget=2000, generator=4, batch_size=17), 1e-10)
    assert not same(whole, fg.diagnose(planted(), some_rows(), budget=2000, generator=5))
    source = torch.Generator().manual_seed(4)
    before = torch.random.get_rng_state()
    fg.diagnose(planted(), some_rows(), budget=2000, generator=source)
    fg.diagnose(planted(), some_rows(), budget=2000, generator=Streams(3, 1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_real_sites_do_not_depend_on_the_batch_either() -> None:
    law = exact.Gaussian(torch.zeros(4), torch.eye(4) + 0.5)
    x = torch.randn(50, 4, generator=generator(3), dtype=torch.float64)
    a, b = (fg.diagnose(law, x, budget=1500, batch_size=size) for size in (None, 13))
    assert same(a, b, 1e-10)
    assert a.verdict == "not refuted"


class Weighted(nn.Module):
    """A module with weights, over real sites: what rounding does is probed by inputs and weights."""

    def __init__(self, num_sites: int) -> None:
        super().__init__()
        self.space = Space.real(num_sites)
        self.weight = nn.Parameter(0.1 * torch.randn(num_sites, num_sites, generator=generator(5)))
        self.eval()

    def marginals(self, x: torch.Tensor, query: Query) -> exact.GaussianMixtureMarginals:
        COUNT.append(len(x))
        known = torch.where(query.expand(len(x)).observed, x, 0.0).float()
        mean = (known @ self.weight)[..., None]
        return exact.GaussianMixtureMarginals(torch.zeros_like(mean), mean, torch.ones_like(mean))


COUNT: list[int] = []  # of rows; copies of the module count here, too
BUDGETS = [20, 60, 100, 400, 6000]


@pytest.mark.parametrize("forwards", BUDGETS)
def test_a_budget_of_forwards_is_kept(forwards: int) -> None:
    counted = Counted(Planted(exact.JointTable.random((2,) * 12, generator=generator(1)), 0.2))
    x = torch.randint(2, (3000, 12), generator=generator(2))
    report = fg.diagnose(counted, x, budget=forwards)
    assert len(counted.rows) == report.cost.forwards
    assert 0.4 * forwards < report.cost.forwards <= forwards
    assert report.verdict == "refuted"
    assert report.effects["rectangle gap"].num_rows >= 2
    wide = Counted(exact.JointTable.random((9, 3, 2, 9), generator=generator(1)))
    report = fg.diagnose(wide, wide.conditional.space.states()[::7], budget=forwards)  # type: ignore[attr-defined]
    assert len(wide.rows) == report.cost.forwards <= forwards


@pytest.mark.parametrize("forwards", BUDGETS)
def test_a_budget_holds_what_rounding_takes(forwards: int) -> None:
    COUNT.clear()
    x = torch.randn(300, 4, generator=generator(6))
    report = fg.diagnose(Weighted(4), x, budget=np.int64(forwards))
    assert sum(COUNT) == report.cost.forwards
    assert 0.3 * forwards < report.cost.forwards <= forwards
    report = fg.diagnose(LogProbOnly(planted()), some_rows(300), budget=forwards)
    assert report.cost.forwards <= forwards


def test_what_a_budget_leaves_out_is_said() -> None:
    law = exact.Gaussian(torch.zeros(4), torch.eye(4) + 0.5)
    x = torch.randn(50, 4, generator=generator(3), dtype=torch.float64)
    report = fg.diagnose(law, x, budget=60)
    assert "Not measured: mixed derivatives. The budget is too small." in report.caveats
    with pytest.raises(
        FlexgenError, match=r"budget: is 1\. Pass at least \d+ forward passes: nothing takes less"
    ) as info:
        fg.diagnose(law, x, budget=1)
    least = int(info.value.fix.split()[3])
    assert fg.diagnose(law, x, budget=least).cost.forwards <= least


def test_pairs_are_sampled_where_there_are_too_many() -> None:
    law = exact.Gaussian(torch.zeros(40), torch.eye(40) + 0.1)
    x = torch.randn(100, 40, generator=generator(3), dtype=torch.float64)
    report = fg.diagnose(law, x, budget=4000)
    effect = report.effects["rectangle gap"]
    assert effect.num_rows >= 32
    assert 5 < len(torch.unique(effect.sites, dim=0)) < 780
    assert any("of 780" in line for line in report.assumptions)


def test_pairs_that_were_not_looked_at_are_said() -> None:
    model = Planted(exact.JointTable.random((2,) * 8, generator=generator(1)), 0.3, 0.5)
    x = torch.randint(2, (400, 8), generator=generator(2))
    report = fg.diagnose(model, x, budget=150)
    seen = len(torch.unique(report.effects["rectangle gap"].sites, dim=0))
    assert report.pairs_of("rectangle gap") == (seen, 28)
    assert 5 < seen < 28
    assert f"over {seen} of 28 pairs" in report.summary().headline()
    assert f"rectangle gap, over {seen} of 28 pairs" in [row[0] for row in report.summary().table_rows()]
    assert any(
        f"Pairs of sites: {seen} of 28, " in line and "drawn anew at random" in line for line in report.assumptions
    )
    whole = fg.diagnose(model, x, budget=3000)
    assert whole.pairs_of("rectangle gap") is None
    assert "of 28 pairs" not in whole.summary().headline()


class Perceptron(nn.Module):
    """Eight binary sites and a hidden layer, of random weights: its gaps differ from pair to pair."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space.categorical([2] * 8)
        source = generator(3)
        self.first = nn.Parameter(0.6 * torch.randn(16, 32, generator=source))
        self.second = nn.Parameter(0.6 * torch.randn(32, 16, generator=source))
        self.eval()

    def marginals(self, x: torch.Tensor, query: Query) -> CategoricalMarginals:
        observed = query.expand(len(x)).observed
        signs = torch.where(observed, 2.0 * x - 1.0, 0.0)
        hidden = (torch.cat([signs, observed.float()], 1) @ self.first).tanh()
        return CategoricalMarginals((hidden @ self.second).view(len(x), 8, 2).log_softmax(-1))


@pytest.mark.statistical
@pytest.mark.parametrize("budget", [150, 600])
def test_intervals_over_some_pairs_cover_the_mean_over_all(budget: int) -> None:
    """Pairs differ more than contexts do: eight sites, of which few pairs are looked at in a row.

    At a coverage of 0.85 or more, fewer than 12 of 20 intervals hold the mean over all with chance 1e-3 or less. The
    same pairs in every row, which is wrong, do not reach that. (Both by Student's t, which adds nothing for what was
    not seen.)
    """
    model = Perceptron()
    x = model.space.states()
    truth = rectangles(model, x).effect().uniform().value
    covered = covered_by_same = covered_by_default = 0
    for seed in range(20):
        effect = fg.diagnose(model, x, budget=budget, generator=seed).effects["rectangle gap"]
        estimate, rows = effect.uniform(method="t"), torch.unique(effect.rows)
        covered += estimate.low <= truth <= estimate.high
        covered_by_default += effect.uniform().low <= truth <= effect.uniform().high
        pairs = all_pairs(8)[torch.randperm(28, generator=generator(seed))[: max(1, len(effect) // len(rows))]]
        estimate = rectangles(model, x[rows], pairs=pairs).effect().uniform(method="t")
        covered_by_same += estimate.low <= truth <= estimate.high
    assert covered >= 12
    assert covered_by_default >= 16  # at 0.95 with chance 0.997
    assert covered_by_same < 12


def test_kinds_of_budget() -> None:
    assert budget_of("2 min") == (None, 120.0)
    assert budget_of(datetime.timedelta(seconds=5)) == (None, 5.0)
    assert budget_of("500 forwards") == (500, None)
    assert budget_of(np.int64(1000)) == (1000, None)


class Slow(Planted):
    """Takes time by a clock of its own: a call, a row; and what comes later takes longer than the pilot said."""

    clock, rate = 0.0, 1e-3

    def marginals(self, x: torch.Tensor, query: Query) -> CategoricalMarginals:
        self.clock += 0.002 + self.rate * len(x)
        self.rate *= 1.05
        return super().marginals(x, query)


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_a_budget_of_seconds_is_kept_by_the_clock(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slow(exact.JointTable.random((2,) * 6, generator=generator(1)), 0.3)
    monkeypatch.setattr(measurement, "now", lambda: model.clock)
    x = torch.randint(2, (2000, 6), generator=generator(2))
    report = fg.diagnose(model, x, budget=f"{seconds} s")
    assert any(line.startswith(f"Budget: {seconds} s, which a pilot turned into") for line in report.assumptions)
    assert 0.3 * seconds < model.clock < 1.25 * seconds
    assert {"rectangle gap", "circulation", "order gap"} <= set(report.effects)
    rows = report.effects["rectangle gap"].rows
    assert len(torch.unique(rows)) == report.effects["rectangle gap"].num_rows
    # What the pilot promised was more than there was time for.
    promised = next(line for line in report.assumptions if line.startswith("Budget"))
    assert report.cost.forwards < int(promised.split("into ")[1].split()[0].replace(",", ""))


def test_pieces_of_rows_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that stands still every piece is taken: the same rows and pairs as without one."""
    model, x = planted(), some_rows()
    monkeypatch.setattr(measurement, "now", lambda: 0.0)
    monkeypatch.setattr(measurement, "forwards_in", lambda *_: 2000)
    pieces, whole = fg.diagnose(model, x, budget="1 s"), fg.diagnose(model, x, budget=2000)
    a, b = pieces.effects["rectangle gap"], whole.effects["rectangle gap"]
    torch.testing.assert_close(a.values, b.values)
    torch.testing.assert_close(a.weights, b.weights)
    assert torch.equal(a.rows, b.rows)


NO_ZEROS, DIAGONAL = torch.rand(3, 3, 2, generator=generator(8)).double(), torch.diag(torch.tensor([0.3, 0.7]).double())
ZEROS = NO_ZEROS * ((torch.arange(3)[:, None] + torch.arange(3)) % 3 != 2)[..., None]


@pytest.mark.parametrize(
    "model",
    [
        exact.JointTable.from_unnormalised(ZEROS),
        exact.JointTable(DIAGONAL),
        exact.JointTable(DIAGONAL).conditional_tables(undefined="uniform"),
    ],
    ids=["zeros", "copies", "copies as tables"],
)
def test_structural_zeros_end_no_report(model: exact.JointTable | exact.ConditionalTables) -> None:
    law = model if isinstance(model, exact.JointTable) else exact.JointTable(DIAGONAL)
    states = law.space.states()
    x = states[torch.multinomial(law.p.flatten(), 60, replacement=True, generator=generator(9))]
    report = fg.diagnose(model, x, budget=2000)
    assert report.verdict == "not refuted"
    assert report.effects["block scan divergence"].verdict() == "not refuted"
    for effect in report.effects.values():
        assert bool((effect.values.abs() <= effect.floors).all())


def test_an_error_of_the_model_ends_one_diagnostic_and_no_more() -> None:
    class Picky(Planted):
        def marginals(self, x: torch.Tensor, query: Query) -> CategoricalMarginals:
            if int(query.expand(len(x)).observed.sum(-1).min()) < 2:
                raise FlexgenError("x", "holds too little", "Observe more.")
            return super().marginals(x, query)

    picky = Picky(exact.JointTable.random((2,) * 6, generator=generator(1)), 0.3)
    report = fg.diagnose(picky, some_rows(), budget=2000)
    assert report.verdict == "refuted"
    assert {"rectangle gap", "block scan divergence"} <= set(report.effects)
    assert any("Not measured: order gaps. The model refuses the query (x: holds too" in c for c in report.caveats)


def test_rows_without_entries_are_nothing_measured() -> None:
    x = torch.full((10, 6), torch.nan)
    report = fg.diagnose(planted(), x, budget=2000)
    assert report.verdict == "not measured"
    assert "Nothing could be measured" in repr(report)
    x[:4, 2] = 1.0  # one entry has no order, and is no pair
    assert fg.diagnose(planted(), x, budget=2000).verdict == "not measured"
    x[0, 3:] = 0.0
    assert fg.diagnose(planted(), x, budget=2000).verdict == "refuted"


def test_models_with_less_to_ask() -> None:
    by_value = fg.diagnose(LogProbOnly(planted()), some_rows(), budget=2000)
    assert by_value.verdict == "refuted"
    assert "order gap" in by_value.effects
    noise = torch.rand(3, 2, 3, 2, generator=generator(6), dtype=torch.float64) + 0.1
    tables = exact.ConditionalTables([t / t.sum(i, keepdim=True) for i, t in enumerate(noise)])
    x = torch.stack([torch.randint(k, (30,), generator=generator(7)) for k in (2, 3, 2)], dim=1)
    complete = fg.diagnose(tables, x, budget=2000)
    assert set(complete.effects) == {"rectangle gap", "block scan divergence"}
    assert sum(line.startswith("Not measured") for line in complete.caveats) == 2
    assert "only the complete conditionals" in repr(complete).replace("\n", " ")


def test_sites_margin_and_kinds_of_data() -> None:
    names = [f"{i} {letter}" for i, letter in enumerate("EVQLVE")]
    called = fg.diagnose(planted(), some_rows(), sites=["1 V", "2 Q"], names=names, budget=1000)
    assert set(called.pairs()[["site_0", "site_1"]].iloc[0]) == {"1 V", "2 Q"}
    some = fg.diagnose(planted(), some_rows().numpy(), sites=[0, 1, 2], budget=1000)
    assert set(some.effects["rectangle gap"].sites.flatten().tolist()) == {0, 1, 2}
    assert fg.diagnose(planted(1e-4), some_rows(), budget=1000).verdict == "refuted"
    little = fg.diagnose(planted(1e-4), some_rows(), margin=0.1, budget=1000)
    assert little.verdict == "refuted"
    assert "Too few data rows to say whether these are within 0.1 nats" in little.summary().headline()
    enough = fg.diagnose(planted(1e-4), some_rows(), margin=0.1, budget=10_000)
    assert enough.verdict == "equivalent within margin"
    frame = fg.diagnose(planted(), pd.DataFrame(some_rows().numpy()), budget=1000, values=Values(max_categories=4))
    assert frame.verdict == "refuted"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((object(), None), {}, FlexgenError, "model: is an object. Pass a TableModel or a Conditional"),
        ((GaussianConditionals(torch.zeros(2, 2), torch.ones(2)), None), {}, FlexgenError, "Use check_gaussian or"),
        ((planted(), some_rows(1)), {}, DataError, r"data: has 1 row\(s\)"),
        ((planted(), [[1, 0]]), {}, DataError, "data: is a list"),
        ((planted(), np.zeros(6)), {}, DataError, r"data: has shape \(6,\)"),
        ((planted(), some_rows() + 1), {}, ValueError, "data: holds 2"),
        ((planted(), some_rows()), {"budget": 0}, FlexgenError, "budget: is 0. Pass a whole number of forward passes"),
        ((planted(), some_rows()), {"budget": 3.5}, FlexgenError, "budget: is 3.5"),
        ((planted(), some_rows()), {"budget": "soon"}, FlexgenError, "budget: is 'soon'"),
        ((planted(), some_rows()), {"sites": [0]}, DataError, "sites: are 1. Compatibility is about two sites"),
        ((planted(), some_rows()), {"sites": ["age"]}, DataError, "sites: names 'age'"),
        ((planted(), some_rows()), {"margin": -1.0}, FlexgenError, "margin: is -1.0"),
        ((planted(), some_rows()), {"level": 95}, FlexgenError, "level: is 95"),
        ((planted(), some_rows()), {"sites": [None, 1]}, DataError, "sites: names None"),
        ((planted(), some_rows()), {"sites": [0.5, 1]}, DataError, "sites: names 0.5"),
        ((planted(), some_rows()), {"sites": "01"}, DataError, "sites: is '01'"),
        ((planted(), some_rows()), {"sites": 3}, DataError, "sites: is 3"),
        ((planted(), some_rows()), {"margin": "a"}, FlexgenError, "margin: is 'a'"),
        ((planted(), some_rows()), {"values": "model"}, FlexgenError, "values: is 'model'"),
        ((planted(), some_rows()), {"batch_size": "a"}, FlexgenError, "batch_size: is 'a'"),
        ((planted(), some_rows()), {"names": ["a"]}, FlexgenError, "names: are 1, not all strings. Pass 6 strings"),
        ((planted(), some_rows()), {"names": "abcdef"}, FlexgenError, "names: are 'abcdef'"),
        ((planted(), pd.DataFrame({"a": ["x", "y"]})), {}, DataError, "data: holds what is no number"),
        ((planted(), some_rows()), {"generator": "x"}, FlexgenError, "generator: is 'x'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    arguments: tuple[object, object], options: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        fg.diagnose(*arguments, **options)  # type: ignore[arg-type]


def test_models_that_cannot_be_diagnosed(table_model: fg.TableModel) -> None:
    class Draws:
        space = planted().space

    with pytest.raises(UnsupportedQueryError, match="conditional: Draws has no density"):
        fg.diagnose(Draws(), some_rows())
    with pytest.raises(DataError, match=r"data: is .* Pass a data frame"):
        fg.diagnose(table_model, some_rows())

    class Training(nn.Module):
        space = planted().space

        def marginals(self, x: torch.Tensor, query: object) -> object: ...

    with pytest.raises(FlexgenError, match=r"is in training mode, where dropout .* Call its eval\(\) first"):
        fg.diagnose(Training(), some_rows())
