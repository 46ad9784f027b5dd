"""Keyed streams: reproducible, independent of batching, and uniform."""

import math

import pytest
import torch
from scipy import stats

from flexgen import rng
from flexgen.errors import FlexgenError

ALARM = 1e-6  # false-alarm rate of each statistical check


def both(seed=0, rows=64):
    return [torch.Generator().manual_seed(seed), rng.Streams(seed, rows)]


def test_keys_differ_by_every_part():
    keys = {rng.key(s, *p) for s in range(3) for p in [(), ("a",), ("b",), ("a", 1), ("a", 2), (1, "a")]}
    assert len(keys) == 18
    assert all(0 <= k < 2**63 for k in keys)


def test_stream_repeats_and_differs():
    draw = [torch.rand(5, generator=rng.stream(1, "window", i)) for i in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


@pytest.mark.parametrize("name", ["uniform", "normal", "gumbel"])
def test_rows_do_not_depend_on_the_batch(name):
    draw = getattr(rng, name)
    whole, part = rng.Streams(7, 100), rng.Streams(7, torch.tensor([42, 3]))
    for _ in range(3):
        assert torch.equal(draw((100, 4), generator=whole)[[42, 3]], draw((2, 4), generator=part))


def test_state_resumes():
    streams = rng.Streams(7, 10)
    rng.uniform((10, 3), generator=streams)
    state = streams.state_dict()
    again = rng.Streams(state["seed"], state["rows"], counter=state["counter"])
    assert torch.equal(rng.uniform((10,), generator=streams), rng.uniform((10,), generator=again))


def test_seeds_drawn_from_streams_differ_by_draw_and_by_rows():
    streams, others = rng.Streams(7, 10), rng.Streams(7, torch.arange(10, 20))
    seeds = [rng.seed_from(streams), rng.seed_from(streams), rng.seed_from(others)]
    assert len(set(seeds)) == 3
    assert rng.seed_from(rng.Streams(7, 10)) == seeds[0]


def test_streams_refuse_another_number_of_rows():
    with pytest.raises(FlexgenError, match=r"generator: has 3 streams, but \(4, 2\) numbers were requested"):
        rng.uniform((4, 2), generator=rng.Streams(0, 3))


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    for generator in [*both(), rng.resolve(None), rng.resolve(3)]:
        rng.seed_from(generator)
    for generator in both():
        rng.categorical(torch.zeros(64, 3), generator=generator)
        rng.normal((64,), generator=generator)
        rng.permutation(64, 5, generator=generator)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.statistical
@pytest.mark.parametrize(
    "make",
    [
        lambda: rng.uniform((500, 400), generator=rng.Streams(1, 500), dtype=torch.float64),
        lambda: torch.cat(
            [rng.uniform((500, 1), generator=s, dtype=torch.float64) for s in [rng.Streams(1, 500)] * 400], 1
        ),
        lambda: torch.stack([rng.uniform((1,), generator=rng.Streams(s, 1), dtype=torch.float64) for s in range(5000)]),
    ],
    ids=["places", "counters", "seeds"],
)
def test_streams_are_uniform_and_serially_uncorrelated(make):
    u = make()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.flatten(), "uniform").pvalue > ALARM
    for a, b in [(u[:-1], u[1:]), (u[:, :-1], u[:, 1:])]:  # neighbouring rows, neighbouring draws
        if b.numel():
            z = ((a - 0.5) * (b - 0.5)).mean() * 12 * math.sqrt(b.numel())
            assert abs(z) < stats.norm.isf(ALARM / 2)


@pytest.mark.statistical
def test_a_weak_stream_would_be_rejected():
    """The raw counter, without its finaliser, fails the same checks: they have power."""
    u = ((torch.arange(200_000, dtype=torch.float64) * 0.618033988749895) % 1).view(500, 400)
    a, b = u[:, :-1], u[:, 1:]
    z = ((a - 0.5) * (b - 0.5)).mean() * 12 * math.sqrt(b.numel())
    assert abs(z) > stats.norm.isf(ALARM / 2)


@pytest.mark.statistical
@pytest.mark.parametrize("generator", both(3, 200_000), ids=["generator", "streams"])
def test_draws_have_their_laws(generator):
    n = 200_000
    assert stats.kstest(rng.normal((n,), generator=generator, dtype=torch.float64), "norm").pvalue > ALARM
    assert stats.kstest(rng.gumbel((n,), generator=generator, dtype=torch.float64), "gumbel_r").pvalue > ALARM
    p = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    counts = rng.categorical(p.log().expand(n, 5), generator=generator).bincount(minlength=5)
    assert counts[[1, 4]].tolist() == [0, 0]
    assert stats.chisquare(counts[p > 0], n * p[p > 0]).pvalue > ALARM
    heads = rng.bernoulli(torch.full((n,), 0.3), generator=generator).sum()
    assert stats.binomtest(int(heads), n, 0.3).pvalue > ALARM
    ints = rng.integers(7, (n,), generator=generator).bincount(minlength=7)
    assert stats.chisquare(ints).pvalue > ALARM
    orders = rng.permutation(n, 3, generator=generator) @ torch.tensor([9, 3, 1])
    assert stats.chisquare(orders.unique(return_counts=True)[1]).pvalue > ALARM


def test_categorical_never_leaves_the_support():
    """Even where the draw falls on the rounded total of the probabilities."""

    class Highest(rng.Streams):
        def bits(self, shape):
            return torch.full(tuple(shape), -1)

    logits = torch.tensor([[0.0, 0.3, -1.2, float("-inf")]]).expand(5, 4)
    assert rng.categorical(logits, generator=Highest(0, 5)).tolist() == [2] * 5
