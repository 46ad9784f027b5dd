"""Bad and odd tables: refused by a text that names the argument, the value and the fix, or answered all the same."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from flexgen.errors import ConfigError, FlexgenError
from flexgen.table_model import TableModel
from flexgen.tables import TableSettings
from samplers import GibbsSampler, scans
from tests.tables.small import EXACT, NETWORK, mixed_table

N = 60
A = np.random.default_rng(0).normal(size=N)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return mixed_table(80)


@pytest.fixture(scope="module")
def model(frame: pd.DataFrame) -> TableModel:
    return TableModel.fit(frame, settings=EXACT, progress=False)


def fit(df: Any, **options: Any) -> TableModel:
    return TableModel.fit(df, **{"settings": EXACT, "progress": False, **options})


FITS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "an array": (lambda: np.zeros((20, 2)), {}, "df: is a ndarray. Pass a pandas.DataFrame, one row an item."),
    "no columns": (lambda: pd.DataFrame(index=range(20)), {}, "df: has shape (20, 0)"),
    "no rows": (lambda: pd.DataFrame({"a": []}), {}, "df: has shape (0, 1)"),
    "one row": (lambda: pd.DataFrame({"a": [1.5]}), {}, "df: has 1 row(s) with an entry. Pass at least 10."),
    "nine rows": (lambda: pd.DataFrame({"a": A[:9]}), {}, "df: has 9 row(s) with an entry. Pass at least 10."),
    "few rows with entries": (
        lambda: pd.DataFrame({"a": np.where(np.arange(N) < 9, A, np.nan)}), {}, "df: has 9 row(s) with an entry",
    ),
    "an empty column": (
        lambda: pd.DataFrame({"a": A, "b": np.nan}), {}, "column 'b': is missing in every row. Drop it",
    ),
    "twice the same name": (
        lambda: pd.DataFrame(np.c_[A, A], columns=["a", "a"]), {},
        "df: names 'a' twice. Give each column its own name.",
    ),
    "names that print alike": (lambda: pd.DataFrame({1: A, "1": A}), {}, "df: names '1' twice"),
    "an infinity": (
        lambda: pd.DataFrame({"a": np.r_[A[:-1], np.inf]}), {}, "column 'a': holds inf in row 59. Replace it",
    ),
    "dates": (
        lambda: pd.DataFrame({"a": A, "d": pd.date_range("2020-01-01", periods=N)}), {},
        "column 'd': has dtype datetime64",
    ),
    "complex numbers": (lambda: pd.DataFrame({"a": A + 1j}), {}, "column 'a': has dtype complex128"),
    "beyond float64": (lambda: pd.DataFrame({"a": 1e200 * A}), {}, "too far for float64. Rescale it."),
    "below float64": (lambda: pd.DataFrame({"a": 1e-200 * A}), {}, "too far for float64. Rescale it."),
    "kind of no column": (lambda: pd.DataFrame({"a": A}), {"kinds": {"b": "real"}}, "kinds: names 'b', which is no"),
    "no kind": (
        lambda: pd.DataFrame({"a": A}), {"kinds": {"a": "ordinal"}},
        "kinds: gives 'a' the kind 'ordinal'. Choose 'real', 'integer' or 'categorical'.",
    ),
    "fractions as whole numbers": (
        lambda: pd.DataFrame({"a": A}), {"kinds": {"a": "integer"}}, "kinds: says that 'a' is integer, but it holds",
    ),
    "kinds of no mapping": (lambda: pd.DataFrame({"a": A}), {"kinds": "real"}, "kinds: is 'real'. Pass a mapping"),
    "lists in cells": (
        lambda: pd.DataFrame({"a": A, "l": [[1, 2]] * N}), {},
        "column 'l': holds a list in row 0, where a cell holds one value. Spread it over several columns, or drop it.",
    ),
    "a word as seed": (lambda: pd.DataFrame({"a": A}), {"seed": "a"}, "seed: is 'a'. Pass a whole number, 0 or more."),
    "no seed": (lambda: pd.DataFrame({"a": A}), {"seed": None}, "seed: is None. Pass a whole number"),
    "a negative seed": (lambda: pd.DataFrame({"a": A}), {"seed": -1}, "seed: is -1. Pass at least 0."),
    "resuming from nowhere": (
        lambda: pd.DataFrame({"a": A}), {"resume": True},
        "resume: is True without checkpoint_dir. Pass the folder of the call to go on with.",
    ),
    "checkpoints in a file": (
        lambda: pd.DataFrame({"a": A}), {"checkpoint_dir": __file__}, "test_table_model_errors.py' is a file. Name a",
    ),
    "words as numbers": (
        lambda: pd.DataFrame({"a": ["x", "y"] * 10}), {"kinds": {"a": "real"}}, "kinds: says that 'a' is real, but",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_tables_that_cannot_be_fitted(name: str) -> None:
    make, options, text = FITS[name]
    with pytest.raises(FlexgenError, match=re.escape(text)):
        fit(make(), **options)


ODD: dict[str, Callable[[], pd.DataFrame]] = {
    "a constant number": lambda: pd.DataFrame({"a": A, "c": 3.0}),
    "a constant word": lambda: pd.DataFrame({"a": A, "c": "x"}),
    "all constant": lambda: pd.DataFrame({"a": [1.5] * 20, "b": [2] * 20}),
    "all constant words": lambda: pd.DataFrame({"a": ["u"] * 20, "b": ["v"] * 20}),
    "one entry": lambda: pd.DataFrame({"a": A, "b": np.r_[1.5, np.full(N - 1, np.nan)]}),
    "three entries": lambda: pd.DataFrame({"a": A, "b": np.r_[1.5, 2.5, 7.1, np.full(N - 3, np.nan)]}),
    "ten rows": lambda: pd.DataFrame({"a": A[:10], "b": A[:10] ** 2, "k": list("ababababab")}),
    "two levels": lambda: pd.DataFrame({"a": A, "b": np.where(A > 0, 1.0, -1.0)}),
    "words and numbers": lambda: pd.DataFrame({"a": A, "o": [1, "x", 2.5, None, True] * 12}),
    "large": lambda: pd.DataFrame({"a": 1e12 * A, "b": 1e12 + A}),
    "small": lambda: pd.DataFrame({"a": 1e-12 * A, "b": A}),
    "rounding noise": lambda: pd.DataFrame({"a": 1e6 + 1e-9 * A, "b": A}),
    "an outlier": lambda: pd.DataFrame({"a": np.r_[A[:-1], 1e9], "b": A}),
    "atoms side by side": lambda: pd.DataFrame({"a": np.resize([0.1, 0.7, 1.9, 5.3, 5.4], 40), "b": A[:40]}),
    "adjacent atoms in a wide column": lambda: pd.DataFrame(
        {"a": np.where(np.arange(N) % 3 == 0, 0.0, np.where(np.arange(N) % 3 == 1, 1.0, 1e6 * A)), "b": A}
    ),
    "twins": lambda: pd.DataFrame({"a": A, "b": A, "c": -A}),
    "many levels": lambda: pd.DataFrame({"a": A, "k": [f"level {i}" for i in range(N)]}),
    "unused levels": lambda: pd.DataFrame({"a": A, "k": pd.Categorical([None] * N, ["x", "y"])}),
    "numbers as names": lambda: pd.DataFrame(np.c_[A, A**2]),
    "nullable dtypes": lambda: pd.DataFrame(
        {
            "i": pd.array([1, None, 3] * 20, dtype="Int64"),
            "b": pd.array([True, None, False] * 20, dtype="boolean"),
            "s": pd.array(["u", None, "v"] * 20, dtype="string"),
            "f": A.astype("float32"),
        }
    ),
    "one column": lambda: pd.DataFrame({"k": ["x", "y", "z"] * 20}),
    "wide": lambda: pd.DataFrame(np.random.default_rng(1).normal(size=(20, 60))).rename(columns="c{}".format),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("settings", [EXACT, NETWORK], ids=["exact", "network"])
def test_odd_tables_are_answered(name: str, settings: TableSettings) -> None:
    df = ODD[name]()
    fitted = fit(df, settings=settings)
    gappy = df.mask(np.random.default_rng(2).random(df.shape) < 0.3)
    for method in ("mean", "mode", "draw"):
        filled = fitted.impute(gappy, method, generator=0)
        assert not filled.isna().any().any()
        assert list(filled.columns) == list(df.columns)
    rows = fitted.sample(20, generator=0)
    assert not rows.isna().any().any()
    assert np.isfinite(fitted.log_prob(rows)).all()
    assert np.isfinite(fitted.log_prob(df.head(5))).all()
    for described in fitted.marginals(gappy.head(8)).values():
        assert np.isfinite(described.to_numpy(float)).all()
    if name.startswith(("a constant", "all constant", "one entry")):
        constant = df.columns[-1]
        value = df[constant].dropna().iloc[0]
        assert (rows[constant] == value).all()
        assert (fitted.impute(gappy)[constant] == value).all()
        assert fitted.log_prob(df, [constant], observed=[]).dropna().abs().max() < 1e-6


CALLS: dict[str, tuple[Callable[[TableModel, pd.DataFrame], Any], str]] = {
    "an absent column": (lambda m, d: m.impute(d.drop(columns="few")), "df: lacks the column(s) 'few'. Add them"),
    "no frame": (lambda m, d: m.impute(d.to_numpy()), "df: is a ndarray"),
    "an unseen level": (
        lambda m, d: m.impute(d.assign(kind="z")),
        "column 'kind': holds the level 'z' in row 0, which the model never saw. Known levels are 'a', 'b'",
    ),
    "an infinity": (lambda m, d: m.impute(d.assign(real=np.inf)), "column 'real': holds inf in row 0"),
    "a fraction": (
        lambda m, d: m.impute(d.assign(whole=0.5)),
        "column 'whole': holds 0.5 in row 0, but the model knows it as whole",
    ),
    "words": (lambda m, d: m.impute(d.assign(real="x")), "column 'real': has dtype"),
    "no method": (lambda m, d: m.impute(d, "median"), "method: is 'median'. Choose 'mean', 'mode' or 'draw'."),
    "many means": (lambda m, d: m.impute(d, num_draws=3), "num_draws: is 3 with method 'mean'. Pass 1, or"),
    "no draws": (lambda m, d: m.impute(d, "draw", num_draws=0), "num_draws: is 0"),
    "no batch": (lambda m, d: m.impute(d.mask(d.notna()), batch_size=0), "batch_size: is 0. Pass at least 1."),
    "fewer than no rows": (lambda m, _: m.sample(-1), "num_rows: is -1. Pass at least 0."),
    "sweeps of no scan": (lambda m, _: m.sample(1, num_sweeps=2), "num_sweeps: is 2 with scan None"),
    "a scan of no sweeps": (lambda m, _: m.sample(1, scan=scans.random()), "num_sweeps: is 0 with scan"),
    "given no column": (lambda m, _: m.sample(1, given={"color": 1}), "given: names 'color', which is no column"),
    "given an unseen level": (lambda m, _: m.sample(1, given={"kind": "z"}), "given: holds the level 'z' for 'kind'"),
    "given a list": (lambda m, _: m.sample(1, given={"kind": ["a"]}), "given: holds a list for 'kind'. Pass one value"),
    "given a fraction": (lambda m, _: m.sample(1, given={"whole": 0.5}), "given: holds 0.5 for 'whole', but the model"),
    "given no mapping": (lambda m, _: m.sample(1, given=["kind"]), "given: is a list. Pass a mapping, such as"),
    "given a misspelt column": (
        lambda m, _: m.sample(1, given={"knd": "a"}),
        "given: names 'knd', which is no column. Did you mean 'kind'? Columns are",
    ),
    "given nothing": (lambda m, _: m.sample(1, given={"real": np.nan}), "given: holds no value for 'real'"),
    "given None": (lambda m, _: m.sample(1, given={"kind": None}), "given: holds no value for 'kind'"),
    "given an infinity": (lambda m, _: m.sample(1, given={"real": -np.inf}), "given: holds -inf for 'real', a column"),
    "given a word": (lambda m, _: m.sample(1, given={"real": "x"}), "given: holds 'x' for 'real', a column of numbers"),
    "a bare string": (lambda m, d: m.log_prob(d, "real"), "target: is the string 'real'. Pass a list, ['real']."),
    "a bare string observed": (lambda m, d: m.log_prob(d, ["few"], observed="real"), "observed: is the string 'real'"),
    "target no column": (lambda m, d: m.log_prob(d, ["color"]), "target: names 'color', which is no column"),
    "a mask of another shape": (lambda m, d: m.log_prob(d, np.ones((3, 7), bool)), "target: has shape (3, 7)"),
    "a mask of numbers": (lambda m, d: m.log_prob(d, np.ones(d.shape)), "float64. Pass booleans of shape (80, 7)"),
    "a frame of other columns": (
        lambda m, d: m.log_prob(d, d[["real"]].notna()), "target: lacks the column 'skewed'",
    ),
    "both at once": (
        lambda m, d: m.log_prob(d, ["real"], observed=["few", "real"]),
        "observed: overlaps target in column 'real'. A column is either a target or observed",
    ),
    "no orders": (lambda m, d: m.log_prob(d, num_orders=0), "num_orders: is 0. Pass at least 1."),
    "marginals of no column": (lambda m, d: m.marginals(d, ["color"]), "columns: names 'color'"),
    "marginals of a string": (lambda m, d: m.marginals(d, "few"), "columns: is the string 'few'"),
    "a number of columns": (lambda m, d: m.log_prob(d, 3), "target: is 3. Pass a list of names of columns."),
    "a misspelt target": (lambda m, d: m.log_prob(d, ["reel"]), "target: names 'reel', which is no column. Did you"),
    "half an order": (lambda m, d: m.log_prob(d, num_orders=1.5), "num_orders: is 1.5. Pass a whole number"),
    "half a draw": (lambda m, d: m.impute(d, "draw", num_draws=1.5), "num_draws: is 1.5. Pass a whole number"),
    "a word as batch size": (lambda m, d: m.impute(d, batch_size="7"), "batch_size: is '7'. Pass a whole number"),
    "a word as generator": (lambda m, d: m.impute(d, "draw", generator="a"), "generator: is 'a'. Pass a whole"),
    "numpy's generator": (
        lambda m, _: m.sample(2, generator=np.random.default_rng(0)),
        "generator: is a Generator. Pass a whole number as seed, a torch.Generator, or None.",
    ),
    "a fraction as generator": (lambda m, d: m.log_prob(d, generator=1.5), "generator: is 1.5. Pass a whole number"),
    "a word as scan": (
        lambda m, _: m.sample(2, scan="random", num_sweeps=1), "scan: is 'random'. Pass a scan of samplers.scans",
    ),
    "a word as scan alone": (lambda m, _: m.sample(2, scan="random"), "scan: is 'random'. Pass a scan"),
    "a word as sweeps": (lambda m, _: m.sample(2, scan=scans.random(), num_sweeps="3"), "num_sweeps: is '3'. Pass a"),
    "one quantile": (lambda m, d: m.marginals(d, ["few"], quantiles=0.5), "quantiles: is 0.5. Pass a list of numbers"),
    "quantiles in words": (lambda m, d: m.marginals(d, ["few"], quantiles=["a"]), "quantiles: holds 'a'. Pass numbers"),
    "marginals of a number": (lambda m, d: m.marginals(d, 3), "columns: is 3. Pass a list of names of columns."),
    "saving to a file": (lambda m, _: m.save_pretrained(__file__), "_errors.py' is a file. Name a folder."),
    "saving below a file": (lambda m, _: m.save_pretrained(__file__ + "/model"), "which is a file. Name a folder."),
    "saving to a number": (lambda m, _: m.save_pretrained(3), "folder: is 3. Pass the path of a folder."),
    "a frame of a frame": (lambda m, d: m.to_frame(d), "chains: is a DataFrame. Pass what a sampler's run() returned"),
    "a frame of one draw": (lambda m, _: m.to_frame(torch.zeros(4, 7)), "chains: have shape (4, 7). Pass what"),
    "quantiles beyond one": (lambda m, d: m.marginals(d, ["few"], quantiles=[5]), "quantiles: holds 5. Pass numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls(model: TableModel, frame: pd.DataFrame, name: str) -> None:
    call, text = CALLS[name]
    with pytest.raises(ValueError, match=re.escape(text)):
        call(model, frame)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_networks": -1}, "num_networks: is -1. Pass at least 0."),
        ({"batch_size": 0}, "batch_size: is 0. Pass at least 1."),
        ({"ridges": ()}, "ridges: is (). Pass positive numbers"),
        ({"ridges": (0.0,)}, "ridges: is (0.0,)"),
        ({"classes": (0,)}, "classes: is (0,). Pass positive whole numbers"),
        ({"restarts": 0}, "restarts: is 0"),
        ({"width": "64"}, "width: is '64'. Pass a whole number, 1 or more."),
        ({"width": 64.5}, "width: is 64.5. Pass a whole number, 1 or more."),
        ({"lr": "fast"}, "lr: is 'fast'. Pass a number above 0."),
        ({"dropout": 1}, "dropout: is 1. Pass a number in [0, 1)."),
        ({"weight_decay": -1}, "weight_decay: is -1. Pass a number, 0 or more."),
        ({"ema_decay": "a"}, "ema_decay: is 'a'. Pass a number in [0, 1), or None."),
        ({"max_seconds": 0}, "max_seconds: is 0. Pass a number above 0, or None."),
        ({"patience": 0}, "patience: is 0. Pass at least 1."),
        ({"ridges": 0.1}, "ridges: is 0.1. Pass positive numbers, such as (0.01, 0.1)."),
        ({"ridges": ("a",)}, "ridges: is ('a',)"),
        ({"classes": 3}, "classes: is 3. Pass positive whole numbers, such as (2, 4)."),
        ({"classes": (2.5,)}, "classes: is (2.5,)"),
    ],
)
def test_wrong_settings(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        TableSettings(**change)


def test_no_warnings_are_left_to_the_caller() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(ODD["words and numbers"]()).sample(3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f: TableModel.fit(f, settings={"num_networks": 1}), r"settings: is a dict. Pass a TableSettings"),
        (lambda f: TableModel.fit(f, law="mdlm"), r"law: is 'mdlm'. Pass a law of samplers.laws"),
        (lambda _: TableSettings(optimizer="sgd"), r"optimizer: is 'sgd'. Choose 'adamw' or 'muon'"),
        (lambda _: TableSettings(amp="fp8"), r"amp: is 'fp8'. Choose 'auto'"),
        (lambda _: TableSettings(small_lr=-1), r"small_lr: is -1"),
        (lambda _: TableSettings(num_networks=21), r"num_networks: is 21. Pass at most 20"),
        (lambda f: GibbsSampler(f, scan=scans.random()), r"conditional: is a DataFrame. Pass a conditional"),
    ],
)
def test_things_of_the_wrong_kind_are_named(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(pd.DataFrame({"a": range(20)}))
