"""Pictures: real against sampled rows, mixing of chains. Every function returns the figure and shows nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from flexgen.checks import instance, whole_number
from flexgen.errors import DataError

__all__ = ["REAL", "SAMPLED", "Picture", "compare_rows", "informative_columns", "rank_correlation"]

REAL, SAMPLED = "#30343f", "#e4572e"


class Picture(Figure):
    """A figure that a notebook shows, also one in which pyplot was never used; ``savefig`` keeps it."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def compare_rows(
    real: pd.DataFrame,
    sampled: pd.DataFrame,
    columns: Sequence[str] | None = None,
    *,
    max_points: int = 1500,
    seed: int = 0,
) -> Figure:
    """Marginals on the diagonal, pairs beside it: real rows below, sampled rows above.

    Args:
        real, sampled: rows with the same columns.
        columns: which to show; default: up to five that depend on each other most, see `informative_columns`.
        max_points: at most so many points a panel; the same number of both kinds.
    """
    columns = list(informative_columns(real) if columns is None else columns)
    absent = [c for c in columns if c not in real or c not in sampled]
    if absent:
        raise DataError("columns", f"names {absent[0]!r}, which is not in both frames", "Choose columns of both.")
    count = min(len(real), len(sampled), max_points)
    rng = np.random.default_rng(seed)
    frames = [f.iloc[rng.choice(len(f), count, replace=False)][columns] for f in (real, sampled)]
    axis_of = {c: _AxisScale(c, real, sampled) for c in columns}
    n = len(columns)
    figure = Picture(figsize=(2.1 * n + 0.6, 2.1 * n + 0.9), layout="constrained")
    axes = figure.subplots(n, n, squeeze=False)
    for i, row in enumerate(columns):
        for j, column in enumerate(columns):
            ax = axes[i, j]
            if i == j:
                _marginal(ax, axis_of[row], real, sampled)
            else:
                frame, colour = (frames[0], REAL) if i > j else (frames[1], SAMPLED)
                jitter = np.random.default_rng(seed)
                x, y = axis_of[column].numbers(frame, jitter), axis_of[row].numbers(frame, jitter)
                ax.plot(x, y, ".", color=colour, ms=3, alpha=0.35, mew=0, rasterized=True)
                ax.set_ylim(axis_of[row].limits)
                axis_of[row].label(ax.yaxis)
            ax.set_xlim(axis_of[column].limits)
            axis_of[column].label(ax.xaxis)
            ax.tick_params(labelsize=7, length=2, labelbottom=i == n - 1, labelleft=j == 0 and i != 0)
            ax.spines[["top", "right"]].set_visible(False)
            if i == n - 1:
                ax.set_xlabel(_short(column), fontsize=8)
            if j == 0:
                ax.set_ylabel(_short(row), fontsize=8)
    handles = [
        figure.axes[0].plot([], [], "o", color=colour, label=label)[0]
        for colour, label in (
            (REAL, f"real ({len(real)} rows; below)"),
            (SAMPLED, f"sampled ({len(sampled)} rows; above)"),
        )
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def informative_columns(frame: pd.DataFrame, most: int = 5) -> list[str]:
    """Columns worth a look: greedily, the one whose strongest rank correlation with those before is nearest to .6.

    Near-copies (correlation almost 1) show as a line and independent columns as a cloud; neither shows much.
    """
    strength, most = rank_correlation(frame), whole_number("most", most, 2)
    np.fill_diagonal(strength, 0.0)
    if len(frame.columns) <= most:
        return list(frame.columns)
    interest = 1.0 - np.abs(strength - 0.6)
    first, second = np.unravel_index(interest.argmax(), interest.shape)
    chosen = [int(first), int(second)]
    categorical = [j for j, c in enumerate(frame.columns) if not pd.api.types.is_numeric_dtype(frame[c])]
    while len(chosen) < most:
        rest = [j for j in range(len(frame.columns)) if j not in chosen]
        if len(chosen) == most - 1 and categorical and not set(categorical) & set(chosen):
            rest = categorical  # at least one category, if there is any
        chosen.append(max(rest, key=lambda j: interest[j, chosen].mean() - 2.0 * (strength[j, chosen].max() > 0.95)))
    return [frame.columns[j] for j in sorted(chosen)]


def rank_correlation(frame: pd.DataFrame) -> np.ndarray:
    """Strength, 0 to 1, of the rank correlation of every two columns, ``[N, N]``; categories are ranked by code."""
    instance("frame", frame, pd.DataFrame, "Pass a pandas.DataFrame, one row an item.", DataError)
    if not frame.columns.is_unique:
        raise DataError("frame", "names a column twice", "Give each column its own name.")
    try:
        codes = {
            name: c.astype(float) if pd.api.types.is_numeric_dtype(c) else c.astype("category").cat.codes
            for name, c in frame.items()
        }
    except (TypeError, ValueError) as error:  # cells that hold several values, or complex numbers
        raise DataError("frame", f"holds what has no order ({error})", "Pass numbers and categories.") from error
    strength: np.ndarray = pd.DataFrame(codes).astype(float).rank().corr().abs().fillna(0.0).to_numpy(copy=True)
    return strength


class _AxisScale:
    """How a column is laid out on an axis: numbers as they are, categories as positions 0 .. K-1 with jitter."""

    def __init__(self, column: str, real: pd.DataFrame, sampled: pd.DataFrame) -> None:
        self.column = column
        both = pd.concat([real[column], sampled[column]])
        self.is_numeric = pd.api.types.is_numeric_dtype(both.dtype) and not pd.api.types.is_bool_dtype(both.dtype)
        if self.is_numeric:
            low, high = np.nanpercentile(both.astype(float), [0.2, 99.8])
            margin = 0.05 * (high - low) or 1.0
            self.limits = (low - margin, high + margin)
            self.levels: list[object] = []
        else:
            self.levels = sorted(both.dropna().unique(), key=str)
            self.limits = (-0.6, len(self.levels) - 0.4)

    def numbers(self, frame: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
        values = frame[self.column]
        if self.is_numeric:
            return values.to_numpy(float, na_value=np.nan)
        codes = pd.Categorical(values, self.levels).codes.astype(float)
        return np.where(codes < 0, np.nan, codes + rng.uniform(-0.25, 0.25, len(codes)))

    def label(self, axis: Axis) -> None:
        if self.levels:
            axis.set_ticks(range(len(self.levels)), [_short(str(level), 10) for level in self.levels])


def _marginal(ax: Axes, scale: _AxisScale, real: pd.DataFrame, sampled: pd.DataFrame) -> None:
    styles: tuple[dict[str, Any], ...] = ({"alpha": 0.35}, {"fill": False, "lw": 1.3})
    for frame, colour, style in zip((real, sampled), (REAL, SAMPLED), styles, strict=True):
        values = frame[scale.column].dropna()
        if scale.is_numeric:
            edges = np.linspace(*scale.limits, 31).tolist()
            ax.hist(values.astype(float), edges, density=True, color=colour, ec=colour, histtype="stepfilled", **style)
        else:
            share = values.value_counts(normalize=True).reindex(scale.levels, fill_value=0.0)
            ax.bar(range(len(scale.levels)), share, 0.7, color=colour, ec=colour, **style)
    ax.set_yticks([])


def _short(text: object, most: int = 22) -> str:
    text = str(text)
    return text if len(text) <= most else text[: most - 1] + "…"
