"""Data as models see it: data frames to tensors and back, tables that ship with scikit-learn, and our own examples."""

from __future__ import annotations

from flexgen.data.examples import example, example_names
from flexgen.data.schema import TableSchema
from flexgen.data.tables import load_table, table_names

__all__ = ["TableSchema", "example", "example_names", "load_table", "table_names"]
