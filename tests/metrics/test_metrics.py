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
    assert stats.kstest(z, "norm").pvalue > ALARM  # equal laws
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
