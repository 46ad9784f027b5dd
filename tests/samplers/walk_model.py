"""A video of integers that is cheap, exact in any batch, and shows every frame that a window reads.

As a program, ``walk_model.py FOLDER DELAY [resample]``: runs the plan in a process of its own, slowly, for the tests
that kill it or start several.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flexgen import rng
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.video.storage import FrameStore
from samplers.executor import execute, resample
from samplers.frames.plan import Plan, Window

SITE = (2, 3)
SEED = 5
GIVEN = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)


class Walk:
    """Each target is the slot before it (the first: a sum over what is observed) plus noise, modulo 256."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay, self.batches = delay, []

    def sample_window(self, x: Tensor, query: Query, *, frame_index: Tensor, generator: Streams) -> Tensor:
        self.batches.append(generator.rows.tolist())
        time.sleep(self.delay)
        noise = rng.integers(256, x.shape, generator=generator)
        shown = query.observed[..., None, None]
        places = frame_index[..., None, None]
        start = torch.where(shown, x.long() * (1 + 2 * places), 0).sum(1)
        out = [start + noise[:, 0]]
        for slot in range(1, x.shape[1]):
            out.append(torch.where(shown[:, slot], x[:, slot].long(), out[-1] + noise[:, slot]))
        return torch.where(query.target[..., None, None], torch.stack(out, 1) % 256, x.long()).to(torch.uint8)


def plan() -> Plan:
    """Keyframes, what lies between them, and twice frames that are drawn anew; waves of one to four windows."""
    windows = (
        Window((4, 8, 12, 16), (0,)),
        Window((1, 2, 3), (0, 4)),
        Window((5, 6, 7), (4, 8)),
        Window((9, 10, 11), (8, 12)),
        Window((13, 14, 15), (12, 16)),
        Window((4,), (3, 5), refines=True),
        Window((12,), (11, 13), refines=True),
        Window((17, 18), (4, 12, 16)),
        Window((3, 4), (2, 5, 18), refines=True),
        Window((19,), (3, 12)),
    )
    return Plan(20, (0,), 5, windows, "test")


PLAN = plan()


def open_store(folder: Path, **changes: object) -> FrameStore:
    arguments = {"shape": (20, *SITE), "observed": [0], "observed_frames": GIVEN, "request": {"model": "walk"}}
    return FrameStore.open(folder, **{**arguments, **changes})


def video(folder: Path, *, plan: Plan = PLAN, **settings: object) -> np.ndarray:
    """All frames of a run that nothing disturbs."""
    store = open_store(folder)
    execute(Walk(), plan, store, **{"seed": SEED, **settings})
    return np.array(store.frames())


def main() -> None:
    folder, model = Path(sys.argv[1]), Walk(float(sys.argv[2]))
    torch.set_num_threads(1)
    job = {"seed": SEED, "batch_size": 1}
    if "resample" in sys.argv:
        resample(model, plan(), open_store(folder), window=2, redo_dependents=True, **job)
    else:
        execute(model, plan(), open_store(folder), **job)
    if torch.distributed.is_initialized():
        (folder.parent / f"drawn-by-{torch.distributed.get_rank()}").write_text(str(len(model.batches)))
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
