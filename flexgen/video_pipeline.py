"""Long videos from a trained backbone: a plan of windows, walked on the disk, frame by frame."""

from __future__ import annotations

import operator
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.data.video_files import VideoWriter, contact_sheet, read_frames
from flexgen.errors import ConfigError, DataError, PlanError
from flexgen.rng import Randomness
from flexgen.video.backbone import VideoBackbone
from flexgen.video.sampling import WindowSampler
from flexgen.video.storage import FrameStore
from flexgen.video.store_folder import SIDECAR
from samplers import frames as plans
from samplers.executor import execute, resample
from samplers.frames import Plan
from samplers.team import Team

__all__ = ["VideoOutput", "VideoPipeline"]

Frames = npt.NDArray[np.uint8]
OnStep = Callable[[int, Tensor], object]

PLANS: Mapping[str, Callable[..., Plan]] = {
    "autoregressive": plans.autoregressive,
    "long-range": plans.long_range,
    "hierarchy-2": plans.hierarchical,
    "tree": plans.tree,
}

PLAN_FILE, VIDEO_FILE, SHEET_FILE = "plan.json", "video.mp4", "contact_sheet.png"
_SHEET_FRAMES = 100
_LEAST_SIDE = 256  # of an mp4, in pixels


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

    >>> pipe = VideoPipeline.from_pretrained("checkpoints/mazes32")
    >>> pipe("walk.mp4", num_frames=300, generator=0).frames.shape  # given the frames of walk.mp4
    (300, 32, 32, 3)
    """

    def __init__(self, backbone: VideoBackbone) -> None:
        self.backbone = backbone.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoPipeline:
        """The pipeline of a folder that `save_pretrained` or ``flexgen train`` wrote."""
        return cls(VideoBackbone.from_pretrained(folder))

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """See ``VideoBackbone.save_pretrained``."""
        self.backbone.save_pretrained(folder, half=half)

    def to(self, device: torch.device | str) -> VideoPipeline:
        """Moves the network; itself, for chaining."""
        self.backbone.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def plan(
        self,
        plan: str | Plan,
        *,
        num_frames: int,
        observed_index: Iterable[int] = (),
    ) -> Plan:
        """A plan by name for this network's window, or a plan of one's own, checked against it; nothing is run.

        Args:
            plan: ``"autoregressive"``, ``"long-range"``, ``"hierarchy-2"``, ``"tree"``, or a ``samplers.frames.Plan``.
            num_frames: N.
            observed_index: which frames are given.
        """
        given = tuple(sorted(observed_index))
        if isinstance(plan, str):
            if plan not in PLANS:
                raise PlanError("plan", f"is {plan!r}", f"Choose one of {', '.join(PLANS)}, or pass a plan.")
            return PLANS[plan](num_frames, given, self.backbone.window)
        if not isinstance(plan, Plan):
            raise PlanError("plan", f"is a {type(plan).__name__}", "Pass a name or a plan of samplers.frames.")
        if plan.num_frames != num_frames or tuple(plan.observed) != given:
            problem = f"is for {plan.num_frames} frames of which {len(plan.observed)} are given"
            raise PlanError("plan", problem, f"The call asks for {num_frames}, {len(given)} given: let them agree.")
        if plan.window > self.backbone.window:
            problem = f"has windows of {plan.window} frames"
            raise PlanError("plan", problem, f"The network was trained on {self.backbone.window} at once.")
        return plan

    def __call__(
        self,
        observed_frames: str | Path | Frames | Tensor | None = None,
        *,
        num_frames: int,
        observed_index: Iterable[int] | None = None,
        plan: str | Plan = "tree",
        num_inference_steps: int = 10,
        scheduler: str | None = None,
        history_guidance: float = 0.0,
        observed_noise: float = 0.0,
        cached: bool | None = None,
        dtype: torch.dtype | None = None,
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
            observed_index: the places of the observed frames, any of them; default: the first n.
            plan: by name or value, see `plan`.
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
            overwrite: remove the video that is in `output_dir`, and make this one from the start.
            callback_on_step_end: called with the number of each denoising step and the targets' values then.

        Raises:
            DataError: observed frames that cannot be read or do not fit.
            PlanError: an unknown plan, or one that does not fit the call or the network.
            CheckpointError: an output folder of another call, damaged or full.
        """
        num_frames = whole_number("num_frames", num_frames, 1, DataError)
        if output_type not in ("np", "pt", "mp4"):
            raise ConfigError("output_type", f"is {output_type!r}", "Choose 'np', 'pt' or 'mp4'.")
        if output_type == "mp4" and output_dir is None:
            raise ConfigError("output_dir", "is None", "Name a folder for the mp4.")
        if output_dir is not None and generator is None:
            raise ConfigError("generator", "is None", "Pass a seed, so that the same call can go on with its work.")
        if output_type == "mp4" and output_dir is not None:
            VideoWriter(Path(output_dir) / VIDEO_FILE, fps=fps)  # says now what is wrong with it
        observed = self._read(observed_frames)
        index = _observed_index(observed_index, len(observed), num_frames)
        chosen = self.plan(plan, num_frames=num_frames, observed_index=index)
        order = np.argsort(index) if index else np.zeros(0, np.int64)
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
        team = Team()
        if team.size > 1 and output_dir is None:
            raise ConfigError("output_dir", f"is None, but {team.size} processes share the work", "Name a folder.")
        folder = Path(tempfile.mkdtemp(prefix="flexgen-")) if output_dir is None else Path(output_dir)
        try:
            if overwrite:
                team.first(lambda: _remove(folder))
            store = FrameStore.open(
                folder / "frames",
                shape=(num_frames, *self.backbone.frame_shape),
                observed=sorted(index),
                observed_frames=observed[order],
                request=model.settings(),
            )
            team.first(lambda: (folder / PLAN_FILE).write_text(chosen.to_json(), encoding="utf-8"))
            execute(model, chosen, store, seed=rng.seed_from(generator), batch_size=batch_size, progress=progress)
            video = sheet = None
            frames: Any = store.frames()
            if output_dir is None:
                frames = np.array(frames)
            else:
                sheet = team.first(lambda: _write_sheet(frames, folder / SHEET_FILE, index))
                if output_type == "mp4":
                    video = team.first(lambda: _write_video(frames, folder / VIDEO_FILE, fps))
        finally:
            team.close()
            if output_dir is None:
                shutil.rmtree(folder, ignore_errors=True)
        evaluations = chosen.evaluations_per_frame(model.evaluations_per_window, cached=model.cached)
        if output_type == "pt":
            frames = torch.from_numpy(np.array(frames))
        return VideoOutput(frames, chosen, None if output_dir is None else folder, video, sheet, evaluations)

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
        folder = Path(output_dir)
        store = FrameStore.existing(folder / "frames")
        plan = Plan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
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
        frames, video, team = store.frames(), None, Team()
        sheet = team.first(lambda: _write_sheet(frames, folder / SHEET_FILE, plan.observed))
        if (folder / VIDEO_FILE).exists():
            video = team.first(lambda: _write_video(frames, folder / VIDEO_FILE, fps))
        team.close()
        evaluations = plan.evaluations_per_frame(model.evaluations_per_window, cached=model.cached)
        return VideoOutput(frames, plan, folder, video, sheet, evaluations)

    def _read(self, observed: str | Path | Frames | Tensor | None) -> Frames:
        """The observed frames, uint8 ``[n, h, w, c]``."""
        height, width, channels = self.backbone.frame_shape
        if observed is None:
            return np.zeros((0, height, width, channels), np.uint8)
        if isinstance(observed, str | Path):
            try:
                return np.stack(list(read_frames(observed, size=height)))
            except DataError as error:
                raise DataError("observed_frames", error.problem, error.fix) from error
        array = observed.cpu().numpy() if isinstance(observed, Tensor) else np.asarray(observed)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (height, width, channels):
            raise DataError(
                "observed_frames",
                f"are {array.dtype} of shape {array.shape}",
                f"Pass uint8 [n, {height}, {width}, {channels}], or a path, which is cropped and resized.",
            )
        return array

    def __repr__(self) -> str:
        height, width, _ = self.backbone.frame_shape
        million = sum(weight.numel() for weight in self.backbone.network.parameters()) / 1e6
        return (
            f"VideoPipeline({height} x {width} pixels, windows of {self.backbone.window}, {million:.1f} M parameters)"
        )


def _observed_index(index: Iterable[int] | None, num_observed: int, num_frames: int) -> list[int]:
    if index is None and num_observed > num_frames:
        problem = f"is {num_frames}, but {num_observed} frames are observed"
        raise DataError("num_frames", problem, "Ask for a longer video, or pass fewer frames.")
    try:
        chosen = list(range(num_observed)) if index is None else [operator.index(place) for place in index]
    except TypeError as error:
        raise DataError("observed_index", f"is {index!r}", "Pass whole numbers, such as [0, 20, 40].") from error
    if len(chosen) != num_observed:
        raise DataError(
            "observed_index", f"names {len(chosen)} places for {num_observed} observed frames", "Name one for each."
        )
    if len(set(chosen)) < len(chosen):
        raise DataError("observed_index", "names a place twice", "Name each once.")
    outside = [place for place in chosen if not 0 <= place < num_frames]
    if outside:
        raise DataError("observed_index", f"holds {outside[0]}", f"Frames are numbered 0 to {num_frames - 1}.")
    return chosen


def _remove(folder: Path) -> None:
    """The video that an earlier call left; nothing else."""
    if (folder / "frames" / SIDECAR).is_file():
        shutil.rmtree(folder / "frames")
    for name in (PLAN_FILE, VIDEO_FILE, SHEET_FILE):
        (folder / name).unlink(missing_ok=True)


def _write_video(frames: Frames, path: Path, fps: int) -> Path:
    """Small frames are enlarged, pixel by pixel: players show them, and the codec's halved colours cost nothing."""
    zoom = max(1, _LEAST_SIDE // min(frames.shape[1:3]))
    partial = path.with_name(f".partial-{path.name}")
    with VideoWriter(partial, fps=fps) as writer:
        for frame in frames:
            writer.write(np.asarray(frame).repeat(zoom, 0).repeat(zoom, 1))
    return partial.replace(path)


def _write_sheet(frames: Frames, path: Path, observed: Iterable[int]) -> Path:
    contact_sheet(frames, path, every=max(1, -(-len(frames) // _SHEET_FRAMES)), observed=observed)
    return path
