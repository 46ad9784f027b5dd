"""Scans: in which order a Gibbs sampler visits the free sites.

A scan knows no sizes; ``scan.over(free)`` binds it to sites and gives a `Sweep`, which is a `Schedule` with a cost.
A sweep updates every free site once (the random scan: as many updates as there are free sites). Where rows clamp
different sites, each row visits its own free sites only, and a sweep costs as many evaluations as the freest row needs.

For *compatible* conditionals every scan leaves the joint invariant. For incompatible ones each scan has a distribution
of its own (``flexgen.exact.kernels.stationary``), so the scan is part of the model, not a matter of speed.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import (
    MOST_ENTRIES,
    doors,
    entries,
    freeze,
    instance,
    kind_of,
    malformed,
    mapping,
    real_tensor,
    renamed,
    source,
    whole_number,
    whole_numbers,
)
from flexgen.errors import FlexgenError
from flexgen.query import Query
from flexgen.rng import Randomness
from samplers.schedule import Factorized, SiteQuery, Step, Walk, first_in_order

__all__ = [
    "Blocked",
    "Coloured",
    "RandomPermutation",
    "RandomSite",
    "Scan",
    "Sweep",
    "Systematic",
    "blocked",
    "coloured",
    "from_dict",
    "random",
    "random_permutation",
    "systematic",
]

# Up to this many sites the queries of a fixed scan are made once (two N x N tables of booleans).
_MAX_CACHED_SITES = 4096
_MAX_PERMUTED_SITES = 6  # 720 orders


def _checked_free(argument: str, free: object) -> Tensor:
    found = real_tensor(argument, free, "[N] or [B, N]", error=FlexgenError)
    if found.dtype != torch.bool or found.ndim not in (1, 2):
        problem = f"has shape {tuple(found.shape)} and type {found.dtype}"
        raise FlexgenError(argument, problem, "Pass booleans [N] or [B, N], True where a site is free.")
    return found


class Scan(ABC):
    """In which order the free sites are visited; see the module's docstring.

    A scan of one's own is a frozen dataclass with `steps`. With `is_fixed`, or `orders`, the exact diagnostics read it
    too (``flexgen.compatibility.stationary``); by its fields it turns into JSON and back.
    """

    _KINDS: ClassVar[dict[str, type[Scan]]] = {}  # every scan there is, by the name it has in JSON

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Scan._KINDS[cls._kind()] = cls
        of_sites = {"free": _checked_free}
        doors(cls, check=of_sites, cost=of_sites, steps={**of_sites, "num_rows": whole_number, "generator": source})

    @classmethod
    def _kind(cls) -> str:
        return cls.__qualname__ if cls.__module__ == __name__ else f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:
        """The steps of one sweep over the free sites, bool ``[N]`` or ``[B, N]``."""

    def cost(self, free: Tensor) -> int:
        """Evaluations of one sweep."""
        free = _checked_free("free", free)
        return int(free.sum(-1).max()) if free.numel() else 0

    @property
    def is_fixed(self) -> bool:
        """Whether every sweep has the same queries."""
        return False

    def over(self, free: Tensor | int, *, num_sweeps: int = 1) -> Sweep:
        """The schedule of some sweeps over the free sites.

        Args:
            free: bool ``[N]``, or ``[B, N]`` where rows differ; or the number of sites, all of them free.
        """
        if not isinstance(free, Tensor):
            free = torch.ones(whole_number("free", free, most=MOST_ENTRIES), dtype=torch.bool)
        self.check(_checked_free("free", free))
        return Sweep(self, free, num_sweeps)

    def check(self, free: Tensor) -> None:  # noqa: B027
        """Raises unless the scan visits all of the free sites, and no site that does not exist."""

    def orders(self, num_sites: int) -> dict[tuple[tuple[int, ...], ...], float]:
        """The orders in which a sweep over `num_sites` free sites updates its blocks, each with its probability.

        Of a random scan that never ends its order, those of one update.

        Raises:
            FlexgenError: the orders are not known, or a step draws several sites from their marginals at once.
        """
        if not self.is_fixed:
            fix = "Define orders(num_sites) in its class, or set is_fixed where every sweep is the same."
            raise FlexgenError("scan", f"is {self!r}, which does not say its orders", fix)
        free = torch.ones(num_sites, dtype=torch.bool)
        with renamed(order="scan", blocks="scan", graph="scan"):
            self.check(free)
        blocks = []
        for step in self.steps(free, 1, generator=torch.Generator()):
            query = step.query if isinstance(step, Factorized) else step
            block = tuple(query.target.view(-1).nonzero().flatten().tolist())
            if isinstance(step, Factorized) and len(block) > 1:
                fix = "Pass 'random', a tuple of sites such as (0, 1, 2), or orders with their probabilities."
                raise FlexgenError("scan", f"is {self!r}, which draws several sites from their marginals at once", fix)
            blocks.append(block)
        return {tuple(blocks): 1.0}

    def to_dict(self) -> dict[str, Any]:
        """The class's name and the fields, as JSON has them; `from_dict` reads it back."""
        if not is_dataclass(type(self)):
            fix = "Make its class a frozen dataclass, or define to_dict and from_dict in it."
            raise FlexgenError("scan", f"is a {type(self).__name__}, whose fields are not known", fix)
        return {"scan": self._kind(), **asdict(cast(Any, self))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scan:
        """The scan of this class that `to_dict` described; of `Scan` itself, of whichever class it names.

        Classes are found where they were defined by subclassing; nothing is imported by name.
        """
        mapping("data", data, "Pass what scan.to_dict() gave.")
        with malformed("data", "Pass what scan.to_dict() gave.", FlexgenError):
            if cls is not Scan:
                return cls(**{name: _tuples(value) for name, value in data.items() if name != "scan"})
            name = data.get("scan")
            if not isinstance(name, str) or name not in Scan._KINDS:
                fix = f"Choose one of {', '.join(Scan._KINDS)}; of a scan of your own, import its module first."
                raise FlexgenError("scan", f"is {kind_of(name)}", fix)
            return Scan._KINDS[name].from_dict(data)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Sweeps of one scan over given free sites: a `Schedule`."""

    scan: Scan
    free: Tensor
    num_sweeps: int = 1

    def __post_init__(self) -> None:
        instance("scan", self.scan, Scan, "Pass a scan of samplers.scans, such as scans.random().")
        _checked_free("free", self.free)
        freeze(self, num_sweeps=whole_number("num_sweeps", self.num_sweeps))

    @property
    def num_evaluations(self) -> int:
        return self.num_sweeps * self.scan.cost(self.free)

    @property
    def critical_path(self) -> int:
        return self.num_evaluations

    @cached_property
    def _fixed(self) -> tuple[Step, ...] | None:
        """The steps of every sweep, where they are always the same and few enough to keep."""
        if not self.scan.is_fixed or self.free.ndim == 2 or len(self.free) > _MAX_CACHED_SITES:
            return None
        return tuple(self.scan.steps(self.free, 1, generator=torch.Generator()))

    def walk(self, x: Tensor, *, generator: Randomness) -> Walk:
        for _ in range(self.num_sweeps):
            fixed = self._fixed
            steps = self.scan.steps(self.free, len(x), generator=generator) if fixed is None else iter(fixed)
            for step in steps:  # noqa: UP028 (an iterator over a tuple has no send)
                yield step

    def to_dict(self) -> dict[str, Any]:
        return {"scan": self.scan.to_dict(), "free": self.free.tolist(), "num_sweeps": self.num_sweeps}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sweep:
        with malformed("data", "Pass what sweep.to_dict() gave.", FlexgenError):
            free = torch.tensor(data["free"], dtype=torch.bool)
            return from_dict(data["scan"]).over(free, num_sweeps=data["num_sweeps"])

    def __repr__(self) -> str:
        return f"Sweep({self.scan}, {self.num_sweeps} sweep(s), {self.num_evaluations} evaluations)"


@dataclass(frozen=True)
class Systematic(Scan):
    """Every free site once, always in the same order.

    Args:
        order: the sites, in the order of their visits; None: by number.
    """

    order: tuple[int, ...] | None = None

    @property
    def is_fixed(self) -> bool:
        return True

    def check(self, free: Tensor) -> None:
        if self.order is not None:
            _check_covers("order", [self.order], free)
            if len(set(self.order)) < len(self.order):
                raise FlexgenError("order", f"visits a site twice: {self.order}", "Name each site once.")

    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:  # noqa: ARG002
        num_sites = free.shape[-1]
        order = range(num_sites) if self.order is None else self.order
        if free.ndim == 1:
            target = torch.eye(num_sites, dtype=torch.bool, device=free.device)
            observed = ~target
            is_free = free.tolist()
            for site in order:
                if is_free[site]:
                    yield SiteQuery.make(target[site], observed[site], site)
            return
        visited = set(order)
        full = [*order, *(site for site in range(num_sites) if site not in visited)]  # the rest is clamped
        yield from _one_site_a_step(free, torch.tensor(full, device=free.device))


@dataclass(frozen=True)
class RandomSite(Scan):
    """A free site drawn uniformly, for each row and update anew: the reversible random scan."""

    def orders(self, num_sites: int) -> dict[tuple[tuple[int, ...], ...], float]:
        return {((site,),): 1 / num_sites for site in range(num_sites)}

    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:
        num_sites = free.shape[-1]
        free = free.expand(num_rows, -1)
        counts = free.sum(1)  # [B]
        u = rng.uniform((num_rows, int(counts.max())), generator=generator, dtype=torch.float64)
        sites = (u * counts[:, None]).long()  # [B, T], of the free ones
        if not bool(free.all()):
            sites = first_in_order(free, torch.arange(num_sites, device=free.device))[0].gather(1, sites)
        # A row with few free sites rests after as many updates as it has of them, whatever rows stand beside it.
        yield from SiteQuery.complete_rows(sites.T.contiguous(), _has_step(counts), num_sites)


@dataclass(frozen=True)
class RandomPermutation(Scan):
    """Every free site once, in an order drawn for each row and sweep anew."""

    def orders(self, num_sites: int) -> dict[tuple[tuple[int, ...], ...], float]:
        if num_sites > _MAX_PERMUTED_SITES:
            fix = "Pass a few orders with their probabilities, or 'random'."
            raise FlexgenError("scan", f"is {self!r} over {num_sites} sites, {math.factorial(num_sites)} orders", fix)
        every = list(itertools.permutations(range(num_sites)))
        return {tuple((site,) for site in order): 1 / len(every) for order in every}

    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:
        order = rng.permutation(num_rows, free.shape[-1], generator=generator)
        yield from _one_site_a_step(free.expand(num_rows, -1), order)


@dataclass(frozen=True)
class Blocked(Scan):
    """Blocks of sites, each drawn jointly given the rest, in turn.

    Mixes better than single sites where sites of a block depend on each other. A conditional of marginals draws a
    block by the chain rule, one evaluation a site.

    Args:
        blocks: the sites of every block; blocks may share sites.
    """

    blocks: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", _site_lists("blocks", self.blocks))

    @property
    def is_fixed(self) -> bool:
        return True

    def check(self, free: Tensor) -> None:
        _check_covers("blocks", self.blocks, free)

    def cost(self, free: Tensor) -> int:
        return sum(int(free[..., list(block)].sum(-1).max()) for block in self.blocks)

    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:  # noqa: ARG002
        for target in _sets(self.blocks, free):
            yield Query._trusted(target, ~target)


@dataclass(frozen=True)
class Coloured(Scan):
    """Colour classes, each updated at once from the marginals of one evaluation.

    Exact where the sites of a class are independent given the rest, which a proper colouring of a Markov field's graph
    ensures. The marginals are given all *other* classes, so the conditional must answer such queries.

    Args:
        classes: the sites of every colour.
    """

    classes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", _site_lists("graph", self.classes))

    @property
    def is_fixed(self) -> bool:
        return True

    def check(self, free: Tensor) -> None:
        _check_covers("graph", self.classes, free)

    def cost(self, free: Tensor) -> int:
        return sum(bool(free[..., list(sites)].any()) for sites in self.classes)

    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:  # noqa: ARG002
        for target in _sets(self.classes, free):
            yield Factorized(Query._trusted(target, ~target))


def systematic(order: Iterable[int] | None = None) -> Systematic:
    """Every free site once a sweep, in `order` (default: by number)."""
    return Systematic(None if order is None else _site_numbers("order", order))


def random() -> RandomSite:
    """A uniformly drawn free site at every update, drawn for each row separately."""
    return RandomSite()


def random_permutation() -> RandomPermutation:
    """Every free site once a sweep, in a new random order for each row."""
    return RandomPermutation()


def blocked(blocks: Iterable[Iterable[int]]) -> Blocked:
    """Blocks of sites, each drawn jointly given the rest."""
    return Blocked(_site_lists("blocks", blocks))


def coloured(
    graph: Tensor | Sequence[Sequence[int]],
    *,
    colours: Sequence[int] | None = None,
    allow_simultaneous: bool = False,
) -> Coloured:
    """Sites of one colour are updated at once.

    Args:
        graph: who depends on whom: a symmetric adjacency ``[N, N]``, or the neighbours of every site.
        colours: a colour for every site; default: greedy, sites of high degree first (Welsh & Powell 1967), which
            needs at most one colour more than the highest degree.
        allow_simultaneous: accept colours that neighbours share. Such a scan updates them from each other's past and
            does not leave the joint invariant, even where the conditionals are compatible.
    """
    neighbours = _neighbours(graph)
    if colours is None:
        colours = _greedy_colours(neighbours)
    colours = whole_numbers("colours", colours, "Give a whole number for every site.", least=-MOST_ENTRIES)
    if len(colours) != len(neighbours):
        raise FlexgenError(
            "colours", f"holds {len(colours)} colours for {len(neighbours)} sites", "Give one colour a site."
        )
    clash = [
        (a, b) for a, others in enumerate(neighbours) for b in sorted(others) if a < b and colours[a] == colours[b]
    ]
    if clash and not allow_simultaneous:
        a, b = clash[0]
        raise FlexgenError(
            "colours",
            f"gives the neighbours {a} and {b} the same colour {colours[a]} ({len(clash)} such pair(s)), "
            "and updating neighbours at once does not leave the joint invariant",
            "Use another colouring (colours=None finds one), or say allow_simultaneous=True if that is what you study.",
        )
    return Coloured(
        tuple(
            tuple(site for site, own in enumerate(colours) if own == colour)
            for colour in sorted(set(map(int, colours)))
        )
    )


def from_dict(data: Mapping[str, Any]) -> Scan:
    """The scan that ``scan.to_dict()`` described, also of a class of one's own."""
    return Scan.from_dict(data)


def _site_lists(argument: str, groups: Any) -> tuple[tuple[int, ...], ...]:
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        fix = "Pass lists of site numbers, such as [[0, 1], [2]]."
        raise FlexgenError(argument, f"is {kind_of(groups)}", fix)
    fix = "Pass lists of site numbers, such as [[0, 1], [2]]."
    return tuple(_site_numbers(argument, sites) for sites in entries(argument, groups, fix))


def _site_numbers(argument: str, sites: Any) -> tuple[int, ...]:
    if isinstance(sites, str) or not isinstance(sites, Iterable):
        fix = "Pass lists of site numbers, such as [0, 1]."
        raise FlexgenError(argument, f"holds {kind_of(sites)} in place of a list", fix)
    fix = "Pass site numbers; of a table's column, model.schema.position(name)."
    return whole_numbers(argument, sites, fix, least=-MOST_ENTRIES, most=MOST_ENTRIES)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _one_site_a_step(free: Tensor, order: Tensor) -> Iterator[SiteQuery]:
    """Each row's free sites in its order; rows that have visited all of theirs rest. free ``[B, N]``."""
    if bool(free.all()):
        yield from SiteQuery.complete_rows(order.expand(free.shape).T.contiguous(), None, free.shape[1])
        return
    sites, counts = first_in_order(free, order)  # [B, N], [B]
    visits = sites[:, : int(counts.max())].T.contiguous()  # [T, B]
    yield from SiteQuery.complete_rows(visits, _has_step(counts), free.shape[1])


def _has_step(counts: Tensor) -> Tensor | None:
    """Bool ``[T, B]``: which of T = max(counts) steps the rows take; None where every row takes all of them."""
    num_steps = int(counts.max())
    if bool((counts == num_steps).all()):
        return None
    return torch.arange(num_steps, device=counts.device)[:, None] < counts


def _sets(groups: Iterable[Sequence[int]], free: Tensor) -> Iterator[Tensor]:
    """The free sites of every group, bool of the shape of `free`; empty ones are left out where all rows agree."""
    for group in groups:
        target = torch.zeros_like(free)
        target[..., list(group)] = True
        target &= free
        if free.ndim == 2 or bool(target.any()):
            yield target


def _check_covers(argument: str, groups: Iterable[Sequence[int]], free: Tensor) -> None:
    visited = {site for group in _site_lists(argument, groups) for site in group}
    num_sites = free.shape[-1]
    outside = sorted(site for site in visited if not 0 <= site < num_sites)
    if outside:
        raise FlexgenError(
            argument, f"holds site {outside[0]}", f"Sites are numbered 0 to {num_sites - 1} (num_sites - 1)."
        )
    is_free = free if free.ndim == 1 else free.any(0)
    left_out = [site for site in is_free.nonzero().flatten().tolist() if site not in visited]
    if left_out:
        raise FlexgenError(
            argument, f"never visits the free site(s) {left_out[:5]}", "Visit them, or clamp them if they are known."
        )


def _neighbours(graph: Tensor | Sequence[Sequence[int]]) -> list[set[int]]:
    if isinstance(graph, Tensor):
        graph = graph.to_dense()
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or not torch.equal(graph != 0, graph.T != 0):
            raise FlexgenError(
                "graph", f"is no symmetric [N, N] adjacency (shape {tuple(graph.shape)})", "Pass graph | graph.T."
            )
        lists = [row.nonzero().flatten().tolist() for row in graph != 0]
    else:
        lists = [list(others) for others in _site_lists("graph", graph)]
    neighbours: list[set[int]] = [set() for _ in lists]
    for site, others in enumerate(lists):
        for other in others:
            if not 0 <= other < len(lists):
                raise FlexgenError(
                    "graph", f"holds the neighbour {other} of site {site}", f"Sites are numbered 0 to {len(lists) - 1}."
                )
            if other != site:
                neighbours[site].add(other)
                neighbours[other].add(site)
    return neighbours


def _greedy_colours(neighbours: Sequence[set[int]]) -> list[int]:
    colours = [-1] * len(neighbours)
    for site in sorted(range(len(neighbours)), key=lambda site: -len(neighbours[site])):
        taken = {colours[other] for other in neighbours[site]}
        colours[site] = next(colour for colour in range(len(neighbours)) if colour not in taken)
    return colours
