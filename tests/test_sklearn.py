"""`TableImputer` under scikit-learn's own checks, and in the places where IterativeImputer stood."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

from flexgen.sklearn import TableImputer
from tests.tables.small import EXACT, mixed_table, with_gaps


def imputer(**changes: object) -> TableImputer:
    return TableImputer(**{"settings": EXACT, "random_state": 0, **changes})


@parametrize_with_checks([imputer()])
def test_scikit_learns_checks(estimator: TableImputer, check: Callable[[TableImputer], None]) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return with_gaps(mixed_table())


@pytest.fixture(scope="module")
def fitted(frame: pd.DataFrame) -> TableImputer:
    return imputer().fit(frame)


def test_frames_keep_their_columns_index_and_dtypes(fitted: TableImputer, frame: pd.DataFrame) -> None:
    filled = fitted.transform(frame)
    assert isinstance(filled, pd.DataFrame)
    assert list(filled) == list(frame)
    assert filled.index.equals(frame.index)
    assert filled.dtypes.equals(frame.dtypes)
    assert not filled.isna().any().any()
    assert list(fitted.get_feature_names_out()) == list(frame)
    assert fitted.n_features_in_ == frame.shape[1]


@pytest.mark.parametrize("method", ["mean", "mode", "draw"])
def test_arrays_are_numbers(method: str) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(100, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    z[rng.random(z.shape) < 0.2] = np.nan
    filled = imputer(method=method).fit_transform(z)
    assert isinstance(filled, np.ndarray)
    assert filled.dtype == np.float64
    assert np.isfinite(filled).all()
    assert np.array_equal(filled[~np.isnan(z)], z[~np.isnan(z)])


def test_set_output(frame: pd.DataFrame) -> None:
    numbers = frame[["real", "skewed"]]
    as_frame = imputer().set_output(transform="pandas").fit(numbers).transform(numbers)
    assert isinstance(as_frame, pd.DataFrame)
    array = numbers.to_numpy()
    named = imputer().set_output(transform="pandas").fit_transform(array)
    assert list(named) == ["x0", "x1"]
    np.testing.assert_allclose(named, as_frame)


def test_clone_and_parameters(fitted: TableImputer) -> None:
    fresh = clone(fitted)
    assert not hasattr(fresh, "model_")
    assert fresh.get_params() == fitted.get_params()
    assert fresh.set_params(method="mode").method == "mode"


def test_in_a_pipeline_where_another_imputer_stood() -> None:
    """Of two features that are twins up to noise, one is always missing: the label is still predicted."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=400)
    X = np.stack([z + 0.1 * rng.normal(size=400), z + 0.1 * rng.normal(size=400)], 1)
    label = z > 0
    one = rng.integers(2, size=400)
    X[np.arange(200), one[:200]] = np.nan
    pipeline = make_pipeline(imputer(), LogisticRegression()).fit(X, label)
    X_test = X[200:].copy()
    X_test[np.arange(200), one[200:]] = np.nan
    # Nearest twin: an error arises where |z| is within the noise of 0.1; P(sign differs) is atan(0.1)/pi = 3.2 %. A
    # fit on 200 rows, and five standard deviations of 200 trials (6.2 %), stay below 12 %; zeros for gaps do not.
    assert pipeline.score(X_test, label[200:]) > 0.88


def test_columns_without_a_value_become_zeros() -> None:
    rng = np.random.default_rng(2)
    X = np.c_[rng.normal(size=30), np.full(30, np.nan)]
    filled = imputer().fit_transform(X)
    assert (filled[:, 1] == 0).all()
    assert filled.shape == X.shape


def test_draws_repeat_and_follow_the_seed(frame: pd.DataFrame) -> None:
    one, again, other = (imputer(method="draw", random_state=s).fit_transform(frame) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert not one["real"].equals(other["real"])


def test_columns_of_another_table_are_refused(fitted: TableImputer, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.transform(frame.rename(columns={"real": "unreal"}))
    with pytest.raises(ValueError, match="which the model never saw"):
        fitted.transform(frame.assign(kind="z"))
    with pytest.raises(ValueError, match=r"method: is 'median'\. Choose 'mean', 'mode' or 'draw'"):
        imputer(method="median").fit(frame)
    with pytest.raises(ValueError, match=r"unknown: is 'drop'\. Choose 'error' or 'missing'"):
        imputer(unknown="drop").fit(frame)


def test_levels_of_test_folds_alone_are_missing_if_asked(frame: pd.DataFrame) -> None:
    """A level in one row is in one test fold, and then in no training fold."""
    rare = frame.assign(kind=frame["kind"].astype(object), grade=frame["grade"].astype(object))
    rare.loc["row 7", "kind"] = "rare"
    label = frame["real"].fillna(0) > 0

    def score(unknown: str) -> np.ndarray:
        encode = make_column_transformer((OneHotEncoder(), ["kind", "grade"]), remainder="passthrough")
        pipeline = make_pipeline(imputer(unknown=unknown), encode, LogisticRegression(max_iter=1000))
        return cross_val_score(pipeline, rare, label, cv=KFold(3), error_score="raise")

    assert (score("missing") > 0.5).all()
    with pytest.raises(ValueError, match=r"holds the level 'rare' .*, which the model never saw"):
        score("error")


@pytest.mark.parametrize("dtype", ["object", "category"])
def test_an_unknown_level_is_imputed_as_a_missing_one_is(frame: pd.DataFrame, dtype: str) -> None:
    known = frame.assign(kind=frame["kind"].astype(dtype))
    later = known.assign(kind=known["kind"].astype(object))
    later.loc[["row 3", "row 9"], "kind"] = ["new", "newer"]
    later["kind"] = later["kind"].astype(dtype)
    gappy = known.copy()
    gappy.loc[["row 3", "row 9"], "kind"] = None
    fitted = imputer(unknown="missing", method="draw").fit(known)
    filled = fitted.transform(later)
    assert filled["kind"].dtype == fitted.transform(gappy)["kind"].dtype
    pd.testing.assert_frame_equal(filled, fitted.transform(gappy))
