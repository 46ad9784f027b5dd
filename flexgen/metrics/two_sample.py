"""Can a classifier tell two sets of rows apart? (Lopez-Paz & Oquab 2017.) Of independent rows, or of whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from flexgen import rng
from flexgen.errors import DataError

__all__ = ["TwoSampleResult", "classifier_two_sample_test", "compare_groups"]

_MOST_CATEGORIES = 255  # that trees take; a column with more is used as a number


@dataclass(frozen=True)
class TwoSampleResult:
    """Result of `classifier_two_sample_test`.

    Args:
        auc: area under the ROC curve of held-out scores; 1/2 where the two sets are indistinguishable.
        standard_error: of the area when the two distributions are equal (Mann-Whitney; of groups, by permutations).
        p_value: one-sided, of an area this large when the two distributions are equal.
        num_rows: rows of each set; of groups, their number.
        spread: standard error of the area as it is, for an interval; None where rows are independent.
    """

    auc: float
    standard_error: float
    p_value: float
    num_rows: tuple[int, int]
    spread: float | None = None

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f} (equal distributions: 0.500 ± {self.standard_error:.3f}; p = {self.p_value:.2g})"


def classifier_two_sample_test(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    groups: tuple[Sequence[Any], Sequence[Any]] | None = None,
    num_folds: int = 5,
    num_permutations: int = 999,
    seed: int = 0,
) -> TwoSampleResult:
    """Cross-validated gradient-boosted trees that classify which set a row is from.

    Within a fold, held-out scores of the two sets are exchangeable when the distributions are equal, which gives the
    area its Mann-Whitney distribution; the folds' areas are averaged. Without `groups` rows must be independent.

    Args:
        first, second: rows with the same columns; text and categories are compared as codes.
        groups: what each row of either set belongs to (a chain, a patient), where rows of one group resemble each
            other. Folds then hold whole groups, and the p-value shuffles whole groups; see `compare_groups`.
        num_permutations: of groups.

    Raises:
        DataError: other columns, too few rows or groups for the folds, groups of another length than the rows.
    """
    if list(first.columns) != list(second.columns):
        raise DataError("second", "has other columns than first", "Pass the same columns in the same order.")
    if min(len(first), len(second)) < 2 * num_folds:
        raise DataError(
            "first", f"and second have {len(first)} and {len(second)} rows", f"Pass {2 * num_folds} or more of each."
        )
    both = pd.concat([first, second], ignore_index=True)
    types = pd.api.types
    categorical = [not types.is_numeric_dtype(dtype) or types.is_bool_dtype(dtype) for dtype in both.dtypes]
    x = np.column_stack(
        [
            pd.factorize(both[c], sort=False)[0] if is_cat else both[c].to_numpy(float)
            for c, is_cat in zip(both, categorical, strict=True)
        ]
    )
    categorical = [is_cat and x[:, j].max() < _MOST_CATEGORIES for j, is_cat in enumerate(categorical)]
    if groups is not None:
        codes = []
        for name, rows, labels in zip(("first", "second"), (first, second), groups, strict=True):
            if len(labels) != len(rows):
                raise DataError(
                    "groups", f"of {name} are {len(labels)}", f"Name the group of each of {len(rows)} rows."
                )
            codes.append(pd.factorize(np.asarray(labels))[0])
            if codes[-1].max() + 1 < 2 * num_folds:
                raise DataError("groups", f"of {name} are {codes[-1].max() + 1}", f"Pass {2 * num_folds} or more.")
        counts = [int(code.max()) + 1 for code in codes]
        group = np.concatenate([codes[0], codes[1] + counts[0]])
        source = rng.stream(seed, "two-sample")
        return compare_groups(x, group, counts, categorical, num_folds, num_permutations, source)
    y = np.repeat([0, 1], [len(first), len(second)])
    areas, variances = [], []
    for train, test in StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(x, y):
        trees = HistGradientBoostingClassifier(categorical_features=categorical, max_iter=100, random_state=seed)
        score = trees.fit(x[train], y[train]).predict_proba(x[test])[:, 1]
        ranks = stats.rankdata(score)
        n1 = int(y[test].sum())
        n0 = len(test) - n1
        areas.append((ranks[y[test] == 1].sum() - n1 * (n1 + 1) / 2) / (n0 * n1))
        _, ties = np.unique(score, return_counts=True)
        n = n0 + n1
        variances.append((n + 1 - (ties**3 - ties).sum() / (n * (n - 1))) / (12 * n0 * n1))
    auc, error = float(np.mean(areas)), float(np.sqrt(np.sum(variances)) / num_folds)
    return TwoSampleResult(auc, error, float(stats.norm.sf((auc - 0.5) / error)), (len(first), len(second)))


def compare_groups(
    x: np.ndarray[Any, Any],
    group: np.ndarray[Any, Any],
    counts: Sequence[int],
    categorical: Sequence[bool],
    num_folds: int,
    num_permutations: int,
    source: torch.Generator,
) -> TwoSampleResult:
    """The test where rows of a group resemble each other: trees would learn to know a group by its other rows.

    A fold holds whole groups, and each fold but the first is scored by trees that learned from the folds before it. The
    p-value shuffles whole groups of the scored folds between the two sets, the trees being fixed. (Cross-validation,
    where every fold also teaches the others, makes the folds' areas depend on each other: with it the test refuted
    twice as often as it should.) With two folds, half of the groups teach and half are scored, and the p-value is exact
    where groups are exchangeable.

    Args:
        x: ``[n, F]``, codes or numbers.
        group: int ``[n]``, ``0 .. G-1``: groups of the first set, then of the second.
        counts: groups of each set.
        categorical: ``[F]``, which columns are codes of at most 255 categories.
    """
    label = torch.arange(sum(counts)) >= counts[0]  # [G]
    fold = torch.cat([rng.permutation(1, count, generator=source)[0] % num_folds for count in counts])
    seed = int(rng.integers(1 << 31, (1,), generator=source))
    areas, shuffled, variances = [], [], []
    for k in range(1, num_folds):
        taught, test = (fold < k).numpy()[group], (fold == k).nonzero()[:, 0]
        trees = HistGradientBoostingClassifier(
            categorical_features=list(categorical), max_iter=100, early_stopping=False, random_state=seed
        )
        trees.fit(x[taught], label.numpy()[group[taught]])
        wins = _wins([trees.predict_proba(x[group == g])[:, 1] for g in test.tolist()])
        truth = label[test]
        orders = rng.permutation(num_permutations, len(test), generator=source)
        area, variance = _area(wins, truth)
        areas.append(area)
        variances.append(variance)
        shuffled.append(_areas(wins, truth[orders]))
    auc = torch.stack(areas).mean()
    null = torch.stack(shuffled).mean(0)
    # Equal up to rounding counts as equal.
    p = (1 + int((null >= auc - 1e-9 * float(auc)).sum())) / (num_permutations + 1)
    spread = float(torch.stack(variances).sum().sqrt()) / (num_folds - 1)
    return TwoSampleResult(float(auc), float(null.std()), p, (counts[0], counts[1]), spread)


def _wins(scores: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    """How often a row of group u scores above one of group v, ties counted half: ``[U, U]``."""
    flat, starts = np.concatenate(scores), np.cumsum([0, *map(len, scores)])[:-1]
    out = np.zeros((len(scores), len(scores)))
    for v, other in enumerate(scores):
        ordered = np.sort(other)
        below = np.searchsorted(ordered, flat, "left") + np.searchsorted(ordered, flat, "right")
        out[:, v] = np.add.reduceat(below, starts) / [2 * len(score) * len(other) for score in scores]
    return torch.from_numpy(out)


def _areas(wins: Tensor, labels: Tensor) -> Tensor:
    """The area for each labelling, ``[P]`` from bool ``[P, U]``."""
    second = labels.to(torch.float64)
    first = 1 - second
    return ((second @ wins) * first).sum(1) / (second.sum(1) * first.sum(1))


def _area(wins: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The area and its variance by the spread of the groups' own areas (DeLong, clustered: Obuchowski 1997)."""
    between = wins[label][:, ~label]
    rows, columns = between.mean(1), between.mean(0)
    return between.mean(), rows.var() / len(rows) + columns.var() / len(columns)
