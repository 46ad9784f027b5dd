"""What each site may hold: a real number, an integer, one of K categories, or an event of a shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen.checks import (
    MOST_ENTRIES,
    entries,
    freeze,
    instance,
    kind_of,
    malformed,
    mapping,
    one_of,
    real_tensor,
    shape_of,
    whole_number,
)
from flexgen.errors import SpaceError

__all__ = ["Site", "Space"]

MOST_STATES = 1 << 28  # entries of a list of states, 2 GiB

Kind = Literal["real", "integer", "categorical"]


@dataclass(frozen=True)
class Site:
    """One site.

    Args:
        kind: ``"real"`` (densities with respect to Lebesgue measure), ``"integer"`` (whole numbers, probability
            masses) or ``"categorical"`` (codes 0 .. K-1, probability masses).
        num_categories: K, for a categorical site; a binary site is one with K = 2.
        shape: the event's shape, ``()`` for a scalar.
        name: what users call it.
    """

    kind: Kind = "real"
    num_categories: int = 0
    shape: tuple[int, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("real", "integer", "categorical"), SpaceError)
        whole_number("num_categories", self.num_categories, -MOST_ENTRIES, SpaceError, most=MOST_ENTRIES)
        freeze(self, shape=shape_of("shape", self.shape, least=0, error=SpaceError))
        instance("name", self.name, str, "Pass a text.", SpaceError)
        if self.kind == "categorical" and self.num_categories < 1:
            raise SpaceError(
                "num_categories", f"is {self.num_categories}", "A categorical site needs at least one category."
            )
        if self.kind != "categorical" and self.num_categories:
            raise SpaceError(
                "num_categories",
                f"is {self.num_categories} for a {self.kind} site",
                "Leave it at 0, or say kind='categorical'.",
            )


@dataclass(frozen=True)
class Space:
    """The sites of a model, in order. All share one event shape, so that x is one tensor ``[B, N, *site_shape]``.

    >>> Space.categorical([2, 2, 3])
    Space(3 sites: 3 categorical)
    """

    sites: tuple[Site, ...]

    def __post_init__(self) -> None:
        sites = entries("sites", self.sites, "Pass a tuple of Site(...), one a site.", error=SpaceError)
        for place, site in enumerate(sites):
            instance(f"sites[{place}]", site, Site, "Pass Site('real'), Site('categorical', 3), ...", SpaceError)
        freeze(self, sites=sites)
        if len({site.shape for site in self.sites}) > 1:
            raise SpaceError("sites", "have events of different shapes", "Give every site the same shape.")

    @classmethod
    def real(cls, num_sites: int, *, shape: Sequence[int] = ()) -> Space:
        return cls((Site("real", shape=shape),) * _count(num_sites))  # type: ignore[arg-type]

    @classmethod
    def binary(cls, num_sites: int) -> Space:
        return cls((Site("categorical", 2),) * _count(num_sites))

    @classmethod
    def categorical(cls, num_categories: Sequence[int]) -> Space:
        fix = "Pass the number of categories of each site, for example [2, 2, 3]."
        counts = entries("num_categories", num_categories, fix, error=SpaceError)
        return cls(tuple(Site("categorical", count) for count in counts))

    @property
    def num_sites(self) -> int:
        return len(self.sites)

    @property
    def site_shape(self) -> tuple[int, ...]:
        return self.sites[0].shape if self.sites else ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(site.name or str(i) for i, site in enumerate(self.sites))

    @property
    def num_categories(self) -> tuple[int, ...]:
        """K of every site, 0 where it is not categorical."""
        return tuple(site.num_categories for site in self.sites)

    @property
    def is_finite(self) -> bool:
        return all(site.kind == "categorical" and not site.shape for site in self.sites)

    @property
    def num_states(self) -> int:
        """The number of joint states of a finite space."""
        self._require_finite()
        total = 1
        for k in self.num_categories:
            total *= k
        return total

    def states(self) -> Tensor:
        """All joint states, int64 ``[num_states, N]``, the last site varying fastest (row-major, as in a table)."""
        self._require_finite()
        if not self.sites:
            return torch.zeros(1, 0, dtype=torch.int64)
        if self.num_states * self.num_sites > MOST_STATES:
            raise SpaceError("space", f"has {self.num_states} states of {self.num_sites} sites", "List fewer.")
        return torch.cartesian_prod(*(torch.arange(k) for k in self.num_categories)).view(-1, self.num_sites)

    def iter_states(self) -> Iterator[tuple[int, ...]]:
        self._require_finite()
        return itertools.product(*(range(k) for k in self.num_categories))

    def validate(self, x: Tensor, *, where: Tensor | None = None, argument: str = "x") -> None:
        """Raises unless `x` holds values of this space.

        Args:
            x: ``[B, N, *site_shape]``.
            where: bool ``[N]`` or ``[B, N]``: the entries that must be valid (others are not read).

        Raises:
            SpaceError: wrong shape, non-finite numbers, categories outside 0 .. K-1, fractional integers; names the
                first site at fault.
        """
        expected = (self.num_sites, *self.site_shape)
        real_tensor(argument, x, f"[B, {', '.join(map(str, expected))}]", error=SpaceError)
        if x.ndim != 1 + len(expected) or tuple(x.shape[1:]) != expected:
            raise SpaceError(
                argument,
                f"has shape {tuple(x.shape)}",
                f"Pass shape [B, {', '.join(map(str, expected))}]: one row an item, one column a site.",
            )
        if where is not None:
            _check_where(where, x)
        flat = x.reshape(len(x), self.num_sites, math.prod(self.site_shape))  # [B, N, E]
        read = (
            torch.ones_like(flat, dtype=torch.bool)
            if where is None
            else where.expand(len(x), -1)[..., None].expand_as(flat)
        )
        kinds = [site.kind for site in self.sites]
        whole = torch.tensor([kind != "real" for kind in kinds], device=x.device)[:, None]
        if x.is_floating_point():
            self._refuse(
                ~torch.isfinite(flat) & read, flat, argument, "a finite number; leave missing entries unobserved"
            )
            self._refuse((flat != flat.round()) & read & whole, flat, argument, "a whole number")
        if "categorical" in kinds:
            top = torch.tensor(self.num_categories, device=x.device)[:, None]
            outside = ((flat < 0) | (flat >= top)) & (top > 0)
            self._refuse(outside & read, flat, argument, "a category code, 0 to K-1")

    def _refuse(self, wrong: Tensor, flat: Tensor, argument: str, expected: str) -> None:
        if not wrong.any():
            return
        row, site, event = (int(i) for i in wrong.nonzero()[0])
        k = self.num_categories[site]
        detail = f" (K={k})" if k else ""
        raise SpaceError(
            argument,
            f"holds {flat[row, site, event].item()} at row {row}, site {self.names[site]!r}",
            f"This {self.sites[site].kind} site takes {expected}{detail}.",
        )

    def _require_finite(self) -> None:
        if not self.is_finite:
            raise SpaceError("space", f"is not finite: {self}", "Only categorical sites can be enumerated.")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return {
            "sites": [
                {"kind": s.kind, "num_categories": s.num_categories, "shape": list(s.shape), "name": s.name}
                for s in self.sites
            ]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Space:
        """The space of such a form.

        Raises:
            SpaceError: not what `to_dict` gives.
        """
        fix = "Pass what Space.to_dict gave."
        mapping("data", data, fix, SpaceError)
        with malformed("data", fix, SpaceError):
            return cls(tuple(Site(**{**site, "shape": tuple(site["shape"])}) for site in data["sites"]))

    def __repr__(self) -> str:
        counts = {kind: sum(site.kind == kind for site in self.sites) for kind in ("real", "integer", "categorical")}
        parts = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
        return f"Space({self.num_sites} sites: {parts})"


def _count(num_sites: int) -> int:
    return whole_number("num_sites", num_sites, 0, SpaceError, most=MOST_ENTRIES)


def _check_where(where: object, x: Tensor) -> None:
    fix = f"Pass booleans [N] = [{x.shape[1]}] or [B, N] = [{x.shape[0]}, {x.shape[1]}]."
    if not isinstance(where, Tensor) or where.dtype != torch.bool or where.layout != torch.strided:
        raise SpaceError("where", f"is {kind_of(where)}", fix)
    if tuple(where.shape) not in ((x.shape[1],), (1, x.shape[1]), (x.shape[0], x.shape[1])):
        raise SpaceError("where", f"has shape {tuple(where.shape)}", fix)
    if where.device != x.device:
        raise SpaceError("where", f"is on {where.device}, but x on {x.device}", "Move both to one device.")
