"""Tables with mixed columns and missing entries: column maps, exact members, masked networks, and their pool."""

from __future__ import annotations

from flexgen.tables.conditional import TableConditional, TableMarginals
from flexgen.tables.fit import FitReport, fit_table
from flexgen.tables.network import MaskedTableNetwork
from flexgen.tables.settings import TableSettings

__all__ = ["FitReport", "MaskedTableNetwork", "TableConditional", "TableMarginals", "TableSettings", "fit_table"]
