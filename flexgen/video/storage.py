"""One video on the disk while it is being made: frames that survive a kill, in bounded memory.

A folder of two files: ``frames.npy``, which anything can map that reads numpy's format, and the sidecar
``frames.json``. Guarantees:

* A window is marked done only when its frames are on the disk, and the marks change all at once. A process killed at
  any moment leaves every window either done, with its frames, or not done.
* Every settled frame has a checksum. `verify` finds what has changed since it was written.
* All the space is taken when the store is made, so that a disk that fills up stops a job before its first frame.
* A store goes on only with the request that it was made for.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexgen.checks import folder_path
from flexgen.errors import CheckpointError, FlexgenError
from flexgen.video.frame_file import FrameFile, damaged, told_if_full
from flexgen.video.sidecar import Sidecar, ranges
from flexgen.video.store_folder import FRAMES, PARTIAL, SIDECAR, blank_sidecar, create, locked, require_same

__all__ = ["FrameStore", "Written"]

Frames = npt.NDArray[Any]

_READ_AT_ONCE = 64  # frames


@dataclass(frozen=True)
class Written:
    """A window whose frames are on the disk and not yet marked done; processes tell each other of these.

    Args:
        window: its number.
        checksums: the CRC-32 of each of its frames.
    """

    window: int
    checksums: Mapping[int, int]


class FrameStore:
    """The frames of one video; make or resume one with `open`, look at one with `existing`."""

    def __init__(self, folder: Path, sidecar: Sidecar) -> None:
        self.folder = folder
        self._sidecar = sidecar
        self._file = FrameFile(self.path, sidecar.shape, np.dtype(sidecar.dtype))

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        shape: Sequence[int],
        dtype: npt.DTypeLike = np.uint8,
        observed: Sequence[int] = (),
        observed_frames: Frames | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> FrameStore:
        """The store of a request: a new one, or the one that an earlier call with the same request left.

        Args:
            folder: holds this store and nothing else.
            shape: ``[N, *site]``; ``[N, H, W, C]`` for video.
            dtype: of the frames; uint8 for video.
            observed: numbers of the frames that are given.
            observed_frames: ``[len(observed), *site]``, their values; may be a memory map.
            request: what else the frames depend on (the model's identity, its settings), JSON-serialisable. The
                executor adds the plan and the seed.

        Raises:
            CheckpointError: the folder holds something else, a damaged store or one of another request; or the disk
                has not enough space.
        """
        folder = folder_path("folder", folder)
        blank = blank_sidecar(shape, dtype, observed, observed_frames, request)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".opening", wait=True):  # several processes may open the store of one job
            if not (folder / SIDECAR).exists():
                create(folder, blank, observed_frames)
            if (folder / PARTIAL).exists() and not (folder / FRAMES).exists():
                # Killed in between; that there is a sidecar says that the frames' file is whole.
                (folder / PARTIAL).replace(folder / FRAMES)
        sidecar = Sidecar.read(folder / SIDECAR)
        now = {"shape": list(blank.shape), "dtype": blank.dtype, **blank.request}
        saved = {"shape": list(sidecar.shape), "dtype": sidecar.dtype, **sidecar.request}
        require_same(folder, {name: value for name, value in saved.items() if name != "run"}, now)
        return cls(folder, sidecar)

    @classmethod
    def existing(cls, folder: str | Path) -> FrameStore:
        """The store in a folder, whatever its request; to look at, or to make a video file of."""
        folder = folder_path("folder", folder)
        if not (folder / SIDECAR).exists():
            raise CheckpointError("folder", f"{folder} holds no {SIDECAR}", "Name the folder of a store of frames.")
        return cls(folder, Sidecar.read(folder / SIDECAR))

    @property
    def path(self) -> Path:
        """The ``.npy`` file."""
        return self.folder / FRAMES

    @property
    def shape(self) -> tuple[int, ...]:
        """``[N, *site]``."""
        return self._sidecar.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._file.dtype

    @property
    def site_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def observed(self) -> tuple[int, ...]:
        """Numbers of the given frames."""
        return self._sidecar.observed

    @property
    def request(self) -> Mapping[str, Any]:
        return self._sidecar.request

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the finished windows."""
        return self._sidecar.done

    @property
    def notes(self) -> Mapping[str, Any]:
        """What the executor remembers beside `done`."""
        return self._sidecar.notes

    @property
    def settled(self) -> frozenset[int]:
        """Frames that are given or were written by a finished window."""
        return frozenset(self._sidecar.checksums)

    def frames(self) -> Frames:
        """All frames, mapped read-only; those not settled yet hold anything."""
        mapped: Frames = np.load(self.path, mmap_mode="r")
        return mapped

    def read(self, indices: Iterable[int]) -> Frames:
        """Some frames, ``[len(indices), *site]``, a copy."""
        return self._file.read(list(indices))

    def write(self, window: int, indices: Sequence[int], frames: Frames) -> Written:
        """Puts a window's frames on the disk; they count once `mark_done` is called.

        Args:
            window: its number.
            indices: numbers of its frames.
            frames: ``[len(indices), *site]``, of the store's type.

        Raises:
            CheckpointError: the disk is full; windows already done are untouched.
        """
        if frames.shape != (len(indices), *self.site_shape) or frames.dtype != self.dtype:
            raise FlexgenError(
                "frames",
                f"of window {window} are {frames.dtype} {list(frames.shape)}",
                f"This store takes {self.dtype} {[len(indices), *self.site_shape]}.",
            )
        self._file.write(indices, frames, told_as=f"window {window}")
        return Written(window, {int(i): zlib.crc32(frame.tobytes()) for i, frame in zip(indices, frames, strict=True)})

    def mark_done(self, written: Iterable[Written], *, notes: Mapping[str, Any] | None = None) -> None:
        """Marks windows as done, all at once; in one process only, where several share the job."""
        written = list(written)
        checksums = dict(self._sidecar.checksums)
        for part in written:
            checksums.update(part.checksums)
        self._replace(checksums=checksums, done=self.done | {part.window for part in written}, notes=notes)

    def reopen(
        self, windows: Iterable[int] = (), *, frames: Iterable[int] = (), notes: Mapping[str, Any] | None = None
    ) -> None:
        """Takes marks back, durably: `windows` are no longer done, and `frames` may be overwritten from now on."""
        checksums = dict(self._sidecar.checksums)
        for frame in frames:
            checksums.pop(frame, None)
        self._replace(checksums=checksums, done=self.done - set(windows), notes=notes)

    def bind(self, run: Mapping[str, Any]) -> None:
        """Ties the store to one run (its plan, its seed); refuses another run later, naming what differs."""
        run = json.loads(json.dumps(run))
        if "run" in self.request:
            require_same(self.folder, self.request["run"], run)
        else:
            self._save(replace(self._sidecar, request={**self.request, "run": run}))

    def verify(self) -> None:
        """Compares every settled frame with its checksum.

        Raises:
            CheckpointError: names the frames that have changed since they were written.
        """
        expected = list(self._sidecar.checksums.items())
        changed: list[int] = []
        for start in range(0, len(expected), _READ_AT_ONCE):
            part = expected[start : start + _READ_AT_ONCE]
            frames = self.read(index for index, _ in part)
            changed += [i for (i, crc), frame in zip(part, frames, strict=True) if zlib.crc32(frame.tobytes()) != crc]
        if changed:
            raise damaged(self.folder, f"frames {ranges(changed)} are not as they were written")

    def refresh(self) -> None:
        """Reads the sidecar again, which another process may have replaced."""
        self._sidecar = Sidecar.read(self.folder / SIDECAR)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within, no other job can write here; the lock goes with the process that holds it."""
        with locked(self.folder / ".writing", wait=False):
            yield

    def __repr__(self) -> str:
        return f"FrameStore({self.folder}: {len(self.settled)} of {self.shape[0]} frames, {len(self.done)} windows)"

    def _replace(self, *, notes: Mapping[str, Any] | None, **changes: Any) -> None:
        changed = replace(self._sidecar, notes=self.notes if notes is None else notes, **changes)
        if changed != self._sidecar:
            self._save(changed)

    def _save(self, sidecar: Sidecar) -> None:
        # The disk first: what this process believes is never ahead of what a resumed one would find.
        with told_if_full(self.folder, SIDECAR, 8 * self.shape[0]):
            sidecar.write(self.folder / SIDECAR)
        self._sidecar = sidecar
