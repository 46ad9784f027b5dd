"""Which rows each step sees, as a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from flexgen import rng
from flexgen.errors import DataError

__all__ = ["Batch", "EpochOrder", "TensorData", "TrainingData", "fingerprint", "to_device"]

Batch = Tensor | Mapping[str, Tensor]


class TrainingData(Protocol):
    """A map-style data set read a batch at a time."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """The rows of those numbers (int64 ``[B]``, on the CPU, repeats allowed); a pure function of them."""
        ...


class TensorData:
    """Rows of tensors held in memory, on any device.

    Args:
        columns: one tensor, or several by name with one number of rows.

    >>> data = TensorData(torch.randn(1000, 8))
    >>> data = TensorData({"x": torch.randn(1000, 8), "present": torch.rand(1000, 8) > 0.1})
    """

    def __init__(self, columns: Tensor | Mapping[str, Tensor]) -> None:
        self.columns = columns if isinstance(columns, Tensor) else dict(columns)
        tensors = [columns] if isinstance(columns, Tensor) else list(columns.values())
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise DataError(
                "columns", f"have {sorted(lengths)} rows", "Pass at least one tensor, all with the same number of rows."
            )
        self._num_rows = lengths.pop()

    def __len__(self) -> int:
        return self._num_rows

    def batch(self, indices: Tensor) -> Batch:
        if isinstance(self.columns, Tensor):
            return self.columns[indices.to(self.columns.device)]
        return {name: column[indices.to(column.device)] for name, column in self.columns.items()}


class EpochOrder:
    """The rows of every step: shuffled epochs laid end to end, cut into batches of one size.

    Epoch e's permutation is keyed by (seed, e) alone, so any step can be computed at any time: nothing has to be
    remembered for a run to be resumed. Every row is seen once an epoch; a batch may span two epochs, or several.
    """

    def __init__(self, num_rows: int, batch_size: int, *, seed: int) -> None:
        if num_rows < 1:
            raise DataError("data", "has no rows", "Pass at least one row to train on.")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def rows(self, step: int) -> Tensor:
        """int64 ``[batch_size]``."""
        first, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while first < stop:
            epoch, place = divmod(first, self.num_rows)
            part = self.permutation(epoch)[place : place + stop - first]
            parts.append(part)
            first += len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = rng.stream(self.seed, "epoch", epoch)
            self._permutation, self._epoch = torch.randperm(self.num_rows, generator=generator), epoch
        return self._permutation


def to_device(batch: Batch, device: torch.device) -> Batch:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def fingerprint(data: TrainingData, *, num_probes: int = 8) -> dict[str, object]:
    """The number of rows, and a hash of a few that are spread evenly: what a resumed run checks its data against."""
    rows = torch.linspace(0, len(data) - 1, min(num_probes, len(data))).round().long()
    batch = data.batch(rows)
    columns = {"": batch} if isinstance(batch, Tensor) else batch
    digest = hashlib.sha256()
    for name in sorted(columns):
        column = columns[name].detach().cpu().contiguous()
        digest.update(f"{name} {column.dtype} {tuple(column.shape)} ".encode())
        digest.update(column.flatten().view(torch.uint8).numpy().tobytes())
    return {"rows": len(data), "sample": digest.hexdigest()[:16]}
