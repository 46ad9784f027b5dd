"""The loss on held-out rows, under queries that never change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from flexgen import rng
from flexgen.errors import FlexgenError
from flexgen.training.batches import TrainingData, to_device
from flexgen.training.guards import evaluating
from flexgen.training.objectives import Objective
from flexgen.training.settings import TrainingSettings, autocast

if TYPE_CHECKING:
    from accelerate import Accelerator

    from flexgen.training.loop import OneProcess

__all__ = ["held_out_loss"]


def held_out_loss(
    network: nn.Module,
    objective: Objective,
    data: TrainingData,
    settings: TrainingSettings,
    accelerator: Accelerator | OneProcess,
) -> float:
    """The mean loss of a row, in eval mode.

    The draws of a row are keyed by the seed and the row's number: the same at every validation, whatever the batch
    size or the number of processes, so that two networks are compared on the same queries. All processes get the
    same number.

    Raises:
        FlexgenError: the loss is not a number.
    """
    device = accelerator.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    mine = torch.arange(len(data))[accelerator.process_index :: accelerator.num_processes]
    with evaluating(network), autocast(settings, device):
        for draw in range(settings.held_out_draws):
            seed = rng.key(settings.seed, "held-out", draw)
            for rows in torch.split(mine, settings.batch_size):
                batch = to_device(data.batch(rows), device)
                total += objective(network, batch, rng.Streams(seed, rows.to(device))).double().sum()
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total, reduction="sum")
    loss = float(total) / (len(data) * settings.held_out_draws)
    if math.isnan(loss):
        raise FlexgenError("held_out", "has a loss of nan", "Look for NaN outside its missing entries.")
    return loss
