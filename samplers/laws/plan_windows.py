"""Windows that plans of long videos really use, for training on short clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import entries, freeze, kind_of, number, probabilities, whole_number
from flexgen.errors import FlexgenError
from samplers.frames.plan import Plan, as_frames
from samplers.laws.base import Law, Rows, Sets, as_law
from samplers.laws.combine import Mixture

__all__ = ["Curriculum", "PlanWindows"]

# A window shifted to frame 0, and how many windows of a plan are like it: (target, observed, count).
Shape = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclass(frozen=True)
class PlanWindows(Law):
    """The windows of plans, at random places of a clip. Sites are frames; all that a window lacks is marginalised.

    A plan is drawn by its probability, then one of its windows that fit the clip, then its place, uniformly. FDM's own
    law (`FrameGroups`) asks for sets as its sampling does in few of its draws; this one asks for no others. Mix them:
    ``Mixture([PlanWindows(plans), FrameGroups(20)], [0.5, 0.5])``.

    A clip is a sequence: frames that are missing are no places of it, and are never drawn. Windows that span more
    frames than the row holds are left out; a row that no window fits has an empty query (`NonEmpty` fills it).

    Args:
        plans: of `samplers.frames`, each reduced to its windows up to shifts; or such tables, tuples of (target,
            observed, count).
        plan_probabilities: of the plans; equal by default. Where no window of a plan fits, the others take its share.

    Raises:
        FlexgenError: on drawing, if no window fits even a clip that lacks no frame.
    """

    plans: Sequence[Plan | Sequence[Shape]]
    plan_probabilities: Sequence[float] | None = None

    def __post_init__(self) -> None:
        plans = tuple(
            _shapes(plan) for plan in entries("plans", self.plans, "Pass a list of plans of samplers.frames.")
        )
        if not plans or not all(plans):
            raise FlexgenError("plans", "hold no windows", "Pass at least one plan with windows to draw.")
        given = self.plan_probabilities
        shares = [1.0 / len(plans)] * len(plans) if given is None else given
        shares = probabilities("plan_probabilities", shares, len(plans), "plans", "plan")
        freeze(self, plans=plans, plan_probabilities=shares)

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All M shapes: spans, plans, counts, frames ``[M, K]`` (-1 behind the last), which are targets ``[M, K]``."""
        rows = [(plan, *shape) for plan, shapes in enumerate(map(_shapes, self.plans)) for shape in shapes]
        width = max(len(target) + len(observed) for _, target, observed, _ in rows)
        frames = torch.full((len(rows), width), -1)
        for row, (_, target, observed, _) in enumerate(rows):
            frames[row, : len(target) + len(observed)] = torch.tensor([*target, *observed])
        is_target = torch.arange(width) < torch.tensor([len(target) for _, target, *_ in rows])[:, None]
        plan = torch.tensor([number for number, *_ in rows])
        count = torch.tensor([n for *_, n in rows], dtype=torch.float64)
        return frames.amax(1) + 1, plan, count, frames, is_target

    def _law_of_shapes(self, num_frames: int) -> Tensor:
        """Probability of each shape in a clip of so many frames, float64 ``[M]``; zero throughout where none fits."""
        span, plan, count, *_ = self._table
        fitting = torch.where(span <= num_frames, count, 0.0)
        of_plan = torch.zeros(len(self.plans), dtype=torch.float64).index_add_(0, plan, fitting)
        share = torch.tensor(self.plan_probabilities, dtype=torch.float64) * (of_plan > 0)
        law = (share / of_plan.clamp_min(1.0))[plan] * fitting
        return law / law.sum().clamp_min(torch.finfo(torch.float64).tiny)

    def draw_sets(self, rows: Rows) -> Sets:
        span, _, _, frames, is_target = self._table
        num_sites, device = rows.num_sites, rows.present.device
        if num_sites and int(span.min()) > num_sites:
            raise FlexgenError(
                "plans",
                f"hold no window that fits a clip of {num_sites} frames: the shortest spans {int(span.min())}",
                "Train on longer clips, or on plans with nearer frames.",
            )
        u, place = rows.uniform(2).unbind(-1)  # [B], [B]
        num_present = rows.num_present
        shape = torch.zeros(len(rows), dtype=torch.int64, device=device)
        fits = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for n in sorted(set(num_present.tolist())):
            law = self._law_of_shapes(n)
            if bool(law.any()):
                mine = num_present == n
                possible = law.nonzero().flatten().to(device)
                cdf = law[law > 0].cumsum(0)[:-1].to(device)
                shape[mine] = possible[torch.searchsorted(cdf, u[mine], right=True)]
                fits |= mine
        start = (place * (num_present - span.to(device)[shape] + 1)).long()  # [B]
        index = frames.to(device)[shape]  # [B, K]
        asked = is_target.to(device)[shape]
        is_frame = (index >= 0) & fits[:, None]
        # One place more than frames, into which everything that is not drawn falls.
        target, observed = (
            torch.zeros(len(rows), num_sites + 1, dtype=torch.bool, device=device).scatter_(
                1, torch.where(is_frame & side, index + start[:, None], num_sites), True
            )[:, :-1]
            for side in (asked, ~asked)
        )
        return Sets(rows.spread(target), rows.spread(observed), rows.ones())


@dataclass(frozen=True)
class Curriculum:
    """Mixtures whose probabilities move, in a straight line, from one set to another while training goes on.

    Args:
        laws: what is mixed.
        start: probabilities at the beginning of training.
        end: probabilities at its end.

    ``curriculum.at(step / num_steps)`` is a law: give it to the objective anew as often as it shall move.
    """

    laws: Sequence[Law]
    start: Sequence[float]
    end: Sequence[float]

    def __post_init__(self) -> None:
        laws = tuple(as_law("laws", law) for law in entries("laws", self.laws, "Pass a list of laws."))
        start, end = (probabilities(name, getattr(self, name), len(laws)) for name in ("start", "end"))
        freeze(self, laws=laws, start=start, end=end)

    def at(self, progress: float) -> Mixture:
        """The law when so much of training is done, from 0 to 1."""
        progress = number("progress", progress, 0.0, 1.0)
        mixed = [(1 - progress) * a + progress * b for a, b in zip(self.start, self.end, strict=True)]
        return Mixture(self.laws, mixed)


def _shapes(plan: Any) -> tuple[Shape, ...]:
    """The windows of a plan up to shifts, in a fixed order."""
    if isinstance(plan, Plan):
        counts: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
        for window in plan.windows:
            moved = window.shifted(-window.frame_index[0])
            counts[moved.target, moved.observed] += 1
        return tuple((*sets, count) for sets, count in sorted(counts.items()))
    try:
        shapes = tuple(
            (as_frames("target", target), as_frames("observed", observed), whole_number("count", count, most=1 << 53))
            for target, observed, count in plan
        )
    except (TypeError, ValueError):
        raise FlexgenError("plans", f"hold {kind_of(plan)}", "Pass plans of samplers.frames.") from None
    for target, observed, count in shapes:
        frames = [*target, *observed]
        if not target or count < 1 or min(frames) != 0 or len(set(frames)) < len(frames):
            raise FlexgenError(
                "plans", f"hold {(target, observed, count)}", "Pass (target, observed, count), its first frame 0."
            )
    return shapes
