"""Long videos from a trained backbone: a plan of windows, walked on the disk, frame by frame."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import folder_path, renamed, usable_device, whole_number
from flexgen.data.video_files import VideoWriter
from flexgen.errors import CheckpointError, ConfigError, DataError, PlanError
from flexgen.processes import Processes
from flexgen.rng import Randomness
from flexgen.video.backbone import VideoBackbone
from flexgen.video.given import given_frames, given_places
from flexgen.video.options import seed_or_source
from flexgen.video.sampling import WindowSampler
from flexgen.video.storage import FrameStore
from flexgen.video_folder import (
    SHEET_FILE,
    VIDEO_FILE,
    errors_of,
    read_plan,
    require_ours,
    start_anew,
    walked_plan,
    write_pictures,
    write_plan,
)
from samplers import frames as plans
from samplers.executor import execute, resample
from samplers.frames import AdaptivePlan, Plan
from samplers.frames.distances import Distance, DistanceName, name_distance
from samplers.frames.plan import ranges

__all__ = ["VideoOutput", "VideoPipeline"]

Frames = npt.NDArray[np.uint8]
OnStep = Callable[[int, Tensor], object]


def _lpips() -> Distance:
    from flexgen.metrics.video.lpips import LPIPS  # loads torchmetrics

    with renamed(network="distance"):
        return LPIPS().distance


name_distance("lpips", _lpips)


@dataclass(frozen=True)
class VideoOutput:
    """A generated video.

    Args:
        frames: uint8 ``[N, h, w, c]``: an array, a tensor, or, with an output folder, a read-only memory map.
        plan: how it was made.
        folder: of the frames on the disk, or None.
        video: the mp4, where one was asked for.
        contact_sheet: the PNG, where a folder was given.
        frame_evaluations: frames that passed the network, over frames made.
    """

    frames: Any
    plan: Plan
    folder: Path | None
    video: Path | None
    contact_sheet: Path | None
    frame_evaluations: float

    def __repr__(self) -> str:
        where = f" in {self.folder}" if self.folder else ""
        return f"VideoOutput({len(self.frames)} frames by {self.plan.name}{where})"


class VideoPipeline:
    """p(all other frames | the observed ones), for videos longer than the network sees at once.

    Args:
        backbone: see `VideoBackbone`; of a checkpoint, ``VideoPipeline.from_pretrained(folder)``.

    >>> pipe = VideoPipeline.from_pretrained("mazes32")  # the example that comes with the package
    >>> pipe("walk.mp4", num_frames=300, generator=0).frames.shape  # given the frames of walk.mp4
    (300, 32, 32, 3)
    """

    def __init__(self, backbone: VideoBackbone) -> None:
        self.backbone = backbone.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoPipeline:
        """The pipeline of a folder that ``flexgen train`` or `save_pretrained` wrote, or of the example ``mazes32``."""
        return cls(VideoBackbone.from_pretrained(folder))

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """See ``VideoBackbone.save_pretrained``."""
        self.backbone.save_pretrained(folder, half=half)

    def to(self, device: torch.device | str) -> VideoPipeline:
        """Moves the network, to ``"cuda"`` say; itself, for chaining.

        Raises:
            ConfigError: a device that this machine has not.
        """
        self.backbone.to(usable_device("device", device))
        return self

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def plan(
        self,
        plan: str | Plan | AdaptivePlan,
        *,
        num_frames: int,
        observed_index: Iterable[int] = (),
        distance: Distance | DistanceName | None = None,
    ) -> Plan | AdaptivePlan:
        """A plan by name for this network's window, or a plan of one's own, checked against it; nothing is run.

        Args:
            plan: a name, see ``samplers.frames.by_name``, or a plan of ``samplers.frames``.
            num_frames: N.
            observed_index: which frames are given.
            distance: by which adaptive plans compare frames: ``"pixels"`` (default), ``"lpips"`` (FDM's), or a function
                of two batches uint8 ``[M, h, w, c]``, such as ``LPIPS().distance``.
        """
        given = tuple(sorted(observed_index))
        if isinstance(plan, str):
            return plans.by_name(plan, num_frames, given, self.backbone.window, distance=distance)
        if not isinstance(plan, Plan | AdaptivePlan):
            raise PlanError("plan", f"is a {type(plan).__name__}", "Pass a name or a plan of samplers.frames.")
        if distance is not None:
            raise PlanError("distance", "is given beside a plan", "Leave it out: the plan has its own.")
        if plan.num_frames != num_frames or tuple(plan.observed) != given:
            problem = f"is for {plan.num_frames} frames of which {len(plan.observed)} are given"
            if (plan.num_frames, len(plan.observed)) == (num_frames, len(given)):
                problem = f"is for other given frames ({ranges(plan.observed)})"
            told = f"The call asks for {num_frames}, {len(given)} given ({ranges(given) or 'none'}): let them agree."
            raise PlanError("plan", problem, told)
        if plan.window > self.backbone.window:
            problem = f"has windows of {plan.window} frames"
            raise PlanError("plan", problem, f"The network was trained on {self.backbone.window} at once.")
        return plan

    def __call__(
        self,
        observed_frames: str | Path | Frames | Tensor | None = None,
        *,
        num_frames: int,
        num_observed: int | None = None,
        observed_index: Iterable[int] | None = None,
        plan: str | Plan | AdaptivePlan = "hierarchy-2",
        distance: Distance | DistanceName | None = None,
        num_inference_steps: int = 10,
        scheduler: str | None = None,
        history_guidance: float = 0.0,
        observed_noise: float = 0.0,
        cached: bool | None = None,
        dtype: torch.dtype | str | None = None,
        generator: Randomness | int | None = None,
        output_dir: str | Path | None = None,
        output_type: Literal["np", "pt", "mp4"] = "np",
        fps: int = 10,
        batch_size: int = 1,
        progress: bool = False,
        overwrite: bool = False,
        callback_on_step_end: OnStep | None = None,
    ) -> VideoOutput:
        """Generates the frames that are not observed.

        Args:
            observed_frames: uint8 ``[n, h, w, c]``, or a video file, a ``.npy`` file or a folder of images, which are
                cropped and resized to the network's frames; None where nothing is observed.
            num_frames: N, of the whole video.
            num_observed: take so many of `observed_frames`, the first ones; default: all.
            observed_index: the places of the observed frames, any of them; default: the first n.
            plan, distance: by name or value, see `plan`.
            num_inference_steps, scheduler, history_guidance, observed_noise, cached, dtype: see `WindowSampler`.
            generator: a seed, or what one is drawn from; None: a fresh one. With `output_dir`, pass a seed, by which
                the same call finds its work again.
            output_dir: keeps the frames on the disk from the first window on. Killed at any moment, the same call goes
                on and ends with the same frames. None: in memory in the end, and nowhere else. Several processes
                (torchrun) share the work through this folder; the first of them writes the files beside the frames.
            output_type: ``"np"``, ``"pt"``, or ``"mp4"`` to write a video file as well, which needs `output_dir`.
            fps: of the video file.
            batch_size: windows of a wave evaluated at once; 1 suits a CPU. Another size may round a pixel otherwise.
            progress: show a bar.
            overwrite: remove the video that is in `output_dir`, and make this one from the start. Other files stay.
            callback_on_step_end: called with the number of each denoising step and the targets' values then.

        Raises:
            DataError: observed frames that cannot be read or do not fit.
            PlanError: an unknown plan, or one that does not fit the call or the network.
            ConfigError: an option that the network or this machine has not.
            CheckpointError: an output folder of another call, damaged, full or not to be written.
        """
        num_frames = whole_number("num_frames", num_frames, 1, DataError)
        batch_size, fps = whole_number("batch_size", batch_size, 1, ConfigError), whole_number("fps", fps, 1, DataError)
        generator = seed_or_source(generator, needs_seed=output_dir is not None)
        _check_output(output_type, output_dir, fps)
        observed = given_frames(
            observed_frames, frame_shape=self.backbone.frame_shape, num_frames=num_frames, num_observed=num_observed
        )
        index = given_places(observed_index, len(observed), num_frames)
        chosen = self.plan(plan, num_frames=num_frames, observed_index=index, distance=distance)
        order = np.argsort(index) if index else np.zeros(0, np.int64)
        with renamed(on_step="callback_on_step_end"):
            model = WindowSampler(
                self.backbone,
                num_inference_steps=num_inference_steps,
                scheduler=scheduler,
                history_guidance=history_guidance,
                observed_noise=observed_noise,
                cached=cached,
                dtype=dtype,
                on_step=callback_on_step_end,
            )
        processes = Processes()
        if processes.size > 1 and output_dir is None:
            raise ConfigError("output_dir", f"is None, but {processes.size} processes share the work", "Name a folder.")
        folder = Path(tempfile.mkdtemp(prefix="flexgen-")) if output_dir is None else Path(output_dir)
        try:
            with errors_of(folder):
                processes.first(lambda: require_ours(folder))
                open_store = partial(
                    FrameStore.open,
                    folder / "frames",
                    shape=(num_frames, *self.backbone.frame_shape),
                    observed=sorted(index),
                    observed_frames=observed[order],
                    request=model.settings(),
                )
                if overwrite:
                    processes.first(lambda: start_anew(folder, open_store))
                processes.first(lambda: bool(open_store()))  # one makes it, the others find it
                store = open_store()
                # What is there may be of a video that this call is no repetition of: it stays until that is known.
                processes.first(lambda: write_plan(folder, chosen, store, replace=False))
                execute(model, chosen, store, seed=rng.seed_from(generator), batch_size=batch_size, progress=progress)
                processes.first(lambda: write_plan(folder, chosen, store, replace=True))
            video = sheet = None
            frames: Any = store.frames()
            if output_dir is None:
                frames = np.array(frames)
            else:
                is_shown = output_type == "mp4"
                processes.first(lambda: write_pictures(folder, frames, index, fps=fps if is_shown else None))
                sheet, video = folder / SHEET_FILE, folder / VIDEO_FILE if is_shown else None
            walked = walked_plan(chosen, store)
        finally:
            if output_dir is None:
                shutil.rmtree(folder, ignore_errors=True)
        evaluations = chosen.evaluations_per_frame(model.evaluations_per_window, cached=model.cached)
        if output_type == "pt":
            frames = torch.from_numpy(np.array(frames))
        return VideoOutput(frames, walked, None if output_dir is None else folder, video, sheet, evaluations)

    def resample(
        self,
        output_dir: str | Path,
        *,
        window: int,
        draw: int = 1,
        redo_dependents: bool = False,
        fps: int = 10,
        batch_size: int = 1,
        progress: bool = False,
    ) -> VideoOutput:
        """Draws one window of a finished video again, with other random numbers.

        Args:
            output_dir: of the call that made the video.
            window: its number in ``output.plan.windows``.
            draw: names the random numbers; 0 are those of the first time.
            redo_dependents: also draw again whatever was drawn given its frames.
            fps: of the video file, if there is one.
            batch_size, progress: as in the call.
        """
        folder, fps = folder_path("output_dir", output_dir), whole_number("fps", fps, 1, DataError)
        with errors_of(folder):
            require_ours(folder)
            store = FrameStore.existing(folder / "frames")
            plan = read_plan(folder)
            if isinstance(plan, AdaptivePlan) and len(store.notes.get("windows", ())) < plan.num_evaluations:
                problem = f"{str(folder)!r} holds a video that is not finished"
                raise CheckpointError("output_dir", problem, "Repeat the call that began it.")
            model = WindowSampler.from_settings(self.backbone, store.request)
            resample(
                model,
                plan,
                store,
                window=window,
                seed=int(store.request["run"]["seed"]),
                draw=draw,
                redo_dependents=redo_dependents,
                batch_size=batch_size,
                progress=progress,
            )
        frames, processes = store.frames(), Processes()
        is_shown = processes.first((folder / VIDEO_FILE).exists)
        processes.first(lambda: write_pictures(folder, frames, plan.observed, fps=fps if is_shown else None))
        sheet, video = folder / SHEET_FILE, folder / VIDEO_FILE if is_shown else None
        evaluations = plan.evaluations_per_frame(model.evaluations_per_window, cached=model.cached)
        return VideoOutput(frames, walked_plan(plan, store), folder, video, sheet, evaluations)

    def __repr__(self) -> str:
        height, width, _ = self.backbone.frame_shape
        million = sum(weight.numel() for weight in self.backbone.network.parameters()) / 1e6
        return (
            f"VideoPipeline({height} x {width} pixels, windows of {self.backbone.window}, {million:.1f} M parameters)"
        )


def _check_output(output_type: str, output_dir: str | Path | None, fps: int) -> None:
    if output_type not in ("np", "pt", "mp4"):
        raise ConfigError("output_type", f"is {output_type!r}", "Choose 'np', 'pt' or 'mp4'.")
    if output_dir is not None:
        folder_path("output_dir", output_dir)
    if output_type == "mp4":
        if output_dir is None:
            raise ConfigError("output_dir", "is None", "Name a folder for the mp4.")
        with renamed(path="output_type"):
            VideoWriter(Path(output_dir) / VIDEO_FILE, fps=fps)  # says now that PyAV is missing
