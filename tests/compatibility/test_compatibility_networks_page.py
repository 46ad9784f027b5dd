"""The code on the page about networks runs, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "compatibility" / "networks.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["report"].verdict == "refuted"
    assert "012 | 210: " in repr(names["report"])
    assert "sex=" in str(names["blocks"].check(0))
    assert (tmp_path / "report.html").stat().st_size > 10_000
    for effect in (names["whole"], names["interaction"], names["marginal"], names["gaps"], names["curvature"]):
        assert effect.verdict() == "not refuted"
    assert names["effect"].verdict(margin=0.05) == "refuted"
