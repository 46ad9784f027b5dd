"""Plans that look: FDM's adaptive schemes, whose windows observe the frames that differ most from each other.

Source: Harvey et al. (2022), *Flexible Diffusion Modeling of Long Videos*, and the authors' code. Targets are those of
the plans that do not look; observed frames are chosen, for each row of the batch, by farthest-point selection: each
next one is the frame whose distance to its nearest chosen one is largest. FDM's distance is LPIPS (``"lpips"``); here
it is any function. Ours differ where theirs would choose a frame twice, look for frames before the first for ever, or,
for want of places, leave out the frame after the targets: we then leave out the second one before them.

What a plan costs is known before it runs: which frames are observed depends on the state, but not how many.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import (
    callable_,
    entries,
    freeze,
    instance,
    kind_of,
    malformed,
    mapping,
    real_tensor,
    site_numbers,
    whole_number,
    whole_numbers,
)
from flexgen.errors import PlanError
from flexgen.query import Query
from flexgen.rng import Randomness
from samplers.frames.distances import Distance, DistanceName, distance_of
from samplers.frames.fdm import autoregressive_targets, ends_of, hierarchy_targets, merged
from samplers.frames.plan import Plan, Window, as_frames, check_window, frame_evaluations, given_frames
from samplers.schedule import Walk

__all__ = ["AdaptivePlan", "Choice", "Distance", "adaptive_autoregressive", "adaptive_hierarchical", "farthest_points"]


@dataclass(frozen=True)
class Choice:
    """A window that is yet to choose what it observes.

    Args:
        target: the frames to draw.
        always: frames that are observed in any case; the first is where the selection starts.
        candidates: frames to choose from, those that are there.
        num_observed: how many to observe, `always` among them.
    """

    target: tuple[int, ...]
    always: tuple[int, ...]
    candidates: tuple[int, ...]
    num_observed: int

    def __post_init__(self) -> None:
        # In the order given, which decides between frames that are equally far.
        candidates = site_numbers("candidates", self.candidates, error=PlanError)
        fix = "Name frames among the candidates, each once."
        always = whole_numbers("always", self.always, fix, most=max(candidates, default=0), error=PlanError)
        if not set(always) <= set(candidates):
            raise PlanError("always", f"is {kind_of(always)}", fix)
        whole_number("num_observed", self.num_observed, 0, PlanError, most=len(candidates))
        freeze(self, target=as_frames("target", self.target), candidates=candidates, always=always)


@dataclass(frozen=True, repr=False)
class AdaptivePlan:
    """A `Schedule` that decides its windows while walking, row by row.

    Args:
        num_frames: N, the length of the video.
        observed: the given frames.
        window: K, how many frames the network sees at once.
        choices: the windows to be, in order.
        distance: from frames ``[M, *site]`` and ``[M, *site]`` to ``[M]``; symmetric, 0 for equal frames.
        name: for tables and file names.
    """

    num_frames: int
    observed: tuple[int, ...]
    window: int
    choices: tuple[Choice, ...]
    distance: Distance
    name: str = "adaptive"

    def __post_init__(self) -> None:
        whole_number("window", self.window, 1, PlanError)
        choices = entries("choices", self.choices, "Pass a tuple of Choice(...).", error=PlanError)
        for choice in choices:
            instance("choices", choice, Choice, "Pass a tuple of Choice(...).", PlanError)
        callable_("distance", self.distance, "Pass a function of two batches of frames.")
        freeze(self, observed=given_frames(self.observed, self.num_frames), choices=choices)

    @property
    def num_generated(self) -> int:
        """Frames that are not given."""
        return self.num_frames - len(self.observed)

    @property
    def num_evaluations(self) -> int:
        """Windows."""
        return len(self.choices)

    @property
    def critical_path(self) -> int:
        """Windows: each may observe what the last one drew."""
        return len(self.choices)

    def frame_evaluations(self, num_steps: int, *, cached: bool = False) -> int:
        """Frames that pass the network in all, whatever is chosen; without those that pass inside the distance."""
        return sum(
            frame_evaluations(len(choice.target), choice.num_observed, num_steps, cached=cached)
            for choice in self.choices
        )

    def evaluations_per_frame(self, num_steps: int, *, cached: bool = False) -> float:
        return self.frame_evaluations(num_steps, cached=cached) / max(1, self.num_generated)

    def next_window(self, frames: Tensor, number: int) -> tuple[Window, ...]:
        """The window of this number for each row, given the video so far.

        Args:
            frames: ``[B, N, *site]``; frames that are not there yet are not read.
            number: 0 for the first window.
        """
        real_tensor("frames", frames, f"[B, {self.num_frames}, *site]", error=PlanError)
        number = whole_number("number", number, 0, PlanError, most=len(self.choices) - 1)
        if frames.ndim < 2 or frames.shape[1] != self.num_frames:
            raise PlanError("frames", f"has shape {tuple(frames.shape)}", f"Pass [B, {self.num_frames}, *site].")
        choice = self.choices[number]
        if len(choice.always) >= choice.num_observed or choice.num_observed == len(choice.candidates):
            everything = choice.always if len(choice.always) >= choice.num_observed else choice.candidates
            return (Window(choice.target, everything),) * len(frames)
        start = [choice.candidates.index(frame) for frame in choice.always]
        place = farthest_points(frames[:, list(choice.candidates)], choice.num_observed, start, self.distance)  # [B, C]
        return tuple(Window(choice.target, tuple(choice.candidates[i] for i in row)) for row in place.tolist())

    def walk(self, x: Tensor, *, generator: Randomness) -> Walk:  # noqa: ARG002
        for number in range(len(self.choices)):
            queries = [window.query(self.num_frames, device=x.device) for window in self.next_window(x, number)]
            if queries:
                target, observed = (torch.stack([getattr(q, side) for q in queries]) for side in ("target", "observed"))
                x = yield Query(target, observed)

    def chosen(self, windows: Sequence[Window]) -> Plan:
        """The plan that one row came to, from its windows: what to save, and to draw again from."""
        return Plan(self.num_frames, self.observed, self.window, windows, self.name)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """All but the function; ``from_dict(data, distance)`` takes it again."""
        return {
            "name": self.name,
            "num_frames": self.num_frames,
            "observed": list(self.observed),
            "window": self.window,
            "choices": [vars(choice) for choice in self.choices],
            "distance": getattr(self.distance, "__qualname__", type(self.distance).__qualname__),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], distance: Distance) -> AdaptivePlan:
        def frozen(value: Any) -> Any:
            return tuple(value) if isinstance(value, list) else value

        fix = "Pass what plan.to_dict() returned."
        mapping("data", data, fix, PlanError)
        with malformed("data", fix, PlanError):
            return cls._read(data, distance, frozen)

    @classmethod
    def _read(cls, data: Mapping[str, Any], distance: Distance, frozen: Callable[[Any], Any]) -> AdaptivePlan:
        choices = tuple(Choice(**{name: frozen(value) for name, value in choice.items()}) for choice in data["choices"])
        return cls(data["num_frames"], tuple(data["observed"]), data["window"], choices, distance, data["name"])

    def __repr__(self) -> str:
        return (
            f"AdaptivePlan({self.name}: {self.num_frames} frames, {len(self.observed)} given, window {self.window}; "
            f"{len(self.choices)} windows in turn)"
        )


def adaptive_autoregressive(
    num_frames: int,
    observed: int | Iterable[int],
    window: int = 20,
    *,
    distance: Distance | DistanceName = "pixels",
    num_targets: int | None = None,
) -> AdaptivePlan:
    """The next S frames, given the newest frame and the K - S - 1 that differ most from it and from each other.

    Arguments as for `autoregressive`, and the distance of frames, see `distance_of`. Frames drawn backwards start from
    the oldest one.
    """
    window, num_targets = check_window(window, num_targets)
    compared = distance_of(distance)
    given = given_frames(observed, num_frames)
    done, choices = list(given), []
    for target, room in autoregressive_targets(given, num_frames, window, num_targets):
        inside, before, after = _beside(done, target)
        always = (*inside, *(before[:1] or after[:1]), *(after[:1] if before else ()))[:room]
        choices.append(Choice(target, always, tuple(reversed(done)), min(room, len(done))))
        done = merged(done, target)
    return AdaptivePlan(num_frames, given, window, tuple(choices), compared, "adaptive-autoregressive")


def adaptive_hierarchical(
    num_frames: int,
    observed: int | Iterable[int],
    window: int = 20,
    levels: int = 2,
    *,
    distance: Distance | DistanceName = "pixels",
    num_targets: int | None = None,
) -> AdaptivePlan:
    """FDM's adaptive-hierarchy-n: all done frames inside the targets' span, two before, one after, others by distance.

    Arguments as for `hierarchical`, and the distance of frames, see `distance_of`.
    """
    window, num_targets = check_window(window, num_targets)
    compared = distance_of(distance)
    given = given_frames(observed, num_frames)
    levels = whole_number("levels", levels, 2, PlanError)
    done, choices = list(given), []
    for level, target, room in hierarchy_targets(given, num_frames, window, num_targets, levels):
        inside, before, after = _beside(done, target)
        always = (*inside, *before[:1], *after[:1], *before[1:2])[:room]
        if level == 1 and not (ends := ends_of(given, num_frames)) <= set(always):
            always = tuple(sorted(ends))  # its targets lie on both sides of given frames
        choices.append(Choice(target, always, tuple(done), min(room, len(done))))
        done = merged(done, target)
    return AdaptivePlan(num_frames, given, window, tuple(choices), compared, f"adaptive-hierarchy-{levels}")


def farthest_points(frames: Tensor, count: int, start: Sequence[int], distance: Distance) -> Tensor:
    """Farthest-point selection (Gonzalez 1985), in every row on its own, int64 ``[B, count]``.

    Args:
        frames: ``[B, M, *site]``, to choose from.
        count: how many to choose, at most M.
        start: places that are chosen first, one or more.
        distance: of frames.

    Of frames equally far the first is chosen. Costs B · M distances for each one chosen.
    """
    num_rows, num_frames = frames.shape[:2]
    rows = torch.arange(num_rows, device=frames.device)
    nearest = torch.full((num_rows, num_frames), torch.inf, device=frames.device)  # distance to what is chosen
    places: list[Tensor] = []
    for number in range(count):
        chosen = rows.new_full((num_rows,), start[number]) if number < len(start) else nearest.argmax(1)  # [B]
        newest = frames[rows, chosen][:, None].expand_as(frames)
        apart = distance(frames.flatten(0, 1), newest.flatten(0, 1))
        if apart.shape != (num_rows * num_frames,):
            raise PlanError("distance", f"returned shape {tuple(apart.shape)}", "Return one number for each pair.")
        if bool(apart.isnan().any()):
            raise PlanError("distance", "returned nan", "Return a number for each pair.")
        nearest = torch.minimum(nearest, apart.view(num_rows, num_frames).to(nearest))
        places.append(chosen)
        nearest[rows[:, None], torch.stack(places, 1)] = -torch.inf
    return torch.stack(places, 1)


def _beside(done: Sequence[int], target: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Frames that are there: inside the targets' span, before it (nearest first), after it."""
    low, high = bisect_left(done, target[0]), bisect_left(done, target[-1])
    return done[low:high], done[:low][::-1], done[high:]
