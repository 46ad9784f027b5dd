"""A fitted table model as a conditional: members pooled, answers in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexgen.conditional import MarginalConditional
from flexgen.query import Query
from flexgen.space import Space
from flexgen.tables.latents import LatentMarginals, concatenated, pool
from flexgen.tables.maps import ColumnMaps
from flexgen.tables.marginals import TableMarginals
from flexgen.tables.members import ClassMixture

__all__ = ["TableConditional"]

_COVARIANCE_ENTRIES = 1 << 26  # half a gigabyte of float64


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
        observed = query.expand(len(x)).observed
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

    def _chunks(self, num_rows: int) -> list[slice]:
        """Rows at once, so that conditional covariances ``[rows, K, F, F]`` stay within bounds."""
        each = max((m.law.precisions.numel() for m in self.members if isinstance(m, ClassMixture)), default=1)
        size = max(1, _COVARIANCE_ENTRIES // max(each, 1))
        return [slice(start, start + size) for start in range(0, max(num_rows, 1), size)]

    @staticmethod
    def _nothing(y: Tensor) -> LatentMarginals:
        """The answer for columns that are all constant, hence without latents or codes."""
        empty = y.new_zeros(len(y), 0, 1)
        return LatentMarginals(empty, empty, empty, empty)
