"""The pages on draws and on estimated conditionals run, and say what their code prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flexgen.compatibility.networks.scores import linear_score_asymmetry, score_asymmetry
from tests.networks import small

PAGES = Path(__file__).parents[2] / "docs" / "compatibility"


def run_page(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str, list[str]]:
    """Names after all code blocks of a page, what they printed, and the blocks of output that the page shows."""
    text = (PAGES / name).read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, name, "exec"), names)
    shown = re.findall(r"```\n((?:one distribution|compatibility|total|pseudo).*?)```", text, re.DOTALL)
    return names, capsys.readouterr().out, shown


def test_compatibility_page_on_draws_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names, printed, shown = run_page("draws.md", capsys)
    assert len(shown) == 3
    for block in shown:
        assert block in printed
    assert names["change"].verdict == "refuted"
    excess = names["excess"]
    assert abs(excess.gain - excess.certificate) < 1e-6  # the closest joint gains its certificate on every row
    assert excess.standard_error < 1e-6
    assert abs(names["result"].value - names["linear_score_asymmetry"](names["a"])) < 5 * names["result"].probe_error
    assert names["asymmetry"].value == 0.0  # a fresh network predicts nothing
    # With weights at work the probes agree with the whole Jacobian of the targets' score.
    network = small.network(in_channels=1)
    backbone = names["VideoBackbone"](network, names["NoiseProcess"]("flow"), names["PixelScale"](), window=4).eval()
    windows = names["windows"][:1]
    score = names["flow_score"](backbone, windows, names["query"], torch.arange(4), names["level"])
    result = score_asymmetry(score, windows, generator=torch.Generator().manual_seed(1), num_probes=64)
    jacobian = torch.autograd.functional.jacobian(score, windows).view(256, 256)
    assert abs(result.value - linear_score_asymmetry(jacobian)) < 4.5 * result.probe_error
    assert result.value > 100 * result.floor


def test_compatibility_page_on_estimated_conditionals_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names, printed, shown = run_page("estimated.md", capsys)
    assert len(shown) == 2
    assert all(block in printed for block in shown)
    assert names["test"].verdict == "refuted"
