"""How good generated videos are, and what they cost: by steps and schedulers, by plans, over long times, FDM's way.

    flexgen render output=mazes/held_out num_clips=24 seed=1
    python -m benchmarks.video_quality

Videos go on from the first frames of held-out clips; ``--part`` chooses one of five tables, ``--videos`` how many:

    steps   5, 10, 20, 50, 250 steps of Euler, Heun (two evaluations a step), DPM-Solver++ and UniPC, on short videos
            by one plan; but for Euler only rows of up to ``--most-evaluations`` a window, for the time it takes;
    solvers the same schedulers, window by window from the same noise, against the limit of many steps;
    plans   autoregressive, hierarchy-2, tree, and the tree with a sweep of refinement;
    drift   the same over 1000 frames, scored by thirds;
    fdm     the default (hierarchy-2, ten steps, observed frames cached) beside FDM's way (Harvey et al. 2022: 250
            Euler steps, nothing cached) by the same weights, and, where ``--full-model`` names a backbone of full
            attention, by that. What was shipped went on for 300 steps as such (``flexgen train experiment=mazes32
            model.network.attention=full training.start_from=checkpoints/mazes32 training.num_steps=300 training.lr=3e-4
            output=out/mazes32_full``).

Scores of the generated frames. Against the true clips: motion, sharpness (1 is right), PSNR by distance to the nearest
given frame, change across seams over change inside, beside the same of the true clips at the same places. Against the
other held-out clips, in the features of ``flexgen.metrics.video.maze_features``: the Frechet distance (no FVD), how far
the laws of speeds and turns are off, walls that are too near or recede, flaws seen. The row "real" holds true clips as
if they had been generated: what is as good as that cannot be told from real. ``±`` is a standard error over videos.
``evals`` are frames that pass the network for each generated frame; the default generation's goal is 13 at most.
``CPU s`` are processor seconds of one thread for each generated frame. "Revisits" compares views to which the walker
comes back, by poses reckoned from the video itself, which drift: compare it with the row "real" (0.18 by true poses).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.video_scores import (
    PLANS,
    Job,
    Made,
    Score,
    error_scores,
    format_table,
    generate_all,
    load_clips,
    look_scores,
    read_clips,
    revisit_score,
    seam_scores,
)
from benchmarks.video_solvers import solver_scores
from flexgen.metrics.video.maze_features import MazeFeatures
from flexgen.video.backbone import VideoBackbone
from flexgen.video.sampling import WindowSampler
from samplers.frames import Plan

MODEL, FULL_MODEL, DATA = "checkpoints/mazes32", "out/mazes32_full", "mazes/held_out"
FDM_STEPS = 250
STEPS, SCHEDULERS = (5, 10, 20, 50, 250), ("euler", "heun", "dpm++", "unipc")


@dataclass(frozen=True)
class Setting:
    """A part of the benchmark: how many videos, how long, given how much."""

    num_videos: int
    num_frames: int
    num_given: int


DEFAULTS = {
    "solvers": Setting(8, 48, 12),
    "steps": Setting(4, 44, 12),
    "plans": Setting(4, 300, 36),
    "drift": Setting(2, 1000, 36),
    "fdm": Setting(4, 48, 12),
}


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    model: str
    clips: list[Path]
    processes: int
    seed: int
    num_steps: int
    scheduler: str | None
    most_evaluations: int
    full_model: str
    network: MazeFeatures

    def jobs(self, setting: Setting, plan: Plan, num_steps: int, **how: Any) -> list[Job]:
        first = replace(Job(self.model, self.clips[0], plan, num_steps, self.scheduler), **how)
        chosen = self.clips[: setting.num_videos]
        return [replace(first, clip=clip, seed=self.seed + number) for number, clip in enumerate(chosen)]

    def truth_and_reference(self, setting: Setting) -> tuple[Tensor, Tensor]:
        return read_clips(self.clips[: setting.num_videos]), read_clips(self.clips[setting.num_videos :])


def scored(made: Made | None, truth: Tensor, reference: Tensor, plan: Plan, bench: Bench) -> dict[str, Score]:
    """Looks and seams of videos; of `truth` itself where `made` is None. Frames given at the start are left out."""
    videos = truth if made is None else made.videos
    start = len(plan.observed)
    scores = look_scores(videos[:, start:], truth[:, start:], reference[:, : plan.num_frames], bench.network)
    if made is not None:
        scores |= {"evals": Score(made.evaluations), "CPU s": made.seconds}
    return scores


def steps_part(bench: Bench, setting: Setting, window: int) -> None:
    plan = PLANS["tree"](setting.num_frames, setting.num_given, window)
    ways = [(steps, name) for steps in STEPS for name in SCHEDULERS if is_asked(bench, steps, name)]
    truth, reference = bench.truth_and_reference(setting)
    truth = truth[:, : setting.num_frames]
    rows = {"real": scored(None, truth, reference, plan, bench)}
    errors = {}
    made = generate_all(
        [bench.jobs(setting, plan, steps, scheduler=name) for steps, name in ways], processes=bench.processes
    )
    for (steps, name), videos in zip(ways, made, strict=True):
        row = f"{name} {steps}"
        rows[row] = scored(videos, truth, reference, plan, bench)
        errors[row] = error_scores(videos.videos, truth, plan)
        print(f"  {row} done", flush=True)
    print(format_table(f"\nSteps and schedulers: {setting.num_videos} videos, {plan!r}", rows))
    print(format_table("PSNR by frames to the nearest given frame", errors))


def is_asked(bench: Bench, num_steps: int, scheduler: str) -> bool:
    """Whether the row fits the model's process, and the time."""
    backbone = VideoBackbone.from_pretrained(bench.model)
    if not backbone.process.is_flow and scheduler != "dpm++":
        return False
    sampler = WindowSampler(backbone, num_inference_steps=num_steps, scheduler=scheduler)
    return scheduler == "euler" or sampler.evaluations_per_window <= bench.most_evaluations


def solvers_part(bench: Bench, setting: Setting, window: int) -> None:
    plan = PLANS["hierarchy-2"](setting.num_frames, setting.num_given, window)
    ways = [(name, steps) for steps in STEPS[:3] for name in SCHEDULERS if is_asked(bench, steps, name)]
    clips = bench.clips[: setting.num_videos]
    scores = solver_scores(bench.model, clips, plan, ways, seed=bench.seed)
    print(format_table(f"\nWindows of {plan!r} from the same noise: {len(clips)} clips", scores))


Way = tuple[Plan, list[Job]]


def plans_part(bench: Bench, setting: Setting, window: int) -> None:
    plans = {name: make(setting.num_frames, setting.num_given, window) for name, make in PLANS.items()}
    ways = {name: (plan, bench.jobs(setting, plan, bench.num_steps)) for name, plan in plans.items()}
    compare(f"Plans, {bench.num_steps} steps of {bench.scheduler or 'the default'}", ways, bench, setting, window)


def fdm_part(bench: Bench, setting: Setting, window: int) -> None:
    plan = PLANS["hierarchy-2"](setting.num_frames, setting.num_given, window)
    ways = {
        f"{bench.num_steps} steps, cached": (plan, bench.jobs(setting, plan, bench.num_steps)),
        f"{FDM_STEPS} Euler steps": (plan, bench.jobs(setting, plan, FDM_STEPS, scheduler="euler", cached=False)),
    }
    if Path(bench.full_model).is_dir():
        jobs = bench.jobs(setting, plan, FDM_STEPS, model=bench.full_model, scheduler="euler", cached=False)
        ways[f"{FDM_STEPS} Euler steps, full attention"] = (plan, jobs)
    else:
        print(f"{bench.full_model} is not there: no row of full attention")
    compare("The default and FDM's way, hierarchy-2", ways, bench, setting, window)


def compare(title: str, ways: Mapping[str, Way], bench: Bench, setting: Setting, window: int) -> None:
    """Tables of looks, seams and errors, a row for each way and one for the true clips."""
    truth, reference = bench.truth_and_reference(setting)
    truth = truth[:, : setting.num_frames]
    rows = {"real": scored(None, truth, reference, next(iter(ways.values()))[0], bench)}
    rows["real"]["revisits"] = revisit_score(truth, bench.network)
    seams, errors = {}, {}
    made = generate_all([jobs for _, jobs in ways.values()], processes=bench.processes)
    for (name, (plan, _)), videos in zip(ways.items(), made, strict=True):
        rows[name] = scored(videos, truth, reference, plan, bench)
        rows[name]["revisits"] = revisit_score(videos.videos, bench.network)
        seams[name] = seam_scores(videos.videos, truth, plan)
        errors[name] = error_scores(videos.videos, truth, plan)
        print(f"  {name} done", flush=True)
    how = f"{setting.num_videos} videos of {setting.num_frames} frames, {setting.num_given} given, windows of {window}"
    print(format_table(f"\n{title}: {how}", rows))
    print(format_table("Change across seams over change inside, generated and real", seams))
    print(format_table("PSNR by frames to the nearest given frame", errors))


def drift_part(bench: Bench, setting: Setting, window: int) -> None:
    plans = {name: make(setting.num_frames, setting.num_given, window) for name, make in PLANS.items()}
    truth, reference = bench.truth_and_reference(setting)
    rows: dict[str, Mapping[str, Score]] = {"real": look_scores(truth, truth, reference, bench.network)}
    seams = {}
    jobs = [bench.jobs(setting, plan, bench.num_steps) for plan in plans.values()]
    for (name, plan), made in zip(plans.items(), generate_all(jobs, processes=bench.processes), strict=True):
        for third, part in enumerate(torch.chunk(made.videos[:, setting.num_given :], 3, 1), 1):
            rows[f"{name}, third {third}"] = look_scores(part, truth, reference, bench.network)
        seams[name] = seam_scores(made.videos, None, plan)
        seams[name] |= {"evals": Score(made.evaluations), "CPU s": made.seconds}
        print(f"  {name} done", flush=True)
    how = f"{setting.num_videos} videos of {setting.num_frames} frames, {setting.num_given} given"
    print(
        format_table(
            f"\nDrift: {how}, {bench.num_steps} steps of {bench.scheduler or 'the default'}, windows of {window}", rows
        )
    )
    print(format_table("Change across seams over change inside, and cost", seams))


PARTS = {"solvers": solvers_part, "steps": steps_part, "plans": plans_part, "drift": drift_part, "fdm": fdm_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--full-model", default=FULL_MODEL, help="of full attention, for the part fdm")
    parser.add_argument("--data", default=DATA, help="folder of held-out clips")
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--videos", type=int, help="of each row; default 8, 4, 4, 2 and 4 in the five parts")
    parser.add_argument("--frames", type=int, help="of a video; default 48, 44, 300, 1000 and 48")
    parser.add_argument("--given", type=int, help="frames given at the start; default 12, 12, 36, 36 and 12")
    parser.add_argument("--num-steps", type=int, default=10, help="steps of plans and drift")
    parser.add_argument("--scheduler", help="of plans and drift; default: the pipeline's")
    parser.add_argument("--most-evaluations", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clips = load_clips(arguments.data)
    backbone = VideoBackbone.from_pretrained(arguments.model)
    print(f"{arguments.model}: {backbone.trained_on}"[:300])
    bench = Bench(
        arguments.model,
        clips,
        arguments.processes,
        arguments.seed,
        arguments.num_steps,
        arguments.scheduler,
        arguments.most_evaluations,
        arguments.full_model,
        MazeFeatures.pretrained(),
    )
    for part, run in PARTS.items():
        if arguments.part in (part, "all"):
            default = DEFAULTS[part]
            setting = Setting(
                arguments.videos or default.num_videos,
                arguments.frames or default.num_frames,
                arguments.given or default.num_given,
            )
            if setting.num_videos > len(clips) - 2:
                raise SystemExit(f"--videos {setting.num_videos} of {len(clips)} clips: leave two to compare with.")
            run(bench, setting, backbone.window)


if __name__ == "__main__":
    main()
