"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """Within, eval mode, gradients and all; after, every module in the mode it had."""
    modes = [(module, module.training) for module in network.modules()] if isinstance(network, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
