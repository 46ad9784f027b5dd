"""What a store of frames knows about them: a JSON file beside the frames, always replaced as a whole.

A process killed at any moment leaves the old file or the new one, never a part of either.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexgen.errors import CheckpointError

__all__ = ["Sidecar", "differences", "flush", "ranges"]

_FORMAT = 1
_UNSETTLED = "-" * 8


@dataclass(frozen=True)
class Sidecar:
    """The contents of the file.

    Args:
        shape: of the frames, ``[N, *site]``.
        dtype: numpy's name of their type, such as ``|u1``.
        observed: numbers of the frames that were given, not generated.
        request: what was asked; a store is resumed only by the same request.
        checksums: the CRC-32 of every settled frame; absent where a frame is yet to come or is being overwritten.
        done: numbers of the finished windows.
        notes: whatever the executor has to remember with them.
    """

    shape: tuple[int, ...]
    dtype: str
    observed: tuple[int, ...]
    request: Mapping[str, Any]
    checksums: Mapping[int, int]
    done: frozenset[int] = frozenset()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Reads the file.

        Raises:
            CheckpointError: it is missing, damaged, or of another format.
        """
        fix = f"Delete the folder {path.parent} to start over, or name another one."
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != _FORMAT:
                problem = f"{path.name} has format {document['format']}, and this version of flexgen reads {_FORMAT}"
                raise CheckpointError("folder", problem, "Use the version that wrote it.")
            words = [document["checksums"][i : i + 8] for i in range(0, len(document["checksums"]), 8)]
            if len(words) != document["shape"][0]:
                raise ValueError(f"{len(words)} checksums of {document['shape'][0]} frames")
            return cls(
                shape=tuple(document["shape"]),
                dtype=document["dtype"],
                observed=tuple(document["observed"]),
                request=document["request"],
                checksums={i: int(word, 16) for i, word in enumerate(words) if word != _UNSETTLED},
                done=frozenset(document["done"]),
                notes=document["notes"],
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CheckpointError("folder", f"{path} cannot be read ({error!r})", fix) from error

    def write(self, path: Path) -> None:
        """Replaces the file, durably.

        Raises:
            OSError: the disk is full, for example; the old file is as it was.
        """
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
        }
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("w", encoding="utf-8") as stream:
                json.dump(document, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        flush(path.parent)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "NAME was A and is now B" for each entry in which two JSON objects differ, nested ones by dotted names."""
    told: list[str] = []
    for name in {**saved, **now}:
        before, after = saved.get(name, "absent"), now.get(name, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            told += differences(before, after, f"{prefix}{name}.")
        elif before != after and name == "digest":
            told.append(f"the {prefix.rstrip('.')} frames are others")
        elif before != after and _is_digest(before) and _is_digest(after):
            told.append(f"{prefix}{name} is another")
        elif before != after:
            told.append(f"{prefix}{name} was {_short(before)} and is now {_short(after)}")
    return told


def ranges(numbers: Iterable[int]) -> str:
    """``"0-35, 40"`` for a set of numbers."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


def flush(path: Path) -> None:
    """Has the operating system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a folder; a file's failure is a lost file
            raise
    finally:
        os.close(descriptor)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) is not None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
