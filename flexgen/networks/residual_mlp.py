"""A residual perceptron with gated units: the trunk of the masked networks for tables."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from flexgen.errors import ConfigError

__all__ = ["ResidualMLP"]


class ResidualMLP(nn.Module):
    """``[B, input_dim] -> [B, output_dim]``; the output layer starts at zero.

    Each block is x + W2 (SiLU(u) * v) with (u, v) = W1 LayerNorm(x): SwiGLU (Shazeer 2020).

    Args:
        input_dim, output_dim: widths of input and output.
        width: of the residual stream and of the gated units.
        depth: blocks.
        dropout: share of the gated units dropped in training.
    """

    def __init__(
        self, input_dim: int, output_dim: int, *, width: int = 256, depth: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for name, value, least in (("width", width, 1), ("depth", depth, 0)):
            if value < least:
                raise ConfigError(name, f"is {value}", f"Pass at least {least}.")
        if not 0 <= dropout < 1:
            raise ConfigError("dropout", f"is {dropout}", "Pass a number in [0, 1).")
        self.embed = nn.Linear(input_dim, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, output_dim)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def hidden_matrices(self) -> list[Tensor]:
        """The weights between hidden layers, which the optimizer Muon is for."""
        return [weight for weight in self.blocks.parameters() if weight.ndim == 2]

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.embed(features)
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.readout(self.norm(hidden))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(self.norm(x)).chunk(2, dim=-1)  # [B, W] each
        change: Tensor = self.contract(F.dropout(F.silu(gate) * value, self.dropout, self.training))
        return x + change
