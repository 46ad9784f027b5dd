"""What the executor needs of the place where frames go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["FrameStorage"]

Frames = npt.NDArray[Any]


class FrameStorage(Protocol):
    """Frames of one video and marks of what is done; ``flexgen.video.storage.FrameStore`` is one.

    What `write` returns is shown to `mark_done`, perhaps in another process, and must be picklable.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``[N, *site]``."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the frames."""
        ...

    @property
    def observed(self) -> tuple[int, ...]:
        """Numbers of the given frames."""
        ...

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the finished windows."""
        ...

    @property
    def notes(self) -> Mapping[str, Any]:
        """JSON that the executor keeps with `done`."""
        ...

    def frames(self) -> Frames:
        """All frames, mapped, not read into memory."""
        ...

    def read(self, indices: Iterable[int]) -> Frames:
        """Some frames, ``[len(indices), *site]``."""
        ...

    def write(self, window: int, indices: Sequence[int], frames: Frames) -> Any:
        """Puts a window's frames on the disk, before it returns."""
        ...

    def mark_done(self, written: Iterable[Any], *, notes: Mapping[str, Any] | None = None) -> None:
        """Marks windows as done, all at once and durably."""
        ...

    def reopen(
        self, windows: Iterable[int] = (), *, frames: Iterable[int] = (), notes: Mapping[str, Any] | None = None
    ) -> None:
        """Takes marks back, durably, before any of `frames` is overwritten."""
        ...

    def bind(self, run: Mapping[str, Any]) -> None:
        """Ties the store to one run, and refuses another."""
        ...

    def verify(self) -> None:
        """Refuses frames that have changed since they were written."""
        ...

    def refresh(self) -> None:
        """Sees the marks that another process made."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Within, no other job can write."""
        ...
