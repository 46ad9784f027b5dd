"""The laws that ``benchmarks.video_laws`` compares, and for how long each trains so that all score as many targets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.video_scores import PLANS
from flexgen.laws import MaskLaw, MovingLaw
from samplers import laws

LAWS = ("fdm", "plans", "half", "curriculum")
NUM_FRAMES, NUM_GIVEN = 300, 12  # of clips and videos

Shapes = list[tuple[tuple[int, ...], tuple[int, ...], int]]


@dataclass(frozen=True)
class Supervision:
    """How long a law trains so that as many target frames are scored as by another."""

    batch_size: int
    num_steps: int
    targets_per_window: float

    @property
    def targets(self) -> float:
        """Target frames in all, in expectation."""
        return self.batch_size * self.num_steps * self.targets_per_window

    @classmethod
    def matching(cls, wanted: float, targets_per_window: float, *, num_steps: int) -> Supervision:
        """Whole windows an update, in about so many steps, that score `wanted` target frames in all."""
        batch_size = max(1, round(wanted / (num_steps * targets_per_window)))
        return cls(batch_size, max(1, round(wanted / (batch_size * targets_per_window))), targets_per_window)


def plan_windows(size: int) -> dict[str, Shapes]:
    """The windows of each plan, moved to frame 0, for `PlanWindows`; of a refined tree only those that refine."""
    out = {}
    for name, make in PLANS.items():
        plan = make(NUM_FRAMES, NUM_GIVEN, size)
        chosen = [window for window in plan.windows if window.refines] or plan.windows
        moved = [window.shifted(-window.frame_index[0]) for window in chosen]
        counts = Counter((window.target, window.observed) for window in moved)
        out["refine" if "refine" in name else name] = [(*sets, count) for sets, count in sorted(counts.items())]
    return out


def law_of(name: str, window: int) -> MaskLaw | MovingLaw:
    parts = [laws.FrameGroups(window), laws.PlanWindows(list(plan_windows(window).values()))]
    if name == "curriculum":
        return laws.Curriculum(parts, [1.0, 0.0], [0.0, 1.0])
    return {"fdm": parts[0], "plans": parts[1], "half": laws.Mixture(parts, [0.5, 0.5])}[name]


@cache
def mean_targets(name: str, window: int, *, num_draws: int = 20_000) -> float:
    """Target frames of a law's window, in expectation; of the curriculum, over all of its time."""
    if name == "curriculum":
        return (mean_targets("fdm", window) + mean_targets("plans", window)) / 2
    law = law_of(name, window)
    assert isinstance(law, MaskLaw)
    present = torch.ones(num_draws, NUM_FRAMES, dtype=torch.bool)
    drawn = law.draw(present, generator=torch.Generator().manual_seed(0)).query
    return float(drawn.target.sum(-1).double().mean())
