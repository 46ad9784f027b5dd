"""Commands under torchrun, two real processes: what they leave is what one process leaves, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import flexgen as fg
from flexgen.cli.main import main

CHILD = Path(__file__).with_name("two_processes.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TINY = ["training.small_steps=3", "model.num_networks=3", "model.small_width=8", "model.small_depth=1"]
TINY += ["model.restarts=1", "model.classes=[2]", "model.ridges=[0.1]"]
TRAIN = ["train", "data.path=table.csv", *TINY]
SAMPLE, IMPUTE = ["sample", "model=model", "num_rows=100", "batch_size=16"], ["impute", "model=model", "input=gaps.csv"]

# Name -> words. Both runs make all of them, in this order.
COMMANDS = {
    "train": [*TRAIN, "output=model"],
    "again": [*TRAIN, "output=model"],  # refused
    "sample": [*SAMPLE, "output=rows.csv"],
    "draws": [*IMPUTE, "output=draws.csv", "method=draw", "num_draws=2", "batch_size=8"],
    "misspelt": ["train", "data.path=table.csv", "outptu=model"],
    "no file": ["impute", "model=model", "input=nowhere.csv", "output=filled.csv"],
}
MORE = {
    "gibbs": [*SAMPLE, "output=gibbs.csv", "sampler=gibbs_permutation", "sampler.num_sweeps=2"],
    "given": [*SAMPLE, "output=given.parquet", "given.target=setosa", "num_rows=5"],
    "none": [*SAMPLE, "output=none.csv", "num_rows=0"],
    "mean": [*IMPUTE, "output=mean.csv"],
    "diagnose": ["diagnose", "model=model", "input=gaps.csv", "output=report.html", "budget=40"],
    "no score": [*TRAIN, "output=second", "law=uniform_cardinality", "model.ridges=[-1e9]"],
    "another": [*TRAIN, "output=second"],
}


def run_both(folder: Path, commands: list[list[str]], *, timeout: float = 300) -> tuple[list[list], list[list]]:
    """What the first and the second process said to each command: exit code, standard output, standard error."""
    (folder / "commands.json").write_text(json.dumps(commands))
    launcher = subprocess.Popen([*TORCHRUN, str(CHILD), "commands.json"], cwd=folder, env=ENVIRONMENT)
    try:
        assert launcher.wait(timeout) == 0
    finally:
        launcher.terminate()  # it ends its workers, too
        launcher.wait(60)
    first, second = (json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1))
    return first, second


def prepare(folder: Path) -> None:
    df = fg.data.load_table("iris").iloc[::4]
    df.to_csv(folder / "table.csv", index=False)
    df.mask(np.random.default_rng(0).random(df.shape) < 0.3).to_csv(folder / "gaps.csv", index=False)


def require_same(one: Path, two: Path, commands: dict[str, list[str]], said: list[list], capsys) -> None:
    """One process says and leaves what two do."""
    for (name, words), (code, *texts) in zip(commands.items(), said, strict=True):
        assert main(words) == code, (name, texts)
        out, err = capsys.readouterr()
        if name not in ("train", "another", "diagnose"):  # which say how long they took
            assert [out, err] == texts, name
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert files == {path.relative_to(two) for path in two.rglob("*") if path.is_file()} - {
        Path(name) for name in ("commands.json", "said-0.json", "said-1.json")
    }
    for file in files - {Path("report.html")}:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_two_processes_leave_what_one_leaves(tmp_path, monkeypatch, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        prepare(folder)
    first, second = run_both(two, [*COMMANDS.values(), ["fail", "0"], ["fail", "1"]])
    # An error that one process meets reaches the other, wherever it is.
    assert first[-2:] == second[-2:] == [[2, "disk: is full. Buy another.\n", ""]] * 2
    # Both end with the same code, and the first speaks for both.
    assert [code for code, *_ in first] == [code for code, *_ in second]
    assert {(out, err) for _, out, err in second[:-2]} == {("", "")}
    assert first[1][2].startswith("flexgen train: output: 'model' is there already")
    monkeypatch.chdir(one)
    require_same(one, two, COMMANDS, first[:-2], capsys)
    assert pd.read_csv(two / "rows.csv").shape == (100, 5)


@pytest.mark.slow
def test_every_command(tmp_path, monkeypatch, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        prepare(folder)
    commands = {**COMMANDS, **MORE}
    first, second = run_both(two, list(commands.values()))
    assert [code for code, *_ in first] == [code for code, *_ in second]
    assert {(out, err) for _, out, err in second} == {("", "")}
    monkeypatch.chdir(one)
    require_same(one, two, commands, first, capsys)
    said = dict(zip(commands, first, strict=True))
    assert said["no score"][0] == 2
    assert said["another"][0] == 0  # into the folder of the training that failed
    assert "report.html" in said["diagnose"][1]


@pytest.mark.slow
def test_videos_and_the_demo(tmp_path, monkeypatch):
    pytest.importorskip("av")
    video = ["video", "model=mazes32", "observed=mazes32/held_out.mp4", "num_observed=12", "num_frames=30"]
    sampler = ["sampler.chains=40", "sampler.draws=8", "sampler.warmup=1", "sampler.picture_every=4"]
    commands = {
        "video": [*video, "num_inference_steps=1", "output=video"],
        "again": [*video, "num_inference_steps=2", "output=video"],  # another video is there
        "demo": ["demo", "data=iris", "output=demo", "num_orders=2", *TINY, *sampler],
    }
    first, second = run_both(tmp_path, list(commands.values()), timeout=900)
    assert [code for code, *_ in first] == [code for code, *_ in second] == [0, 2, 0]
    assert {(out, err) for _, out, err in second} == {("", "")}
    one = tmp_path / "one"
    one.mkdir()
    monkeypatch.chdir(one)
    for words in commands.values():
        main(words)
    for file in ("video/frames/frames.npy", "demo/joint.csv", "demo/model/model.safetensors"):
        assert (one / file).read_bytes() == (tmp_path / file).read_bytes(), file


@pytest.mark.slow
def test_a_job_that_fails_ends_soon(tmp_path):
    prepare(tmp_path)
    (tmp_path / "model").write_text("a file")
    began = time.monotonic()
    done = subprocess.run(
        [*TORCHRUN, "-m", "flexgen.cli.main", *TRAIN, "output=model"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("flexgen train: output: 'model' is a file. Name a folder.") == 1
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_training_begun_by_two_is_finished_by_one(tmp_path, monkeypatch):
    """Ctrl-C to the launcher; the networks' checkpoints are of no number of processes."""
    prepare(tmp_path)
    words = [*TRAIN, "training.small_steps=400", "progress=false"]
    launch = [*TORCHRUN, "-m", "flexgen.cli.main", *words, "output=model"]
    child = subprocess.Popen(launch, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "model" / "checkpoints").exists() and child.poll() is None:
        time.sleep(0.2)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=90)[1]
    monkeypatch.chdir(tmp_path)
    if not (tmp_path / "model" / "config.json").exists():
        assert "Go on with: flexgen train" in said
        assert main([*words, "output=model", "resume=true"]) == 0
    assert main([*words, "output=whole"]) == 0
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "model" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
