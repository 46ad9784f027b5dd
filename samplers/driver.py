"""Many Markov chains in one batch: what the Gibbs, Metropolis and tempering samplers share.

Every chain has a random stream of its own, named by its number, and every sweep a place of its own in that stream.
Hence the draws of chain 17 depend neither on ``chain_batch``, nor on which other chains ran in this process, and a
resumed run equals an uninterrupted one bit for bit (as far as the conditional's own arithmetic does not depend on the
number of rows: some matrix libraries round a batch of one differently).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.answers import answers_of
from flexgen.checks import randomness, renamed
from flexgen.conditional import CanSample, Conditional, absent_in
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.query import Query
from flexgen.rng import Randomness, Streams
from flexgen.space import Space
from samplers.chain_arguments import (
    agree_on_chains,
    check_clamped,
    check_start,
    refuse_beside_state,
    refuse_missing,
    require_run,
)
from samplers.observers import Observer, undivided
from samplers.reducibility import MAX_SWEEPS, ReducibilityWatch, warn_if_stuck
from samplers.results import ChainResult, ChainState
from samplers.scans import Scan, Sweep
from samplers.schedule import progress_bar

__all__ = ["ChainSampler"]

# Counters of a stream: a sweep has 2^40 of them, its last quarter is free for what follows the scan (swaps).
SWEEP_STRIDE = 1 << 40
_INITIAL = -SWEEP_STRIDE


class ChainSampler(ABC):
    """Runs sweeps of a scan over many chains; subclasses say what a sweep does.

    Args:
        conditional: answers the queries.
        scan: in which order the free sites are visited.
    """

    # Copies of the state that each chain carries (parallel tempering has one a temperature).
    num_replicas = 1

    def __init__(self, conditional: Conditional, *, scan: Scan) -> None:
        if not isinstance(conditional, Conditional):
            raise FlexgenError(
                "conditional",
                f"is a {type(conditional).__name__}",
                "Pass a conditional; of a model, model.conditional().",
            )
        if not isinstance(scan, Scan):
            raise FlexgenError("scan", f"is {scan!r}", "Pass a scan of samplers.scans, such as scans.random().")
        self.conditional = conditional
        self.scan = scan
        self._check_scan(torch.zeros(self.space.num_sites, dtype=torch.bool))  # which sites are free is not known yet

    @property
    def space(self) -> Space:
        return self.conditional.space

    def _check_scan(self, free: Tensor) -> None:
        """Raises unless the scan visits these sites, bool ``[N]`` or ``[B, N]``, and none that does not exist."""
        with renamed(order="scan", blocks="scan", graph="scan"):
            self.scan.check(free)

    @abstractmethod
    def _sweep(self, x: Tensor, sweep: Sweep, streams: Streams, watch: ReducibilityWatch | None) -> Tensor:
        """The state after one sweep, a new tensor."""

    def _start_counting(self) -> None:  # noqa: B027
        """Called before the first sweep."""

    def _statistics(self) -> dict[str, Tensor]:
        """What the sampler counted since: acceptance rates."""
        return {}

    def run(
        self,
        *,
        draws: int,
        chains: int | None = None,
        warmup: int = 0,
        thin: int = 1,
        x: Tensor | None = None,
        clamped: Tensor | Query | None = None,
        initialise: bool | None = None,
        generator: Randomness | int | None = None,
        state: ChainState | None = None,
        observers: Iterable[Observer] = (),
        store: bool = True,
        chain_batch: int | None = None,
        chain_ids: Sequence[int] | Tensor | None = None,
        progress: bool = False,
    ) -> ChainResult:
        """Runs the chains.

        Args:
            draws: draws to keep of every chain (S).
            chains: how many chains (B); default: the rows of `x`. Without `x` they are on the device of the
                conditional's weights, or else of the generator.
            warmup: sweeps before the first draw, not kept.
            thin: sweeps per draw.
            x: ``[B, N, *site]`` or ``[N, *site]`` for all chains: where to start, and the values of
                clamped sites.
            clamped: sites that keep the values they have in `x`, bool ``[N]``, or ``[B, N]`` where chains differ; or
                a query, whose observed sites are meant. Prefer ``[N]`` where chains agree, which is faster.
            initialise: draw the free sites before the first sweep, from p(x_free | x_clamped) if the conditional can
                answer that, else uniformly if they are categorical; `x` is then read where it is clamped only.
                Default: only where `x` is not given.
            generator: a seed for the chains' streams is drawn from it; None: a fresh one.
            state: continue from the `state` of an earlier result, in place of `chains`, `x`, `clamped`, `generator`
                and `chain_ids`.
            observers: are shown every kept draw; see ``samplers.observers``.
            store: keep the draws, ``[S, B, N]``; without, only observers see them.
            chain_batch: chains evaluated at once; default: all. Changes memory and speed, not the draws.
            chain_ids: the chains' names, from which their streams derive; default 0 .. B-1. Processes that share a
                job give each its own part of the range.
            progress: show a progress bar on stderr.

        Returns:
            The draws, diagnostics and the state. After a KeyboardInterrupt: whatever was drawn until then, with
            ``interrupted=True``, from whose state the run can go on.
        """
        observers = list(observers) if isinstance(observers, Iterable) else [observers]
        require_run(draws=draws, warmup=warmup, thin=thin, chain_batch=chain_batch, observers=observers, state=state)
        if state is None:
            state = self._initial_state(chains, x, clamped, initialise, generator, chain_batch, chain_ids)
        else:
            given = {"chains": chains, "x": x, "clamped": clamped, "generator": generator, "chain_ids": chain_ids}
            refuse_beside_state(**given)
        replicas, num_chains = self.num_replicas, len(state.chain_ids)
        batches = [slice(r.start, r.stop) for r in _batches(num_chains * replicas, chain_batch, replicas)]
        free = ~state.clamped
        self._check_scan(free)
        sweeps = [self.scan.over(free if free.ndim == 1 else free[rows]) for rows in batches]
        streams = [Streams(state.seed, self._row_names(state.chain_ids)[rows]) for rows in batches]
        watches = [
            ReducibilityWatch(self.space, sweep.free, len(state.x[rows]))
            for sweep, rows in zip(sweeps, batches, strict=True)
        ]
        self._start_counting()

        stored = state.x.new_empty(draws, num_chains, *state.x.shape[1:]) if store else None
        parts = [state.x[rows] for rows in batches]
        moved = torch.zeros(len(state.x), dtype=torch.bool, device=state.x.device)
        still = [True] * len(batches)
        total = warmup + draws * thin
        # What is certain at any moment of an interrupt: the states, the sweeps they have seen, the draws kept.
        done: tuple[list[Tensor], int, int] = (parts, 0, 0)
        interrupted = False
        try:
            with progress_bar(total if progress else None, type(self).__name__) as advance:
                for sweep_number in range(1, total + 1):
                    parts, _, kept = done
                    counter = (state.num_sweeps + sweep_number) * SWEEP_STRIDE
                    watched = sweep_number <= min(warmup, MAX_SWEEPS)
                    following = []
                    for i, part in enumerate(parts):
                        streams[i].counter = counter
                        new = self._sweep(part, sweeps[i], streams[i], watches[i] if watched else None)
                        if still[i]:  # once all chains have moved there is nothing to compare
                            moved[batches[i]] |= (new != part).flatten(1).any(1)
                            still[i] = not bool(moved[batches[i]].all())
                        following.append(new)
                    if sweep_number > warmup and (sweep_number - warmup) % thin == 0:
                        draw = (following[0] if len(following) == 1 else torch.cat(following))[::replicas]
                        with undivided():
                            if stored is not None:
                                stored[kept] = draw
                            for observer in observers:
                                observer.update(draw)
                            done = (following, sweep_number, kept + 1)
                    else:
                        done = (following, sweep_number, kept)
                    advance()
        except KeyboardInterrupt:
            interrupted = True
        parts, num_sweeps, kept = done
        final = ChainState(torch.cat(parts), state.clamped, state.chain_ids, state.seed, state.num_sweeps + num_sweeps)
        warn_if_stuck(watches, moved, free, num_sweeps, self.space.names)
        return ChainResult(
            None if stored is None else stored[:kept], final, self.space.names, self._statistics(), interrupted
        )

    def _initial_state(
        self,
        chains: int | None,
        x: Tensor | None,
        clamped: Tensor | Query | None,
        initialise: bool | None,
        generator: Randomness | int | None,
        chain_batch: int | None,
        chain_ids: Sequence[int] | Tensor | None,
    ) -> ChainState:
        space, replicas = self.space, self.num_replicas
        check_start(chains=chains, x=x, clamped=clamped, chain_ids=chain_ids, space=space)
        generator = randomness("generator", generator)
        clamped = clamped.observed if isinstance(clamped, Query) else clamped
        if x is not None and x.ndim == 1 + len(space.site_shape):
            x = x[None].expand(chains or 1, *x.shape)
        num_chains = agree_on_chains(chains, x, chain_ids, clamped)
        device = x.device if x is not None else chain_device(self.conditional, generator)
        if clamped is None:
            clamped = torch.zeros(space.num_sites, dtype=torch.bool, device=device)
        check_clamped(clamped, num_chains, space.num_sites)
        self._check_scan(~clamped)  # before the conditional draws a start
        if x is None:
            if bool(clamped.any()):
                raise FlexgenError("x", "is not given, but sites are clamped", "Pass the clamped values in x.")
            if initialise is False:
                raise FlexgenError("x", "is not given, and initialise=False", "Pass states to start from.")
            dtype = torch.int64 if space.is_finite else torch.get_default_dtype() if space.site_shape else torch.float64
            x = torch.zeros(num_chains, space.num_sites, *space.site_shape, dtype=dtype, device=device)
            initialise = True
        ids = torch.arange(num_chains) if chain_ids is None else torch.as_tensor(chain_ids, dtype=torch.int64)
        ids = ids.to(device)
        seed = rng.seed_from(generator)
        refuse_missing(x, clamped if initialise else None, space)
        space.validate(x, where=clamped if initialise else None)
        if not initialise:
            absent = absent_in(self.conditional, x)
            clamped = clamped | absent if bool(absent.any()) else clamped
        x = x.repeat_interleave(replicas, 0)
        if clamped.ndim == 2:
            clamped = clamped.repeat_interleave(replicas, 0)
        if initialise:
            names = self._row_names(ids)
            x = torch.cat(
                [
                    _draw_free(
                        self.conditional,
                        x[r.start : r.stop],
                        clamped if clamped.ndim == 1 else clamped[r.start : r.stop],
                        Streams(seed, names[r.start : r.stop], counter=_INITIAL),
                    )
                    for r in _batches(len(x), chain_batch, replicas)
                ]
            )
        return ChainState(x.clone(), clamped.clone(), ids, seed, 0)

    def _row_names(self, chain_ids: Tensor) -> Tensor:
        """The streams' names: one for each chain and replica."""
        replicas = torch.arange(self.num_replicas, device=chain_ids.device)
        return (chain_ids[:, None] * self.num_replicas + replicas).flatten()


def _draw_free(conditional: Conditional, x: Tensor, clamped: Tensor, streams: Streams) -> Tensor:
    """A start: the free sites drawn from the conditional if it can say, else uniformly."""
    space = conditional.space
    events = (1,) * len(space.site_shape)
    x = torch.where(clamped.view(*clamped.shape, *events), x, torch.zeros((), dtype=x.dtype, device=x.device))
    if isinstance(conditional, CanSample) and bool(answers_of(conditional).allows(Query.rest(clamped)).all()):
        try:
            with torch.no_grad():
                return conditional.sample(x, Query.rest(clamped), generator=streams)
        except UnsupportedQueryError:
            pass
    others = [
        site.name or str(i)
        for i, site in enumerate(space.sites)
        if (site.kind != "categorical" or site.shape) and not bool(clamped[..., i].all())
    ]
    if others:
        raise FlexgenError(
            "x",
            f"is to be initialised, but the conditional cannot draw p(x_free | x_clamped), and site {others[0]!r} is "
            "not categorical, so there is no uniform distribution to start from",
            "Pass states to start from, for example rows of the data.",
        )
    sizes = torch.tensor(space.num_categories, device=x.device)
    uniform = (rng.uniform(x.shape, generator=streams, dtype=torch.float64) * sizes).long()
    return torch.where(clamped, x, uniform.to(x.dtype))


def _batches(num_rows: int, chain_batch: int | None, replicas: int) -> list[range]:
    size = num_rows if chain_batch is None else chain_batch * replicas
    return [range(start, min(start + size, num_rows)) for start in range(0, num_rows, max(size, 1))]


def chain_device(conditional: Conditional, generator: Randomness | int | None) -> torch.device:
    """Where chains start that no `x` places: beside the conditional's weights, or else where the generator is."""
    if isinstance(conditional, nn.Module):
        weight = next(itertools.chain(conditional.parameters(), conditional.buffers()), None)
        if weight is not None:
            return weight.device
    return generator.device if isinstance(generator, torch.Generator | Streams) else torch.device("cpu")
