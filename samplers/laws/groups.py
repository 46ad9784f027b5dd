"""Groups of sites that share one fate: words, tubes, patches, columns, frames."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen.checks import freeze, kind_of, shape_of, whole_numbers
from flexgen.errors import FlexgenError

__all__ = ["Groups", "Labels", "Patches"]


class Groups(ABC):
    """A partition of the sites."""

    @property
    @abstractmethod
    def num_sites(self) -> int: ...

    @property
    @abstractmethod
    def num_groups(self) -> int: ...

    @abstractmethod
    def labels(self) -> Tensor:
        """The group of each site, int64 ``[N]``, numbered from 0."""


@dataclass(frozen=True)
class Labels(Groups):
    """Groups by their numbers, one for each site, for example the columns of a one-hot coded table.

    >>> Labels((0, 0, 1, 2, 2)).num_groups
    3
    """

    of_site: Sequence[int]

    def __post_init__(self) -> None:
        labels = whole_numbers("of_site", self.of_site, "Number the groups 0, 1, 2, ... without gaps.")
        if not labels or set(labels) != set(range(len({*labels}))):
            raise FlexgenError("of_site", f"is {kind_of(labels)}", "Number the groups 0, 1, 2, ... without gaps.")
        freeze(self, of_site=labels)

    @property
    def num_sites(self) -> int:
        return len(self.of_site)

    @property
    def num_groups(self) -> int:
        return max(self.of_site) + 1

    def labels(self) -> Tensor:
        return torch.tensor(self.of_site)


@dataclass(frozen=True)
class Patches(Groups):
    """A grid cut into equal boxes; sites are numbered row-major.

    Args:
        shape: the grid of sites, for example (frames, rows, columns).
        size: the box, same length; its sizes divide those of the grid.

    ``Patches((8, 14, 14), (8, 1, 1))`` are the tubes of a video, ``Patches((8, 14, 14), (1, 14, 14))`` its frames,
    and ``Patches((48, 48), (8, 8))`` the 32-pixel patches of an image cut at 4 pixels.
    """

    shape: Sequence[int]
    size: Sequence[int]

    def __post_init__(self) -> None:
        shape, size = shape_of("shape", self.shape), shape_of("size", self.size)
        if len(shape) != len(size) or any(n % s for n, s in zip(shape, size, strict=True)):
            raise FlexgenError(
                "size", f"is {size!r} on a grid {shape!r}", "Each size must divide its side of the grid."
            )
        freeze(self, shape=shape, size=size)

    @property
    def num_sites(self) -> int:
        return math.prod(self.shape)

    @property
    def coarse_shape(self) -> tuple[int, ...]:
        """The grid of boxes."""
        return tuple(n // s for n, s in zip(self.shape, self.size, strict=True))

    @property
    def num_groups(self) -> int:
        return math.prod(self.coarse_shape)

    def labels(self) -> Tensor:
        label = torch.arange(self.num_groups).view(self.coarse_shape)
        for axis, size in enumerate(self.size):
            label = label.repeat_interleave(size, axis)
        return label.flatten()
