"""Training: one loop for whatever gives a loss a row, exact to resume."""

from __future__ import annotations

from flexgen.training.batches import EpochOrder, TensorData, TrainingData
from flexgen.training.checkpoint import (
    Checkpoint,
    checkpoints,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from flexgen.training.ema import Ema
from flexgen.training.loop import OneProcess, train
from flexgen.training.objectives import MaskedLikelihood, MovingObjective, Objective, masked_likelihood
from flexgen.training.settings import TrainingSettings, learning_rate
from flexgen.training.state import TrainingResult
from flexgen.training.validation import held_out_loss

__all__ = [
    "Checkpoint",
    "Ema",
    "EpochOrder",
    "MaskedLikelihood",
    "MovingObjective",
    "Objective",
    "OneProcess",
    "TensorData",
    "TrainingData",
    "TrainingResult",
    "TrainingSettings",
    "checkpoints",
    "held_out_loss",
    "latest_checkpoint",
    "learning_rate",
    "masked_likelihood",
    "read_checkpoint",
    "train",
    "write_checkpoint",
]
