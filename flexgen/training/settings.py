"""What a training run does, as one value; and its learning rate, a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from flexgen.errors import ConfigError

__all__ = ["TrainingSettings", "autocast", "learning_rate"]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of `train`. They and the data determine the result, bit for bit, on a given machine.

    Args:
        num_steps: updates in all.
        batch_size: rows an update, over all processes together.
        lr: peak learning rate of AdamW.
        optimizer: ``"adamw"``, or ``"muon"``: Muon for the network's hidden matrices and AdamW for the rest.
        muon_lr, muon_weight_decay: of the hidden matrices under Muon.
        lr_schedule: ``"cosine"`` falls to zero at `num_steps`; ``"constant"`` stays.
        num_warmup_steps: updates over which the learning rate rises linearly from zero.
        weight_decay: AdamW's; applies to parameters of two dimensions or more, so never to biases and gains.
        betas: AdamW's.
        grad_clip: largest gradient norm, or None.
        ema_decay: decay of the weights' moving average, or None for no average; see `Ema`.
        amp: arithmetic of the forward pass: None (that of the weights), ``"bf16"`` or ``"fp16"`` (with loss scaling).
        validate_every: steps between two records of the history, each with a held-out loss if there are held-out data.
        held_out_draws: queries drawn a held-out row; the same ones at every validation.
        patience: validations without a better held-out loss after which training stops, or None for never.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        keep_checkpoints: how many of the latest are kept.
        max_seconds: stop, with a checkpoint, once this call has trained for so long.
        compile: run the network through torch.compile (tens of seconds to start).
        seed: key of the batches, the queries and the dropout.
    """

    num_steps: int = 2000
    batch_size: int = 256
    lr: float = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_lr: float = 4e-3
    muon_weight_decay: float = 0.1
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    num_warmup_steps: int = 50
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float | None = 1.0
    ema_decay: float | None = None
    amp: Literal["bf16", "fp16"] | None = None
    validate_every: int = 100
    held_out_draws: int = 1
    patience: int | None = None
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    max_seconds: float | None = None
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "validate_every", "held_out_draws", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("keep_checkpoints", self.keep_checkpoints >= 1, "at least 1")
        self._require("lr", self.lr > 0, "a number above 0")
        self._require("optimizer", self.optimizer in ("adamw", "muon"), "'adamw' or 'muon'")
        self._require("muon_lr", self.muon_lr > 0, "a number above 0")
        self._require("lr_schedule", self.lr_schedule in ("cosine", "constant"), "'cosine' or 'constant'")
        self._require("num_warmup_steps", self.num_warmup_steps >= 0, "0 or more")
        self._require("weight_decay", self.weight_decay >= 0, "0 or more")
        self._require("muon_weight_decay", self.muon_weight_decay >= 0, "0 or more")
        self._require(
            "betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"
        )
        self._require("grad_clip", self.grad_clip is None or self.grad_clip > 0, "above 0, or None")
        self._require("ema_decay", self.ema_decay is None or 0 <= self.ema_decay < 1, "in [0, 1), or None")
        self._require("amp", self.amp in (None, "bf16", "fp16"), "None, 'bf16' or 'fp16'")
        self._require("patience", self.patience is None or self.patience >= 1, "at least 1, or None")
        self._require("max_seconds", self.max_seconds is None or self.max_seconds > 0, "above 0, or None")

    def _require(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise ConfigError(name, f"is {getattr(self, name)!r}", f"Pass {expected}.")


def learning_rate(settings: TrainingSettings, step: int, *, peak: float | None = None) -> float:
    """The learning rate of update `step` (from 0): linear warm-up to `peak` (``settings.lr``), then the schedule.

    Stateless, so that a resumed run needs no scheduler.
    """
    peak = settings.lr if peak is None else peak
    warmup = min(settings.num_warmup_steps, settings.num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.lr_schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, settings.num_steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def autocast(settings: TrainingSettings, device: torch.device) -> torch.autocast:
    """The context of every forward pass: the arithmetic of ``settings.amp``."""
    dtype = torch.float16 if settings.amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=settings.amp is not None)
