"""A few kills of every case, and a hundred in the slow tier (``make kill``)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_torn_or_mixed_and_all_goes_on_to_the_same_end(kills: int) -> None:
    """Also the one case that is wrong on purpose: it has to be found out, else the script itself fails."""
    command = [sys.executable, "-m", "tests.kill.kills", f"--kills={kills}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[int(n) for n in re.findall(r"\d+", line)] for line in done.stdout.splitlines() if line.startswith("│")]
    *ours, wrong = rows
    assert [(row[0], row[1], row[2], row[4] == row[3] > 0) for row in ours] == [(kills, 0, 0, True)] * 5
    assert wrong[1] + wrong[2] > 0
