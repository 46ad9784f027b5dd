"""The masked network of a table model, learned corrections to a Gaussian's exact conditionals, and its likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from flexgen.errors import ConfigError
from flexgen.laws import MaskLaw
from flexgen.networks.residual_mlp import ResidualMLP
from flexgen.rng import Randomness
from flexgen.tables.columns import ColumnMaps, cell_log_prob
from flexgen.tables.members import DenseGaussian, LatentMarginals
from flexgen.training import TensorData

__all__ = ["LatentRows", "MaskedTableNetwork", "TableLikelihood"]


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

    def __call__(self, network: nn.Module, batch: Tensor | Mapping[str, Tensor], generator: Randomness) -> Tensor:
        assert isinstance(network, MaskedTableNetwork)
        assert not isinstance(batch, Tensor)
        draw = self.law.draw(batch["present"], generator=generator, x=batch["x"])
        if draw.kept is not None or draw.replaced is not None:
            raise ConfigError("law", f"is {self.law!r}, which corrupts what is shown", "Pass a law that only hides.")
        query = draw.query
        values = batch["y"], batch["codes"]
        numeric, coded = network.log_prob(*values, query.observed, batch["lower"], batch["upper"])
        layout = network.base.layout
        total = torch.where(query.target[:, layout.numeric], numeric, 0.0).sum(-1)
        total = total + torch.where(query.target[:, layout.categorical], coded, 0.0).sum(-1)
        return -draw.weight * total

    def __repr__(self) -> str:
        return f"TableLikelihood({self.law!r})"


# A component's sd may differ from the Gaussian's by at most this factor's logarithm.
_MOST_LOG_SCALE = 3.0


class MaskedTableNetwork(nn.Module):
    """One-site answers for every site at once, given any observed set.

    The network sees the observed values, which sites they are, and the exact conditional mean and standard deviation
    of every site under a fixed Gaussian (the *base*). What it puts out is relative to the base: the components of a
    numeric site's mixture are base mean + shift * base sd, with base sd * scale; a category's logits are added to the
    base's. Its output layer starts at zero, so that an untrained network's answer is the Gaussian's.

    Args:
        base: a fitted Gaussian over the same features.
        num_components: of every numeric site's mixture of normals.
        width, depth, dropout: see `ResidualMLP`.
    """

    start_log_weights: Tensor
    start_means: Tensor
    start_log_sds: Tensor

    def __init__(
        self,
        base: DenseGaussian,
        *,
        num_components: int = 10,
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_components < 1:
            raise ConfigError("num_components", f"is {num_components}", "Pass at least 1.")
        self.base = base.requires_grad_(False)
        self.num_components = num_components
        layout = base.layout
        self.num_numeric, self.num_codes = layout.num_numeric, layout.num_features - layout.num_numeric
        num_sites = layout.num_numeric + len(layout.num_categories)
        input_dim = 3 * layout.num_numeric + 2 * self.num_codes + num_sites
        output_dim = 3 * layout.num_numeric * num_components + self.num_codes
        self.trunk = ResidualMLP(input_dim, output_dim, width=width, depth=depth, dropout=dropout)
        weights, means, sds = _standard_mixture(num_components)
        self.register_buffer("start_log_weights", weights.log().float(), persistent=False)
        self.register_buffer("start_means", means.float(), persistent=False)
        self.register_buffer("start_log_sds", sds.log().float(), persistent=False)

    def hidden_matrices(self) -> list[Tensor]:
        """See `flexgen.training.optimizers.HasHiddenMatrices`."""
        return self.trunk.hidden_matrices()

    def forward(self, y: Tensor, codes: Tensor, observed: Tensor) -> LatentMarginals:
        """Args: y latents ``[B, S]``, codes ``[B, J]``, both read where observed only; observed, bool ``[B, N]``."""
        means, sds, base_scores, features = self._features(y, codes, observed)
        out = self.trunk(features)
        cut = 3 * self.num_numeric * self.num_components
        corrections = out[:, :cut].view(len(out), self.num_numeric, self.num_components, 3)  # [B, S, K, 3]
        weight, shift, log_scale = corrections.unbind(-1)
        log_weights = (self.start_log_weights + weight).log_softmax(-1)
        shift = self.start_means + shift
        log_scale = self.start_log_sds + _MOST_LOG_SCALE * torch.tanh(log_scale / _MOST_LOG_SCALE)
        log_probs = self.base.layout.normalise(base_scores + out[:, cut:])
        sds = sds[..., None]
        return LatentMarginals(log_weights, means[..., None] + sds * shift, sds * log_scale.exp(), log_probs)

    def log_prob(
        self, y: Tensor, codes: Tensor, observed: Tensor, lower: Tensor, upper: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the true values in latent space, ``[B, S]`` and ``[B, J]``: what training maximises.

        Args:
            lower, upper: ``[B, S]``, each latent's cell; equal where it has a density.
        """
        answer = self(y, codes, observed)
        numeric = cell_log_prob(lower, upper, answer.log_weights, answer.means, answer.sds)
        picked = answer.log_probs.gather(-1, codes.nan_to_num(0.0).long()[..., None])  # [B, J, 1]
        return numeric, picked.squeeze(-1)

    def _features(self, y: Tensor, codes: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Base mean and sd of the latents ``[B, S]``, base log-shares ``[B, F - S]``, and the trunk's input."""
        layout = self.base.layout
        dtype = self.trunk.embed.weight.dtype
        with torch.no_grad():
            means, sds, shares = (part.to(dtype) for part in self.base.answer(y, codes, observed))
            numeric_observed, coded = layout.spread(observed)
            features = [
                torch.where(numeric_observed, means, 0.0),  # the observed values
                means,
                torch.where(numeric_observed, 0.0, sds),
                torch.where(coded, shares, 0.0),
                shares,
                observed[:, layout.numeric].to(dtype),
                observed[:, layout.categorical].to(dtype),
            ]
            # Where observed, the base is sure; a unit scale keeps the (unread) answers there finite.
            sds = torch.where(numeric_observed, 1.0, sds)
        return means, sds, shares.log(), torch.cat(features, 1)


def _standard_mixture(num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and sds of distinct normals whose mixture has mean 0, variance 1 and nearly a normal's density.

    Distinct components let a head that starts at zero tell them apart. For ten, KL(N(0, 1), mixture) is 4e-5 nats.
    """
    if num_components == 1:
        return torch.ones(1), torch.zeros(1), torch.ones(1)
    # At least 0.9 spacings wide, so that the density has no ripples.
    sd = max(0.6, 4.32 / (num_components + 2)) if num_components > 3 else 0.85
    envelope = math.sqrt(1 - sd**2)
    reach = 3.0 if num_components > 4 else 1.5
    means = torch.linspace(-reach, reach, num_components, dtype=torch.float64) * envelope
    weights = (-0.5 * (means / envelope) ** 2).softmax(0)
    means = means * envelope / (weights * means**2).sum().sqrt()
    return weights, means, torch.full_like(means, sd)
