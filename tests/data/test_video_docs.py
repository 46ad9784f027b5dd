"""The code of docs/video_data.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexgen.cli.main import main
from tests.data.test_video_files import smooth_video, write

PAGE = (Path(__file__).parents[2] / "docs" / "video_data.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_videos").mkdir()
    write(Path("my_videos/walk.npy"), smooth_video(40, 80, 100))
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    exec(compile("\n".join(blocks), "docs/video_data.md", "exec"), names)
    assert names["poses"].shape == (300, 3)
    assert names["batch"]["frames"].shape == (2, 20, 64, 64, 3)
    assert names["videos"].clip(1).start == 10
    assert names["windows"].tolist() == [-1] * 4 + [0] * 8 + [1] * 8
    assert names["errors"].compute()["frames"].tolist() == [2, 4, 8, 18]
    assert abs(names["seams"].compute()["ratio"] - 1) < 0.5
    assert np.load("walk.npy").shape == (40, 64, 64, 3)
    with Image.open("walk.png") as sheet:
        assert sheet.size == (10 * 68, 2 * 80)


@pytest.mark.parametrize("command", re.findall(r"^flexgen (render .*)$", PAGE, flags=re.MULTILINE))
def test_the_commands_compose(command: str) -> None:
    assert main([*command.split(), "--config"]) == 0
