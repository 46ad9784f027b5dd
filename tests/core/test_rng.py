"""Keyed streams: reproducible, independent of batching, and uniform."""

import math

import pytest
import torch
from scipy import stats

from flexgen import rng
from flexgen.conditional import BernoulliMarginals
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


# Of the library Random123, version 1.14: kat_vectors, philox4x32 with 10 rounds.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("shape", [(), (3, 1)])
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, answer, shape):
    words = [torch.full(shape, int(word, 16)) for word in counter.split()]
    found = rng.philox4x32(words, tuple(int(word, 16) for word in key.split()))
    assert [f"{int(word.flatten()[0]):08x}" for word in found] == answer.split()
    broadcast = rng.philox4x32([words[0].view(-1, 1), words[1], words[2].view(1, -1), words[3]], (1, 2))
    assert all(word.shape == broadcast[0].shape for word in broadcast)


def test_streams_are_philox_blocks_of_row_draw_and_place():
    """By hand: the counter is (place, draw, the row's name in two halves), the key is the seed's."""
    name, seed = 7 + (5 << 32), 11
    streams = rng.Streams(seed, torch.tensor([name, 8]), counter=3)
    bits = streams.bits((2, 5))
    number = rng.key(seed, "philox")
    for place in range(2):
        counter = [torch.tensor(value) for value in (place, 3, 7, 5)]
        a, b, c, d = rng.philox4x32(counter, (number & 0xFFFFFFFF, number >> 32))
        assert bits[0, 2 * place : 2 * place + 2].tolist() == [int(a | b << 32), int(c | d << 32)]
    assert streams.counter == 4
    words = rng.Streams(seed, torch.tensor([name]), counter=3).words((1, 4))
    assert torch.equal(words[0, :2], torch.stack([bits[0, 0] & 0xFFFFFFFF, (bits[0, 0] >> 32) & 0xFFFFFFFF]))


def test_folds_are_streams_of_their_own():
    parent = rng.Streams(7, 50)
    rng.uniform((50,), generator=parent)
    children = [parent.fold_in(*parts) for parts in (("a",), ("b",), ("a", 1), (1, "a"), (1,), (-1,), (1 << 70,))]
    children += [parent.fold_in(torch.full((50,), number)) for number in (0, 1, -1)]
    children += [parent.fold_in("a").fold_in("b"), parent.fold_in("b").fold_in("a"), rng.Streams(7, 50)]
    firsts = torch.stack([rng.uniform((50,), generator=child, dtype=torch.float64) for child in children])
    assert len(firsts.flatten().unique()) == firsts.numel()  # 650 of 2^53 meet with probability 2e-11
    assert parent.counter == 1, "a fold moved its parent"
    assert all(child.counter == 1 for child in children)


def test_folds_depend_on_neither_batch_nor_former_draws():
    whole, part = rng.Streams(7, 100), rng.Streams(7, torch.tensor([42, 3]))
    rng.uniform((2, 9), generator=part)
    numbers = torch.arange(100) % 4
    for fold in (
        lambda s, n: s.fold_in("sweep", 3),  # noqa: ARG005
        lambda s, n: s.fold_in(n),
        lambda s, n: s.fold_in("draw", n, 2).fold_in(1),
    ):
        a, b = fold(whole, numbers), fold(part, numbers[[42, 3]])
        assert torch.equal(rng.normal((100, 3), generator=a)[[42, 3]], rng.normal((2, 3), generator=b))
    again = rng.Streams(a.seed, a.rows, counter=a.counter)
    assert torch.equal(rng.uniform((100,), generator=again), rng.uniform((100,), generator=a))


def test_forks_advance_and_do_not_repeat():
    streams = rng.Streams(7, 5)
    first, second = streams.fork("part"), streams.fork("part")
    assert streams.counter == 2
    assert not torch.equal(rng.uniform((5,), generator=first), rng.uniform((5,), generator=second))


def test_folding_in_needs_a_number_a_row():
    with pytest.raises(
        FlexgenError, match=r"parts: hold a tensor of shape \(2,\). Pass one number for each stream, \[3\]"
    ):
        rng.Streams(0, 3).fold_in(torch.zeros(2, dtype=torch.int64))


def bit_test(words):
    """The least p-value, times their number, of: each bit a fair coin; each bit of neighbours agrees half the time."""
    bits = (words[..., None] >> torch.arange(32)) & 1  # [n, m, 32]
    p_values = []
    for counted in (bits, bits[1:] ^ bits[:-1], bits[:, 1:] ^ bits[:, :-1], bits[..., 1:] ^ bits[..., :-1]):
        flat = counted.flatten(0, 1)
        z = (flat.double().mean(0) - 0.5) * 2 * math.sqrt(len(flat))
        p_values.append(torch.erfc(z.abs() / math.sqrt(2)))
    every = torch.cat(p_values)
    return float(every.min()) * len(every)


@pytest.mark.statistical
@pytest.mark.parametrize("rounds", [10, 2])
def test_bits_are_fair_coins_and_neighbours_independent_and_few_rounds_are_rejected(rounds):
    """Over counters that differ in one place of one word, as rows, draws and places do, and over folds of rows."""
    n = 150
    for vary in range(4):
        counter = [torch.zeros(1, 1, dtype=torch.int64)] * 4
        counter[vary] = torch.arange(n)[:, None]
        counter[(vary + 1) % 4] = torch.arange(n)[None]
        words = rng.philox4x32(counter, (1, 0), rounds=rounds)
        words = torch.stack(torch.broadcast_tensors(*words))  # [4, n, n]
        worst = min(bit_test(word) for word in words) * 4
        assert (worst > ALARM) == (rounds == 10)


@pytest.mark.statistical
def test_folds_are_uniform_and_neighbouring_folds_uncorrelated():
    parent = rng.Streams(1, 500)
    for u in (
        torch.stack([rng.uniform((500,), generator=parent.fold_in(i), dtype=torch.float64) for i in range(400)]),
        rng.uniform((500, 400), generator=parent.fold_in(torch.arange(500)), dtype=torch.float64),
        rng.uniform((500, 400), generator=rng.Streams(1, 1)[torch.zeros(500).long()].fold_in(torch.arange(500))),
    ):
        assert stats.kstest(u.flatten(), "uniform").pvalue > ALARM
        for a, b in [(u[:-1], u[1:]), (u[:, :-1], u[:, 1:])]:
            z = ((a - 0.5) * (b - 0.5)).double().mean() * 12 * math.sqrt(b.numel())
            assert abs(z) < stats.norm.isf(ALARM / 2)


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

        def words(self, shape):
            return torch.full(tuple(shape), (1 << 32) - 1)

    logits = torch.tensor([[0.0, 0.3, -1.2, float("-inf")]]).expand(5, 4)
    assert rng.categorical(logits, generator=Highest(0, 5)).tolist() == [2] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_uniform_numbers_never_reach_one(dtype: torch.dtype) -> None:
    u = rng.uniform((1000, 200), generator=rng.Streams(0, 1000), dtype=dtype)
    assert u.dtype == dtype
    assert float(u.min()) >= 0
    assert float(u.max()) < 1


def test_an_improbable_category_is_not_drawn_in_half_precision() -> None:
    marginals = BernoulliMarginals(torch.full((20_000, 1), -20.0, dtype=torch.bfloat16))
    assert int(marginals.sample(generator=rng.Streams(0, 20_000)).sum()) == 0  # expected: 4e-5
