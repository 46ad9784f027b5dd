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

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn

from flexgen.checks import MOST_ENTRIES, malformed, number, one_of, whole_number
from flexgen.errors import CheckpointError
from flexgen.tables import splines
from flexgen.tables.splines import knot_slopes

__all__ = [
    "HALF_LOG_2PI",
    "Column",
    "ColumnMaps",
    "FeatureLayout",
    "fit_column",
    "log_interval_mass",
    "truncated_moments",
]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_FAR = 1e9  # latent; stands for infinity at the ends of cells
_FAR_TAIL = 1e3  # standard deviations; beyond, an interval's moments are those of an exponential
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

    def __post_init__(self) -> None:
        """A column may come from a file: what is no monotone map of finite numbers is refused before it answers."""
        fix = "Pass what Column.to_dict gave; of a checkpoint, save the model again."
        one_of("kind", self.kind, ("categorical", "constant", "ordinal", "lattice", "real"), CheckpointError)
        whole_number("num_levels", self.num_levels, 0, CheckpointError, most=MOST_ENTRIES)
        whole_number("decimals", self.decimals, -1, CheckpointError, most=400)
        for name in ("offset", "step", "within"):
            number(name, getattr(self, name), error=CheckpointError, fix=fix)
        for name in ("levels", "edges", "knots_x", "knots_y", "slopes"):
            values = [number(name, value, error=CheckpointError, fix=fix) for value in getattr(self, name)]
            if name != "slopes" and any(b < a for a, b in itertools.pairwise(values)):
                raise CheckpointError(name, "do not increase", fix)
        if min(self.slopes, default=1.0) <= 0 or not len(self.knots_x) == len(self.knots_y) == len(self.slopes) != 1:
            raise CheckpointError("slopes", "are not positive, one a knot", fix)
        if self.kind in ("lattice", "real") and not self.knots_x:
            raise CheckpointError("knots_x", "are missing", fix)
        if self.kind == "ordinal" and not len(self.levels) == self.num_levels == len(self.edges) + 1:
            raise CheckpointError("edges", f"are {len(self.edges)} between {len(self.levels)} levels", fix)
        if self.kind == "constant" and len(self.levels) != 1:
            raise CheckpointError("levels", f"are {len(self.levels)} of a constant", fix)
        if any(math.isnan(end) for flat in self.flats for end in flat):
            raise CheckpointError("flats", "hold NaN", fix)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Column:
        """The column of such a form.

        Raises:
            CheckpointError: not what `to_dict` gives.
        """
        with malformed("columns", "Save the model again."):
            plain: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in data.items()}
            plain["flats"] = tuple((low, high) for low, high in data["flats"])
            return cls(**plain)


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
    from flexgen.tables.columns import ColumnMaps

    lower, upper = ColumnMaps([column]).cells(torch.from_numpy(x)[:, None])
    return replace(column, within=float(truncated_moments(lower, upper)[1].mean()))


def _fit_smooth(
    x: np.ndarray, step: float, offset: float, integer: bool, atoms: tuple[float, ...], seed: int
) -> Column:
    """The candidate with the best cross-validated likelihood under y ~ N(0, 1)."""
    from flexgen.tables.columns import ColumnMaps  # scores a candidate; it reads columns, so the import is late

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
    transformed: np.ndarray = np.where(z >= 0, rising, -falling)
    return transformed


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


class FeatureLayout(nn.Module):
    """F = S + sum of the numbers of categories features: S latents, then the one-hot codes column by column.

    Args:
        numeric: int64 ``[S]``, sites of the numeric columns.
        categorical: int64 ``[J]``, sites of the categorical columns.
        num_categories: of each categorical column.
        within: ``[S]``, variance of each latent that its cells hide. Latents are encoded as the means of their
            cells; members that model these means add it to what they predict.
    """

    numeric: Tensor
    categorical: Tensor
    column_of: Tensor
    code_of: Tensor
    within: Tensor

    def __init__(
        self, numeric: Tensor, categorical: Tensor, num_categories: tuple[int, ...], within: Tensor | None = None
    ) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.register_buffer("numeric", numeric, persistent=False)
        self.register_buffer("categorical", categorical, persistent=False)
        hidden = torch.zeros(len(numeric), dtype=torch.float64) if within is None else within
        self.register_buffer("within", hidden, persistent=False)
        owner = [j for j, k in enumerate(num_categories) for _ in range(k)]
        code = [c for k in num_categories for c in range(k)]
        self.register_buffer(
            "column_of", torch.tensor(owner, dtype=torch.int64), persistent=False
        )  # [F - S], which categorical column
        self.register_buffer(
            "code_of", torch.tensor(code, dtype=torch.int64), persistent=False
        )  # [F - S], which of its codes

    @property
    def num_numeric(self) -> int:
        return len(self.numeric)

    @property
    def num_features(self) -> int:
        return len(self.numeric) + len(self.column_of)

    @property
    def most_categories(self) -> int:
        return max(self.num_categories, default=1)

    def one_hot(self, codes: Tensor, *, dtype: torch.dtype) -> Tensor:
        """``[B, F - S]`` from codes ``[B, J]``; zeros where a code is NaN."""
        return (codes[:, self.column_of] == self.code_of).to(dtype)

    def spread(self, sites: Tensor) -> tuple[Tensor, Tensor]:
        """A boolean of sites ``[B, N]`` as one of numeric columns ``[B, S]`` and one of codes ``[B, F - S]``."""
        return sites[:, self.numeric], sites[:, self.categorical][:, self.column_of]

    def normalise(self, scores: Tensor) -> Tensor:
        """Log-probabilities ``[B, J, C]`` from unnormalised logs ``[B, F - S]``; -inf beyond a column's categories."""
        out = scores.new_full((len(scores), len(self.num_categories), self.most_categories), -torch.inf)
        out[:, self.column_of, self.code_of] = scores
        return out.log_softmax(-1)


class ColumnMaps(nn.Module):
    """Vectorised over columns; float64.

    Args:
        columns: of a table, in order.

    Attributes:
        numeric: int64 ``[S]``, the sites with a latent (real, lattice, ordinal).
        categorical: int64 ``[J]``, the sites with codes.
        constants: ``[N]``, the value of each constant column, 0 elsewhere.
        is_ordinal: bool ``[S]``.
        level_values: ``[S, L]``, the levels of ordinal columns, 0 elsewhere.
        within: ``[S]``, the variance that cells hide, see `Column`.

    x is ``[B, N]``, data; y is ``[B, S]``, latents of the numeric columns. NaN stays NaN.
    """

    numeric: Tensor
    categorical: Tensor
    smooth: Tensor
    smooth_sites: Tensor
    ordinal: Tensor
    constants: Tensor
    is_ordinal: Tensor
    level_values: Tensor
    within: Tensor
    knots_x: Tensor
    knots_y: Tensor
    slopes: Tensor
    step: Tensor
    offset: Tensor
    decimal_scale: Tensor
    log_cell_width: Tensor
    atoms: Tensor
    flats: Tensor
    edges: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.columns = tuple(columns)
        numeric = [i for i, c in enumerate(columns) if c.kind in ("real", "lattice", "ordinal")]
        chosen = [columns[i] for i in numeric]
        self._index("numeric", numeric)
        self._index("categorical", [i for i, c in enumerate(columns) if c.kind == "categorical"])
        self._index("smooth", [s for s, c in enumerate(chosen) if c.kind != "ordinal"])  # places among the numeric
        self._index("ordinal", [s for s, c in enumerate(chosen) if c.kind == "ordinal"])
        self._numbers("constants", [c.levels[0] if c.kind == "constant" else 0.0 for c in columns])
        self.register_buffer(
            "is_ordinal", torch.tensor([c.kind == "ordinal" for c in chosen], dtype=torch.bool), persistent=False
        )
        self._numbers("within", [c.within for c in chosen])
        self._smooth_buffers([c for c in chosen if c.kind != "ordinal"])
        self._ordinal_buffers(chosen)

    def layout(self) -> FeatureLayout:
        """The features that members work on."""
        return FeatureLayout(self.numeric, self.categorical, self.num_categories, self.within)

    @property
    def num_categories(self) -> tuple[int, ...]:
        """Of the categorical columns."""
        return tuple(c.num_levels for c in self.columns if c.kind == "categorical")

    # Latents ----------------------------------------------------------------------------------------------------------

    def cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent interval (lower, upper) of each numeric value, ``[B, S]`` each; equal where x has a density."""
        values = x[:, self.numeric].double()
        lower = torch.where(values.isnan(), values, torch.zeros_like(values))
        upper = lower.clone()
        if len(self.smooth):
            lower[:, self.smooth], upper[:, self.smooth] = self._smooth_cells(values[:, self.smooth])
        if len(self.ordinal):
            level, missing = self._nearest_level(values[:, self.ordinal]), values[:, self.ordinal].isnan()
            edges = self.edges.expand(len(x), -1, -1)  # [B, O, L+1]
            for bound, shift in ((lower, 0), (upper, 1)):
                edge = edges.gather(-1, (level + shift)[..., None]).squeeze(-1)
                bound[:, self.ordinal] = edge.masked_fill(missing, torch.nan)
        return lower, upper

    def forward(self, x: Tensor) -> Tensor:
        """Latents; a value with a cell goes to the mean of a standard normal inside it."""
        lower, upper = self.cells(x)
        return torch.where(upper > lower, truncated_moments(lower, upper)[0], lower)

    def inverse(self, y: Tensor) -> Tensor:
        """Data values g(y), ``[B, S]``: on levels, on the lattice, on atoms where g is flat."""
        x = y.clone()
        if len(self.smooth):
            values = splines.inverse(self._knots, y[:, self.smooth].T).T
            snapped = self.offset + torch.round((values - self.offset) / self._positive_step) * self.step
            decimal = torch.round(snapped * self.decimal_scale) / self.decimal_scale  # 2.9, not 2.9000000000000004
            snapped = torch.where(self.decimal_scale > 0, decimal, snapped)
            x[:, self.smooth] = torch.where(self.step > 0, snapped, values)
        if len(self.ordinal):
            latents = y[:, self.ordinal].T.contiguous()  # [O, B]
            level = torch.searchsorted(self.edges[:, 1:-1].contiguous(), latents)
            values = self.level_values[self.ordinal].gather(1, level)
            x[:, self.ordinal] = values.masked_fill(latents.isnan(), torch.nan).T
        return x

    # Mixtures of normals, read in data units --------------------------------------------------------------------------

    def log_prob(self, x: Tensor, log_weights: Tensor, means: Tensor, sds: Tensor) -> Tensor:
        """log p of the numeric columns, ``[B, S]``, under latent mixtures ``[B, S, K]``."""
        lower, upper = self.cells(x)
        log_probs = cell_log_prob(lower, upper, log_weights, means, sds)
        if len(self.smooth):
            values = x[:, self.smooth_sites].double()
            log_slope = splines.value_and_log_slope(self._knots, values.T)[1].T
            has_density = (upper == lower)[:, self.smooth]
            log_probs[:, self.smooth] += torch.where(has_density, log_slope, 0.0) - self.log_cell_width
        if len(self.ordinal):
            log_probs[:, self.ordinal] = log_probs[:, self.ordinal].masked_fill(self._off_level(x), -torch.inf)
        return log_probs

    def level_masses(self, log_weights: Tensor, means: Tensor, sds: Tensor) -> Tensor:
        """Probabilities of the levels of ordinal columns, ``[B, S, L]``; zeros for the others."""
        masses = means.new_zeros(*means.shape[:2], self.level_values.shape[1])
        if len(self.ordinal):
            pick = (t[:, self.ordinal, None] for t in (log_weights, means, sds))
            weights, centre, scale = pick  # [B, O, 1, K]
            below = torch.special.ndtr((self.edges[:, :, None] - centre) / scale)  # [B, O, L+1, K]
            masses[:, self.ordinal] = (weights.exp() * below.diff(dim=2)).sum(-1)
        return masses

    def is_atom(self, values: Tensor) -> Tensor:
        """bool ``[B, S]``: values of real columns that hold a mass."""
        found = torch.zeros_like(values, dtype=torch.bool)
        found[:, self.smooth] = (values[:, self.smooth, None] == self.atoms).any(-1)
        return found

    def heaviest_atom(self, log_weights: Tensor, means: Tensor, sds: Tensor) -> tuple[Tensor, Tensor]:
        """The largest mass of an atom, and that atom, ``[B, S]`` each; mass 0 for columns without."""
        mass, atom = torch.zeros_like(means[..., 0]), torch.zeros_like(means[..., 0])
        if self.atoms.shape[1]:
            weights, centre, scale = (
                t[:, self.smooth, None, None] for t in (log_weights, means, sds)
            )  # [B, M, 1, 1, K]
            below = torch.special.ndtr((self.flats[..., None] - centre) / scale)  # [B, M, A, 2, K]
            masses = (weights.exp() * below.diff(dim=3)).sum((-2, -1)).nan_to_num(0.0)  # [B, M, A]
            mass[:, self.smooth], place = masses.max(-1)
            atom[:, self.smooth] = self.atoms.gather(1, place.T).T.nan_to_num(0.0)
        return mass, atom

    # Buffers ----------------------------------------------------------------------------------------------------------

    def _smooth_buffers(self, columns: list[Column]) -> None:
        most = max((len(c.knots_x) for c in columns), default=2)
        knots: tuple[list[list[float]], ...] = ([], [], [])
        for c in columns:  # shorter ones go on along the linear tail, which changes nothing
            x, y, d = list(c.knots_x), list(c.knots_y), list(c.slopes)
            while len(x) < most:
                x, y, d = [*x, x[-1] + 0.5 / d[-1]], [*y, y[-1] + 0.5], [*d, d[-1]]
            for rows, row in zip(knots, (x, y, d), strict=True):
                rows.append(row)
        for name, rows in zip(("knots_x", "knots_y", "slopes"), knots, strict=True):
            self._numbers(name, rows, (len(columns), most))
        self._numbers("step", [c.step for c in columns])
        self._numbers("offset", [c.offset for c in columns])
        self._numbers("decimal_scale", [10.0**c.decimals if c.decimals >= 0 else 0.0 for c in columns])
        self._numbers("log_cell_width", [0.0 if c.unit_mass or not c.step else c.step for c in columns])
        self.log_cell_width = torch.where(self.log_cell_width > 0, self.log_cell_width, 1.0).log()
        most = max((len(c.levels) for c in columns), default=0)
        nan = float("nan")
        self._numbers("atoms", [[*c.levels, *[nan] * (most - len(c.levels))] for c in columns], (len(columns), most))
        flats = [[*c.flats, *[(nan, nan)] * (most - len(c.flats))] for c in columns]
        self._numbers("flats", flats, (len(columns), most, 2))
        self.register_buffer("smooth_sites", self.numeric[self.smooth], persistent=False)

    def _ordinal_buffers(self, numeric: list[Column]) -> None:
        ordinal = [c for c in numeric if c.kind == "ordinal"]
        most = max((c.num_levels for c in ordinal), default=1)
        inf = float("inf")
        self._numbers(
            "edges", [[-inf, *c.edges, *[inf] * (most - len(c.edges))] for c in ordinal], (len(ordinal), most + 1)
        )
        levels = [list(c.levels) if c.kind == "ordinal" else [] for c in numeric]
        # Beyond its own levels a column repeats the last, so that gathers and searches stay harmless.
        padded = [[*v, *[v[-1] if v else 0.0] * (most - len(v))] for v in levels]
        self._numbers("level_values", padded, (len(numeric), most))

    def _index(self, name: str, places: list[int]) -> None:
        self.register_buffer(name, torch.tensor(places, dtype=torch.int64), persistent=False)

    def _numbers(self, name: str, values: Sequence[Any], shape: tuple[int, ...] | None = None) -> None:
        tensor = torch.tensor(values, dtype=torch.float64)
        self.register_buffer(name, tensor if shape is None else tensor.reshape(shape), persistent=False)

    @property
    def _knots(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.knots_x, self.knots_y, self.slopes

    @property
    def _positive_step(self) -> Tensor:
        return torch.where(self.step > 0, self.step, 1.0)

    def _smooth_cells(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of real and lattice columns, ``[B, M]`` each."""
        snapped = self.offset + torch.round((values - self.offset) / self._positive_step) * self.step
        centre, half = torch.where(self.step > 0, snapped, values), 0.5 * self.step
        lower = splines.value_and_log_slope(self._knots, (centre - half).T)[0].T
        upper = splines.value_and_log_slope(self._knots, (centre + half).T)[0].T if (half > 0).any() else lower.clone()
        for atom, flat in zip(self.atoms.T, self.flats.transpose(0, 1), strict=True):  # [M], [M, 2]
            hit = values == atom
            lower, upper = torch.where(hit, flat[:, 0], lower), torch.where(hit, flat[:, 1], upper)
        return lower, upper

    def _off_level(self, x: Tensor) -> Tensor:
        """bool ``[B, O]``: values of ordinal columns that are none of the levels, up to rounding."""
        values, levels = x[:, self.numeric[self.ordinal]].double(), self.level_values[self.ordinal]  # [B, O], [O, L]
        nearest = levels.T.gather(0, self._nearest_level(values))
        return (values - nearest).abs() > 1e-9 * levels.abs().amax(1)

    def _nearest_level(self, values: Tensor) -> Tensor:
        """int64 ``[B, O]``; 0 for NaN."""
        levels = self.level_values[self.ordinal]
        middle = 0.5 * (levels[:, 1:] + levels[:, :-1])  # [O, L-1]
        # Repeated last levels make their middles equal to it: a value there is the first of them.
        index = torch.searchsorted(middle.contiguous(), values.nan_to_num(0.0).T.contiguous()).T
        top = torch.tensor([c.num_levels - 1 for c in self.columns if c.kind == "ordinal"], device=values.device)
        return index.minimum(top)


def cell_log_prob(lower: Tensor, upper: Tensor, log_weights: Tensor, means: Tensor, sds: Tensor) -> Tensor:
    """log of the mixture's mass on a cell, or of its latent density where lower == upper; ``[B, S]``.

    Args:
        lower, upper: ``[B, S]``.
        log_weights, means, sds: ``[B, S, K]``.
    """
    has_cell = (upper > lower)[..., None]
    # Far enough to leave nothing beyond, and finite: 0 * inf in the gradient of the division would be no number.
    lower, upper = (torch.where(end.isinf(), end.sign() * _FAR, end) for end in (lower, upper))
    a, b = (lower[..., None] - means) / sds, (upper[..., None] - means) / sds  # [B, S, K]
    density = -0.5 * torch.where(has_cell, 0.0, a) ** 2 - HALF_LOG_2PI - sds.log()
    if not bool(has_cell.any()):
        return (log_weights + density).logsumexp(-1)
    mass = log_interval_mass(torch.where(has_cell, a, -1.0), torch.where(has_cell, b, 1.0))
    return (log_weights + torch.where(has_cell, mass, density)).logsumexp(-1)


def log_interval_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)), for lower < upper, either of them infinite; differentiable.

    The interval is reflected to the left tail, where log Phi is accurate; a thin one is its width times the density at
    its middle, with the curvature's correction. Relative error of the mass below 1e-9 in float64, 1e-4 in float32.
    """
    thin_width = 1e-4 if lower.dtype == torch.float64 else 1e-2
    flip = lower + upper > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    thin = b - a < thin_width
    # Each branch sees harmless numbers where the other is taken, so that gradients stay finite.
    safe_a, safe_b = torch.where(thin, -1.0, a), torch.where(thin, 0.0, b)
    # So far below the upper end the mass that is left is no number above zero; farther, log_ndtr has no gradient.
    safe_a = safe_a.maximum(safe_b.detach().clamp_max(0.0) - 40.0)
    log_b = torch.special.log_ndtr(safe_b)
    gap = (torch.special.log_ndtr(safe_a) - log_b).clamp_max(-1e-12)
    wide_mass = log_b + torch.log(-torch.expm1(gap))
    a, b = torch.where(thin, a, 0.0), torch.where(thin, b, 1.0)
    square, width = (0.5 * (a + b)) ** 2, (b - a).clamp_min(1e-30)
    thin_mass = -0.5 * square - HALF_LOG_2PI + width.log() + width**2 * (square - 1) / 24
    return torch.where(thin, thin_mass, wide_mass)


def truncated_moments(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a standard normal inside (lower, upper), float64; the mean lies inside."""
    width = upper - lower
    thin = width < 1e-2  # there the formulas cancel; the distribution is uniform up to 1e-4
    log_mass = log_interval_mass(lower, torch.where(thin, lower + 1.0, upper))

    def density(z: Tensor) -> Tensor:
        """Within the interval; the tail's mass and density vanish together, and their logs do not."""
        return torch.where(z.isinf(), 0.0, torch.exp(-0.5 * z**2 - HALF_LOG_2PI - log_mass))

    def tilted(z: Tensor) -> Tensor:
        return torch.where(z.isinf(), 0.0, z) * density(z)

    mean = density(lower) - density(upper)
    variance = 1 + tilted(lower) - tilted(upper) - mean**2
    # Farther out the logs themselves lose digits, and the distribution is that of an exponential from the nearer end.
    nearer = torch.where(lower > 0, lower, upper.clamp_max(0.0))
    far = nearer.abs() > _FAR_TAIL
    rate = torch.where(far, nearer, 1.0)
    mean, variance = torch.where(far, nearer + 1 / rate, mean), torch.where(far, rate**-2, variance)
    middle, uniform = 0.5 * (lower + upper), width**2 / 12
    mean = torch.where(thin, middle, mean.maximum(lower).minimum(upper))
    return mean, torch.where(thin, uniform, variance.clamp(0, 1).minimum(3 * uniform))  # width² / 4 is the most


MAX_LEVELS, ROWS_PER_LEVEL = 64, 10  # ordinal: at most so many distinct values, at least so many rows for each
