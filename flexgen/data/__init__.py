"""Data as models see it: data frames to tensors and back, and the tables that ship with scikit-learn."""

from __future__ import annotations

from flexgen.data.schema import TableSchema
from flexgen.data.tables import load_table, table_names

__all__ = ["TableSchema", "load_table", "table_names"]
