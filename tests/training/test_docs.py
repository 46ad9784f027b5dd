"""The examples of docs/training.md run."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, nn

from flexgen.training import TensorData, TrainingSettings, train

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
FIRST, DENOISING = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_first_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        exec(FIRST.replace("num_steps=2000", "num_steps=20"), names)
    assert names["result"].stopped == "finished"
    assert (tmp_path / "runs/first/step-000000020/state.json").is_file()


def test_the_denoising_example() -> None:
    names: dict = {}
    exec(DENOISING, names)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(13, 12)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layer(torch.cat([x.flatten(1), t[:, None]], -1)).view_as(x)

    frames = torch.zeros(64, 3, 2, 2)  # the velocity towards a point is noise, of variance one, which x reveals
    settings = TrainingSettings(num_steps=200, batch_size=64, lr=1e-2, validate_every=50)
    history = train(Network(), names["denoising"], TensorData(frames), settings).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
