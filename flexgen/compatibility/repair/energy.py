"""Energies over finite sites: a free number for every state, or a Potts model plus a perceptron."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flexgen.compatibility.repair.finite_joint import FiniteJoint
from flexgen.errors import SpaceError
from flexgen.networks import ResidualMLP
from flexgen.space import Space

__all__ = ["EnergyModel", "PottsNetwork", "TableEnergy"]

_MOST_PARAMETERS = 1 << 20


class EnergyModel(nn.Module, FiniteJoint):
    """The joint p(x) ∝ exp(-E(x)) of a network E: ``[B, N] -> [B]``.

    Its complete conditionals share this joint, whatever the weights. A Gibbs sampler on it, or
    ``MetropolisSampler(network, model.energy, ..)`` with any network's proposals, leaves it invariant.

    Args:
        space: finite.
        network: the energy; default: a `PottsNetwork`.
    """

    def __init__(self, space: Space, network: nn.Module | None = None) -> None:
        nn.Module.__init__(self)
        self._space = _finite(space)
        self.network = PottsNetwork(space) if network is None else network
        self.eval()

    def log_weight(self, x: Tensor) -> Tensor:
        energy: Tensor = self.network(x)
        return -energy

    forward = log_weight

    def _device(self) -> torch.device:
        return next((weight.device for weight in self.parameters()), torch.device("cpu"))


class TableEnergy(nn.Module):
    """A free energy for every state: every positive joint is among its laws. For spaces that can be enumerated."""

    strides: Tensor

    def __init__(self, space: Space) -> None:
        super().__init__()
        sizes = _finite(space).num_categories
        if space.num_states > _MOST_PARAMETERS:
            raise SpaceError(
                "space", f"has {space.num_states} states", f"At most {_MOST_PARAMETERS}: use PottsNetwork."
            )
        strides = [math.prod(sizes[site + 1 :]) for site in range(len(sizes))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        self.energies = nn.Parameter(torch.zeros(space.num_states, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.energies[x.long() @ self.strides]


class PottsNetwork(nn.Module):
    """E(x) = -sum_i h_i(x_i) - sum_{i<j} J_ij(x_i, x_j) - perceptron(x): pairs at once, the rest learned.

    The perceptron starts at zero, the fields and couplings do too: the uniform law.

    Args:
        space: finite.
        width, depth: of the perceptron, see `ResidualMLP`; depth 0 leaves it out, a plain Potts model.
        seed: of the initial weights.
    """

    offsets: Tensor
    between_sites: Tensor

    def __init__(self, space: Space, *, width: int = 64, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        sizes = torch.tensor(_finite(space).num_categories)
        num_features = int(sizes.sum())
        site_of = torch.arange(len(sizes)).repeat_interleave(sizes)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("between_sites", (site_of[:, None] < site_of).float(), persistent=False)
        self.fields = nn.Parameter(torch.zeros(num_features))
        self.couplings = nn.Parameter(torch.zeros(num_features, num_features))
        self.perceptron = None
        if depth:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.perceptron = ResidualMLP(num_features, 1, width=width, depth=depth)

    def forward(self, x: Tensor) -> Tensor:
        places = x.long() + self.offsets  # [B, N]
        hot = self.fields.new_zeros(len(x), len(self.fields)).scatter(1, places, 1.0)  # [B, F]
        score = hot @ self.fields + (hot @ (self.couplings * self.between_sites) * hot).sum(-1)
        if self.perceptron is not None:
            score = score + self.perceptron(hot)[:, 0]
        return -score


def _finite(space: Space) -> Space:
    if not space.is_finite:
        raise SpaceError("space", f"is not finite: {space}", "An energy is distilled over categorical sites only.")
    return space
