"""Training a video backbone: from a folder of videos to a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.checks import did_you_mean
from flexgen.errors import ConfigError, DataError
from flexgen.laws import MaskLaw, MovingLaw
from flexgen.networks.frame_unet import FrameUNet
from flexgen.rng import Randomness
from flexgen.training import TrainingData, TrainingResult, TrainingSettings, train
from flexgen.training.batches import Batch
from flexgen.training.state import Record
from flexgen.video.backbone import NETWORK_KEYS, VideoBackbone
from flexgen.video.objective import FrameDenoising
from flexgen.video.process import NoiseProcess, PixelScale

__all__ = ["BackboneSettings", "fit_backbone", "pixel_scale"]

_ROWS_FOR_SCALE = 64
# Settings of a network that no weight depends on: a training may begin from a network with others.
_WEIGHTLESS = ("attention", "attention_backend", "dropout")


@dataclass(frozen=True)
class BackboneSettings:
    """What is trained; how long, is said by `TrainingSettings`.

    Args:
        window: K, the frames that the network sees at once.
        network: arguments of `FrameUNet`; ``sample_size`` and ``in_channels`` are read off the data.
        prediction, betas: see `NoiseProcess`.
        observed_noise, flip: see `FrameDenoising`.
    """

    window: int = 12
    network: dict[str, Any] = field(default_factory=dict)
    prediction: str = "flow"
    betas: str = "linear"
    observed_noise: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        for name in self.network:
            if name not in NETWORK_KEYS:
                fix = f"{did_you_mean(name, NETWORK_KEYS)}Choose among {', '.join(NETWORK_KEYS)}."
                raise ConfigError(f"network.{name}", "is no key of FrameUNet", fix)

    def process(self) -> NoiseProcess:
        return NoiseProcess(self.prediction, self.betas)  # type: ignore[arg-type]


def fit_backbone(
    data: TrainingData,
    law: MaskLaw | MovingLaw,
    settings: BackboneSettings,
    training: TrainingSettings,
    *,
    held_out: TrainingData | None = None,
    start_from: VideoBackbone | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> tuple[VideoBackbone, TrainingResult]:
    """A backbone trained on windows that `law` draws from clips.

    Args:
        data: clips; batches of ``"frames"``, uint8 ``[B, T, h, w, c]``, and ``"present"``, bool ``[B, T]``.
        law: over the T frames of a clip; draws at most ``settings.window`` of them. A law that moves follows the steps;
            validation asks what it asks in the end.
        settings, training: what, and how long.
        held_out: clips to validate on.
        start_from: weights to begin with, of a backbone of the same network, except perhaps for its attention (one-way
            or full), attention backend and dropout; its pixel scale is kept.
        directory, resume, progress, on_record: see ``flexgen.training.train``.
    """
    shape = _frame_shape(data)
    for name, size in (("sample_size", shape[0]), ("in_channels", shape[2])):
        if (told := settings.network.get(name, size)) != size:
            raise ConfigError(f"network.{name}", f"is {told!r}, but the data have {size}", "Leave it out.")
    process = settings.process()
    if start_from is None:
        scale = pixel_scale(data)
        with torch.random.fork_rng(devices=[]):  # initial weights come from the seed, and from nothing else
            torch.manual_seed(rng.key(training.seed, "initial weights"))
            network = FrameUNet(**{**_as_tuples(settings.network), "sample_size": shape[0], "in_channels": shape[2]})
    else:
        _require_same_model(start_from, settings)
        scale, changed = start_from.scale, {k: v for k, v in settings.network.items() if k in _WEIGHTLESS}
        network = FrameUNet.from_config({**start_from.network.config, **changed})
        network.load_state_dict(start_from.network.state_dict())
        if start_from.frame_shape != shape:
            raise ConfigError(
                "start_from", f"is for frames {start_from.frame_shape}, the data have {shape}", "Resize the videos."
            )

    def denoising(law: MaskLaw) -> FrameDenoising:
        noise, flip = settings.observed_noise, settings.flip
        return FrameDenoising(law, process, scale, window=settings.window, observed_noise=noise, flip=flip)

    objective = denoising(law) if isinstance(law, MaskLaw) else _Moving(law, denoising)
    result = train(
        network,
        objective,
        data,
        training,
        held_out=held_out,
        directory=directory,
        resume=resume,
        progress=progress,
        on_record=on_record,
    )
    trained_on = {
        "law": repr(law),
        "clips": len(data),
        "settings": asdict(settings),
        "training": asdict(training),
        "steps": result.step,
        "held_out_loss": result.best_loss if math.isfinite(result.best_loss) else None,
        "begun_from": None if start_from is None else start_from.trained_on,
    }
    backbone = VideoBackbone(network, process, scale, window=settings.window, trained_on=trained_on)
    return backbone.eval(), result


class _Moving:
    """Denoising under a law that moves, a `MovingObjective`."""

    def __init__(self, law: MovingLaw, denoising: Callable[[MaskLaw], FrameDenoising]) -> None:
        self.law, self.denoising = law, denoising

    def at(self, progress: float) -> FrameDenoising:
        return self.denoising(self.law.at(progress))

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        return self.at(1.0)(network, batch, generator)

    def __repr__(self) -> str:
        return f"moving by {self.law!r} from {self.at(0.0)!r}"


def pixel_scale(data: TrainingData) -> PixelScale:
    """Mean and standard deviation of the pixels of evenly spread clips, to three digits."""
    rows = torch.linspace(0, len(data) - 1, min(_ROWS_FOR_SCALE, len(data))).round().long()
    total = square = count = 0.0
    for row in rows:
        pixels = _present_frames(data, row[None])[::8].double() / 255.0
        total, square, count = (
            total + float(pixels.sum()),
            square + float(pixels.square().sum()),
            count + pixels.numel(),
        )
    mean = total / count
    std = math.sqrt(max(square / count - mean * mean, 0.0))
    if std < 1e-3:
        raise DataError("data", f"has pixels that hardly vary (standard deviation {std:.1e} of 1)", "Check the videos.")
    return PixelScale(round(mean, 3), round(std, 3))


def _present_frames(data: TrainingData, rows: Tensor) -> Tensor:
    batch = data.batch(rows)
    if isinstance(batch, Tensor) or "frames" not in batch:
        raise DataError("data", "yields no 'frames'", "Pass clips, such as those of VideoFolder.")
    frames = batch["frames"]
    present = batch.get("present", torch.ones(frames.shape[:2], dtype=torch.bool))
    return frames[present]


def _frame_shape(data: TrainingData) -> tuple[int, int, int]:
    height, width, channels = _present_frames(data, torch.tensor([0])).shape[1:]
    if height != width:
        raise DataError("data", f"has frames of {height} x {width} pixels", "Crop them to a square (size=).")
    return height, width, channels


def _require_same_model(start_from: VideoBackbone, settings: BackboneSettings) -> None:
    if start_from.process != settings.process():
        raise ConfigError(
            "prediction",
            f"is {settings.process()}, start_from has {start_from.process}",
            "Train what it was trained for.",
        )
    for name, value in settings.network.items():
        if name in _WEIGHTLESS:
            continue
        theirs = start_from.network.config.get(name)
        if (list(theirs) if isinstance(theirs, tuple) else theirs) != (
            list(value) if isinstance(value, tuple) else value
        ):
            raise ConfigError(
                f"network.{name}", f"is {value!r}, but start_from has {theirs!r}", "Choose the same network."
            )


def _as_tuples(network: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in network.items()}
