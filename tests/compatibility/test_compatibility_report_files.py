"""Reports kept, compared and forecast; sizes and places in words."""

from __future__ import annotations

import json
import math
import re
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

import flexgen as fg
from flexgen import exact
from flexgen.compatibility import Effect, Report, Values, compare
from flexgen.compatibility.networks.report import SCALES
from flexgen.errors import CheckpointError, FlexgenError
from flexgen.query import Query
from flexgen.space import Space
from tests.adapters.tiny_mlm import tiny
from tests.compatibility.planted import Planted
from tests.conditionals import generator
from tests.tables.small import NETWORK, mixed_table

X = torch.randint(2, (120, 6), generator=generator(2))


def planted(theta: float = 0.3) -> Planted:
    return Planted(exact.JointTable.random((2,) * 6, generator=generator(1)), theta, 0.5)


@pytest.fixture(scope="module")
def report() -> Report:
    return fg.diagnose(planted(), X, budget=3000, margin=0.1)


# Files.


def test_a_report_is_kept_whole(report: Report, tmp_path: Path) -> None:
    more = report.with_result("scans", "told in words").with_result(
        "zeros", Effect("zeros", torch.tensor([math.inf, 0.5]), torch.ones(2), torch.arange(2), torch.zeros(2, 0))
    )
    again = Report.load(more.save(tmp_path / "report.safetensors"))
    assert repr(again) == repr(more)
    assert again.to_dataframe().equals(more.to_dataframe())
    assert again.examples == more.examples
    assert again.settings == more.settings
    assert again.pairs_of("rectangle gap") == more.pairs_of("rectangle gap")
    assert len(again.plot().axes) == len(more.plot().axes)
    joined = Effect.joined([again.effects["order gap"], report.effects["order gap"]])
    assert joined.weighted().value == pytest.approx(report.effects["order gap"].weighted().value)


def test_a_write_that_fails_leaves_what_was_there(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = report.save(tmp_path / "report.safetensors")
    before = path.read_bytes()

    def broken(_: object, partial: Path, __: object) -> None:
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("flexgen.compatibility.networks.report.save_file", broken)
    with pytest.raises(FlexgenError, match=r"path: '.*report.safetensors' cannot be written: disk full"):
        report.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_leaves_what_was_there(report: Report, tmp_path: Path) -> None:
    page, numbers = report.to_html(tmp_path / "report.html"), report.save(tmp_path / "report.safetensors")
    before = page.read_bytes(), numbers.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        for write, path in ((report.to_html, page), (report.save, numbers)):
            with pytest.raises(FlexgenError, match=rf"path: '.*{path.name}' cannot be written: File too large. Make"):
                write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (page.read_bytes(), numbers.read_bytes()) == before
    assert sorted(tmp_path.iterdir()) == [page, numbers]


def test_files_that_hold_no_report(report: Report, tmp_path: Path) -> None:
    with pytest.raises(FlexgenError, match=r"path: .* does not end in \.safetensors\. Name a \.safetensors file"):
        report.save(tmp_path / "report.json")
    with pytest.raises(CheckpointError, match=r"path: .* is no file"):
        Report.load(tmp_path / "nothing.safetensors")
    other = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(CheckpointError, match="holds no report"):
        Report.load(other)
    other.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="holds no report"):
        Report.load(other)
    save_file({"a": torch.zeros(2)}, other, {"report": json.dumps({"format": "flexgen compatibility report 1"})})
    with pytest.raises(CheckpointError, match="holds a broken report"):
        Report.load(other)


# Before and after.


def test_the_same_places_are_paired() -> None:
    before, after = (fg.diagnose(planted(theta), X, budget=3000) for theta in (0.3, 0.2))
    found = compare(before, after)
    assert {change.effect for change in found.changes} == set(before.effects)
    gap = found["rectangle gap"]
    assert gap.paired
    assert gap.change == pytest.approx(gap.after.value - gap.before.value)
    assert gap.high < 0
    assert gap.direction == "smaller"
    assert "smaller" in repr(found)
    apart = compare(before, fg.diagnose(planted(0.2), X, budget=3000, generator=1))["rectangle gap"]
    assert not apart.paired
    assert gap.high - gap.low < 0.5 * (apart.high - apart.low)
    nothing = compare(before, before)["order gap"]
    assert (nothing.low, nothing.change, nothing.high) == (0.0, 0.0, 0.0)
    assert nothing.direction == "not told apart"
    other_rows = fg.diagnose(planted(0.2), X.flip(0), budget=3000)
    assert not compare(before, other_rows)["rectangle gap"].paired


def of_rows(before: torch.Tensor, rows: torch.Tensor) -> Report:
    sites = torch.zeros(before.numel(), 2)
    effect = Effect("gap", before.flatten(), torch.ones(before.numel()), rows.flatten(), sites, 1e-9)
    return Report({"gap": effect}, ("x",), settings={"seed": 0, "plans": {"gap": "the same"}})


@pytest.mark.statistical
def test_paired_intervals_cover_the_change() -> None:
    """Rows differ much, in both reports alike; the change is 0.2 on average and differs between rows, too.

    400 samples of 25 rows with 4 values each. A coverage of 0.95 gives fewer than 364 or more than 394 hits with a
    chance of 1e-3 at most. Values taken as independent, which is wrong, cover less; unpaired intervals are longer.
    """
    low, high = stats.binom.ppf([5e-4, 1 - 5e-4], 400, 0.95)
    source, hits, wrong, lengths = generator(3), 0, 0, torch.zeros(2)
    rows = torch.arange(25)[:, None].expand(-1, 4)
    for _ in range(400):
        size = 3.0 + torch.randn(25, 1, generator=source).double() + 0.1 * torch.randn(25, 4, generator=source)
        change = 0.2 + 0.3 * torch.randn(25, 1, generator=source).double()
        after = size + change
        gap = compare(of_rows(size, rows), of_rows(after, rows))["gap"]
        hits += gap.low <= 0.2 <= gap.high
        each = torch.arange(100).view(25, 4)
        naive = compare(of_rows(size, each), of_rows(after, each))["gap"]
        wrong += naive.low <= 0.2 <= naive.high
        unpaired = compare(of_rows(size, rows), Report(of_rows(after, rows).effects, ("x",)))["gap"]
        lengths += torch.tensor([gap.high - gap.low, unpaired.high - unpaired.low])
    assert low <= hits <= high
    assert wrong < low
    assert lengths[1] > 2 * lengths[0]


def test_reports_that_do_not_compare(report: Report) -> None:
    with pytest.raises(FlexgenError, match="after: is 3"):
        compare(report, 3)  # type: ignore[arg-type]
    with pytest.raises(FlexgenError, match=r"after: is about other sites than before \(site 2 is '2' and 'c'\)"):
        compare(report, fg.diagnose(planted(), X, budget=500, names=["0", "1", "c", "3", "4", "5"]))
    with pytest.raises(FlexgenError, match="after: looked at values chosen by"):
        compare(report, fg.diagnose(planted(), X, budget=500, values=Values("data")))
    with pytest.raises(FlexgenError, match="after: has no effect in common with before"):
        compare(report, Report({}, report.names))
    with pytest.raises(FlexgenError, match="effect: is 'nope', which is not in both reports"):
        compare(report, report)["nope"]


# A forecast.


@pytest.mark.parametrize("budget", [60, 3000])
def test_a_forecast_says_what_will_be_looked_at(budget: int) -> None:
    forecast = fg.diagnose(planted(), X, budget=budget, dry_run=True)
    report = fg.diagnose(planted(), X, budget=budget)
    assert report.cost.forwards <= forecast.forwards <= budget
    assert forecast.seconds > 0
    by_name = {name: what for name, _, what in forecast.steps}
    gaps = report.effects["rectangle gap"]
    planned = int(re.search(r"(\d+) data rows", by_name["rectangles"])[1])  # type: ignore[index]
    assert 0 < planned <= gaps.num_rows  # and further ones, where plans leave something
    assert {f"Not measured: {name}. The budget is too small." for name in forecast.omitted} <= set(report.caveats)
    assert f"{forecast.forwards:,} rows" in str(forecast)


def test_a_budget_for_nothing_that_the_model_answers_is_an_error() -> None:
    noise = torch.rand(3, 9, 8, 7, generator=generator(6), dtype=torch.float64) + 0.1
    tables = exact.ConditionalTables([t / t.sum(i, keepdim=True) for i, t in enumerate(noise)])
    x = torch.stack([torch.randint(k, (30,), generator=generator(7)) for k in (9, 8, 7)], dim=1)
    needed = []
    for budget in range(1, 60):
        try:
            assert fg.diagnose(tables, x, budget=budget).effects
        except FlexgenError as error:
            needed.append((error.argument, budget, int(error.fix.split()[3])))
    assert 0 < len(needed) < 59
    assert all(argument == "budget" and least > budget for argument, budget, least in needed)
    assert fg.diagnose(tables, x, budget=needed[-1][2]).effects


# How far, and where.


def test_sizes_are_classes_of_a_stated_scale() -> None:
    found = {theta: fg.diagnose(planted(theta), X, budget=2000) for theta in (1e-4, 5e-3, 0.05, 0.5)}
    assert [r.verdict for r in found.values()] == ["refuted"] * 4
    assert [r.size_of("rectangle gap") for r in found.values()] == ["negligible", "small", "moderate", "large"]
    mean = found[0.05].effects["rectangle gap"].weighted().value
    said = found[0.05].summary().headline()
    assert f"odds differ by a factor of {math.exp(mean):.2f} on average" in said
    assert "refuted, moderate" in repr(found[0.05])
    assert "negligible below 0.01 (odds differ by a factor of 1.010)" in " ".join(repr(found[0.05]).split())
    joint = fg.diagnose(planted(0.0), X, budget=2000)
    assert (joint.verdict, joint.size) == ("not refuted", "within rounding")
    assert Report({}, ("x",)).size == "not measured"
    assert set(SCALES) == {"nats", "total variation"}


def effect(values: list[float], unit: str = "nats") -> Effect:
    size = len(values)
    return Effect(
        "gap", torch.tensor(values), torch.ones(size), torch.arange(size), torch.zeros(size, 2), 1e-6, unit=unit
    )


def test_sizes_of_hand_made_effects() -> None:
    assert Report({"a": effect([0.5, math.inf])}, ("x",)).size_of("a") == "large"
    assert Report({"a": effect([0.5, 0.4], "share")}, ("x",)).size_of("a") == ""
    both = Report({"a": effect([0.05, 0.05]), "scans": effect([0.3, 0.3], "total variation")}, ("x",))
    assert both.size == "large"
    assert "The scans is large: 0.3 total variation" in both.summary().headline()


def test_places_are_told_in_the_words_of_the_data() -> None:
    model = fg.TableModel.fit(mixed_table(120), settings=NETWORK, progress=False)
    df = mixed_table(60, seed=5)
    report = fg.diagnose(model, df, budget=3000)
    assert report.examples
    for example in report.examples:
        for name, (own, _) in zip(example.sites, example.values, strict=True):
            value = df[name].iloc[example.row]
            assert (
                own == str(value) if name in ("kind", "grade") else float(own) == pytest.approx(float(value), rel=1e-3)
            )
    text = " ".join(repr(report).split())
    assert "Large gap in row" in text
    assert f"{report.pairs()['site_0'][0]} and {report.pairs()['site_1'][0]}" in text
    assert report.largest_gaps()["row"].tolist() == [example.row for example in report.examples]
    with pytest.warns(DeprecationWarning, match="places is now called Report.largest_gaps"):
        assert report.places().equals(report.largest_gaps())


def test_places_are_told_in_tokens() -> None:
    mlm = tiny(4)
    texts = ["ABCA", "CBAB", "BBAC", "CACA"]
    report = fg.diagnose(mlm, mlm.encode(texts), budget=600)
    example = report.examples[0]
    assert example.context in texts
    assert texts[example.row] == example.context
    assert {word for pair in example.values for word in pair} <= set("ABC")
    for site, (own, _) in zip(example.sites, example.values, strict=True):
        assert example.context[int(site)] == own
    labelled = fg.diagnose(planted(), X, budget=600, labels=[("no", "yes")] * 6)
    assert set(labelled.examples[0].values[0]) == {"no", "yes"}
    with pytest.raises(FlexgenError, match="labels: name"):
        fg.diagnose(planted(), X, budget=600, labels=[("no", "yes")] * 5)


def test_real_sites_say_that_agreement_is_not_enough() -> None:
    law = exact.Gaussian(torch.zeros(3), torch.eye(3) + 0.5)
    x = torch.randn(30, 3, generator=generator(3), dtype=torch.float64)
    assert any("necessary for a joint, not sufficient" in line for line in fg.diagnose(law, x, budget=400).caveats)
    assert not any("not sufficient" in line for line in fg.diagnose(planted(), X, budget=400).caveats)


class Regressions:
    """x_i ~ N(b sum of the others, 1), as a differentiable model that answers for any C."""

    def __init__(self, b: float) -> None:
        self.b, self.space = b, Space.real(3)

    def marginals(self, x: torch.Tensor, query: Query) -> exact.GaussianMixtureMarginals:
        known = torch.where(query.expand(len(x)).observed, x, 0.0)
        mean = (self.b * (known.sum(-1, keepdim=True) - known))[..., None]
        return exact.GaussianMixtureMarginals(torch.zeros_like(mean), mean, torch.ones_like(mean))


@pytest.mark.parametrize(("b", "proper"), [(0.4, True), (0.6, False)])
def test_gaussian_conditionals_that_agree_and_have_no_joint(b: float, proper: bool) -> None:
    """Their precision matrix, 1 and -b, has the lowest eigenvalue 1 - 2 b; all rectangles vanish for every b."""
    x = torch.randn(40, 3, generator=generator(3), dtype=torch.float64)
    report = fg.diagnose(Regressions(b), x, budget=1000)
    assert report.effects["rectangle gap"].share_above_floor == 0
    assert report.effects["derivative gap"].share_above_floor == 0
    assert any("No proper joint" in line for line in report.caveats) != proper
