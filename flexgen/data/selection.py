"""What a caller says about the columns of a table, as sites: given values, targets, observed sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flexgen.checks import kind_of
from flexgen.data.schema import TableSchema, require_columns
from flexgen.errors import DataError, QueryError
from flexgen.query import Query

__all__ = ["Columns", "column_numbers", "given_row", "query_of"]

Columns = Sequence[str] | np.ndarray | pd.DataFrame | None


def given_row(schema: TableSchema, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """A row of values ``[N]``, and which of them are given."""
    if not isinstance(given, Mapping):
        raise DataError("given", f"is {kind_of(given)}", "Pass a mapping, such as {'column': value}.")
    observed = torch.zeros(len(schema.columns), dtype=torch.bool)
    x = torch.zeros(len(schema.columns), dtype=torch.float64)
    for name, value in given.items():
        place = schema.position(name, argument="given")
        x[place], observed[place] = schema.columns[place].encode_value(value, "given"), True
    return x, observed


def column_numbers(schema: TableSchema, names: Sequence[str], argument: str) -> list[int]:
    """The sites of named columns."""
    if isinstance(names, str):
        raise DataError(argument, f"is the string {names!r}", f"Pass a list, [{names!r}].")
    try:
        chosen = list(names)
    except TypeError:
        raise DataError(argument, f"is {kind_of(names)}", "Pass a list of names of columns.") from None
    require_columns(argument, chosen, schema.names)
    return [schema.names.index(name) for name in chosen]


def query_of(schema: TableSchema, df: pd.DataFrame, x: Tensor, target: Columns, observed: Columns) -> Query:
    """The query of each row of x ``[B, N]``: missing entries are neither target nor observed.

    Args:
        schema: of the frame.
        df, x: rows, as a frame and encoded.
        target: default: all that is not observed.
        observed: default: all that is not target; nothing if `target` is not given either.
    """
    present = ~x.isnan()
    chosen = None if target is None else _sites(schema, df, target, "target")
    known = None if observed is None else _sites(schema, df, observed, "observed")
    if chosen is None:
        chosen = torch.ones_like(present) if known is None else ~known
    elif known is None:
        known = ~chosen
    known = torch.zeros_like(present) if known is None else known
    chosen, known = chosen.expand_as(present) & present, known.expand_as(present) & present
    overlap = (chosen & known).any(0)
    if overlap.any():
        name = schema.names[int(overlap.nonzero()[0])]
        fix = "A column is either a target or observed: remove it from one of the two."
        raise QueryError("observed", f"overlaps target in column {name!r}", fix)
    return Query._trusted(chosen, known)


def _sites(schema: TableSchema, df: pd.DataFrame, chosen: Columns, argument: str) -> Tensor:
    """bool ``[N]`` or ``[B, N]``."""
    assert chosen is not None
    expected = (len(df), len(schema.columns))
    if isinstance(chosen, pd.DataFrame):
        chosen = chosen.rename(columns=str)
        absent = [name for name in schema.names if name not in chosen]
        if absent:
            raise DataError(argument, f"lacks the column {absent[0]!r}", "Pass booleans for every column.")
        chosen = chosen[list(schema.names)].to_numpy(bool)
    if isinstance(chosen, np.ndarray):
        if chosen.dtype != bool or chosen.shape != expected:
            raise DataError(
                argument,
                f"has shape {chosen.shape} and dtype {chosen.dtype}",
                f"Pass booleans of shape {expected}, or names of columns.",
            )
        return torch.from_numpy(chosen.copy())
    sites = torch.zeros(len(schema.columns), dtype=torch.bool)
    sites[column_numbers(schema, chosen, argument)] = True
    return sites
