"""Real tables that ship with scikit-learn: nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from sklearn import datasets

from flexgen.checks import one_of
from flexgen.data.schema import require_columns
from flexgen.errors import DataError

__all__ = ["load_table", "read_table", "table_names"]

_LOADERS = {
    "breast_cancer": datasets.load_breast_cancer,
    "diabetes": lambda **kwargs: datasets.load_diabetes(scaled=False, **kwargs),
    "digits": datasets.load_digits,
    "iris": datasets.load_iris,
    "linnerud": datasets.load_linnerud,
    "wine": datasets.load_wine,
}

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def table_names() -> tuple[str, ...]:
    """The names that `load_table` knows."""
    return tuple(_LOADERS)


def load_table(name: str) -> pd.DataFrame:
    """A table in the units it was recorded in, classes by their names.

    Args:
        name: one of `table_names`.
    """
    one_of("name", name, _LOADERS, DataError)
    bunch = _LOADERS[name](as_frame=True)
    frame: pd.DataFrame = bunch.frame.copy()
    if "target" in frame and len(bunch.get("target_names", ())) > 1 and name != "diabetes":
        levels = [str(level) for level in bunch.target_names]
        frame["target"] = pd.Categorical.from_codes(frame["target"].tolist(), pd.Index(levels))
    if name == "diabetes":
        frame["sex"] = pd.Categorical(frame["sex"].map({1.0: "1", 2.0: "2"}))  # the two codes are not explained there
        frame = frame.rename(columns={"target": "progression"})
    return frame


def read_table(path: str | Path, drop: Sequence[str] = ()) -> pd.DataFrame:
    """A table from a ``.csv``, ``.tsv`` or ``.parquet`` file, without the columns in `drop`."""
    frame = _read(Path(path))
    require_columns("drop", drop, frame.columns)
    return frame.drop(columns=list(drop))


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError("path", f"{str(path)!r} is no file", "Pass a .csv, .tsv or .parquet file.")
    if path.suffix in _SEPARATORS:
        frame = pd.read_csv(path, sep=_SEPARATORS[path.suffix])
        _require_separated(frame, path)
        return frame
    if path.suffix == ".parquet":
        if importlib.util.find_spec("pyarrow") is None:
            raise DataError(
                "path", f"{str(path)!r} needs pyarrow", "pip install 'flexgen-samplers[parquet]', or use .csv."
            )
        return pd.read_parquet(path)
    raise DataError("path", f"ends in {path.suffix!r}", "Pass a .csv, .tsv or .parquet file.")


def _require_separated(frame: pd.DataFrame, path: Path) -> None:
    """Refuses what looks like a table that was cut at the wrong separator: one column, with another one in its name."""
    if frame.shape[1] != 1:
        return
    (name,) = frame.columns
    inside = [separator for separator in (";", "\t", "|", ",") if separator in str(name)]
    if inside:
        raise DataError(
            "path",
            f"{str(path)!r} has the one column {name!r}: its values seem to be separated by {inside[0]!r}",
            f"Read it with pandas.read_csv(path, sep={inside[0]!r}), or save it with {_SEPARATORS[path.suffix]!r}.",
        )
