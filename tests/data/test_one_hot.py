"""Tables as matrices for scikit-learn, and back."""

from __future__ import annotations

import numpy as np
import pandas as pd

from flexgen.data import TableSchema
from flexgen.data.one_hot import OneHot
from tests.tables.small import mixed_table, with_gaps


def test_a_complete_matrix_fills_the_gaps_with_the_truth() -> None:
    frame = mixed_table()
    coding = OneHot(TableSchema.infer(frame))
    matrix, gapped = coding.encode(frame), with_gaps(frame)
    assert matrix.shape == (150, 5 + 1 + 2)  # five columns of numbers, two levels, three levels
    pd.testing.assert_frame_equal(coding.decode(matrix, gapped), frame)


def test_a_gap_is_missing_in_all_of_its_codes_and_the_largest_share_fills_it() -> None:
    frame = pd.DataFrame({"grade": ["low", "mid", "high", None]})
    coding = OneHot(TableSchema.infer(frame))  # levels high, low, mid
    np.testing.assert_array_equal(coding.encode(frame), [[0, 1], [0, 0], [1, 0], [np.nan, np.nan]])
    shares = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.2, 0.3]])
    assert coding.decode(shares, frame)["grade"].tolist() == ["low", "mid", "high", "mid"]
