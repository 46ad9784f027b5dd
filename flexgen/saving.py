"""One way to write: a file, or a folder of files, is there whole, or as it was before.

A folder of saved files has a manifest, ``flexgen-manifest.json``: the SHA-256 of every file in it that is ours, and of
itself. Other files in the folder are foreign: they are never read, changed or deleted. Saving goes in four steps, and a
process killed at any moment leaves the files of before or those of after, never some of each:

1. The new files are written into ``.flexgen-saving/new``, flushed to the disk, and given checksums.
2. That folder is renamed after the new manifest's own checksum.
3. The new manifest takes the place of the old one by a single rename. This is the switch.
4. The new files move to their places, and those that the new manifest drops are removed.

Readers look for a file in ``.flexgen-saving/<checksum of the manifest>`` first and in its place second, so the switch
changes all files at once. The next save finishes step 4 where a process died in it. Links are never followed in
writing: a link where a file of ours has to go is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from flexgen.errors import CheckpointError, FlexgenError

__all__ = [
    "MANIFEST",
    "flush",
    "read_folder",
    "refuse_links",
    "remove_files",
    "replacing",
    "require_ours",
    "saved_files",
    "settle",
    "sha256",
    "update_folder",
    "writing",
]

MANIFEST = "flexgen-manifest.json"
_STAGE, _NEW = ".flexgen-saving", "new"
_FORMAT = 1
_TRIES = 20  # of a reader, each time another process has replaced the files meanwhile
_DAMAGED = "Copy the folder anew, or save into another one."

Loaded = TypeVar("Loaded")
Earlier = Callable[[Path], Iterable[str]]


# Single files.


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path beside the file, to write to; the file is replaced once that is whole and on the disk.

    The new file has the permissions that the process's umask gives. A link is replaced itself, not what it points to.
    What a killed process left beside the file is removed by the next one that writes it.

    Raises:
        OSError: the disk is full, say; the file is as it was. See `writing` for an error that names the argument.
    """
    path = Path(path)
    start, end = f".{path.stem}.", f".partial{path.suffix}"
    for entry in path.parent.iterdir():
        made_by = re.fullmatch(r"(\d+)-[0-9a-f]{8}", entry.name.removeprefix(start).removesuffix(end))
        is_partial = entry.name.startswith(start) and entry.name.endswith(end) and made_by is not None
        if is_partial and not _is_running(int(made_by[1])):  # type: ignore[index]
            entry.unlink(missing_ok=True)
    partial = path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}{end}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE(partial.stat().st_mode)
    try:
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner may read
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


@contextlib.contextmanager
def writing(argument: str, place: str | Path, error: type[FlexgenError] = CheckpointError) -> Iterator[None]:
    """What the system says against writing there, as an error that names the argument, the place and the fix."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as problem:
        number = problem.errno if isinstance(problem, OSError) else None
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        if found := re.search(r"\(os error (\d+)\)", reason):  # of safetensors, which hands on what the system said
            number, reason = int(found[1]), os.strerror(int(found[1]))
        fix = "Name a place that you may write to, with room in it."
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fix = "Make room there, or name another place."
        raise error(argument, f"{str(place)!r} cannot be written: {' '.join(reason.split())}", fix) from problem


def flush(path: Path) -> None:
    """Has the operating system write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a folder; a file's failure is a lost file
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Of the contents of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Folders.


def update_folder(
    folder: str | Path,
    write: Callable[[Path], object],
    *,
    remove: Iterable[str] = (),
    earlier: Earlier | None = None,
    argument: str = "folder",
) -> None:
    """Adds files to a folder, replaces them and removes others, all at once.

    Args:
        folder: made if it does not exist.
        write: is given an empty folder and writes the new files there, in sub-folders if it likes.
        remove: names of saved files that go, unless `write` writes them anew.
        earlier: given the folder, the names of files that a version of flexgen without manifests wrote there; it must
            prove that by their contents. They count as ours.
        argument: what errors name.

    Raises:
        CheckpointError: the folder cannot be written to, a file that is not ours stands where a new one has to go, or
            the manifest is damaged. The files are then as they were.
    """
    folder = _folder_path(argument, folder)
    is_new = not folder.exists()
    with writing(argument, folder), _removed_if_empty(folder if is_new else None):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            old = _Manifest.of(folder, argument)
            refuse_links(folder, [f"{_STAGE}/{_NEW}", MANIFEST], argument)
            _settle(folder, old)
            new = folder / _STAGE / _NEW
            new.mkdir(parents=True)
            files: dict[str, dict[str, Any]] = {}
            try:
                write(new)
                files = _described(new)
                doomed = set(remove) - set(files)
                there = require_ours(folder, [*files, *doomed], earlier=earlier, argument=argument)
                former = {name: sha256(folder / name) for name in sorted(doomed & there)}
                kept = {name: entry for name, entry in old.files.items() if name not in doomed}
                switched = _Manifest({**kept, **files}, former)
                for name in files:  # what needs room on the disk, before the switch
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                new.rename(folder / _STAGE / switched.name)
                flush(folder / _STAGE)
                with replacing(folder / MANIFEST) as partial:
                    partial.write_text(switched.text, encoding="utf-8")
            finally:
                _settle(folder, _Manifest.of(folder, argument))  # of the old manifest, if this failed
                for name in files:
                    _remove_empty((folder / name).parent, below=folder)


def remove_files(folder: str | Path, names: Iterable[str] | None = None, *, earlier: Earlier | None = None) -> None:
    """Removes saved files from a folder, all at once, and the folder if nothing is left in it.

    Args:
        folder: nothing happens if it does not exist.
        names: which; None: all that are ours.
        earlier: see `update_folder`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    ours = set(saved_files(folder)) | set(() if earlier is None else earlier(folder))
    going = ours if names is None else ours & set(names)
    if going:
        update_folder(folder, lambda _new: None, remove=going, earlier=earlier)
    _remove_empty(folder)


def read_folder(
    folder: str | Path,
    names: Iterable[str],
    load: Callable[[Mapping[str, Path], bool], Loaded],
    *,
    argument: str = "folder",
    fix: str = _DAMAGED,
) -> Loaded:
    """What `load` makes of saved files, once all of the folder's checksums are found right.

    Args:
        folder: that `update_folder` wrote.
        names: of files that have to be there.
        load: is given the path of each file by its name, and whether the folder has a manifest. Without one, which
            is so of folders that an earlier version wrote, nothing was checked but that the files of `names` exist.
        argument: what errors name.
        fix: what an error proposes if a file is missing or damaged.

    Raises:
        CheckpointError: a file is missing, or is not as it was saved; names it.
    """
    folder, names = _folder_path(argument, folder), list(names)
    for attempt in range(1, _TRIES + 1):
        manifest = _Manifest.of(folder, argument, fix)
        is_settled = not (folder / _STAGE / manifest.name).exists()
        try:
            loaded = load(_verified(folder, manifest, names, argument, fix), manifest.is_there)
            if _Manifest.of(folder, argument, fix) == manifest:
                return loaded
        except Exception:
            # Another process may have saved, or moved files to their places: what was read is then read again.
            if attempt == _TRIES or (is_settled and _Manifest.of(folder, argument, fix) == manifest):
                raise
        time.sleep(0.001 * attempt)
    raise CheckpointError(argument, f"{str(folder)!r} is saved to again and again", "Wait until that is done.")


def settle(folder: str | Path, *, argument: str = "folder") -> None:
    """Finishes step 4 where a process died in it, for callers that look for files by their plain names."""
    folder = Path(folder)
    if (folder / _STAGE).is_dir():
        refuse_links(folder, [f"{_STAGE}/{_NEW}", MANIFEST], argument)
        with writing(argument, folder), _locked(folder):
            _settle(folder, _Manifest.of(folder, argument))


def saved_files(folder: str | Path) -> frozenset[str]:
    """Names of the files in a folder that its manifest lists; none where there is no manifest."""
    return frozenset(_Manifest.of(Path(folder), "folder").files)


def require_ours(
    folder: str | Path,
    names: Iterable[str],
    *,
    earlier: Earlier | None = None,
    argument: str = "folder",
    error: type[FlexgenError] = CheckpointError,
) -> frozenset[str]:
    """Refuses to write where a file stands that is not ours; of `names`, those that stand there.

    Raises:
        CheckpointError: names a file that is foreign, a link, or a folder where a file has to go. `error` if given.
    """
    folder, names = Path(folder), list(names)
    try:
        manifest, found = _Manifest.of(folder, argument), set()
    except CheckpointError as damaged:
        raise error(damaged.argument, damaged.problem, damaged.fix) from damaged
    refuse_links(folder, names, argument, error)
    before: set[str] | None = None
    for name in names:
        path = folder / name
        if not path.exists():
            continue
        found.add(name)
        is_ours = name in manifest.files and path.is_file()
        if not is_ours and path.is_file():
            is_ours = name in manifest.former and sha256(path) == manifest.former[name]
            if not is_ours and earlier is not None:
                before = set(earlier(folder)) if before is None else before
                is_ours = name in before
        if not is_ours:
            problem = (
                f"{str(folder)!r} holds {name!r}, which is not of flexgen's making, and one is to be written there"
            )
            raise error(argument, problem, "Move it away, or name another folder. Nothing was changed.")
    return frozenset(found)


def refuse_links(
    folder: str | Path, names: Iterable[str], argument: str = "folder", error: type[FlexgenError] = CheckpointError
) -> None:
    """Refuses links in a folder on the way to where files are to be written, and files where folders have to be."""
    folder = Path(folder)
    for name in names:
        path = folder
        for part in PurePosixPath(name).parts:
            path = path / part
            if path.is_symlink():
                shown = str(path.relative_to(folder))
                problem = f"{str(folder)!r} holds {shown!r}, a link, where flexgen writes its own"
                raise error(argument, problem, "Remove the link, or name another folder. Nothing was changed.")
            if not path.exists():
                break
            if path != folder / name and not path.is_dir():
                problem = f"{str(folder)!r} holds {str(path.relative_to(folder))!r}, a file, where a folder has to be"
                raise error(argument, problem, "Move it away, or name another folder. Nothing was changed.")


@dataclass(frozen=True)
class _Manifest:
    """The contents of a manifest.

    Args:
        files: name -> checksum and size.
        former: name -> checksum of files that the switch to this manifest removes.
        is_there: False of a folder without one.
    """

    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    former: Mapping[str, str] = field(default_factory=dict)
    is_there: bool = True

    @property
    def text(self) -> str:
        """As the file has it; any other text is no manifest, so that no bit of it can change unseen."""
        content = {"flexgen_manifest": _FORMAT, "files": self.files, "former": self.former}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return json.dumps({**content, "sha256": digest}, indent=1, sort_keys=True) + "\n"

    @property
    def name(self) -> str:
        """Of the folder in which its files wait until they are moved to their places."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @classmethod
    def of(cls, folder: Path, argument: str, fix: str = _DAMAGED) -> _Manifest:
        """The manifest of a folder; an empty one where there is none."""
        try:
            text = (folder / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return cls(is_there=False)
        except OSError as error:
            problem = f"{str(folder / MANIFEST)!r} cannot be read: {error.strerror}"
            raise CheckpointError(argument, problem, fix) from error
        try:
            content = json.loads(text)
            found = cls(content["files"], content["former"])
            is_sound = found.text.encode() == text and all(
                re.fullmatch("[0-9a-f]{64}", digest) for digest in _digests(found)
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_sound = False
        if not is_sound or not all(map(_is_name, [*found.files, *found.former])):
            raise CheckpointError(argument, f"{str(folder / MANIFEST)!r} is damaged, or not of flexgen's making", fix)
        return found


def _folder_path(argument: str, folder: str | Path) -> Path:
    from flexgen.checks import folder_path  # imported late: it brings torch, which the command's help can do without

    return folder_path(argument, folder)


def _digests(manifest: _Manifest) -> list[str]:
    return [*(entry["sha256"] for entry in manifest.files.values()), *manifest.former.values()]


def _is_name(name: str) -> bool:
    """Whether a name stays inside its folder: a manifest may come from anywhere."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and str(PurePosixPath(name)) == name and not set(name) & {"\\", "\0", ":"}
    return plain and parts[0] not in ("/", "//", _STAGE, MANIFEST) and ".." not in parts


def _described(new: Path) -> dict[str, dict[str, Any]]:
    """Checksum and size of every file below a folder, on the disk, with the permissions that the umask gives."""
    probe = new.parent / "mode"
    probe.unlink(missing_ok=True)
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    files = {}
    for path in sorted(new.rglob("*")):
        if path.is_dir():
            flush(path)
            continue
        path.chmod(mode)  # safetensors makes files that only their owner may read
        flush(path)
        files[path.relative_to(new).as_posix()] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    flush(new)
    return files


def _verified(folder: Path, manifest: _Manifest, names: list[str], argument: str, fix: str) -> dict[str, Path]:
    """Where each file is, once it is found to be as it was saved."""
    if not manifest.is_there:
        for name in names:
            if not (folder / name).is_file():
                raise CheckpointError(argument, f"{str(folder)!r} holds no {name}", fix)
        return {name: folder / name for name in names}
    for name in names:
        if name not in manifest.files:
            raise CheckpointError(argument, f"{str(folder)!r} holds no {name}", fix)
    paths = {}
    for name, entry in manifest.files.items():
        staged = folder / _STAGE / manifest.name / name
        path = staged if staged.is_file() else folder / name
        if not path.is_file():
            raise CheckpointError(argument, f"{str(folder)!r} holds no {name}", fix)
        try:
            is_same = path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]
        except OSError as error:
            problem = f"{str(folder / name)!r} cannot be read: {error.strerror}"
            raise CheckpointError(argument, problem, fix) from error
        if not is_same:
            problem = f"{str(folder / name)!r} is damaged or of another save: it is not as {MANIFEST} lists it"
            raise CheckpointError(argument, problem, fix)
        paths[name] = path
    return paths


def _settle(folder: Path, manifest: _Manifest) -> None:
    """Step 4: files to their places, former ones away, nothing left of the stage."""
    staged = folder / _STAGE / manifest.name
    if manifest.is_there and staged.is_dir():
        for name in manifest.files:
            if (staged / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (staged / name).replace(folder / name)
        for name, digest in manifest.former.items():  # while the stage is there: what is put there later is not ours
            path = folder / name
            if path.is_file() and not _has_link(folder, name) and sha256(path) == digest:
                path.unlink()
            _remove_empty(path.parent, below=folder)
    if manifest.is_there and not manifest.files:
        (folder / MANIFEST).unlink()
    if (folder / _STAGE).is_dir() and not (folder / _STAGE).is_symlink():
        for entry in (folder / _STAGE).iterdir():
            if entry.name == _NEW or re.fullmatch("[0-9a-f]{16}", entry.name):
                shutil.rmtree(entry, ignore_errors=True)
        (folder / _STAGE / "mode").unlink(missing_ok=True)
        _remove_empty(folder / _STAGE)


def _remove_empty(folder: Path, *, below: Path | None = None) -> None:
    """Removes a folder if nothing is in it; with `below`, and those around it up to there."""
    while folder != below:
        try:
            folder.rmdir()
        except OSError:
            return
        if below is None:
            return
        folder = folder.parent


@contextlib.contextmanager
def _removed_if_empty(folder: Path | None) -> Iterator[None]:
    """A folder that was made for nothing goes."""
    try:
        yield
    finally:
        if folder is not None:
            _remove_empty(folder)


def _has_link(folder: Path, name: str) -> bool:
    path = folder / name
    return any(part.is_symlink() for part in [path, *path.parents] if part.is_relative_to(folder) and part != folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process that holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems know no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
