"""What surrounds a training run, and puts the process back as it was: the global random state, Ctrl-C, eval mode."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import nn

__all__ = ["Interruption", "evaluating", "preserved_random_state", "seed_dropout"]


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Within, the global random state may be set at will; after, it is what it was.

    Once a run rather than once a step, where forking it would cost a copy of its 5 kB each time.
    """
    on_cpu = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Keys the global generators, the only ones torch's dropout can draw from."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reach for every absent accelerator
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within, eval mode and no gradients; after, every module in the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class Interruption:
    """Turns the first Ctrl-C into a request to stop at the end of the step; a second one interrupts at once.

    An interruption in the middle of an update would leave weights and moments of different steps.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watched(self) -> Iterator[Interruption]:
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            yield self
            return
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, previous or signal.SIG_DFL)

    def _on_interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
