"""Data frames to tensors and back."""

import importlib.util
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from flexgen.data import TableSchema, load_table, table_names
from flexgen.data.tables import read_table
from flexgen.errors import DataError


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "mass": [1.5, np.nan, -2.25],
            "count": [3, 1, 2],
            "gaps": [1.0, np.nan, 4.0],
            "kind": ["b", None, "a"],
            "grade": pd.Categorical(["low", "high", None], ["low", "mid", "high"], ordered=True),
            "flag": [True, False, True],
        },
        index=[10, 20, 30],
    )


def test_kinds_come_from_dtypes(frame):
    schema = TableSchema.infer(frame)
    assert [c.kind for c in schema.columns] == ["real", "integer", "integer", *["categorical"] * 3]
    assert schema.space.num_categories == (0, 0, 0, 2, 3, 2)
    assert schema.space.names == tuple(frame.columns)


def test_kinds_can_be_given(frame):
    schema = TableSchema.infer(frame, {"count": "categorical", "gaps": "real"})
    assert [c.kind for c in schema.columns][1:3] == ["categorical", "real"]
    assert schema.columns[1].levels == (1, 2, 3)


def test_frames_survive_the_round_trip(frame):
    schema = TableSchema.infer(frame)
    x = schema.encode(frame)
    assert x.isnan().sum() == 4
    pd.testing.assert_frame_equal(schema.decode(x, frame.index), frame)
    full = frame.iloc[[0, 0]]
    pd.testing.assert_frame_equal(schema.decode(schema.encode(full), full.index), full)


def test_schema_survives_json(frame):
    schema = TableSchema.infer(frame)
    again = TableSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    pd.testing.assert_frame_equal(again.decode(again.encode(frame), frame.index), frame)


def test_columns_are_found_by_name(frame):
    schema = TableSchema.infer(frame)
    shuffled = frame[list(reversed(frame.columns))].assign(extra=0)
    np.testing.assert_equal(schema.encode(shuffled).numpy(), schema.encode(frame).numpy())


def test_a_mean_of_whole_numbers_stays_a_fraction(frame):
    schema = TableSchema.infer(frame[["count"]])
    x = schema.encode(frame[["count"]])
    assert schema.decode(x)["count"].dtype == "int64"
    assert schema.decode(x + 0.5)["count"].tolist() == [3.5, 1.5, 2.5]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda f: TableSchema.infer(f.to_numpy()), "df: is a ndarray. Pass a pandas.DataFrame"),
        (lambda f: TableSchema.infer(f.iloc[:0]), r"df: has shape \(0, 6\)"),
        (lambda f: TableSchema.infer(pd.concat([f, f], axis=1)), "df: names 'mass' twice"),
        (lambda f: TableSchema.infer(f, {"weight": "real"}), "kinds: names 'weight', which is no column"),
        (lambda f: TableSchema.infer(f, {"mass": "ordinal"}), "kinds: gives 'mass' the kind 'ordinal'"),
        (lambda f: TableSchema.infer(f, {"kind": "real"}), "kinds: says that 'kind' is real, but its dtype is"),
        (lambda f: TableSchema.infer(f, {"mass": "integer"}), "'mass' is integer, but it holds 1.5 in row 0. Round"),
        (lambda f: TableSchema.infer(f, "real"), "kinds: is 'real'. Pass a mapping, such as"),
        (lambda f: TableSchema.infer(f, {"knid": "real"}), "which is no column. Did you mean 'kind'. Columns are"),
        (lambda f: TableSchema.infer(f.assign(kind=[["a"], "b", None])), "'kind': holds a list in row 0, where a cell"),
        (lambda f: TableSchema.infer(f.assign(kind=["a", None, {}])), "'kind': holds a dict in row 2"),
        (lambda f: TableSchema.infer(f).encode(f.assign(kind=[["a"]] * 3)), "'kind': holds a list in row 0"),
        (lambda f: TableSchema.infer(f).encode(f.assign(kind="bb")), "'bb' in row 0, .* saw. Did you mean 'b'. Known"),
        (lambda f: TableSchema.infer(f).encode(f.rename(columns={"mass": "mas"})), "lacks .*'mass'. Did you mean 'mas"),
        (lambda f: TableSchema.infer(f).decode(torch.zeros(2, 3, 6)), r"x: has shape \(2, 3, 6\). Pass a tensor"),
        (lambda f: TableSchema.infer(f).decode(torch.zeros(6)), r"x: has shape \(6,\)"),
        (lambda f: TableSchema.infer(f).decode(np.zeros((2, 6))), "x: is a ndarray. Pass a tensor"),
        (lambda f: TableSchema.infer(f).decode(torch.full((2, 6), 9)), "x: holds the code 9 for 'kind' in row 0"),
        (lambda f: TableSchema.infer(f).decode(torch.zeros(2, 6), f.index), "index: names 3 rows, but x has 2"),
        (lambda f: TableSchema.infer(f.assign(mass=np.nan)), "column 'mass': is missing in every row"),
        (lambda f: TableSchema.infer(f.assign(mass=np.inf)), "column 'mass': holds inf in row 0"),
        (lambda f: TableSchema.infer(f.assign(day=pd.Timestamp(0))), "'day': has dtype datetime64.*days since"),
        (lambda f: TableSchema.infer(f).encode(f.drop(columns="kind")), r"df: lacks the column\(s\) 'kind'"),
        (lambda f: TableSchema.infer(f).encode(f.assign(kind="z")), "'kind': holds the level 'z' in row 0"),
        (lambda f: TableSchema.infer(f).encode(f.assign(count=0.5)), "column 'count': holds 0.5 in row 0"),
        (lambda f: TableSchema.infer(f).encode(f.assign(mass="heavy")), "column 'mass': has dtype .* knows it as real"),
        (lambda f: TableSchema.infer(f).position("weight"), "column: names 'weight', which is no column"),
        (lambda _: load_table("titanic"), "name: is 'titanic'. Choose one of 'breast_cancer'"),
        (lambda _: read_table("nowhere.csv"), "path: 'nowhere.csv' is no file"),
    ],
)  # fmt: skip
def test_bad_frames_are_refused_by_name(frame, build, text):
    with pytest.raises(DataError, match=text):
        build(frame)


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables_load_and_encode(name):
    frame = load_table(name)
    schema = TableSchema.infer(frame)
    pd.testing.assert_frame_equal(schema.decode(schema.encode(frame)), frame, check_dtype=name != "linnerud")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_are_read_from_files(tmp_path, suffix):
    path, frame = tmp_path / f"iris{suffix}", load_table("iris").astype({"target": str})
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(
        path, index=False, sep="\t" if suffix == ".tsv" else ","
    )
    pd.testing.assert_frame_equal(read_table(path), frame)
    with pytest.raises(DataError, match=r"path: ends in '\.txt'"):
        read_table(path.rename(tmp_path / "iris.txt"))


def test_text_that_mostly_occurs_once_is_refused_unless_declared():
    names = pd.DataFrame({"day": [f"2020-{i // 28 + 1:02}-{i % 28 + 1:02}" for i in range(200)], "x": range(200)})
    with pytest.raises(DataError, match=r"column 'day': has 200 levels in 200 values: a name, a date .* Drop it"):
        TableSchema.infer(names)
    assert TableSchema.infer(names, {"day": "categorical"}).space.num_categories == (200, 0)


def test_columns_are_dropped_on_reading(tmp_path):
    path = tmp_path / "iris.csv"
    load_table("iris").to_csv(path, index=False)
    assert list(read_table(path, drop=["target"])) == list(load_table("iris").columns[:4])
    with pytest.raises(DataError, match="drop: names 'day', which is no column"):
        read_table(path, drop=["day"])


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ";"), (".csv", "\t"), (".tsv", ",")])
def test_another_separator_is_named(tmp_path, suffix, separator):
    path = tmp_path / f"iris{suffix}"
    load_table("iris").to_csv(path, index=False, sep=separator)
    text = rf"path: .* has the one column .* separated by {re.escape(repr(separator))}. Read it with pandas.read_csv"
    with pytest.raises(DataError, match=text):
        read_table(path)
    load_table("iris")[["target"]].to_csv(path, index=False)
    assert list(read_table(path)) == ["target"]


def test_unknown_levels_can_be_read_as_missing(frame):
    schema = TableSchema.infer(frame)
    later = frame.assign(kind=["b", "new", "a"], grade=pd.Categorical(["low", "top", "mid"]), extra="kept")
    known = schema.without_unknown(later)
    assert known["kind"].isna().tolist() == [False, True, False]
    assert known["grade"].isna().tolist() == [False, True, False]
    pd.testing.assert_frame_equal(known.drop(columns=["kind", "grade"]), later.drop(columns=["kind", "grade"]))
    assert later["kind"].notna().all()


def test_a_table_file_without_its_reader_is_a_named_error(tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else find(name, *rest)
    )
    with pytest.raises(
        DataError, match=r"^path: '.*table\.parquet' needs pyarrow\. pip install 'flexgen-samplers\[parq"
    ):
        read_table(path)
