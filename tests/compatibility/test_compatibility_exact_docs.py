"""The code on the page about exact checks runs, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "compatibility" / "exact.md"


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    said = capsys.readouterr().out
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert said.startswith(shown)
    assert "\ncompatible\n" in said
    assert "total variation 0.0833333; KL 0.0143626 nats" in said
    assert "\nKL 0.0368527 nats, reversed 0.0299293 nats\n" in said
    assert names["closest"].gap < 1e-9
