"""``flexgen video``: generates a long video from a trained backbone."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig

from flexgen.cli.compose import build
from flexgen.cli.parameters import read
from flexgen.errors import CheckpointError, ConfigError, DataError, FlexgenError
from flexgen.processes import Processes

if TYPE_CHECKING:
    from flexgen.video_pipeline import VideoPipeline

__all__ = ["run"]

# What the pipeline calls otherwise.
_KEYS = {"observed_frames": "observed", "output_dir": "output", "generator": "seed"}


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
    observed_noise: float
    device: str | None
    dtype: Literal["float32", "bfloat16", "float16"] | None
    cached: bool | None
    seed: int
    batch_size: int
    fps: int
    progress: bool | None
    overwrite: bool
    plan: dict[str, Any]

    def __post_init__(self) -> None:
        for name in ("num_frames", "batch_size", "num_inference_steps", "fps", "num_observed"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ConfigError(name, f"is {number}", "Pass at least 1.")
        if self.seed < 0:
            raise ConfigError("seed", f"is {self.seed}", "Pass at least 0.")
        if self.fps > 1000:
            raise ConfigError("fps", f"is {self.fps}", "Pass at most 1000.")
        levels = self.plan.get("levels")
        if isinstance(levels, int) and levels > self.num_frames:  # each more than the one before costs a search
            problem = f"is {levels} for {self.num_frames} frames"
            raise ConfigError("plan.levels", problem, "Pass 2 to 5, as the paper does; at most one a frame.")
        if self.observed is not None and not (self.observed.exists() or _is_example(self.observed)):
            problem = f"{str(self.observed)!r} does not exist"
            raise DataError("observed", problem, "Name a video, a .npy file or a folder of images.")
        if self.num_observed is not None and self.observed is None:
            raise ConfigError("num_observed", f"is {self.num_observed}", "Say of which video: observed=...")


def run(config: DictConfig) -> None:
    """Config: configs/video.yaml."""
    chosen = read(Parameters, config)
    pipe = _pipeline(chosen.model)
    # Imported late, as is what needs torch: what is wrong with the arguments is said at once.
    from flexgen.video.given import given_frames, given_places
    from samplers.frames import AdaptivePlan, Plan

    began = time.monotonic()
    with _errors_by_key():
        pipe.to(chosen.device or _best_device())
        observed = given_frames(
            chosen.observed,
            frame_shape=pipe.backbone.frame_shape,
            num_frames=chosen.num_frames,
            num_observed=chosen.num_observed,
        )
        given = given_places(chosen.observed_index, len(observed), chosen.num_frames)
        about = {"num_frames": chosen.num_frames, "observed": sorted(given), "window": pipe.backbone.window}
        out = pipe(
            observed,
            num_frames=chosen.num_frames,
            observed_index=given,
            plan=build({**chosen.plan, **about}, at="plan", kind=(Plan, AdaptivePlan)),
            num_inference_steps=chosen.num_inference_steps,
            scheduler=chosen.scheduler,
            history_guidance=chosen.history_guidance,
            observed_noise=chosen.observed_noise,
            cached=chosen.cached,
            dtype=chosen.dtype,
            generator=chosen.seed,
            output_dir=chosen.output,
            output_type="mp4",
            fps=chosen.fps,
            batch_size=chosen.batch_size,
            overwrite=chosen.overwrite,
            progress=sys.stderr.isatty() if chosen.progress is None else chosen.progress,
        )
    plan = out.plan
    made, seconds = plan.num_generated, time.monotonic() - began
    print(f"{plan.name}: {made} frames in {len(plan.windows)} windows and {plan.critical_path} waves, {seconds:.0f} s")
    print(f"{out.frame_evaluations:.1f} frame evaluations per generated frame")
    print(f"{chosen.output}/: video.mp4, contact_sheet.png, plan.json, frames/")


def _is_example(path: Path) -> bool:
    from flexgen.data.examples import or_example

    return or_example(path).exists()


def _pipeline(folder: Path) -> VideoPipeline:
    from flexgen.video_pipeline import VideoPipeline

    try:
        return VideoPipeline.from_pretrained(folder)
    except CheckpointError as error:
        raise CheckpointError("model", error.problem, error.fix) from error


def _best_device() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{Processes().local_rank % torch.cuda.device_count()}"


@contextlib.contextmanager
def _errors_by_key() -> Iterator[None]:
    """Errors of the pipeline in the words of the command."""
    try:
        yield
    except FlexgenError as error:
        fix = error.fix.replace("=True", "=true").replace("=False", "=false")
        raise type(error)(_KEYS.get(error.argument, error.argument), error.problem, fix) from error
