"""The one loop over Markov chains, many in one batch: it runs a kernel, keeps draws and goes on where it stopped.

Every chain has a random stream of its own, named by its number, and every sweep folds its own number in.
Hence the draws of chain 17 depend neither on ``chain_batch``, nor on which other chains ran in this process, and a
resumed run equals an uninterrupted one bit for bit (as far as the conditional's own arithmetic does not depend on the
number of rows: some matrix libraries round a batch of one differently).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.answers import answers_of
from flexgen.checks import kind_of, randomness, renamed
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
from samplers.kernels import Info, Kernel, KernelState, Ratio, replicated, require_kernel
from samplers.observers import Observer, undivided
from samplers.reducibility import MAX_SWEEPS, ReducibilityWatch, warn_if_stuck, warn_if_unmixed
from samplers.results import ChainResult, ChainState
from samplers.schedule import progress_bar

__all__ = ["ChainSampler"]


class ChainSampler:
    """The one loop that runs a kernel over many chains; `GibbsSampler` and its like are this loop with their kernel.

    Args:
        kernel: what one step does: `GibbsKernel`, `MetropolisKernel`, `TemperingKernel`, cycles and mixtures of them,
            or a kernel of one's own.
    """

    def __init__(self, kernel: Kernel) -> None:
        require_kernel("kernel", kernel)
        self.kernel = kernel

    @property
    def space(self) -> Space:
        return self.kernel.space

    @property
    def num_replicas(self) -> int:
        """Copies of the state that each chain carries (parallel tempering has one a temperature)."""
        return int(getattr(self.kernel, "num_replicas", 1))

    def _check(self, free: Tensor) -> None:
        """Raises where the kernel cannot serve these free sites, bool ``[N]`` or ``[B, N]``."""
        check = getattr(self.kernel, "check", None)
        if check is not None:
            check(free)

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
            self._require_own(state)
        replicas, num_chains = self.num_replicas, len(state.chain_ids)
        free = ~state.clamped
        self._check(free)
        batches = _batches(num_chains, chain_batch)
        start = KernelState(state.x, state.clamped, state.memory)
        states = [start[rows.start * replicas : rows.stop * replicas] for rows in batches]
        streams = [Streams(state.seed, state.chain_ids[rows]) for rows in batches]
        watches = [ReducibilityWatch(self.space, ~part.clamped, len(part.x)) for part in states]
        watch_kernel = getattr(self.kernel, "watched", lambda _: self.kernel)
        watched = [watch_kernel(watch) for watch in watches] if warmup else []

        stored = state.x.new_empty(draws, num_chains, *state.x.shape[1:]) if store else None
        moved = [torch.zeros(len(part.x), dtype=torch.bool, device=state.x.device) for part in states]
        happened: dict[str, Any] = {}
        still = [True] * len(states)
        total = warmup + draws * thin
        # What is certain at any moment of an interrupt: the states, the sweeps they have seen, the draws kept.
        done: tuple[list[KernelState], int, int] = (states, 0, 0)
        interrupted = False
        try:
            with progress_bar(total if progress else None, type(self).__name__) as advance, torch.no_grad():
                for sweep_number in range(1, total + 1):
                    states, _, kept = done
                    is_watched = sweep_number <= min(warmup, MAX_SWEEPS)
                    following, so_far = [], dict(happened)
                    for i, part in enumerate(states):
                        kernel = watched[i] if is_watched else self.kernel
                        own = streams[i].fold_in("sweep", state.num_sweeps + sweep_number)
                        new, info = _checked_step(kernel, part, own)
                        if still[i]:  # once all chains have moved there is nothing to compare
                            moved[i] |= (new.x != part.x).flatten(1).any(1)
                            still[i] = not bool(moved[i].all())
                        for name, value in info.items():
                            so_far[name] = so_far[name] + value if name in so_far else value
                        following.append(new)
                    if sweep_number > warmup and (sweep_number - warmup) % thin == 0:
                        draw = torch.cat([part.x[::replicas] for part in following])
                        with undivided():
                            if stored is not None:
                                stored[kept] = draw
                            for observer in observers:
                                observer.update(draw)
                            done, happened = (following, sweep_number, kept + 1), so_far
                    else:
                        done, happened = (following, sweep_number, kept), so_far
                    advance()
        except KeyboardInterrupt:
            interrupted = True
        states, num_sweeps, kept = done
        final = ChainState(
            torch.cat([part.x for part in states]),
            state.clamped,
            state.chain_ids,
            state.seed,
            state.num_sweeps + num_sweeps,
            {name: torch.cat([part.memory[name] for part in states]) for name in states[0].memory},
        )
        kept_draws = None if stored is None else stored[:kept]
        stuck = warn_if_stuck(watches, torch.cat(moved), free, num_sweeps, self.space.names)
        if kept_draws is not None and not stuck and _alike(final):
            warn_if_unmixed(kept_draws, self.space.names)
        statistics = {name: value.rate if isinstance(value, Ratio) else value for name, value in happened.items()}
        return ChainResult(kept_draws, final, self.space.names, statistics, interrupted)

    def _require_own(self, state: ChainState) -> None:
        """Refuses the state of another kernel or of another model."""
        fix = "Pass the state of a run with the same sampler."
        rows = len(state.chain_ids) * self.num_replicas
        if len(state.x) != rows:
            problem = f"holds {len(state.x)} rows for {len(state.chain_ids)} chains"
            raise FlexgenError("state", f"{problem}, and {type(self.kernel).__name__} has {rows}", fix)
        with renamed(x="state"):
            self.space.validate(state.x)
        if state.clamped.shape not in (state.x.shape[1:2], state.x.shape[:2]):
            raise FlexgenError("state", f"has clamped of shape {tuple(state.clamped.shape)}", fix)
        needed, found = set(self.kernel.init(state.x[:1]).memory), set(state.memory)
        if not needed <= found:
            raise FlexgenError(
                "state", f"lacks what {type(self.kernel).__name__} remembers, {sorted(needed - found)}", fix
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
        conditional = getattr(self.kernel, "conditional", None)
        check_start(chains=chains, x=x, clamped=clamped, chain_ids=chain_ids, space=space)
        generator = randomness("generator", generator)
        clamped = clamped.observed if isinstance(clamped, Query) else clamped
        if x is not None and x.ndim == 1 + len(space.site_shape):
            x = x[None].expand(chains or 1, *x.shape)
        num_chains = agree_on_chains(chains, x, chain_ids, clamped)
        device = x.device if x is not None else chain_device(conditional, generator)
        if clamped is None:
            clamped = torch.zeros(space.num_sites, dtype=torch.bool, device=device)
        check_clamped(clamped, num_chains, space.num_sites)
        self._check(~clamped)  # before the conditional draws a start
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
            absent = absent_in(conditional, x)
            clamped = clamped | absent if bool(absent.any()) else clamped
        if initialise:
            x = x.repeat_interleave(replicas, 0)
            rows_clamped = clamped if clamped.ndim == 1 else clamped.repeat_interleave(replicas, 0)
            parts = []
            for chains_of in _batches(num_chains, chain_batch):
                rows = slice(chains_of.start * replicas, chains_of.stop * replicas)
                streams = replicated(Streams(seed, ids[chains_of]).fold_in("start"), replicas)
                part_clamped = rows_clamped if clamped.ndim == 1 else rows_clamped[rows]
                parts.append(_draw_free(conditional, space, x[rows], part_clamped, streams))
            x = torch.cat(parts)
        # The replicas of a drawn start differ; the kernel has them all start where the first does, but for that.
        state = self.kernel.init(x[::replicas] if initialise else x, clamped=clamped)
        if initialise and replicas > 1:
            state = state.moved(x)
        return ChainState(state.x.clone(), state.clamped.clone(), ids, seed, 0, state.memory)


def _alike(state: ChainState) -> bool:
    """Whether all chains have one target, which R-hat needs: the same sites clamped at the same values."""
    if state.clamped.ndim == 2:
        return False
    known = state.x[:, state.clamped]
    return bool((known == known[:1]).all())


def _checked_step(kernel: Kernel, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
    answer: Any = kernel.step(state, streams)
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
        new, info = answer
        if isinstance(new, KernelState) and new.x.shape == state.x.shape:
            return new, info
        answer = new
    found = f"a state of shape {tuple(answer.x.shape)}" if isinstance(answer, KernelState) else kind_of(answer)
    fix = f"Return (state.moved(x), info) with x {list(state.x.shape)} and info a dict, which may be empty."
    raise FlexgenError("kernel", f"{type(kernel).__name__}.step returned {found}", fix)


def _draw_free(conditional: Conditional | None, space: Space, x: Tensor, clamped: Tensor, streams: Streams) -> Tensor:
    """A start: the free sites drawn from the conditional if it can say, else uniformly."""
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


def _batches(num_chains: int, chain_batch: int | None) -> list[slice]:
    size = max(num_chains if chain_batch is None else chain_batch, 1)
    return [slice(start, min(start + size, num_chains)) for start in range(0, num_chains, size)]


def chain_device(conditional: object, generator: Randomness | int | None) -> torch.device:
    """Where chains start that no `x` places: beside the conditional's weights, or else where the generator is."""
    if isinstance(conditional, nn.Module):
        weight = next(itertools.chain(conditional.parameters(), conditional.buffers()), None)
        if weight is not None:
            return weight.device
    return generator.device if isinstance(generator, torch.Generator | Streams) else torch.device("cpu")
