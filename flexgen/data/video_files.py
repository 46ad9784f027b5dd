"""Videos as files: read and written a frame at a time, and shown as one picture.

A frame is uint8 ``[H, W, C]``, C being 3 (RGB) or 1; a video is ``[F, H, W, C]``.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from flexgen import saving
from flexgen.checks import whole_number
from flexgen.data.examples import or_example
from flexgen.errors import DataError

__all__ = ["VideoWriter", "contact_sheet", "crop_and_resize", "find_videos", "open_npy", "read_frames"]

ENCODED = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")
IMAGES = (".png", ".jpg", ".jpeg")
FORMATS = f"{', '.join(ENCODED)} or .npy files, or folders of {', '.join(IMAGES)} files"


def find_videos(folder: str | Path) -> list[Path]:
    """The videos of a folder by name: encoded files, ``.npy`` files, and sub-folders that hold images.

    Hidden files are left out, and so are ``poses-*.npy``, which stand beside rendered videos.

    Raises:
        DataError: there is no such folder, or no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("folder", f"{str(folder)!r} is no folder", f"Pass a folder of {FORMATS}.")
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _is_video(path)]
    if not found:
        hint = " Its own images would be one video: pass the folder above it." if image_files(folder) else ""
        raise DataError("folder", f"{str(folder)!r} holds no video", f"Pass a folder of {FORMATS}.{hint}")
    return found


def _is_video(path: Path) -> bool:
    if path.is_dir():
        return bool(image_files(path))
    suffix = path.suffix.lower()
    return suffix in ENCODED or (suffix == ".npy" and not path.name.startswith("poses-"))


def image_files(folder: Path) -> list[Path]:
    """The images of a folder by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))


def read_frames(path: str | Path, *, size: int | None = None) -> Iterator[np.ndarray]:
    """The frames of a video, one at a time.

    Args:
        path: an encoded file, a ``.npy`` file or a folder of images in the order of their names; or a file of an
            example that comes with the package, ``"mazes32/held_out.mp4"``.
        size: crop each frame to its central square and resize it to this many pixels a side; None keeps it.

    Raises:
        DataError: the file cannot be read, is no video, changes its size half-way, or needs an extra.
    """
    path, shape = or_example(path), None
    if not path.exists():
        raise DataError("path", f"{str(path)!r} does not exist", "Name a video, a .npy file or a folder of images.")
    if size is not None:
        size = whole_number("size", size, 1, DataError)
    for number, raw in enumerate(_raw_frames(path)):
        frame = raw if size is None else crop_and_resize(raw, size)
        shape = shape or frame.shape
        if frame.shape != shape:
            raise DataError(
                "path",
                f"{str(path)!r} has a frame {number} of shape {frame.shape} after frames of shape {shape}",
                "Pass size=... to bring all to one.",
            )
        yield frame
    if shape is None:
        raise DataError("path", f"{str(path)!r} has no frame", "Remove it.")


def _raw_frames(path: Path) -> Iterator[np.ndarray]:
    if path.is_dir():
        return map(_read_image, image_files(path))
    if path.suffix.lower() == ".npy":
        return iter(open_npy(path))
    return _decoded(path)


def _decoded(path: Path) -> Iterator[np.ndarray]:
    av = _pyav(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError("path", f"{str(path)!r} holds no picture", "Remove it.")
            for frame in container.decode(video=0):
                yield _upright(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0))
    except (OSError, av.FFmpegError) as error:
        reason = " ".join(str(error).split())
        raise DataError("path", f"{str(path)!r} cannot be read: {reason}", "Encode it anew, or remove it.") from error


def _upright(frame: np.ndarray, degrees: int) -> np.ndarray:
    """A frame turned by what the file says, counter-clockwise: telephones write pictures as the sensor lies."""
    return np.ascontiguousarray(np.rot90(frame, round(degrees / 90)))


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError("path", f"{str(path)!r} cannot be read: {error}", "Replace it, or remove it.") from error


def open_npy(path: str | Path) -> np.ndarray:
    """A video ``[F, H, W, C]`` mapped into memory, not read.

    Raises:
        DataError: it cannot be read, or is no uint8 video.
    """
    try:
        video: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError("path", f"{str(path)!r} cannot be read: {error}", "Write it anew with numpy.save.") from error
    if video.dtype != np.uint8:
        fix = "Convert it to uint8, 0 to 255."
        raise DataError("path", f"{str(path)!r} holds {video.dtype}", fix)
    if video.ndim != 4 or video.shape[-1] not in (1, 3) or 0 in video.shape:
        fix = "Store [frames, height, width, channels], with 1 or 3 channels."
        raise DataError("path", f"{str(path)!r} has shape {video.shape}", fix)
    return video


def crop_and_resize(frame: np.ndarray, size: int) -> np.ndarray:
    """The central square of a frame, averaged over areas to `size` pixels a side (bicubic where it grows)."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frame[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    image = Image.fromarray(square[..., 0] if frame.shape[-1] == 1 else square)
    how = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size, size), how)).reshape(size, size, frame.shape[-1])


class VideoWriter:
    """Writes a video frame by frame; what was written is there after a crash.

    Args:
        path: ``.npy`` (exact, can be mapped into memory) or ``.mp4`` (H.264 in fragments; needs
            flexgen-samplers[video]; sides must be even).
        fps: frames a second, of an ``.mp4``.
        quality: of an ``.mp4``, x264's constant rate factor: 0 loses nothing, 51 is worst.

    >>> with VideoWriter("walk.mp4") as writer:
    ...     writer.write(frame)  # uint8 [H, W, C]
    """

    def __init__(self, path: str | Path, *, fps: int = 10, quality: int = 18) -> None:
        self.path = Path(path)
        self.fps = whole_number("fps", fps, 1, DataError)
        self.quality = whole_number("quality", quality, 0, DataError)
        self.shape: tuple[int, ...] = ()
        self.num_frames = 0
        if self.path.suffix not in (".npy", ".mp4"):
            raise DataError("path", f"{str(path)!r} ends in {self.path.suffix!r}", "Name a .npy or .mp4 file.")
        self._av = _pyav(self.path) if self.path.suffix == ".mp4" else None
        self._file: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, uint8 ``[H, W, C]``.

        Raises:
            DataError: it is no such array, of another shape than the first, or the file cannot be written.
        """
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3:
            held = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else f"a {type(frame).__name__}"
            raise DataError("frame", f"is {held}", "Pass a numpy array uint8 [height, width, channels].")
        if frame.shape[-1] not in (1, 3) or (self.shape and frame.shape != self.shape):
            before = f" after frames of shape {self.shape}" if self.shape else ""
            fix = "Pass frames of one shape, with 1 or 3 channels."
            raise DataError("frame", f"has shape {frame.shape}{before}", fix)
        with saving.writing("path", self.path, DataError):
            if not self.shape:
                self._open(frame.shape)
            self.num_frames += 1
            if self._av is None:
                self._file.seek(128 + (self.num_frames - 1) * frame.size)
                self._file.write(np.ascontiguousarray(frame).tobytes())
                self._write_header()
            else:
                picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.repeat(3 // frame.shape[-1], -1)))
                self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Ends the file.

        Raises:
            DataError: its end cannot be written; the disk is full, say.
        """
        file, stream = self._file, self._stream
        self._file = self._stream = None
        if file is not None:
            with saving.writing("path", self.path, DataError):
                try:
                    if stream is not None:
                        file.mux(stream.encode())
                finally:
                    file.close()

    def _open(self, shape: tuple[int, ...]) -> None:
        height, width, _ = shape
        if self._av is not None and (height % 2 or width % 2):
            raise DataError("frame", f"has sides {height} and {width}", "H.264 needs even ones; write a .npy file.")
        if self._av is None:
            self._file = self.path.open("w+b")
        else:
            fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
            self._file = self._av.open(str(self.path), "w", format="mp4", options=fragments)
        self.shape = shape
        if self._av is not None:
            options = {"crf": str(self.quality), "preset": "veryfast", "g": "30"}
            self._stream = self._file.add_stream("libx264", rate=self.fps, options=options)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"

    def _write_header(self) -> None:
        """The header of a ``.npy`` file of a fixed length, so that it can be written again after each frame."""
        fields = {"descr": "|u1", "fortran_order": False, "shape": (self.num_frames, *self.shape)}
        text = repr(fields).encode("latin1").ljust(117) + b"\n"
        header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text  # 128 bytes
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()


def contact_sheet(
    frames: Iterable[np.ndarray],
    path: str | Path | None = None,
    *,
    columns: int = 10,
    every: int = 1,
    scale: int | None = None,
    observed: Iterable[int] = (),
) -> Image.Image:
    """A grid of frames with their numbers; observed ones are framed in yellow.

    Args:
        frames: uint8 ``[H, W, C]`` each.
        path: a ``.png`` file to write it to as well.
        columns: frames a row.
        every: show each how-many-th frame.
        scale: pixels a side of each pixel; None makes a frame about 100 pixels wide.
        observed: numbers of the frames that a model was given.
    """
    columns, every = (
        whole_number(name, value, 1, DataError) for name, value in (("columns", columns), ("every", every))
    )
    shown = list(itertools.islice(frames, 0, None, every))
    if not shown:
        raise DataError("frames", "are none", "Pass at least one frame.")
    height, width = shown[0].shape[:2]
    zoom = max(1, 100 // width) if scale is None else whole_number("scale", scale, 1, DataError)
    cell_width, cell_height = zoom * width + 4, zoom * height + 16
    columns, marked = min(columns, len(shown)), set(observed)
    sheet = Image.new("RGB", (columns * cell_width, -(-len(shown) // columns) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, frame in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = column * cell_width, row * cell_height
        if place * every in marked:
            draw.rectangle((left, top, left + cell_width - 1, top + zoom * height + 3), fill=(255, 200, 0))
        picture = Image.fromarray(np.ascontiguousarray(frame.repeat(3 // frame.shape[-1], -1)))
        sheet.paste(picture.resize((zoom * width, zoom * height), Image.Resampling.NEAREST), (left + 2, top + 2))
        draw.text((left + 3, top + zoom * height + 3), str(place * every), fill="black")
    if path is not None:
        with saving.writing("path", path, DataError), saving.replacing(path) as partial:
            sheet.save(partial, format="png")
    return sheet


def _pyav(path: Path) -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        fix = "Install flexgen-samplers[video], or use .npy files or folders of images."
        raise DataError("path", f"{str(path)!r} needs PyAV", fix) from error
