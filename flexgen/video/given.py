"""The frames that a video is given, and their places in it, as a caller passed them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from flexgen.checks import renamed, whole_number
from flexgen.data.video_files import read_frames
from flexgen.errors import DataError

__all__ = ["given_frames", "given_places"]

Frames = npt.NDArray[np.uint8]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow greys pictures


def given_frames(
    observed: str | Path | Frames | Tensor | None,
    *,
    frame_shape: tuple[int, int, int],
    num_frames: int,
    num_observed: int | None = None,
) -> Frames:
    """The observed frames, uint8 ``[n, h, w, c]``.

    Args:
        observed: an array, a tensor or the path of a video, a ``.npy`` file or a folder of images; None: no frame.
        frame_shape: (h, w, c) of the network. Arrays have it; what a path names is cropped, resized and made grey or
            coloured.
        num_frames: N; no more frames than that are read.
        num_observed: take so many of its frames, the first ones; None: all.

    Raises:
        DataError: they cannot be read, do not fit, or are fewer than `num_observed`.
    """
    height, width, channels = frame_shape
    if num_observed is not None:
        num_observed = whole_number("num_observed", num_observed, 1, DataError)
        if observed is None:
            raise DataError("num_observed", f"is {num_observed}, but no video is given", "Pass one, or leave it out.")
    if observed is None:
        return np.zeros((0, height, width, channels), np.uint8)
    if isinstance(observed, str | Path):
        return _read(Path(observed), frame_shape, num_frames, num_observed)
    array = _array(observed)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != frame_shape:
        raise DataError(
            "observed_frames",
            f"are {array.dtype} of shape {array.shape}",
            f"Pass uint8 [n, {height}, {width}, {channels}], or a path, which is cropped and resized.",
        )
    return _first(array, num_observed)


def given_places(index: Iterable[int] | None, num_observed: int, num_frames: int) -> list[int]:
    """Where each observed frame stands in the video; by default at its beginning.

    Raises:
        DataError: too many, not one for each, one twice or outside.
    """
    if index is None and num_observed > num_frames:
        problem = f"is {num_frames}, but {num_observed} frames are observed"
        raise DataError("num_frames", problem, "Ask for a longer video, or take fewer frames with num_observed.")
    try:
        chosen = list(range(num_observed)) if index is None else [operator.index(place) for place in index]
    except TypeError as error:
        raise DataError("observed_index", f"is {index!r}", "Pass whole numbers, such as [0, 20, 40].") from error
    if len(chosen) != num_observed:
        problem = f"names {len(chosen)} places for {num_observed} observed frames"
        raise DataError("observed_index", problem, "Name one for each.")
    seen: set[int] = set()
    for place in chosen:
        if not 0 <= place < num_frames:
            raise DataError("observed_index", f"holds {place}", f"Frames are numbered 0 to {num_frames - 1}.")
        if place in seen:
            raise DataError("observed_index", f"names a place twice: {place}", "Name each once.")
        seen.add(place)
    return chosen


def _read(path: Path, frame_shape: tuple[int, int, int], num_frames: int, num_observed: int | None) -> Frames:
    most = num_frames + 1 if num_observed is None else num_observed
    with renamed(path="observed_frames"):
        frames = list(itertools.islice(_coloured(read_frames(path, size=frame_shape[0]), frame_shape[2]), most))
    if num_observed is None and len(frames) > num_frames:
        problem = f"is {num_frames}, but {str(path)!r} has more frames"
        raise DataError("num_frames", problem, "Ask for a longer video, or take fewer frames with num_observed.")
    return _first(np.stack(frames), num_observed)


def _first(frames: Frames, num_observed: int | None) -> Frames:
    if num_observed is not None and len(frames) < num_observed:
        problem = f"is {num_observed}, but the video has {len(frames)} frame(s)"
        raise DataError("num_observed", problem, "Take fewer, or leave it out.")
    return frames[:num_observed]


def _coloured(frames: Iterable[np.ndarray], channels: int) -> Iterator[np.ndarray]:
    """Grey frames as coloured ones, or the other way round."""
    for frame in frames:
        if frame.shape[-1] == channels:
            yield frame
        elif channels == 3:
            yield frame.repeat(3, -1)
        else:
            yield (frame @ _LUMA).round().astype(np.uint8)[..., None]


def _array(observed: object) -> np.ndarray:
    try:
        return observed.cpu().numpy() if isinstance(observed, Tensor) else np.asarray(observed)
    except (TypeError, ValueError, RuntimeError) as error:  # bfloat16, frames of several shapes
        reason = " ".join(str(error).split())
        raise DataError("observed_frames", f"are no array: {reason}", "Pass a uint8 array, or a path.") from error
