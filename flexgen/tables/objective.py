"""Rows of a table as members see them, and the likelihood that networks are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from flexgen.errors import ConfigError
from flexgen.laws import MaskLaw
from flexgen.rng import Randomness
from flexgen.tables.maps import ColumnMaps
from flexgen.training import TensorData

__all__ = ["LatentRows", "TableLikelihood"]


@dataclass(frozen=True)
class LatentRows:
    """A table in latent space, float64, NaN where missing.

    Args:
        y: latents ``[n, S]``.
        codes: ``[n, J]``.
        lower, upper: the latents' cells ``[n, S]``.
        present: bool ``[n, N]``.
        x: data ``[n, N]``, for laws that depend on values.
    """

    y: Tensor
    codes: Tensor
    lower: Tensor
    upper: Tensor
    present: Tensor
    x: Tensor

    @classmethod
    def of(cls, maps: ColumnMaps, x: Tensor) -> LatentRows:
        """Args: x, data ``[n, N]``."""
        lower, upper = maps.cells(x)
        return cls(maps(x), x[:, maps.categorical], lower, upper, ~x.isnan(), x)

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, rows: Tensor) -> LatentRows:
        return LatentRows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to_data(self) -> TensorData:
        """For `train`: float32, and zero where missing, where nothing is read."""
        floats = {"y": self.y, "codes": self.codes, "lower": self.lower, "upper": self.upper, "x": self.x}
        return TensorData(
            {**{k: torch.where(v.isnan(), 0.0, v).float() for k, v in floats.items()}, "present": self.present}
        )


class TableLikelihood:
    """weight * sum over targets of -log p(x_i | x_C), in nats of latent space, ``[B]``.

    Args:
        law: draws the queries.
    """

    def __init__(self, law: MaskLaw) -> None:
        self.law = law

    def __call__(self, network: nn.Module, batch: Mapping[str, Tensor], generator: Randomness) -> Tensor:
        draw = self.law.draw(batch["present"], generator=generator, x=batch["x"])
        if draw.kept is not None or draw.replaced is not None:
            raise ConfigError("law", f"is {self.law!r}, which corrupts what is shown", "Pass a law that only hides.")
        query = draw.query
        values = batch["y"], batch["codes"]
        numeric, coded = network.log_prob(*values, query.observed, batch["lower"], batch["upper"])  # type: ignore[operator]
        layout = network.base.layout  # type: ignore[union-attr]
        total = torch.where(query.target[:, layout.numeric], numeric, 0.0).sum(-1)
        total = total + torch.where(query.target[:, layout.categorical], coded, 0.0).sum(-1)
        return -draw.weight * total

    def __repr__(self) -> str:
        return f"TableLikelihood({self.law!r})"
