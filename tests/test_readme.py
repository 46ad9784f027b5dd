"""README's code runs, and the demo leaves what README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import flexgen as fg
from flexgen import table_model
from flexgen.cli.main import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text()
TINY = fg.TableSettings(small_steps=2, small_width=8, small_depth=1, restarts=1, classes=(2,), ridges=(0.1,))


@pytest.mark.filterwarnings(r"ignore:\s*ArviZ is undergoing:FutureWarning")  # on its first import of a day
def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    code, video, diagnosis = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.setattr(table_model, "TableSettings", lambda: TINY)
    names: dict[str, object] = {}
    exec(code.replace("chains=64, draws=200, warmup=50", "chains=4, draws=10, warmup=1"), names)
    assert isinstance(names["model"], fg.TableModel)
    assert names["chains"].draws.shape == (10, 4, 11)
    monkeypatch.chdir(tmp_path)
    names["held_out"] = names["held_out"].head(40)  # type: ignore[attr-defined]
    exec(diagnosis.replace('"1 min"', "300"), names)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    # The page on long videos runs such a call; here the names must be right, and the length shorter.
    exec(video.replace("15_000", "306"), names)
    assert names["out"].frames.shape == (306, 32, 32, 3)


def test_the_pages_it_links_to_exist() -> None:
    root = ROOT
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert len(links) > 8
    assert [link for link in links if not (root / link).exists()] == []


def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["small_steps=2", "model.small_width=8", "restarts=1", "classes=[2]", "ridges=[0.1]"]
    owner = {"small_steps": "training"}
    settings = [f"{owner.get(o.split('=')[0], 'model')}.{o.removeprefix('model.')}" for o in tiny]
    sampler = ["sampler.chains=40", "sampler.draws=8", "sampler.warmup=1", "sampler.picture_every=4"]
    assert main(["demo", f"output={tmp_path / 'demo'}", "data=iris", "num_orders=2", *settings, *sampler]) == 0
    report = json.loads((tmp_path / "demo/report.json").read_text())
    assert set(report["imputation"]) == {"flexgen", "IterativeImputer", "mean / mode"}
    assert report["incompatibility"]["sd_over_orders"] > 0
    assert len(report["chains"]["rhat"]) == 5
    rows = pd.read_csv(tmp_path / "demo/joint.csv")
    assert rows.shape == (320, 5)
    assert set(rows["target"]) <= {"setosa", "versicolor", "virginica"}
    assert (tmp_path / "demo/pairs.png").stat().st_size > 10_000
    assert len(fg.TableModel.from_pretrained(tmp_path / "demo/model").sample(3)) == 3
    assert "Incompatibility: log p(row) varies by" in capsys.readouterr().out


def test_no_placeholder_is_left() -> None:
    root = ROOT
    pages = [root / "README.md", root / "benchmarks/README.md", *root.glob("docs/**/*.md")]
    assert [page.name for page in pages if "@@" in page.read_text()] == []
