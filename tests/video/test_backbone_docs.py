"""The code of the page on backbones runs, and its results are what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "backbone.md"


def test_the_page_on_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 6
    # Smaller networks and fewer steps than a reader would take.
    quick = {"(32, 64, 96, 128)": "(8, 8, 16, 16)", "num_steps=1000": "num_steps=2", "(64, 40, ": "(8, 40, "}
    text = "\n".join(blocks)
    for long, short in quick.items():
        assert long in text
        text = text.replace(long, short)
    names: dict = {}
    exec(compile(text, str(PAGE), "exec"), names)
    assert names["answer"].shape == (1, 6, 3, 32, 32)
    assert torch.equal(names["drawn"][:, :6], names["frames"][:, :6])
    assert not torch.equal(names["drawn"][:, 6:], names["frames"][:, 6:])
    assert names["again"].window == 12
