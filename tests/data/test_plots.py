"""The comparison picture: what is shown, and refusals."""

import pandas as pd
import pytest

from flexgen.data import load_table
from flexgen.errors import DataError
from flexgen.plots import compare_rows, informative_columns


@pytest.mark.parametrize("name", ["iris", "diabetes", "breast_cancer"])
def test_it_draws_every_pair(name, tmp_path):
    frame = load_table(name)
    columns = informative_columns(frame)
    assert len(columns) == 5
    figure = compare_rows(frame, frame.sample(50, random_state=0))
    assert len(figure.axes) == 25
    assert [axis.get_xlabel() for axis in figure.axes[-5:]] == [c if len(c) <= 22 else f"{c[:21]}…" for c in columns]
    figure.savefig(tmp_path / "pairs.png")


def test_real_rows_stand_below_and_sampled_above():
    real, sampled = pd.DataFrame({"a": [0.0, 1], "b": [0.0, 1]}), pd.DataFrame({"a": [2.0, 3], "b": [2.0, 3]})
    figure = compare_rows(real, sampled)
    above, below = figure.axes[1].lines[0], figure.axes[2].lines[0]
    assert sorted(above.get_xdata()) == [2, 3]
    assert sorted(below.get_xdata()) == [0, 1]


def test_a_category_is_among_the_columns_if_there_is_one():
    assert "target" in informative_columns(load_table("breast_cancer"))


def test_columns_of_one_frame_only_are_refused():
    frame = load_table("iris")
    with pytest.raises(DataError, match="columns: names 'height', which is not in both frames"):
        compare_rows(frame, frame, ["height"])
