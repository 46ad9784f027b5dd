"""The frames of a video in one ``.npy`` file, read and written frame by frame in bounded memory.

By ``pread`` and ``pwrite``, not through a memory map: a full disk is then an error to report rather than a bus error,
and no page of the file counts as this process's memory. Anything else may map the file.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexgen.checks import whole_number
from flexgen.errors import CheckpointError, FlexgenError

__all__ = ["FrameFile", "damaged", "told_if_full"]

Frames = npt.NDArray[Any]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class FrameFile:
    """An existing file of frames.

    Args:
        path: of the file.
        shape: ``[N, *site]`` that it must have.
        dtype: that it must have.

    Raises:
        CheckpointError: the file is missing, has another shape or type, or is cut short.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._frame_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._first_byte = self._checked_header()

    @staticmethod
    def create(
        path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], given: Iterable[tuple[int, Frames]] = ()
    ) -> None:
        """Makes a file with all its space taken, zeros but for the `given` numbers and frames."""
        num_bytes = math.prod(shape) * dtype.itemsize
        try:
            with told_if_full(path.parent, f"the video's {shape[0]} frames", num_bytes), path.open("wb") as file:
                header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()
                start = file.tell()
                _take_space(file.fileno(), start + num_bytes)
                for number, frame in given:
                    data = frame.tobytes()
                    _write_at(file.fileno(), data, start + number * len(data))
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def read(self, indices: Sequence[int]) -> Frames:
        """Frames ``[len(indices), *site]``, a copy."""
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        rows = out.reshape(len(indices), math.prod(self.shape[1:])).view(np.uint8)  # [.., bytes], the same memory
        with self.path.open("rb", buffering=0) as file:
            for index, row in zip(indices, rows, strict=True):
                file.seek(self._place(index))
                if file.readinto(row.data) != self._frame_bytes:
                    raise damaged(self.path.parent, f"{self.path.name} ends within frame {index}")
        return out

    def write(self, indices: Sequence[int], frames: Frames, *, told_as: str) -> None:
        """Puts frames ``[len(indices), *site]`` on the disk; they are there when this returns."""
        places = [self._place(index) for index in indices]
        with told_if_full(self.path.parent, told_as, frames.nbytes):
            descriptor = os.open(self.path, os.O_WRONLY)
            try:
                for place, frame in zip(places, frames, strict=True):
                    _write_at(descriptor, frame.tobytes(), place)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _place(self, index: int) -> int:
        number = whole_number("indices", index, 0)
        if number >= self.shape[0]:
            raise FlexgenError("indices", f"holds {number}", f"Frames are numbered 0 to {self.shape[0] - 1}.")
        return self._first_byte + number * self._frame_bytes

    def _checked_header(self) -> int:
        """Where the first frame begins."""
        name = self.path.name
        try:
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                start = file.tell()
            size = self.path.stat().st_size
        except (OSError, ValueError) as error:
            raise damaged(self.path.parent, f"{name} cannot be read ({error})") from error
        if (tuple(shape), fortran, dtype) != (self.shape, False, self.dtype):
            problem = f"{name} holds {dtype} {list(shape)}, not {self.dtype} {list(self.shape)}"
            raise damaged(self.path.parent, problem)
        expected = start + self.shape[0] * self._frame_bytes
        if size != expected:
            raise damaged(self.path.parent, f"{name} has {size} bytes, not {expected}")
        return start


def damaged(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        "folder", f"{folder} is damaged: {problem}", "Restore it from a copy, or delete it to start over."
    )


@contextlib.contextmanager
def told_if_full(folder: Path, what: str, num_bytes: int) -> Iterator[None]:
    """Turns a full disk into an error that says what did not fit and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(folder).free
        problem = (
            f"{folder} has no room for {what}, {num_bytes / 1e6:.1f} MB ({error.strerror}; {free / 1e6:.1f} MB free)"
        )
        fix = "Make room and repeat the call: what is done stays done."
        raise CheckpointError("folder", problem, fix) from error


def _take_space(descriptor: int, num_bytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
        os.ftruncate(descriptor, num_bytes)  # this file system cannot reserve; writes still report a full disk


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, place)
        left, place = left[count:], place + count
