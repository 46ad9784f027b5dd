"""What every law is: draws of (target, observed, weight), and where a closed form exists, the law itself."""

from __future__ import annotations

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import doors, instance, kind_of, one_of, real_tensor, source, whole_number
from flexgen.errors import FlexgenError, UnsupportedQueryError
from flexgen.laws import MaskDraw, MaskLaw
from flexgen.query import Query
from flexgen.rng import Randomness, Streams
from samplers.laws.select import count_sites, fork, rows_of

__all__ = ["Exchangeable", "Law", "Rows", "Sets", "Side", "Support", "Weight", "as_law", "subsets"]

Side = Literal["target", "observed"]
Weight = Literal["one", "mean", "likelihood"]

_MAX_SUBSET_SITES = 16
_MOST_SITES = 1 << 16  # of a closed form


class Sets(NamedTuple):
    """The sets of a batch of queries, and the weight of each."""

    target: Tensor  # [B, N] bool
    observed: Tensor  # [B, N] bool
    weight: Tensor  # [B]


@dataclass(frozen=True, eq=False)
class Rows:
    """What a law sees of the batch: the entries present, the randomness, and for some laws values or groups."""

    present: Tensor  # [B, N] bool
    generator: Randomness
    x: Tensor | None = None  # [B, N, ...]
    groups: Tensor | None = None  # [B, N] int64

    def __len__(self) -> int:
        return len(self.present)

    @property
    def num_sites(self) -> int:
        return self.present.shape[-1]

    @property
    def num_present(self) -> Tensor:
        """Sites that each row holds, int64 ``[B]``."""
        return count_sites(self.present)

    @cached_property
    def place(self) -> Tensor:
        """The place of each present site among those present, counted from 0, int64 ``[B, N]``."""
        return self.present.cumsum(-1) - 1

    def ones(self) -> Tensor:
        return torch.ones(len(self), device=self.present.device)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform numbers, ``[B, *shape]``."""
        return rng.uniform((len(self), *shape), generator=self.generator, dtype=dtype)

    def fork(self, *parts: int | str) -> Rows:
        """The same rows, with randomness of their own for a part of the draw."""
        return replace(self, generator=fork(self.generator, *parts))

    def __getitem__(self, rows: Tensor) -> Rows:
        """Some rows, by number."""
        return Rows(
            self.present[rows],
            rows_of(self.generator, rows),
            None if self.x is None else self.x[rows],
            None if self.groups is None else self.groups[rows],
        )

    def rest(self, target: Tensor, weight: Tensor | None = None) -> Sets:
        """The query that observes all that is present and not asked for."""
        return Sets(target, self.present & ~target, self.ones() if weight is None else weight)

    def spread(self, chosen: Tensor) -> Tensor:
        """A set over the places 0 .. n-1 of the *present* sites in order, as a set of sites, bool ``[B, N]``.

        Laws of sequences see a row without its gaps: padding or missing entries do not count as places.
        """
        if bool(self.present.all()):
            return chosen
        return chosen.gather(-1, self.place.clamp_min(0)) & self.present


@dataclass(frozen=True, eq=False)
class Support:
    """All queries that a law can draw over a few sites, in no particular order.

    Args:
        query: the queries, ``[M, N]``, all different.
        probability: float64 ``[M]``, positive, sums to 1.
        weight: float64 ``[M]``, the expected weight of a draw that turns out to be this query.
    """

    query: Query
    probability: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        instance("query", self.query, Query, "Pass a flexgen.Query of shape [M, N].")
        for name in ("probability", "weight"):
            if len(real_tensor(name, getattr(self, name), "[M]", ndim=1)) != len(self.query.target):
                raise FlexgenError(name, f"has {len(getattr(self, name))} entries", "Pass one for each query.")

    def __len__(self) -> int:
        return len(self.probability)

    def __iter__(self) -> Iterator[tuple[Query, float]]:
        """Pairs (query over ``[N]``, probability)."""
        for target, observed, probability in zip(
            self.query.target, self.query.observed, self.probability.tolist(), strict=True
        ):
            yield Query(target, observed), probability

    @classmethod
    def merged(cls, parts: Sequence[tuple[Sets, Tensor]]) -> Support:
        """The support of a law from sets (in which queries may repeat) and their probabilities."""
        probability = torch.cat([p for _, p in parts])
        possible = probability > 0
        probability = probability[possible]
        target, observed, weight = (torch.cat([sets[i] for sets, _ in parts])[possible] for i in range(3))
        if target.shape[-1]:
            both = torch.cat([target, observed], -1)
            code, place = torch.unique(both, dim=0, return_inverse=True)  # [M, 2N], [rows]
        else:  # over no sites there is one query, and `unique` takes no empty rows
            code, place = target[:1], torch.zeros(len(target), dtype=torch.int64)
        total = torch.zeros(len(code), dtype=torch.float64).index_add_(0, place, probability)
        weighted = torch.zeros(len(code), dtype=torch.float64).index_add_(0, place, probability * weight.double())
        num_sites = target.shape[-1]
        return cls(Query(code[:, :num_sites], code[:, num_sites:]), total, weighted / total)

    @property
    def sets(self) -> Sets:
        return Sets(self.query.target, self.query.observed, self.weight)


def _num_sites(argument: str, value: Any) -> int:
    return whole_number(argument, value, most=_MOST_SITES)


class Law(ABC):
    """A distribution over queries; a value: immutable, printable, built from plain arguments.

    A law satisfies `flexgen.laws.MaskLaw`. Unless it says otherwise it draws the target P, and observes every other
    entry that is present. A law of one's own is a subclass with `draw_sets`, and with `support` where it can be
    enumerated; it composes with the others.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        former = vars(cls).get("_draw")
        if former is not None and "draw_sets" not in vars(cls):
            warnings.warn(
                f"{cls.__name__} defines _draw, which is called draw_sets now: rename it.",
                DeprecationWarning,
                stacklevel=2,
            )
            cls.draw_sets = former  # type: ignore[method-assign]
        of_sites = {"num_sites": _num_sites}
        doors(cls, support=of_sites, inclusion=of_sites, cardinality_pmf=of_sites)

    def draw(
        self, present: Tensor, *, generator: Randomness, x: Tensor | None = None, groups: Tensor | None = None
    ) -> MaskDraw:
        """One query a row; rows are independent given `x`, and missing entries are in neither set.

        Args:
            present: bool ``[B, N]``, the entries that the data hold.
            generator: on the device of `present`; `Streams` make a row's draw independent of the rows beside it.
            x: ``[B, N, ...]``, the data, for laws that depend on values.
            groups: int ``[B, N]``, for `Tied` laws whose groups differ from row to row, such as the words of text:
                the group of each site, numbered from 0; sites with -1 are never asked for.

        Raises:
            FlexgenError: an argument of the wrong kind, shape or device.
        """
        _check_rows(present, generator, x, groups)
        target, observed, weight = self.draw_sets(Rows(present, generator, x, groups))
        return MaskDraw(Query(target, observed), weight)

    @abstractmethod
    def draw_sets(self, rows: Rows) -> Sets:
        """The sets of a query for each row: the method to write. Public callers come through `draw`.

        Args:
            rows: the entries that are present, bool ``[B, N]``, and the randomness: ``rows.uniform(N)`` are uniform
                numbers ``[B, N]``, ``rows.generator`` what the functions of `flexgen.rng` take.

        Returns:
            The target and the observed entries, bool ``[B, N]``, disjoint and among those present, and the weight of
            the loss, ``[B]``. ``rows.rest(target)`` observes all that is present and no target, with weight 1.
        """

    def support(self, num_sites: int) -> Support:
        """Every query that the law can draw when `num_sites` sites are present, with its probability.

        Raises:
            UnsupportedQueryError: for laws that cannot be enumerated, or over too many sites.
        """
        raise UnsupportedQueryError(
            "law",
            f"{type(self).__name__} cannot be enumerated over {num_sites} sites",
            "Draw from it, or enumerate a finite law.",
        )

    def inclusion(self, num_sites: int, side: Side = "target") -> Tensor:
        """Probability that each site is a target (or observed), float64 ``[N]``, when all sites are present."""
        one_of("side", side, ("target", "observed"))
        support = self.support(num_sites)
        sites: Tensor = getattr(support.query, side)
        return support.probability @ sites.double()

    def cardinality_pmf(self, num_sites: int, side: Side = "target") -> Tensor:
        """Law of the size |P| (or |C|), float64 ``[N + 1]``, when all sites are present."""
        one_of("side", side, ("target", "observed"))
        support = self.support(num_sites)
        size = getattr(support.query, side).sum(-1)
        return torch.zeros(num_sites + 1, dtype=torch.float64).index_add_(0, size, support.probability)


class Exchangeable(Law):
    """A law that depends on the target's size alone, and observes the rest: all sites are alike."""

    @abstractmethod
    def _sizes(self, num_sites: int) -> tuple[Tensor, Tensor]:
        """P(|P| = k) and the expected weight given |P| = k, float64 ``[N + 1]`` both."""

    def support(self, num_sites: int) -> Support:
        probability, weight = self._sizes(num_sites)
        target = subsets(num_sites)
        size = target.sum(-1)
        number = torch.bincount(size, minlength=num_sites + 1)  # of subsets of each size
        return Support.merged([(Sets(target, ~target, weight[size]), (probability / number)[size])])

    def inclusion(self, num_sites: int, side: Side = "target") -> Tensor:
        pmf = self.cardinality_pmf(num_sites, side)
        mean = (pmf * torch.arange(num_sites + 1)).sum()
        return (mean / max(num_sites, 1)).expand(num_sites)

    def cardinality_pmf(self, num_sites: int, side: Side = "target") -> Tensor:
        one_of("side", side, ("target", "observed"))
        pmf = self._sizes(num_sites)[0]
        return pmf if side == "target" else pmf.flip(0)


def subsets(num_sites: int) -> Tensor:
    """All subsets of a few sites, bool ``[2^N, N]``."""
    if num_sites > _MAX_SUBSET_SITES:
        raise UnsupportedQueryError(
            "num_sites", f"is {num_sites}: 2^{num_sites} subsets", f"Enumerate over {_MAX_SUBSET_SITES} sites or fewer."
        )
    every = list(itertools.product([False, True], repeat=num_sites))
    return torch.tensor(every, dtype=torch.bool).view(len(every), num_sites)


def as_law(argument: str, law: object) -> Law:
    """`law`, if it can stand inside another law."""
    if not isinstance(law, Law):
        told = repr(law) if isinstance(law, MaskLaw) else kind_of(law)
        raise FlexgenError(
            argument, f"is {told}", "Pass a law over queries; Corrupted goes outermost, around the whole law."
        )
    return law


def _check_rows(present: Tensor, generator: Randomness, x: Tensor | None, groups: Tensor | None) -> None:
    if (
        not isinstance(present, Tensor)
        or present.dtype != torch.bool
        or present.ndim != 2
        or present.layout != torch.strided
    ):
        is_tensor = isinstance(present, Tensor)
        raise FlexgenError(
            "present",
            f"has dtype {present.dtype} and shape {tuple(present.shape)}" if is_tensor else f"is {kind_of(present)}",
            "Pass a boolean tensor of shape [B, N], True where the data hold an entry.",
        )
    source("generator", generator)
    here, there = torch.device(generator.device), present.device
    # A device without a number is the current one of its type.
    if here.type != there.type or (None not in (here.index, there.index) and here.index != there.index):
        raise FlexgenError(
            "generator",
            f"is on {generator.device}, but present is on {present.device}",
            "Make the generator on the device of the data.",
        )
    if isinstance(generator, Streams) and len(generator) != len(present):
        raise FlexgenError(
            "generator", f"has {len(generator)} streams for {len(present)} rows", "Use one stream for each row."
        )
    for name, value in (("x", x), ("groups", groups)):
        if value is None:
            continue
        real_tensor(name, value, "[B, N]")
        if name == "groups" and (value.is_floating_point() or value.dtype == torch.bool or value.ndim != 2):
            raise FlexgenError(name, f"is a tensor of {value.dtype}", "Pass whole numbers [B, N].")
        if value.device != present.device:
            raise FlexgenError(name, f"is on {value.device}, but present on {present.device}", "Move both to one.")
        if value.shape[:2] != present.shape:
            raise FlexgenError(
                name,
                f"has shape {tuple(value.shape)}, but present has {tuple(present.shape)}",
                "Give one entry for each row and site.",
            )
