"""The code of the page on long videos runs, on the checkpoint that comes along."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "video.md").read_text(encoding="utf-8")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 6
    names: dict = {}
    exec(compile("\n".join(blocks), "docs/video.md", "exec"), names)
    walk = names["walk"]
    assert walk.shape == (41, 32, 32, 3)
    assert np.array_equal(names["between"].frames[[0, 20, 40]], walk[[0, 20, 40]])
    assert np.array_equal(names["video"].frames[:12], walk[:12])
    assert names["looking"].plan.name == "adaptive-hierarchy-2"
    assert names["out"].video == Path("out/walk/video.mp4")
    window = names["out"].plan.windows[2]
    changed = (names["again"].frames != names["video"].frames).any((1, 2, 3)).nonzero()[0]
    assert set(window.target) <= set(changed.tolist())
    assert "waves" in capsys.readouterr().out


def test_the_default_costs_what_the_page_says() -> None:
    from samplers import frames

    plan = frames.hierarchical(300, 12, 12)
    assert plan.evaluations_per_frame(10, cached=True) <= 13
    assert plan.evaluations_per_frame(10, cached=False) > plan.evaluations_per_frame(10, cached=True)
