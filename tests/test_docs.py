"""The code of the page on imputing runs, and its results are what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from flexgen import table_model
from tests.tables.small import EXACT

PAGE = Path(__file__).parents[1] / "docs" / "imputing.md"


def test_imputing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit = table_model.fit_table
    quick = lambda x, space, law, _, **options: fit(x, space, law, EXACT, **options)  # noqa: E731
    monkeypatch.setattr(table_model, "fit_table", quick)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 9
    names: dict = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    df, filled = names["df"], pd.read_csv(tmp_path / "filled.csv")
    assert filled.shape == df.shape
    assert not filled.isna().any().any()
    assert not names["filled"].isna().any().any()
    assert names["draws"].index.nlevels == 2
    assert len(names["slopes"]) == 20
    assert list(names["answers"]["bmi"].columns) == ["mean", "sd", "q10", "q90"]
    assert names["nats"].notna().all()
    assert names["rows"].index.names == ["chain", "draw"]
    assert len(names["rows"]) == 80
