"""The command's usage and errors: one line that names the argument, its value and the fix, before any work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from flexgen import __version__
from flexgen.cli import compose, files, parameters, render
from flexgen.cli.main import COMMANDS, main
from flexgen.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("a,b\n" + "1,x\n2,y\n" * 10)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("model/model.safetensors").write_text("")
    Path("begun/checkpoints").mkdir(parents=True)
    Path("begun/train.yaml").write_text("seed: 0")
    Path("taken.csv").write_text("a\n1\n")
    Path("foreign").mkdir()
    Path("foreign/joint.csv").write_text("a\n1\n")


def test_usage(capsys):
    assert main([]) == 2
    assert "usage: flexgen <command>" in capsys.readouterr().err
    assert main(["--help"]) == main(["-h"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flexgen {__version__}\n"


def test_help_of_a_command(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: flexgen train" in out
    assert "*  power_cardinality" in out
    assert "seed       0" in out


def test_usage_and_errors_of_overrides_load_neither_torch_nor_pandas():
    code = """
import sys
from flexgen.cli.main import main
assert main(["--help"]) == 0 and main(["train", "--help"]) == 0
assert not {"torch", "pandas", "hydra"} & set(sys.modules)
assert main(["train", "training.num_step=5"]) == 2
assert main(["sample", "model=nowhere", "output=x.csv"]) == 2
assert main(["impute", "model=nowhere", "output=x.txt", "input=y.csv"]) == 2
assert main(["train", "data=iris", "output=x", "--config"]) == 0
assert not {"torch", "pandas", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_config_is_printed_with_overrides_and_gaps(capsys):
    assert main(["train", "--config", "law=mae", "law.rate=0.5", "training.lr=1e-4", "kinds.a b (c)=integer"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["law"] == {"_target_": "samplers.laws.mae", "rate": 0.5}
    assert config["output"] == config["data"]["path"] == "???"
    assert config["training"]["lr"] == 1e-4
    assert config["kinds"] == {"a b (c)": "integer"}


@pytest.mark.parametrize(
    "path",
    ["a.csv", "a b.csv", "a(1).csv", "~/a.csv", "a=b.csv", "it's.csv", 'a"b.csv', "a,b.csv", "[a].csv", "{a}.csv"],
)
def test_paths_need_no_quotes(path, capsys):
    assert main(["train", "--config", f"data.path={path}"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["path"] == path


def test_given_takes_any_column_and_plain_values(capsys):
    words = ["given.a.b (cm)=5.5", "given.kind=setosa", 'given.code="5"', "given.flag=true", "given.n=3"]
    assert main(["sample", "--config", *words]) == 0
    given = yaml.safe_load(capsys.readouterr().out)["given"]
    assert given == {"a.b (cm)": 5.5, "kind": "setosa", "code": "5", "flag": True, "n": 3}


TRAIN = ["train", "data.path=table.csv", "output=out"]
SAMPLE = ["sample", "model=model", "output=rows.csv"]
IMPUTE = ["impute", "model=model", "input=table.csv", "output=filled.csv"]

ERRORS = {
    "unknown command": (
        ["fit"],
        "fit: command: is 'fit'. Choose one of demo, train, impute, sample, diagnose, video, render.",
    ),
    "unknown flag": ([*TRAIN, "--fast"], "train: flag: is '--fast'. Write options as key=value"),
    "unknown flag before a command": (["--fast", "train"], "train: flag: is '--fast'."),
    "no key=value": ([*TRAIN, "fast"], "train: override: is 'fast'. Write key=value."),
    "a key that cannot be one": ([*TRAIN, "a b=1"], "train: override: is 'a b=1'. Write key=value, the key without"),
    "missing keys": (["train"], "train: data.path, output: not given. Add data.path=... output=... to the command."),
    "missing model": (["sample", "output=x.csv"], "sample: model: not given. Add model=... to the command."),
    "unknown option": ([*TRAIN, "law=bart"], "train: law: has no option 'bart'. Choose one of any_order, bernoulli,"),
    "unknown option of model": (
        [*TRAIN, "model=big"],
        "train: model: has no option 'big'. Choose one of exact, frame_unet_1m,",
    ),
    "unknown key": ([*TRAIN, "sed=3"], "train: sed: is no key of flexgen train. Did you mean seed?"),
    "unknown deep key": (
        [*TRAIN, "training.num_step=3"],
        "training.num_step: is no key of flexgen train. Did you mean tr",
    ),
    "a group of another command": ([*TRAIN, "sampler=chain"], "train: sampler: is no key of flexgen train."),
    "a key of another command": ([*IMPUTE, "given.a=1"], "impute: given.a: is no key of flexgen impute."),
    "keys of another target": (
        [*TRAIN, "law={rate: 1}"],
        "train: law: has no such keys. Set law._target_=..., and add",
    ),
    "added key": (
        [*TRAIN, "+law.share=3"],
        "train: law: cannot be built: power_cardinality() got an unexpected keyword",
    ),
    "added top key": ([*TRAIN, "+seeds=3"], "train: seeds: is no key here. Choose among output, kinds, seed,"),
    "added settings key": (
        [*TRAIN, "+model.size=3"],
        "train: model.size: is no key here. Choose among model.num_networks,",
    ),
    "deleted key": ([*TRAIN, "~seed=0"], "train: seed: is left out. Add seed=... to the command."),
    "type: int": ([*TRAIN, "seed=one"], "train: seed: is 'one'. Pass a whole number."),
    "type: fraction": ([*SAMPLE, "num_rows=1.5"], "sample: num_rows: is 1.5. Pass a whole number."),
    "type: bool": ([*SAMPLE, "overwrite=1"], "sample: overwrite: is 1. Pass true or false."),
    "type: optional bool": ([*SAMPLE, "progress=maybe"], "sample: progress: is 'maybe'. Pass true or false."),
    "type: float": ([*TRAIN, "training.lr=fast"], "train: training.lr: is 'fast'. Pass a number."),
    "type: list": ([*TRAIN, "model.classes=4"], "train: model.classes: is 4. Pass a list."),
    "type: item": ([*TRAIN, "model.classes=[4,x]"], "train: model.classes[1]: is 'x'. Pass a whole number."),
    "type: dict": ([*TRAIN, "kinds=real"], "train: kinds: is 'real'. Pass key: value pairs."),
    "type: path": ([*TRAIN, "output=true"], "train: output: is True. Pass a path."),
    "choice": ([*TRAIN, "training.optimizer=sgd"], "train: training.optimizer: is 'sgd'. Choose one of adamw, muon."),
    "range": ([*TRAIN, "training.num_steps=0"], "train: training.num_steps: is 0. Pass at least 1."),
    "range of the training": ([*TRAIN, "training.lr=-1"], "train: training.lr: is -1.0. Pass a number above 0."),
    "range of the law": ([*TRAIN, "law.power=100"], "train: law.power: is 100. Pass a number between -16 and 16."),
    "no data file": (
        ["train", "data.path=no.csv", "output=out"],
        "train: data.path: 'no.csv' is no file. Pass a .csv,",
    ),
    "suffix of data": (
        ["train", "data.path=model/config.json", "output=out"],
        "data.path: 'model/config.json' ends in '.json'.",
    ),
    "output is there": (
        ["train", "data=iris", "output=model"],
        "train: output: 'model' is there already. Name another, or",
    ),
    "output is begun": (
        ["train", "data=iris", "output=begun"],
        "output: 'begun' holds a training that is not finished. Go on",
    ),
    "output is a file": (
        ["train", "data=iris", "output=taken.csv", "overwrite=true"],
        "output: 'taken.csv' is a file.",
    ),
    "output below a file": (["train", "data=iris", "output=taken.csv/x"], "which is a file. Name another folder."),
    "resume and overwrite": (
        [*TRAIN, "resume=true", "overwrite=true"],
        "train: resume: is true together with overwrite.",
    ),
    "resume another's": (
        [*TRAIN[:2], "output=begun", "resume=true", "seed=1"],
        "train: seed: is 1, but the training in 'begun'",
    ),
    "table is there": (
        [*SAMPLE[:2], "output=taken.csv"],
        "sample: output: 'taken.csv' is there already. Name another, or",
    ),
    "demo is there": (["demo", "output=model"], "demo: output: 'model' is there already. Name another, or"),
    "demo beside foreign files": (
        ["demo", "data=iris", "output=foreign", "overwrite=true"],
        "demo: output: 'foreign' holds 'joint.csv', which is not of flexgen's making",
    ),
    "training beside foreign files": (
        ["train", "data=iris", "output=model", "overwrite=true"],
        "train: output: 'model' holds 'config.json', which is not of flexgen's making",
    ),
    "type in a demo": (["demo", "sampler.chains=x"], "demo: sampler.chains: is 'x'. Pass a whole number."),
    "suffix of output": (
        [*SAMPLE[:2], "output=rows.xlsx"],
        "sample: output: 'rows.xlsx' ends in '.xlsx'. Name a .csv,",
    ),
    "no model": (
        ["sample", "model=nowhere", "output=x.csv"],
        "sample: model: 'nowhere' holds no model. Pass a folder that",
    ),
    "model not finished": (
        ["sample", "model=begun", "output=x.csv"],
        "'begun' holds a training that is not finished. Go on",
    ),
    "damaged model": (SAMPLE, "sample: model: model/config.json is damaged"),
    "no input": (
        ["impute", "model=model", "input=no.csv", "output=x.csv"],
        "impute: input: 'no.csv' is no file. Pass a .csv,",
    ),
    "method": ([*IMPUTE, "method=median"], "impute: method: is 'median'. Choose one of mean, mode, draw."),
    "draws of a mean": ([*IMPUTE, "num_draws=3"], "impute: num_draws: is 3 with method=mean. Pass 1, or method=draw."),
    "batch size": ([*IMPUTE, "batch_size=0"], "impute: batch_size: is 0. Pass at least 1."),
    "rows": ([*SAMPLE, "num_rows=-1"], "sample: num_rows: is -1. Pass at least 0."),
    "sweeps without a scan": ([*SAMPLE, "sampler.num_sweeps=3"], "sample: sampler.num_sweeps: is 3 without a scan."),
    "scan without sweeps": (
        [*SAMPLE, "sampler=gibbs_random", "sampler.num_sweeps=0"],
        "sampler.num_sweeps: is 0. Pass at",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line_and_nothing_is_written(name, capsys):
    arguments, text = ERRORS[name]
    before = sorted(Path.cwd().rglob("*"))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("flexgen ")
    assert text in captured.err
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_mapping_is_not_replaced_by_an_option_of_a_group_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "configs/sampler").mkdir(parents=True)
    (tmp_path / "configs/toy.yaml").write_text("sampler:\n  draws: 3\n")
    monkeypatch.setattr(compose, "config_dir", lambda: tmp_path / "configs")
    monkeypatch.setattr("flexgen.cli.help.config_dir", compose.config_dir)
    assert compose.load_config("toy", ["sampler.draws=4"]).sampler.draws == 4
    with pytest.raises(ConfigError, match=r"sampler: is 'chain'\. Set sampler\.<key>=value; sampler is no group of"):
        compose.load_config("toy", ["sampler=chain"])


def test_traceback_on_request():
    with pytest.raises(ConfigError, match="seed: is 'one'"):
        main([*TRAIN, "seed=one", "--traceback"])


def test_a_folder_that_may_not_be_written_is_refused(monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(DataError, match=r"output: 'a/b/c\.csv' cannot be written\. Name a folder"):
        files.require_free(Path("a/b/c.csv"), argument="output", overwrite=False)


def test_a_clip_or_pose_that_is_not_of_this_rendering_is_left_alone():
    path, poses = Path("poses-00000.npy"), np.zeros((3, 3))
    render._save(path, poses)
    render._save(path, poses)  # left by a call that was killed before its clip
    with pytest.raises(DataError, match=r"output: 'poses-00000\.npy' is there already, and is not of this call's"):
        render._save(path, poses + 1)
    path.replace("elsewhere.npy")
    path.symlink_to("elsewhere.npy")
    with pytest.raises(DataError, match="is there already"):
        render._save(path, poses)
    assert np.array_equal(np.load(path), poses)


def test_parquet_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"output: 'a\.parquet' needs pyarrow\. Install flexgen-samplers\[parquet\]"):
        files.require_table(Path("a.parquet"), argument="output")


@pytest.mark.parametrize("content", ["", 'a,b\n1,"2\n', "\x00\x81\xfe"])
def test_files_that_hold_no_table_are_refused(content):
    Path("odd.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"input: 'odd\.csv' cannot be read: .*\. Check the file\."):
        files.read_input(Path("odd.csv"), argument="input")


def test_whole_floats_are_whole_numbers():
    assert parameters.convert(1e4, int, "num_rows") == 10000
    assert parameters.convert("~/x", Path, "output") == Path.home() / "x"
    assert parameters.convert([1, 2], tuple[float, ...], "ridges") == (1.0, 2.0)
