"""A draw is shown to observers and counted, or neither."""

from __future__ import annotations

import signal
import threading

import pytest
import torch
from torch import Tensor

from samplers import GibbsSampler, observers, scans
from samplers.observers import undivided
from tests.samplers.tabulated import TabulatedMarginals


def take_in(steps: list[str], presses: int) -> None:
    with undivided():
        steps.append("shown")
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        steps.append("counted")


@pytest.mark.parametrize(("presses", "expected"), [(1, ["shown", "counted"]), (2, ["shown"])])
def test_the_first_ctrl_c_waits_and_the_second_does_not(presses: int, expected: list[str]) -> None:
    before, steps = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        take_in(steps, presses)
    assert steps == expected
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_set_no_handler() -> None:
    seen = []

    def look() -> None:
        with undivided():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


class PressingAt:
    """Presses Ctrl-C when it is shown a draw."""

    def __init__(self, draw: int) -> None:
        self.draw, self.seen = draw, 0

    def update(self, x: Tensor) -> None:  # noqa: ARG002
        self.seen += 1
        if self.seen == self.draw:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_shows_every_draw_once() -> None:
    sampler = GibbsSampler(TabulatedMarginals(3), scan=scans.random())
    whole, first, last = (observers.PairwiseCounts(2) for _ in range(3))
    sampler.run(chains=5, draws=12, warmup=2, generator=5, observers=(one for one in [whole]))
    broken = sampler.run(chains=5, draws=12, warmup=2, generator=5, observers=[first, PressingAt(8), last])
    assert broken.interrupted
    assert len(broken.draws) == 8
    sampler.run(state=broken.state, draws=4, observers=[first, last])
    for seen in (first, last):
        assert seen.num_seen == 60
        assert torch.equal(seen.counts, whole.counts)
