"""The report as text, frame, picture and file."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import flexgen as fg
from flexgen import exact
from flexgen.compatibility import (
    Effect,
    Report,
    circulation,
    energy_scan_test,
    exact_blocks,
    order_gaps,
    rectangles,
)
from flexgen.compatibility.networks.report import as_text
from flexgen.errors import FlexgenError
from tests.compatibility.planted import Planted
from tests.conditionals import generator


@pytest.fixture(scope="module")
def report() -> Report:
    model = Planted(exact.JointTable.random((2,) * 5, generator=generator(1)), 0.3, 0.5)
    x = torch.randint(2, (60, 5), generator=generator(2))
    return fg.diagnose(model, x, budget=3000)


def test_text_tells_what_a_statistician_asks(report: Report) -> None:
    text = repr(report.summary())
    assert "Compatibility is refuted: no joint has these conditionals" in text
    for word in ("rectangle gap", "circulation", "order gap", "block scan divergence", "95 %", "floor", "forwards"):
        assert word in text
    joined = " ".join(text.split())
    assert "Contexts: " in joined
    assert "clustered by data row" in joined
    assert "Samples can refute compatibility, never prove it" in joined
    assert f"{report.cost.forwards:,} rows through the network" in joined
    assert repr(report) == text
    assert max(map(len, text.splitlines())) <= 132


def test_whether_there_is_a_joint_and_how_far_are_two_answers(report: Report, tmp_path: Path) -> None:
    (one, there), (other, far) = report.summary().answers()
    gaps = report.effects["rectangle gap"]
    above = int((gaps.values.abs() > gaps.floors).sum())
    assert (one, other) == ("Is there a joint?", "How far from one?")
    assert f"does not explain {above:,} of {len(gaps):,} values of the rectangle gap" in there
    assert re.match(r"(Small|Moderate|Large): mean rectangle gap", far)
    assert f"a factor of {math.exp(gaps.weighted().value):.2f} on average" in far
    page = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    for question in (one, other):
        assert question in repr(report)
        assert question in report._repr_html_()
        assert question in page
    tiny = dataclasses.replace(report, effects={"gap": Effect("gap", *[torch.ones(4) * 1e-5] * 2, *places(4), 1e-7)})
    assert tiny.verdict == "refuted"  # there is none
    assert tiny.summary().distance().startswith("Negligible: ")  # nor does it matter
    assert tiny.verdict_of("gap") == report.verdict
    assert tiny.summary().colour_of("gap") != report.summary().colour_of("order gap")


def places(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(number), torch.zeros(number, 2)


def test_rich_and_notebook_show_the_same_table(report: Report) -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(report)
    html = report._repr_html_()
    for cell in ("rectangle gap", "refuted"):
        assert cell in console.file.getvalue()  # type: ignore[attr-defined]
        assert cell in html
    assert "<script" not in html
    assert html.count("<tr>") == 1 + len(report.effects)


def test_text_is_plain_in_a_kernel_and_in_a_terminal(
    report: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = repr(report)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a colourful terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    shown: list[object] = []
    monkeypatch.setattr("rich.jupyter.display", lambda *parts: shown.append(parts))
    assert str(report) == repr(report.summary()) == plain
    assert "\x1b" not in plain
    assert shown == []
    assert capsys.readouterr().out == ""


def test_frame(report: Report) -> None:
    frame = report.to_dataframe()
    assert frame["effect"].tolist() == list(report.effects)
    row = frame[frame["effect"] == "rectangle gap"].iloc[0]
    assert row["weighted_low"] < row["weighted"] < row["weighted_high"]
    assert row["verdict"] == "refuted"
    assert report.pairs().columns[:2].tolist() == ["site_0", "site_1"]
    assert (report.pairs()["weighted"].diff().dropna() <= 0).all()


def test_another_margin_judges_the_same_measurements(report: Report) -> None:
    nats = [effect for effect in report.effects.values() if effect.unit == "nats"]
    wide = report.with_margin(2 * max(effect.weighted().high for effect in nats))
    assert report.verdict == "refuted"
    assert wide.verdict == "equivalent within margin"
    assert wide.effects is report.effects
    assert wide.with_margin(None).verdict == "refuted"
    with pytest.raises(FlexgenError, match="margin: is -1"):
        report.with_margin(-1)


def test_picture_has_a_panel_for_each_part(report: Report) -> None:
    titles = [ax.get_title(loc="left") for ax in report.plot().axes]
    assert sum(bool(title) for title in titles) == 4
    alone = dataclasses.replace(report, effects={"order gap": report.effects["order gap"]}, directions={})
    assert [bool(ax.get_title(loc="left")) for ax in alone.plot().axes] == [True]
    points = next(ax for ax in report.plot().axes if "two directions" in ax.get_title(loc="left"))
    across, along = points.lines[1].get_data()
    assert max(abs(float(a) - float(b)) for a, b in zip(across, along, strict=True)) > 0.5  # off the line


def panel(drawn: Report, title: str) -> Any:
    return next(ax for ax in drawn.plot().axes if title in ax.get_title(loc="left"))


def test_the_heat_map_shows_what_was_not_examined(report: Report) -> None:
    gaps = report.effects["rectangle gap"]
    some = (gaps.sites == torch.tensor([0, 1])).all(1) | (gaps.sites == torch.tensor([2, 3])).all(1)
    few = Effect("rectangle gap", gaps.values[some], gaps.weights[some], gaps.rows[some], gaps.sites[some], 1e-6)
    assert panel(report, "interaction gap").get_legend() is None
    part = panel(dataclasses.replace(report, effects={**report.effects, "rectangle gap": few}), "interaction gap")
    assert [text.get_text() for text in part.get_legend().get_texts()] == ["not examined"]
    assert len(part.get_xticks()) == 5  # the sites of other effects stay


def test_marks_and_axes_of_histograms(report: Report) -> None:
    def marks(drawn: Report) -> list[str]:
        ax = panel(drawn, "order gap")
        assert all(float(tick).is_integer() for tick in ax.get_yticks())
        return [text.get_text() for text in ax.get_legend().get_texts()]

    mean = report.effects["order gap"].weighted().value
    assert marks(report) == ["mean, with its interval"]
    assert marks(report.with_margin(mean / 2)) == ["mean, with its interval", "margin"]
    assert marks(report.with_margin(100.0)) == ["mean, with its interval", "margin: 1e+02, beyond the axis"]
    size = report.effects["order gap"].values.abs().max()
    floored = dataclasses.replace(report.effects["order gap"], floor=float(10 * size))
    ax = panel(dataclasses.replace(report, effects={"order gap": floored}, directions={}), "order gap")
    assert ax.get_xlim()[1] < 2 * float(size)  # the data are no sliver


def test_results_show_themselves_in_a_few_lines(report: Report) -> None:
    model = Planted(exact.JointTable.random((2,) * 5, generator=generator(1)), 0.3, 0.5)
    x = torch.randint(2, (60, 5), generator=generator(2))
    found = rectangles(model, x), circulation(model, x), order_gaps(model, x), exact_blocks(model, x, torch.arange(3))
    for result in (
        *found,
        *report.effects.values(),
        Effect("a", *[torch.zeros(0)] * 2, torch.zeros(0), torch.zeros(0, 2)),
    ):
        text = repr(result)
        assert "tensor(" not in text
        assert len(text.splitlines()) <= 3
        assert max(map(len, text.splitlines())) <= 132
    assert repr(found[0]) == "Rectangles of 10 pairs of sites in 60 data rows; see effect()"
    assert "each of 60 data rows" in repr(found[1])
    assert repr(found[2]).startswith("OrderGaps of 60 data rows in 2 orders")
    assert repr(found[3]).startswith("ExactBlocks of 3 sites in 60 data rows")
    gap = report.effects["rectangle gap"]
    assert f"{gap.weighted().value:.3g}" in repr(gap)
    assert "refuted" in repr(gap)


def test_intervals_stay_on_their_line(report: Report) -> None:
    long = dataclasses.replace(report, num_pairs={"rectangle gap": 123_456})
    text = repr(long)
    for row in long.summary().table_rows():
        assert row[1] in text
        assert row[2] in text
    assert "a value counts by its probability under the model" in " ".join(text.split())
    assert "a value counts by its probability under the model" in report._repr_html_()


def test_a_page_has_the_name_of_a_page(report: Report, tmp_path: Path) -> None:
    with pytest.raises(FlexgenError, match=r"path: .*report\.pdf' does not end in \.html"):
        report.to_html(tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_file_that_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    named = dataclasses.replace(report, names=("<b>", *report.names[1:]), model="a & b")
    path = named.to_html(tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    parser = Links()
    parser.feed(page)
    assert parser.open == []
    assert [source[:22] for source in parser.sources] == ["data:image/png;base64,"] * 4  # a picture a panel
    assert "a &amp; b" in page
    assert "<td><b></td>" not in page
    assert not re.search(r"https?://", page)
    with pytest.raises(FlexgenError, match=r"path: .* is a folder"):
        report.to_html(tmp_path)


@dataclass(frozen=True)
class TwoSample:
    p_value: float
    num_draws: int


@dataclass(frozen=True)
class Pairs:
    sizes: tuple[float, ...]
    tests: tuple[TwoSample, ...]


def test_further_results_have_their_place(report: Report) -> None:
    more = report.with_result("scans of whole rows", TwoSample(0.0123, 400))
    assert "scans of whole rows: p value 0.0123, num draws 400" in repr(more)
    assert "scans of whole rows" in more._repr_html_()
    assert "scans of whole rows" not in repr(report)
    extra = Effect(
        "score asymmetry", torch.tensor([0.1, 0.2]), torch.ones(2), torch.arange(2), torch.zeros(2, 0), unit="share"
    )
    both = report.with_result("score asymmetry", extra)
    assert "[share]" in repr(both)  # no markup of rich's


def test_a_margin_in_nats_does_not_speak_of_other_units() -> None:
    def effect(size: float, unit: str) -> Effect:
        values = torch.full((40,), size)
        return Effect("gap", values, torch.ones(40), torch.arange(40), torch.zeros(40, 2), 1e-6, unit=unit)

    effects = {"rectangle gap": effect(0.3, "nats"), "block scan divergence": effect(0.294, "total variation")}
    report = Report(effects, ("x",), margin=10.0)
    assert report.verdict == "equivalent within margin"
    said = report.summary().headline()
    assert "Every effect measured in nats is below the margin of 10 nats" in said
    assert "does not speak of the block scan divergence, which is refuted: 0.294 total variation" in said
    assert "rounding does not explain 40 of 40 values" in said
    assert "does not speak" not in report.with_margin(None).summary().headline()
    assert "does not speak" not in report.with_margin(0.1).summary().headline()  # refuted itself


def test_the_headline_quotes_an_effect_that_refutes() -> None:
    def effect(size: float, floor: float) -> Effect:
        values = size * torch.linspace(0.5, 1.5, 8)
        return Effect("gap", values, torch.ones(8), torch.arange(8), torch.zeros(8, 2), floor)

    effects = {"rectangle gap": effect(1e-6, 1e-5), "circulation": effect(0.3, 1e-5), "order gap": effect(0.5, 1e-5)}
    said = Report(effects, ("x",)).summary().headline()
    assert "mean circulation 0.3 nats" in said
    assert "rectangle gap" not in said
    narrow = {"rectangle gap": effect(1e-6, 1.2e-6), "order gap": effect(0.5, 1e-5)}  # a value above, not the mean
    assert "mean order gap 0.5 nats" in Report(narrow, ("x",)).summary().headline()
    scans = Effect("scans", torch.ones(8) / 5, torch.ones(8), torch.arange(8), torch.zeros(8, 2), 1e-6, unit="share")
    assert "Mean scans 0.2 share" in Report({"a": effect(1e-9, 1e-5), "scans": scans}, ("x",)).summary().headline()


def test_what_was_not_measured(report: Report, tmp_path: Path) -> None:
    with pytest.raises(FlexgenError, match=r"effect: is 'nope', which was not measured\. There are: rectangle gap, "):
        report.pairs("nope")
    with pytest.raises(FlexgenError, match=r"name: is 'order gaps', which .* Did you mean 'order gap'\?"):
        report.verdict_of("order gaps")
    with pytest.raises(FlexgenError, match="effect: is 'order gap', which is about whole rows"):
        report.pairs("order gap")
    with pytest.raises(FlexgenError, match=r"path: .* is in a folder that is not there"):
        report.to_html(tmp_path / "none" / "report.html")


def test_a_scan_test_shows_its_pairs(report: Report) -> None:
    """What the page on networks says: chains of several scans, their test, the report with it."""
    source = torch.Generator().manual_seed(0)
    draws = {name: torch.randint(2, (20, 30, 3), generator=source) for name in ("forward", "backward")}
    found = energy_scan_test(draws, generator=source, num_permutations=99)
    more = report.with_result("scans", found)
    assert "forward | backward: " in repr(more)
    assert "forward | backward: " in more._repr_html_()
    pairs = Pairs((0.25, 1e-5), (TwoSample(0.5, 3),))
    assert as_text(pairs) == "sizes (0.25; 1.0e-05), tests (p value 0.5, num draws 3)"


def test_verdicts_of_a_report() -> None:
    def effect(size: float, unit: str = "nats", rows: int = 80) -> Effect:
        values = torch.full((rows,), size, dtype=torch.float64) + 0.001 * torch.arange(rows) * size
        return Effect("gap", values, torch.ones(rows), torch.arange(rows), torch.zeros(rows, 2), 1e-6, unit=unit)

    small, large = effect(1e-8), effect(0.3)
    assert Report({"a": small, "b": large}, ("x",)).verdict == "refuted"
    assert Report({"a": small}, ("x",)).verdict == "not refuted"
    assert Report({"a": small}, ("x",), margin=0.1).verdict == "equivalent within margin"
    assert Report({"a": large, "b": small}, ("x",), margin=0.1).verdict == "refuted"
    assert Report({"a": large}, ("x",), margin=0.5).verdict == "equivalent within margin"
    few = Report({"a": effect(0.01, rows=8)}, ("x",), margin=0.5)  # whose rows cannot carry it
    assert few.verdict == "refuted"
    assert "Too few data rows to say whether these are within 0.5 nats: a (8 of 30)." in few.summary().headline()
    assert "Too few" not in few.with_margin(None).summary().headline() + few.with_margin(1e-3).summary().headline()
    assert Report({}, ("x",)).verdict == Report({"a": effect(math.nan)}, ("x",)).verdict == "not measured"
    assert Report({"a": small, "b": effect(math.nan)}, ("x",), margin=0.1).verdict == "equivalent within margin"
    assert "below the margin of 0.5 nats" in repr(Report({"a": large}, ("x",), margin=0.5))
    assert "Nothing could be measured" in repr(Report({}, ("x",)))
