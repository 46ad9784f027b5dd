"""The page on repair runs, and what it repairs gets better."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "compatibility" / "repair.md"


def test_compatibility_page_on_repair_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), names)
    said = capsys.readouterr().out
    assert "interaction gap before" in said
    assert names["after"].weighted().high < names["gap"].weighted().low
    assert names["before"] > 1e-3
    assert float(names["scanned"].gains.min()) >= 0
    assert (names["log_p"] >= names["by_order"].mean(0) - 1e-6).all()
    assert names["distilled"].kl < 0.1
    assert names["draws"].shape == (100, 4)
