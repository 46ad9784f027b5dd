"""Data frames to tensors and back: what each column is, learned once and applied to every later frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api import types
from torch import Tensor

from flexgen.checks import did_you_mean, entries, freeze, instance, kind_of, malformed, mapping, real_tensor
from flexgen.data.columns import ColumnSchema, listed
from flexgen.errors import DataError
from flexgen.space import Kind, Site, Space

__all__ = ["ColumnSchema", "TableSchema", "require_columns", "require_frame"]

_MOST_MAGNITUDE = 1e100


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table, in order.

    A row of ``x`` is float64 ``[N]``: numbers as they are, categories as codes, NaN where missing.
    """

    columns: tuple[ColumnSchema, ...]

    def __post_init__(self) -> None:
        fix = "Make schemas with TableSchema.infer(df)."
        columns = entries("columns", self.columns, fix, error=DataError)
        for column in columns:
            instance("columns", column, ColumnSchema, fix, DataError)
        freeze(self, columns=columns)
        if len(set(self.names)) < len(columns):
            twice = next(name for place, name in enumerate(self.names) if name in self.names[:place])
            raise DataError("columns", f"name {twice!r} twice", "Give each column its own name.")

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
        if kinds is not None and not isinstance(kinds, Mapping):
            raise DataError("kinds", f"is {kind_of(kinds)}", "Pass a mapping, such as {'column': 'categorical'}.")
        kinds = dict(kinds or {})
        require_columns("kinds", kinds, df.columns)
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
        require_columns(argument, [name], self.names)
        return self.names.index(name)

    def encode(self, df: pd.DataFrame) -> Tensor:
        """x ``[B, N]`` float64. Columns are found by name; extra ones are ignored, absent ones are refused."""
        df = self._renamed(df)
        x = np.empty((len(df), len(self.columns)))
        for j, column in enumerate(self.columns):
            x[:, j] = column.encode(df[column.name])
        return torch.from_numpy(x)

    def require_moderate(self, x: Tensor) -> None:
        """Refuses numbers whose squares, or those of their differences, leave the range of float64; x ``[B, N]``."""
        real_tensor("x", x, f"[B, {len(self.columns)}]", ndim=2)
        if x.shape[1] != len(self.columns):
            raise DataError("x", f"has shape {tuple(x.shape)}", f"Pass [B, {len(self.columns)}].")
        for name, values in zip(self.names, x.detach().double().cpu().numpy().T, strict=True):
            present = values[~np.isnan(values)]
            if len(present) == 0:
                continue
            low, high = present.min(), present.max()
            if max(-low, high) > _MOST_MAGNITUDE or 0 < high - low < 1 / _MOST_MAGNITUDE:
                raise DataError(
                    f"column {name!r}", f"runs from {low:g} to {high:g}, too far for float64", "Rescale it."
                )

    def without_unknown(self, df: pd.DataFrame) -> pd.DataFrame:
        """The frame with missing entries where a categorical column holds a level that was not there to be learned."""
        known = self._renamed(df)
        for column in self.columns:
            unknown = column.is_unknown(known[column.name])
            if unknown.any():
                known[column.name] = known[column.name].mask(unknown)
        return known.set_axis(df.columns, axis=1)

    def _renamed(self, df: pd.DataFrame) -> pd.DataFrame:
        """A shallow copy whose columns are called by text, none absent."""
        require_frame(df)
        df = df.rename(columns=str)
        twice = df.columns[df.columns.duplicated()].intersection(list(self.names))
        if len(twice):
            raise DataError("df", f"names {twice[0]!r} twice", "Give each column its own name.")
        absent = [name for name in self.names if name not in df.columns]
        if absent:
            others = [name for name in df.columns if name not in self.names]
            raise DataError(
                "df",
                f"lacks the column(s) {listed(absent)}",
                f"{did_you_mean(absent[0], others)}Add them; fill with NaN what is unknown.",
            )
        return df

    def decode(self, x: Tensor, index: pd.Index | None = None) -> pd.DataFrame:
        """A frame with the original dtypes, of x ``[B, N]``."""
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != len(self.columns) or _holds_no_numbers(x):
            found = f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is {kind_of(x)}"
            raise DataError("x", found, f"Pass a tensor [B, {len(self.columns)}]: one row an item, one column a site.")
        values = x.detach().cpu().double().numpy()
        if index is not None and not isinstance(index, pd.Index):
            raise DataError("index", f"is {kind_of(index)}", "Pass a pandas.Index, or None.")
        index = pd.RangeIndex(len(values)) if index is None else index
        if len(index) != len(values):
            raise DataError("index", f"names {len(index)} rows, but x has {len(values)}", "Name every row once.")
        return pd.DataFrame({c.name: c.decode(values[:, j], index) for j, c in enumerate(self.columns)}, index=index)

    def fill(self, df: pd.DataFrame, x: Tensor) -> pd.DataFrame:
        """The frame with its gaps filled from x ``[B, N]``; present entries keep their very values."""
        require_frame(df)
        for name in df.columns:  # what could not be encoded cannot be filled either
            if str(name) in self.names:
                self.columns[self.names.index(str(name))].encode(df[name])
        decoded = self.decode(x, df.index)
        filled = df.copy()
        for name in df.columns:
            if str(name) in self.names and df[name].isna().any():
                is_flag = self.columns[self.names.index(str(name))].is_flag
                filled[name] = _filled(df[name], decoded[str(name)], is_flag=is_flag)
        return filled

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
        """The schema of such a form.

        Raises:
            DataError: not what `to_dict` gives.
        """
        fix = "Pass what TableSchema.to_dict gave."
        mapping("data", data, fix, DataError)
        with malformed("data", fix, DataError):
            return cls(tuple(ColumnSchema(**{**c, "levels": tuple(c["levels"])}) for c in data["columns"]))


def _holds_no_numbers(x: Tensor) -> bool:
    return x.is_complex() or x.layout != torch.strided or x.device.type == "meta"


def _filled(own: pd.Series, guess: pd.Series, *, is_flag: bool) -> pd.Series:
    gaps = own.isna()
    if is_flag:  # pandas keeps booleans with gaps as objects; without gaps they are booleans again
        whole = guess.astype(object).where(gaps, own.astype(object))
        return whole.astype(bool if own.dtype == object else own.dtype)
    if types.is_numeric_dtype(guess.dtype) and guess.dtype != own.dtype:
        own = own.astype("Float64").astype(float)
    if isinstance(guess.dtype, pd.CategoricalDtype):
        own = own.astype(guess.dtype)
    return guess.where(gaps, own)


def require_frame(df: object, argument: str = "df") -> None:
    """Refuses what is not a data frame."""
    if not isinstance(df, pd.DataFrame):
        raise DataError(argument, f"is a {type(df).__name__}", "Pass a pandas.DataFrame, one row an item.")


def require_columns(argument: str, names: Iterable[Any], known: Iterable[Any]) -> None:
    """Refuses names of no column."""
    known = list(known)
    for name in names:
        if not (types.is_scalar(name) or isinstance(name, tuple)) or name not in known:
            near = did_you_mean(name, known)
            raise DataError(
                argument, f"names {kind_of(name)}, which is no column", f"{near}Columns are {listed(known)}."
            )
