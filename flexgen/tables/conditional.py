"""A fitted table model as a conditional: members pooled, answers in the units of the data.

`TableMarginals` reads latent answers as densities, masses, draws, means, modes and quantiles of the columns;
`TableConditional` pools the members; `TrainableTable` is the same pool with gradients, to go on with its training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.checks import kind_of, number, whole_number
from flexgen.conditional import MarginalConditional
from flexgen.data.schema import TableSchema
from flexgen.errors import FlexgenError
from flexgen.query import Query, question
from flexgen.rng import Randomness
from flexgen.space import Space
from flexgen.tables.columns import ColumnMaps, cell_log_prob
from flexgen.tables.members import ClassMixture, LatentMarginals, concatenated, pool

__all__ = ["TableConditional", "TableMarginals", "TrainableTable", "describe"]

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
        expected = (len(latents.means), len(maps.constants))
        if not isinstance(x, Tensor) or tuple(x.shape) != expected or x.is_complex() or x.layout != torch.strided:
            told = f"has shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else f"is {kind_of(x)}"
            raise FlexgenError("x", told, f"Pass a tensor of numbers {list(expected)}.")
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
        if type(site) is not int or not 0 <= site < len(maps.constants):
            site = whole_number("site", site, most=len(maps.constants) - 1)
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
            points, shares = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
            nodes, weights = latents.means.new_tensor(points), latents.means.new_tensor(shares / shares.sum())
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
        probability = number("probability", probability, 0.0, 1.0)
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


_COVARIANCE_ENTRIES = 1 << 26  # half a gigabyte of float64
_MASS = 2.0**-34  # a sixteenth of the accuracy of a cell's mass, see `log_interval_mass`


class TableConditional(nn.Module, MarginalConditional):
    """p(x_P | x_C) of a table's columns, x ``[B, N]`` in data units (categories as codes), float64.

    The one-site answer is the weighted mixture of the members' (a linear opinion pool); joint answers follow by the
    chain rule. Members that share no joint make the pool incompatible in general, as a network is by itself.

    Args:
        space: of the columns.
        maps: data to latents.
        members: modules ``(y, codes, observed) -> LatentMarginals``.
        log_weights: ``[M, N]``, normalised over M for each column.

    Answers carry no gradient.
    """

    log_weights: Tensor

    def __init__(self, space: Space, maps: ColumnMaps, members: Sequence[nn.Module], log_weights: Tensor) -> None:
        super().__init__()
        self._space = space
        self.maps = maps
        self.members = nn.ModuleList(members)
        self.register_buffer("log_weights", log_weights.double())
        self.eval()

    @property
    def space(self) -> Space:
        return self._space

    @torch.no_grad()
    def marginals(self, x: Tensor, query: Query) -> TableMarginals:
        """p(x_i | x_C) of every site that is not observed."""
        observed = question(x, query).observed
        x = torch.where(observed, x.double(), 0.0)  # nothing unobserved is read
        y, codes = self.maps(x), x[:, self.maps.categorical]
        if not len(self.members):
            return TableMarginals(self.maps, self._nothing(y))
        weights = self.log_weights[:, self.maps.numeric], self.log_weights[:, self.maps.categorical]
        parts = [
            pool([member(y[rows], codes[rows], observed[rows]).double() for member in self.members], weights)
            for rows in self._chunks(len(x))
        ]
        return TableMarginals(self.maps, concatenated(parts))

    @property
    def unit_roundoff(self) -> float:
        """u of the coarsest arithmetic: of the networks' weights; without networks the accuracy of cells' masses."""
        return max([_MASS, *(torch.finfo(p.dtype).eps / 2 for p in self.parameters() if p.is_floating_point())])

    def moved_by_roundoff(self, *, generator: torch.Generator) -> TableConditional:
        """A copy whose latents and weights are moved by about one roundoff of each member, by random signs.

        Columns become latents in float64, and the latents are rounded: neither a column's offset nor its atoms, levels
        and codes, which are told by equality, take part in that.
        """
        moved = copy.deepcopy(self)
        moved.members = nn.ModuleList(_Moved(member, len(self.maps.numeric), generator) for member in moved.members)
        return moved

    def _chunks(self, num_rows: int) -> list[slice]:
        """Rows at once, so that conditional covariances ``[rows, K, F, F]`` stay within bounds."""
        mixtures = [part for part in self.members.modules() if isinstance(part, ClassMixture)]
        each = max((mixture.law.precisions.numel() for mixture in mixtures), default=1)
        size = max(1, _COVARIANCE_ENTRIES // max(each, 1))
        return [slice(start, start + size) for start in range(0, max(num_rows, 1), size)]

    @staticmethod
    def _nothing(y: Tensor) -> LatentMarginals:
        """The answer for columns that are all constant, hence without latents or codes."""
        empty = y.new_zeros(len(y), 0, 1)
        return LatentMarginals(empty, empty, empty, empty)


class _Moved(nn.Module):
    """A member whose weights, and the latents it reads, are moved by about a roundoff."""

    factors: Tensor

    def __init__(self, member: nn.Module, num_latents: int, generator: torch.Generator) -> None:
        super().__init__()
        self.member = member
        weights = [p for p in member.parameters() if p.is_floating_point()]
        unit = max((torch.finfo(p.dtype).eps / 2 for p in weights), default=torch.finfo(torch.float64).eps / 2)

        def factors(shape: torch.Size | tuple[int, ...], step: float) -> Tensor:
            return 1.0 + step * (2.0 * torch.randint(2, shape, generator=generator).double() - 1.0)

        with torch.no_grad():
            for p in weights:  # by twice the roundoff, so that rounding to the weight's own precision leaves a move
                p.copy_((p.double() * factors(p.shape, 2 * unit).to(p.device)).to(p.dtype))
        place = next(iter([*member.parameters(), *member.buffers()]), torch.zeros(0)).device
        self.register_buffer("factors", factors((num_latents,), unit).to(place))

    def forward(self, y: Tensor, codes: Tensor, observed: Tensor) -> LatentMarginals:
        answer: LatentMarginals = self.member(y * self.factors, codes, observed)
        return answer


class TrainableTable(nn.Module, MarginalConditional):
    """The pool of a table model as one network; its weights are the model's own, so that training moves the model.

    Log-probabilities are those of latent space, as in training: they differ from those of the data's units by a
    constant a value, which neither gradients nor diagnostics of compatibility see. Answers carry no gradient in x.

    Args:
        conditional: ``model.conditional()`` of a fitted `TableModel`.

    Raises:
        FlexgenError: another conditional.

    >>> network = TrainableTable(model.conditional())  # doctest: +SKIP
    >>> train(network, objective, TensorData(model.schema.encode(df)))  # doctest: +SKIP
    """

    def __init__(self, conditional: TableConditional) -> None:
        super().__init__()
        if not isinstance(conditional, TableConditional):
            raise FlexgenError("conditional", f"is {kind_of(conditional)}", "Pass model.conditional() of a TableModel.")
        self.conditional = conditional

    @property
    def space(self) -> Space:
        return self.conditional.space

    @property
    def unit_roundoff(self) -> float:
        return self.conditional.unit_roundoff

    def moved_by_roundoff(self, *, generator: torch.Generator) -> TrainableTable:
        """See `TableConditional.moved_by_roundoff`."""
        return TrainableTable(self.conditional.moved_by_roundoff(generator=generator))

    def marginals(self, x: Tensor, query: Query) -> TrainableMarginals:
        """p(x_i | x_C) of every site that is not observed."""
        table = self.conditional
        observed = question(x, query).observed
        with torch.no_grad():
            x = torch.where(observed, x.double(), 0.0)  # nothing unobserved is read
            y, codes = table.maps(x), x[:, table.maps.categorical]
        weights = table.log_weights[:, table.maps.numeric], table.log_weights[:, table.maps.categorical]
        return TrainableMarginals(table.maps, pool([m(y, codes, observed).double() for m in table.members], weights))


class TrainableMarginals:
    """One-site answers, log-probabilities in latent space."""

    def __init__(self, maps: ColumnMaps, latents: LatentMarginals) -> None:
        self.maps, self.latents = maps, latents

    def log_prob(self, x: Tensor) -> Tensor:
        """``[B, N]``; zero at constant columns, and, unlike an answer, where x is not a number."""
        maps, latents = self.maps, self.latents
        present = ~x.isnan()
        lower, upper = maps.cells(x)
        held = present[:, maps.numeric]
        numeric = cell_log_prob(
            torch.where(held, lower, 0.0),
            torch.where(held, upper, 0.0),
            latents.log_weights,
            latents.means,
            latents.sds,
        )
        codes = x[:, maps.categorical].nan_to_num(0.0).long().clamp(0, max(latents.log_probs.shape[-1] - 1, 0))
        coded = latents.log_probs.gather(-1, codes[..., None]).squeeze(-1)
        out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        out = out.index_copy(1, maps.numeric, numeric).index_copy(1, maps.categorical, coded)
        return torch.where(present, out, 0.0)

    def sample(self, *, generator: Randomness) -> Tensor:
        return self._answers().sample(generator=generator)

    def mean(self) -> Tensor:
        return self._answers().mean()

    def mode(self) -> Tensor:
        return self._answers().mode()

    def _answers(self) -> TableMarginals:
        """The same answers without gradient, in data units."""
        parts = (self.latents.log_weights, self.latents.means, self.latents.sds, self.latents.log_probs)
        return TableMarginals(self.maps, LatentMarginals(*(part.detach() for part in parts)))


def describe(
    schema: TableSchema, marginals: TableMarginals, index: pd.Index, quantiles: Sequence[float], chosen: Sequence[int]
) -> dict[str, pd.DataFrame]:
    """Column -> frame with a row for each row of the answers, of the chosen sites."""
    maps = marginals.maps
    numbers = {"mean": marginals.mean(), "sd": marginals.sd()} | {
        f"q{100 * q:g}": marginals.quantile(q) for q in quantiles
    }
    places = maps.categorical.tolist()
    described = {}
    for j in chosen:
        column = schema.columns[j]
        if column.kind == "categorical":
            shares = marginals.latents.log_probs[:, places.index(j), : len(column.levels)].exp()
            described[column.name] = pd.DataFrame(shares.cpu().numpy(), index, list(column.levels))
        else:
            described[column.name] = pd.DataFrame({k: v[:, j].cpu().numpy() for k, v in numbers.items()}, index)
    return described
