"""Kernels: one step of a Markov chain, for many chains at once, as a pure function.

``state, info = kernel.step(state, streams)`` is all there is to a kernel. The state is a value, the randomness comes
as one stream a chain, and nothing else changes: the same call gives the same answer. Hence a user can take one step, a
loop can take thousands and go on later bit for bit (`ChainSampler`), and kernels make kernels: `cycle`, `mixture`.

Guarantee: what two kernels leave invariant, their cycles and mixtures leave invariant. Source: Tierney (1994), *Markov
chains for exploring posterior distributions*.

>>> kernel = GibbsKernel(conditional, scan=scans.systematic())              # doctest: +SKIP
>>> state = kernel.init(x)                                                  # doctest: +SKIP
>>> state, info = kernel.step(state, Streams(0, len(x)).fold_in(number))    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import is_number, kind_of, renamed
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError
from flexgen.rng import Streams
from flexgen.space import Space
from samplers.scans import Scan, Sweep

__all__ = ["Cycle", "Info", "Kernel", "KernelState", "Mixture", "Ratio", "ScanKernel", "cycle", "mixture"]


@dataclass(frozen=True, eq=False)
class KernelState:
    """The state of B chains. Its tensors are not changed in place.

    Args:
        x: ``[B, N, *site]``; of a kernel with R replicas ``[B * R, N, *site]``, the first of each R the chain's draw.
        clamped: bool ``[N]``, or one row for each of `x`: sites that keep their values.
        memory: what else a kernel remembers from step to step, tensors with one entry for each row of `x`.
    """

    x: Tensor
    clamped: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def moved(self, x: Tensor, **memory: Tensor) -> KernelState:
        """The state with another x and, by name, other entries of the memory."""
        return replace(self, x=x, memory={**self.memory, **memory} if memory else self.memory)

    def __getitem__(self, rows: slice | Tensor) -> KernelState:
        """The state of some rows of `x`."""
        clamped = self.clamped if self.clamped.ndim == 1 else self.clamped[rows]
        return KernelState(self.x[rows], clamped, {name: value[rows] for name, value in self.memory.items()})


@dataclass(frozen=True, eq=False)
class Ratio:
    """A rate that is counted: ratios add up over steps and chains.

    Args:
        hits, trials: whole numbers, of one shape.
    """

    hits: Tensor
    trials: Tensor

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.hits + other.hits, self.trials + other.trials)

    @property
    def rate(self) -> Tensor:
        """NaN where nothing was tried."""
        return self.hits / self.trials


Info: TypeAlias = Mapping[str, Tensor | Ratio]
"""What happened in a step, summed over its chains: tensors of a shape that does not depend on their number."""


@runtime_checkable
class Kernel(Protocol):
    """One step of a Markov chain.

    A kernel of one's own gives `space` and `step`, and inherits `init` where it subclasses this protocol. What the loop
    reads besides, where a kernel has it:

    * ``conditional``: draws a start where the run is given none;
    * ``num_replicas``: how many rows of x each chain has, if not 1;
    * ``check(free)``: raises where the kernel cannot serve these free sites, bool ``[N]`` or ``[B, N]``;
    * ``watched(watch)``: the same kernel, whose one-site answers a `ReducibilityWatch` sees during warm-up.
    """

    if TYPE_CHECKING:  # a property would not let a subclass set self.space

        @property
        def space(self) -> Space: ...

    def init(self, x: Tensor, *, clamped: Tensor | None = None) -> KernelState:
        """The state of chains that stand at x ``[B, N, *site]``.

        Args:
            clamped: bool ``[N]`` or ``[B, N]``, sites that keep their values; default: none.
        """
        if not isinstance(x, Tensor):
            raise FlexgenError("x", f"is {kind_of(x)}", "Pass a tensor [B, N, *site].")
        self.space.validate(x)
        if clamped is None:
            clamped = torch.zeros(self.space.num_sites, dtype=torch.bool, device=x.device)
        if clamped.dtype != torch.bool or clamped.shape not in (x.shape[1:2], x.shape[:2]):
            wrong = f"has shape {tuple(clamped.shape)} and type {clamped.dtype}"
            raise FlexgenError("clamped", wrong, f"Pass booleans [N] or [B, N] = {list(x.shape[:2])}.")
        check = getattr(self, "check", None)
        if check is not None:
            check(~clamped)
        num_replicas = getattr(self, "num_replicas", 1)
        if num_replicas > 1:
            x = x.repeat_interleave(num_replicas, 0)
            clamped = clamped if clamped.ndim == 1 else clamped.repeat_interleave(num_replicas, 0)
        return KernelState(x, clamped)

    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
        """The state after one step, and what happened.

        Args:
            state: not changed.
            streams: one a chain, ``[B]``, for this step alone: the loop folds the step's number in. Numbers are drawn
                from children, ``streams.fold_in("mine")``, or from the streams themselves.
        """
        ...


def require_kernel(argument: str, kernel: object) -> None:
    """Raises unless `kernel` has what a kernel has."""
    if isinstance(kernel, Kernel) and isinstance(getattr(kernel, "space", None), Space):
        return
    lack = f", which has no {' and no '.join(n for n in ('init', 'step', 'space') if not hasattr(kernel, n))}"
    fix = "Pass a kernel, such as GibbsKernel(conditional, scan=scans.random()), or one of your own."
    raise FlexgenError(argument, f"is {kind_of(kernel)}{lack}", fix)


class ScanKernel(Kernel):
    """A kernel whose step is a sweep of a scan over the free sites; base of Gibbs, Metropolis and tempering.

    Args:
        conditional: answers the sweep's queries.
        scan: in which order the free sites are visited.
    """

    num_replicas = 1

    def __init__(self, conditional: Conditional, *, scan: Scan) -> None:
        if not isinstance(conditional, Conditional):
            raise FlexgenError(
                "conditional",
                f"is a {type(conditional).__name__}",
                "Pass a conditional; of a model, model.conditional().",
            )
        if not isinstance(scan, Scan):
            raise FlexgenError("scan", f"is {kind_of(scan)}", "Pass a scan of samplers.scans, such as scans.random().")
        self.conditional = conditional
        self.scan = scan
        self._last: tuple[Tensor, Sweep] | None = None
        self.check(torch.zeros(self.space.num_sites, dtype=torch.bool))  # which sites are free is not known yet

    @property
    def space(self) -> Space:
        return self.conditional.space

    def check(self, free: Tensor) -> None:
        """Raises unless the scan visits these sites, bool ``[N]`` or ``[B, N]``, and none that does not exist."""
        with renamed(order="scan", blocks="scan", graph="scan"):
            self.scan.check(free)

    def sweep(self, state: KernelState) -> Sweep:
        """The scan over the state's free sites; made anew only where these are others than at the last call."""
        if self._last is None or self._last[0] is not state.clamped:
            self._last = (state.clamped, Sweep(self.scan, ~state.clamped))
        return self._last[1]


def replicated(streams: Streams, num_replicas: int) -> Streams:
    """One stream for each replica of each chain, ``[B * R]``."""
    if num_replicas == 1:
        return streams
    rows = torch.arange(len(streams), device=streams.device).repeat_interleave(num_replicas)
    replica = torch.arange(num_replicas, device=streams.device).repeat(len(streams))
    return streams[rows].fold_in(replica)


class _Composed(Kernel):
    """Kernels over the same sites. Each has its own part of the memory, under its number."""

    num_replicas = 1

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        if not kernels:
            raise FlexgenError("kernels", "are none", "Pass at least one kernel.")
        for kernel in kernels:
            require_kernel("kernels", kernel)
            if kernel.space != kernels[0].space:
                raise FlexgenError("kernels", f"are over {kernels[0].space} and {kernel.space}", "Use one space.")
            if getattr(kernel, "num_replicas", 1) > 1:
                fix = "Compose the kernels of one temperature, and temper what they make."
                raise FlexgenError("kernels", f"hold {kind_of(kernel)}, whose chains have several replicas", fix)
        self.kernels = tuple(kernels)

    @property
    def space(self) -> Space:
        return self.kernels[0].space

    @property
    def conditional(self) -> Conditional | None:
        """What draws a start: the first kernel's that has one."""
        found = (getattr(kernel, "conditional", None) for kernel in self.kernels)
        return next((conditional for conditional in found if conditional is not None), None)

    def init(self, x: Tensor, *, clamped: Tensor | None = None) -> KernelState:
        states = [kernel.init(x, clamped=clamped) for kernel in self.kernels]
        memory = {
            f"{number}/{name}": value for number, state in enumerate(states) for name, value in state.memory.items()
        }
        return KernelState(x, states[0].clamped, memory)

    def check(self, free: Tensor) -> None:
        for kernel in self.kernels:
            if hasattr(kernel, "check"):
                kernel.check(free)

    def _step_of(self, number: int, state: KernelState, streams: Streams) -> tuple[KernelState, dict[str, Any]]:
        """The state after a step of one member, which sees its own memory alone; its info under its number."""
        prefix = f"{number}/"
        own = {name.removeprefix(prefix): v for name, v in state.memory.items() if name.startswith(prefix)}
        after, info = self.kernels[number].step(KernelState(state.x, state.clamped, own), streams.fold_in(number))
        return (
            state.moved(after.x, **{prefix + name: value for name, value in after.memory.items()}),
            {prefix + name: value for name, value in info.items()},
        )


class Cycle(_Composed):
    """One step of each kernel, in turn; see `cycle`."""

    def watched(self, watch: Any) -> Kernel:
        return Cycle([kernel.watched(watch) if hasattr(kernel, "watched") else kernel for kernel in self.kernels])

    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
        happened: dict[str, Any] = {}
        for number in range(len(self.kernels)):
            state, info = self._step_of(number, state, streams)
            happened |= info
        return state, happened


class Mixture(_Composed):
    """One step of a kernel that each chain draws; see `mixture`."""

    def __init__(self, kernels: Sequence[Kernel], weights: Sequence[float]) -> None:
        super().__init__(kernels)
        wrong = not all(is_number(weight) and weight > 0 for weight in weights)
        if wrong or len(weights) != len(kernels) or abs(sum(weights) - 1) > 1e-9:
            raise FlexgenError("weights", f"are {list(weights)}", "Give each kernel a probability; they sum to 1.")
        self.weights = tuple(float(weight) for weight in weights)

    def watched(self, watch: Any) -> Kernel:  # noqa: ARG002
        """Unwatched: what one member cannot change another may, and each sees some of the chains."""
        return self

    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
        logits = torch.tensor(self.weights, dtype=torch.float64, device=state.x.device).log()
        choice = rng.categorical(logits.expand(len(state.x), -1), generator=streams.fold_in("choice"))
        x, memory = state.x.clone(), {name: value.clone() for name, value in state.memory.items()}
        happened: dict[str, Any] = {}
        for number in range(len(self.kernels)):
            rows = (choice == number).nonzero().flatten()
            if not len(rows):
                continue
            after, info = self._step_of(number, state[rows], streams[rows])
            x[rows] = after.x
            for name, value in after.memory.items():
                memory[name][rows] = value
            happened |= info
        return replace(state, x=x, memory=memory), happened


def cycle(*kernels: Kernel) -> Cycle:
    """The kernel whose step is one step of each kernel, in turn.

    A member's info and memory stand under its number: ``"1/acceptance_rate"``.
    """
    return Cycle(kernels)


def mixture(kernels: Sequence[Kernel], weights: Sequence[float] | None = None) -> Mixture:
    """The kernel whose step is, in each chain, one step of a kernel drawn for it with these probabilities.

    Args:
        kernels: over the same sites.
        weights: positive, summing to 1; default: all alike.
    """
    kernels = list(kernels)
    return Mixture(kernels, [1 / len(kernels)] * len(kernels) if weights is None else list(weights))
