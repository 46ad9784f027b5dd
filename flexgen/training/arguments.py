"""What `train` is given, checked before its first step: each complaint names the argument, its value and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flexgen.checks import kind_of
from flexgen.errors import ConfigError, DataError, FlexgenError
from flexgen.laws import MaskLaw
from flexgen.training.batches import Batch, TensorData, TrainingData
from flexgen.training.objectives import Objective
from flexgen.training.settings import TrainingSettings

__all__ = ["CheckingObjective", "check_contents", "check_kinds", "training_data"]

_ENTRIES_AT_ONCE = 1 << 24  # whose validation takes some bytes each


@runtime_checkable
class CheckingObjective(Objective, Protocol):
    """An objective that can tell before the first step whether a network and data suit it."""

    def check(self, network: nn.Module, batch: Batch, *, argument: str = "data") -> None:
        """Raises unless the objective can score the network on such a batch; `argument` is what errors call it."""
        ...


def check_kinds(network: Any, objective: Any, settings: Any) -> None:
    if not isinstance(network, nn.Module):
        raise FlexgenError("network", f"is {kind_of(network)}", "Pass a torch.nn.Module.")
    if not callable(objective):
        fix = "Pass MaskedLikelihood(law), or any (network, batch, generator) -> loss [B]."
        what = (
            f"is a mask law ({type(objective).__name__})"
            if isinstance(objective, MaskLaw)
            else f"is {kind_of(objective)}"
        )
        raise FlexgenError("objective", what, fix)
    if not isinstance(settings, TrainingSettings):
        raise ConfigError("settings", f"is {kind_of(settings)}", "Pass TrainingSettings(num_steps=..., ...), or None.")


def training_data(argument: str, value: Any) -> TrainingData:
    """`value` as a data set: a tensor, or several by name, is wrapped."""
    if isinstance(value, Tensor | Mapping):
        return TensorData(value)
    if not (hasattr(value, "batch") and hasattr(value, "__len__")):
        fix = (
            "Pass TensorData(x), a tensor, or whatever has len() and batch(indices); of an array, torch.from_numpy(x)."
        )
        raise DataError(argument, f"is {kind_of(value)}", fix)
    data: TrainingData = value
    return data


def check_contents(objective: Objective, network: nn.Module, argument: str, data: TrainingData, rows: Tensor) -> None:
    """Lets the objective look at all rows that are in memory, or else at the batch of `rows`, where it cares to."""
    if isinstance(objective, CheckingObjective):
        for name, batch in _looked_at(argument, data, rows):
            objective.check(network, batch, argument=name)


def _looked_at(argument: str, data: TrainingData, rows: Tensor) -> Iterator[tuple[str, Batch]]:
    if not isinstance(data, TensorData):
        yield f"{argument}, first batch", data.batch(rows)
        return
    columns = data.columns
    entries = columns.numel() if isinstance(columns, Tensor) else max(map(torch.numel, columns.values()))
    size = max(1, _ENTRIES_AT_ONCE * len(data) // max(entries, 1))
    if size >= len(data):
        yield argument, columns
        return
    for start in range(0, len(data), size):
        part = slice(start, min(start + size, len(data)))
        some = columns[part] if isinstance(columns, Tensor) else {name: each[part] for name, each in columns.items()}
        yield f"{argument}[{part.start}:{part.stop}]", some
