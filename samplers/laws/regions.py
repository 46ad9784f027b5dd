"""Regions of a grid: the masks of image models. Sites are numbered row-major; missing ones leave holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen.checks import freeze, number, shape_of, whole_number
from flexgen.errors import FlexgenError
from samplers.laws.base import Law, Rows, Sets, Support
from samplers.laws.select import count_sites

__all__ = ["Blocks", "Box", "Pattern", "Rectangle"]


@dataclass(frozen=True)
class Blocks(Law):
    """Random rectangles until a budget of the grid is covered (BEiT, Bao et al. 2022).

    A block's area is uniform between `min_area` and what is left of the budget, its aspect ratio log-uniform on
    [min_aspect, 1 / min_aspect], its place uniform. It counts if it fits in the grid and covers something new within
    the budget; after `tries` failures in a row the draw ends, so that the count is at most `count`.

    Args:
        shape: the grid, (rows, columns).
        count: the budget, in sites.
    """

    shape: Sequence[int]
    count: int
    min_area: int = 16
    min_aspect: float = 0.3
    tries: int = 10

    def __post_init__(self) -> None:
        freeze(self, shape=_plane(self.shape))
        if whole_number("count", self.count) > math.prod(self.shape):
            raise FlexgenError("count", f"is {self.count} of {math.prod(self.shape)} sites", "Cover at most the grid.")
        whole_number("min_area", self.min_area, 1)
        whole_number("tries", self.tries, 1, most=10_000)
        number("min_aspect", self.min_aspect, 1e-6, 1.0)

    def draw_sets(self, rows: Rows) -> Sets:
        _check_grid(self.shape, rows.num_sites)
        height, width = self.shape
        covered = torch.zeros(len(rows), height, width, dtype=torch.bool, device=rows.present.device)
        going, source = torch.arange(len(rows), device=covered.device), rows.fork("blocks")
        left = torch.full_like(going, self.count)
        failures = torch.zeros_like(going)
        while len(going):  # rows leave as they finish; the numbers of a row do not depend on which others remain
            area_u, aspect_u, top_u, left_u = source.uniform(4)[going].unbind(-1)
            area = self.min_area + (left[going] - self.min_area) * area_u
            ratio = ((2 * aspect_u - 1) * -math.log(self.min_aspect)).exp()
            high, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
            fits = (high < height) & (wide < width)
            trial, high, wide = going[fits], high[fits], wide[fits]
            top = (top_u[fits] * (height - high + 1)).long()
            side = (left_u[fits] * (width - wide + 1)).long()
            new = _box(self.shape, top, side, high, wide) & ~covered[trial]  # [R, H, W]
            gain = count_sites(new.flatten(1))
            good = (gain > 0) & (gain <= left[trial])
            covered[trial[good]] |= new[good]
            left[trial] -= torch.where(good, gain, 0)
            failures[going] += 1
            failures[trial[good]] = 0
            going = going[(left[going] > 0) & (failures[going] < self.tries)]
        return rows.rest(covered.flatten(1) & rows.present)


@dataclass(frozen=True)
class Rectangle(Law):
    """One rectangle whose corners are two uniform points, given that its area is within bounds (VAEAC, Ivanov 2019).

    Drawn without rejection: first its two sides, by their joint law given the bounds, then its place.

    Args:
        shape: the grid, (rows, columns).
        min_area, max_area: bounds of its share of the grid.
    """

    shape: Sequence[int]
    min_area: float = 0.3
    max_area: float = 1.0

    def __post_init__(self) -> None:
        freeze(self, shape=_plane(self.shape))
        number("max_area", self.max_area, 0.0, 1.0)
        number("min_area", self.min_area, 0.0, self.max_area)
        if not bool(self._sides().any()):
            raise FlexgenError("min_area", f"is {self.min_area}", f"No rectangle of {self.shape} has such an area.")

    def _sides(self) -> Tensor:
        """Probability (unnormalised) of each (height, width), float64 ``[H, W]``."""
        high, wide = (_side_law(size) for size in self.shape)
        share = torch.outer(*(torch.arange(1, size + 1, dtype=torch.float64) / size for size in self.shape))
        slack = 1e-9  # areas are fractions of whole numbers; the bounds are decimal
        return torch.outer(high, wide) * ((share >= self.min_area - slack) & (share <= self.max_area + slack))

    def draw_sets(self, rows: Rows) -> Sets:
        _check_grid(self.shape, rows.num_sites)
        height, width = self.shape
        cdf = self._sides().flatten().cumsum(0).to(rows.present.device)
        u, top, left = rows.uniform(3).unbind(-1)
        sides = torch.searchsorted(cdf, (u * cdf[-1]).clamp_max(cdf[-1] * (1 - 2**-50)), right=True)
        high, wide = sides // width + 1, sides % width + 1
        target = _box(self.shape, (top * (height - high + 1)).long(), (left * (width - wide + 1)).long(), high, wide)
        return rows.rest(target.flatten(1) & rows.present)

    def support(self, num_sites: int) -> Support:
        _check_grid(self.shape, num_sites)
        height, width = self.shape
        law = self._sides()
        law = law / law.sum()
        corners = [
            (top, left, high, wide, float(law[high - 1, wide - 1]) / ((height - high + 1) * (width - wide + 1)))
            for high in range(1, height + 1)
            for wide in range(1, width + 1)
            for top in range(height - high + 1)
            for left in range(width - wide + 1)
        ]
        *box, probability = torch.tensor(corners, dtype=torch.float64).unbind(-1)
        target = _box(self.shape, *(side.long() for side in box)).flatten(1)
        return Support.merged([(Sets(target, ~target, torch.ones(len(target))), probability)])


@dataclass(frozen=True)
class Box(Law):
    """The sites of a fixed box, in shares of the grid, are the target.

    Args:
        shape: the grid, (rows, columns).
        top, left, bottom, right: shares in [0, 1]; the box runs from round(top * rows) up to round(bottom * rows).
    """

    shape: Sequence[int]
    top: float
    left: float
    bottom: float
    right: float

    def __post_init__(self) -> None:
        freeze(self, shape=_plane(self.shape))
        for low, high in (("top", "bottom"), ("left", "right")):
            number(high, getattr(self, high), 0.0, 1.0)
            number(low, getattr(self, low), 0.0, getattr(self, high))

    def _target(self) -> Tensor:
        (height, width), target = self.shape, torch.zeros(*self.shape, dtype=torch.bool)
        rows = slice(round(self.top * height), round(self.bottom * height))
        target[rows, round(self.left * width) : round(self.right * width)] = True
        return target.flatten()

    def draw_sets(self, rows: Rows) -> Sets:
        _check_grid(self.shape, rows.num_sites)
        return rows.rest(self._target().to(rows.present.device) & rows.present)

    def support(self, num_sites: int) -> Support:
        _check_grid(self.shape, num_sites)
        target = self._target()[None]
        return Support.merged([(Sets(target, ~target, torch.ones(1)), torch.ones(1, dtype=torch.float64))])


@dataclass(frozen=True)
class Pattern(Law):
    """Smooth random blobs: coarse uniform noise, enlarged bicubically, is the target where it falls below `density`.

    After Pathak et al. 2016 and VAEAC, which crop the same field from one large image; here each row has its own.

    Args:
        shape: the grid, (rows, columns).
        resolution: coarse cells per site, in (0, 1].
        density: the threshold in [0, 1]; the share of targets is near it, and varies.
    """

    shape: Sequence[int]
    resolution: float = 0.06
    density: float = 0.25

    def __post_init__(self) -> None:
        freeze(self, shape=_plane(self.shape))
        number("resolution", self.resolution, 1e-6, 1.0)
        number("density", self.density, 0.0, 1.0)

    def draw_sets(self, rows: Rows) -> Sets:
        _check_grid(self.shape, rows.num_sites)
        # One cell more than needed, and a random shift within it, so that no site sits on the lattice always.
        coarse = [math.ceil(size * self.resolution) + 4 for size in self.shape]
        noise = rows.uniform(*coarse, dtype=torch.float32)
        shift = rows.uniform(2, dtype=torch.float32)
        across = [
            _bicubic(size, n, self.resolution, shift[:, i])
            for i, (size, n) in enumerate(zip(self.shape, coarse, strict=True))
        ]
        field = across[0] @ noise @ across[1].mT  # [B, H, W]
        return rows.rest((field < self.density).flatten(1) & rows.present)


def _bicubic(size: int, coarse: int, resolution: float, shift: Tensor) -> Tensor:
    """Weights ``[B, size, coarse]`` of cubic convolution (a = -0.75, as image libraries have it) at shifted places."""
    place = 1.0 + shift[:, None] + torch.arange(size, device=shift.device) * resolution  # [B, size]
    distance = (place[..., None] - torch.arange(coarse, device=shift.device)).abs()  # [B, size, coarse]
    near = (1.25 * distance - 2.25) * distance**2 + 1.0
    far = ((-0.75 * distance + 3.75) * distance - 6.0) * distance + 3.0
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def _side_law(size: int) -> Tensor:
    """Law of the number of sites between two uniform ones, both ends included: float64 ``[size]``."""
    length = torch.arange(1, size + 1, dtype=torch.float64)
    places = size - length + 1
    return torch.where(length == 1, places, 2 * places) / size**2


def _box(shape: Sequence[int], top: Tensor, left: Tensor, high: Tensor, wide: Tensor) -> Tensor:
    """Boxes on the grid, bool ``[B, H, W]``."""
    row, column = (torch.arange(size, device=top.device) for size in shape)
    in_rows = (row >= top[:, None]) & (row < (top + high)[:, None])  # [B, H]
    in_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])  # [B, W]
    # A product of bytes: broadcasting "and" over booleans takes four times as long.
    return (in_rows.view(torch.uint8)[:, :, None] * in_columns.view(torch.uint8)[:, None, :]).view(torch.bool)


def _plane(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = shape_of("shape", shape)
    if len(sizes) != 2:
        raise FlexgenError("shape", f"is {sizes!r}", "Pass (rows, columns); tie a law across frames with Patches.")
    return sizes


def _check_grid(shape: Sequence[int], num_sites: int) -> None:
    if math.prod(shape) != num_sites:
        raise FlexgenError(
            "present",
            f"has {num_sites} sites, but the law's grid {tuple(shape)} has {math.prod(shape)}",
            "Give the law the grid of the data.",
        )
