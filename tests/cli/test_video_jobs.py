"""flexgen train and flexgen video, from a folder of clips to an mp4, with a network too small to learn anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from flexgen.cli.compose import build, load_config
from flexgen.cli.main import main
from samplers import frames

SIDE = 8
SMALL = [
    "data=videos",
    "data.num_frames=12",
    "law=fdm",
    "law.window=4",
    "model=frame_unet_1m",
    "model.window=4",
    "model.network.channels=[8,16]",
    "model.network.attention_levels=[frames,joint]",
    "model.network.num_heads=2",
    "training=video",
    "training.num_steps=3",
    "training.batch_size=2",
    "training.validate_every=1",
    "training.amp=null",
    "progress=false",
]


def clips(folder: Path, num: int, seed: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(seed)
    for clip in range(num):
        np.save(folder / f"clip-{clip}.npy", random.integers(0, 256, (12, SIDE, SIDE, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    train, held_out = clips(root / "train", 3, 0), clips(root / "held_out", 2, 1)
    data = [f"data.folder={train}", f"data.held_out={held_out}"]
    assert main(["train", *SMALL, *data, f"output={root / 'model'}"]) == 0
    return root


def test_training_leaves_a_backbone_and_its_log(trained: Path) -> None:
    model = trained / "model"
    about = json.loads((model / "backbone.json").read_text())
    assert about["window"] == 4
    assert about["trained_on"]["steps"] == 3
    steps = [json.loads(line)["step"] for line in (model / "training.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert not (model / "checkpoints").exists()


def test_training_goes_on_from_a_backbone(trained: Path, tmp_path: Path) -> None:
    more = [f"data.folder={trained / 'train'}", f"output={tmp_path}", f"training.start_from={trained / 'model'}"]
    assert main(["train", *SMALL, *more, "model.network.attention=full"]) == 0  # which no weight depends on
    assert json.loads((tmp_path / "network" / "config.json").read_text())["attention"] == "full"
    begun_from = json.loads((tmp_path / "backbone.json").read_text())["trained_on"]["begun_from"]
    assert begun_from["steps"] == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("model.prediction=epsilon", "prediction: is NoiseProcess(prediction='epsilon'"),
        ("model.network.channels=[8,32]", "network.channels: is [8, 32], but start_from has"),
        ("training.start_from=nowhere", "training.start_from: 'nowhere' holds no backbone.json"),
    ],
)
def test_another_network_is_no_beginning(
    change: str, text: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"data.folder={trained / 'train'}", f"output={tmp_path}", f"training.start_from={trained / 'model'}"]
    assert main(["train", *SMALL, *more, change]) == 2
    assert text in capsys.readouterr().err


def test_a_video_of_the_backbone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    command = ["video", f"model={trained / 'model'}", f"observed={trained / 'held_out' / 'clip-0.npy'}"]
    command += ["num_observed=3", "num_frames=9", "num_inference_steps=2", "progress=false", f"output={tmp_path / 'a'}"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "hierarchy-2: 6 frames" in shown
    assert "frame evaluations per generated frame" in shown
    made = np.load(tmp_path / "a" / "frames" / "frames.npy")
    assert made.shape == (9, SIDE, SIDE, 3)
    assert np.array_equal(made[:3], np.load(trained / "held_out" / "clip-0.npy")[:3])
    for name in ("video.mp4", "contact_sheet.png", "plan.json"):
        assert (tmp_path / "a" / name).is_file()

    # Half of it, and the same command again: the same frames; another seed needs overwrite=true.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert main([*command[:-1], f"output={tmp_path / 'b'}"]) == 0
    assert main([*command, "seed=1"]) == 2
    told = capsys.readouterr().err
    assert "output: " in told
    assert "seed was 0 and is now 1" in told
    assert "overwrite=true makes the video anew" in told
    assert main([*command, "seed=1", "overwrite=true"]) == 0
    assert not np.array_equal(np.load(tmp_path / "a" / "frames" / "frames.npy"), made)


def test_options_reach_the_pipeline(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    from flexgen.video_pipeline import VideoPipeline

    calls = []
    call, to = VideoPipeline.__call__, VideoPipeline.to
    monkeypatch.setattr(VideoPipeline, "to", lambda self, device: calls.append(device) or to(self, device))
    monkeypatch.setattr(VideoPipeline, "__call__", lambda self, *a, **how: calls.append(how) or call(self, *a, **how))
    command = ["video", f"model={trained / 'model'}", f"observed={trained / 'held_out' / 'clip-0.npy'}"]
    command += ["num_observed=3", "num_frames=9", "num_inference_steps=2", "progress=false", f"output={tmp_path / 'a'}"]
    options = ["device=cpu", "dtype=bfloat16", "cached=false", "observed_noise=0.1", "plan=adaptive_hierarchy"]
    assert main([*command, *options]) == 0
    device, how = calls
    assert device == "cpu"
    assert (how["dtype"], how["cached"], how["observed_noise"]) == ("bfloat16", False, 0.1)
    assert "adaptive-hierarchy-2: 6 frames" in capsys.readouterr().out
    request = json.loads((tmp_path / "a" / "frames" / "frames.json").read_text())["request"]
    assert request["arithmetic"] == "bfloat16"
    assert request["cached"] is False
    assert json.loads((tmp_path / "a" / "plan.json").read_text())["name"] == "adaptive-hierarchy-2"


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("hierarchy", "hierarchy-2"),
        ("hierarchy-3", "hierarchy-3"),
        ("adaptive-hierarchy_4", "adaptive-hierarchy-4"),
        ("long_range", "long-range"),
        ("adaptive_autoregressive", "adaptive-autoregressive"),
    ],
)
def test_plans_have_the_names_that_python_knows(told: str, name: str) -> None:
    plan = load_config("video", [f"plan={told}"], complete=False).plan
    built = build({**plan, "num_frames": 60, "observed": [0, 1], "window": 8}, at="plan")
    assert built.name == name
    assert built == frames.by_name(name, 60, [0, 1], 8)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["model=nowhere"], "model: 'nowhere' holds no backbone.json"),
        (["observed=nowhere.mp4"], "observed: 'nowhere.mp4' does not exist"),
        (["num_observed=99"], "num_observed: is 99, but the video has 12"),
        (["observed_index=[0,1]"], "observed_index: names 2 places for 3"),
        (["plan=treee"], "plan: has no option 'treee'"),
        (["scheduler=ddim"], "scheduler: is 'ddim'"),
        (["num_frames=2"], "num_frames: is 2, but 3 frames are observed"),
        (["observed=null"], "num_observed: is 3"),
        (["num_observed=0"], "num_observed: is 0"),
        (["num_frames=-3"], "num_frames: is -3"),
        (["num_inference_steps=0"], "num_inference_steps: is 0"),
        (["seed=-1"], "seed: is -1"),
        (["device=gpu"], "device: is 'gpu', which is no device"),
        (["device=cuda:99"], "device: 'cuda:99' cannot be used here"),
        (["dtype=int8"], "dtype: is 'int8'. Choose one of float32, bfloat16, float16"),
        (["cached=maybe"], "cached: is 'maybe'"),
        (["observed_noise=2"], "observed_noise: is 2"),
        (["observed_index=[0,1,1]"], "observed_index: names a place twice: 1"),
        (["observed_index=[0,1,9]"], "observed_index: holds 9. Frames are numbered 0 to 8"),
        (["plan=hierarchy-1"], "plan: has no option 'hierarchy-1'"),
        (["plan=hierarchy-99999999999"], "plan.levels: is 99999999999 for 9 frames. Pass 2 to 5"),
        (["plan=null"], "plan: is null. Choose one of adaptive-autoregressive"),
        (["plan._target_=samplers.frames.pixel_distance"], "plan: cannot be built: "),
        (["fps=99999999999"], "fps: is 99999999999. Pass at most 1000."),
        (["num_inference_steps=99999999999"], "memory: Unable to allocate"),
        (["model=" + "x" * 5000], "cannot be looked for: File name too long"),
        (["plan=adaptive-hierarchy-2", "plan.distance=ssim"], "plan.distance: is 'ssim'. Choose 'pixels' or 'lpips'"),
        (["output=/proc/nowhere/out"], "output: '/proc/nowhere/out/frames' cannot be written"),
    ],
)
def test_wrong_keys_are_named(
    change: list[str], text: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["video", f"model={trained / 'model'}", f"observed={trained / 'held_out' / 'clip-0.npy'}"]
    command += ["num_observed=3", "num_frames=9", f"output={tmp_path / 'out'}", *change]
    assert main(command) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out" / "frames").exists()


def test_a_key_that_no_network_has_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", *SMALL, f"data.folder={trained / 'train'}", f"output={tmp_path / 'out'}"]
    assert main([*command, "+model.network.chanels=[8,16]"]) == 2
    told = capsys.readouterr().err
    assert "model.network.chanels: is no key of FrameUNet. Did you mean 'channels'? Choose among sample_size," in told
    assert main([*command, "+model.network.sample_size=16"]) == 2
    assert "network.sample_size: is 16, but the data have 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("model.network.channels=8", "model.network.channels: is 8. Pass a list."),
        ("model.network.channels=[a]", "model.network.channels[0]: is 'a'. Pass a whole number."),
        ("model.network.channels=[[8]]", "model.network.channels[0]: is [8]. Pass a whole number."),
        ("model.network.channels=[1e30]", "model.network.channels[0]: is 1e+30. Pass a whole number."),
        ("model.network.channels=[-8,16]", "channels: holds -8. Pass widths of at least 1."),
        ("model.network.num_heads=nan", "model.network.num_heads: is nan. Pass a whole number."),
        ("model.network=null", "model.network: is None. Pass key: value pairs."),
        ("training.start_from=" + "x" * 5000, "training.start_from: '"),
        ("training.start_from=[a]", "training.start_from: is ['a']. Pass a path."),
        ("training.batch_size=99999999999999", "memory: "),
        ("law._target_=samplers.frames.tree", "law: cannot be built: "),
        ("data=null", "data: is null. Choose one of"),
    ],
)
def test_sizes_that_no_network_has_are_named(
    change: str, text: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *SMALL, f"data.folder={trained / 'train'}", f"output={tmp_path / 'out'}"]
    assert main([*command, change]) == 2
    assert text in capsys.readouterr().err


def test_a_model_for_tables_is_refused_for_videos(trained: Path, tmp_path: Path, capsys) -> None:
    command = ["train", "data=videos", f"data.folder={trained / 'train'}", "law=fdm", f"output={tmp_path / 'out'}"]
    assert main(command) == 2
    assert "model." in capsys.readouterr().err
    assert main([*command, "model=frame_unet_1m"]) == 2
    assert "training." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
