"""What every law promises, whichever it is."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from scipy import stats

from flexgen.laws import MaskDraw, MaskLaw
from flexgen.rng import Randomness, Streams
from samplers import laws
from samplers.laws.base import Rows, Sets
from tests.laws.catalogue import LAWS, NEVER_EMPTY, NUM_SITES, WORDS, extras, values

ROWS = 64
EVERY_LAW = pytest.mark.parametrize("name", LAWS)


def some_present(num_rows: int = ROWS, seed: int = 1) -> torch.Tensor:
    """Rows of every kind: full ones, rows with holes, padded ones, an empty one."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(num_rows, 1, generator=generator)
    present = torch.rand(num_rows, NUM_SITES, generator=generator) < share
    present[: num_rows // 4] = True
    present[num_rows // 4 : num_rows // 2] = torch.arange(NUM_SITES) < 20
    present[-1] = False
    return present


def draw(name: str, present: torch.Tensor, generator: Randomness, x: torch.Tensor | None = None) -> MaskDraw:
    x = values(len(present)) if x is None else x
    return LAWS[name].draw(present, generator=generator, **extras(name, x))


def equal(a: MaskDraw, b: MaskDraw) -> bool:
    fates = [(a.kept, b.kept), (a.replaced, b.replaced)]
    return (
        a.query == b.query
        and torch.equal(a.weight, b.weight)
        and all(one is two or (one is not None and two is not None and torch.equal(one, two)) for one, two in fates)
    )


@EVERY_LAW
def test_sets_hold_present_entries_only_and_are_disjoint(name: str) -> None:
    present = some_present()
    for seed in range(4):
        drawn = draw(name, present, torch.Generator().manual_seed(seed))
        target, observed = drawn.query.target, drawn.query.observed  # a Query refuses overlap on construction
        assert target.shape == observed.shape == present.shape
        assert not (target & ~present).any()
        assert not (observed & ~present).any()
        assert drawn.weight.shape == (ROWS,)
        assert drawn.weight.dtype == torch.float32
        assert (drawn.weight.isfinite() & (drawn.weight > 0)).all()


@pytest.mark.parametrize("name", NEVER_EMPTY)
def test_target_is_never_empty_where_promised(name: str) -> None:
    present = some_present(512)
    rows = (present & (WORDS >= 0)).any(-1) if name == "span_bert" else present.any(-1)
    for seed in range(4):
        assert draw(name, present, torch.Generator().manual_seed(seed)).query.target[rows].any(-1).all()


@EVERY_LAW
def test_same_generator_same_draw_and_global_generator_untouched(name: str) -> None:
    present = some_present()
    before = torch.get_rng_state()
    first = draw(name, present, torch.Generator().manual_seed(5))
    assert equal(first, draw(name, present, torch.Generator().manual_seed(5)))
    assert torch.equal(before, torch.get_rng_state())


@EVERY_LAW
def test_streams_make_a_row_independent_of_the_rows_beside_it(name: str) -> None:
    present, x = some_present(), values(ROWS)
    whole, part = Streams(7, ROWS), Streams(7, torch.arange(10, 23))
    for _ in range(2):  # the second draw sees that the first advanced both by as much
        together = draw(name, present, whole, x)
        alone = draw(name, present[10:23], part, x[10:23])
        assert together.query[10:23] == alone.query
        assert torch.equal(together.weight[10:23], alone.weight)
    assert whole.counter == part.counter


@EVERY_LAW
def test_no_rows_and_empty_rows(name: str) -> None:
    nothing = draw(name, torch.zeros(0, NUM_SITES, dtype=torch.bool), torch.Generator(), values(0))
    assert nothing.query.target.shape == (0, NUM_SITES)
    empty = draw(name, torch.zeros(3, NUM_SITES, dtype=torch.bool), torch.Generator())
    assert not (empty.query.target | empty.query.observed).any()
    assert empty.weight.isfinite().all()


@EVERY_LAW
def test_laws_are_values(name: str) -> None:
    law = LAWS[name]
    assert isinstance(law, MaskLaw)
    assert copy.deepcopy(law) == law == pickle.loads(pickle.dumps(law))
    assert eval(repr(law), {**vars(laws), "inf": math.inf}) == law  # a law prints as what builds it


def dispersion(law: MaskLaw, num_batches: int = 256, num_rows: int = 24, name: str = "") -> float:
    """Variance of batch means over what it is for independent rows; about chi-square / degrees of freedom.

    The statistic of a row is a fixed random projection of its sets, so that shared places show as well as shared rates.
    """
    generator = torch.Generator().manual_seed(11)
    projection = 1.0 + torch.rand(2 * NUM_SITES, generator=generator)
    projection[NUM_SITES:] *= 0.3
    present = torch.ones(num_rows, NUM_SITES, dtype=torch.bool)
    # Laws of values see the same x in each row: rows are independent given x.
    x = values(1, seed=4).expand(num_rows, -1)
    statistics = []
    for _ in range(num_batches):
        query = law.draw(present, generator=generator, **extras(name, x)).query
        statistics.append(torch.cat([query.target, query.observed], -1).float() @ projection)
    statistic = torch.stack(statistics)  # [batches, rows]
    return float(statistic.mean(1).var() * num_rows / statistic.var().clamp_min(1e-12))


FALSE_ALARM = 1e-6
LOW, HIGH = (stats.chi2.ppf(q, 255) / 255 for q in (FALSE_ALARM / 2, 1 - FALSE_ALARM / 2))


@pytest.mark.statistical
@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("given", "prefix_order")])  # constants
def test_rows_are_independent(name: str) -> None:
    assert LOW < dispersion(LAWS[name], name=name) < HIGH


class SharedRate(laws.Law):
    """Wrong on purpose: one rate for the whole batch, as in a published implementation of Simformer's law."""

    def draw_sets(self, rows: Rows) -> Sets:
        rate = laws.Beta(1, 4).draw(1, generator=rows.generator)
        observed = (rows.uniform(rows.num_sites) < rate) & rows.present
        return Sets(rows.present & ~observed, observed, rows.ones())


@pytest.mark.statistical
def test_a_rate_shared_across_the_batch_is_caught() -> None:
    assert dispersion(SharedRate()) > 2 * HIGH


def test_the_laws_tie_what_they_say() -> None:
    present = torch.ones(ROWS, NUM_SITES, dtype=torch.bool)
    tubes = draw("video_mae", present, torch.Generator()).query.target.view(ROWS, 4, 9)
    assert (tubes == tubes[:, :1]).all()
    assert (tubes.sum(-1) == 8).all()  # floor of 0.9 * 9
    patches = draw("sim_mim", present, torch.Generator()).query.target.view(ROWS, 3, 2, 3, 2)
    assert (patches == patches[:, :, :1, :, :1]).all()
    assert (patches[:, :, 0, :, 0].sum((1, 2)) == 6).all()  # ceil of 0.6 * 9
    words = draw("whole_word_bert", present, torch.Generator()).query.target
    assert not words[:, WORDS < 0].any()
    assert torch.equal(words[:, 1:-1:2], words[:, 2:-1:2])


def test_counts_are_of_present_entries() -> None:
    present = some_present()
    n = present.sum(-1)
    count = draw("mae", present, torch.Generator()).query.target.sum(-1)
    assert torch.equal(count, (0.75 * n.double()).ceil().long())
    fixed = laws.FixedCount(7).draw(present, generator=torch.Generator()).query.target.sum(-1)
    assert torch.equal(fixed, n.clamp_max(7))


def test_spans_skip_what_is_missing() -> None:
    present = torch.rand(ROWS, NUM_SITES, generator=torch.Generator().manual_seed(0)) < 0.7
    target = laws.Prefix(0.5).draw(present, generator=torch.Generator()).query
    last_observed = torch.where(target.observed, torch.arange(NUM_SITES), -1).amax(-1)
    first_target = torch.where(target.target, torch.arange(NUM_SITES), NUM_SITES).amin(-1)
    assert (last_observed < first_target).all()
    assert torch.equal(target.target | target.observed, present)


@pytest.mark.gpu
@EVERY_LAW
def test_draws_stay_on_the_device_of_the_data(name: str) -> None:
    present, x = some_present().cuda(), values(ROWS).cuda()
    arguments = {key: value.cuda() for key, value in extras(name, x).items()}
    for generator in (torch.Generator("cuda").manual_seed(0), Streams(0, ROWS, device="cuda")):
        drawn = LAWS[name].draw(present, generator=generator, **arguments)
        assert drawn.query.target.device == drawn.weight.device == present.device
        assert not ((drawn.query.target | drawn.query.observed) & ~present).any()


class FirstHalf(laws.Law):
    """A law of one's own."""

    def draw_sets(self, rows: laws.Rows) -> laws.Sets:
        return rows.rest(rows.spread(torch.arange(rows.num_sites) < rows.num_present[:, None] // 2))


def test_a_law_of_ones_own_draws_and_composes() -> None:
    present = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
    drawn = FirstHalf().draw(present, generator=Streams(0, 2))
    assert drawn.query.target.tolist() == [[True] * 3 + [False] * 3, [True, False, True, False, False, False]]
    assert torch.equal(drawn.query.observed, present & ~drawn.query.target)
    swapped = laws.Swap(FirstHalf()).draw(present, generator=Streams(0, 2))
    assert torch.equal(swapped.query.observed, drawn.query.target)


def test_the_former_name_of_the_method_works_and_says_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="Former defines _draw, which is called draw_sets now: rename it"):

        class Former(laws.Law):
            def _draw(self, rows: laws.Rows) -> laws.Sets:
                return rows.rest(rows.present)

    present = torch.ones(3, 4, dtype=torch.bool)
    assert Former().draw(present, generator=Streams(0, 3)).query.target.all()
    assert laws.Mixture([Former(), laws.mae()], [0.5, 0.5]).draw(present, generator=Streams(0, 3))

    class Both(laws.Law):  # for packages that serve two versions
        def _draw(self, rows: laws.Rows) -> laws.Sets:
            raise AssertionError(rows)

        def draw_sets(self, rows: laws.Rows) -> laws.Sets:
            return rows.rest(rows.present)

    assert Both().draw(present, generator=Streams(0, 3)).query.target.all()
