"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Ema", "ema_decay"]


def ema_decay(decay: float, num_updates: int) -> float:
    """The decay of one update: ``min(decay, (1 + t) / (10 + t))`` after t updates.

    The ramp forgets the initial weights, which a fixed decay of 0.999 would still carry after thousands of steps.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class Ema:
    """The average ``a <- d_t * a + (1 - d_t) * w`` of the trainable parameters, with d_t from `ema_decay`.

    Buffers (running statistics) are not averaged: while the average is applied, the network's own are used.

    Args:
        network: whose weights are followed; the average starts at their present values.
        decay: the largest d_t.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
        self.average: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in named}
        self._weights = [weight for _, weight in named]

    def update(self, num_updates: int) -> None:
        """Moves the average towards the weights, which have been updated `num_updates` times before."""
        follow = get_ema_multi_avg_fn(ema_decay(self.decay, num_updates))  # type: ignore[no-untyped-call]
        follow(list(self.average.values()), [weight.detach() for weight in self._weights], None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the network holds the average; after, its own weights again, bit for bit.

        Values are copied and storage stays where it is, which fused optimizers, DDP and CUDA graphs rely on.
        """
        own = [weight.detach().clone() for weight in self._weights]
        self.copy_to_network()
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self._weights, own, strict=True):
                    weight.copy_(value)

    @torch.no_grad()
    def copy_to_network(self) -> None:
        for weight, value in zip(self._weights, self.average.values(), strict=True):
            weight.copy_(value)
