"""Saving: whole or not there, only what is ours, and nothing changed unseen."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from flexgen import saving
from flexgen.errors import CheckpointError, DataError
from flexgen.saving import MANIFEST, read_folder, remove_files, replacing, require_ours, update_folder
from flexgen.table_model import TableModel
from flexgen.video import NoiseProcess, PixelScale, VideoBackbone
from tests.networks import small
from tests.tables.small import EXACT


def save(folder: Path, remove: tuple[str, ...] = (), **texts: str) -> None:
    """`a__b="text"` writes the file a/b."""

    def write(new: Path) -> None:
        for name, text in texts.items():
            path = new / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    update_folder(folder, write, remove=remove)


def read(folder: Path) -> dict[str, str]:
    return read_folder(folder, [], lambda files, _: {name: path.read_text() for name, path in files.items()})


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_added_replaced_and_removed_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    save(folder, a="1", sub__b="2")
    save(folder, a="3", c="4")
    assert read(folder) == {"a": "3", "sub/b": "2", "c": "4"}
    save(folder, remove=("sub/b", "unknown"), c="5")
    assert read(folder) == {"a": "3", "c": "5"}
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c", MANIFEST]
    (folder / "foreign").write_text("stays")
    remove_files(folder, ["a"])
    assert read(folder) == {"c": "5"}
    remove_files(folder)
    assert everything(folder) == {"foreign": b"stays"}
    (folder / "foreign").unlink()
    save(folder, a="1")
    remove_files(folder)
    assert not folder.exists()
    remove_files(folder)


def test_a_writer_stopped_anywhere_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every system call of ours is once the last one; nothing is cleaned up after it, as after SIGKILL."""

    class Killed(BaseException):
        pass

    calls = [(os, "open"), (os, "fsync"), *((Path, name) for name in ("mkdir", "rename", "replace", "unlink", "rmdir"))]

    def attempt(folder: Path, allowed: int) -> bool:
        left = allowed

        def counted(call: Callable) -> Callable:
            def wrapper(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed  # again and again: no clean-up gets through either
                return call(*arguments, **options)

            return wrapper

        with monkeypatch.context() as patched:
            for place, name in calls:
                patched.setattr(place, name, counted(getattr(place, name)))
            patched.setattr(shutil, "rmtree", counted(shutil.rmtree))
            try:
                save(folder, remove=("gone",), kept_not="new", sub__b="new", fresh="new")
            except Killed:
                return False
        return True

    before = {"kept_not": "old", "sub/b": "old", "gone": "old", "stays": "old"}
    after = {"kept_not": "new", "sub/b": "new", "fresh": "new", "stays": "old"}
    seen, allowed = [], 0
    while True:
        folder = tmp_path / str(allowed)
        save(folder, **{name.replace("/", "__"): text for name, text in before.items()})
        (folder / "foreign").write_text("foreign")
        is_done = attempt(folder, allowed)
        found = read(folder)
        seen.append(found == after)
        assert found in (before, after), allowed
        assert (folder / "foreign").read_text() == "foreign"
        save(folder, stays="newer")  # goes on from whatever was left
        assert read(folder) == {**found, "stays": "newer"}
        names = {MANIFEST, "foreign", *found, "stays"}
        assert set(everything(folder)) - names == {n for n in everything(folder) if n.endswith(".partial.json")}
        if is_done:
            break
        allowed += 1
    assert seen == sorted(seen)  # one switch
    assert not seen[0]
    assert sum(not is_new for is_new in seen) > 15
    assert sum(seen) > 5


def test_what_a_killed_process_left_beside_a_file_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (
        f".a.{gone.pid}-0123abcd.partial.txt",
        f".a.{os.getpid()}-0123abcd.partial.txt",
        ".a.mine.partial.txt",
    ):
        (tmp_path / name).write_text("half")
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("whole")
    assert sorted(everything(tmp_path)) == [f".a.{os.getpid()}-0123abcd.partial.txt", ".a.mine.partial.txt", "a.txt"]


def test_the_switch_is_seen_by_readers_at_once(tmp_path: Path) -> None:
    """Stopped between the switch and the moves, the folder reads as new, and its plain files are still the old ones."""
    save(tmp_path, a="old", b="old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    settle, saving._settle = (
        saving._settle,
        lambda folder, manifest: stop() if manifest.is_there and (folder / ".flexgen-saving").exists() else None,
    )
    try:
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, a="new", b="new")
    finally:
        saving._settle = settle
    assert (tmp_path / "a").read_text() == "old"
    assert read(tmp_path) == {"a": "new", "b": "new"}


def test_a_reader_beside_two_writers_never_sees_a_mix(tmp_path: Path) -> None:
    code = """
import sys
from flexgen.saving import update_folder
for number in range(int(sys.argv[2]), 10**9, 2):
    def write(new):
        (new / "sub").mkdir()
        for name in ("a", "sub/b"):
            (new / name).write_text(str(number))
    update_folder(sys.argv[1], write)
"""
    save(tmp_path / "s", a="start", sub__b="start")
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "s", str(first)]) for first in (0, 1)]
    try:
        seen = set()
        while len(seen) < 40:
            assert [writer.poll() for writer in writers] == [None, None]
            found = read(tmp_path / "s")
            assert found["a"] == found["sub/b"]
            seen.add(found["a"])
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


# What is not ours -----------------------------------------------------------------------------------------------------


def test_foreign_files_are_refused_before_anything_is_deleted(tmp_path: Path) -> None:
    save(tmp_path, a="ours", b="ours")
    (tmp_path / "c").write_text("foreign")
    before = everything(tmp_path)
    told = r"holds 'c', which is not of flexgen's making, and one is to be written there.*Nothing was changed"
    with pytest.raises(CheckpointError, match=told):
        save(tmp_path, remove=("b",), a="new", c="new")
    with pytest.raises(DataError, match=r"output: .*holds 'c'"):
        require_ours(tmp_path, ["a", "c"], argument="output", error=DataError)
    (tmp_path / "sub").mkdir()
    with pytest.raises(CheckpointError, match="holds 'sub', which is not"):
        save(tmp_path, sub="new")
    with pytest.raises(CheckpointError, match="holds 'c', a file, where a folder has to be"):
        save(tmp_path, c__d="new")
    assert everything(tmp_path) == before
    assert require_ours(tmp_path, ["a", "b", "new"]) == {"a", "b"}


def test_a_file_put_where_one_of_ours_was_removed_is_foreign(tmp_path: Path) -> None:
    save(tmp_path, a="ours", b="ours")
    save(tmp_path, remove=("b",), a="new")
    (tmp_path / "b").write_text("foreign")
    with pytest.raises(CheckpointError, match="holds 'b'"):
        save(tmp_path, b="new")
    remove_files(tmp_path)
    assert everything(tmp_path) == {"b": b"foreign"}


@pytest.mark.parametrize("name", ["a", "sub", MANIFEST, ".flexgen-saving"])
def test_links_are_refused_and_their_targets_left_alone(tmp_path: Path, name: str) -> None:
    folder, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    save(folder, a="1", sub__b="2")
    if (folder / name).is_dir() or not (folder / name).exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        elsewhere.mkdir()
        (elsewhere / "b").write_text("foreign")
    else:
        (folder / name).replace(elsewhere)
    (folder / name).symlink_to(elsewhere)
    before = everything(tmp_path), elsewhere.is_dir()
    with pytest.raises(CheckpointError, match=rf"holds '{name}', a link, where flexgen writes its own"):
        save(folder, a="new", sub__b="new")
    assert (everything(tmp_path), elsewhere.is_dir()) == before
    assert (folder / name).is_symlink()


def test_a_link_in_the_place_of_a_file_is_replaced_itself(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("foreign")
    (tmp_path / "a.csv").symlink_to(tmp_path / "target")
    with replacing(tmp_path / "a.csv") as partial:
        partial.write_text("ours")
    assert (tmp_path / "target").read_text() == "foreign"
    assert not (tmp_path / "a.csv").is_symlink()


@pytest.mark.parametrize("name", ["../b", "/etc/b", "sub/../../b", "a/", "./a", "", MANIFEST, ".flexgen-saving/new/a"])
def test_a_manifest_names_files_of_its_folder_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "b").write_text("foreign")
    folder = tmp_path / "s"
    save(folder, a="1")
    entry = {"sha256": saving.sha256(tmp_path / "b"), "bytes": 7}
    (folder / MANIFEST).write_text(saving._Manifest({name: entry}, {}).text)
    with pytest.raises(CheckpointError, match="is damaged, or not of flexgen's making"):
        remove_files(folder)
    assert (tmp_path / "b").exists()


def test_a_foreign_manifest_is_left_alone(tmp_path: Path) -> None:
    for text in ("", "{}", "[]", "[" * 100_000, '{"files": 3, "former": 4}'):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(CheckpointError, match="is damaged, or not of flexgen's making"):
            save(tmp_path, a="1")
        assert everything(tmp_path) == {MANIFEST: text.encode()}


# What has changed -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table") / "model"
    rows = pd.DataFrame({"x": range(20), "y": list("ab") * 10})
    TableModel.fit(rows, settings=EXACT, progress=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video") / "model"
    VideoBackbone(small.network(), NoiseProcess(), PixelScale(0.4, 0.2), window=6).save_pretrained(folder)
    return folder


LOADERS = {"table_folder": TableModel.from_pretrained, "backbone_folder": VideoBackbone.from_pretrained}


@pytest.mark.parametrize("kind", LOADERS)
def test_every_flipped_bit_is_found(kind: str, request: pytest.FixtureRequest) -> None:
    """200 random bits in all, a share in each file, then put back."""
    folder, load = request.getfixturevalue(kind), LOADERS[kind]
    files, dice = sorted(everything(folder)), random.Random(0)
    assert len(files) >= 3
    for number in range(200):
        path = folder / files[number % len(files)]
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=path.name):
            load(folder)
        path.write_bytes(whole)
    load(folder)


@pytest.mark.parametrize("kind", LOADERS)
def test_missing_and_mixed_files_are_named(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    load = LOADERS[kind]
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "s")
    for name in everything(folder):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=name):
            load(folder)
        (folder / name).write_bytes(whole)
    other = tmp_path / "other"
    if kind == "table_folder":
        rows = pd.DataFrame({"x": [1, 2] * 10, "y": list("ab") * 10})
        TableModel.fit(rows, settings=EXACT, progress=False).save_pretrained(other)
    else:
        VideoBackbone(small.network(), NoiseProcess(), PixelScale(), window=5).save_pretrained(other)
    for name in everything(folder):
        whole = (folder / name).read_bytes()
        if (other / name).read_bytes() != whole:
            shutil.copy(other / name, folder / name)
            with pytest.raises(CheckpointError, match="damaged or of another save"):
                load(folder)
            (folder / name).write_bytes(whole)
    load(folder)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_save_killed_while_its_files_move_is_read_whole(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each file may be in its place already or not; where it is not, one of the save before is."""
    load, whole = LOADERS[kind], request.getfixturevalue(kind)
    names = sorted(saving.saved_files(whole))
    expected = state_of(load(whole))
    for moved in range(2 ** len(names)):
        folder = shutil.copytree(whole, tmp_path / str(moved))
        staged = folder / ".flexgen-saving" / saving._Manifest.of(folder, "folder").name
        for number, name in enumerate(names):
            if moved >> number & 1:
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).replace(staged / name)
                (folder / name).write_bytes(b"of the save before")
        assert state_of(load(folder)) == expected
        saving.settle(folder)
        assert everything(folder) == everything(whole)


def state_of(model: TableModel | VideoBackbone) -> object:
    if isinstance(model, VideoBackbone):
        return model.fingerprint()
    return {name: weight.tolist() for name, weight in model.conditional().state_dict().items()}


# Places that cannot be written to -------------------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 4 kB: the system's own refusal, which also root gets."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    save(tmp_path / "s", a="old", b="old")
    with replacing(tmp_path / "x.safetensors") as partial:
        save_file({"w": torch.ones(2)}, partial)
    before = everything(tmp_path)
    request.getfixturevalue("small_files")
    with pytest.raises(CheckpointError, match=r"folder: '.*/s' cannot be written: File too large. Make room there, or"):
        save(tmp_path / "s", a="new", b="n" * 5000)
    with pytest.raises(CheckpointError, match="cannot be written: File too large"):
        update_folder(tmp_path / "s", lambda new: save_file({"w": torch.ones(5000)}, new / "w.safetensors"))
    with (
        pytest.raises(DataError, match=r"path: .* cannot be written: File too large. Make room"),
        saving.writing("path", tmp_path / "x.safetensors", DataError),
        replacing(tmp_path / "x.safetensors") as partial,
    ):
        save_file({"w": torch.ones(5000)}, partial)
    assert everything(tmp_path) == before
    assert load_file(tmp_path / "x.safetensors")["w"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", LOADERS)
def test_models_on_a_full_disk(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = LOADERS[kind](request.getfixturevalue(kind))
    model.save_pretrained(tmp_path / "s")
    before = everything(tmp_path)
    largest = max(map(len, before.values()))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, limit[1]))
    try:
        for folder in (tmp_path / "s", tmp_path / "fresh"):
            with pytest.raises(CheckpointError, match=r"folder: .* cannot be written: File too large. Make room"):
                model.save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert everything(tmp_path) == before
    (tmp_path / "file").write_text("foreign")
    with pytest.raises(CheckpointError, match=r"is below '.*/file', which is a file"):
        model.save_pretrained(tmp_path / "file" / "model")


def test_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        update_folder(tmp_path / "s", lambda new: save_file({"w": torch.ones(2)}, new / "w.safetensors"))
        with replacing(tmp_path / "s" / "x.safetensors") as partial:
            save_file({"w": torch.ones(2)}, partial)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "s").iterdir()} == {0o640}


def test_a_dropped_file_that_someone_puts_back_is_theirs(tmp_path: Path) -> None:
    for text in ("a", "b"):
        saving.update_folder(tmp_path, lambda new, text=text: (new / text).write_text(text))
    saving.update_folder(tmp_path, lambda new: (new / "c").write_text("c"), remove=["a"])
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").write_text("a")  # as it was
    saving.update_folder(tmp_path, lambda new: (new / "b").write_text("B"))
    assert (tmp_path / "a").read_text() == "a"
