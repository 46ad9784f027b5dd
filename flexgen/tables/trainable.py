"""A table model's conditional whose answers carry gradients, for going on with its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexgen.checks import kind_of
from flexgen.conditional import MarginalConditional
from flexgen.errors import FlexgenError
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Space
from flexgen.tables.conditional import TableConditional
from flexgen.tables.latents import LatentMarginals, pool
from flexgen.tables.maps import ColumnMaps, cell_log_prob
from flexgen.tables.marginals import TableMarginals

__all__ = ["TrainableTable"]


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

    def marginals(self, x: Tensor, query: Query) -> TrainableMarginals:
        """p(x_i | x_C) of every site that is not observed."""
        table = self.conditional
        observed = query.expand(len(x)).observed
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
