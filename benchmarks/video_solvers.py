"""How near few steps of a solver come to the limit of many: window by window, from the same noise.

Videos made in few steps and in many soon tell different stories, and their scores differ by chance. Single windows with
the same given frames and the same noise do not: what is left between them is the solver's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.video_scores import Score, mean_of, paired, read_clips
from flexgen.metrics.video.motion import frame_change, gradient_energy
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.video.backbone import VideoBackbone
from flexgen.video.sampling import WindowSampler
from samplers.frames import Plan

LIMIT = ("unipc", 100)
NUM_WINDOWS = 4  # of the plan, from its start


def solver_scores(
    model: str, clips: Sequence[Path], plan: Plan, ways: Sequence[tuple[str, int]], *, seed: int
) -> dict[str, dict[str, Score]]:
    """Scores of each (scheduler, steps) over windows that are given true frames; ± over clips.

    "to limit" and "to truth": root mean squared differences in grey levels.
    """
    backbone = VideoBackbone.from_pretrained(model)
    videos = read_clips(clips)
    windows = plan.windows[:NUM_WINDOWS]
    truth = torch.cat([videos[:, list(window.target)] for window in windows], 1)  # [V, all targets, h, w, c]

    def drawn(way: tuple[str, int]) -> Tensor:
        name, num_steps = way
        sampler = WindowSampler(backbone, num_inference_steps=num_steps, scheduler=name)
        parts = []
        for number, window in enumerate(windows):
            index = torch.tensor(window.frame_index)
            target = torch.isin(index, torch.tensor(window.target))
            for row, video in enumerate(videos):
                out = sampler.sample_window(
                    video[None, index],
                    Query(target, ~target),
                    frame_index=index,
                    generator=Streams(seed, torch.tensor([row * len(windows) + number])),
                )
                parts.append(out[:, target])
        return torch.cat([torch.cat(parts[k * len(videos) : (k + 1) * len(videos)]) for k in range(len(windows))], 1)

    def scores(made: Tensor) -> dict[str, Score]:
        away = {
            name: (made.float() - other.float()).square().flatten(1).mean(1).sqrt() for name, other in goals.items()
        }
        return {name: mean_of(distance.tolist()) for name, distance in away.items()} | {
            "sharpness": paired(gradient_energy(made), gradient_energy(truth)),
            "motion": paired(frame_change(made), frame_change(truth)),
        }

    limit = drawn(LIMIT)
    goals = {"to limit": limit, "to truth": truth}
    found = {f"{name} {steps}": scores(drawn((name, steps))) for name, steps in ways}
    return {f"limit ({LIMIT[0]} {LIMIT[1]})": scores(limit)} | found
