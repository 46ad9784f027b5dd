"""The folder of a generated video: what lies in it beside the frames."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flexgen.checks import renamed
from flexgen.data.video_files import VideoWriter, contact_sheet
from flexgen.errors import CheckpointError
from flexgen.video.storage import SIDECAR

__all__ = ["PLAN_FILE", "SHEET_FILE", "VIDEO_FILE", "errors_of", "remove", "write_sheet", "write_video", "writing"]

Frames = npt.NDArray[np.uint8]

PLAN_FILE, VIDEO_FILE, SHEET_FILE = "plan.json", "video.mp4", "contact_sheet.png"
_SHEET_FRAMES = 100
_LEAST_SIDE = 256  # of an mp4, in pixels


def remove(folder: Path) -> None:
    """The video that an earlier call left; nothing else."""
    with writing(folder):
        if (folder / "frames" / SIDECAR).is_file():
            shutil.rmtree(folder / "frames")
        for name in (PLAN_FILE, VIDEO_FILE, SHEET_FILE):
            (folder / name).unlink(missing_ok=True)


def write_video(frames: Frames, path: Path, fps: int) -> Path:
    """Small frames are enlarged, pixel by pixel: players show them, and the codec's halved colours cost nothing."""
    zoom = max(1, _LEAST_SIDE // min(frames.shape[1:3]))
    partial = path.with_name(f".partial-{path.name}")
    with writing(path.parent), VideoWriter(partial, fps=fps) as writer:
        for frame in frames:
            writer.write(np.asarray(frame).repeat(zoom, 0).repeat(zoom, 1))
    return partial.replace(path)


def write_sheet(frames: Frames, path: Path, observed: Iterable[int]) -> Path:
    with writing(path.parent):
        contact_sheet(frames, path, every=max(1, -(-len(frames) // _SHEET_FRAMES)), observed=observed)
    return path


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system says against writing there, as an error of the argument ``output_dir``."""
    try:
        yield
    except OSError as error:
        problem = f"{str(folder)!r} cannot be written: {error.strerror or error}"
        raise CheckpointError("output_dir", problem, "Name a folder that you may write to, with room in it.") from error


@contextlib.contextmanager
def errors_of(folder: Path) -> Iterator[None]:
    """What the store of the frames says of its folder, told of the argument ``output_dir``."""
    try:
        with renamed(store="output_dir"):
            yield
    except CheckpointError as error:
        if error.argument != "folder":
            raise
        anew = (folder / "frames" / SIDECAR).is_file()
        fix = f"{error.fix} overwrite=True makes the video anew." if anew else error.fix
        raise CheckpointError("output_dir", error.problem, fix) from error
