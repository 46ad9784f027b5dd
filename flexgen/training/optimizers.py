"""The optimizers of a run: AdamW, and Muon for a network's hidden matrices."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flexgen.errors import ConfigError
from flexgen.training.settings import TrainingSettings

__all__ = ["HasHiddenMatrices", "make_optimizers"]


@runtime_checkable
class HasHiddenMatrices(Protocol):
    """A network that says which of its weights are matrices between hidden layers, for Muon."""

    def hidden_matrices(self) -> list[Tensor]: ...


def make_optimizers(network: nn.Module, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the hidden matrices and AdamW for the rest.

    Matrices decay, vectors do not. Muon (Jordan et al. 2024) orthogonalises the momentum of each matrix; its step is
    scaled to the size of AdamW's (Liu et al. 2025), so that both share one range of learning rates.

    Raises:
        ConfigError: Muon is chosen, but the network names no hidden matrices.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        if not isinstance(network, HasHiddenMatrices):
            raise ConfigError(
                "optimizer", f"is 'muon', but {type(network).__name__} has no hidden_matrices()", "Use 'adamw'."
            )
        matrices = network.hidden_matrices()
        chosen = {id(matrix) for matrix in matrices}
        weights = [weight for weight in weights if id(weight) not in chosen]
        lr, decay = settings.muon_lr, settings.muon_weight_decay
        optimizers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)
    groups = [group for group in groups if group["params"]]
    optimizers.append(torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
