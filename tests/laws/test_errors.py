"""Bad arguments are refused with the argument, the value and the fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flexgen.errors import FlexgenError
from flexgen.rng import Streams
from samplers import laws

PRESENT = torch.ones(3, 4, dtype=torch.bool)
GENERATOR = torch.Generator()

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "rate above one": (lambda: laws.Bernoulli(1.5), r"rate: is 1.5. Pass a number between 0 and 1."),
    "rate not a number": (lambda: laws.Bernoulli("half"), r"rate: is 'half'. Pass a number between 0 and 1."),  # type: ignore[arg-type]
    "rate NaN": (lambda: laws.Bernoulli(float("nan")), r"rate: is nan. Pass a number"),
    "weight": (lambda: laws.Bernoulli(0.5, "1/t"), r"weight: is '1/t'. Choose one of 'one', 'mean', 'likelihood'."),  # type: ignore[arg-type]
    "weight at rate 0": (
        lambda: laws.Bernoulli(0, "likelihood"),
        r"weight: is 'likelihood' at rate 0. Pass",
    ),
    "sizes not all visited": (
        lambda: laws.FixedCount(3, "likelihood"),
        r"weight: is 'likelihood', but Exactly\(count=3\) does not visit every size. Use UniformSize or PowerSize",
    ),
    "count": (lambda: laws.FixedCount(-1), r"size: is -1. Pass at least 0."),
    "rounding": (lambda: laws.Share(0.5, "up"), r"rounding: is 'up'. Choose one of 'floor', 'ceil', 'round'."),  # type: ignore[arg-type]
    "ends of a rate": (lambda: laws.Uniform(0.7, 0.2), r"low: is 0.7. Pass a number between 0 and 0.2."),
    "beta": (lambda: laws.Beta(0, 1), r"a: is 0. Pass a positive number."),
    "beta's quantile": (lambda: laws.Share(laws.Beta(1, 2)).pmf(3), r"rate: Beta\(a=1, b=2\) has no closed quantile"),
    "mean length": (lambda: laws.Spans(0.15, 0.5), r"mean_length: is 0.5. A span holds one site or more."),
    "ahead": (lambda: laws.Prefix(2, ahead=0), r"ahead: is 0. Pass at least 1."),
    "order": (lambda: laws.Prefix(2, order=(0, 2)), r"order: is \(0, 2\). Pass each site number once"),
    "order's length": (
        lambda: laws.Prefix(2, order=(1, 0)).draw(PRESENT, generator=GENERATOR),
        r"order: names 2 sites, but the data have 4. Give a permutation of all sites.",
    ),
    "overlap": (lambda: laws.Given([0, 1], [1]), r"target: shares sites \[1\] with observed. Remove them from one."),
    "site number": (
        lambda: laws.Given([9]).draw(PRESENT, generator=GENERATOR),
        r"target: names site 9. The data have sites 0 to 3.",
    ),
    "probabilities": (
        lambda: laws.Mixture([laws.mae(), laws.causal()], [0.5, 0.4]),
        r"probabilities: is \(0.5, 0.4\), which sums to 0.9. Give probabilities that sum to 1.",
    ),
    "number of probabilities": (
        lambda: laws.Mixture([laws.mae()], [0.5, 0.5]),
        r"probabilities: has 2 entries for 1 laws. Give one for each law.",
    ),
    "no laws": (lambda: laws.Mixture([]), r"laws: is empty. Mix at least one law."),
    "not a law": (lambda: laws.Swap(0.5), r"law: is 0.5. Pass a law over queries"),  # type: ignore[arg-type]
    "corruption inside": (
        lambda: laws.Mixture([laws.bert()]),  # type: ignore[list-item]
        r"laws: is Corrupted\(.*\). Pass a law over queries; Corrupted goes outermost",
    ),
    "corruption above one": (
        lambda: laws.bert(replace=0.7, keep=0.6),
        r"keep: is 0.6 beside replace=0.7. Let them sum to at most 1.",
    ),
    "labels": (lambda: laws.Labels((0, 2)), r"of_site: is \(0, 2\). Number the groups 0, 1, 2, ... without gaps."),
    "patches": (lambda: laws.Patches((4, 4), (3, 2)), r"size: is \(3, 2\) on a grid \(4, 4\). Each size must divide"),
    "groups to come": (
        lambda: laws.whole_word_bert().draw(PRESENT, generator=GENERATOR),
        r"groups: is None, but the law ties groups. Call law.draw\(present, groups=words, ...\).",
    ),
    "group numbers": (
        lambda: laws.whole_word_bert().draw(PRESENT, generator=GENERATOR, groups=torch.full((3, 4), 4)),
        r"groups: holds numbers from 4 to 4. Number the groups of each row from 0",
    ),
    "groups of other sites": (
        lambda: laws.Tied(laws.mae(), laws.Labels((0, 1))).draw(PRESENT, generator=GENERATOR),
        r"groups: covers 2 sites, but the data have 4. Cover every site once.",
    ),
    "parts": (lambda: laws.Product([([0, 2], laws.mae())]), r"parts: cover sites \[0, 2\]. Put every site"),
    "grid": (
        lambda: laws.beit().draw(PRESENT, generator=GENERATOR),
        r"present: has 4 sites, but the law's grid \(14, 14\) has 196. Give the law the grid of the data.",
    ),
    "grid's budget": (lambda: laws.Blocks((3, 3), 10), r"count: is 10 of 9 sites. Cover at most the grid."),
    "not a plane": (lambda: laws.Rectangle((2, 3, 4)), r"shape: is \(2, 3, 4\). Pass \(rows, columns\)"),
    "empty grid": (lambda: laws.Rectangle((0, 3)), r"shape: holds 0. Pass the grid's sizes"),
    "no rectangle": (lambda: laws.Rectangle((2, 2), 0.6, 0.7), r"min_area: is 0.6. No rectangle of \(2, 2\) has such"),
    "denoiser": (lambda: laws.ul2(("Q",)), r"denoisers: is 'Q'. Choose one of 'R', 'S', 'X'."),
    "window": (lambda: laws.fdm(0), r"window: is 0. Pass at least 1."),
    "no values": (
        lambda: laws.QuantileMissing([0, 1], [0.0, 0.0], 0.5).draw(PRESENT[:, :2], generator=GENERATOR),
        r"x: is None, but this law depends on the values. Call law.draw\(present, x=x, ...\).",
    ),
    "drivers": (
        lambda: laws.LogisticMissing.mar(torch.zeros(5, 2), drivers=(0, 1), rate=0.5, generator=GENERATOR),
        r"drivers: is \(0, 1\). Name at least one column, and leave at least one.",
    ),
    "drivers beyond the columns": (
        lambda: laws.LogisticMissing.mar(torch.zeros(5, 2), drivers=(7,), rate=0.5, generator=GENERATOR),
        r"drivers: holds 7. Name columns by their numbers, 0 to 1.",
    ),
    "drivers from the end": (
        lambda: laws.LogisticMissing.mar(torch.zeros(5, 2), drivers=(-1,), rate=0.5, generator=GENERATOR),
        r"drivers: holds -1. Name columns",
    ),
    "drivers by name": (
        lambda: laws.QuantileMissing.fit(torch.zeros(5, 2), drivers=["age", 0], quantile=0.5, rate=0.5),
        r"drivers: holds 'age'. Name columns by their numbers, 0 to 1, or -1 for none.",
    ),
    "a driver": (
        lambda: laws.LogisticMissing.mar(torch.zeros(5, 2), drivers=1, rate=0.5, generator=GENERATOR),
        r"drivers: is 1. Pass a list of column numbers.",
    ),
    "drivers of few columns": (
        lambda: laws.QuantileMissing.fit(torch.zeros(5, 2), drivers=[0], quantile=0.5, rate=0.5),
        r"drivers: names 1 for the 2 columns of x. Give one for each column.",
    ),
    "drivers beyond the sites": (
        lambda: laws.QuantileMissing([0, 2], [0.0, 0.0], 0.5),
        r"drivers: holds 2. Name columns by their numbers, 0 to 1, or -1 for none.",
    ),
    "matrix": (
        lambda: laws.LogisticMissing([[0.0]], [0.0, 0.0], [0.0]),
        r"weights: is 1 rows for 2 intercepts and 1 means. Pass an N x N matrix",
    ),
    "present": (
        lambda: laws.mae().draw(torch.ones(3, 4), generator=GENERATOR),
        r"present: has dtype torch.float32 and shape \(3, 4\). Pass a boolean tensor of shape \[B, N\]",
    ),
    "streams": (
        lambda: laws.mae().draw(PRESENT, generator=Streams(0, 2)),
        r"generator: has 2 streams for 3 rows. Use one stream for each row.",
    ),
    "x": (
        lambda: laws.mae().draw(PRESENT, generator=GENERATOR, x=torch.zeros(3, 5)),
        r"x: has shape \(3, 5\), but present has \(3, 4\). Give one entry for each row and site.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_arguments_name_value_and_fix(case: str) -> None:
    call, text = CASES[case]
    with pytest.raises(FlexgenError, match=text):
        call()


def test_device_of_the_generator() -> None:
    with pytest.raises(FlexgenError, match=r"generator: is on cpu, but present is on meta. Make the generator"):
        laws.mae().draw(PRESENT.to("meta"), generator=GENERATOR)


def test_lists_of_a_configuration_become_tuples() -> None:
    assert laws.Blocks([14, 14], 75).shape == (14, 14)
    assert laws.Given([1], [0]) == laws.Given((1,), (0,))
    assert hash(laws.Mixture([laws.mae(), laws.causal()])) == hash(laws.Mixture((laws.mae(), laws.causal())))
