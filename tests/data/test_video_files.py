"""Video files: what is written is read back, and what is wrong with a file is said."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flexgen.data import video_files
from flexgen.data.video_files import VideoWriter, contact_sheet, crop_and_resize, find_videos, open_npy, read_frames
from flexgen.errors import DataError

NEEDS_AV = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV")


def smooth_video(num_frames: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """A gradient that moves, which an encoder keeps well."""
    y, x, t = np.meshgrid(range(height), range(width), range(num_frames), indexing="ij")
    planes = [128 + 100 * np.sin((x + 2 * t) / 15), 128 + 90 * np.cos((y - t) / 12), 40 + 5 * t + x]
    return np.stack(planes, -1).transpose(2, 0, 1, 3).astype(np.uint8)


def write(path, video) -> None:
    with VideoWriter(path) as writer:
        for frame in video:
            writer.write(frame)


def write_images(folder, video, suffix=".png") -> None:
    folder.mkdir()
    for place, frame in enumerate(video):
        Image.fromarray(frame).save(folder / f"{place:04d}{suffix}")


def test_npy_and_images_are_read_back_exactly(tmp_path):
    video = smooth_video()
    write(tmp_path / "a.npy", video)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), video)
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path / "a.npy"))), video)
    write_images(tmp_path / "b", video)
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path / "b"))), video)


@NEEDS_AV
def test_mp4_is_read_back_nearly(tmp_path):
    video = smooth_video()
    write(tmp_path / "a.mp4", video)
    back = np.stack(list(read_frames(tmp_path / "a.mp4")))
    assert back.shape == video.shape
    error = np.abs(back.astype(int) - video)
    assert error.mean() < 4
    assert np.abs(back[::-1].astype(int) - video).mean() > 3 * error.mean()  # frames in another order are told apart
    assert np.abs(back[..., ::-1].astype(int) - video).mean() > 3 * error.mean()  # and so are swapped channels


def test_grey_videos_keep_one_channel(tmp_path):
    video = smooth_video()[..., :1]
    write(tmp_path / "a.npy", video)
    assert next(read_frames(tmp_path / "a.npy", size=8)).shape == (8, 8, 1)
    assert open_npy(tmp_path / "a.npy").shape == video.shape


KILLED = """
import os, sys
import numpy as np
from flexgen.data.video_files import VideoWriter
writer = VideoWriter(sys.argv[1])
for place in range(80):
    writer.write(np.full((32, 32, 3), place, np.uint8))
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", ["a.npy", pytest.param("a.mp4", marks=NEEDS_AV)])
def test_what_was_written_is_there_after_a_kill(name, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    assert done.returncode == -9
    found = list(read_frames(tmp_path / name))
    assert len(found) == 80 if name == "a.npy" else len(found) > 0
    assert abs(int(found[5][0, 0, 0]) - 5) <= 3


def test_crop_and_resize_takes_the_centre_and_averages_areas():
    frame = np.zeros((4, 8, 3), np.uint8)
    frame[:, 2:6] = np.array([[10, 20, 30, 40]]).T
    np.testing.assert_array_equal(crop_and_resize(frame, 4), frame[:, 2:6])
    np.testing.assert_array_equal(crop_and_resize(frame, 2)[..., 0], [[15, 35], [15, 35]])
    checks = np.indices((8, 8)).sum(0)[..., None].repeat(3, -1).astype(np.uint8) % 2 * 200
    assert np.ptp(crop_and_resize(checks, 4)) == 0  # picking pixels would leave 0 or 200 everywhere
    assert crop_and_resize(checks, 4)[0, 0, 0] == 100
    assert crop_and_resize(checks, 16).shape == (16, 16, 3)


def test_turned_pictures_are_set_upright():
    frame = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    np.testing.assert_array_equal(video_files._upright(frame, 0), frame)
    np.testing.assert_array_equal(video_files._upright(frame, -90)[..., 0], [[3, 0], [4, 1], [5, 2]])
    np.testing.assert_array_equal(video_files._upright(frame, 180)[..., 0], [[5, 4, 3], [2, 1, 0]])


def test_find_videos(tmp_path):
    for name in ("b.npy", "poses-00000.npy", "videos.json", ".hidden.npy", "A.MP4"):
        (tmp_path / name).touch()
    write_images(tmp_path / "c", smooth_video(2))
    (tmp_path / "empty").mkdir()
    assert [path.name for path in find_videos(tmp_path)] == ["A.MP4", "b.npy", "c"]
    with pytest.raises(DataError, match=r"folder: .*holds no video\. Pass a folder of \.mp4"):
        find_videos(tmp_path / "empty")
    with pytest.raises(DataError, match="pass the folder above it"):
        find_videos(tmp_path / "c")
    with pytest.raises(DataError, match="is no folder"):
        find_videos(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 8, 8, 3), np.float32), "holds float32. Convert it to uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"has shape \(3, 8, 8\)"),
        (np.zeros((3, 3, 8, 8), np.uint8), r"has shape \(3, 3, 8, 8\). Store \[frames, height, width, channels\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"has shape \(0, 8, 8, 3\)"),
        (np.array([{"a": 1}], object), "cannot be read"),
    ],
)
def test_a_wrong_npy_is_refused(array, said, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=said):
        list(read_frames(tmp_path / "a.npy"))


@pytest.mark.parametrize("name", ["a.npy", pytest.param("a.mp4", marks=NEEDS_AV), "images"])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path):
    path = tmp_path / name
    if name == "images":
        path.mkdir()
        (path / "0.png").write_text("no picture")
    else:
        path.write_text("no video")
    with pytest.raises(DataError, match=f"{name}.*cannot be read"):
        list(read_frames(path))


def test_images_of_several_sizes_need_a_size(tmp_path):
    write_images(tmp_path / "a", [np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)])
    with pytest.raises(DataError, match=r"has a frame 1 of shape \(9, 8, 3\) after .*size="):
        list(read_frames(tmp_path / "a"))
    assert len(list(read_frames(tmp_path / "a", size=4))) == 2


def test_without_pyav_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(DataError, match=r"needs PyAV\. Install flexgen-samplers\[video\]"):
        list(read_frames(tmp_path / "a.mp4"))
    with pytest.raises(DataError, match="needs PyAV"):
        VideoWriter(tmp_path / "b.mp4")


def test_the_writer_refuses_what_it_cannot_write(tmp_path):
    frame = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(DataError, match=r"ends in '\.avi'"):
        VideoWriter(tmp_path / "a.avi")
    with pytest.raises(DataError, match="fps: is 0"):
        VideoWriter(tmp_path / "a.npy", fps=0)
    with pytest.raises(DataError, match="cannot be written"), VideoWriter(tmp_path / "no/a.npy") as writer:
        writer.write(frame)
    with VideoWriter(tmp_path / "a.npy") as writer:
        with pytest.raises(DataError, match="frame: is float64"):
            writer.write(frame / 2)
        with pytest.raises(DataError, match="frame: is a list"):
            writer.write([1])
        writer.write(frame)
        with pytest.raises(DataError, match=r"has shape \(8, 9, 3\) after frames of shape \(8, 8, 3\)"):
            writer.write(np.zeros((8, 9, 3), np.uint8))
    assert len(open_npy(tmp_path / "a.npy")) == 1


@NEEDS_AV
def test_odd_sides_are_refused_for_mp4(tmp_path):
    with pytest.raises(DataError, match="sides 7 and 8"), VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(np.zeros((7, 8, 3), np.uint8))


def test_a_contact_sheet_shows_the_frames_and_marks_observed_ones(tmp_path):
    video = smooth_video(7)
    sheet = contact_sheet(iter(video), tmp_path / "sheet.png", columns=4, scale=2, observed=[0, 5])
    assert sheet.size == (4 * (2 * 48 + 4), 2 * (2 * 32 + 16))
    with Image.open(tmp_path / "sheet.png") as written:
        pixels = np.asarray(written)
    np.testing.assert_array_equal(pixels[82:146:2, 102:198:2], video[5])
    corners = {place: tuple(pixels[80 * (place // 4), 100 * (place % 4)]) for place in range(7)}
    assert [place for place, colour in corners.items() if colour == (255, 200, 0)] == [0, 5]
    assert contact_sheet(video, every=3, scale=1).size == (3 * 52, 48)
    with pytest.raises(DataError, match="frames: are none"):
        contact_sheet([])
