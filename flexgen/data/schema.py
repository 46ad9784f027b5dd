"""Data frames to tensors and back: what each column is, learned once and applied to every later frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api import types
from torch import Tensor

from flexgen.errors import DataError
from flexgen.space import Kind, Site, Space

__all__ = ["ColumnSchema", "TableSchema"]


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

    @classmethod
    def infer(cls, name: str, column: pd.Series, kind: Kind | None = None) -> ColumnSchema:
        """From the dtype: booleans, strings and categories are categorical, whole numbers integer, others real.

        A float column whose present values are all whole is integer: pandas stores integers with gaps that way.
        """
        kind_given = kind
        if kind is None:
            kind = _infer_kind(name, column)
        if kind == "categorical":
            if isinstance(column.dtype, pd.CategoricalDtype):
                levels, ordered = list(column.cat.categories), bool(column.cat.ordered)
            else:
                levels, ordered = _sorted_levels(column), False
            if not levels:
                raise DataError(f"column {name!r}", "has no value at all", "Drop it, or give it a categorical dtype.")
            levels = [_plain(level) for level in levels]
            present = int(column.notna().sum())
            if kind_given is None and len(levels) > _MOST_LEVELS and 2 * len(levels) > present:
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
            return cls(name, kind, str(column.dtype), tuple(levels), ordered)
        if not types.is_numeric_dtype(column.dtype):
            raise DataError(
                "kinds",
                f"says that {name!r} is {kind}, but its dtype is {column.dtype}",
                "Convert it to numbers first.",
            )
        return cls(name, kind, str(column.dtype))

    def encode(self, column: pd.Series) -> np.ndarray:
        """float64 codes or numbers, NaN where missing."""
        if self.kind != "categorical":
            if not types.is_numeric_dtype(column.dtype) and not column.isna().all():
                raise DataError(
                    f"column {self.name!r}",
                    f"has dtype {column.dtype}, but the model knows it as {self.kind}",
                    "Convert it with pandas.to_numeric.",
                )
            values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
            self._require_finite(values)
            if self.kind == "integer":
                self._require_whole(values)
            return values
        plain = column.map(_plain, na_action="ignore").astype(object)
        codes = pd.Index(self.levels, dtype=object).get_indexer(plain)
        unseen = (codes < 0) & column.notna().to_numpy()
        if unseen.any():
            place = int(unseen.argmax())
            raise DataError(
                f"column {self.name!r}",
                f"holds the level {column.iloc[place]!r} in row {place}, which the model never saw",
                f"Known levels are {_listed(self.levels)}; set others to NaN, or fit on data that hold them.",
            )
        return np.where(codes < 0, np.nan, codes.astype(np.float64))

    def decode(self, values: np.ndarray, index: pd.Index) -> pd.Series:
        """A column of the original dtype; NaN stays missing."""
        if self.kind == "categorical":
            codes = np.where(np.isnan(values), -1, values).astype(np.int64)
            levels = pd.Index(self.levels)
            if self.dtype == "category":
                return pd.Series(pd.Categorical.from_codes(codes, levels, ordered=self.ordered), index, name=self.name)
            taken = pd.Series(levels.take(codes), index, dtype=object, name=self.name)
            if (codes < 0).any():
                taken = taken.where(codes >= 0, None)
                if isinstance(pd.api.types.pandas_dtype(self.dtype), np.dtype):  # numpy's dtypes hold no gaps
                    return taken
            return taken.astype(self.dtype)
        series = pd.Series(values, index, name=self.name, dtype=np.float64)
        gaps = bool(np.isnan(values).any())
        holds_whole = types.is_integer_dtype(pd.api.types.pandas_dtype(self.dtype))
        if holds_whole and (gaps or (values != np.round(values)).any()):
            return series  # a mean of whole numbers, or a gap, which numpy's integers cannot hold
        return series.astype(self.dtype)

    def _require_finite(self, values: np.ndarray) -> None:
        if np.isinf(values).any():
            row = int(np.isinf(values).argmax())
            raise DataError(
                f"column {self.name!r}",
                f"holds {values[row]} in row {row}",
                "Replace it by a number, or by NaN if unknown.",
            )

    def _require_whole(self, values: np.ndarray) -> None:
        broken = ~np.isnan(values) & (values != np.round(values))
        if broken.any():
            row = int(broken.argmax())
            raise DataError(
                f"column {self.name!r}",
                f"holds {values[row]} in row {row}, but the model knows it as whole numbers",
                "Round it, or fit with kinds={%r: 'real'}." % self.name,  # noqa: UP031 - braces are part of the text
            )


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table, in order.

    A row of ``x`` is float64 ``[N]``: numbers as they are, categories as codes, NaN where missing.
    """

    columns: tuple[ColumnSchema, ...]

    @classmethod
    def infer(cls, df: pd.DataFrame, kinds: Mapping[str, Kind] | None = None) -> TableSchema:
        """Reads the columns off a frame.

        Args:
            df: one row an item, one column a site.
            kinds: column -> kind, where the dtype does not say what is meant (a code that is stored as a number).

        Raises:
            DataError: no rows or columns, repeated or all-missing columns, dates, infinities, unknown names in kinds.
        """
        require_frame(df)
        if df.shape[1] == 0 or len(df) == 0:
            raise DataError("df", f"has shape {df.shape}", "Pass at least one row and one column.")
        names = df.columns.map(str)
        if not names.is_unique:
            raise DataError("df", f"names {names[names.duplicated()][0]!r} twice", "Give each column its own name.")
        kinds = dict(kinds or {})
        unknown = [name for name in kinds if name not in df.columns]
        if unknown:
            raise DataError("kinds", f"names {unknown[0]!r}, which is no column", f"Columns are {_listed(df.columns)}.")
        for name, kind in kinds.items():
            if kind not in ("real", "integer", "categorical"):
                raise DataError(
                    "kinds", f"gives {name!r} the kind {kind!r}", "Choose 'real', 'integer' or 'categorical'."
                )
        for name in df.columns:
            if df[name].isna().all() and not isinstance(df[name].dtype, pd.CategoricalDtype):
                raise DataError(
                    f"column {name!r}", "is missing in every row", "Drop it: there is nothing to learn from."
                )
        schema = cls(tuple(ColumnSchema.infer(str(name), df[name], kinds.get(name)) for name in df.columns))
        schema.encode(df)  # refuses infinities and fractions now, by name
        return schema

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def space(self) -> Space:
        """The sites in the units of the data."""
        return Space(tuple(Site(c.kind, num_categories=len(c.levels), name=c.name) for c in self.columns))

    def position(self, name: str, *, argument: str = "column") -> int:
        """The site of a column."""
        if name not in self.names:
            raise DataError(argument, f"names {name!r}, which is no column", f"Columns are {_listed(self.names)}.")
        return self.names.index(name)

    def encode(self, df: pd.DataFrame) -> Tensor:
        """x ``[B, N]`` float64. Columns are found by name; extra ones are ignored, absent ones are refused."""
        require_frame(df)
        df = df.rename(columns=str)
        absent = [name for name in self.names if name not in df.columns]
        if absent:
            raise DataError("df", f"lacks the column(s) {_listed(absent)}", "Add them; fill with NaN what is unknown.")
        x = np.empty((len(df), len(self.columns)))
        for j, column in enumerate(self.columns):
            x[:, j] = column.encode(df[column.name])
        return torch.from_numpy(x)

    def decode(self, x: Tensor, index: pd.Index | None = None) -> pd.DataFrame:
        """A frame with the original dtypes."""
        values = x.detach().cpu().double().numpy()
        index = pd.RangeIndex(len(values)) if index is None else index
        return pd.DataFrame({c.name: c.decode(values[:, j], index) for j, c in enumerate(self.columns)}, index=index)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return {
            "columns": [
                {"name": c.name, "kind": c.kind, "dtype": c.dtype, "levels": list(c.levels), "ordered": c.ordered}
                for c in self.columns
            ]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableSchema:
        return cls(tuple(ColumnSchema(**{**c, "levels": tuple(c["levels"])}) for c in data["columns"]))


def require_frame(df: object, argument: str = "df") -> None:
    """Refuses what is not a data frame."""
    if not isinstance(df, pd.DataFrame):
        raise DataError(argument, f"is a {type(df).__name__}", "Pass a pandas.DataFrame, one row an item.")


def _infer_kind(name: str, column: pd.Series) -> Kind:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype) or types.is_bool_dtype(dtype):
        return "categorical"
    if types.is_integer_dtype(dtype):
        return "integer"
    if types.is_float_dtype(dtype):
        values = column.dropna().to_numpy(np.float64)
        whole = (
            np.isfinite(values).all() and (values == np.round(values)).all() and np.abs(values).max(initial=0) < 2**53
        )
        return "integer" if whole else "real"
    if types.is_string_dtype(dtype) or types.is_object_dtype(dtype):
        return "categorical"
    raise DataError(
        f"column {name!r}",
        f"has dtype {dtype}, which no site can hold",
        "Convert it: a date to a number (days since some day), a complex number to two columns.",
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


def _listed(names: Any, most: int = 12) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
