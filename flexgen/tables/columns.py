"""Column kinds: every numeric column is x = g(y), g nondecreasing and y roughly standard normal.

Where g rises, x has a density. Where g is flat, x has an atom whose probability is the latent's mass on the flat, its
*cell*. One idea, four kinds of numeric column:

* ``real``: a smooth g, with flats at the atoms (zero inflation, censoring).
* ``lattice``: all values are offset + step * integer with a coarse step (whole numbers, rounded measurements): a smooth
  g seen through rounding; a value's cell is its rounding interval.
* ``ordinal``: few distinct values: g is a staircase. A value between levels is read as the nearest level.
* ``constant``: one distinct value; probability one, no latent.

``categorical`` columns have codes and no latent. `fit_column` tells which a column is, and fits its g: a spline whose
knots are those of the identity, of a Yeo-Johnson map, or of empirical quantiles; cross-validated likelihood chooses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import special

from flexgen.tables.normals import truncated_moments
from flexgen.tables.splines import knot_slopes

__all__ = ["Column", "fit_column"]

MAX_LEVELS, ROWS_PER_LEVEL = 64, 10  # ordinal: at most so many distinct values, at least so many rows for each
COARSE = 0.01  # lattice: the step is at least this share of the standard deviation
ATOM, ATOM_ROWS = 0.05, 5  # real: a value with this share of the rows, and so many rows, is an atom
QUANTILE_KNOTS = (6, 12, 24, 48)
FOLDS, MAX_ROWS = 5, 10_000  # of the cross-validation of g
INDIFFERENCE = 1e-3  # nats; a simpler map this close to the best is preferred


@dataclass(frozen=True)
class Column:
    """The map of one column: plain numbers, so that it serialises to JSON.

    Args:
        kind: see the module's docstring.
        num_levels: categories, or levels of an ordinal column.
        levels: ordinal: the values, increasing; constant: the value; real: the atoms.
        edges: ordinal: the latents between neighbouring levels.
        offset, step: lattice: value = offset + step * integer.
        decimals: lattice: decimal places of its values, -1 if they are no short decimals.
        unit_mass: lattice: report probability masses (whole numbers) instead of masses over the step (densities).
        knots_x, knots_y, slopes: of the spline y = g^-1(x).
        flats: real: latent (lower, upper) of each atom.
        map_name: which candidate won.
        within: mean variance of the latent inside the values' cells; 0 where every value has a density.
    """

    kind: str
    num_levels: int = 0
    levels: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    offset: float = 0.0
    step: float = 0.0
    decimals: int = -1
    unit_mass: bool = False
    knots_x: tuple[float, ...] = ()
    knots_y: tuple[float, ...] = ()
    slopes: tuple[float, ...] = ()
    flats: tuple[tuple[float, float], ...] = ()
    map_name: str = ""
    within: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Column:
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return cls(**{**plain, "flats": tuple((low, high) for low, high in data["flats"])})


def fit_column(x: np.ndarray, *, num_categories: int = 0, integer: bool = False, seed: int = 0) -> Column:
    """What a column is, and its map.

    Args:
        x: float64 ``[n]``, NaN where missing.
        num_categories: K > 0 if x holds codes 0 .. K-1.
        integer: whether x holds whole numbers by declaration; they keep step 1 however fine that is.
        seed: of the cross-validation.
    """
    if num_categories:
        return Column("categorical", num_levels=num_categories)
    x = x[~np.isnan(x)]
    values, counts = np.unique(x, return_counts=True)
    if len(values) <= 1:
        return Column("constant", num_levels=1, levels=(float(values[0]) if len(values) else 0.0,))
    if len(values) == 2 or (len(values) <= MAX_LEVELS and len(x) >= ROWS_PER_LEVEL * len(values)):
        # Half a row more for each level keeps the edges of rare levels finite.
        below = np.cumsum(counts + 0.5)[:-1] / (counts + 0.5).sum()
        edges = tuple(special.ndtri(below).tolist())
        return _with_spread(Column("ordinal", num_levels=len(values), levels=tuple(values.tolist()), edges=edges), x)
    step = 1.0 if integer else _lattice_step(values)
    if not integer and step < COARSE * x.std():
        step = 0.0
    least = max(ATOM * len(x), ATOM_ROWS)
    atoms = () if step else tuple(float(a) for a, c in zip(values, counts, strict=True) if c >= least)
    return _with_spread(_fit_smooth(x, step, float(values[0]), integer, atoms, seed), x)


def _with_spread(column: Column, x: np.ndarray) -> Column:
    """The column with the variance that its cells hide."""
    from flexgen.tables.maps import ColumnMaps

    lower, upper = ColumnMaps([column]).cells(torch.from_numpy(x)[:, None])
    return replace(column, within=float(truncated_moments(lower, upper)[1].mean()))


def _fit_smooth(
    x: np.ndarray, step: float, offset: float, integer: bool, atoms: tuple[float, ...], seed: int
) -> Column:
    """The candidate with the best cross-validated likelihood under y ~ N(0, 1)."""
    from flexgen.tables.maps import ColumnMaps  # scores a candidate; it reads columns, so the import is late

    order = np.random.default_rng(seed).permutation(len(x))[:MAX_ROWS]
    fold = np.arange(len(order)) % FOLDS
    names = [] if atoms else ["identity", "yeo-johnson"]
    names += [f"quantiles-{m}" for m in QUANTILE_KNOTS if m <= max(QUANTILE_KNOTS[0], len(x) / 10)]

    def candidate(part: np.ndarray, name: str) -> Column:
        return _fit_knots(np.sort(part), name, step, offset, integer, atoms)

    scores = []
    for name in names:
        total = 0.0
        for f in range(FOLDS):
            part = x[order[fold != f]]
            if part.min() == part.max():
                continue  # one value teaches no map
            maps = ColumnMaps([candidate(part, name)])
            held_out = torch.from_numpy(x[order[fold == f]])[:, None]
            zero = torch.zeros(len(held_out), 1, 1, dtype=torch.float64)
            total += maps.log_prob(held_out, zero, zero, zero + 1.0).sum().item()
        scores.append(total / len(order))
    best = next(name for name, score in zip(names, scores, strict=True) if score >= max(scores) - INDIFFERENCE)
    return candidate(x, best)


def _fit_knots(x: np.ndarray, name: str, step: float, offset: float, integer: bool, atoms: tuple[float, ...]) -> Column:
    if name == "identity":
        knots_x = np.array([x[0], x[-1]])
        knots_y = (knots_x - x.mean()) / x.std()
    elif name == "yeo-johnson":
        knots_x, knots_y = _yeo_johnson_knots(x)
    else:
        knots_x, knots_y = _quantile_knots(x, int(name.removeprefix("quantiles-")), step, atoms)
    flats = tuple((float(knots_y[knots_x == a].min()), float(knots_y[knots_x == a].max())) for a in atoms)
    return Column(
        "lattice" if step else "real",
        levels=atoms,
        offset=offset,
        step=step,
        decimals=_decimals(offset, step),
        unit_mass=integer,
        knots_x=tuple(knots_x.tolist()),
        knots_y=tuple(knots_y.tolist()),
        slopes=tuple(knot_slopes(knots_x, knots_y).tolist()),
        flats=flats,
        map_name=name,
    )


def _yeo_johnson_knots(x: np.ndarray, num: int = 33) -> tuple[np.ndarray, np.ndarray]:
    """Knots of the standardised Yeo-Johnson map of maximum likelihood, evenly spaced in y."""
    mean, sd = x.mean(), x.std()
    z = (x - mean) / sd
    log_jacobian = (np.sign(z) * np.log1p(np.abs(z))).mean()

    def log_likelihood(power: float) -> float:
        return float(-np.log(_yeo_johnson(z, power).std() + 1e-300) + (power - 1) * log_jacobian)

    power = max(np.linspace(-3, 5, 33), key=log_likelihood)
    power = float(max(np.linspace(power - 0.25, power + 0.25, 11), key=log_likelihood))
    y = _yeo_johnson(z, power)
    grid = np.linspace(z[0], z[-1], 257)
    image = _yeo_johnson(grid, power)
    knots_z = np.interp(np.linspace(image[0], image[-1], num), image, grid)
    knots_x, first = np.unique(mean + sd * knots_z, return_index=True)  # where float64 cannot tell them apart
    return knots_x, (_yeo_johnson(knots_z[first], power) - y.mean()) / y.std()


def _yeo_johnson(z: np.ndarray, power: float) -> np.ndarray:
    """scipy.stats.yeojohnson for a given power, without its checks, which dominate on short columns."""
    up, down = np.log1p(np.maximum(z, 0)), np.log1p(np.maximum(-z, 0))
    rising = up if abs(power) < 1e-8 else np.expm1(power * up) / power
    falling = down if abs(2 - power) < 1e-8 else np.expm1((2 - power) * down) / (2 - power)
    return np.where(z >= 0, rising, -falling)


def _quantile_knots(x: np.ndarray, num: int, step: float, atoms: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Knots at evenly spaced latents, x at the empirical quantiles; two knots bound each atom. x is sorted."""
    n = len(x)
    if step:  # the distribution function is known at the cells' edges
        values, counts = np.unique(x, return_counts=True)
        top = np.cumsum(counts) / n
        known_x = np.stack([values - step / 2, values + step / 2], 1).ravel()
        known_p = np.stack([top - counts / n, top], 1).ravel()
    else:
        known_x, known_p = x, (np.arange(n) + 0.5) / n
    end = special.ndtri(1 - min(3.0, n / 8) / n)
    y = np.linspace(-end, end, num)

    def latent(p: float) -> float:
        return float(special.ndtri(np.clip(p, 0.5 / n, 1 - 0.5 / n)))

    ends = np.array([[np.mean(x < a), np.mean(x <= a)] for a in atoms]).ravel()
    touching = np.flatnonzero(np.diff(ends) <= 0)  # nothing was seen between two atoms: half a row's share goes there
    ends[touching] -= 0.25 / n
    ends[touching + 1] += 0.25 / n
    jumps = [(a, latent(low), latent(high)) for a, (low, high) in zip(atoms, ends.reshape(-1, 2), strict=True)]
    gap = 0.5 * (y[1] - y[0])
    for _, low, high in jumps:
        y = y[(y < low - gap) | (y > high + gap)]
    knots_x = np.r_[np.interp(special.ndtr(y), known_p, known_x), [a for a, _, _ in jumps for _ in (0, 1)]]
    knots_y = np.r_[y, [v for _, low, high in jumps for v in (low, high)]]
    order = np.lexsort((knots_x, knots_y))
    return _without_spikes(knots_x[order], knots_y[order], 1e-4 * x.std(), atoms)


def _without_spikes(
    knots_x: np.ndarray, knots_y: np.ndarray, least: float, atoms: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Drops knots closer than `least` to the one before, except the pairs that bound an atom."""
    kept = [0]
    for j in range(1, len(knots_x)):
        is_atom = knots_x[j] in atoms
        follows_atom = is_atom and knots_x[kept[-1]] in atoms  # the same one's other end, or another
        if follows_atom or knots_x[j] - knots_x[kept[-1]] > least:
            kept.append(j)
        elif is_atom:
            kept[-1] = j
    knots_x, knots_y = knots_x[kept], knots_y[kept]
    if knots_x[0] == knots_x[-1]:  # all that is beside one atom is one point: give the tails some room
        knots_x = np.r_[knots_x[0] - least, knots_x, knots_x[-1] + least]
        knots_y = np.r_[knots_y[0] - 0.5, knots_y, knots_y[-1] + 0.5]
    return knots_x, knots_y


def _decimals(offset: float, step: float, most: int = 9) -> int:
    """The fewest decimal places that write offset and step, or -1."""
    for places in range(most + 1):
        scaled = np.array([offset, step]) * 10.0**places
        if step and np.allclose(scaled, np.round(scaled), rtol=0, atol=1e-6):
            return places
    return -1


def _lattice_step(values: np.ndarray) -> float:
    """The step h if all distinct values (sorted) are values[0] + h * integer, else 0: a gcd tolerant of rounding."""
    gaps = np.diff(values)
    scale = max(abs(values[0]), abs(values[-1]))
    h = gaps.min()
    if h <= 1e-9 * scale:
        return 0.0
    for _ in range(8):
        rest = np.abs(gaps / h - np.round(gaps / h)) * h
        uneven = rest > 1e-6 * h + 1e-12 * scale
        span = values[-1] - values[0]
        if not uneven.any():
            return float(span / round(span / h))
        h = rest[uneven].min()
        if h <= 1e-4 * span / len(values):
            return 0.0
    return 0.0
