"""A resumed run equals an uninterrupted one bit for bit: dropout, EMA, early stopping and loss scaling included."""

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
import safetensors.torch
import torch
from torch import Tensor

from flexgen.training import TensorData, TrainingResult, latest_checkpoint, read_checkpoint, train
from flexgen.training import state as training_state
from tests.training import toy

CHILD = Path(__file__).with_name("child.py")


class Crash(RuntimeError):
    pass


class CrashingData(TensorData):
    """Raises once it has been asked for so many batches."""

    def __init__(self, columns: Tensor, fuse: int) -> None:
        super().__init__(columns)
        self.fuse = fuse

    def batch(self, indices: Tensor) -> Tensor:
        self.fuse -= 1
        if self.fuse < 0:
            raise Crash
        return super().batch(indices)


def run(directory: Path | None = None, *, fuse: int | None = None, **changes: object) -> tuple[dict, TrainingResult]:
    """The weights and the result of a run with everything on."""
    network, objective, data, held_out = toy.parts()
    if fuse is not None:
        data = CrashingData(data.columns, fuse + 1)  # one batch is read for the fingerprint
    settings = toy.everything_on(**changes)
    result = train(network, objective, data, settings, held_out=held_out, directory=directory, resume=True)
    return network.state_dict(), result


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[dict, TrainingResult]:
    return run()


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def without_clock(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


@pytest.mark.parametrize("crash", [3, 29, 119])
def test_crash_and_resume(uninterrupted: tuple[dict, TrainingResult], tmp_path: Path, crash: int) -> None:
    with pytest.raises(Crash):
        run(tmp_path, fuse=crash)
    weights, result = run(tmp_path)
    assert_same(weights, uninterrupted[0])
    assert without_clock(result.history) == without_clock(uninterrupted[1].history)
    assert (result.best_step, result.best_loss) == (uninterrupted[1].best_step, uninterrupted[1].best_loss)


def test_many_crashes_and_checkpoints_of_another_cadence(
    uninterrupted: tuple[dict, TrainingResult], tmp_path: Path
) -> None:
    for fuse, every in [(10, 7), (25, 5), (40, 9)]:
        with pytest.raises(Crash):
            run(tmp_path, fuse=fuse, checkpoint_every=every)
    assert_same(run(tmp_path)[0], uninterrupted[0])


def test_a_finished_run_is_not_trained_further(uninterrupted: tuple[dict, TrainingResult], tmp_path: Path) -> None:
    run(tmp_path)
    weights, result = run(tmp_path, fuse=0)
    assert_same(weights, uninterrupted[0])
    assert result.stopped == "finished"


def test_resume_under_loss_scaling(tmp_path: Path) -> None:
    expected, _ = run(amp="fp16", num_steps=40)
    with pytest.raises(Crash):
        run(tmp_path, fuse=25, amp="fp16", num_steps=40)
    assert_same(run(tmp_path, amp="fp16", num_steps=40)[0], expected)


@pytest.mark.parametrize("forgotten", ["optimizer", "ema", "best"])
def test_a_resume_that_forgets_something_is_seen(
    uninterrupted: tuple[dict, TrainingResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The tests above can fail: each part of a checkpoint matters to the final weights."""
    best = uninterrupted[1].best_step
    with pytest.raises(Crash):
        run(tmp_path, fuse=119 if forgotten == "best" else best - 3)
    whole = training_state.TrainingState.restore

    def forgetful(state: training_state.TrainingState, *args: object) -> None:
        fresh_average = None if state.ema is None else dict(state.ema.average)
        whole(state, *args)
        if forgotten == "optimizer":
            for optimizer in state.optimizers:
                optimizer.state.clear()
        elif forgotten == "ema":
            state.ema.average.update({name: torch.zeros_like(value) for name, value in fresh_average.items()})
        else:
            state.best = {name: torch.zeros_like(value) for name, value in state.best.items()}

    monkeypatch.setattr(training_state.TrainingState, "restore", forgetful)
    weights, _ = run(tmp_path)
    assert any(not torch.equal(weights[name], uninterrupted[0][name]) for name in weights)


def test_interrupt_saves_and_returns_then_resumes(uninterrupted: tuple[dict, TrainingResult], tmp_path: Path) -> None:
    network, objective, data, held_out = toy.parts()
    before = signal.getsignal(signal.SIGINT)

    class Interrupting(TensorData):
        calls = 0

        def batch(self, indices: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 40:
                signal.raise_signal(signal.SIGINT)  # in the middle of a step
            return super().batch(indices)

    data = Interrupting(data.columns)
    result = train(network, objective, data, toy.everything_on(), held_out=held_out, directory=tmp_path)
    assert (result.stopped, result.step) == ("interrupted", 39)  # the first call was the fingerprint's
    assert latest_checkpoint(tmp_path).name == "step-000000039"
    assert signal.getsignal(signal.SIGINT) is before
    assert not network.training
    assert_same(network.state_dict(), read_checkpoint(latest_checkpoint(tmp_path)).tensors["best"])
    assert_same(run(tmp_path)[0], uninterrupted[0])


def test_a_second_interrupt_raises_at_once(tmp_path: Path) -> None:
    network, objective, data, held_out = toy.parts()

    def twice(_record: dict) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(network, objective, data, toy.everything_on(), held_out=held_out, directory=tmp_path, on_record=twice)
    assert latest_checkpoint(tmp_path).name == "step-000000007"


def test_max_seconds_stops_with_a_checkpoint(uninterrupted: tuple[dict, TrainingResult], tmp_path: Path) -> None:
    _, result = run(tmp_path, max_seconds=1e-6)
    assert (result.stopped, result.step) == ("max_seconds", 1)
    weights, result = run(tmp_path)
    assert result.stopped == "finished"
    assert_same(weights, uninterrupted[0])


def test_sigkill_at_a_random_moment(uninterrupted: tuple[dict, TrainingResult], tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, str(CHILD), str(tmp_path), "0.01"], env=environment)
    deadline = time.monotonic() + 60
    while latest_checkpoint(tmp_path / "run") is None and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.8))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    killed_at = read_checkpoint(latest_checkpoint(tmp_path / "run")).step
    assert 7 <= killed_at < 120
    weights, _ = run(tmp_path / "run")
    assert_same(weights, uninterrupted[0])


def test_global_random_state_is_neither_read_nor_changed(uninterrupted: tuple[dict, TrainingResult]) -> None:
    network, objective, data, held_out = toy.parts()  # modules draw their first weights from the global generator
    torch.manual_seed(1234)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    train(network, objective, data, toy.everything_on(), held_out=held_out)
    assert_same(network.state_dict(), uninterrupted[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_one_and_two_processes_agree(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, str(CHILD), str(tmp_path), "0"], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=120
    )
    first, second = (safetensors.torch.load_file(tmp_path / f"result-{rank}.safetensors") for rank in (0, 1))

    network, objective, data, held_out = toy.parts(dropout=0.0)
    seen = []

    class Watched(TensorData):
        def batch(self, indices: Tensor) -> Tensor:
            seen.append(indices)
            return super().batch(indices)

    train(network.double(), objective, Watched(data.columns), toy.everything_on(), held_out=held_out)
    assert torch.equal(torch.cat([first.pop("rows"), second.pop("rows")], dim=1), torch.stack(seen))
    assert_same(first, second)
    for name, weight in network.state_dict().items():
        # Float64 sums in another order; Adam's division by tiny second moments magnifies 1e-16 by a few decades.
        torch.testing.assert_close(first[name], weight, rtol=1e-8, atol=1e-10, msg=name)
