"""Everything that changes while a network trains, and its form in a checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.training.batches import TrainingData, fingerprint
from flexgen.training.checkpoint import Checkpoint, require_same
from flexgen.training.ema import Ema
from flexgen.training.objectives import MovingObjective, Objective
from flexgen.training.optimizers import make_optimizers
from flexgen.training.settings import TrainingSettings

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "Stop", "TrainingResult", "TrainingState", "identity"]

Record = dict[str, float]
Stop = Literal["finished", "patience", "interrupted", "max_seconds"]

# Settings that decide when a run stops or saves, not what it computes; they may change when it is resumed.
_FREE_TO_CHANGE = {"checkpoint_every", "keep_checkpoints", "max_seconds", "patience"}


@dataclass(frozen=True)
class TrainingResult:
    """How a run went; the network itself was trained in place.

    Args:
        stopped: why it ended: ``"finished"`` all steps, out of ``"patience"``, ``"interrupted"``, ``"max_seconds"``.
        step: updates made.
        best_step: updates made when the held-out loss was lowest (0 without held-out data).
        best_loss: that loss (inf without held-out data).
        history: one record every `validate_every` steps: ``step``, ``loss`` (mean since the last record), ``lr``,
            ``grad_norm``, ``seconds``, and ``held_out_loss`` if there are held-out data.
        seconds: time trained, over all resumptions.
    """

    stopped: Stop
    step: int
    best_step: int
    best_loss: float
    history: list[Record]
    seconds: float

    def to_dataframe(self) -> pd.DataFrame:
        """The history, one row a record."""
        import pandas as pd

        return pd.DataFrame(self.history)


def identity(
    network: nn.Module,
    objective: Objective,
    settings: TrainingSettings,
    data: TrainingData,
    held_out: TrainingData | None,
) -> dict[str, dict[str, Any]]:
    """What must not change for a run to be resumed."""
    fixed = {name: value for name, value in asdict(settings).items() if name not in _FREE_TO_CHANGE}
    if settings.lr_schedule == "constant" and not isinstance(objective, MovingObjective):
        del fixed["num_steps"]  # prolonging the run leaves the steps before as they were
    named = objective if isinstance(objective, FunctionType) else type(objective)
    return {
        "settings": fixed,
        "data": fingerprint(data),
        "held-out data": {} if held_out is None else fingerprint(held_out),
        "objective": {"name": named.__qualname__} | _described(objective),
        "random streams": {"generator": rng.GENERATOR},
        "network": {"trainable weights": sum(w.numel() for w in network.parameters() if w.requires_grad)},
    }


def _described(objective: Objective) -> dict[str, str]:
    """Its repr, where the class defines one; a part without one is named by its class."""
    if type(objective).__repr__ in (object.__repr__, FunctionType.__repr__):
        return {}
    return {"is": re.sub(r"<[\w.<>]*?(\w+) object at 0x[0-9a-fA-F]+>", r"\1", repr(objective))}


@dataclass
class TrainingState:
    """A run between two steps. No random state: every draw is keyed by the seed and the step."""

    network: nn.Module
    optimizers: list[torch.optim.Optimizer]
    ema: Ema | None
    scaler: torch.amp.GradScaler | None
    step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = math.inf
    best_step: int = 0
    num_stale: int = 0
    """Validations since the best one."""
    loss_sum: float = 0.0
    """Of the steps since the last record."""
    loss_count: int = 0
    history: list[Record] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def start(cls, network: nn.Module, settings: TrainingSettings, device: torch.device) -> TrainingState:
        """The state before the first step; the network is on its device already."""
        ema = None if settings.ema_decay is None else Ema(network, settings.ema_decay)
        scaler = torch.amp.GradScaler(device.type) if settings.amp == "fp16" else None
        return cls(network, make_optimizers(network, settings), ema, scaler)

    def averaged(self) -> Any:
        """A context in which the network holds the weights that are evaluated: the average, if there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def keep_if_best(self, held_out_loss: float) -> None:
        """Remembers the network as it stands (within `averaged`) if no validation was better."""
        if held_out_loss < self.best_loss:
            self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
            self.best_loss, self.best_step, self.num_stale = held_out_loss, self.step, 0
        else:
            self.num_stale += 1

    def install_result(self) -> None:
        """Leaves in the network what training found: the best weights, or else the average, or else the last."""
        if self.best:
            self.network.load_state_dict(self.best)
        elif self.ema is not None:
            self.ema.copy_to_network()

    def to_checkpoint(self, identity: Mapping[str, Any]) -> Checkpoint:
        tensors = {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer_tensors(),
            "ema": {} if self.ema is None else self.ema.average,
            "best": self.best,
        }
        state = {
            "identity": identity,
            "best_loss": self.best_loss if self.best else None,
            "best_step": self.best_step,
            "num_stale": self.num_stale,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "history": self.history,
            "seconds": self.seconds,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        return Checkpoint(self.step, tensors, state)

    def restore(self, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
        """Takes the place of the run that wrote the checkpoint.

        Raises:
            CheckpointError: it was a run with other settings, other data or another network.
        """
        saved = checkpoint.state
        fix = "Resume with what the run began with, or start anew in another directory."
        for what in identity:
            require_same(what, saved["identity"].get(what, {}), identity[what], fix=fix)
        own, stored = self.network.state_dict(), checkpoint.tensors["network"]
        require_same("network weights", _shapes(stored), _shapes(own), fix=fix)
        self.network.load_state_dict(dict(stored))
        self._restore_optimizer(checkpoint.tensors["optimizer"])
        if self.ema is not None:
            for name, average in self.ema.average.items():
                average.copy_(checkpoint.tensors["ema"][name])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
        self.step = checkpoint.step
        self.best = {name: tensor.to(own[name].device) for name, tensor in checkpoint.tensors["best"].items()}
        self.best_loss = math.inf if saved["best_loss"] is None else saved["best_loss"]
        for name in ("best_step", "num_stale", "loss_sum", "loss_count", "history", "seconds"):
            setattr(self, name, saved[name])

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """The moments by ``weight's name/moment's name``."""
        return {
            f"{name}/{moment}": value
            for name, weight in self.network.named_parameters()
            for optimizer in self.optimizers
            for moment, value in optimizer.state.get(weight, {}).items()
        }

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        weights = dict(self.network.named_parameters())
        owner = {
            id(weight): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
        }
        for key, value in tensors.items():
            name, moment = key.rsplit("/", 1)
            weight = weights[name]
            # The step counter of a fused optimizer lives on the weights' device, as the moments do.
            value = value.to(weight.device)
            if value.shape == weight.shape:
                # A fused optimizer walks through memory: moments have to lie as their weights do (channels last, say).
                value = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)
            owner[id(weight)].state[weight][moment] = value


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in tensors.items()}
