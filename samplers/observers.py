"""Observers: statistics of the draws, streamed, so that the draws need not be stored.

An observer is shown every kept draw of all chains, ``[B, N]``, and holds sums. Passed again to a resumed run it
goes on.
"""

from __future__ import annotations

import itertools
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flexgen.checks import MOST_ENTRIES, entries, kind_of, number, real_tensor, whole_number
from flexgen.errors import FlexgenError

__all__ = ["Histogram", "MeanVariance", "Observer", "PairwiseCounts", "undivided"]


@runtime_checkable
class Observer(Protocol):
    def update(self, x: Tensor) -> None:
        """Takes in one draw of every chain, ``[B, N, *site]``, without keeping or changing it."""
        ...


class MeanVariance:
    """Mean and variance of every chain and site, ``[B, N, *site]`` float64, by Welford's recurrence.

    Between-chain spread stays visible: pool with ``mean.mean(0)``.
    """

    def __init__(self) -> None:
        self.num_draws = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, x: Tensor) -> None:
        x = real_tensor("x", x, "[B, N]", error=FlexgenError).to(torch.float64)
        if self.num_draws and x.shape != self.mean.shape:
            raise FlexgenError("x", f"has shape {tuple(x.shape)}", f"Pass {list(self.mean.shape)}, as before.")
        self.num_draws += 1
        deviation = x - self.mean
        self.mean = self.mean + deviation / self.num_draws
        self._squares = self._squares + deviation * (x - self.mean)

    @property
    def variance(self) -> Tensor:
        """Unbiased; NaN before the second draw."""
        return self._squares / (self.num_draws - 1) if self.num_draws > 1 else torch.full_like(self.mean, torch.nan)


class Histogram:
    """Counts of every site over all chains and draws.

    Args:
        bins: the number of categories K, counted as codes 0 .. K-1; or rising edges, where a value v falls into bin k
            if edge_k <= v < edge_k+1. What falls outside is counted in `num_outside`.
    """

    def __init__(self, bins: int | Sequence[float]) -> None:
        if isinstance(bins, int):
            edges = [k - 0.5 for k in range(whole_number("bins", bins, most=MOST_ENTRIES) + 1)]
        else:
            fix = "Give a number of categories, or at least two rising edges."
            edges = [_edge(edge) for edge in entries("bins", bins, fix)]
        if len(edges) < 2 or not all(a < b for a, b in itertools.pairwise(edges)):
            raise FlexgenError(
                "bins", f"are {kind_of(bins)}", "Give a number of categories, or at least two rising edges."
            )
        self.edges = torch.tensor(edges, dtype=torch.float64)
        self.counts = torch.zeros(0, len(edges) - 1, dtype=torch.int64)
        """int64 ``[N, bins]``."""
        self.num_outside = 0

    def update(self, x: Tensor) -> None:
        num_bins = len(self.edges) - 1
        sites = _states(x).shape[1]
        if not len(self.counts):
            self.edges = self.edges.to(x.device)
            self.counts = torch.zeros(sites, num_bins, dtype=torch.int64, device=x.device)
        index = torch.bucketize(x.to(torch.float64), self.edges, right=True) - 1  # [B, N], -1 and num_bins outside
        inside = (index >= 0) & (index < num_bins)
        place = index + num_bins * torch.arange(sites, device=x.device)
        self.counts += torch.bincount(place[inside], minlength=sites * num_bins).view(sites, num_bins)
        self.num_outside += int((~inside).sum())


class PairwiseCounts:
    """How often two sites held two categories together, over all chains and draws.

    Args:
        num_categories: K, the largest of any site.
    """

    def __init__(self, num_categories: int) -> None:
        self.num_categories = whole_number("num_categories", num_categories, 1, most=1 << 16)
        self.num_seen = 0
        self._counts = torch.zeros(0)

    def update(self, x: Tensor) -> None:
        codes = torch.arange(self.num_categories, device=_states(x).device)
        indicator = (x.long()[..., None] == codes).to(torch.float64).flatten(1)  # [B, N * K]
        together = indicator.T @ indicator  # exact: whole numbers far below 2^53
        self._counts = together if not self.num_seen else self._counts + together
        self.num_seen += len(x)

    @property
    def counts(self) -> Tensor:
        """float64 whole numbers, ``[N, N, K, K]``: ``counts[i, j, a, b]`` draws had x_i = a and x_j = b."""
        k = self.num_categories
        n = len(self._counts) // k
        return self._counts.view(n, k, n, k).permute(0, 2, 1, 3)


@contextmanager
def undivided() -> Iterator[None]:
    """Within, Ctrl-C waits for the end; a second one interrupts at once.

    A draw that observers have seen is thereby counted: a resumed run would otherwise show it to them again.
    """
    if threading.current_thread() is not threading.main_thread():  # the only one that is interrupted
        yield
        return
    waiting = False

    def wait(_signal: int, _frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            raise KeyboardInterrupt
        waiting = True

    previous = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def _states(x: Tensor) -> Tensor:
    return real_tensor("x", x, "[B, N]", ndim=2, error=FlexgenError)


def _edge(edge: object) -> float:
    """A number; the outermost may be infinite."""
    return float(edge) if isinstance(edge, float) and math.isinf(edge) else number("bins", edge)
