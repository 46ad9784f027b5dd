"""A diagnostic of one's own is a class and an entry of the list: budget, report, picture and caveats follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flexgen as fg
from flexgen import exact
from flexgen.compatibility import DIAGNOSTICS, Diagnostic, Effect, Found, Plan, Report, Subject
from flexgen.compatibility.networks.diagnostic import histogram
from flexgen.compatibility.networks.sites import Requests
from flexgen.errors import FlexgenError
from tests.compatibility.planted import Planted
from tests.conditionals import generator


class Ends(Diagnostic):
    """The two orders of a row's first and last examined site, given the others: by hand, four rows each."""

    name = "ends"
    effects = {"ends gap": "p(first) p(last | first) against p(last) p(first | last)"}  # noqa: RUF012
    share = 0.5

    def least(self, subject: Subject) -> float:  # noqa: ARG002
        return 4.0

    def plan(self, subject: Subject, forwards: float, source: torch.Generator) -> Plan:  # noqa: ARG002
        rows = subject.order[: int(forwards / 4)]
        return Plan(rows, 4 * len(rows), f"{len(rows)} data rows")

    def measure(self, subject: Subject, x: Tensor, plan: Plan, part: slice) -> Found:  # noqa: ARG002
        first, last, each = int(subject.sites[0]), int(subject.sites[-1]), torch.arange(len(x))

        def log_prob(site: int, hidden: Sequence[int]) -> Tensor:
            observed = torch.ones_like(x, dtype=torch.bool)
            observed[:, hidden] = False
            requests = Requests(torch.full((len(x),), site), lambda some: (x[some], observed[some]))
            return subject.answers.log_prob(requests, x[:, [site]].double())[:, 0]

        one = log_prob(first, [first, last]) + log_prob(last, [last])
        other = log_prob(last, [first, last]) + log_prob(first, [first])
        sites = torch.tensor([[first, last]]).expand(len(x), -1)
        return Found([Effect("ends gap", one - other, torch.ones(len(x)), each, sites, 1e-5)])

    def panels(self, results: Any) -> Any:  # noqa: ARG002
        return [partial(histogram, name="ends gap", title="ends", across="|gap|, nats", count="rows")]


X = torch.randint(2, (300, 9), generator=generator(2))


def model(theta: float = 0.3) -> Planted:
    return Planted(exact.JointTable.random((2,) * 9, generator=generator(1)), theta, 0.5)


@pytest.fixture(scope="module")
def report() -> Report:
    return fg.diagnose(model(), X, budget=2000, diagnostics=[*DIAGNOSTICS, Ends()])


def test_the_report_holds_it_as_it_holds_the_others(report: Report, tmp_path: Path) -> None:
    found = report.effects["ends gap"]
    assert list(report.effects)[-1] == "ends gap"
    assert found.num_rows > 10
    assert report.verdict_of("ends gap") == "not refuted"  # the last site is a dial: its pairs are those of the joint
    middle = fg.diagnose(model(), X, budget=2000, diagnostics=[Ends()], sites=[0, 1, 2, 3])
    assert middle.verdict == "refuted"
    assert list(middle.effects) == ["ends gap"]
    assert "ends gap" in repr(report)
    assert [ax.get_title(loc="left") for ax in report.plot().axes if ax.get_title(loc="left")][-1] == "ends"
    page = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "p(first) p(last | first) against" in page
    assert page.count("data:image/png") == 5


def test_it_shares_the_budget_and_leaves_the_choices_of_others_alone(report: Report) -> None:
    assert 1000 < report.cost.forwards <= 2000
    alone = fg.diagnose(model(), X, budget=2000)
    assert len(alone.effects["rectangle gap"]) > len(report.effects["rectangle gap"])
    of_row, of_row_alone = (r.effects["circulation"] for r in (report, alone))
    rows = torch.unique(of_row.rows)
    assert set(rows.tolist()) <= set(of_row_alone.rows.tolist())
    forecast = fg.diagnose(model(), X, budget=2000, diagnostics=[*DIAGNOSTICS, Ends()], dry_run=True)
    assert forecast.steps[-1][0] == "ends"
    assert forecast.steps[-1][2].endswith("data rows")
    assert forecast.forwards >= report.cost.forwards


def test_a_loaded_report_draws_it_if_it_is_told(report: Report, tmp_path: Path) -> None:
    path = report.save(tmp_path / "report.safetensors")
    again = Report.load(path, diagnostics=[*DIAGNOSTICS, Ends()])
    assert again.summary().meaning("ends gap") == Ends.effects["ends gap"]
    without = Report.load(path)
    assert without.summary().meaning("ends gap") == ""
    assert "ends gap" in repr(without)


def test_what_the_model_refuses_is_said() -> None:
    tables = model().law.conditional_tables()
    both = fg.diagnose(tables, X, budget=2000, diagnostics=[*DIAGNOSTICS, Ends()])
    assert any(line.startswith("Not measured: ends. The model refuses the query") for line in both.caveats)
    assert "ends gap" not in both.effects


class Greedy(Ends):
    name = "greedy"

    def plan(self, subject: Subject, forwards: float, source: torch.Generator) -> Plan:
        return dataclasses.replace(super().plan(subject, 2 * forwards, source), forwards=int(forwards))


@pytest.mark.parametrize(
    ("diagnostics", "text"),
    [
        ([], "diagnostics: are a list. Pass a list such as"),
        ("rectangles", "diagnostics: are 'rectangles'"),
        ([Ends], "diagnostics: hold an? "),
        ([Ends(), Ends()], "diagnostics: hold 'ends' twice"),
        ([Ends(), Greedy()], "diagnostics: hold 'ends gap' twice"),
        ([Greedy()], "diagnostics: hold 'greedy', which took .* rows through the network and had planned"),
    ],
)
def test_lists_that_are_none(diagnostics: Any, text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        fg.diagnose(model(), X, budget=200, diagnostics=diagnostics)
