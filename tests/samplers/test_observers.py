"""A draw is shown to observers and counted, or neither."""

from __future__ import annotations

import signal
import threading

import pytest

from samplers.observers import undivided


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
