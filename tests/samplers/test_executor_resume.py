"""A run that was killed, at whatever moment, ends with the frames of one that nothing disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from flexgen.errors import CheckpointError
from flexgen.video.storage import FrameStore, Written
from samplers.executor import execute, resample
from samplers.frames.adaptive import adaptive_autoregressive
from samplers.frames.plan import Window
from tests.samplers import walk_model
from tests.samplers.crashes import Killed, killed_at, until_done
from tests.samplers.walk_model import PLAN, SEED, Walk, open_store, video

CHILD = Path(walk_model.__file__)


@pytest.fixture(autouse=True)
def _hasty_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process needs no flush, and hundreds of them take minutes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return video(tmp_path_factory.mktemp("undisturbed") / "s")


@pytest.mark.parametrize("half_written", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_killed_at_every_write(undisturbed: np.ndarray, tmp_path: Path, half_written: bool, batch_size: int) -> None:
    """Every moment of a run in turn, each in a store of its own, refinements included."""
    moment = 0
    while True:
        folder = tmp_path / str(moment)
        store = open_store(folder)
        with pytest.MonkeyPatch.context() as patched:
            killed_at(moment, patched, half_written=half_written)
            try:
                execute(Walk(), PLAN, store, seed=SEED, batch_size=batch_size)
                break
            except Killed:
                pass
        execute(Walk(), PLAN, open_store(folder), seed=SEED, batch_size=batch_size)
        assert np.array_equal(open_store(folder).frames(), undisturbed), moment
        moment += 1
    assert moment > 30


def test_killed_over_and_over(undisturbed: np.ndarray, tmp_path: Path) -> None:
    def run() -> None:
        execute(Walk(), PLAN, open_store(tmp_path / "s"), seed=SEED, batch_size=2)

    assert until_done(run, steps=1) > 5
    assert np.array_equal(open_store(tmp_path / "s").frames(), undisturbed)


def test_a_resumed_run_asks_the_batches_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole, parts = Walk(), []
    execute(whole, PLAN, open_store(tmp_path / "whole"), seed=SEED, batch_size=3)

    def run() -> None:
        parts.append(Walk())
        execute(parts[-1], PLAN, open_store(tmp_path / "s"), seed=SEED, batch_size=3)

    until_done(run, steps=4)
    assert len(parts) > 2
    assert {tuple(batch) for part in parts for batch in part.batches} == {tuple(batch) for batch in whole.batches}


def test_sigkill_at_a_random_moment(undisturbed: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHILD.parents[2])}
    child = subprocess.Popen([sys.executable, str(CHILD), str(folder), "0.05"], env=environment)
    deadline = time.monotonic() + 60
    while not (folder / "frames.json").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(time.time_ns()).uniform(0.05, 0.5))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert len(open_store(folder).done) < 10
    assert np.array_equal(video(folder), undisturbed)


def test_interrupt_says_how_far_it_is(undisturbed: np.ndarray, tmp_path: Path) -> None:
    class Interrupted(Walk):
        def sample_window(self, *arguments: object, **options: object) -> Tensor:
            if len(self.batches) == 3:
                signal.raise_signal(signal.SIGINT)
            return super().sample_window(*arguments, **options)

    with pytest.raises(KeyboardInterrupt, match=r"stopped with 3 of 10 windows done; the same call goes on from there"):
        execute(Interrupted(), PLAN, open_store(tmp_path / "s"), seed=SEED)
    assert np.array_equal(video(tmp_path / "s"), undisturbed)


def test_changed_frames_stop_a_resumed_run(tmp_path: Path) -> None:
    video(tmp_path / "s")
    frames = np.load(tmp_path / "s" / "frames.npy", mmap_mode="r+")
    frames[7] += 1
    frames.flush()
    with pytest.raises(CheckpointError, match=r"damaged: frames 7 are not as they were written"):
        video(tmp_path / "s")


def test_a_disk_that_fills_up_loses_nothing(
    undisturbed: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, left = os.pwrite, [12]

    def filling(*arguments: object) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return pwrite(*arguments)

    store = open_store(tmp_path / "s")
    monkeypatch.setattr(os, "pwrite", filling)
    with pytest.raises(CheckpointError, match=r"no room for window 3, .*Make room and repeat the call"):
        execute(Walk(), PLAN, store, seed=SEED)
    monkeypatch.undo()
    assert store.done == {0, 1, 2}
    assert np.array_equal(video(tmp_path / "s"), undisturbed)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_marks_before_frames_are_seen(undisturbed: np.ndarray, tmp_path: Path, batch_size: int) -> None:
    """The tests above can fail: a store that marks a window before its frames are there is found out."""

    class Hasty(FrameStore):
        def write(self, window: int, indices: list[int], frames: np.ndarray) -> Written:
            self.mark_done([Written(window, {})])
            return super().write(window, indices, frames)

    for moment in range(20):
        open_store(tmp_path / str(moment))
        with pytest.MonkeyPatch.context() as patched:
            killed_at(moment, patched, half_written=True)
            with pytest.raises(Killed):
                execute(Walk(), PLAN, Hasty.existing(tmp_path / str(moment)), seed=SEED, batch_size=batch_size)
        if not np.array_equal(video(tmp_path / str(moment)), undisturbed):
            return
    raise AssertionError("not found out")


def torchrun(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHILD.parents[2])}
    subprocess.run([*command, str(CHILD), str(folder), "0", *arguments], env=environment, check=True, timeout=120)


def test_one_and_two_processes_agree(undisturbed: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    torchrun(folder)
    assert np.array_equal(open_store(folder).frames(), undisturbed)
    assert open_store(folder).done == set(range(10))
    shares = [int((tmp_path / f"drawn-by-{rank}").read_text()) for rank in (0, 1)]
    assert sum(shares) == 10
    assert min(shares) >= 2

    torchrun(folder, "resample")
    video(tmp_path / "one")
    resample(Walk(), PLAN, open_store(tmp_path / "one"), window=2, seed=SEED, redo_dependents=True)
    assert np.array_equal(open_store(folder).frames(), open_store(tmp_path / "one").frames())


def test_adaptive_plans_are_resumed(tmp_path: Path) -> None:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() - b.double()).abs().flatten(1).sum(1)

    plan = adaptive_autoregressive(20, 1, 6, num_targets=2, distance=distance)
    whole = video(tmp_path / "whole", plan=plan)
    assert until_done(lambda: video(tmp_path / "s", plan=plan), steps=2) > 3
    store = open_store(tmp_path / "s")
    assert np.array_equal(store.frames(), whole)
    chosen = plan.chosen([Window(**window) for window in store.notes["windows"]])
    assert np.array_equal(video(tmp_path / "fixed", plan=chosen), whole)  # it looked at done frames only
    report = resample(Walk(), plan, store, window=3, seed=SEED)
    assert report.num_drawn == 1
    assert report.stale == chosen.dependents(3)
