"""What comes with the package is found by name from any folder, and a file of the caller's own goes first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flexgen as fg
from flexgen.data.examples import or_example
from flexgen.errors import CheckpointError, DataError


def test_examples_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fg.data.example_names() == ("mazes32",)
    folder = fg.data.example("mazes32")
    assert (folder / "backbone.json").is_file()
    assert fg.data.example("mazes32/held_out.mp4") == folder / "held_out.mp4"
    by_name, by_path = fg.VideoPipeline.from_pretrained("mazes32"), fg.VideoPipeline.from_pretrained(folder)
    assert by_name.backbone.fingerprint() == by_path.backbone.fingerprint()


@pytest.mark.parametrize("name", ["maze32", "mazes32/held_in.mp4", "", "../configs", "mazes32/../../configs", "/"])
def test_what_is_no_example(name: str) -> None:
    with pytest.raises(DataError, match=r"^name: is .*Examples are mazes32, and the files in them\.$"):
        fg.data.example(name)


def test_a_path_that_exists_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mazes32").mkdir()
    assert or_example("mazes32") == Path("mazes32")
    with pytest.raises(CheckpointError, match=r"mazes32' holds no backbone\.json"):
        fg.VideoPipeline.from_pretrained("mazes32")
    assert or_example("other.mp4") == Path("other.mp4")
    np.save(tmp_path / "mazes32" / "held_out.mp4.npy", np.zeros(1))
    assert or_example("mazes32/held_out.mp4").is_absolute()
