"""The training loop: one for tables and for video, on one device or several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flexgen import rng, saving
from flexgen.checks import folder_path
from flexgen.errors import CheckpointError, ConfigError, DataError, FlexgenError
from flexgen.training.arguments import check_contents, check_kinds, training_data
from flexgen.training.batches import Batch, EpochOrder, TrainingData, to_device
from flexgen.training.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from flexgen.training.guards import Interruption, preserved_random_state, seed_dropout
from flexgen.training.objectives import MovingObjective, Objective
from flexgen.training.settings import TrainingSettings, autocast, learning_rate
from flexgen.training.state import Record, Stop, TrainingResult, TrainingState, identity
from flexgen.training.validation import held_out_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["OneProcess", "train"]

# Reading a loss makes an accelerator (and, over several processes, every process) wait; so it is done this seldom:
# after so many steps, or, for one process, which need not agree with others on the time, after so many seconds.
_STEPS_BETWEEN_READS = 20
_SECONDS_BETWEEN_READS = 1.0


def train(
    network: nn.Module,
    objective: Objective,
    data: TrainingData | Batch,
    settings: TrainingSettings | None = None,
    *,
    held_out: TrainingData | Batch | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    on_record: Callable[[Record], None] | None = None,
    accelerator: Accelerator | OneProcess | None = None,
) -> TrainingResult:
    """Trains the network in place on the mean of `objective`.

    Guarantees:
        * The run is a function of the arguments: batches, queries and dropout are keyed by (seed, step). The global
          random state is neither read nor, in the end, changed.
        * A resumed run equals an uninterrupted one bit for bit (same device, threads and number of processes).
        * Several processes see the batches and queries that one would, a slice each, and average their gradients;
          only dropout differs.
        * At the end the network is in eval mode, on the accelerator's device, and holds the weights with the lowest
          held-out loss; without held-out data the moving average, if there is one, else the last weights.

    Ctrl-C ends the step, writes a checkpoint if there is a directory, installs the best weights and returns, with
    ``result.stopped == "interrupted"``; a second Ctrl-C raises KeyboardInterrupt at once.

    Args:
        network: any module; the objective decides how it is called.
        objective: ``(network, batch, generator) -> loss [B]``, e.g. `MaskedLikelihood`; one that moves while training
            goes on (`MovingObjective`) is called at every step with the share of `num_steps` that is done.
        data: rows to train on, e.g. `TensorData`, which a tensor or a mapping of tensors becomes.
        settings: see `TrainingSettings`.
        held_out: rows to validate on; every validation draws the same queries for them.
        directory: where checkpoints go; None writes none.
        resume: go on from the latest checkpoint of the directory, or start if it has none.
        progress: show a bar; by default if standard error is a terminal.
        on_record: called with each new record of the history, on the main process.
        accelerator: an ``accelerate.Accelerator``; by default one that follows the launcher (torchrun). Under it,
            ``flexgen.training.OneProcess(device)`` trains a network of this process's own.

    Raises:
        SpaceError: data outside the network's space (`MaskedLikelihood`), before the first step.
        FlexgenError: the loss or the gradient is not finite; checkpoints written before are intact.
        CheckpointError: the directory holds another run's checkpoints, or damaged ones.
    """
    settings = TrainingSettings() if settings is None else settings
    check_kinds(network, objective, settings)
    data = training_data("data", data)
    held_out = None if held_out is None else training_data("held_out", held_out)
    run = _Run(network, objective, data, settings, held_out, directory, accelerator)
    run.prepare(resume)
    with preserved_random_state(run.device), Interruption().watched() as interruption:
        stopped = run.advance(interruption, progress, on_record)
    state = run.state
    state.install_result()
    network.eval()
    return TrainingResult(stopped, state.step, state.best_step, state.best_loss, state.history, state.seconds)


class OneProcess:
    """What the loop takes of an `Accelerator`, for one of several processes that trains a network of its own."""

    process_index, num_processes, is_main_process = 0, 1, True

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def prepare_model(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:  # noqa: ARG002
        return tensor

    def wait_for_everyone(self) -> None:
        """There is nobody."""


def _default_accelerator() -> Accelerator:
    from accelerate import Accelerator

    # By default accelerate runs CPU processes started by torchrun as if each were alone.
    return Accelerator(cpu=not torch.accelerator.is_available())


class _Step(nn.Module):
    """The forward pass of one update, as a module: DDP sees only what passes through the forward it wraps."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def forward(self, batch: Batch, generator: rng.Streams) -> Tensor:
        losses = self.objective(self.network, batch, generator)
        if losses.shape != (len(generator),):
            raise FlexgenError(
                "objective",
                f"returned shape {tuple(losses.shape)} for a batch of {len(generator)} rows",
                "Return the loss of each row, shape [B].",
            )
        return losses


class _Run:
    """The fixed surroundings of a run; what changes is in `state`."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        data: TrainingData,
        settings: TrainingSettings,
        held_out: TrainingData | None,
        directory: str | Path | None,
        accelerator: Accelerator | OneProcess | None,
    ) -> None:
        accelerator = _default_accelerator() if accelerator is None else accelerator
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank, self.num_processes = accelerator.process_index, accelerator.num_processes
        if settings.batch_size % self.num_processes:
            raise ConfigError(
                "batch_size", f"is {settings.batch_size} on {self.num_processes} processes", "Pass a multiple of them."
            )
        if settings.patience is not None and held_out is None:
            raise ConfigError("patience", f"is {settings.patience} without held-out data", "Pass held_out, or None.")
        if held_out is not None and len(held_out) == 0:
            raise DataError("held_out", "has no rows", "Pass some, or None.")
        self.network, self.data, self.held_out = network, data, held_out
        self.settings, self.objective = settings, objective
        self.directory = None if directory is None else folder_path("directory", directory)
        self.order = EpochOrder(len(data), settings.batch_size, seed=settings.seed)
        share = settings.batch_size // self.num_processes
        self.share = slice(self.rank * share, (self.rank + 1) * share)  # this process's places in a batch
        self.places = torch.arange(settings.batch_size, device=self.device)[self.share]

    def prepare(self, resume: bool) -> None:
        """Everything before the first step, including the state of the run that is resumed."""
        network, settings = self.network, self.settings
        check_contents(self.objective, network, "data", self.data, self.order.rows(0)[self.share])
        if self.held_out is not None:
            first = torch.arange(min(len(self.held_out), settings.batch_size))
            check_contents(self.objective, network, "held_out", self.held_out, first)
        network.train()
        self.step = _Step(network, self.objective)
        self.forward = self.accelerator.prepare_model(self.step)
        if settings.compile:
            network.compile()
        self.state = TrainingState.start(network, settings, self.device)
        self.network.zero_grad()  # whatever the caller left there
        if self.directory is None:
            return
        self.identity = identity(network, self.objective, settings, self.data, self.held_out)
        path = latest_checkpoint(self.directory)
        if path is not None and not resume:
            raise CheckpointError(
                "directory",
                f"{self.directory} holds checkpoints already, the latest {path.name}",
                "Pass resume=True to go on from it, or another directory.",
            )
        if path is not None:
            self.state.restore(read_checkpoint(path), self.identity)
        with saving.writing("directory", self.directory):  # what cannot be made is said before the first step
            self.directory.mkdir(parents=True, exist_ok=True)

    def advance(
        self, interruption: Interruption, progress: bool | None, on_record: Callable[[Record], None] | None
    ) -> Stop:
        """Steps until the run is over, recording, validating and saving on the way."""
        settings, state = self.settings, self.state
        hidden = None if progress is None else not progress  # None: hidden unless standard error is a terminal
        if not self.accelerator.is_main_process:
            hidden = True
        read_every = 1 if self.device.type == "cpu" and self.num_processes == 1 else _STEPS_BETWEEN_READS
        unread: list[Tensor] = []
        began, before = time.monotonic(), state.seconds
        last_read = began
        stopped: Stop | None = self._ended()
        with tqdm(total=settings.num_steps, initial=state.step, disable=hidden, unit="step") as bar:
            while stopped is None:
                unread.append(self._update())
                state.step += 1
                records = state.step % settings.validate_every == 0 or state.step == settings.num_steps
                saves = state.step % settings.checkpoint_every == 0
                now = time.monotonic()
                late = self.num_processes == 1 and now - last_read > _SECONDS_BETWEEN_READS
                if len(unread) >= read_every or late or records or saves:
                    last_read, state.seconds = now, before + now - began
                    out_of_time = settings.max_seconds is not None and now - began > settings.max_seconds
                    requested = self._read(unread, {"interrupted": interruption.requested, "max_seconds": out_of_time})
                    bar.update(len(unread))
                    norm = float(unread[-1][1])
                    unread.clear()
                    if records:
                        self._record(norm, on_record)
                    self._show(bar)
                    stopped = self._ended() or requested
                    if saves or stopped:
                        self._save()
        return stopped

    def _update(self) -> Tensor:
        """One step of the optimizers; its loss and gradient norm, float32 ``[2]``, left on the device."""
        settings, state = self.settings, self.state
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, state.step, peak=group["peak_lr"])
        if isinstance(self.objective, MovingObjective):
            self.step.objective = self.objective.at(state.step / settings.num_steps)
        batch = to_device(self.data.batch(self.order.rows(state.step)[self.share]), self.device)
        streams = rng.Streams(rng.key(settings.seed, "objective", state.step), self.places)
        seed_dropout(rng.key(settings.seed, "dropout", state.step, self.rank), self.device)
        with autocast(settings, self.device):
            losses = self.forward(batch, streams)
            loss = losses.mean(dtype=torch.promote_types(losses.dtype, torch.float32))
        scaler = state.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            for optimizer in state.optimizers:
                scaler.unscale_(optimizer)
        weights = [weight for weight in self.network.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        if settings.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(weights, settings.grad_clip, norm)
        for optimizer in state.optimizers:
            optimizer.step() if scaler is None else scaler.step(optimizer)
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()
        if state.ema is not None:
            state.ema.update(state.step)
        return torch.stack([loss.detach().float(), norm.float()])

    def _read(self, unread: list[Tensor], wishes: dict[Stop, bool]) -> Stop | None:
        """Checks the latest losses, and agrees with the other processes on whether to stop before the end.

        Args:
            unread: what `_update` returned since the last time.
            wishes: this process's reasons to stop; one that any process has holds for all.
        """
        steps = torch.stack(unread)  # [S, 2] loss and norm
        flags = torch.tensor([*wishes.values()], dtype=steps.dtype, device=steps.device)
        if self.num_processes > 1:
            together = self.accelerator.reduce(torch.cat([steps.flatten(), flags]), reduction="sum")
            steps = together[: steps.numel()].view_as(steps) / self.num_processes
            flags = together[steps.numel() :]
        first = self.state.step - len(unread)
        for offset, (loss, norm) in enumerate(steps.tolist()):
            # Under loss scaling an infinite gradient is routine: the scaler skips the update and lowers the scale.
            if not math.isfinite(loss) or (self.state.scaler is None and not math.isfinite(norm)):
                raise FlexgenError(
                    "objective",
                    f"gave a loss of {loss} and a gradient of norm {norm} at step {first + offset}",
                    "Checkpoints written before are intact. Lower lr, raise num_warmup_steps or set grad_clip, "
                    "and look for infinite values in that step's data.",
                )
            self.state.loss_sum += loss
        self.state.loss_count += len(unread)
        return next((reason for reason, flag in zip(wishes, flags.tolist(), strict=True) if flag), None)

    def _record(self, norm: float, on_record: Callable[[Record], None] | None) -> None:
        """A record of the history, with a validation if there are held-out data."""
        state = self.state
        record: Record = {
            "step": state.step,
            "loss": state.loss_sum / state.loss_count,
            "lr": learning_rate(self.settings, state.step - 1),
            "grad_norm": norm,
            "seconds": state.seconds,
        }
        state.loss_sum, state.loss_count = 0.0, 0
        if self.held_out is not None:
            with state.averaged():
                record["held_out_loss"] = held_out_loss(
                    self.network, self.objective, self.held_out, self.settings, self.accelerator
                )
                state.keep_if_best(record["held_out_loss"])
        state.history.append(record)
        if on_record is not None and self.accelerator.is_main_process:
            on_record(record)

    def _ended(self) -> Stop | None:
        patience = self.settings.patience
        if patience is not None and self.state.num_stale >= patience:
            return "patience"
        return "finished" if self.state.step >= self.settings.num_steps else None

    def _save(self) -> None:
        if self.directory is None:
            return
        if self.accelerator.is_main_process:
            checkpoint = self.state.to_checkpoint(self.identity)
            write_checkpoint(self.directory, checkpoint, keep=self.settings.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _show(self, bar: tqdm[Any]) -> None:
        if not bar.disable and self.state.history:
            last = self.state.history[-1]
            shown: dict[str, object] = {name: last[name] for name in ("loss", "held_out_loss") if name in last}
            bar.set_postfix(shown, refresh=False)
