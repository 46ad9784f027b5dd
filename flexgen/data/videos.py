"""A folder of videos as rows of a data set: clips of some frames each, read when they are needed."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flexgen import saving
from flexgen.checks import whole_number
from flexgen.data.video_files import VideoWriter, find_videos, image_files, open_npy, read_frames
from flexgen.errors import DataError

__all__ = ["Clip", "Video", "VideoFolder"]


@dataclass(frozen=True)
class Video:
    """One video.

    Args:
        source: the file or the folder of images.
        frames: a ``.npy`` file with its frames: the source, or its copy in the cache.
        num_frames: how many.
    """

    source: Path
    frames: Path
    num_frames: int


@dataclass(frozen=True)
class Clip:
    """What a row holds: frames `start`, `start` + 1, ... of a video, mirrored left to right or not."""

    video: Video
    start: int
    is_flipped: bool


class VideoFolder:
    """Clips of `num_frames` frames out of all videos of a folder; a `flexgen.training.TrainingData`.

    ``.npy`` files of the right size are mapped into memory where they are. All others are decoded once, into ``.npy``
    files of a cache that are whole or not there; a decoding that was interrupted goes on from the next video. Memory
    holds no more than the current batch.

    The clips of a video begin at frames 0, `stride`, 2 `stride`, ..., and one more ends with its last frame. A video
    that is shorter than a clip is one row, its absent frames black and marked.

    Args:
        folder: what `find_videos` finds in it: encoded files, ``.npy`` files, folders of images.
        num_frames: of a clip.
        size: pixels a side, after a crop to the central square; None keeps the frames, which must then be of one size.
        stride: frames between the beginnings of neighbouring clips; None is `num_frames`.
        min_frames: a video with fewer is refused.
        flip: whether every clip has a second row, mirrored left to right. Text and one-way streets object.
        cache_dir: of decoded videos; None is ``.cache`` inside the folder.
        progress: show a bar while decoding; None: if standard error is a terminal.

    Raises:
        DataError: no video, one that cannot be read or is too short, frames of several sizes, a missing extra.

    >>> videos = VideoFolder("clips", num_frames=20, size=64, stride=5)
    >>> videos.batch(torch.tensor([0, 7]))["frames"].shape
    torch.Size([2, 20, 64, 64, 3])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        num_frames: int,
        size: int | None = None,
        stride: int | None = None,
        min_frames: int = 1,
        flip: bool = False,
        cache_dir: str | Path | None = None,
        progress: bool | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.num_frames = whole_number("num_frames", num_frames, 1, DataError)
        self.size = None if size is None else whole_number("size", size, 1, DataError)
        self.stride = self.num_frames if stride is None else whole_number("stride", stride, 1, DataError)
        self.flip = bool(flip)
        self.cache_dir = self.folder / ".cache" if cache_dir is None else Path(cache_dir)
        least = whole_number("min_frames", min_frames, 1, DataError)
        paths = find_videos(self.folder)
        show = sys.stderr.isatty() if progress is None else progress
        self.videos: list[Video] = []
        self.frame_shape: tuple[int, int, int] = (0, 0, 0)
        for path in tqdm(paths, desc="videos", unit="video", disable=not show):
            try:
                self._add(path, least)
            except DataError as error:
                raise DataError(
                    "folder" if error.argument == "path" else error.argument, error.problem, error.fix
                ) from error
        counts = [len(self._starts(video)) for video in self.videos]
        self._first_rows = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._first_rows[-1]) * (1 + self.flip)

    def __repr__(self) -> str:
        height, width, channels = self.frame_shape
        shape = f"{self.num_frames} frames of {height}x{width}x{channels}"
        return f"VideoFolder({str(self.folder)!r}: {len(self)} clips of {shape} from {len(self.videos)} videos)"

    def clip(self, row: int) -> Clip:
        """What row `row` holds; with `flip`, the second half of the rows mirrors the first."""
        if not 0 <= row < len(self):
            raise DataError("row", f"is {row}", f"Rows are 0 to {len(self) - 1}.")
        second, row = divmod(row, int(self._first_rows[-1]))
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        video = self.videos[number]
        return Clip(video, self._starts(video)[row - int(self._first_rows[number])], bool(second))

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The rows `indices`, int64 ``[B]``.

        Returns:
            ``frames``, uint8 ``[B, T, H, W, C]``, and ``present``, bool ``[B, T]``, False where a video had ended.
        """
        shape = (len(indices), self.num_frames)
        frames, present = np.zeros((*shape, *self.frame_shape), np.uint8), np.zeros(shape, bool)
        for place, row in enumerate(indices.tolist()):
            clip = self.clip(row)
            part = open_npy(clip.video.frames)[clip.start : clip.start + self.num_frames]
            frames[place, : len(part)] = part[:, :, ::-1] if clip.is_flipped else part
            present[place, : len(part)] = True
        return {"frames": torch.from_numpy(frames), "present": torch.from_numpy(present)}

    def _starts(self, video: Video) -> range | list[int]:
        last = max(0, video.num_frames - self.num_frames)
        starts = range(0, last + 1, self.stride)
        return starts if starts[-1] == last else [*starts, last]

    def _add(self, path: Path, least: int) -> None:
        frames = self._stored(path)
        num_frames, *shape = open_npy(frames).shape
        if num_frames < least:
            fix = "Remove it, or pass a smaller min_frames."
            raise DataError("folder", f"{str(path)!r} has {num_frames} frames, {least} are needed", fix)
        if self.videos and tuple(shape) != self.frame_shape:
            first, second = ("x".join(map(str, s)) for s in (self.frame_shape, shape))
            fix = "Pass size=... to bring all to one size."
            if self.frame_shape[2] != shape[2]:
                fix = "Store all in colour, or all in grey."
            raise DataError(
                "folder", f"has frames of {first} in {str(self.videos[0].source)!r} and {second} in {str(path)!r}", fix
            )
        self.frame_shape = (shape[0], shape[1], shape[2])
        self.videos.append(Video(path, frames, num_frames))

    def _stored(self, path: Path) -> Path:
        """A ``.npy`` file with the frames of a video, at the size of the folder's clips."""
        if path.suffix.lower() == ".npy" and (self.size is None or open_npy(path).shape[1:3] == (self.size, self.size)):
            open_npy(path)
            return path
        cached = self.cache_dir / f"{path.name}-{_version(path, self.size)}.npy"
        if cached.is_file():
            return cached
        with saving.writing("cache_dir", self.cache_dir, DataError):
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with saving.replacing(cached) as partial, VideoWriter(partial) as writer:  # others may decode it too
                for frame in read_frames(path, size=self.size):
                    writer.write(frame)
        return cached


def _version(path: Path, size: int | None) -> str:
    """A name for what a video is now: it changes with the files, so that no stale copy is read."""
    digest = hashlib.sha256(str(size).encode())
    for file in image_files(path) if path.is_dir() else [path]:
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns} ".encode())
    return digest.hexdigest()[:12]
