"""``flexgen video``: generates a long video from a trained backbone."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from flexgen.cli.compose import build
from flexgen.cli.parameters import read
from flexgen.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from flexgen.video_pipeline import VideoPipeline

__all__ = ["run"]


@dataclass(frozen=True)
class Parameters:
    """The keys of configs/video.yaml."""

    model: Path
    output: Path
    num_frames: int
    observed: Path | None
    num_observed: int | None
    observed_index: tuple[int, ...] | None
    num_inference_steps: int
    scheduler: str | None
    history_guidance: float
    seed: int
    batch_size: int
    fps: int
    progress: bool | None
    overwrite: bool
    plan: dict[str, Any]

    def __post_init__(self) -> None:
        if self.num_observed is not None and self.num_observed < 1:
            raise ConfigError("num_observed", f"is {self.num_observed}", "Pass at least 1, or leave it out.")
        if self.num_observed is not None and self.observed is None:
            raise ConfigError("num_observed", f"is {self.num_observed}", "Say of which video: observed=...")


def run(config: DictConfig) -> None:
    """Config: configs/video.yaml."""
    chosen = read(Parameters, config)
    pipe = _pipeline(chosen.model)
    observed = _observed(chosen, pipe)
    given = range(len(observed)) if chosen.observed_index is None else chosen.observed_index
    plan = build(
        {
            **OmegaConf.to_container(config.plan, resolve=True),  # type: ignore[dict-item]
            "num_frames": chosen.num_frames,
            "observed": sorted(given),
            "window": pipe.backbone.window,
        },
        at="plan",
    )
    began = time.monotonic()
    out = pipe(
        observed,
        num_frames=chosen.num_frames,
        observed_index=chosen.observed_index,
        plan=plan,
        num_inference_steps=chosen.num_inference_steps,
        scheduler=chosen.scheduler,
        history_guidance=chosen.history_guidance,
        generator=chosen.seed,
        output_dir=chosen.output,
        output_type="mp4",
        fps=chosen.fps,
        batch_size=chosen.batch_size,
        overwrite=chosen.overwrite,
        progress=sys.stderr.isatty() if chosen.progress is None else chosen.progress,
    )
    made, seconds = plan.num_generated, time.monotonic() - began
    print(f"{plan.name}: {made} frames in {len(plan.windows)} windows and {plan.critical_path} waves, {seconds:.0f} s")
    print(f"{out.frame_evaluations:.1f} frame evaluations per generated frame")
    print(f"{chosen.output}/: video.mp4, contact_sheet.png, plan.json, frames/")


def _pipeline(folder: Path) -> VideoPipeline:
    # Imported late: what is wrong with the arguments is said at once.
    from flexgen.video_pipeline import VideoPipeline

    try:
        return VideoPipeline.from_pretrained(folder)
    except CheckpointError as error:
        raise CheckpointError("model", error.problem, error.fix) from error


def _observed(chosen: Parameters, pipe: VideoPipeline) -> np.ndarray:
    from flexgen.data.video_files import read_frames

    height, width, channels = pipe.backbone.frame_shape
    if chosen.observed is None:
        return np.zeros((0, height, width, channels), np.uint8)
    if not chosen.observed.exists():
        raise DataError("observed", f"{str(chosen.observed)!r} is not there", "Name a video or a folder of images.")
    try:
        frames = list(itertools.islice(read_frames(chosen.observed, size=height), chosen.num_observed))
    except DataError as error:
        raise DataError("observed", error.problem, error.fix) from error
    if chosen.num_observed is not None and len(frames) < chosen.num_observed:
        raise DataError(
            "num_observed", f"is {chosen.num_observed}, but the video has {len(frames)}", "Take fewer, or leave it out."
        )
    if len(frames) > chosen.num_frames:
        problem = f"is {chosen.num_frames}, but {len(frames)} frames are observed"
        raise DataError("num_frames", problem, "Ask for a longer video, or take fewer frames with num_observed.")
    return np.stack(frames)
