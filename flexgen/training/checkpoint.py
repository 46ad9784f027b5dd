"""Checkpoints: a folder each, of safetensors and JSON; nothing is unpickled.

A checkpoint is there complete or not at all, and is checked when it is read; see ``flexgen.saving``. A process killed
at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from flexgen import saving
from flexgen.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "checkpoints",
    "latest_checkpoint",
    "read_checkpoint",
    "remove_checkpoints",
    "require_same",
    "write_checkpoint",
]

_FORMAT = 2  # 1 had the checksums of the tensors in its state, and no manifest
_STATE = "state.json"


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
    """The checkpoints of a folder, oldest first; those that are not whole are none."""
    found = [path for path in _named(directory) if _is_whole(path)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def latest_checkpoint(directory: str | Path) -> Path | None:
    return next(reversed(checkpoints(directory)), None)


def write_checkpoint(directory: str | Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Writes ``directory/step-NNNNNNNNN`` and removes all but the last `keep`.

    A checkpoint of that step that is already there is left: a run is a function of its settings, so it is the same.

    Raises:
        CheckpointError: the folder cannot be written to, or is full; earlier checkpoints are as they were.
    """

    def write(new: Path) -> None:
        for group, tensors in checkpoint.tensors.items():
            # Copies, because safetensors refuses tensors that share memory, as tied weights do.
            copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            safetensors.torch.save_file(copies, new / f"{group}.safetensors")
        groups = list(checkpoint.tensors)
        document = {"format": _FORMAT, "step": checkpoint.step, "state": dict(checkpoint.state), "groups": groups}
        (new / _STATE).write_text(json.dumps(document, indent=1), encoding="utf-8")

    path = Path(directory) / f"step-{checkpoint.step:09d}"
    if not _is_whole(path):
        saving.update_folder(path, write, argument="directory")
    for old in checkpoints(directory)[:-keep]:
        with contextlib.suppress(CheckpointError):  # a damaged one is left: which files in it are ours is unknown
            saving.remove_files(old, earlier=_earlier_files)
    return path


def remove_checkpoints(directory: str | Path) -> None:
    """Removes the checkpoints of a folder and of the networks below it; what else lies there stays.

    Raises:
        CheckpointError: one is damaged, so that which files in it are ours is unknown; nothing was removed.
    """
    folders = [*(path for path in Path(directory).glob("network-*") if _is_folder(path)), Path(directory)]
    steps = [path for folder in folders for path in _named(folder)]
    for path in steps:
        saving.saved_files(path)
    for path in steps:
        saving.remove_files(path, earlier=_earlier_files)
    for folder in folders:
        with contextlib.suppress(OSError):  # something else is in it, or it is not there
            folder.rmdir()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads and verifies one checkpoint; tensors come to the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format.
    """
    path = Path(path)
    remedy = f"Delete the folder {path} to go on from the checkpoint before it."

    def load(files: Mapping[str, Path], are_checked: bool) -> Checkpoint:
        try:
            document = json.loads(files[_STATE].read_text(encoding="utf-8"))
            saved_format, step, state = (document[name] for name in ("format", "step", "state"))
            groups = document["files" if saved_format == 1 else "groups"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("checkpoint", f"{path.name}/{_STATE} cannot be read ({error!r})", remedy) from error
        if saved_format not in (1, _FORMAT):
            problem = f"{path.name} has format {saved_format}, and this version of flexgen reads {_FORMAT}"
            raise CheckpointError("checkpoint", problem, "Use the version that wrote it.")
        if saved_format != 1 and not are_checked:
            raise CheckpointError("checkpoint", f"{path.name} lacks its {saving.MANIFEST}", remedy)
        tensors = {}
        for group in groups:
            file = files.get(f"{group}.safetensors", path / f"{group}.safetensors")
            if not file.is_file():
                raise CheckpointError("checkpoint", f"{path.name}/{file.name} is missing", remedy)
            if saved_format == 1 and saving.sha256(file) != groups[group]:
                raise CheckpointError("checkpoint", f"{path.name}/{file.name} is damaged: its hash differs", remedy)
            tensors[group] = safetensors.torch.load_file(file)
        return Checkpoint(step, tensors, state)

    return saving.read_folder(path, [_STATE], load, argument="checkpoint", fix=remedy)


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


def _named(directory: str | Path) -> list[Path]:
    """Folders with the name of a checkpoint."""
    named = Path(directory).glob("step-*")
    return [path for path in named if re.fullmatch(r"step-\d+", path.name) and _is_folder(path)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_whole(path: Path) -> bool:
    if not (path / saving.MANIFEST).is_file():
        return (path / _STATE).is_file()  # of an earlier version; this one puts no file there before the manifest
    try:
        return bool(saving.saved_files(path))
    except CheckpointError:
        return True  # and damaged, which its reader is to hear


def _earlier_files(path: Path) -> list[str]:
    """The files of a checkpoint written before there were manifests, those that its state has the checksums of."""
    try:
        document = json.loads((path / _STATE).read_text(encoding="utf-8"))
        sums = {f"{group}.safetensors": digest for group, digest in document["files"].items()}
        if document["format"] != 1:
            return []
        return [_STATE, *(name for name, digest in sums.items() if saving.sha256(path / name) == digest)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
