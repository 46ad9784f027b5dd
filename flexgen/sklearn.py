"""scikit-learn's interface to `TableModel`: drops into a Pipeline where IterativeImputer stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from flexgen.errors import DataError
from flexgen.space import Kind
from flexgen.table_model import LEAST_ROWS, METHODS, TableModel, TableSettings

__all__ = ["TableImputer"]


class TableImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Fills missing entries from a `TableModel`'s conditional distributions given the entries present.

    Data frames keep their dtypes, so categories are imputed as categories; arrays are numbers throughout. Fitting sees
    missing entries too, and `transform` applies to rows it never saw.

    Args:
        method: ``"mean"`` (categorical columns: the most probable level), ``"mode"`` or ``"draw"`` (one joint draw a
            row; fit several imputers, or call ``imputer.model_.impute``, for multiple imputation).
        kinds: column -> "real", "integer" or "categorical", where a dtype does not say what is meant.
        settings: how the model is fitted; see `TableSettings`.
        random_state: seed of the fit and of draws; an int, a numpy RandomState or None.
        unknown: what `transform` does with a level that `fit` did not see, as a rare one in a test fold may be:
            ``"error"``, or ``"missing"``: treat it as a missing entry, which is then filled like any other.
        progress: show the training's progress bar.

    Attributes:
        model_: the fitted `TableModel`.

    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.linear_model import LogisticRegression
    >>> pipeline = make_pipeline(TableImputer(random_state=0), LogisticRegression())
    """

    def __init__(
        self,
        *,
        method: Literal["mean", "mode", "draw"] = "mean",
        kinds: Mapping[str, Kind] | None = None,
        settings: TableSettings | None = None,
        random_state: int | np.random.RandomState | None = None,
        unknown: Literal["error", "missing"] = "error",
        progress: bool = False,
    ) -> None:
        self.method = method
        self.kinds = kinds
        self.settings = settings
        self.random_state = random_state
        self.unknown = unknown
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 - scikit-learn's signature
        """Args: X: data frame or array ``[rows, columns]``, NaN (or None, NA) where missing; y is ignored."""
        if self.method not in METHODS:
            raise DataError("method", f"is {self.method!r}", "Choose 'mean', 'mode' or 'draw'.")
        if self.unknown not in ("error", "missing"):
            raise DataError("unknown", f"is {self.unknown!r}", "Choose 'error' or 'missing'.")
        frame = self._frame(X, reset=True)
        # Columns without a value cannot be learned; as in SimpleImputer(keep_empty_features=True) they become zeros.
        self.empty_ = [name for name in frame if frame[name].isna().all()]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        known = frame.drop(columns=self.empty_)
        self.model_ = TableModel.fit(known, kinds=self.kinds, settings=self.settings, seed=seed, progress=self.progress)
        self.draw_seed_ = seed
        return self

    def transform(self, X: Any) -> Any:
        """X with its missing entries filled: a frame for a frame, an array for an array."""
        check_is_fitted(self)
        frame = self._frame(X, reset=False)
        known = frame.drop(columns=self.empty_)
        if self.unknown == "missing":
            known = self.model_.schema.without_unknown(known)
        filled = self.model_.impute(known, method=self.method, generator=self.draw_seed_)
        for name in self.empty_:
            filled[name] = frame[name].astype(float).fillna(0.0)
        filled = filled[list(frame)]
        return filled if isinstance(X, pd.DataFrame) else filled.to_numpy(np.float64)

    def _frame(self, X: Any, *, reset: bool) -> pd.DataFrame:
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X.rename(columns=str)
        least = LEAST_ROWS if reset else 1
        X = validate_data(
            self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=least
        )
        return pd.DataFrame(X, columns=[f"x{j}" for j in range(X.shape[1])])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        return tags
