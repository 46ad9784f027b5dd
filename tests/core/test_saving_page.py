"""The code of the page on saving runs, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "saving.md"


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "folder: 'model/config.json' is damaged or of another save" in capsys.readouterr().out
    assert Path("notes.txt").read_text() == "whole or not at all"
    assert names["saving"].read_folder("out", ["a.txt"], lambda files, _: files["a.txt"].read_text()) == "A"
