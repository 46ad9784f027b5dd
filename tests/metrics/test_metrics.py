"""Scores, against sums by hand and against their laws."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import flexgen as fg
from flexgen.errors import DataError
from flexgen.metrics import ImputationError, classifier_two_sample_test

ALARM = 1e-4


def test_imputation_error_by_hand():
    metric = ImputationError(fg.Space((fg.Site("real"), fg.Site("categorical", 3), fg.Site("real"))))
    truth = torch.tensor([[0.0, 1, 5], [2.0, 2, 5], [4.0, 0, torch.nan]])
    imputed = torch.tensor([[1.0, 1, 5], [2.0, 0, 5], [1.0, 0, 7]])
    where = torch.tensor([[True, True, False], [False, True, False], [True, False, True]])
    for rows in (slice(0, 1), slice(1, 3)):  # in two batches
        metric.update(imputed[rows], truth[rows], where[rows])
    score = metric.compute()
    assert score["nrmse"].item() == pytest.approx(np.sqrt((1 + 9) / 2) / np.std([0, 2, 4]))
    assert score["accuracy"].item() == pytest.approx(0.5)
    with pytest.raises(DataError, match=r"imputed: has shape \(1, 3\), truth \(3, 3\)"):
        metric.update(imputed[:1], truth, where)


def test_an_imputation_with_gaps_is_refused():
    metric = ImputationError(fg.Space.real(1))
    gap, truth = torch.tensor([[1.0], [torch.nan]]), torch.zeros(2, 1)
    with pytest.raises(DataError, match=r"imputed: is NaN at row 1, column 0\. Fill every entry"):
        metric.update(gap, truth, torch.ones(2, 1, dtype=torch.bool))


def frames(rng, n, shift):
    make = lambda s: pd.DataFrame(  # noqa: E731
        {"a": rng.normal(size=n) + s, "b": rng.choice(["x", "y", "z"], n), "c": rng.integers(0, 4, n)}
    )
    return make(0.0), make(shift)


@pytest.mark.statistical
def test_two_sample_test_has_its_size_and_power():
    rng = np.random.default_rng(0)
    z = []
    for seed in range(40):
        result = classifier_two_sample_test(*frames(rng, 60, 0.0), seed=seed)
        z.append((result.auc - 0.5) / result.standard_error)
    assert stats.kstest(z, "norm").pvalue > ALARM  # equal distributions
    far = classifier_two_sample_test(*frames(rng, 400, 1.0))
    assert far.p_value < ALARM
    assert "AUC 0." in str(far)


def test_two_sample_test_sees_dependence_not_only_marginals():
    rng = np.random.default_rng(0)
    a = rng.normal(size=600)
    joint = pd.DataFrame({"a": a, "b": a + 0.3 * rng.normal(size=600)})
    product = joint.assign(b=rng.permutation(joint["b"]))
    assert classifier_two_sample_test(joint, product).auc > 0.8


def test_two_sample_test_refuses_what_it_cannot_compare():
    frame = pd.DataFrame({"a": range(20)})
    with pytest.raises(DataError, match="second: has other columns"):
        classifier_two_sample_test(frame, frame.rename(columns={"a": "b"}))
    with pytest.raises(DataError, match="first: and second have 20 and 3 rows"):
        classifier_two_sample_test(frame, frame[:3])


def clustered(rng, num_groups, rows, shift=0.0):
    """Rows that resemble the others of their group: the group's level and a little noise."""
    level = rng.normal(size=num_groups) + shift
    frame = pd.DataFrame({"a": np.repeat(level, rows) + 0.1 * rng.normal(size=num_groups * rows)})
    return frame, np.arange(num_groups).repeat(rows)


@pytest.mark.statistical
def test_two_sample_test_of_groups_has_its_size_where_rows_alone_do_not():
    """40 pairs of one distribution, 12 groups of 10 rows each: p-values of groups are uniform at least, those of rows
    are all but zero (the wrong test, which takes rows for independent)."""
    rng = np.random.default_rng(0)
    of_groups, of_rows = [], []
    for seed in range(40):
        (first, one), (second, two) = clustered(rng, 12, 10), clustered(rng, 12, 10)
        options = {"num_folds": 2, "seed": seed}
        of_groups.append(classifier_two_sample_test(first, second, groups=(one, two), **options).p_value)
        of_rows.append(classifier_two_sample_test(first, second, **options).p_value)
    rejected = sum(p <= 0.05 for p in of_groups)
    assert stats.binom.sf(rejected - 1, 40, 0.05) > ALARM
    assert stats.binom.sf(sum(p <= 0.05 for p in of_rows) - 1, 40, 0.05) < ALARM
    (first, one), (second, two) = clustered(rng, 60, 5), clustered(rng, 60, 5, shift=3.0)
    far = classifier_two_sample_test(first, second, groups=(one, two), num_folds=2)
    assert far.p_value == 1 / 1000
    assert far.spread is not None
    assert far.auc > 0.8


def test_two_sample_test_refuses_groups_that_are_none():
    frame = pd.DataFrame({"a": range(20)})
    with pytest.raises(DataError, match=r"groups: of first are 3\. Name the group of each of 20 rows"):
        classifier_two_sample_test(frame, frame, groups=([0, 1, 2], range(20)))
    with pytest.raises(DataError, match=r"groups: of second are 2\. Pass 10 or more"):
        classifier_two_sample_test(frame, frame, groups=(range(20), [0, 1] * 10))
