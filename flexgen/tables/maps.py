"""The maps of all columns at once: data to latents and back, and latent mixtures scored against data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexgen.tables import splines
from flexgen.tables.columns import Column
from flexgen.tables.features import FeatureLayout
from flexgen.tables.normals import HALF_LOG_2PI, log_interval_mass, truncated_moments

__all__ = ["ColumnMaps"]

_FAR = 1e9  # latent; stands for infinity at the ends of cells


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
    constants: Tensor
    is_ordinal: Tensor
    level_values: Tensor
    within: Tensor

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

    def _numbers(self, name: str, values: list, shape: tuple[int, ...] | None = None) -> None:  # type: ignore[type-arg]
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
