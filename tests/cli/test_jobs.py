"""The commands end to end, on a small file with gaps."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from pandas.testing import assert_frame_equal

import flexgen as fg
from flexgen import saving
from flexgen.cli.files import read_input, write_table
from flexgen.cli.main import main
from flexgen.cli.train_video import LOG
from flexgen.cli.training_folder import MODEL_FILES, TrainingFolder
from flexgen.compatibility import Report
from flexgen.data.tables import load_table, read_table
from flexgen.errors import CheckpointError, DataError
from flexgen.saving import MANIFEST
from flexgen.tables.checkpoint import TABLE_FILES
from flexgen.tables.network import TableLikelihood
from flexgen.training import Checkpoint, write_checkpoint
from flexgen.video.backbone import BACKBONE_FILES

TINY = ["model=small", "model.small_width=16", "model.classes=[2]", "training=quick", "training.small_steps=12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """gaps.csv, and the model that was trained on it."""
    folder = tmp_path_factory.mktemp("jobs")
    df = load_table("iris")
    df = df.mask(np.random.default_rng(0).random(df.shape) < 0.15)
    df["count"] = np.arange(len(df)) % 7
    df.to_csv(folder / "gaps.csv", index=False)
    assert main(["train", f"data.path={folder / 'gaps.csv'}", f"output={folder / 'model'}", *TINY]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_train_leaves_a_model_its_configuration_and_no_checkpoints(capsys):
    left = {"config.json", "model.safetensors", "train.yaml", MANIFEST}
    assert {path.name for path in Path("model").iterdir()} == left
    words = ["train", "data.path=gaps.csv", "output=exact", "model=exact", "model.classes=[2]"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fitted 150 rows of 6 columns in ")
    assert lines[1].startswith("held-out log-likelihood, nats an entry: gaussian, ridge 0.001 -")
    assert lines[2].startswith("weights: gaussian ")
    assert lines[3:] == ["saved to exact"]
    assert main(words) == 2
    assert "output: 'exact' is there already. Name another, or add overwrite=true." in capsys.readouterr().err
    assert main([*words, "resume=true"]) == 0
    assert capsys.readouterr().out == "exact is finished already; train it anew with overwrite=true\n"
    before = Path("exact/model.safetensors").read_bytes()
    assert main([*words, "overwrite=true"]) == 0
    assert Path("exact/model.safetensors").read_bytes() == before


def test_the_recorded_configuration_trains_the_same_model():
    """Every value of train.yaml given by hand, over other groups."""
    words = [
        *TINY[1:3],
        "model=small",
        "training=adamw",
        "training.optimizer=muon",
        "training.num_steps=300",
        "training.small_steps=12",
    ]
    assert main(["train", "data.path=gaps.csv", "output=again", *words, "training.ema_decay=0.98"]) == 0
    assert Path("again/model.safetensors").read_bytes() == Path("model/model.safetensors").read_bytes()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_impute_fills_gaps_and_nothing_else(suffix, capsys):
    gaps = pd.read_csv("gaps.csv")
    source = Path(f"source.{suffix}")
    if suffix == "parquet":
        gaps.to_parquet(source)
    else:
        gaps.to_csv(source, index=False, sep="\t" if suffix == "tsv" else ",")
    words = ["impute", "model=model", f"input={source}", f"output=new/filled.{suffix}"]
    assert main(words) == 0
    count, rows = int(gaps.isna().sum().sum()), int(gaps.isna().any(axis=1).sum())
    assert capsys.readouterr().out == f"filled {count} entries in {rows} of 150 rows; saved to new/filled.{suffix}\n"
    filled = read_table(f"new/filled.{suffix}")
    assert list(filled) == list(gaps)
    assert filled.notna().all(axis=None)
    assert_frame_equal(filled.where(gaps.notna()), gaps, check_dtype=False)
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "overwrite=true"]) == 0
    shutil.rmtree("new")


def test_draws_are_numbered_and_follow_the_seed():
    words = ["impute", "model=model", "input=gaps.csv", "method=draw", "num_draws=3"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main([*words, f"output={name}.csv", f"seed={seed}", "batch_size=37"]) == 0
    a, b, c = (pd.read_csv(f"{name}.csv") for name in "abc")
    assert list(a)[:2] == ["draw", "row"]
    assert a["draw"].value_counts().to_dict() == {0: 150, 1: 150, 2: 150}
    assert a.equals(b)
    assert not a.equals(c)


@pytest.mark.parametrize(
    ("sampler", "how"),
    [
        ("chain", "the chain rule"),
        ("gibbs_permutation", "2 Gibbs sweep(s), RandomPermutation()"),
        ("gibbs_random", "2 Gibbs sweep(s), RandomSite()"),
        ("gibbs_systematic", "2 Gibbs sweep(s), Systematic(order=None)"),
    ],
)
def test_sample(sampler, how, capsys):
    sweeps = [] if sampler == "chain" else ["sampler.num_sweeps=2"]
    words = ["sample", "model=model", "num_rows=40", f"sampler={sampler}", *sweeps]
    given = ["given.target=virginica", "given.petal width (cm)=1.8"]
    assert main([*words, f"output={sampler}.csv", *given]) == 0
    assert capsys.readouterr().out == f"drew 40 rows by {how}; saved to {sampler}.csv\n"
    rows = pd.read_csv(f"{sampler}.csv")
    assert list(rows) == list(pd.read_csv("gaps.csv"))
    assert rows.shape == (40, 6)
    assert rows.notna().all(axis=None)
    assert set(rows["target"]) == {"virginica"}
    assert set(rows["petal width (cm)"]) == {1.8}
    assert rows["count"].between(0, 6).all()


def test_samples_follow_the_seed():
    for name, more in (("x", ["seed=1"]), ("y", ["seed=1", "batch_size=7"]), ("z", ["seed=2"])):
        assert main(["sample", "model=model", "num_rows=20", f"output={name}.parquet", *more]) == 0
    x, y, z = (pd.read_parquet(f"{name}.parquet") for name in "xyz")
    assert_frame_equal(x, y)
    assert not x.equals(z)


def test_a_value_that_the_model_never_saw_is_refused(capsys):
    assert main(["sample", "model=model", "output=never.csv", "given.target=rose"]) == 2
    assert "holds the level 'rose'" in capsys.readouterr().err
    assert not Path("never.csv").exists()


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(monkeypatch, capsys):
    words = ["train", "data.path=gaps.csv", "output=stopped", *TINY]
    calls, loss = [], TableLikelihood.__call__

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return loss(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TableLikelihood, "__call__", interrupted)
        assert main([*words, "overwrite=true"]) == 130
    assert f"interrupted. Go on with: flexgen {' '.join(words[:3])}" in capsys.readouterr().err.replace("'", "")
    assert len(list(Path("stopped/checkpoints").rglob("step-*"))) == 1

    assert main(words) == 2
    assert "holds a training that is not finished. Go on with resume=true" in capsys.readouterr().err
    assert main([*words, "resume=true", "law=mae"]) == 2
    error = capsys.readouterr().err
    assert "law._target_: is 'samplers.laws.mae', but the training in 'stopped' began with 'samplers.laws.pow" in error
    assert main([*words, "resume=true"]) == 0
    # To the bit the model of an uninterrupted training.
    assert Path("stopped/model.safetensors").read_bytes() == Path("model/model.safetensors").read_bytes()
    assert not Path("stopped/checkpoints").exists()


def test_overwriting_replaces_what_is_ours_and_leaves_the_rest():
    Path("mixed/checkpoints/mazes32").mkdir(parents=True)
    foreign = [Path("mixed") / name for name in ("notes.txt", "checkpoints/mazes32/backbone.json", "video.mp4")]
    for path in foreign:
        path.write_text("precious")
    words = ["train", "data.path=gaps.csv", "output=mixed", "model=exact", "model.classes=[2]"]
    assert main(words) == 2  # is there already
    assert main([*words, "overwrite=true"]) == 0
    steps = write_checkpoint("mixed/checkpoints/network-0", Checkpoint(5, {"network": {}}, {}))
    assert main([*words, "seed=1", "overwrite=true"]) == 0  # else refused: checkpoints of another training
    assert not steps.parent.exists()
    assert {path.read_text() for path in foreign} == {"precious"}
    assert main([*words, "seed=1", "resume=true"]) == 0  # is finished


def test_the_command_knows_the_files_of_models():
    assert (*TABLE_FILES, *BACKBONE_FILES, LOG) == MODEL_FILES


TAKEN = ["config.json", "model.safetensors", "train.yaml", "network/config.json", "training.jsonl"]


@pytest.mark.parametrize("name", [*TAKEN, "network", "checkpoints", MANIFEST])
def test_what_is_not_ours_is_never_overwritten(name, tmp_path, monkeypatch, capsys):
    source = Path("gaps.csv").absolute()
    monkeypatch.chdir(tmp_path)
    path = Path("taken") / name
    path.parent.mkdir(parents=True)
    path.write_text('{"precious": 1}')
    words = ["train", f"data.path={source}", "output=taken", "model=exact", "model.classes=[2]", "overwrite=true"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "output: 'taken" in told
    assert name.split("/")[0] in told
    assert {file: file.read_text() for file in Path("taken").rglob("*") if file.is_file()} == {path: '{"precious": 1}'}


@pytest.mark.parametrize("name", ["config.json", "train.yaml", "checkpoints", ".flexgen-saving", MANIFEST])
def test_links_in_an_output_folder_are_not_followed(name, tmp_path, monkeypatch, capsys):
    source = Path("gaps.csv").absolute()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source.parent / "model", "model")
    target = Path("precious")
    if name in ("checkpoints", ".flexgen-saving"):
        write_checkpoint(target, Checkpoint(5, {"network": {}}, {}))
    else:
        (Path("model") / name).replace(target)
    (Path("model") / name).symlink_to(target.absolute())
    before = {file: file.read_bytes() for file in Path.cwd().rglob("*") if file.is_file()}
    words = ["train", f"data.path={source}", "output=model", "model=exact", "model.classes=[2]", "overwrite=true"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"holds '{name}', a link, where flexgen writes its own. Remove the link" in told
    assert {file: file.read_bytes() for file in Path.cwd().rglob("*") if file.is_file()} == before


def test_a_model_of_an_earlier_version_may_be_overwritten(tmp_path, capsys):
    folder = shutil.copytree("model", tmp_path / "earlier")
    (folder / MANIFEST).unlink()
    words = ["train", "data.path=gaps.csv", f"output={folder}", "model=exact", "model.classes=[2]", "overwrite=true"]
    assert main(words) == 2  # its config says that there was a manifest
    assert "holds 'config.json', which is not of flexgen's making" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "flexgen_format": 1, "model_sha256": "0" * 64}))
    assert main(words) == 0


def test_a_training_killed_while_its_files_move_is_finished(tmp_path, capsys):
    words = ["train", "data.path=gaps.csv", f"output={tmp_path / 'm'}", "model=exact", "model.classes=[2]"]
    assert main(words) == 0
    for names in (["train.yaml", "config.json"], ["config.json", "model.safetensors"]):
        staged = tmp_path / "m" / ".flexgen-saving" / saving._Manifest.of(tmp_path / "m", "output").name
        staged.mkdir(parents=True)
        for name in names:
            (tmp_path / "m" / name).replace(staged / name)
        assert main(["sample", f"model={tmp_path / 'm'}", "num_rows=3", f"output={tmp_path / names[0]}.csv"]) == 0
        capsys.readouterr()
        assert main([*words, "resume=true"]) == 0
        assert "is finished already" in capsys.readouterr().out
        assert not staged.exists()


def test_a_full_disk_is_told_and_leaves_the_old_files(tmp_path, capsys):
    table = shutil.copy("gaps.csv", tmp_path / "rows.csv")
    folder = shutil.copytree("model", tmp_path / "model")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for words, size in (
        (["impute", f"model={folder}", f"input={table}", f"output={table}"], 100),
        (["sample", f"model={folder}", "num_rows=9", f"output={table}"], 100),
        (["diagnose", f"model={folder}", f"input={table}", f"output={tmp_path / 'a.html'}", "budget=100"], 100),
        (["train", f"data.path={table}", f"output={folder}", "model=exact", "model.classes=[2]"], 100),
        (["train", f"data.path={table}", f"output={tmp_path / 'new'}", "model=exact", "model.classes=[2]"], 2000),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            code = main([*words, "overwrite=true"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        told = capsys.readouterr().err
        assert code == 2, told
        assert "cannot be written: File too large. Make room there" in told
        found = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        assert {file: found[file] for file in before} == before
        new = {str(file.relative_to(tmp_path)) for file in found.keys() - before.keys()}
        assert new <= {"new/train.yaml", f"new/{MANIFEST}"}


def test_checkpoints_stay_where_the_folder_cannot_be_written(tmp_path, monkeypatch):
    folder = TrainingFolder(tmp_path / "model", finished_by="config.json")
    write_checkpoint(folder.checkpoints, Checkpoint(3, {"network": {"a": torch.zeros(2)}}, {}))

    def full(*_args, **_options):
        raise CheckpointError("output", "cannot be written", "Make room there.")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "update_folder", full)
        with pytest.raises(CheckpointError):
            folder.begin(OmegaConf.create({"seed": 0}), overwrite=True)
    assert list(folder.checkpoints.glob("step-*"))
    folder.begin(OmegaConf.create({"seed": 0}), overwrite=True)
    assert not list(folder.checkpoints.glob("step-*"))


def test_diagnose_prints_a_report_and_leaves_a_page(capsys):
    words = [
        "diagnose",
        "model=model",
        "input=gaps.csv",
        "output=out/page.html",
        "budget=800",
        'sites=["petal length (cm)",target,count]',
    ]
    assert main([*words, "dry_run=true"]) == 0
    assert "would take at most" in capsys.readouterr().out
    assert not Path("out").exists()
    assert main([*words, "save=out/report.safetensors", "margin=0.5"]) == 0
    out = capsys.readouterr().out
    assert "rectangle gap" in out
    assert out.endswith("saved to out/page.html and out/report.safetensors\n")
    assert 'name="viewport"' in Path("out/page.html").read_text(encoding="utf-8")
    report = Report.load("out/report.safetensors")
    assert report.margin == 0.5
    assert repr(report) in out
    assert main(words) == 2
    assert "output: 'out/page.html' is there already" in capsys.readouterr().err
    for word, problem in (
        ("output=page.pdf", "output: is 'page.pdf', which does not end in .html"),
        ("save=report.json", "save: is 'report.json', which does not end in .safetensors"),
        ("budget=soon", "budget: is 'soon'"),
        ("sites=[nope,target]", "sites: names 'nope'"),
        ("model=nowhere", "model: 'nowhere' holds no model"),
    ):
        assert main([*words, "output=other.html", word]) == 2
        assert problem in capsys.readouterr().err
    assert not Path("other.html").exists()


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_texts_that_a_spreadsheet_would_run_are_quoted_on_request(tmp_path, suffix):
    texts = ["=1+1", "+a", "-b", "@c", "-1.5", "+2", "plain", "a=b", "", None, '=x,"y"']
    df = pd.DataFrame({"=name": texts, "number": np.arange(len(texts)) - 5.0, "kind": pd.Categorical(texts)})
    before, path = df.copy(), tmp_path / f"table.{suffix}"
    sep = "," if suffix == "csv" else "\t"
    write_table(df, path, spreadsheet_safe=True)
    pd.testing.assert_frame_equal(df, before)
    read = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False)
    expected = ["'=1+1", "'+a", "'-b", "'@c", "-1.5", "+2", "plain", "a=b", "", "", '\'=x,"y"']
    assert list(read.columns) == ["'=name", "number", "kind"]
    assert list(read["'=name"]) == list(read["kind"]) == expected
    assert float(read["number"][0]) == -5.0
    write_table(df, path)
    assert pd.read_csv(path, sep=sep)["=name"][0] == "=1+1"  # not asked for


def test_commands_that_write_tables_take_the_request():
    df = read_table("gaps.csv").head(2).assign(note=["=cmd()", "-"])
    df.to_csv("notes.csv", index=False)
    assert main(["impute", "model=model", "input=notes.csv", "output=safe.csv", "spreadsheet_safe=true"]) == 0
    assert list(pd.read_csv("safe.csv")["note"]) == ["'=cmd()", "'-"]
    assert main(["impute", "model=model", "input=notes.csv", "output=plain.csv"]) == 0
    assert list(pd.read_csv("plain.csv")["note"]) == ["=cmd()", "-"]
    assert main(["sample", "model=model", "output=rows_safe.csv", "num_rows=3", "spreadsheet_safe=true"]) == 0
    assert main(["sample", "model=model", "output=rows_plain.csv", "num_rows=3"]) == 0
    assert Path("rows_safe.csv").read_bytes() == Path("rows_plain.csv").read_bytes()


def test_levels_that_look_like_numbers_are_read_as_levels(tmp_path: Path) -> None:
    """``sex`` of the diabetes table has the levels "1" and "2"; a text file says 1 and 2, beside gaps 1.0 and 2.0."""
    df = fg.data.load_table("diabetes")[["age", "sex", "bmi"]][:60]
    model = fg.TableModel.fit(df, settings=fg.TableSettings(small_steps=10), progress=False)
    gaps = df.astype({"sex": object})
    gaps.loc[gaps.index[::7], "sex"] = None
    for written in (df, gaps):
        written.to_csv(tmp_path / "rows.csv", index=False)
        read = read_input(tmp_path / "rows.csv", argument="input", model=model)
        expected = model.schema.encode(written)
        torch.testing.assert_close(model.schema.encode(read), expected, equal_nan=True)
    unknown = df.assign(sex=3)
    unknown.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match=r"holds the level .*3.*Known levels are '1', '2'"):
        model.schema.encode(read_input(tmp_path / "rows.csv", argument="input", model=model))
