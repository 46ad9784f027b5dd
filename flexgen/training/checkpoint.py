"""Checkpoints: a folder each, of safetensors and JSON; nothing is unpickled.

Guarantees:

* A checkpoint appears under its name complete or not at all: it is written beside, flushed, and renamed. A process
  killed at any moment leaves the earlier ones as they were.
* Reading verifies a SHA-256 of every file, so what is damaged is refused, never half loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from flexgen.errors import CheckpointError

__all__ = ["Checkpoint", "checkpoints", "latest_checkpoint", "read_checkpoint", "require_same", "write_checkpoint"]

_FORMAT = 1
_STATE = "state.json"
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Args:
        step: updates made.
        tensors: groups of tensors by name, one safetensors file a group.
        state: everything else, JSON-serialisable.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def checkpoints(directory: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [path for path in Path(directory).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def latest_checkpoint(directory: str | Path) -> Path | None:
    return next(reversed(checkpoints(directory)), None)


def write_checkpoint(directory: str | Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Writes ``directory/step-NNNNNNNNN`` atomically and removes all but the last `keep`.

    A checkpoint of that step that is already there is left: a run is a function of its settings, so it is the same.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{checkpoint.step:09d}"
    if not path.exists():
        partial = directory / f"{_PARTIAL}{path.name}"
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir()
        _write_files(partial, checkpoint)
        partial.rename(path)
        _flush(directory)
    for old in checkpoints(directory)[:-keep]:
        # Renamed first, so that a half-deleted checkpoint never carries a checkpoint's name.
        doomed = directory / f"{_PARTIAL}{old.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        old.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads and verifies one checkpoint; tensors come to the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format.
    """
    path = Path(path)
    remedy = f"Delete the folder {path} to go on from the checkpoint before it."
    try:
        document = json.loads((path / _STATE).read_text(encoding="utf-8"))
        saved_format, step, state, files = (document[name] for name in ("format", "step", "state", "files"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("checkpoint", f"{path.name}/{_STATE} cannot be read ({error!r})", remedy) from error
    if saved_format != _FORMAT:
        raise CheckpointError(
            "checkpoint",
            f"{path.name} has format {saved_format}, and this version of flexgen reads {_FORMAT}",
            "Use the version that wrote it.",
        )
    tensors = {}
    for group, expected in files.items():
        file = path / f"{group}.safetensors"
        if not file.is_file():
            raise CheckpointError("checkpoint", f"{path.name}/{file.name} is missing", remedy)
        if _sha256(file) != expected:
            raise CheckpointError("checkpoint", f"{path.name}/{file.name} is damaged: its hash differs", remedy)
        tensors[group] = safetensors.torch.load_file(file)
    return Checkpoint(step, tensors, state)


def require_same(what: str, saved: Mapping[str, Any], now: Mapping[str, Any], *, fix: str) -> None:
    """Refuses to resume if two descriptions differ, naming every difference.

    Raises:
        CheckpointError: the run that wrote the checkpoint was another one.
    """
    now = json.loads(json.dumps(now))  # tuples become lists, as they did in the saved one
    absent = "absent"
    names = [name for name in {**saved, **now} if saved.get(name, absent) != now.get(name, absent)]
    if names:
        shown = [f"{name} was {saved.get(name, absent)} and is now {now.get(name, absent)}" for name in names[:5]]
        more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
        raise CheckpointError("resume", f"the checkpoint's {what} differ: {'; '.join(shown)}{more}", fix)


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    hashes = {}
    for group, tensors in checkpoint.tensors.items():
        file = folder / f"{group}.safetensors"
        # Copies, because safetensors refuses tensors that share memory, as tied weights do.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(copies, file)
        hashes[group] = _sha256(file)
        _flush(file)
    document = {"format": _FORMAT, "step": checkpoint.step, "state": dict(checkpoint.state), "files": hashes}
    file = folder / _STATE
    file.write_text(json.dumps(document, indent=1), encoding="utf-8")
    _flush(file)
    _flush(folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Has the operating system write a file or folder to the disk, so that the rename does not overtake the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
