"""Tables as matrices of numbers, for scikit-learn's estimators."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from flexgen.data.schema import TableSchema

__all__ = ["OneHot"]


class OneHot:
    """A table as scikit-learn's imputers want it: numbers, and one-hot codes with the last one dropped.

    Args:
        schema: of the table.
    """

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self.widths = [max(1, len(c.levels) - 1) if c.kind == "categorical" else 1 for c in schema.columns]

    def encode(self, frame: pd.DataFrame) -> np.ndarray:
        """float64 ``[B, sum of widths]``; all codes of a missing entry are NaN."""
        x, parts = self.schema.encode(frame).numpy(), []
        for column, width, values in zip(self.schema.columns, self.widths, x.T, strict=True):
            coded = np.where(np.isnan(values)[:, None], np.nan, (values[:, None] == np.arange(width)).astype(float))
            parts.append(coded if column.kind == "categorical" else values[:, None])
        return np.concatenate(parts, 1)

    def decode(self, filled: np.ndarray, gapped: pd.DataFrame) -> pd.DataFrame:
        """`gapped` with its gaps taken from `filled`: of categories, the one with the largest share."""
        out, place = [], 0
        for column, width in zip(self.schema.columns, self.widths, strict=True):
            part, place = filled[:, place : place + width], place + width
            shares = np.column_stack([part, 1 - part.sum(1)])
            out.append(shares.argmax(1).astype(float) if column.kind == "categorical" else part[:, 0])
        x = self.schema.encode(gapped)
        guess = torch.from_numpy(np.column_stack(out))
        return self.schema.decode(torch.where(x.isnan(), guess, x), gapped.index)
