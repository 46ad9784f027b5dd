"""One video on the disk while it is being made: frames that survive a kill, in bounded memory.

A folder of two files: ``frames.npy``, which anything can map that reads numpy's format, and the sidecar
``frames.json``, what is known of the frames, which is always replaced as a whole. Guarantees:

* A window is marked done only when its frames are on the disk, and the marks change all at once. A process killed at
  any moment leaves every window either done, with its frames, or not done.
* Every settled frame has a checksum, and so has the sidecar. `verify` finds what has changed since it was written.
* All the space is taken when the store is made, so that a disk that fills up stops a job before its first frame.
* A store goes on only with the request that it was made for.

Frames are read and written by ``pread`` and ``pwrite``, not through a memory map: a full disk is then an error to
report rather than a bus error, and no page of the file counts as this process's memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexgen import saving
from flexgen.checks import folder_path, whole_number
from flexgen.errors import CheckpointError, FlexgenError

__all__ = ["FrameStore", "Written"]

Frames = npt.NDArray[Any]

FRAMES, SIDECAR = "frames.npy", "frames.json"
_OPENING, _WRITING = ".opening", ".writing"  # locks
_WAITING = re.compile(r"frames\.npy\.(\w+\.)?partial")
_PARTIAL = re.compile(rf"{_WAITING.pattern}|\.frames\.([\w-]+\.)?(partial\.json|json\.partial)")
_OURS = frozenset({"observed", "run", "shape", "dtype"})  # entries of a request that the store writes itself
_FORMAT = 2  # 1 had no checksum of the sidecar
_UNSETTLED = "-" * 8
_READ_AT_ONCE = 64  # frames
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


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

    def __init__(self, folder: Path, sidecar: _Sidecar) -> None:
        self.folder = folder
        self._sidecar = sidecar
        self._first_byte = _checked_header(self.path, sidecar)

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
        anew: bool = False,
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
            anew: replace a store that is there, of whatever request; it is as it was until the new one is whole.

        Raises:
            CheckpointError: the folder holds something else, a damaged store or one of another request, or cannot be
                written to; or the disk has not enough space.
        """
        folder = folder_path("folder", folder)
        blank = _blank_sidecar(shape, dtype, observed, observed_frames, request)
        saving.refuse_links(folder, [FRAMES, SIDECAR, _OPENING, _WRITING])
        with saving.writing("folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / SIDECAR).exists():
                _require_ours(folder)  # before the lock leaves a file there
            with _locked(folder / _OPENING, wait=True):  # several processes may open the store of one job
                if anew or not (folder / SIDECAR).exists():
                    _create(folder, blank, observed_frames)
                sidecar = _Sidecar.read(folder / SIDECAR)
                _settle(folder, sidecar)
        now = {"shape": list(blank.shape), "dtype": blank.dtype, **blank.request}
        saved = {"shape": list(sidecar.shape), "dtype": sidecar.dtype, **sidecar.request}
        _require_same(folder, {name: value for name, value in saved.items() if name != "run"}, now)
        return cls(folder, sidecar)

    @classmethod
    def existing(cls, folder: str | Path) -> FrameStore:
        """The store in a folder, whatever its request; to look at, or to make a video file of."""
        folder = folder_path("folder", folder)
        if not (folder / SIDECAR).exists():
            raise CheckpointError("folder", f"{folder} holds no {SIDECAR}", "Name the folder of a store of frames.")
        sidecar = _Sidecar.read(folder / SIDECAR)
        with saving.writing("folder", folder):
            _settle(folder, sidecar)
        return cls(folder, sidecar)

    @staticmethod
    def remains(folder: str | Path) -> frozenset[str]:
        """Names of the files in a folder that are of a store, if there is one; a damaged one counts."""
        folder = Path(folder)
        if not _is_ours(folder / SIDECAR):
            return frozenset()
        return frozenset(path.name for path in folder.iterdir() if path.is_file() and _is_name_of_ours(path.name))

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
        return np.dtype(self._sidecar.dtype)

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
        numbers = list(indices)
        out = np.empty((len(numbers), *self.site_shape), self.dtype)
        rows = out.reshape(len(numbers), math.prod(self.site_shape)).view(np.uint8)  # [.., bytes], the same memory
        with self.path.open("rb", buffering=0) as file:
            for number, row in zip(numbers, rows, strict=True):
                file.seek(self._place(number))
                if file.readinto(row.data) != row.size:
                    raise _damaged(self.folder, f"{FRAMES} ends within frame {number}")
        return out

    def write(self, window: int, indices: Sequence[int], frames: Frames) -> Written:
        """Puts a window's frames on the disk; they count once `mark_done` is called.

        Args:
            window: its number.
            indices: numbers of its frames.
            frames: ``[len(indices), *site]``, of the store's type.

        Raises:
            CheckpointError: the disk is full, or a link has taken the file's place; windows already done are untouched.
        """
        if frames.shape != (len(indices), *self.site_shape) or frames.dtype != self.dtype:
            raise FlexgenError(
                "frames",
                f"of window {window} are {frames.dtype} {list(frames.shape)}",
                f"This store takes {self.dtype} {[len(indices), *self.site_shape]}.",
            )
        places = [self._place(index) for index in indices]
        with _named_if_full(self.folder, f"window {window}", frames.nbytes):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                for place, frame in zip(places, frames, strict=True):
                    _write_at(descriptor, frame.tobytes(), place)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
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
            _require_same(self.folder, self.request["run"], run)
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
            raise _damaged(self.folder, f"frames {_ranges(changed)} are not as they were written")

    def refresh(self) -> None:
        """Reads the sidecar again, which another process may have replaced."""
        self._sidecar = _Sidecar.read(self.folder / SIDECAR)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within, no other job can write here; the lock goes with the process that holds it."""
        with _locked(self.folder / _WRITING, wait=False):
            yield

    def __repr__(self) -> str:
        return f"FrameStore({self.folder}: {len(self.settled)} of {self.shape[0]} frames, {len(self.done)} windows)"

    def _replace(self, *, notes: Mapping[str, Any] | None, **changes: Any) -> None:
        changed = replace(self._sidecar, notes=self.notes if notes is None else notes, **changes)
        if changed != self._sidecar:
            self._save(changed)

    def _save(self, sidecar: _Sidecar) -> None:
        # The disk first: what this process believes is never ahead of what a resumed one would find.
        sidecar.write(self.folder)
        self._sidecar = sidecar

    def _place(self, index: int) -> int:
        """Of a frame's first byte in the file."""
        number = whole_number("indices", index, 0)
        if number >= self.shape[0]:
            raise FlexgenError("indices", f"holds {number}", f"Frames are numbered 0 to {self.shape[0] - 1}.")
        return self._first_byte + number * math.prod(self.site_shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Sidecar:
    """The contents of the sidecar.

    Args:
        shape: of the frames, ``[N, *site]``.
        dtype: numpy's name of their type, such as ``|u1``.
        observed: numbers of the frames that were given, not generated.
        request: what is to be made; a store is resumed only by the same request.
        checksums: the CRC-32 of every settled frame; absent where a frame is yet to come or is being overwritten.
        done: numbers of the finished windows.
        notes: whatever the executor has to remember with them.
        waiting: name of the frames' file where a process died before it took its place.
    """

    shape: tuple[int, ...]
    dtype: str
    observed: tuple[int, ...]
    request: Mapping[str, Any]
    checksums: Mapping[int, int]
    done: frozenset[int] = frozenset()
    notes: Mapping[str, Any] = field(default_factory=dict)
    waiting: str = f"{FRAMES}.partial"

    @classmethod
    def read(cls, path: Path) -> _Sidecar:
        """Reads the file.

        Raises:
            CheckpointError: it is missing, damaged, or of another format.
        """
        fix = f"Delete the folder {path.parent} to start over, or name another one."
        try:
            text = path.read_text(encoding="utf-8")
            document = json.loads(text)
            if (version := document["format"]) not in (1, _FORMAT):
                problem = f"{path.name} has format {version}, and this version of flexgen reads {_FORMAT}"
                raise CheckpointError("folder", problem, "Use the version that wrote it.")
            if version != 1 and _with_digest({name: document[name] for name in document if name != "sha256"}) != text:
                raise ValueError("its checksum differs")
            words = [document["checksums"][i : i + 8] for i in range(0, len(document["checksums"]), 8)]
            if len(words) != document["shape"][0]:
                raise ValueError(f"{len(words)} checksums of {document['shape'][0]} frames")
            waiting = document.get("waiting", f"{FRAMES}.partial")
            if not _WAITING.fullmatch(waiting):  # a sidecar may come from anywhere
                raise ValueError(f"it names {waiting!r}")
            return cls(
                shape=tuple(document["shape"]),
                dtype=document["dtype"],
                observed=tuple(document["observed"]),
                request=document["request"],
                checksums={i: int(word, 16) for i, word in enumerate(words) if word != _UNSETTLED},
                done=frozenset(document["done"]),
                notes=document["notes"],
                waiting=waiting,
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise CheckpointError("folder", f"{path} cannot be read ({error!r})", fix) from error

    def write(self, folder: Path) -> None:
        """Replaces the file, durably; on a full disk the old one is as it was."""
        checksums = (f"{self.checksums[i]:08x}" if i in self.checksums else _UNSETTLED for i in range(self.shape[0]))
        document = {
            "format": _FORMAT,
            "request": dict(self.request),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "observed": list(self.observed),
            "done": sorted(self.done),
            "notes": dict(self.notes),
            "checksums": "".join(checksums),
            "waiting": self.waiting,
        }
        with _named_if_full(folder, SIDECAR, 8 * self.shape[0]), saving.replacing(folder / SIDECAR) as partial:
            partial.write_text(_with_digest(document), encoding="utf-8")


def _with_digest(document: Mapping[str, Any]) -> str:
    """As the sidecar has it; any other text is damaged, so that no bit of it can change unseen."""
    digest = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    return json.dumps({**document, "sha256": digest})


# How a store begins.


def _blank_sidecar(
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    observed: Sequence[int],
    observed_frames: Frames | None,
    request: Mapping[str, Any] | None,
) -> _Sidecar:
    """The sidecar of a store in which nothing is generated yet, and whose request includes the given frames."""
    sizes = tuple(whole_number("shape", size, 1) for size in shape)
    kind = np.dtype(dtype)
    if kind.hasobject or kind.names is not None or not sizes:
        raise FlexgenError("dtype" if sizes else "shape", f"is {kind if sizes else '()'}", "Store arrays of numbers.")
    numbers = tuple(whole_number("observed", index, 0) for index in observed)
    given = np.empty((0, *sizes[1:]), kind) if observed_frames is None else observed_frames
    if len(set(numbers)) < len(numbers) or (numbers and max(numbers) >= sizes[0]):
        problem = f"holds {_ranges(numbers)}, {len(numbers)} numbers"
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
        content = json.loads(json.dumps(dict(request or {})))
    except (TypeError, ValueError) as error:
        raise FlexgenError("request", f"is no JSON ({error})", "Use strings, numbers, lists and dicts.") from error
    for name in _OURS & content.keys():
        raise FlexgenError("request", f"has an entry {name!r}, which the store writes itself", "Name it otherwise.")
    content["observed"] = {"frames": _ranges(numbers), "digest": digest.hexdigest()}
    return _Sidecar(sizes, kind.str, numbers, content, checksums)


def _require_ours(folder: Path) -> bool:
    """Nothing foreign is in a folder where a store is to begin; whether there is an old store."""
    is_store = _is_ours(folder / SIDECAR)
    for entry in sorted(folder.iterdir()):
        if entry.name in (_OPENING, _WRITING) or _PARTIAL.fullmatch(entry.name):
            continue
        if not (is_store and entry.name in (FRAMES, SIDECAR)):
            why = ", which is not of the store" if is_store else f" and no {SIDECAR}: it is no store of frames"
            problem = f"{folder} holds {entry.name!r}{why}"
            raise CheckpointError("folder", problem, "Name a new or an empty folder.")
    return is_store


def _create(folder: Path, blank: _Sidecar, observed_frames: Frames | None) -> None:
    """Makes the frames' file under another name, then the sidecar, which says that it is whole: that is the switch."""
    is_store = _require_ours(folder)
    for entry in folder.iterdir():  # what killed processes left, except what the store that is there waits for
        if _PARTIAL.fullmatch(entry.name) and not is_store:
            entry.unlink()
    blank = replace(blank, waiting=f"{FRAMES}.{secrets.token_hex(4)}.partial")
    given = zip(blank.observed, () if observed_frames is None else observed_frames, strict=True)
    _make_file(folder / blank.waiting, blank, given)
    try:
        blank.write(folder)
    except CheckpointError:
        (folder / blank.waiting).unlink(missing_ok=True)
        raise


def _settle(folder: Path, sidecar: _Sidecar) -> None:
    """Puts the frames' file in its place, where the process that made it has not come to that."""
    if (folder / sidecar.waiting).exists():
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            (folder / sidecar.waiting).replace(folder / FRAMES)
        saving.flush(folder)
        for entry in folder.iterdir():
            if _WAITING.fullmatch(entry.name):
                entry.unlink(missing_ok=True)


def _make_file(path: Path, sidecar: _Sidecar, given: Iterable[tuple[int, Frames]]) -> None:
    """A file with all its space taken, zeros but for the `given` numbers and frames."""
    shape, dtype = sidecar.shape, np.dtype(sidecar.dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    try:
        with _named_if_full(path.parent, f"the video's {shape[0]} frames", num_bytes), path.open("xb") as file:
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


def _checked_header(path: Path, sidecar: _Sidecar) -> int:
    """Where the first frame begins, in a file that is what the sidecar says."""
    expected_type = np.dtype(sidecar.dtype)
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise _damaged(path.parent, f"{path.name} cannot be read ({error})") from error
    if (tuple(shape), fortran, dtype) != (sidecar.shape, False, expected_type):
        problem = f"{path.name} holds {dtype} {list(shape)}, not {expected_type} {list(sidecar.shape)}"
        raise _damaged(path.parent, problem)
    expected = start + math.prod(sidecar.shape) * expected_type.itemsize
    if size != expected:
        raise _damaged(path.parent, f"{path.name} has {size} bytes, not {expected}")
    return start


def _is_ours(sidecar: Path) -> bool:
    """Whether it begins as ours do, of which damage may have spared no more."""
    try:
        with sidecar.open("rb") as file:
            return re.match(rb'\{"format": \d+, "request": \{', file.read(40)) is not None
    except OSError:
        return False


def _is_name_of_ours(name: str) -> bool:
    return name in (FRAMES, SIDECAR, _OPENING, _WRITING) or _PARTIAL.fullmatch(name) is not None


# Which request a store serves, and who may write in it.


def _require_same(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = _differences(saved, now)
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise CheckpointError(
            "folder",
            f"{folder} was made for another request: {'; '.join(differing[:5])}{more}",
            "Repeat the request it was made for, or name another folder.",
        )


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "NAME was A and is now B" for each entry in which two JSON objects differ, nested ones by dotted names."""
    differing: list[str] = []
    for name in {**saved, **now}:
        before, after = saved.get(name, "absent"), now.get(name, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            differing += _differences(before, after, f"{prefix}{name}.")
        elif before != after and name == "digest":
            differing.append(f"the {prefix.rstrip('.')} frames are others")
        elif before != after and _is_digest(before) and _is_digest(after):
            differing.append(f"{prefix}{name} is another")
        elif before != after:
            differing.append(f"{prefix}{name} was {_short(before)} and is now {_short(after)}")
    return differing


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) is not None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _ranges(numbers: Iterable[int]) -> str:
    """``"0-35, 40"`` for a set of numbers."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        problem = f"{path.parent} is being written by another process"
        raise CheckpointError("store", problem, "Wait for it to end, or stop it.") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # no locks on this file system
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        os.close(descriptor)


# The disk.


def _damaged(folder: Path, problem: str) -> CheckpointError:
    fix = "Restore it from a copy, or delete it to start over."
    return CheckpointError("folder", f"{folder} is damaged: {problem}", fix)


@contextlib.contextmanager
def _named_if_full(folder: Path, what: str, num_bytes: int) -> Iterator[None]:
    """Turns a full disk into an error that says what did not fit and what to do."""
    with saving.writing("folder", folder):
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            room = f"{num_bytes / 1e6:.1f} MB ({error.strerror}; {shutil.disk_usage(folder).free / 1e6:.1f} MB free)"
            fix = "Make room and repeat the call: what is done stays done."
            raise CheckpointError("folder", f"{folder} has no room for {what}, {room}", fix) from error


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
