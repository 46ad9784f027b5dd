"""Small tables and settings with which a table model is fitted in a second: shared by the tests of table models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from flexgen.tables import TableSettings

__all__ = ["EXACT", "LONGER", "NETWORK", "mixed_table", "with_gaps"]

EXACT = TableSettings(num_networks=0, restarts=1, classes=(2,), ridges=(1e-2,))
"""Exact members alone."""

NETWORK = TableSettings(
    num_networks=1, num_steps=12, batch_size=64, width=16, depth=1, num_components=3, restarts=1, classes=(2,),
    ridges=(1e-2,), small_rows=0,
)  # fmt: skip
"""One network on one fold."""

LONGER = replace(NETWORK, num_steps=60)
"""For a test that kills a fit."""


def mixed_table(num_rows: int = 150, *, seed: int = 0) -> pd.DataFrame:
    """Columns of every kind, dependent on each other, without gaps."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num_rows, 3)) @ np.array([[1, 0.6, 0.3], [0, 0.8, 0.2], [0, 0, 0.9]])
    columns: dict[str, Any] = {
        "real": z[:, 0],
        "skewed": np.exp(z[:, 1]),
        "whole": np.round(10 * z[:, 2]).astype(int),
        "few": np.digitize(z[:, 1], [-0.5, 0.5]).astype(float),
        "zeros": np.where(z[:, 0] > 0.3, 0.0, 2 * z[:, 2] + 5),
        "kind": np.where(z[:, 0] + rng.normal(size=num_rows) > 0, "a", "b"),
        "grade": pd.Categorical.from_codes(np.digitize(z[:, 2], [-0.5, 0.7]), ["low", "mid", "high"], ordered=True),
    }
    return pd.DataFrame(columns, index=[f"row {i}" for i in range(num_rows)])


def with_gaps(frame: pd.DataFrame, share: float = 0.2, *, seed: int = 1) -> pd.DataFrame:
    """Entries missing at random."""
    return frame.mask(np.random.default_rng(seed).random(frame.shape) < share)
