"""Latent answers read in the units of the data: densities, masses, draws, means, modes, quantiles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flexgen import rng
from flexgen.rng import Randomness
from flexgen.tables.latents import LatentMarginals
from flexgen.tables.maps import ColumnMaps

__all__ = ["TableMarginals"]

_QUADRATURE_NODES = 16
_BISECTIONS = 60


class TableMarginals:
    """p(x_i | x_C) of every column of a batch of rows, in data units, float64.

    Args:
        maps: latents to data.
        latents: mixtures of normals and category probabilities.

    A real column has a density, except at its atoms; an integer column and a column of few levels have masses; other
    rounded columns have the mass of the rounding cell over its width, a density.
    """

    def __init__(self, maps: ColumnMaps, latents: LatentMarginals) -> None:
        self.maps = maps
        self.latents = latents.double()

    def log_prob(self, x: Tensor) -> Tensor:
        """``[B, N]``; not a number where x is not."""
        maps, latents = self.maps, self.latents
        # A constant column has probability one at its constant.
        out = torch.where((x == maps.constants) | x.isnan(), 0.0, -torch.inf).double()
        if len(maps.numeric):
            out[:, maps.numeric] = maps.log_prob(x, latents.log_weights, latents.means, latents.sds)
        if len(maps.categorical):
            most = self.latents.log_probs.shape[-1] - 1
            codes = x[:, maps.categorical].nan_to_num(0.0, 0.0, 0.0).clamp(0, most).long()  # [B, J]; unread places vary
            log_probs = latents.log_probs.gather(-1, codes[..., None]).squeeze(-1)
            out[:, maps.categorical] = torch.where(x[:, maps.categorical].isnan(), torch.nan, log_probs)
        return out

    def sample(self, *, generator: Randomness) -> Tensor:
        """Independent draws, ``[B, N]``."""
        maps, latents = self.maps, self.latents
        out = maps.constants.repeat(len(latents.means), 1)
        if len(maps.numeric):
            component = rng.categorical(latents.log_weights, generator=generator)[..., None]  # [B, S, 1]
            noise = rng.normal(component.shape[:2], generator=generator, dtype=torch.float64)
            y = latents.means.gather(-1, component).squeeze(-1) + latents.sds.gather(-1, component).squeeze(-1) * noise
            out[:, maps.numeric] = maps.inverse(y)
        if len(maps.categorical):
            out[:, maps.categorical] = rng.categorical(latents.log_probs, generator=generator).double()
        return out

    def sample_site(self, site: int | Tensor, *, generator: Randomness) -> Tensor:
        """Draws of one site a row, ``[B]``: a Gibbs step's need; draws one column only where rows agree on it."""
        if isinstance(site, Tensor):
            return self.sample(generator=generator).gather(1, site[:, None]).squeeze(1)
        latents, maps = self.latents, self.maps
        place = (maps.numeric == site).nonzero()
        if len(place):
            s = int(place)
            component = rng.categorical(latents.log_weights[:, s], generator=generator)[:, None]  # [B, 1]
            noise = rng.normal((len(component),), generator=generator, dtype=torch.float64)
            mean, sd = (t[:, s].gather(1, component).squeeze(1) for t in (latents.means, latents.sds))
            y = latents.means[..., 0].clone()
            y[:, s] = mean + sd * noise
            return maps.inverse(y)[:, s]
        place = (maps.categorical == site).nonzero()
        if len(place):
            return rng.categorical(latents.log_probs[:, int(place)], generator=generator).double()
        return maps.constants[site].expand(len(latents.means))

    def mean(self) -> Tensor:
        """``[B, N]``: E[x_i | x_C] by Gauss-Hermite quadrature of the map; where categorical, of the code."""
        maps, latents = self.maps, self.latents
        out = maps.constants.repeat(len(latents.means), 1)
        if len(maps.numeric):
            nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
            nodes, weights = latents.means.new_tensor(nodes), latents.means.new_tensor(weights / weights.sum())
            total = latents.means.new_zeros(latents.means.shape[:2])
            for node, weight in zip(nodes, weights, strict=True):  # one node at a time bounds the memory
                values = self._components_to_data(latents.means + latents.sds * node)  # [B, S, K]
                total += weight * (latents.log_weights.exp() * values).sum(-1)
            masses = maps.level_masses(latents.log_weights, latents.means, latents.sds)  # exact, where levels are few
            out[:, maps.numeric] = torch.where(maps.is_ordinal, (masses * maps.level_values).sum(-1), total)
        if len(maps.categorical):
            codes = torch.arange(latents.log_probs.shape[-1], device=out.device, dtype=out.dtype)
            out[:, maps.categorical] = latents.log_probs.exp() @ codes
        return out

    def mode(self) -> Tensor:
        """``[B, N]``: the most probable category or level; of other columns an atom with more than half of the mass, or
        else the component mean of highest density.
        """
        maps, latents = self.maps, self.latents
        out = maps.constants.repeat(len(latents.means), 1)
        if len(maps.numeric):
            peaks = self._components_to_data(latents.means)  # [B, S, K]
            best, height = peaks[..., 0], torch.full_like(peaks[..., 0], -torch.inf)
            for k in range(peaks.shape[-1]):
                x = out.clone()
                x[:, maps.numeric] = peaks[..., k]
                density = maps.log_prob(x, latents.log_weights, latents.means, latents.sds)
                density = density.masked_fill(maps.is_atom(peaks[..., k]), -torch.inf)  # a mass is no density
                best = torch.where(density > height, peaks[..., k], best)
                height = torch.maximum(density, height)
            mass, atom = maps.heaviest_atom(latents.log_weights, latents.means, latents.sds)
            best = torch.where(mass > 0.5, atom, best)
            masses = maps.level_masses(latents.log_weights, latents.means, latents.sds)
            levels = maps.level_values.gather(-1, masses.argmax(-1).T).T  # [B, S]
            out[:, maps.numeric] = torch.where(maps.is_ordinal, levels, best)
        if len(maps.categorical):
            out[:, maps.categorical] = latents.log_probs.argmax(-1).double()
        return out

    def quantile(self, probability: float) -> Tensor:
        """``[B, N]``: the quantile of numeric columns, by bisection; NaN for categorical ones."""
        maps, latents = self.maps, self.latents
        out = maps.constants.repeat(len(latents.means), 1)
        out[:, maps.categorical] = torch.nan
        if len(maps.numeric):
            reach = 10.0 * latents.sds
            low, high = (latents.means - reach).amin(-1), (latents.means + reach).amax(-1)  # [B, S]
            weights = latents.log_weights.exp()
            for _ in range(_BISECTIONS):
                middle = 0.5 * (low + high)
                below = (weights * torch.special.ndtr((middle[..., None] - latents.means) / latents.sds)).sum(-1)
                low, high = (
                    torch.where(below < probability, middle, low),
                    torch.where(below < probability, high, middle),
                )
            out[:, maps.numeric] = maps.inverse(0.5 * (low + high))
        return out

    def sd(self) -> Tensor:
        """``[B, N]``: the standard deviation of numeric columns, by quadrature; NaN for categorical ones."""
        maps, latents = self.maps, self.latents
        out = torch.zeros_like(maps.constants).repeat(len(latents.means), 1)
        out[:, maps.categorical] = torch.nan
        if len(maps.numeric):
            nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
            mean = self.mean()[:, maps.numeric]
            total = torch.zeros_like(mean)
            for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
                values = self._components_to_data(latents.means + latents.sds * node)
                total += weight * (latents.log_weights.exp() * (values - mean[..., None]) ** 2).sum(-1)
            masses = maps.level_masses(latents.log_weights, latents.means, latents.sds)
            exact = (masses * (maps.level_values - mean[..., None]) ** 2).sum(-1)
            out[:, maps.numeric] = torch.where(maps.is_ordinal, exact, total).sqrt()
        return out

    def _components_to_data(self, y: Tensor) -> Tensor:
        """g(y) for latents ``[B, S, K]``."""
        batch, num_columns, num_components = y.shape
        flat = y.transpose(1, 2).reshape(-1, num_columns)  # [B*K, S]
        return self.maps.inverse(flat).view(batch, num_components, num_columns).transpose(1, 2)
