"""Can a classifier tell two sets of rows apart? (Lopez-Paz & Oquab 2017.)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

from flexgen.errors import DataError

__all__ = ["TwoSampleResult", "classifier_two_sample_test"]


@dataclass(frozen=True)
class TwoSampleResult:
    """Result of `classifier_two_sample_test`.

    Args:
        auc: area under the ROC curve of held-out scores; 1/2 where the two sets cannot be told apart.
        standard_error: of the area when the two distributions are equal (Mann-Whitney).
        p_value: one-sided, of an area this large when the two distributions are equal.
        num_rows: rows of each set.
    """

    auc: float
    standard_error: float
    p_value: float
    num_rows: tuple[int, int]

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f} (equal distributions: 0.500 ± {self.standard_error:.3f}; p = {self.p_value:.2g})"


def classifier_two_sample_test(
    first: pd.DataFrame, second: pd.DataFrame, *, num_folds: int = 5, seed: int = 0
) -> TwoSampleResult:
    """Cross-validated gradient-boosted trees, asked which set a row is from.

    Within a fold, held-out scores of the two sets are exchangeable when the distributions are equal, which gives the
    area its Mann-Whitney distribution; the folds' areas are averaged. Rows must be independent: thin chains first.

    Args:
        first, second: rows with the same columns; text and categories are compared as codes.
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
    # Trees take at most 255 categories; a column with more is used as a number.
    categorical = [is_cat and x[:, j].max() < 255 for j, is_cat in enumerate(categorical)]
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
