"""Counts as users have them: frames, labels, categories that nobody saw; and what the tests on counts print."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from flexgen.compatibility.samples.counts import bootstrap_test, refits_test, wald_test
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from tests.compatibility.samples import GAPPED, JOINT, sample_counts
from tests.conditionals import generator

FIRST, SECOND = sample_counts([JOINT, GAPPED], 300, 1, seed=8)[0]
LABELS = {"sex": ["f", "m", "x"], "smoker": ["no", "yes", "ex"]}


def frame(table: Any, rows: str, columns: str) -> pd.DataFrame:
    named = {"index": pd.Index(list(rows), name="sex"), "columns": pd.Index(list(columns), name="age")}
    return pd.DataFrame(np.asarray(table), **named)


def test_compatibility_frames_are_matched_by_their_labels() -> None:
    expected = wald_test([FIRST, SECOND], labels={"sex": "fmx", "age": "abc"})
    order = torch.tensor([2, 0, 1])
    shuffled = frame(SECOND[order][:, order], "xfm", "cab")
    found = wald_test([frame(FIRST, "fmx", "abc"), shuffled])
    assert found == expected
    assert found.names == ("sex", "age")
    assert re.search(r"sex in \{[fmx], [fmx]\}, age in \{[abc], [abc]\}\)", str(found))
    # A cross table leaves out what its sample did not hold.
    short = SECOND.clone()
    short[1] = 0
    assert wald_test([frame(FIRST, "fmx", "abc"), frame(short[[0, 2]], "fx", "abc")]) == wald_test(
        [FIRST, short], labels={"sex": "fmx", "age": "abc"}
    )
    plain = [pd.DataFrame(table.numpy()) for table in (FIRST, SECOND)]
    assert wald_test(plain) == wald_test([FIRST, SECOND])
    assert wald_test(plain, labels=LABELS) == wald_test([FIRST, SECOND], labels=LABELS)
    assert bootstrap_test(plain, labels=LABELS, generator=0, num_draws=19) == bootstrap_test(
        [FIRST, SECOND], labels=LABELS, generator=0, num_draws=19
    )


def test_compatibility_tables_of_any_kind_are_taken_without_a_warning() -> None:
    expected = wald_test([FIRST, SECOND])
    locked = [table.numpy().copy() for table in (FIRST, SECOND)]
    for table in locked:
        table.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wald_test(locked) == expected
        assert wald_test([table.tolist() for table in locked]) == expected
        assert wald_test([pd.DataFrame(locked[0]), locked[1]]) == expected
        assert wald_test([pd.DataFrame(table).astype("Int64") for table in locked]) == expected
        laws = [pd.DataFrame(np.asarray(t)) for t in JointTable(JOINT).conditional_tables().tables]
        refits = torch.rand(30, 2, 3, 3, generator=generator(0), dtype=torch.float64) + 0.5
        assert refits_test(laws, [[pd.DataFrame(t.numpy()) for t in r] for r in refits]).p_value >= 0


def test_compatibility_totals_of_a_cross_table_are_no_category() -> None:
    samples = [pd.DataFrame({"a": list("uvuv"), "b": list(b)}) for b in ("xyxx", "yyxx")]
    crossed = [pd.crosstab(sample["a"], sample["b"], margins=True) for sample in samples]
    with pytest.raises(DataError, match=re.escape("counts[0]: holds its totals as 'All'. Count without them")):
        wald_test(crossed)
    assert wald_test([table.drop("All").drop(columns="All") for table in crossed]).degrees_of_freedom == 1
    even = pd.DataFrame(torch.full((2, 2), 5.0).numpy(), index=["no", "yes"], columns=["no", "yes"])
    assert wald_test([even, even + 1]).verdict == "not refuted"


def test_compatibility_labels_name_the_worst_rectangle_of_three_sites() -> None:
    joints = [JointTable.random((2, 3, 2), generator=generator(seed)).p for seed in range(3)]
    counts = list(sample_counts(joints, 500, 1, seed=0)[0])
    labels = {"sex": "fm", "smoker": LABELS["smoker"], "age": ("young", "old")}
    bare, named = wald_test(counts).worst, wald_test(counts, labels=labels).worst
    (i, j), ((a, b), (c, d)) = bare.sites, bare.values
    (k,) = {0, 1, 2} - {i, j}
    names, words = list(labels), [list(each) for each in labels.values()]
    expected = (
        f"{names[i]} in {{{words[i][a]}, {words[i][b]}}}, {names[j]} in {{{words[j][c]}, {words[j][d]}}} "
        f"given {names[k]}={words[k][bare.context[k]]}"
    )
    assert named.where == expected
    assert bare.where == re.sub(r"^.*$", f"x{i} in {{{a}, {b}}}, x{j} in {{{c}, {d}}} given x{k}={bare.context[k]}", "")
    assert (named.values, named.context, named.gap) == (bare.values, bare.context, bare.gap)


def test_compatibility_categories_never_seen_are_left_out_and_told() -> None:
    wide = [torch.zeros(3, 4, dtype=torch.float64) for _ in range(2)]
    for table, counts in zip(wide, (FIRST, SECOND), strict=True):
        table[:, [0, 1, 3]] = counts
    labels = {"sex": "fmx", "smoker": ["no", "yes", "never asked", "ex"]}
    found, expected = wald_test(wide, labels=labels, margin=50.0), wald_test([FIRST, SECOND], margin=50.0)
    assert (found.statistic, found.degrees_of_freedom, found.p_value) == (expected.statistic, 4, expected.p_value)
    assert found.never_seen == ("smoker=never asked",)
    assert "never seen, left out and not tested: smoker=never asked" in str(found)
    assert expected.never_seen == ()
    assert "never seen" not in str(expected)
    place = [0, 1, 3]
    assert found.worst.values[1] == tuple(place[code] for code in expected.worst.values[1])
    # No margin holds for what nobody saw.
    assert expected.verdict == "equivalent within margin"
    assert found.verdict == "not refuted"
    assert json.loads(json.dumps(found.to_dict()))["never_seen"] == ["smoker=never asked"]
    shapes = []

    def project(tables: ConditionalTables) -> Any:
        shapes.append(tables.shape)
        return JOINT

    bootstrap_test(wide, generator=0, num_draws=19, project=project)
    assert shapes == [(3, 3)]


def test_compatibility_nothing_left_to_test_is_no_verdict() -> None:
    counts = [[[30, 0], [5, 0], [10, 0]], [[20, 0], [5, 0], [12, 0]]]
    for found in (wald_test(counts, margin=1.0), bootstrap_test(counts, generator=0, num_draws=19, margin=1.0)):
        assert found.verdict == "not measured"
        assert (found.statistic, found.degrees_of_freedom, found.p_value, found.worst) == (0.0, 0, 1.0, None)
        assert str(found).startswith("compatibility not tested: ")
        assert "refuted" not in str(found)
        assert "left out and not tested: x1=1" in str(found)
    # Of three sites the other two are still tested.
    three = [torch.zeros(2, 2, 2) for _ in range(3)]
    for site, table in enumerate(three):
        table[:, 0] = torch.tensor([[30.0, 20], [10, 25 + site]])
    assert wald_test(three).degrees_of_freedom == 1
    assert wald_test(three).worst.sites == (0, 2)


def test_compatibility_rests_without_a_row_are_told() -> None:
    first = FIRST.clone()
    first[:, 2] = 0  # sample 0 never holds x1 = 2: it says nothing of p(x0 | x1 = 2)
    found = wald_test([first, SECOND])
    assert found.unseen_rests == (1, 0)
    assert "rests without a row, where nothing is tested: 1 of p(x0 | rest)" in str(found)
    assert "without a row" not in str(wald_test([FIRST, SECOND]))


def test_compatibility_results_of_counts_show_their_text() -> None:
    found = wald_test([FIRST, SECOND])
    assert repr(found) == str(found)
    assert repr(found.worst) == str(found.worst)
    assert "\n" not in repr(found.worst)
    assert "in log odds ratios (± one standard error): " in repr(found)
    assert found == wald_test([FIRST, SECOND])


@pytest.mark.parametrize(
    ("frames", "labels", "kind", "text"),
    [
        (
            (frame(FIRST, "fmx", "abc"), frame(SECOND.T, "abc", "fmx").rename_axis("age")),
            None,
            DataError,
            "counts[1]: is",
        ),
        ((frame(FIRST, "ffx", "abc"), frame(SECOND, "fmx", "abc")), None, DataError, "has a row or a column twice"),
        ((frame(FIRST, "fmx", "abc"), frame(SECOND, "fmx", "abd")), LABELS, FlexgenError, "labels: lack 'a'"),
        ((frame(FIRST, "fmx", "abc"), frame(-SECOND, "fmx", "abc")), None, DataError, "counts[1]: holds a number that"),
        (
            (frame([list("abc")] * 3, "fmx", "abc"), frame(SECOND, "fmx", "abc")),
            None,
            DataError,
            "counts[0]: is a DataFrame",
        ),
        ((FIRST, SECOND), {"sex": "fm", "age": "abc"}, FlexgenError, "labels: name (2, 3) categories"),
        ((FIRST, SECOND), 3, FlexgenError, "labels: is 3"),
        ((frame(FIRST, "fmx", "abc"), frame(SECOND, "fmx", "abc")), 3, FlexgenError, "labels: is 3"),
        ((frame(FIRST, "fmx", "abc"), frame(SECOND, "fmx", "abc")), {"sex": 3, "age": 2}, FlexgenError, "labels: is 3"),
    ],
)
def test_compatibility_frames_and_labels_that_do_not_fit(
    frames: Any, labels: Any, kind: type[FlexgenError], text: str
) -> None:
    with pytest.raises(FlexgenError, match=re.escape(text)) as error:
        wald_test(frames, labels=labels)
    assert type(error.value) is kind
