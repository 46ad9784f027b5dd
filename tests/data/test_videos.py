"""Clips of a folder of videos."""

from __future__ import annotations

import importlib.util
import pickle

import numpy as np
import pytest
import torch

from flexgen.data import videos as module
from flexgen.data.video_files import crop_and_resize
from flexgen.data.videos import VideoFolder
from flexgen.errors import DataError
from flexgen.training.batches import EpochOrder, fingerprint
from tests.data.test_video_files import NEEDS_AV, smooth_video, write, write_images


@pytest.fixture
def folder(tmp_path):
    """Videos of 12, 5 and 9 frames, 8x8."""
    for name, length in (("a", 12), ("b", 5), ("c", 9)):
        video = np.random.default_rng(length).integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", video)
    return tmp_path


def test_rows_are_the_clips_of_every_video(folder):
    videos = VideoFolder(folder, num_frames=6, stride=4, progress=False)
    found = [(clip.video.source.stem, clip.start) for clip in map(videos.clip, range(len(videos)))]
    assert found == [("a", 0), ("a", 4), ("a", 6), ("b", 0), ("c", 0), ("c", 3)]
    batch = videos.batch(torch.tensor([1, 3, 1]))
    a, b = np.load(folder / "a.npy"), np.load(folder / "b.npy")
    assert batch["frames"].dtype == torch.uint8
    assert batch["frames"].shape == (3, 6, 8, 8, 3)
    np.testing.assert_array_equal(batch["frames"][0], a[4:10])
    np.testing.assert_array_equal(batch["frames"][2], a[4:10])
    np.testing.assert_array_equal(batch["frames"][1, :5], b)
    assert (batch["frames"][1, 5] == 0).all()
    assert batch["present"].tolist() == [[True] * 6, [True] * 5 + [False], [True] * 6]
    assert not (folder / ".cache").exists()  # what can be mapped is not copied
    assert repr(videos).endswith("6 clips of 6 frames of 8x8x3 from 3 videos)")


def test_it_is_training_data(folder):
    videos = VideoFolder(folder, num_frames=4, stride=1, progress=False)
    assert len(videos) == 9 + 2 + 6
    rows = EpochOrder(len(videos), 5, seed=0).rows(3)
    again = pickle.loads(pickle.dumps(videos))
    assert torch.equal(videos.batch(rows)["frames"], again.batch(rows)["frames"])
    assert fingerprint(videos)["rows"] == 17


def test_the_stride_is_a_clip_and_clips_are_mirrored_only_if_asked(folder):
    plain = VideoFolder(folder, num_frames=3, progress=False)
    flipped = VideoFolder(folder, num_frames=3, flip=True, progress=False)
    assert len(plain) == 4 + 2 + 3
    assert len(flipped) == 2 * len(plain)
    rows = torch.arange(len(plain))
    straight = plain.batch(rows)["frames"]
    assert torch.equal(flipped.batch(rows)["frames"], straight)
    mirrored = flipped.batch(rows + len(plain))["frames"]
    assert torch.equal(mirrored, straight.flip(3))
    assert not torch.equal(mirrored, straight.flip(2))  # upside down would be another thing


@NEEDS_AV
def test_a_mixture_is_brought_to_one_size_and_decoded_once(tmp_path, monkeypatch):
    video = smooth_video(8)
    np.save(tmp_path / "a.npy", video)
    write(tmp_path / "b.mp4", video)
    write_images(tmp_path / "c", video[:6])
    np.save(tmp_path / "d.npy", np.zeros((4, 16, 16, 3), np.uint8))
    videos = VideoFolder(tmp_path, num_frames=6, size=16, progress=False)
    frames = videos.batch(torch.arange(len(videos)))["frames"].numpy().astype(int)
    wanted = np.stack([crop_and_resize(frame, 16) for frame in video[:6]])
    np.testing.assert_array_equal(frames[0], wanted)
    assert 0 < np.abs(frames[2] - wanted).mean() < 6
    np.testing.assert_array_equal(frames[4], wanted)
    assert len(list((tmp_path / ".cache").iterdir())) == 3

    def refuse(*_, **__):
        raise AssertionError("decoded again")

    real = module.read_frames
    monkeypatch.setattr(module, "read_frames", refuse)
    assert len(VideoFolder(tmp_path, num_frames=6, size=16, progress=False)) == len(videos)
    write_images(tmp_path / "e", video[:7])  # a newcomer is decoded, and nothing else is
    monkeypatch.setattr(
        module, "read_frames", lambda path, size: real(path, size=size) if path.name == "e" else refuse()
    )
    assert len(VideoFolder(tmp_path, num_frames=6, size=16, progress=False)) == len(videos) + 2
    (tmp_path / "b.mp4").unlink()
    write(tmp_path / "b.mp4", video[::-1])  # a changed file must not be served from the old copy
    with pytest.raises(AssertionError, match="decoded again"):
        VideoFolder(tmp_path, num_frames=6, size=16, progress=False)


def test_an_interrupted_decoding_leaves_no_half(tmp_path, monkeypatch):
    write_images(tmp_path / "a", smooth_video(6))

    def interrupted(*_, **__):
        yield smooth_video(1)[0]
        raise KeyboardInterrupt

    real = module.read_frames
    monkeypatch.setattr(module, "read_frames", interrupted)
    with pytest.raises(KeyboardInterrupt):
        VideoFolder(tmp_path, num_frames=2, progress=False, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(module, "read_frames", real)
    assert len(VideoFolder(tmp_path, num_frames=2, progress=False, cache_dir=tmp_path / "cache")) == 3


def refused(folder, **settings):
    with pytest.raises(DataError) as caught:
        VideoFolder(folder, **{"num_frames": 4, "progress": False, **settings})
    return str(caught.value)


def test_bad_folders(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    assert refused(empty).endswith("folders of .png, .jpg, .jpeg files.")
    assert "'b.npy'" not in refused(folder, min_frames=6)
    assert "b.npy' has 5 frames, 6 are needed" in refused(folder, min_frames=6)
    np.save(folder / "d.npy", np.zeros((6, 10, 8, 3), np.uint8))
    assert "folder: has frames of 8x8x3 in " in (said := refused(folder))
    assert "and 10x8x3" in said
    assert "size=..." in said
    np.save(folder / "d.npy", np.zeros((6, 8, 8, 1), np.uint8))
    assert "Store all in colour" in refused(folder)
    np.save(folder / "d.npy", np.zeros((6, 8, 8, 3)))
    assert "folder: " in (said := refused(folder))
    assert "d.npy' holds float64" in said
    np.save(folder / "d.npy", np.zeros((6, 8, 8), np.uint8))
    assert "d.npy' has shape (6, 8, 8)" in refused(folder)


def test_bad_numbers(folder):
    assert refused(folder, num_frames=0).startswith("num_frames: is 0")
    assert refused(folder, stride=0).startswith("stride: is 0")
    assert refused(folder, size=0).startswith("size: is 0")
    assert refused(folder, size=2.5).startswith("size: is 2.5")
    videos = VideoFolder(folder, num_frames=4, progress=False)
    with pytest.raises(DataError, match="row: is 99"):
        videos.batch(torch.tensor([99]))


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV")
def test_a_damaged_file_is_named(folder):
    (folder / "d.mp4").write_bytes(b"nothing" * 100)
    assert "d.mp4' cannot be read" in refused(folder)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    write_images(tmp_path / "a", smooth_video(6))
    (tmp_path / "file").touch()
    assert "cache_dir: " in refused(tmp_path, cache_dir=tmp_path / "file")
