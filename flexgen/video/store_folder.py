"""The folder of a store of frames: how it begins, which request it serves, and who may write in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexgen.checks import whole_number
from flexgen.errors import CheckpointError, FlexgenError
from flexgen.video.frame_file import FrameFile, told_if_full
from flexgen.video.sidecar import Sidecar, differences, flush, ranges

__all__ = ["FRAMES", "PARTIAL", "SIDECAR", "blank_sidecar", "create", "locked", "require_same"]

Frames = npt.NDArray[Any]

FRAMES, SIDECAR, PARTIAL = "frames.npy", "frames.json", "frames.npy.partial"
_OURS = frozenset({"observed", "run", "shape", "dtype"})  # entries of a request that the store writes itself


def blank_sidecar(
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    observed: Sequence[int],
    observed_frames: Frames | None,
    request: Mapping[str, Any] | None,
) -> Sidecar:
    """The sidecar of a store in which nothing is generated yet, and whose request includes the given frames."""
    sizes = tuple(whole_number("shape", size, 1) for size in shape)
    kind = np.dtype(dtype)
    if kind.hasobject or kind.names is not None or not sizes:
        raise FlexgenError("dtype" if sizes else "shape", f"is {kind if sizes else '()'}", "Store arrays of numbers.")
    numbers = tuple(whole_number("observed", index, 0) for index in observed)
    given = np.empty((0, *sizes[1:]), kind) if observed_frames is None else observed_frames
    if len(set(numbers)) < len(numbers) or (numbers and max(numbers) >= sizes[0]):
        problem = f"holds {ranges(numbers)}, {len(numbers)} numbers"
        raise FlexgenError("observed", problem, f"Name each given frame once, of 0 to {sizes[0] - 1}.")
    if given.shape != (len(numbers), *sizes[1:]) or given.dtype != kind:
        raise FlexgenError(
            "observed_frames",
            f"is {given.dtype} {list(given.shape)}",
            f"Pass one frame for each number in observed: {kind} {[len(numbers), *sizes[1:]]}.",
        )
    digest, checksums = hashlib.blake2b(digest_size=16), {}
    for number, frame in zip(numbers, given, strict=True):
        data = frame.tobytes()
        checksums[number] = zlib.crc32(data)
        digest.update(data)
    try:
        asked = json.loads(json.dumps(dict(request or {})))
    except (TypeError, ValueError) as error:
        raise FlexgenError("request", f"is no JSON ({error})", "Use strings, numbers, lists and dicts.") from error
    for name in _OURS & asked.keys():
        raise FlexgenError("request", f"has an entry {name!r}, which the store writes itself", "Name it otherwise.")
    asked["observed"] = {"frames": ranges(numbers), "digest": digest.hexdigest()}
    return Sidecar(sizes, kind.str, numbers, asked, checksums)


def create(folder: Path, sidecar: Sidecar, observed_frames: Frames | None) -> None:
    """Makes the frames' file under another name, then the sidecar, which says that the file is whole."""
    known = {PARTIAL, ".opening", ".writing", f".{SIDECAR}.partial"}
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in known)
    if strangers:
        raise CheckpointError(
            "folder",
            f"{folder} holds {strangers[0]!r} and no {SIDECAR}: it is no store of frames",
            "Name a new or an empty folder.",
        )
    given = zip(sidecar.observed, () if observed_frames is None else observed_frames, strict=True)
    FrameFile.create(folder / PARTIAL, sidecar.shape, np.dtype(sidecar.dtype), given)
    with told_if_full(folder, SIDECAR, 8 * sidecar.shape[0]):
        sidecar.write(folder / SIDECAR)
    (folder / PARTIAL).replace(folder / FRAMES)
    flush(folder)


def require_same(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    told = differences(saved, now)
    if told:
        more = f"; and {len(told) - 5} more" if len(told) > 5 else ""
        raise CheckpointError(
            "folder",
            f"{folder} was made for another request: {'; '.join(told[:5])}{more}",
            "Repeat the request it was made for, or name another folder.",
        )


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                "store", f"{path.parent} is being written by another process", "Wait for it to end, or stop it."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # no locks on this file system
                raise
        yield
