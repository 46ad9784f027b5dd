"""The store of frames: what is marked done is on the disk; the rest is refused with a word on the fix."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flexgen.errors import CheckpointError, FlexgenError
from flexgen.video import storage
from flexgen.video.storage import FrameStore

GIVEN = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def open_store(folder: Path, **changes: object) -> FrameStore:
    arguments = {"shape": (9, 4, 4, 3), "observed": [0, 8], "observed_frames": GIVEN, "request": {"model": "a"}}
    return FrameStore.open(folder, **{**arguments, **changes})


def some(count: int, value: int = 7) -> np.ndarray:
    return np.full((count, 4, 4, 3), value, np.uint8)


def test_frames_and_marks_outlive_the_object(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new" / "folder")
    assert repr(store).endswith("2 of 9 frames, 0 windows)")
    store.mark_done([store.write(3, [2, 5], np.stack([some(1)[0], some(1, 9)[0]]))], notes={"draws": {"3": 1}})
    store.verify()

    again = open_store(store.folder)
    assert again.done == {3}
    assert again.settled == {0, 2, 5, 8}
    assert again.notes == {"draws": {"3": 1}}
    assert np.array_equal(again.read([8, 2, 0]), np.stack([GIVEN[1], some(1)[0], GIVEN[0]]))
    assert np.array_equal(np.load(again.path)[5], some(1, 9)[0])  # a plain .npy file
    assert not again.frames().flags.writeable
    assert FrameStore.existing(store.folder).done == {3}


@pytest.mark.parametrize(("shape", "dtype"), [((6,), "float64"), ((6, 3), "int64"), ((6, 2, 2), "float32")])
def test_any_shape_and_type(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    store = FrameStore.open(tmp_path / "s", shape=shape, dtype=dtype)
    frames = np.arange(2 * int(np.prod(shape[1:]))).reshape(2, *shape[1:]).astype(dtype)
    store.mark_done([store.write(0, [4, 1], frames)])
    store.verify()
    assert np.array_equal(store.read([4, 1]), frames)
    assert store.read([]).shape == (0, *shape[1:])


def test_written_but_not_marked_is_not_done(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.write(0, [1], some(1))
    assert open_store(tmp_path / "s").done == frozenset()
    open_store(tmp_path / "s").verify()


def test_reopened_frames_may_be_half_written(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.mark_done([store.write(0, [1, 2], some(2))])
    store.reopen(frames=[2])
    store.write(1, [2], some(1, 8))  # killed before the mark
    again = open_store(tmp_path / "s")
    again.verify()
    assert again.done == {0}
    assert again.settled == {0, 1, 8}


def test_frames_reach_the_disk_before_their_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, events = open_store(tmp_path / "s"), []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(Path(f"/proc/self/fd/{fd}").readlink()), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (events.append(Path(f"-> {b.name}")), replace(a, b))[1])
    store.mark_done([store.write(0, [1], some(1))])
    names = [event.name for event in events]
    assert [re.sub(r"\d+-\w{8}", "PID", name) for name in names] == [
        "frames.npy",
        ".frames.PID.partial.json",
        "-> frames.json",
        "s",
    ]


@pytest.mark.parametrize("moment", ["while the file is made", "before the sidecar", "before the rename"])
def test_killed_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt  # nothing of ours catches it

    replace = Path.replace
    with monkeypatch.context() as patched:
        if moment == "while the file is made":
            patched.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
            patched.setattr(storage, "_write_at", die)
        elif moment == "before the sidecar":
            patched.setattr(storage._Sidecar, "write", die)
        else:
            patched.setattr(Path, "replace", lambda a, b: die() if b.name == "frames.npy" else replace(a, b))
        with pytest.raises(KeyboardInterrupt):
            open_store(tmp_path / "s")
    store = open_store(tmp_path / "s")
    store.verify()
    assert np.array_equal(store.read([0, 8]), GIVEN)
    assert sorted(p.name for p in store.folder.iterdir() if p.name[0] != ".") == ["frames.json", "frames.npy"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"request": {"model": "b"}}, "model was a and is now b"),
        ({"request": {}}, "model was a and is now absent"),
        ({"shape": (10, 4, 4, 3)}, r"shape was \[9, 4, 4, 3\] and is now \[10, 4, 4, 3\]"),
        ({"observed_frames": GIVEN + 1}, "the observed frames are others"),
        ({"observed": [0, 7]}, "observed.frames was 0, 8 and is now 0, 7"),
        ({"dtype": "int8", "observed_frames": GIVEN.astype("int8")}, r"dtype was \|u1 and is now \|i1"),
    ],
)
def test_another_request_is_refused(tmp_path: Path, change: dict, told: str) -> None:
    open_store(tmp_path / "s")
    with pytest.raises(CheckpointError, match=rf"was made for another request: {told}.*name another folder"):
        open_store(tmp_path / "s", **change)
    open_store(tmp_path / "s")


def test_another_run_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "s").bind({"plan": "x", "seed": 1})
    store = open_store(tmp_path / "s")
    store.bind({"plan": "x", "seed": 1})
    with pytest.raises(CheckpointError, match=r"another request: seed was 1 and is now 2"):
        store.bind({"plan": "x", "seed": 2})


def test_changed_frames_are_found(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.mark_done([store.write(0, [1, 2, 3], some(3))])
    frames = np.load(store.path, mmap_mode="r+")
    frames[2:4, 0, 0, 0] += 1
    frames[6] += 1  # not settled: anything may stand there
    frames.flush()
    with pytest.raises(CheckpointError, match=r"damaged: frames 2-3 are not as they were written. Restore it from"):
        open_store(tmp_path / "s").verify()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"frames.npy has \d+ bytes, not \d+\. .*delete it to start over"):
        open_store(store.folder)
    store.path.write_bytes(b"no numbers" + whole[10:])
    with pytest.raises(CheckpointError, match=r"frames.npy cannot be read"):
        open_store(store.folder)
    np.save(store.path, np.zeros((9, 4, 4, 3), np.int8))
    with pytest.raises(CheckpointError, match=r"holds int8 \[9, 4, 4, 3\], not uint8"):
        open_store(store.folder)
    store.path.unlink()
    with pytest.raises(CheckpointError, match=r"frames.npy cannot be read .*No such file"):
        open_store(store.folder)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format": 1, "checksums": 3, "shape": [2]}'])
def test_a_damaged_sidecar_is_named(tmp_path: Path, damage: str) -> None:
    store = open_store(tmp_path / "s")
    (store.folder / "frames.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"frames.json cannot be read .*Delete the folder .*s to start over"):
        open_store(store.folder)


def test_a_sidecar_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    (tmp_path / "precious.partial").write_text("precious")
    for name in ("../precious.partial", "frames.npy.x/../../precious.partial", "frames.json", ""):
        replace(store._sidecar, waiting=name).write(store.folder)
        with pytest.raises(CheckpointError, match=r"frames\.json cannot be read"):
            open_store(tmp_path / "s")
    assert (tmp_path / "precious.partial").exists()


def test_a_sidecar_of_another_format(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    document = json.loads((store.folder / "frames.json").read_text())
    (store.folder / "frames.json").write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(CheckpointError, match=r"format 99, and this version of flexgen reads 2. Use the version that"):
        open_store(store.folder)


def test_foreign_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "frames.npy").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match=r"holds 'frames.npy' and no frames.json.*Name a new or an empty folder"):
        open_store(tmp_path)
    assert (tmp_path / "frames.npy").read_bytes() == b"precious"
    with pytest.raises(CheckpointError, match=r"is a file. Name a folder"):
        open_store(tmp_path / "frames.npy")
    with pytest.raises(CheckpointError, match=r"holds no frames.json"):
        FrameStore.existing(tmp_path)


def test_a_disk_too_small_for_the_video_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match=r"no room for the video's 9 frames, 0.0 MB \(No space left.*Make room"):
        open_store(tmp_path / "s")
    monkeypatch.undo()
    open_store(tmp_path / "s").verify()


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "s")
    store.mark_done([store.write(0, [1], some(1))])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(CheckpointError, match=r"no room for window 1"):
            store.write(1, [2], some(1))
    written = store.write(1, [2], some(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"no room for frames.json"):
            store.mark_done([written])
    assert store.done == open_store(store.folder).done == {0}
    store.mark_done([written])
    open_store(store.folder).verify()
    assert open_store(store.folder).done == {0, 1}


def test_every_flipped_bit_of_the_sidecar_is_found(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.mark_done([store.write(3, [2, 5], some(2))], notes={"draws": {"3": 1}})
    sidecar = store.folder / "frames.json"
    whole, dice = sidecar.read_bytes(), np.random.default_rng(0)
    for place, bit in zip(dice.integers(len(whole), size=200), dice.integers(8, size=200), strict=True):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        sidecar.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"frames\.json (cannot be read|has format)"):
            FrameStore.existing(store.folder)
    sidecar.write_bytes(whole)
    FrameStore.existing(store.folder).verify()


@pytest.mark.parametrize("calls", range(12))
def test_a_store_is_replaced_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Stopped anywhere, the folder holds the old store or the new one."""
    old = open_store(tmp_path / "s")
    old.mark_done([old.write(0, [1], some(1))])
    left = calls

    def counted(call: Callable) -> Callable:
        def wrapper(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt  # also of what would clean up
            return call(*arguments, **options)

        return wrapper

    with monkeypatch.context() as patched:
        for place, name in ((os, "fsync"), (os, "pwrite"), (Path, "replace"), (Path, "unlink"), (Path, "write_text")):
            patched.setattr(place, name, counted(getattr(place, name)))
        with contextlib.suppress(KeyboardInterrupt):
            open_store(tmp_path / "s", shape=(12, 4, 4, 3), anew=True)
    found = FrameStore.existing(tmp_path / "s")
    found.verify()
    assert (found.shape[0], found.done) in ((9, {0}), (12, set()))
    assert np.array_equal(found.read([0, 8]), GIVEN)
    again = open_store(tmp_path / "s", shape=(12, 4, 4, 3), anew=True)
    assert again.shape[0] == 12
    assert {path.name for path in (tmp_path / "s").iterdir()} - {"frames.npy", "frames.json", ".opening"} == {
        path.name
        for path in (tmp_path / "s").glob(".frames.*.partial.json")  # of this process, which lives on
    }


def test_a_real_limit_on_file_size_is_told(tmp_path: Path) -> None:
    code = (
        "import sys; from flexgen.video.storage import FrameStore\nFrameStore.open(sys.argv[1], shape=(100, 64, 64, 3))"
    )
    limit = (100_000, 100_000)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "no room for the video's 100 frames, 1.2 MB (File too large" in done.stderr
    assert [path.name for path in (tmp_path / "s").iterdir()] == [".opening"]


def test_file_systems_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    store = open_store(tmp_path / "s")
    store.verify()
    assert np.array_equal(store.read([0, 8]), GIVEN)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with open_store(tmp_path / "s").exclusive():
        other = open_store(tmp_path / "s")  # looking is allowed
        with pytest.raises(CheckpointError, match=r"is being written by another process. Wait"), other.exclusive():
            pass
    with other.exclusive():
        pass


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape": ()}, r"shape: is \(\). Store"),
        ({"shape": (0, 4)}, "shape: is 0. Pass at least 1"),
        ({"shape": (9, 4.0)}, "shape: is 4.0. Pass a whole number"),
        ({"dtype": object}, "dtype: is object. Store arrays of numbers"),
        ({"observed": [0, 9]}, "observed: holds 0, 9, 2 numbers. Name each given frame once, of 0 to 8"),
        ({"observed": [0, 0]}, "observed: holds 0, 2 numbers"),
        (
            {"observed": [0]},
            r"observed_frames: is uint8 \[2, 4, 4, 3\]. Pass one frame for each .* uint8 \[1, 4, 4, 3\]",
        ),
        ({"observed_frames": GIVEN / 255}, r"observed_frames: is float64"),
        ({"observed_frames": None}, r"observed_frames: is uint8 \[0, 4, 4, 3\]"),
        ({"request": {"model": {1, 2}}}, "request: is no JSON .*Use strings, numbers"),
        ({"request": {"observed": 1}}, "request: has an entry 'observed', which the store writes itself"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, change: dict, told: str) -> None:
    with pytest.raises(FlexgenError, match=told):
        open_store(tmp_path / "s", **change)


def test_wrong_frames_are_named(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    with pytest.raises(
        FlexgenError, match=r"of window 2 are uint8 \[1, 4, 4, 3\]. This store takes uint8 \[2, 4, 4, 3\]"
    ):
        store.write(2, [1, 2], some(1))
    with pytest.raises(FlexgenError, match=r"of window 2 are float64"):
        store.write(2, [1], some(1) / 1.0)
    with pytest.raises(FlexgenError, match=r"indices: holds 9. Frames are numbered 0 to 8"):
        store.write(2, [9], some(1))
    with pytest.raises(FlexgenError, match=r"indices: is -1"):
        store.read([-1])
