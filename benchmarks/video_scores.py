"""What the video benchmarks share: held-out clips, videos generated from them, their scores, tables."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexgen.metrics.video import (
    ErrorByDistance,
    RevisitConsistency,
    SeamDiscontinuity,
    frame_change,
    frames_to_observed,
    gradient_energy,
)
from flexgen.metrics.video.arguments import ratio_of_pairs
from flexgen.metrics.video.frechet import frechet_distance
from flexgen.metrics.video.maze_features import STACK, MazeFeatures, WalkStatistics, jackknife_error
from flexgen.video_pipeline import VideoPipeline
from samplers import frames
from samplers.frames import Plan

PLANS: Mapping[str, Callable[[int, int, int], Plan]] = {
    "autoregressive": frames.autoregressive,
    "hierarchy-2": frames.hierarchical,
    "tree": frames.tree,
    "tree + refinement": lambda num_frames, observed, window: frames.refine(frames.tree(num_frames, observed, window)),
}
DISTANCES = (1, 2, 5, 9, 17, 33, 65, math.inf)


class Score(NamedTuple):
    value: float
    error: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        digits = 3 if abs(self.value) < 1 else 2 if abs(self.value) < 100 else 0
        shown = f"{self.value:.{digits}f}"
        return shown if math.isnan(self.error) else f"{shown} ± {self.error:.{digits}f}"


@dataclass(frozen=True)
class Job:
    """One video to generate: how, and from which clip."""

    model: str
    clip: Path
    plan: Plan
    num_steps: int = 10
    scheduler: str | None = None
    seed: int = 0
    cached: bool | None = None  # None: where the network can


@dataclass(frozen=True)
class Made:
    """Videos made in one way, uint8 ``[V, N, h, w, c]``, and what they cost for each generated frame."""

    videos: Tensor
    seconds: Score
    evaluations: float


def load_clips(folder: str | Path) -> list[Path]:
    """The held-out clips of a folder, in order."""
    clips = sorted(Path(folder).glob("clip-*.npy"))
    if len(clips) < 3:
        command = "flexgen render output=mazes/held_out num_clips=24 seed=1"
        raise SystemExit(f"{folder} holds {len(clips)} held-out clips. Render them: {command}, or pass --data.")
    return clips


def read_clips(clips: Iterable[Path]) -> Tensor:
    return torch.from_numpy(np.stack([np.load(clip) for clip in clips]))


def generate(job: Job) -> tuple[np.ndarray, float, float]:
    """The video, the processor seconds and the frame evaluations of a generated frame; on one thread."""
    torch.set_num_threads(1)
    pipe = VideoPipeline.from_pretrained(job.model)
    given = np.load(job.clip)[list(job.plan.observed)]
    began = time.process_time()
    out = pipe(
        given,
        num_frames=job.plan.num_frames,
        plan=job.plan,
        observed_index=job.plan.observed,
        num_inference_steps=job.num_steps,
        scheduler=job.scheduler,
        cached=job.cached,
        generator=job.seed,
    )
    seconds = (time.process_time() - began) / job.plan.num_generated
    return out.frames, seconds, out.frame_evaluations


def generate_all(jobs: Sequence[Sequence[Job]], *, processes: int) -> Iterable[Made]:
    """For each way the videos of its jobs, as soon as they are there; processes share the jobs."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) if processes > 1 else None
    try:
        ways = [[pool.submit(generate, job) for job in way] for way in jobs] if pool else []
        for number, way in enumerate(jobs):
            done = [future.result() for future in ways[number]] if pool else [generate(job) for job in way]
            videos = torch.from_numpy(np.stack([video for video, *_ in done]))
            yield Made(videos, mean_of([seconds for _, seconds, _ in done]), done[0][2])
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def mean_of(values: Sequence[float]) -> Score:
    """Mean and its standard error."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Score(float(np.mean(values)), error)


def frame_windows(plan: Plan) -> Tensor:
    """The window that drew each frame last, ``[N]``; -1 where a frame is given."""
    number = torch.full((plan.num_frames,), -1)
    for place, window in enumerate(plan.windows):
        number[list(window.target)] = place
    return number


def seam_kinds(plan: Plan) -> dict[str, Tensor]:
    """Where each kind of seam lies between neighbouring frames, bool ``[N - 1]``.

    "given" between given and generated frames, "window" between frames that different windows drew, "unseen" on both
    sides of ``plan.seams``: frames that no window held together with both neighbours.
    """
    number = frame_windows(plan)
    changes, given = number[1:] != number[:-1], number < 0
    unseen = torch.zeros(plan.num_frames - 1, dtype=torch.bool)
    for centre in plan.seams:
        unseen[centre - 1 : centre + 1] = True
    return {
        "given": given[1:] != given[:-1],
        "window": changes & ~given[1:] & ~given[:-1],
        "unseen": unseen,
    }


def seam_scores(videos: Tensor, truth: Tensor | None, plan: Plan) -> dict[str, Score]:
    """Change across each kind of seam over change inside, and over the same of real videos at the same places."""
    scores = {}
    first = next((f for f in range(plan.num_frames) if f not in set(plan.observed)), 0)
    start = max(0, first - 1)  # given frames that nothing was drawn beside are left out
    for kind, where in seam_kinds(plan).items():
        seams, real_ratio = where[start:], math.nan
        if not seams.any() or seams.all():
            scores[f"{kind} seams"] = scores[f"{kind} seams, real"] = Score(math.nan)
            continue
        metric = SeamDiscontinuity()
        metric.update(videos[:, start:], seams)
        if truth is not None:
            metric.update(truth[:, start:], seams, real=True)
        found = metric.compute()
        real_ratio = float(found["real_ratio"])
        scores[f"{kind} seams"] = Score(float(found["ratio"]), float(found["ratio_se"]))
        scores[f"{kind} seams, real"] = Score(real_ratio, float(found["real_ratio_se"]))
    return scores


def look_scores(videos: Tensor, truth: Tensor, reference: Tensor, network: MazeFeatures) -> dict[str, Score]:
    """How generated frames look and move: motion and sharpness against `truth`, video by video, the rest against
    `reference`.
    """
    change = frame_change(videos)
    walks = WalkStatistics(network)
    walks.update(reference, real=True)
    walks.update(videos)
    walked = walks.compute()
    return {
        "frechet": frechet(videos, reference, network),
        "motion": paired(change, frame_change(truth)),
        "still": mean_of((change < 1.0).double().mean(1).tolist()),
        "sharpness": paired(gradient_energy(videos), gradient_energy(truth)),
        "flawed": Score(float(walked["flawed"]), float(walked["flawed_se"])),
        "speed off, cm": Score(100 * float(walked["speed_distance"]), 100 * float(walked["speed_distance_se"])),
        "turn off, deg": Score(float(walked["turn_distance"]), float(walked["turn_distance_se"])),
        "near wall": Score(float(walked["near_wall"]), float(walked["near_wall_se"])),
        "receding": Score(float(walked["receding"]), float(walked["receding_se"])),
    }


def paired(figures: Tensor, others: Tensor) -> Score:
    """The ratio of the means of ``[V, n]`` and ``[V, m]``, figures of generated and true videos of the same clips."""
    ratio, error = ratio_of_pairs(figures.mean(1), others.mean(1))
    return Score(float(ratio), float(error))


def revisit_score(videos: Tensor, network: MazeFeatures) -> Score:
    """Do views look the same where the walker comes back to them, by poses that are reckoned from the videos?"""
    revisits = RevisitConsistency()
    revisits.update(videos, network.reckon(videos))
    found = revisits.compute()
    return Score(float(found["ratio"]), float(found["ratio_se"]))


@torch.no_grad()
def frechet(videos: Tensor, reference: Tensor, network: MazeFeatures) -> Score:
    """The Frechet distance of all stacks of frames; its error by leaving out one generated video after the other."""
    if len(videos) * (videos.shape[1] - STACK + 1) < 2 * network.num_features:
        return Score(math.nan)  # too few stacks for a covariance
    found, real = (network.features(part, stride=1).double() for part in (videos, reference))
    real = real.flatten(0, 1)
    moments = real.mean(0), real.mT.cov()

    def score(kept: Tensor) -> Tensor:
        rows = found[kept].flatten(0, 1)
        return frechet_distance(*moments, rows.mean(0), rows.mT.cov())

    every = torch.arange(len(found))
    if len(found) < 2:
        return Score(float(score(every)))
    left_out = torch.stack([score(every[every != video]) for video in every])
    return Score(float(score(every)), float(jackknife_error(left_out)))


def error_scores(videos: Tensor, truth: Tensor, plan: Plan) -> dict[str, Score]:
    """PSNR of generated frames by their distance to the nearest given one, in frames."""
    errors = ErrorByDistance(DISTANCES)
    errors.update(videos, truth, frames_to_observed(frame_windows(plan) < 0))
    return {
        bin_name(a, b): Score(float(value))
        for a, b, value in zip(DISTANCES, DISTANCES[1:], errors.compute()["psnr"], strict=False)
    }


def bin_name(first: float, stop: float) -> str:
    if math.isinf(stop):
        return f"{first:.0f}-"
    return f"{first:.0f}" if stop == first + 1 else f"{first:.0f}-{stop - 1:.0f}"


def format_table(title: str, rows: Mapping[str, Mapping[str, Score]]) -> str:
    """A table of text: a line a row, a column for each score that any row has, in the order of their first coming."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [["", *columns]]
    cells += [[name, *(str(row[c]) if c in row else "-" for c in columns)] for name, row in rows.items()]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns) + 1)]
    lines = [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    return "\n".join([title, *(line.rstrip() for line in lines), ""])
