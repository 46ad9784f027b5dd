"""Questions that once were answered with nonsense, hung or raised something raw: what the answer is now."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import flexgen as fg
import samplers
from flexgen.errors import FlexgenError
from flexgen.exact import JointTable
from flexgen.query import Query
from flexgen.space import Site, Space
from flexgen.tables.columns import Column, fit_column
from samplers import frames, laws, scans
from tests.fuzz import calls

nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: laws.TruncatedNormal(inf, 0.25), r"loc: is inf\. Pass a finite number"),
        (lambda: laws.TruncatedNormal(50.0, 0.25), r"loc: is 50.0 at scale 0.25: no mass"),
        (lambda: laws.Beta(1e-300, 1.0), r"a: is 1e-300\. Pass a number between 0.001"),
        (lambda: laws.Bernoulli(1e-320, "likelihood"), r"weight: is 'likelihood' at rate 1e-320"),
        (lambda: frames.autoregressive(30, 2**63, 8), r"observed: is 9223372036854775808\. Pass at most"),
        (lambda: frames.tree(30, [2**63], 8), r"observed: holds 9223372036854775808"),
        (lambda: Query.of([0.7], num_sites=3), r"target: holds site 0\.7\. Sites are numbered 0 to 2"),
        (lambda: Query.of([True], num_sites=3), r"target: holds site True"),
        (lambda: Query.of("ab", num_sites=3), r"target: is 'ab'"),
        (lambda: Query.of(range(10**9), num_sites=3), r"target: has 1000000000 entries"),
        (lambda: Query.of([0], num_sites=10**9), r"num_sites: is 1000000000\. Pass at most"),
        (lambda: Query.rest([True, False]), r"observed: must be a boolean tensor, got list"),
        (lambda: Query.of([0], num_sites=2).expand(1.5), r"num_rows: is 1\.5"),
        (lambda: Space(Site("real")), r"sites: is a Site\. Pass a tuple"),
        (lambda: Space(("real",)), r"sites\[0\]: is 'real'\. Pass Site"),
        (lambda: Space.binary(10**9), r"num_sites: is 1000000000\. Pass at most"),
        (lambda: Space.categorical([2] * 40).states(), r"space: has 1099511627776 states of 40 sites"),
        (lambda: Space.from_dict({"sites": calls.deep(3000)}), r"data: is malformed"),
        (lambda: Space.from_dict(None), r"data: is None\. Pass what Space\.to_dict gave"),
        (lambda: calls.model().sample(2, given={"whole": 1e308}), r"given: holds 1e\+308 for 'whole', which no int"),
        (lambda: calls.model().impute(calls.twice_named(calls.frame())), r"df: names 'real' twice"),
        (lambda: calls.model().marginals(calls.twice_named(calls.frame())), r"df: names 'real' twice"),
        (lambda: fg.data.example("a\0b"), r"name: is 'a\\x00b', which holds the character NUL"),
        (lambda: fg.TableModel.from_pretrained("a\0b"), r"folder: .*NUL"),
    ],
)  # fmt: skip
def test_refused_by_name(call: Callable[[], Any], text: str) -> None:
    start = time.process_time()
    with pytest.raises(FlexgenError, match=text):
        call()
    assert time.process_time() - start < 3


def test_a_truncated_normal_far_above_its_interval() -> None:
    """Given [0, 1], N(3, 0.1) hangs at 1, about an exponential of rate (3 - 1) / 0.1² = 200 below it; once it was 0."""
    rate = laws.TruncatedNormal(3.0, 0.1)
    assert rate.mean == pytest.approx(1 - 1 / 200, abs=1e-4)
    below = laws.TruncatedNormal(-2.0, 0.1)  # its mirror image
    assert below.mean == pytest.approx(1 - rate.mean, abs=1e-9)


def test_rates_that_are_nearly_always_zero_or_one_have_finite_weights() -> None:
    """Beta(a, a), a = 0.01: both gammas behind a draw can be too small for a float64; the mean stays 1/2."""
    rates = laws.Beta(0.01, 0.01).draw(20_000, generator=torch.Generator().manual_seed(0))
    assert bool(((rates > 0) & (rates <= 1)).all())
    assert float(rates.mean()) == pytest.approx(0.5, abs=4.9 * 0.5 / math.sqrt(20_000))  # false alarms: 1e-6
    present = torch.ones(1000, 6, dtype=torch.bool)
    law = laws.Bernoulli(laws.Beta(0.01, 4.0), weight="likelihood")
    assert bool(law.draw(present, generator=torch.Generator().manual_seed(0)).weight.isfinite().all())


@pytest.mark.parametrize("law", [laws.Strided(10**9), laws.fdm(window=10**9), laws.FrameGroups(10**9)])
def test_a_reach_beyond_every_row_costs_no_more_than_the_row(law: laws.Law) -> None:
    start = time.process_time()
    draw = law.draw(torch.ones(4, 6, dtype=torch.bool), generator=torch.Generator().manual_seed(0))
    assert draw.query.num_sites == 6
    assert time.process_time() - start < 3


def test_a_long_stride_asks_for_no_site_nearly_always() -> None:
    """An offset uniform on 0 .. 9999 hits one of 3 sites with probability 3e-4; the rest is the empty target."""
    support = laws.Strided(10_000).support(3)
    chance = {tuple(query.target.tolist()): p for query, p in support}
    assert chance[False, False, False] == pytest.approx(1 - 3e-4)
    assert chance[True, False, False] == pytest.approx(1e-4)
    assert float(support.probability.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"knots_x": (nan, 1.0)}, r"knots_x: is nan"),
        ({"knots_x": (1.0, 0.0)}, r"knots_x: do not increase"),
        ({"slopes": (1.0,)}, r"slopes: are not positive, one a knot"),
        ({"slopes": (1.0, -1.0)}, r"slopes: are not positive"),
        ({"kind": "text"}, r"kind: is 'text'"),
        ({"step": inf}, r"step: is inf"),
        ({"flats": ((nan, 0.0),)}, r"flats: hold NaN"),
        ({"offset": "0"}, r"offset: is '0'"),
    ],
)  # fmt: skip
def test_a_column_of_a_checkpoint_that_is_no_map(change: dict[str, Any], text: str) -> None:
    column = Column("real", knots_x=(0.0, 1.0), knots_y=(-1.0, 1.0), slopes=(2.0, 2.0))
    assert Column.from_dict({**column.to_dict(), "flats": []}) == column
    with pytest.raises(FlexgenError, match=text):
        Column.from_dict({**dataclasses.asdict(column), "flats": [], **change})


def test_fitted_columns_pass_their_own_check() -> None:
    source = np.random.default_rng(0)
    for values in (source.normal(size=200), source.integers(0, 3, 200) * 1.0, np.ones(50), source.exponential(size=99)):
        column = fit_column(values)
        assert Column.from_dict({**column.to_dict(), "flats": [list(flat) for flat in column.flats]}) == column


def test_a_draw_beyond_the_type_of_its_column_does_not_wrap_around() -> None:
    schema = fg.data.TableSchema.infer(pd.DataFrame({"small": np.array([1, 2, 120], np.int8)}))
    assert schema.decode(torch.tensor([[130.0], [-3.0]], dtype=torch.float64))["small"].tolist() == [130, -3]
    assert schema.decode(torch.tensor([[3.0]], dtype=torch.float64))["small"].dtype == np.int8


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: scans.Coloured(1e308), "graph: is "),
        (lambda: scans.Blocked(object()), "blocks: is "),
        (lambda: scans.from_dict({"scan": "Blocked", "blocks": [[0, 1], [math.nan]]}), "blocks: holds"),
        (lambda: frames.pixel_distance(torch.full((4, 3), math.nan), torch.zeros(4, 3)), "frames: hold NaN"),
    ],
)
def test_scans_and_distances_are_checked_when_made(call, text):
    with pytest.raises(FlexgenError, match=text):
        call()


def test_sound_arguments_of_unusual_types_serve():
    assert scans.coloured(torch.eye(3).to_sparse()) == scans.coloured(torch.eye(3))
    assert frames.hierarchical(30, 4, 2**31, levels=2, num_targets=4).num_frames == 30
    joint = JointTable.random((2, 2), generator=torch.Generator().manual_seed(0))
    x, query = torch.zeros(2, 2, dtype=torch.int64), Query.complete(0, num_sites=2)
    listed = samplers.TemperedConditional(joint, range(2)).marginals(x, query).log_probs
    tensor = samplers.TemperedConditional(joint, torch.arange(2)).marginals(x, query).log_probs
    assert torch.equal(listed, tensor)
