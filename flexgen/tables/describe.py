"""Answers as frames, one a column: mean, sd and quantiles of numbers, probabilities of levels."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from flexgen.data.schema import TableSchema
from flexgen.tables.marginals import TableMarginals

__all__ = ["describe"]


def describe(
    schema: TableSchema, marginals: TableMarginals, index: pd.Index, quantiles: Sequence[float], chosen: Sequence[int]
) -> dict[str, pd.DataFrame]:
    """Column -> frame with a row for each row of the answers, of the chosen sites."""
    maps = marginals.maps
    numbers = {"mean": marginals.mean(), "sd": marginals.sd()} | {
        f"q{100 * q:g}": marginals.quantile(q) for q in quantiles
    }
    places = maps.categorical.tolist()
    described = {}
    for j in chosen:
        column = schema.columns[j]
        if column.kind == "categorical":
            shares = marginals.latents.log_probs[:, places.index(j), : len(column.levels)].exp()
            described[column.name] = pd.DataFrame(shares.cpu().numpy(), index, list(column.levels))
        else:
            described[column.name] = pd.DataFrame({k: v[:, j].cpu().numpy() for k, v in numbers.items()}, index)
    return described
