"""A disk that is really full: everything that is saved says so by name, leaves the old files, and works again after."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from flexgen.cli.files import write_table
from flexgen.data.video_files import VideoWriter, contact_sheet
from flexgen.errors import FlexgenError
from flexgen.exact import Gaussian
from flexgen.table_model import TableModel
from flexgen.training import Checkpoint, TrainingSettings, train, write_checkpoint
from flexgen.video import NoiseProcess, PixelScale, VideoBackbone
from flexgen.video_pipeline import VideoPipeline
from samplers import GibbsSampler, scans
from tests.networks import small
from tests.tables.small import EXACT, mixed_table
from tests.training import toy


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where the tests may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def table(folder: Path) -> None:
    TableModel.fit(mixed_table(40), settings=EXACT, progress=False).save_pretrained(folder / "model")


def backbone(folder: Path) -> None:
    VideoBackbone(small.network(), NoiseProcess(), PixelScale(), window=5).save_pretrained(folder / "model")


def checkpoint(folder: Path) -> None:
    step = len(list(folder.glob("step-*")))  # another one each time
    write_checkpoint(folder, Checkpoint(step, {"network": {"w": torch.zeros(9999)}}, {}))


def training(folder: Path) -> None:
    network, objective, data, _ = toy.parts()
    settings = TrainingSettings(num_steps=8, batch_size=8, checkpoint_every=2)
    train(network, objective, data, settings, directory=folder / str(len(list(folder.iterdir()))), progress=False)


def chains(folder: Path) -> None:
    sampler = GibbsSampler(Gaussian(torch.zeros(3), torch.eye(3)), scan=scans.random())
    sampler.run(draws=1, chains=999, generator=0).state.save(folder / "chains.safetensors")


def rows(folder: Path) -> None:
    write_table(pd.DataFrame({"x": range(5000)}), folder / "rows.csv")


def parquet(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    write_table(pd.DataFrame({"x": np.random.default_rng(0).normal(size=5000)}), folder / "rows.parquet")


def video(folder: Path) -> None:
    torch.manual_seed(0)
    pipe = VideoPipeline(VideoBackbone(small.network(), NoiseProcess(), PixelScale(), window=6))
    given = np.zeros((2, *pipe.backbone.frame_shape), np.uint8)
    pipe(given, num_frames=40, num_inference_steps=1, generator=0, output_dir=folder / "video", overwrite=True)


def sheet(folder: Path) -> None:
    contact_sheet(np.random.default_rng(0).integers(256, size=(20, 16, 16, 3), dtype=np.uint8), folder / "sheet.png")


@pytest.mark.parametrize("save", [table, backbone, checkpoint, training, chains, rows, parquet, video, sheet])
def test_a_full_disk_is_told_and_leaves_the_old_files(disk: Path, save: Callable[[Path], Any]) -> None:
    folder = disk / "out"
    folder.mkdir()
    save(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(FlexgenError, match=r"No space left on device.*Make room"):
        save(folder)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    assert {path.name for path in after.keys() - before.keys()} <= {".opening"}
    filler.unlink()
    save(folder)


def test_a_video_file_on_a_full_disk(disk: Path) -> None:
    noise, names = np.random.default_rng(0), ["video.npy"]
    with contextlib.suppress(ImportError):
        import av  # noqa: F401

        names.append("video.mp4")
    for name in names:

        def write(path: Path) -> None:
            with VideoWriter(path, quality=0) as writer:
                for _ in range(100):
                    writer.write(noise.integers(256, size=(200, 200, 3), dtype=np.uint8))

        with pytest.raises(FlexgenError, match=rf"path: '.*{name}' cannot be written: .*No space left on device"):
            write(disk / name)
        (disk / name).unlink()
