"""A long video takes the memory of a short one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import resource, sys
import torch
from flexgen.video.storage import FrameStore
from samplers import frames
from samplers.executor import execute

class Grey:
    def sample_window(self, x, query, *, frame_index, generator):
        return torch.full_like(x, 128)

torch.set_num_threads(1)
length = int(sys.argv[2])
store = FrameStore.open(sys.argv[1], shape=(length, 64, 64, 3))
execute(Grey(), frames.tree(length, 0, 20), store, seed=0, batch_size=4)
store.verify()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_resident_memory_does_not_follow_the_length(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    peak = {}
    for length in (1000, 15_000):
        command = [sys.executable, "-c", CHILD, str(tmp_path / str(length)), str(length)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        peak[length] = int(done.stdout)
    assert peak[15_000] <= 1.1 * peak[1000], peak
