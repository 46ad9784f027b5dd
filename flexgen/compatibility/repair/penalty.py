"""A consistency penalty: squared rectangle or circulation gaps, estimated without bias at a few random places a row.

A gap is computed exactly from one-site answers, so its square at a random place is an unbiased estimate of the mean
square over all places, and so is its gradient. The mean vanishes if and only if the gaps do, in the contexts of the
data: there the network is compatible, whatever it predicts. A weight trades that against likelihood.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility.networks.sites import absent_in, present_in
from flexgen.compatibility.networks.values import values_from_pool
from flexgen.compatibility.repair.gaps import Places, circulation_gaps, rectangle_gaps
from flexgen.conditional import HasMarginals
from flexgen.errors import DataError, FlexgenError, UnsupportedQueryError
from flexgen.networks.modes import evaluating
from flexgen.rng import Randomness
from flexgen.training import MovingObjective, Objective
from flexgen.training.arguments import CheckingObjective
from flexgen.training.batches import Batch

__all__ = ["ConsistencyPenalty", "Penalised"]

Kind = Literal["rectangles", "circulations"]

_GAPS = {"rectangles": rectangle_gaps, "circulations": circulation_gaps}


class ConsistencyPenalty:
    """The mean squared gap of each row, nats², ``[B]``: a training `Objective`, by itself or in a `Penalised` one.

    Args:
        kind: ``"rectangles"`` compare complete conditionals (given all other entries of a row), which is what Gibbs
            sampling walks on; ``"circulations"`` compare two orders of the chain rule for two sites given a random
            subset, which is what any-order decoding and imputation walk on.
        num_pairs: random pairs of sites a row and step.
        pool: ``[R, N]``, rows that a rectangle's opposite corner is taken from (their present entries); None: drawn
            from the network's own answers, without gradient through the draw. The network's draws follow it to where it
            puts mass; the pool's law stays as it is.
        cap: gaps beyond so many nats count linearly, as 2 cap \\|gap\\| - cap² (Huber); None: squared throughout, and
            the gradient of a rare, impossible corner may be enormous.

    The network answers `marginals`, with gradients, over scalar sites of any kind; it is evaluated in eval mode, since
    dropout would make two answers differ for no reason. A batch is x ``[B, N]``, NaN where missing, or a mapping with
    ``"x"`` and ``"present"``. Sites that the network calls `absent` stay observed. Rows with fewer than two present
    sites have penalty 0.

    Cost: a step takes 4 rows a pair through the network for rectangles, in two batches, and 3 in one for circulations.

    Guarantee: without bias for the mean over all pairs, contexts and values (with ``cap``, of the capped gaps), given
    the law of the values; zero on all rows of a law with full support if and only if no gap is there.

    >>> penalty = ConsistencyPenalty("rectangles", num_pairs=2)
    >>> objective = Penalised(MaskedLikelihood(law), penalty, weight=0.3)  # doctest: +SKIP
    """

    def __init__(
        self,
        kind: Kind = "rectangles",
        *,
        num_pairs: int = 1,
        pool: Tensor | None = None,
        cap: float | None = None,
    ) -> None:
        if kind not in _GAPS:
            raise FlexgenError("kind", f"is {kind!r}", f"Choose one of {', '.join(map(repr, _GAPS))}.")
        if cap is not None and not cap > 0:
            raise FlexgenError("cap", f"is {cap}", "Pass a positive number of nats, or None.")
        if pool is not None and kind == "circulations":
            raise FlexgenError("pool", "is given, but circulations look at the row's own values", "Leave it out.")
        if pool is not None and (pool.ndim != 2 or not bool(present_in(pool).any(0).all())):
            raise DataError("pool", f"has shape {tuple(pool.shape)}", "Pass rows [R, N] with a value of every site.")
        self.kind = kind
        self.num_pairs = whole_number("num_pairs", num_pairs, 1)
        self.pool = pool
        self.cap = cap

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        gaps, row, num_rows = self._gaps(network, batch, generator)
        total = gaps.new_zeros(num_rows).index_add(0, row, self._sizes(gaps))
        return total / self.num_pairs

    def gaps(self, network: nn.Module, batch: Batch, *, generator: Randomness) -> Tensor:
        """The signed gaps of random places, nats, ``[G]``, without gradient."""
        with torch.no_grad():
            return self._gaps(network, batch, generator)[0]

    def _gaps(self, network: nn.Module, batch: Batch, generator: Randomness) -> tuple[Tensor, Tensor, int]:
        """Gaps ``[G]``, each one's row, and the number of rows."""
        if not isinstance(network, HasMarginals):
            raise UnsupportedQueryError(
                "network",
                f"{type(network).__name__} has no marginals",
                "Pass a masked network that answers marginals().",
            )
        if network.space.site_shape:
            raise UnsupportedQueryError("network", "has sites that are no scalars", "Pass one over scalar sites.")
        x, present = _unpacked(batch)
        absent = absent_in(network, x)
        x = torch.where(present, x, torch.zeros_like(x))  # NaN would reach gradients
        places, row = Places.drawn(x, present & ~absent, absent, self.num_pairs, generator=generator)
        if not len(places):
            return torch.zeros(0, device=x.device), row, len(x)
        with evaluating(network):
            gaps = _GAPS[self.kind](network, places, self._others(places))
        return gaps, row, len(x)

    def _sizes(self, gaps: Tensor) -> Tensor:
        if self.cap is None:
            return gaps.square()
        size = gaps.abs()
        return torch.where(size <= self.cap, gaps.square(), self.cap * (2 * size - self.cap))

    def _others(self, places: Places) -> Tensor | None:
        """For each place a row of values that other rows of the pool hold, ``[G, N]``."""
        if self.pool is None:
            return None
        pool = self.pool.to(places.x)
        present = present_in(pool)
        u = rng.uniform(places.x.shape, generator=places.streams("pool"), dtype=torch.float64)
        return values_from_pool(pool, present, torch.arange(pool.shape[1], device=pool.device), u.T).T  # [G, N]

    def __repr__(self) -> str:
        return f"ConsistencyPenalty({self.kind!r}, num_pairs={self.num_pairs}, cap={self.cap})"


class Penalised:
    """An objective plus a weighted penalty: ``objective + weight * penalty``, ``[B]``.

    Args:
        objective: what is minimised anyhow, such as `flexgen.training.MaskedLikelihood`; a moving one keeps moving.
        penalty: another objective, such as `ConsistencyPenalty`; nest to add a second.
        weight: nats of the objective that one unit of the penalty is worth.
        ramp: share of training over which the weight rises from zero, for networks trained from scratch.

    Validation asks for the sum at full weight.
    """

    def __init__(self, objective: Objective, penalty: Objective, *, weight: float = 1.0, ramp: float = 0.0) -> None:
        if not weight >= 0:
            raise FlexgenError("weight", f"is {weight}", "Pass a number, 0 or more.")
        if not 0 <= ramp <= 1:
            raise FlexgenError("ramp", f"is {ramp}", "Pass a share of training, 0 to 1.")
        self.objective, self.penalty, self.weight, self.ramp = objective, penalty, weight, ramp

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        loss = self.objective(network, batch, generator)
        if self.weight == 0:
            return loss
        return loss + self.weight * self.penalty(network, batch, generator)

    def at(self, progress: float) -> Penalised:
        """The objective when so much of training is done; see `flexgen.training.MovingObjective`."""
        share = min(1.0, progress / self.ramp) if self.ramp else 1.0
        objective, penalty = (
            part.at(progress) if isinstance(part, MovingObjective) else part for part in (self.objective, self.penalty)
        )
        return Penalised(objective, penalty, weight=self.weight * share)

    def check(self, network: nn.Module, batch: Batch, *, argument: str = "data") -> None:
        """Whether the objective can score the network on such a batch, where it can tell."""
        if isinstance(self.objective, CheckingObjective):
            self.objective.check(network, batch, argument=argument)

    def __repr__(self) -> str:
        return f"Penalised({self.objective!r} + {self.weight:g} * {self.penalty!r})"


def _unpacked(batch: Batch) -> tuple[Tensor, Tensor]:
    """x ``[B, N]`` and which entries it holds, bool ``[B, N]``."""
    if isinstance(batch, Tensor):
        return batch, present_in(batch)
    if "x" not in batch:
        raise DataError("data", f"yields batches of {sorted(batch)}", "A penalty needs 'x' among them.")
    x = batch["x"]
    return x, batch["present"] if "present" in batch else present_in(x)
