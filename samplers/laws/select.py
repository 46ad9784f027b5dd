"""Choosing k of n sites in every row at once, and the few helpers on randomness that laws share."""

from __future__ import annotations

import torch
from torch import Tensor

from flexgen import rng
from flexgen.rng import Randomness, Streams

__all__ = ["choose", "count_sites", "exclude", "fork", "rows_of", "smallest"]

_MAX_ROUNDS = 16


def fork(generator: Randomness, *parts: int | str) -> Randomness:
    """Randomness for a part of a draw whose number of calls may depend on the rows beside it.

    `Streams` give a keyed child and advance by one, so that what follows is the same whatever the part consumed. A
    ``torch.Generator`` makes no such promise and is returned as it is.
    """
    return generator.fork(*parts) if isinstance(generator, Streams) else generator


def rows_of(generator: Randomness, rows: Tensor) -> Randomness:
    """The randomness of some rows."""
    return generator if isinstance(generator, torch.Generator) else generator[rows]


def count_sites(sites: Tensor) -> Tensor:
    """How many are True along the last axis, int64. Summed as bytes, which is many times faster than as booleans."""
    return sites.view(torch.uint8).sum(-1, dtype=torch.int32).long()


def choose(count: Tensor, among: Tensor, *, generator: Randomness) -> Tensor:
    """A uniform subset of `count` of the sites `among`, bool ``[B, N]``, independently in every row.

    Args:
        count: int64 ``[B]``, at most the number of True entries of the row.
        among: bool ``[B, N]``.
    """
    keys = rng.uniform(among.shape, generator=generator)
    return smallest(exclude(keys, ~among), count, count_sites(among))


def exclude(keys: Tensor, sites: Tensor) -> Tensor:
    """Lifts the keys of these sites to [1, 2), above all others, in place."""
    return keys.add_(sites.view(torch.uint8))


def smallest(keys: Tensor, count: Tensor, available: Tensor) -> Tensor:
    """Where the `count` smallest keys of every row stand, bool ``[B, N]``.

    Args:
        keys: float32 ``[B, N]``: `available` independent uniform numbers on [0, 1) a row; 1 or larger elsewhere.
        count: int64 ``[B]``, between 0 and `available`.

    An interpolation search for a threshold with `count` keys below it. Keys are uniform inside any bracket, so the
    gap shrinks like its square root: O(log log N) passes, several times faster than sorting. Rows in which equal keys
    admit no threshold (about N * 2^-24 of them) are sorted.
    """
    chosen = torch.empty_like(keys, dtype=torch.bool)
    rows = torch.arange(len(keys), device=keys.device)
    low, high = torch.zeros_like(count, dtype=torch.float64), torch.ones_like(count, dtype=torch.float64)
    below_low, below_high = torch.zeros_like(count), available
    for _ in range(_MAX_ROUNDS):
        wanted, inside = count - below_low, below_high - below_low
        # Between the wanted-th and the next of `inside` uniform order statistics; the ends where all or none qualify.
        threshold = low + (high - low) * (wanted + 0.5) / (inside + 1)
        threshold = torch.where(wanted == 0, low, torch.where(wanted == inside, high, threshold)).float()
        selected = keys < threshold[:, None]
        below = count_sites(selected)
        done = below == count
        if bool(done.all()):
            chosen[rows] = selected
            return chosen
        chosen[rows[done]] = selected[done]
        too_few = below < count
        low, below_low = torch.where(too_few, threshold, low), torch.where(too_few, below, below_low)
        high, below_high = torch.where(too_few, high, threshold), torch.where(too_few, below_high, below)
        left = ~done
        rows, keys, count = rows[left], keys[left], count[left]
        low, high, below_low, below_high = low[left], high[left], below_low[left], below_high[left]
    order = keys.argsort(-1)
    first = torch.arange(keys.shape[-1], device=keys.device) < count[:, None]
    chosen[rows] = torch.zeros_like(first).scatter_(-1, order, first)
    return chosen
