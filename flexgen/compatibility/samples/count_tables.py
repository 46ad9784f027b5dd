"""Tables of counts as users have them, tensors or data frames with names of their own, read for the tests on counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen.checks import kind_of
from flexgen.compatibility.exact.family import ConditionalFamily, Labels
from flexgen.compatibility.samples.arguments import numbers
from flexgen.compatibility.samples.rectangle_gaps import LogOddsGap
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import ConditionalTables

__all__ = ["CountTables", "read_counts"]

_MAX_STATES = 4096
_FIX = "Pass whole numbers, 0 or more."


@dataclass(frozen=True, eq=False)
class CountTables:
    """Counts of the categories that were seen.

    Args:
        tables: float64 ``[N, V_0, .., V_{N-1}]``, of the categories that some sample saw.
        names: of the sites.
        categories: of each site, those never seen among them.
        kept: of each site the codes of those that some sample saw.
    """

    tables: Tensor
    names: tuple[str, ...]
    categories: tuple[tuple[Hashable, ...], ...]
    kept: tuple[tuple[int, ...], ...]

    @property
    def never_seen(self) -> tuple[str, ...]:
        """What no sample holds, in the users' words: ``"smoker=never"``."""
        return tuple(
            f"{name}={label}"
            for name, labels, kept in zip(self.names, self.categories, self.kept, strict=True)
            for code, label in enumerate(labels)
            if code not in kept
        )

    @property
    def unseen_rests(self) -> tuple[int, ...]:
        """Of each site i the number of rests that sample i never holds, so that no row tells p(x_i | rest)."""
        return tuple(int((table.sum(i) == 0).sum()) for i, table in enumerate(self.tables))

    def labelled(self, gap: LogOddsGap) -> LogOddsGap:
        """A rectangle of `tables` in the codes and the words of all categories."""
        codes = tuple(kept[code] for kept, code in zip(self.kept, gap.context, strict=True))
        values = tuple(
            (self.kept[site][a], self.kept[site][b]) for site, (a, b) in zip(gap.sites, gap.values, strict=True)
        )
        told = [
            f"{self.names[site]} in {{{self.categories[site][a]}, {self.categories[site][b]}}}"
            for site, (a, b) in zip(gap.sites, values, strict=True)
        ]
        given = [f"{self.names[k]}={self.categories[k][code]}" for k, code in enumerate(codes) if k not in gap.sites]
        where = ", ".join(told) + (f" given {', '.join(given)}" if given else "")
        return replace(gap, values=(values[0], values[1]), context=codes, where=where)


def read_counts(counts: Any, labels: Labels | None) -> CountTables:
    """Checked counts of independent samples over the same sites.

    Args:
        counts: for each site a table of counts; data frames are matched by the labels of their rows and columns.
        labels: names of sites and categories, as in `ConditionalFamily`. Default: those of the frames.

    Raises:
        DataError: tables that are not counts of independent samples over the same sites, or too large.
        FlexgenError: labels that do not fit.
    """
    if isinstance(counts, str) or not isinstance(counts, Iterable):
        raise DataError("counts", f"is {kind_of(counts)}", "Pass a list of tables, one a site.")
    parts = list(counts)
    if len(parts) == 2 and all(_is_frame(part) for part in parts):
        parts, labels = _aligned(parts, labels)
    tables = [numbers(f"counts[{i}]", table, _FIX).to("cpu", torch.float64) for i, table in enumerate(parts)]
    _check(tables)
    shape = tuple(tables[0].shape)
    uniform = ConditionalTables([torch.full(shape, 1 / size, dtype=torch.float64) for size in shape])
    family = ConditionalFamily.of_tables(uniform, labels=labels)  # which reads and checks labels
    stacked = torch.stack(tables)
    kept = []
    for site in range(len(shape)):
        seen = stacked.movedim(site + 1, 0).flatten(1).any(1)
        kept.append(seen.nonzero()[:, 0])
        stacked = stacked.index_select(site + 1, kept[-1])
    return CountTables(stacked, family.names, family.labels, tuple(tuple(codes.tolist()) for codes in kept))


def _check(tables: Sequence[Tensor]) -> None:
    shape = tuple(tables[0].shape) if tables else ()
    if len(tables) < 2 or len(shape) != len(tables):
        raise DataError(
            "counts",
            f"holds {len(tables)} table(s) of shape {shape}",
            "Pass one table of counts a site, two sites or more, each with one axis a site.",
        )
    for i, table in enumerate(tables):
        if tuple(table.shape) != shape:
            raise DataError(f"counts[{i}]", f"has shape {tuple(table.shape)}, counts[0] {shape}", "Count all sites.")
        if not bool(((table >= 0) & (table == table.round()) & table.isfinite()).all()):
            raise DataError(f"counts[{i}]", "holds a number that is no count", _FIX)
        if not table.any():
            raise DataError(f"counts[{i}]", "holds no row", "Count at least one row a sample.")
    if min(shape) < 2:
        raise DataError("counts", f"has shape {shape}", "Leave out sites of a single value.")
    if math.prod(shape) > _MAX_STATES:
        raise DataError("counts", f"has {math.prod(shape)} states", f"Test blocks of sites of up to {_MAX_STATES}.")
    for i, j in itertools.combinations(range(len(tables)), 2):
        if torch.equal(tables[i], tables[j]):
            raise DataError(
                "counts",
                f"hold one table twice, for sites {i} and {j}",
                "Conditionals counted from one sample share its joint: count each from a sample of its own.",
            )


def _is_frame(value: Any) -> bool:
    """A data frame of pandas, which is not imported for that."""
    return all(hasattr(value, name) for name in ("index", "columns", "to_numpy")) and getattr(value, "ndim", 0) == 2


def _ends_in_totals(table: np.ndarray[Any, Any]) -> bool:
    """Whether the last row and the last column are sums of others; of a table of two of each that may be chance."""
    return min(table.shape) > 2 and all(np.array_equal(part[-1], part[:-1].sum(0)) for part in (table, table.T))


def _listed(labels: Any) -> list[tuple[Hashable, ...]]:
    """The categories that labels name, site by site; none without labels."""
    groups = list(labels.values()) if isinstance(labels, Mapping) else () if labels is None else labels
    for each in (groups, *(groups if isinstance(groups, Iterable) else ())):
        if not isinstance(each, Iterable):
            raise FlexgenError("labels", f"is {kind_of(each)}", "Pass names with categories: {'sex': ['f', 'm'], ..}.")
    return [tuple(each) for each in groups]


def _aligned(frames: Sequence[Any], labels: Labels | None) -> tuple[list[np.ndarray[Any, Any]], Labels | None]:
    """Frames over the same categories in the same order, 0 where one lacks a category, and names for all."""
    axes = [[list(axis) for axis in (frame.index, frame.columns)] for frame in frames]
    titles = [[axis.name for axis in (frame.index, frame.columns)] for frame in frames]
    for i, (title, axis) in enumerate(zip(titles, axes, strict=True)):
        named = [(one, other) for one, other in zip(title, titles[0], strict=True) if None not in (one, other)]
        if any(one != other for one, other in named):
            raise DataError(f"counts[{i}]", f"is of {title}, counts[0] of {titles[0]}", "Count all in the same order.")
        for labelled in axis:
            if len(set(labelled)) < len(labelled):
                raise DataError(f"counts[{i}]", "has a row or a column twice", "Give each category one of its own.")
    categories = [list(dict.fromkeys([*first, *second])) for first, second in zip(*axes, strict=True)]
    given = _listed(labels)
    if len(given) == 2:
        numbered = [list(range(len(each))) for each in given]
        if all(set(each) <= set(mine) for each, mine in zip(categories, given, strict=True)):
            categories = [list(each) for each in given]
        elif all(set(each) <= set(mine) for each, mine in zip(categories, numbered, strict=True)):
            categories = numbered  # codes in the frames, words in the labels
        else:
            missing = [x for each, mine in zip(categories, given, strict=True) for x in each if x not in mine]
            raise FlexgenError("labels", f"lack {missing[0]!r}, which the frames hold", "Name all, or pass none.")
    if labels is None:
        names = [titles[0][k] if titles[0][k] is not None else titles[1][k] for k in range(2)]
        told = [f"x{k}" if name is None else str(name) for k, name in enumerate(names)]
        labels = dict(zip(told, categories, strict=True)) if len(set(told)) == 2 else categories
    tables = []
    for i, (frame, (rows, columns)) in enumerate(zip(frames, axes, strict=True)):
        values = numbers(f"counts[{i}]", frame, _FIX).numpy()
        if rows and columns and rows[-1] == columns[-1] and _ends_in_totals(values):
            raise DataError(f"counts[{i}]", f"holds its totals as {rows[-1]!r}", "Count without them: margins=False.")
        table = np.zeros([len(each) for each in categories], dtype=values.dtype)
        table[np.ix_([categories[0].index(x) for x in rows], [categories[1].index(x) for x in columns])] = values
        tables.append(table)
    return tables, labels
