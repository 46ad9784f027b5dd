"""Long videos through the pipeline, by a network with random weights: all but what the frames look like."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flexgen import saving
from flexgen.errors import CheckpointError, ConfigError, DataError, FlexgenError, PlanError
from flexgen.networks.frame_unet import FrameUNet
from flexgen.video.backbone import VideoBackbone
from flexgen.video.given import given_frames
from flexgen.video.process import NoiseProcess, PixelScale
from flexgen.video_pipeline import VideoPipeline
from samplers import frames

ROOT = Path(__file__).parents[1]
SIDE, WINDOW, NUM_FRAMES = 8, 6, 23


def backbone(seed: int = 0) -> VideoBackbone:
    torch.manual_seed(seed)
    network = FrameUNet(SIDE, channels=(8, 16), attention_levels=("frames", "joint"), num_heads=2)
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    return VideoBackbone(network, NoiseProcess(), PixelScale(), window=WINDOW)


@pytest.fixture(scope="module")
def pipe() -> VideoPipeline:
    return VideoPipeline(backbone())


def observed(num: int = 4, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, SIDE, SIDE, 3), np.uint8)


def test_observed_frames_come_back_bit_for_bit_wherever_they_are(pipe: VideoPipeline) -> None:
    given, places = observed(), [22, 0, 9, 10]
    out = pipe(given, observed_index=places, num_frames=NUM_FRAMES, num_inference_steps=2, generator=0)
    assert np.array_equal(out.frames[places], given)
    assert out.frames.shape == (NUM_FRAMES, SIDE, SIDE, 3)
    rest = np.delete(out.frames, places, axis=0)
    assert (rest.reshape(len(rest), -1).std(1) > 0).all()
    assert out.folder is None


PLANS = ["autoregressive", "long-range", "hierarchy-2", "tree", "adaptive-autoregressive", "adaptive-hierarchy-2"]


@pytest.mark.parametrize("plan", PLANS)
def test_every_named_plan_fills_the_video_and_says_what_it_cost(pipe: VideoPipeline, plan: str) -> None:
    seen: list[int] = []

    def count(_step: int, values: Tensor) -> None:
        seen.append(values.shape[0] * values.shape[1])

    out = pipe(
        observed(), num_frames=NUM_FRAMES, plan=plan, num_inference_steps=3, generator=0, callback_on_step_end=count
    )
    assert out.plan.name == plan
    assert out.plan.num_generated == NUM_FRAMES - 4
    contexts = sum(len(window.observed) for window in out.plan.windows)
    assert out.frame_evaluations == pytest.approx((sum(seen) + contexts) / (NUM_FRAMES - 4))


def test_nothing_observed(pipe: VideoPipeline) -> None:
    out = pipe(num_frames=10, num_inference_steps=2, generator=0)
    assert out.plan.observed == ()
    assert len(out.frames) == 10


def test_a_seed_is_a_video_and_another_another(pipe: VideoPipeline) -> None:
    first, again, other = (
        pipe(observed(), num_frames=12, num_inference_steps=2, generator=seed).frames for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_other_observed_frames_make_other_videos(pipe: VideoPipeline) -> None:
    one, two = (pipe(observed(seed=seed), num_frames=12, num_inference_steps=2, generator=3).frames for seed in (1, 2))
    assert not np.array_equal(one[4:], two[4:])


def test_underscores_do_as_well(pipe: VideoPipeline) -> None:
    about = {"num_frames": 40, "observed_index": range(4)}
    assert pipe.plan("long_range", **about) == frames.long_range(40, 4, WINDOW)
    assert pipe.plan("hierarchy", **about) == frames.hierarchical(40, 4, WINDOW)
    assert pipe.plan("adaptive_hierarchy-3", **about) == frames.adaptive_hierarchical(40, 4, WINDOW, 3)


def test_a_plan_that_looks_sees_what_is_there_and_is_told_what_it_came_to(pipe: VideoPipeline, tmp_path: Path) -> None:
    compared = []

    def distance(one: Tensor, other: Tensor) -> Tensor:
        compared.append((one.dtype, tuple(one.shape[1:])))
        return (one.float() - other.float()).flatten(1).norm(dim=1)

    how = {"num_frames": NUM_FRAMES, "num_inference_steps": 2, "generator": 0}
    given = observed()
    given[2] = given[3]  # seen already: the newest frame is as good
    out = pipe(given, **how, plan="adaptive-autoregressive", distance=distance, output_dir=tmp_path)
    assert set(compared) == {(torch.uint8, (SIDE, SIDE, 3))}
    assert out.plan == frames.Plan.from_json((tmp_path / "plan.json").read_text())
    one_less = frames.adaptive_autoregressive(NUM_FRAMES, 4, 5, num_targets=2, distance=distance)
    chosen = pipe(given, **how, plan=one_less).plan
    assert chosen.windows[0].observed == (0, 1, 3)

    before, last = np.array(out.frames), len(out.plan.windows) - 1
    again = pipe.resample(tmp_path, window=last)
    assert again.plan == out.plan
    changed = {int(frame) for frame in (again.frames != before).any((1, 2, 3)).nonzero()[0]}
    assert changed == set(out.plan.windows[last].target)
    with pytest.raises(CheckpointError, match="made for another request: plan is another"):
        pipe(given, **how, plan="adaptive-autoregressive", output_dir=tmp_path)


def test_a_killed_call_of_a_plan_that_looks(pipe: VideoPipeline, tmp_path: Path) -> None:
    how = {"num_frames": NUM_FRAMES, "num_inference_steps": 2, "generator": 5, "plan": "adaptive-hierarchy-2"}
    whole = pipe(observed(), **how)
    steps = 0

    def kill(_step: int, _values: Tensor) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise Killed

    with pytest.raises(Killed):
        pipe(observed(), **how, output_dir=tmp_path, callback_on_step_end=kill)
    with pytest.raises(CheckpointError, match=r"output_dir: .* is not finished"):
        pipe.resample(tmp_path, window=0, draw=0)
    out = pipe(observed(), **how, output_dir=tmp_path)
    assert out.plan == whole.plan
    assert np.array_equal(out.frames, whole.frames)


class Killed(BaseException):
    """As a kill: nothing catches it."""


def test_a_killed_call_goes_on_to_the_same_video(pipe: VideoPipeline, tmp_path: Path) -> None:
    how = {"num_frames": NUM_FRAMES, "num_inference_steps": 2, "generator": 5}
    whole = pipe(observed(), **how).frames
    steps = 0

    def kill(_step: int, _values: Tensor) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise Killed

    with pytest.raises(Killed):
        pipe(observed(), **how, output_dir=tmp_path, callback_on_step_end=kill)
    before = steps
    out = pipe(observed(), **how, output_dir=tmp_path, callback_on_step_end=lambda *_: None)
    assert np.array_equal(out.frames, whole)
    assert before == 5
    assert out.contact_sheet == tmp_path / "contact_sheet.png"
    assert out.contact_sheet.is_file()


TWO = """
import sys, torch
from flexgen import VideoPipeline
torch.set_num_threads(1)
pipe = VideoPipeline.from_pretrained(sys.argv[1])
pipe(sys.argv[2], num_frames=23, num_inference_steps=2, generator=5, output_dir=sys.argv[3], output_type="mp4")
"""


def test_two_processes_make_the_same_video(pipe: VideoPipeline, tmp_path: Path) -> None:
    pytest.importorskip("av")
    pipe.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "given.npy", observed())
    (tmp_path / "two.py").write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [tmp_path / "two.py", tmp_path / "model", tmp_path / "given.npy", tmp_path / "out"]
    subprocess.run(
        [*launch, *map(str, words)], check=True, timeout=300, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}
    )
    alone = pipe(observed(), num_frames=23, num_inference_steps=2, generator=5).frames
    assert np.array_equal(np.load(tmp_path / "out" / "frames" / "frames.npy"), alone)
    assert (tmp_path / "out" / "video.mp4").stat().st_size > 1000


def test_a_finished_call_is_not_made_again(pipe: VideoPipeline, tmp_path: Path) -> None:
    def refuse(_step: int, _values: Tensor) -> None:
        raise AssertionError("a window was drawn again")

    how = {"num_frames": 12, "num_inference_steps": 2, "generator": 5, "output_dir": tmp_path}
    first = np.array(pipe(observed(), **how).frames)
    again = pipe(observed(), **how, callback_on_step_end=refuse)
    assert np.array_equal(again.frames, first)


def test_a_folder_of_another_call_is_refused(pipe: VideoPipeline, tmp_path: Path) -> None:
    how = {"num_frames": 12, "output_dir": tmp_path}
    pipe(observed(), **how, num_inference_steps=2, generator=5)
    told = r"output_dir: .*num_inference_steps was 2 and is now 3. .*overwrite=True makes the video anew"
    with pytest.raises(CheckpointError, match=told):
        pipe(observed(), **how, num_inference_steps=3, generator=5)
    with pytest.raises(CheckpointError, match="seed"):
        pipe(observed(), **how, num_inference_steps=2, generator=6)
    with pytest.raises(CheckpointError, match="backbone"):
        VideoPipeline(backbone(seed=9))(observed(), **how, num_inference_steps=2, generator=5)


def test_a_refused_call_leaves_the_folder_as_it_was(pipe: VideoPipeline, tmp_path: Path) -> None:
    how = {"num_frames": 12, "num_inference_steps": 2, "generator": 5, "output_dir": tmp_path}
    pipe(observed(), **how)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="plan is another"):
        pipe(observed(), **how, plan="autoregressive")
    with pytest.raises(CheckpointError, match="the observed frames are others"):
        pipe(observed(seed=2), **how)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for change, text in {"window": 99, "draw": -1, "fps": 0, "batch_size": 0}.items():
        with pytest.raises(FlexgenError, match=f"{change}: is {text}"):
            pipe.resample(tmp_path, **{"window": 0, change: text})
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"output_dir: .*plan.json' cannot be read"):
        pipe.resample(tmp_path, window=0)
    pipe(observed(), **how)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_video_made_anew_leaves_all_else(pipe: VideoPipeline, tmp_path: Path) -> None:
    how = {"num_frames": 12, "num_inference_steps": 2, "output_dir": tmp_path}
    first = np.array(pipe(observed(), **how, generator=5).frames)
    again = np.array(pipe(observed(), **how, generator=6, overwrite=True).frames)
    assert not np.array_equal(again, first)
    other = tmp_path / "other" / "frames"
    other.mkdir(parents=True)
    (other / "mine.png").touch()
    with pytest.raises(CheckpointError):
        pipe(observed(), num_frames=12, num_inference_steps=2, generator=6, output_dir=other.parent, overwrite=True)
    assert (other / "mine.png").exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["video.mp4", "plan.json", "contact_sheet.png", "frames/frames.npy", "frames/mine.png"]
)
def test_foreign_files_are_refused_before_anything_is_deleted(pipe: VideoPipeline, tmp_path: Path, name: str) -> None:
    how = {"num_frames": 12, "num_inference_steps": 2, "generator": 6}
    pipe(observed(), **how, output_dir=tmp_path / "there", output_type="np")
    for folder in (tmp_path / "there", tmp_path / "new"):
        saving.remove_files(folder, [name])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"precious")
    if name == "frames/frames.npy":
        (tmp_path / "there" / "frames" / "frames.json").unlink()  # else it is a store's, and damaged
    before = contents(tmp_path)
    for folder in (tmp_path / "there", tmp_path / "new"):
        with pytest.raises(CheckpointError, match=rf"output_dir: .*holds '{Path(name).name}'"):
            pipe(observed(), **how, output_dir=folder, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["video.mp4", "plan.json", "frames", "frames/frames.npy", "frames/frames.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_links_are_not_followed(pipe: VideoPipeline, tmp_path: Path, name: str, overwrite: bool) -> None:
    how = {"num_frames": 12, "num_inference_steps": 2, "generator": 6}
    folder = tmp_path / "video"
    pipe(observed(), **how, output_dir=folder)
    target = tmp_path / "precious"
    if (folder / name).exists():
        (folder / name).rename(target)
    else:
        target.write_text("precious")
    (folder / name).symlink_to(target)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=rf"output_dir: .*holds '{name}', a link, where flexgen writes its own"):
        pipe(observed(), **{**how, "generator": 7}, output_dir=folder, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_the_old_video(pipe: VideoPipeline, tmp_path: Path) -> None:
    how = {"num_frames": 40, "num_inference_steps": 1, "plan": "autoregressive", "output_dir": tmp_path}
    pipe(observed(), **how, generator=5)
    before, limit = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, text in ((4000, "no room for the video's 40 frames"), (9000, "contact_sheet.png' cannot be written")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(FlexgenError, match=rf"output_dir: .*{text}.*Make room"):
                pipe(observed(), **how, generator=6, overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        if "40 frames" in text:
            assert contents(tmp_path) == before
    assert pipe(observed(), **how, generator=6).contact_sheet.is_file()  # goes on


def test_a_video_of_an_earlier_version_goes_on(pipe: VideoPipeline, tmp_path: Path) -> None:
    """Without a manifest, and without a checksum of the sidecar."""
    how = {"num_frames": 12, "num_inference_steps": 2, "generator": 5, "output_dir": tmp_path}
    first = np.array(pipe(observed(), **how).frames)
    sidecar = tmp_path / "frames" / "frames.json"
    content = json.loads(sidecar.read_text())
    plain = {name: content[name] for name in content if name not in ("waiting", "sha256")}
    sidecar.write_text(json.dumps({**plain, "format": 1}))
    (tmp_path / saving.MANIFEST).unlink()
    assert np.array_equal(pipe(observed(), **how).frames, first)
    assert saving.saved_files(tmp_path) == {"plan.json", "contact_sheet.png"}


def test_one_window_drawn_again(pipe: VideoPipeline, tmp_path: Path) -> None:
    first = pipe(observed(), num_frames=NUM_FRAMES, num_inference_steps=2, generator=5, output_dir=tmp_path)
    before, last = np.array(first.frames), len(first.plan.windows) - 1
    again = pipe.resample(tmp_path, window=last)
    changed = {int(frame) for frame in (again.frames != before).any((1, 2, 3)).nonzero()[0]}
    assert changed == set(first.plan.windows[last].target)
    back = pipe.resample(tmp_path, window=last, draw=0)
    assert np.array_equal(back.frames, before)


def test_mp4_and_tensor(pipe: VideoPipeline, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from flexgen.data.video_files import read_frames

    out = pipe(
        observed(), num_frames=12, num_inference_steps=2, generator=0, output_dir=tmp_path, output_type="mp4", fps=5
    )
    assert out.video == tmp_path / "video.mp4"
    assert sum(1 for _ in read_frames(out.video)) == 12
    tensor = pipe(observed(), num_frames=12, num_inference_steps=2, generator=0, output_type="pt").frames
    assert torch.equal(tensor, torch.from_numpy(np.array(out.frames)))


def test_a_path_is_cropped_and_resized(pipe: VideoPipeline, tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3), np.uint8)
    np.save(tmp_path / "wide.npy", wide)
    out = pipe(tmp_path / "wide.npy", num_frames=8, num_inference_steps=2, generator=0)
    middle = wide[:, :, 2:18].reshape(3, SIDE, 2, SIDE, 2, 3).mean((2, 4))
    assert np.abs(out.frames[:3] - middle).max() <= 1


def test_some_frames_of_a_video(pipe: VideoPipeline, tmp_path: Path) -> None:
    given = observed(7)
    np.save(tmp_path / "given.npy", given)
    how = {"num_frames": 8, "num_inference_steps": 2, "generator": 0}
    expected = pipe(given[:3], **how).frames
    for source in (given, torch.from_numpy(given), tmp_path / "given.npy"):
        assert np.array_equal(pipe(source, num_observed=3, **how).frames, expected)
    ends = pipe(given, num_observed=2, observed_index=[0, 7], **how)
    assert ends.plan.observed == (0, 7)


def test_a_grey_video_is_coloured_and_a_coloured_one_greyed(tmp_path: Path) -> None:
    grey = observed()[..., :1]
    np.save(tmp_path / "grey.npy", grey)
    np.save(tmp_path / "coloured.npy", grey.repeat(3, -1))
    how = {"frame_shape": (SIDE, SIDE, 3), "num_frames": 9}
    assert np.array_equal(given_frames(tmp_path / "grey.npy", **how), grey.repeat(3, -1))
    how["frame_shape"] = (SIDE, SIDE, 1)
    assert np.array_equal(given_frames(tmp_path / "coloured.npy", **how), grey)


def test_arithmetic_and_device(pipe: VideoPipeline) -> None:
    how = {"num_frames": 8, "num_inference_steps": 2, "generator": 0}
    plain = pipe(observed(), **how).frames
    assert np.array_equal(pipe(observed(), **how, dtype="float32").frames, plain)
    assert np.array_equal(pipe(observed(), **how, dtype=torch.float32).frames, plain)
    half = pipe(observed(), **how, dtype="bfloat16").frames
    assert np.array_equal(pipe(observed(), **how, dtype=torch.bfloat16).frames, half)
    apart = np.abs(half[4:].astype(int) - plain[4:])
    assert apart.any()
    assert np.median(apart) < 20  # bytes; of unrelated frames 60 and more
    assert pipe.to("cpu") is pipe
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device: .*{wrong}"):
            pipe.to(wrong)


def test_a_folder_that_cannot_be_written(pipe: VideoPipeline, tmp_path: Path) -> None:
    how = {"num_frames": 8, "num_inference_steps": 2, "generator": 0}
    (tmp_path / "file").touch()
    cases = {
        "/proc/nowhere/out": "cannot be written",
        tmp_path / "file": "is a file",
        tmp_path / "file" / "out": "is below .* which is a file",
        3: "is 3",
    }
    for folder, text in cases.items():
        for overwrite in (False, True):
            with pytest.raises(CheckpointError, match=f"output_dir: .*{text}"):
                pipe(observed(), **how, output_dir=folder, overwrite=overwrite)
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="output_dir: "):
            pipe.resample(folder, window=0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_saved_and_loaded(pipe: VideoPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = VideoPipeline.from_pretrained(tmp_path)
    how = {"num_frames": 8, "num_inference_steps": 2, "generator": 0}
    assert np.array_equal(pipe(observed(), **how).frames, again(observed(), **how).frames)
    assert repr(again) == repr(pipe)
    again.save_pretrained(tmp_path / "copy")
    config = (tmp_path / "copy" / "network" / "config.json").read_text()
    assert str(tmp_path) not in config  # nothing of the machine that it was read on


def test_wrong_arguments_are_named(pipe: VideoPipeline, tmp_path: Path) -> None:
    given = observed()
    cases = [
        (DataError, "observed_frames: are float64", {"observed_frames": given / 255.0}),
        (DataError, "observed_frames: are uint8 of shape", {"observed_frames": given[:, :4]}),
        (DataError, "observed_frames: .*nowhere.mp4' does not exist", {"observed_frames": tmp_path / "nowhere.mp4"}),
        (
            DataError,
            "observed_frames: are no array",
            {"observed_frames": torch.zeros(4, 8, 8, 3, dtype=torch.bfloat16)},
        ),
        (DataError, "observed_frames: are no array", {"observed_frames": [given[0], given[0, :4]]}),
        (DataError, "num_observed: is 0", {"num_observed": 0}),
        (DataError, "num_observed: is 5, but the video has 4", {"num_observed": 5}),
        (DataError, "num_observed: is 2, but no video is given", {"num_observed": 2, "observed_frames": None}),
        (DataError, "num_frames: is 3, but 4 frames are observed", {"num_frames": 3}),
        (DataError, "num_frames: is 0", {"num_frames": 0}),
        (DataError, "observed_index: names 2 places for 4", {"observed_index": [0, 1]}),
        (DataError, "observed_index: names a place twice", {"observed_index": [0, 1, 1, 2]}),
        (DataError, "observed_index: holds 99. Frames are numbered 0 to 11", {"observed_index": [0, 1, 2, 99]}),
        (DataError, r"observed_index: is \[0.5", {"observed_index": [0.5, 1, 2, 3]}),
        (DataError, "fps: is 0", {"output_type": "mp4", "output_dir": tmp_path / "mp4", "fps": 0}),
        (DataError, "num_frames: is 2.5", {"num_frames": 2.5}),
        (PlanError, "plan: is 'treee'. Choose one of tree, autoregressive", {"plan": "treee"}),
        (PlanError, "plan: is for other given frames .1-4.", {"plan": frames.tree(12, range(1, 5), WINDOW)}),
        (PlanError, "distance: is given to the plan 'hierarchy-2'", {"distance": "pixels"}),
        (PlanError, "distance: is 'ssim'", {"distance": "ssim", "plan": "adaptive-autoregressive"}),
        (PlanError, "plan: is a int", {"plan": 3}),
        (PlanError, "plan: is for 30 frames", {"plan": frames.tree(30, 4, WINDOW)}),
        (PlanError, "plan: has windows of 10 frames", {"plan": frames.tree(12, 4, 10)}),
        (ConfigError, "scheduler: is 'ddim'", {"scheduler": "ddim"}),
        (ConfigError, "num_inference_steps: is 0", {"num_inference_steps": 0}),
        (ConfigError, "output_type: is 'gif'", {"output_type": "gif"}),
        (ConfigError, "output_dir: is None", {"output_type": "mp4"}),
        (ConfigError, "num_inference_steps: is True", {"num_inference_steps": True}),
        (ConfigError, "cached: is 'no'", {"cached": "no"}),
        (ConfigError, "callback_on_step_end: is 3", {"callback_on_step_end": 3}),
        (ConfigError, r"dtype: is \[1\]", {"dtype": [1]}),
        (ConfigError, "dtype: is torch.int8", {"dtype": torch.int8}),
        (ConfigError, "batch_size: is 0", {"batch_size": 0}),
        (ConfigError, "generator: is -1", {"generator": -1}),
        (FlexgenError, "generator: is 'seven'", {"generator": "seven"}),
        (ConfigError, "history_guidance: is nan", {"history_guidance": float("nan")}),
        (ConfigError, "observed_noise: is 'much'", {"observed_noise": "much"}),
        (ConfigError, "generator: is None", {"output_dir": tmp_path, "generator": None}),
        (ConfigError, "history_guidance: is -1", {"history_guidance": -1}),
    ]
    for kind, text, change in cases:
        arguments = {"observed_frames": given, "num_frames": 12, "num_inference_steps": 2, "generator": 0, **change}
        with pytest.raises(kind, match=text):
            pipe(**arguments)
    assert not list(tmp_path.iterdir())
