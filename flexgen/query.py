"""The one idea: a query is a conditional distribution p(x_P | x_C).

``target`` P and ``observed`` C are disjoint sets of sites; a site in neither is *marginalised out*. Models answer
queries, mask laws draw them for training, schedules walk them for sampling, diagnostics compare two routes of queries
whose answers must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import MOST_ENTRIES, instance, kind_of, site_numbers, usable_device, whole_number
from flexgen.errors import QueryError, SpaceError

__all__ = ["Query", "question"]


@dataclass(frozen=True, eq=False)
class Query:
    """A batch of conditional distributions p(x_P | x_C), one a row, or one for every row.

    Args:
        target: bool ``[N]`` or ``[B, N]``; True where a site is a target (the set P).
        observed: bool, same shape; True where a site is conditioned on (the set C).

    Raises:
        QueryError: if the two are not boolean, differ in shape or device, or overlap.

    Both sets may be empty. Rows of a batch may differ in both sets.
    """

    target: Tensor
    observed: Tensor

    def __post_init__(self) -> None:
        for name, given in (("target", self.target), ("observed", self.observed)):
            _check_set(name, given)
        if self.target.shape != self.observed.shape:
            raise QueryError(
                "observed",
                f"has shape {tuple(self.observed.shape)}, but target has {tuple(self.target.shape)}",
                "Give both the same shape, [N] or [B, N].",
            )
        if self.target.device != self.observed.device:
            raise QueryError(
                "observed",
                f"is on {self.observed.device}, but target is on {self.target.device}",
                "Move both to one device.",
            )
        overlap = self.target & self.observed
        if overlap.device.type != "meta" and overlap.any():
            site = int(overlap.nonzero()[0, -1])
            raise QueryError(
                "observed",
                f"overlaps target at {int(overlap.sum())} site(s), first at site {site}",
                "A site is either a target or observed: remove it from one of the two sets.",
            )

    @classmethod
    def _trusted(cls, target: Tensor, observed: Tensor) -> Query:
        """A query whose sets are disjoint by construction; skips the checks, which cost a device synchronisation."""
        query = object.__new__(cls)
        object.__setattr__(query, "target", target)
        object.__setattr__(query, "observed", observed)
        return query

    @classmethod
    def of(
        cls,
        target: Iterable[int],
        observed: Iterable[int] = (),
        *,
        num_sites: int,
        device: torch.device | str | None = None,
    ) -> Query:
        """One query from site numbers.

        >>> Query.of(target=[3], observed=[0, 1, 2], num_sites=8)
        Query(3 | 0-2; 4 of 8 sites marginalised)
        """
        num_sites = whole_number("num_sites", num_sites, 0, QueryError, most=MOST_ENTRIES)
        device = None if device is None else usable_device("device", device)
        sets = [
            _indicator(
                name, list(sites) if isinstance(sites, Mapping) else sites, num_sites
            )  # {site: value}: its sites
            for name, sites in (("target", target), ("observed", observed))
        ]
        return cls(*(each.to(device) for each in sets))

    @classmethod
    def rest(cls, observed: Tensor) -> Query:
        """All that is not observed is the target: p(x_rest | x_observed)."""
        _check_set("observed", observed)
        return cls._trusted(~observed, observed)

    @classmethod
    def complete(cls, site: int, *, num_sites: int, device: torch.device | str | None = None) -> Query:
        """The complete conditional p(x_site | all others)."""
        num_sites = whole_number("num_sites", num_sites, 0, QueryError, most=MOST_ENTRIES)
        device = None if device is None else usable_device("device", device)
        target = _indicator("site", [site], num_sites).to(device)
        return cls._trusted(target, ~target)

    @property
    def num_sites(self) -> int:
        return self.target.shape[-1]

    @property
    def is_batched(self) -> bool:
        """Whether the query holds a row per item, rather than one query for all."""
        return self.target.ndim == 2

    @property
    def device(self) -> torch.device:
        return self.target.device

    @property
    def marginalised(self) -> Tensor:
        """Sites in neither set, bool, same shape."""
        return ~(self.target | self.observed)

    def expand(self, num_rows: int) -> Query:
        """The query with a row per item, ``[B, N]``; a view where it can be.

        Raises:
            QueryError: if the query already has another number of rows.
        """
        if self.is_batched:
            if self.target.shape[0] != num_rows:
                raise QueryError(
                    "query",
                    f"has {self.target.shape[0]} rows, but x has {num_rows}",
                    "Pass one query of shape [N], or one row of it for each row of x.",
                )
            return self
        if type(num_rows) is not int or not 0 <= num_rows <= MOST_ENTRIES:
            num_rows = whole_number("num_rows", num_rows, 0, QueryError)
        return Query._trusted(self.target.expand(num_rows, -1), self.observed.expand(num_rows, -1))

    def to(self, device: torch.device | str) -> Query:
        device = usable_device("device", device)
        return Query._trusted(self.target.to(device), self.observed.to(device))

    def __getitem__(self, rows: slice | Tensor) -> Query:
        """Some rows of a batched query."""
        if not self.is_batched:
            raise QueryError("query", "has no rows to select from", "Call query.expand(num_rows) first.")
        try:
            return Query._trusted(self.target[rows], self.observed[rows])
        except (IndexError, TypeError, RuntimeError, ValueError) as error:
            fix = f"Pass a slice, or a tensor of numbers of rows, 0 to {len(self.target) - 1}."
            raise QueryError("rows", f"are {kind_of(rows)}", fix) from error

    def chain(self, order: Tensor | None = None) -> Iterator[Query]:
        """The chain rule: single-target queries whose product of answers is this query's answer.

        The target of step t is each row's t-th target; observed are the observed sites and the targets before it. Rows
        with fewer targets have an empty target in the last steps (an empty target has probability one).

        Args:
            order: int ``[N]`` or ``[B, N]``, a permutation of all sites a row; the targets are visited as they occur
                in it. Default: by site number.

        Yields:
            As many batched queries ``[B, N]`` as the fullest row has targets (unbatched if query and order are).
        """
        target, observed = self.target, self.observed
        if order is None:
            order = torch.arange(self.num_sites, device=self.device)
        _check_order(order, target)
        if order.ndim > target.ndim:
            target, observed = target.expand(len(order), -1), observed.expand(len(order), -1)
        if order.shape[-1] != self.num_sites or bool(
            (order.sort(-1).values != torch.arange(self.num_sites, device=self.device)).any()
        ):
            raise QueryError(
                "order",
                f"has shape {tuple(order.shape)} and rows that are no permutation of the {self.num_sites} sites",
                f"Every row names each of 0 to {self.num_sites - 1} once.",
            )
        order = order.long().expand(target.shape)
        visited = target.gather(-1, order)  # [.., N] whether the site visited at each place is a target
        step_of_place = visited.long().cumsum(-1) - 1
        step_of_site = torch.empty_like(step_of_place).scatter_(-1, order, step_of_place)  # [.., N]
        num_steps = int(target.sum(-1).max()) if target.numel() else 0
        for step in range(num_steps):
            yield Query._trusted(target & (step_of_site == step), observed | (target & (step_of_site < step)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Query):
            return NotImplemented
        return torch.equal(self.target, other.target) and torch.equal(self.observed, other.observed)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if self.is_batched:
            return f"Query({self.target.shape[0]} rows over {self.num_sites} sites)"
        rest = int(self.marginalised.sum())
        tail = f"; {rest} of {self.num_sites} sites marginalised" if rest else ""
        return f"Query({_ranges(self.target)} | {_ranges(self.observed)}{tail})"


def question(x: Tensor, query: Any) -> Query:
    """What every conditional checks at its door: `query`, with a row for each of `x`.

    Raises:
        QueryError: no query, or one with another number of rows.
        SpaceError: `x` is no tensor of real numbers with rows.
    """
    if not isinstance(x, Tensor) or x.ndim == 0:
        raise SpaceError("x", f"is {kind_of(x)}", "Pass a tensor [B, N]: one row an item, one column a site.")
    if x.is_complex() or x.layout != torch.strided:
        raise SpaceError("x", f"is a tensor of {x.dtype}, {x.layout}", "Pass a dense tensor of real numbers [B, N].")
    if not isinstance(query, Query):
        fix = "Pass a flexgen.Query, for example Query.of(target=[3], observed=[0, 1], num_sites=8)."
        raise QueryError("query", f"is {kind_of(query)}", fix)
    if x.ndim > 1 and query.num_sites != x.shape[1]:
        raise QueryError("query", f"is over {query.num_sites} sites, but x has {x.shape[1]}", "Let the two agree.")
    if query.device != x.device:
        raise QueryError("query", f"is on {query.device}, but x on {x.device}", "Move both to one device.")
    found: Query = query.expand(x.shape[0])
    return found


def _check_set(name: str, given: object) -> None:
    if not isinstance(given, Tensor) or given.dtype != torch.bool or given.layout != torch.strided:
        kind = type(given).__name__
        if isinstance(given, Tensor):
            kind = str(given.dtype if given.dtype != torch.bool else given.layout)
        raise QueryError(
            name, f"must be a boolean tensor, got {kind}", "Use Query.of(...) to name sites by their numbers."
        )
    if given.ndim not in (1, 2):
        raise QueryError(name, f"has shape {tuple(given.shape)}", "Pass shape [N] or [B, N].")


def _check_order(order: object, target: Tensor) -> None:
    """Kind and shape; that each row is a permutation is a question of the values."""
    fix = f"Pass whole numbers [N] = [{target.shape[-1]}] or [B, N]: every row names each site once."
    instance("order", order, Tensor, fix, QueryError)
    assert isinstance(order, Tensor)
    if order.is_floating_point() or order.is_complex() or order.dtype == torch.bool or order.layout != torch.strided:
        raise QueryError("order", f"is {kind_of(order)}", fix)
    if order.device != target.device:
        raise QueryError("order", f"is on {order.device}, but the query on {target.device}", "Move both to one device.")
    rows = order.shape[0] if order.ndim == 2 else 1
    if order.ndim not in (1, 2) or (order.ndim == 2 == target.ndim and rows not in (1, target.shape[0])):
        raise QueryError("order", f"has shape {tuple(order.shape)} for sets {tuple(target.shape)}", fix)


def _indicator(name: str, given: Iterable[int], num_sites: int) -> Tensor:
    indicator = torch.zeros(num_sites, dtype=torch.bool)
    indicator[list(site_numbers(name, given, num_sites, error=QueryError))] = True
    return indicator


def _ranges(indicator: Tensor) -> str:
    """'0-2, 5' for the sites of a bool [N]."""
    sites = indicator.nonzero().flatten().tolist()
    runs: list[list[int]] = []
    for site in sites:
        if runs and site == runs[-1][1] + 1:
            runs[-1][1] = site
        else:
            runs.append([site, site])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "nothing"
