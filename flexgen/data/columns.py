"""One column of a table: its kind and levels, read off a pandas column; codes and numbers, there and back."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from flexgen.checks import did_you_mean, entries, freeze, instance, kind_of, one_of
from flexgen.errors import DataError
from flexgen.space import Kind

__all__ = ["ColumnSchema", "listed"]

_MOST_LEVELS = 64  # of text whose values mostly occur once; beyond, it is refused unless it is declared a category


@dataclass(frozen=True)
class ColumnSchema:
    """One column.

    Args:
        name: its label.
        kind: ``"real"``, ``"integer"`` (whole numbers) or ``"categorical"``.
        dtype: the pandas dtype it came with and goes back to.
        levels: a categorical column's levels in code order.
        ordered: whether pandas knew the levels as ordered.
    """

    name: str
    kind: Kind
    dtype: str
    levels: tuple[Any, ...] = ()
    ordered: bool = False

    def __post_init__(self) -> None:
        instance("name", self.name, str, "Pass a text.", DataError)
        one_of("kind", self.kind, ("real", "integer", "categorical"), DataError)
        instance("ordered", self.ordered, bool, "Pass True or False.", DataError)
        levels = entries("levels", self.levels, "Pass the levels in code order.", error=DataError)
        if not all(isinstance(level, str | int | float | bool) for level in levels):
            raise DataError("levels", f"are {kind_of(levels)}", "Levels are texts, numbers or booleans.")
        if bool(levels) != (self.kind == "categorical"):
            raise DataError("levels", f"are {len(levels)} of a {self.kind} column", "Only categories have levels.")
        try:
            pd.api.types.pandas_dtype(instance("dtype", self.dtype, str, "Pass its name.", DataError))
        except TypeError as error:
            raise DataError("dtype", f"is {kind_of(self.dtype)}", "Pass the name of a dtype of pandas.") from error
        freeze(self, levels=levels)

    @classmethod
    def infer(cls, name: str, column: pd.Series, kind: Kind | None = None) -> ColumnSchema:
        """From the dtype: booleans, strings and categories are categorical, whole numbers integer, others real.

        A float column whose present values are all whole is integer: pandas stores integers with gaps that way.
        """
        found = kind or _infer_kind(name, column)
        if found == "categorical":
            levels, ordered = _levels(name, column, declared=kind is not None)
            return cls(name, found, str(column.dtype), levels, ordered)
        if not types.is_numeric_dtype(column.dtype):
            raise DataError(
                "kinds",
                f"says that {name!r} is {found}, but its dtype is {column.dtype}",
                "Convert it to numbers first.",
            )
        if kind == "integer" and (row := _first(_broken(_numbers(column)))) is not None:
            raise DataError(
                "kinds",
                f"says that {name!r} is integer, but it holds {column.iloc[row]} in row {row}",
                "Round it, or say 'real'.",
            )
        return cls(name, found, str(column.dtype))

    @property
    def is_flag(self) -> bool:
        """Whether its levels are booleans."""
        return bool(self.levels) and all(isinstance(level, bool) for level in self.levels)

    def encode(self, column: pd.Series) -> np.ndarray:
        """float64 codes or numbers, NaN where missing."""
        return self._encode(column, f"column {self.name!r}", lambda row: f"in row {row}")

    def encode_value(self, value: Any, argument: str) -> float:
        """The code or number of one value that the caller passed as `argument`."""
        if not types.is_scalar(value):
            raise DataError(argument, f"holds {kind_of(value)} for {self.name!r}", "Pass one value, not several.")
        if pd.isna(value):
            raise DataError(argument, f"holds no value for {self.name!r}", "Leave the column out to have it drawn.")
        if self.kind != "categorical" and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            fix = "Pass a finite number, or leave the column out to have it drawn."
            raise DataError(argument, f"holds {value!r} for {self.name!r}, a column of numbers", fix)
        return float(self._encode(pd.Series([value]), argument, lambda _: f"for {self.name!r}")[0])

    def _encode(self, column: pd.Series, argument: str, place: Callable[[int], str]) -> np.ndarray:
        """`place` says in an error where the value of a row stands."""
        if self.kind == "categorical":
            codes = self._codes(column)
            row = _first((codes < 0) & column.notna().to_numpy())
            if row is not None:
                level = column.iloc[row]
                raise DataError(
                    argument,
                    f"holds the level {level!r} {place(row)}, which the model never saw",
                    f"{did_you_mean(level, self.levels)}Known levels are {listed(self.levels)}; leave others missing, "
                    "or fit on data that hold them.",
                )
            return np.where(codes < 0, np.nan, codes.astype(np.float64))
        if not types.is_numeric_dtype(column.dtype) and not column.isna().all():
            raise DataError(
                argument,
                f"has dtype {column.dtype}, but the model knows it as {self.kind}",
                "Convert it with pandas.to_numeric.",
            )
        values = _numbers(column)
        if (row := _first(np.isinf(values))) is not None:
            raise DataError(
                argument, f"holds {values[row]} {place(row)}", "Replace it by a number, or leave it missing if unknown."
            )
        if types.is_integer_dtype(pd.api.types.pandas_dtype(self.dtype)):
            row = _first((values < -(2.0**63)) | (values >= 2.0**64))
            if row is not None:
                problem = f"holds {values[row]:g} {place(row)}, which no {self.dtype} can hold"
                raise DataError(argument, problem, "Correct it, or leave it missing.")
        if self.kind == "integer" and (row := _first(_broken(values))) is not None:
            raise DataError(
                argument,
                f"holds {values[row]} {place(row)}, but the model knows it as whole numbers",
                "Round it, or fit with kinds={%r: 'real'}." % self.name,  # noqa: UP031 - braces are part of the text
            )
        return values

    def is_unknown(self, column: pd.Series) -> np.ndarray:
        """Where a categorical column holds a level that was not there when the schema was read, bool."""
        if self.kind != "categorical":
            return np.zeros(len(column), bool)
        unknown: np.ndarray = (self._codes(column) < 0) & column.notna().to_numpy()
        return unknown

    def _codes(self, column: pd.Series) -> np.ndarray:
        """Places among the levels, -1 where missing or unknown."""
        plain = column.map(_plain, na_action="ignore").astype(object)
        try:
            codes: np.ndarray = pd.Index(self.levels, dtype=object).get_indexer(plain)
        except TypeError:
            _require_hashable(self.name, column)
            raise
        return codes

    def decode(self, values: np.ndarray, index: pd.Index) -> pd.Series:
        """A column of the original dtype; NaN stays missing."""
        if self.kind == "categorical":
            codes = np.where(np.isnan(values), -1, values).astype(np.int64)
            if (row := _first((codes < -1) | (codes >= len(self.levels)))) is not None:
                raise DataError(
                    "x",
                    f"holds the code {values[row]:g} for {self.name!r} in row {row}",
                    f"Its codes are 0 to {len(self.levels) - 1}.",
                )
            levels = pd.Index(self.levels)
            if self.dtype == "category":
                return pd.Series(pd.Categorical.from_codes(codes, levels, ordered=self.ordered), index, name=self.name)
            taken = pd.Series(levels.take(codes), index, dtype=object, name=self.name)
            if (codes < 0).any():
                taken = taken.where(codes >= 0, None)
                if isinstance(pd.api.types.pandas_dtype(self.dtype), np.dtype):  # numpy's dtypes hold no gaps
                    return taken
            return taken.astype(pd.api.types.pandas_dtype(self.dtype))
        series = pd.Series(values, index, name=self.name, dtype=np.float64)
        gaps = bool(np.isnan(values).any())
        holds_whole = types.is_integer_dtype(pd.api.types.pandas_dtype(self.dtype))
        if holds_whole and (gaps or (values != np.round(values)).any()):
            return series  # a mean of whole numbers, or a gap, which numpy's integers cannot hold
        kept = pd.api.types.pandas_dtype(self.dtype)
        if holds_whole and len(values):
            ends = np.iinfo(getattr(kept, "numpy_dtype", kept))
            if values.min() < ends.min or values.max() > ends.max:  # a draw beyond the data's type would wrap around
                return series.astype("int64") if np.abs(values).max() < 2**63 else series
        return series.astype(kept)


def listed(names: Iterable[Any], most: int = 12) -> str:
    """Names as an error lists them."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")


def _infer_kind(name: str, column: pd.Series) -> Kind:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype) or types.is_bool_dtype(dtype):
        return "categorical"
    if types.is_integer_dtype(dtype):
        return "integer"
    if types.is_float_dtype(dtype):
        values = column.dropna().to_numpy(np.float64)
        whole = np.isfinite(values).all() and not _broken(values).any() and np.abs(values).max(initial=0) < 2**53
        return "integer" if whole else "real"
    if types.is_string_dtype(dtype) or types.is_object_dtype(dtype):
        return "categorical"
    raise DataError(
        f"column {name!r}",
        f"has dtype {dtype}, which no site can hold",
        "Convert it: a date to a number (days since some day), a complex number to two columns.",
    )


def _levels(name: str, column: pd.Series, *, declared: bool) -> tuple[tuple[Any, ...], bool]:
    """The levels in code order, and whether they are ordered."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels, ordered = list(column.cat.categories), bool(column.cat.ordered)
    else:
        _require_hashable(name, column)
        levels, ordered = _sorted_levels(column), False
    if not levels:
        raise DataError(f"column {name!r}", "has no value at all", "Drop it, or give it a categorical dtype.")
    levels = [_plain(level) for level in levels]
    present = int(column.notna().sum())
    if not declared and len(levels) > _MOST_LEVELS and 2 * len(levels) > present:
        raise DataError(
            f"column {name!r}",
            f"has {len(levels)} levels in {present} values: a name, a date or a number kept as text",
            "Drop it or convert it; or say kinds={%r: 'categorical'} if its levels recur." % name,  # noqa: UP031
        )
    foreign = [level for level in levels if not isinstance(level, str | int | float | bool)]
    if foreign:
        raise DataError(
            f"column {name!r}",
            f"has levels of type {type(foreign[0]).__name__}, which no checkpoint can hold",
            f"Convert them: df[{name!r}].astype(str).",
        )
    return tuple(levels), ordered


def _require_hashable(name: str, column: pd.Series) -> None:
    """Refuses cells that hold several values."""
    if column.dtype != object:
        return
    row = _first(column.map(lambda value: getattr(type(value), "__hash__", None) is None).to_numpy(bool))
    if row is not None:
        raise DataError(
            f"column {name!r}",
            f"holds {kind_of(column.iloc[row])} in row {row}, where a cell holds one value",
            "Spread it over several columns, or drop it.",
        )


def _sorted_levels(column: pd.Series) -> list[Any]:
    levels = [_plain(level) for level in column.dropna().unique()]
    try:
        return sorted(levels)
    except TypeError:  # levels of several types
        return sorted(levels, key=lambda level: (type(level).__name__, str(level)))


def _plain(level: Any) -> Any:
    """A level as JSON holds it."""
    return level.item() if isinstance(level, np.generic) else level


def _numbers(column: pd.Series) -> np.ndarray:
    values: np.ndarray = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return values


def _broken(values: np.ndarray) -> np.ndarray:
    """Where numbers are no whole ones, bool."""
    broken: np.ndarray = ~np.isnan(values) & (values != np.round(values))
    return broken


def _first(wrong: np.ndarray) -> int | None:
    """The first place at fault."""
    return int(wrong.argmax()) if wrong.any() else None
