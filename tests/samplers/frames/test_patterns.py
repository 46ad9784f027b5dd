"""Patterns of given frames, and the plans chosen for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flexgen.errors import PlanError
from flexgen.exact import Gaussian
from samplers import frames, run
from samplers.frames import Pattern


def test_patterns() -> None:
    assert frames.continuation(9, 3).observed == (0, 1, 2)
    assert frames.interpolation(9, 2, 1).observed == (0, 1, 8)
    assert frames.keyframes(9, [7, 2]).observed == (2, 7)
    assert frames.extension(9, 3).observed == (3, 4, 5)
    assert frames.extension(9, 3, start=6).observed == (6, 7, 8)
    loop = frames.loop(9, 2)
    assert (loop.num_frames, loop.observed, loop.source, loop.num_kept) == (11, (0, 1, 9, 10), (0, 1, 0, 1), 9)


def test_frames_come_to_their_places() -> None:
    given = torch.tensor([[[1.0], [2.0]]])
    assert frames.interpolation(4).place(given).flatten().tolist() == [1, 0, 0, 2]
    loop = frames.loop(3, 2)
    assert loop.place(given).flatten().tolist() == [1, 2, 0, 1, 2]
    assert loop.trim(loop.place(given)).shape == (1, 3, 1)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    "pattern",
    [
        frames.continuation(60, 5),
        frames.interpolation(60),
        frames.keyframes(60, [3, 20, 21, 50]),
        frames.extension(60, 4),
        frames.loop(60, 2),
    ],
    ids=str,
)
def test_every_pattern_has_a_plan(pattern: Pattern, parallel: bool) -> None:
    plan = frames.plan_for(pattern, window=10, parallel=parallel)
    assert plan.observed == pattern.observed
    assert plan.num_frames == pattern.num_frames


@pytest.mark.statistical
def test_a_loop_closes() -> None:
    """The last frame of a loop is as near to its first as neighbours are; that of a continuation is not."""
    num_frames = 30
    time = torch.arange(num_frames + 1)
    joint = Gaussian(torch.zeros(num_frames + 1), 0.95 ** (time[:, None] - time).abs().double())
    loop = frames.loop(num_frames)
    x = loop.place(torch.zeros(4000, 1, dtype=torch.float64))
    closed = loop.trim(run(joint, x, frames.plan_for(loop, window=8), generator=0))
    open_ended = run(joint, x, frames.plan_for(num_frames + 1, 1, window=8), generator=0)[:, :num_frames]

    def step(video: torch.Tensor) -> tuple[float, float]:
        return float((video[:, 1] - video[:, 0]).std()), float((video[:, -1] - video[:, 0]).std())

    first, last = step(closed)  # by symmetry of the law between two equal ends, these are equal
    assert abs(first - last) < 6 * first / 4000**0.5  # six standard errors of the difference of two deviations
    first, last = step(open_ended)
    assert last > 2 * first


def test_the_default_plan() -> None:
    assert frames.plan_for(300, 36).name == "tree"
    assert frames.plan_for(300, 36, parallel=False).name == "hierarchy-2"
    assert frames.plan_for(15000, 36, parallel=False).name == "autoregressive"
    assert frames.plan_for(300, 36, parallel=False, max_gap=10).name == "autoregressive"
    assert frames.plan_for(30, 20).critical_path == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: frames.interpolation(4, 3, 2), r"num_last: is 2 beside num_first=3 of 4 frames\. Give fewer\."),
        (lambda: frames.interpolation(4, 0), r"num_first: is 0\. Pass at least 1\."),
        (lambda: frames.keyframes(4, [5]), r"observed: holds frame 5\. Frames are numbered 0 to 3\."),
        (
            lambda: frames.extension(9, 4, start=7),
            r"num_given: is 4 from frame 7 on, of 9 frames\. The clip must fit\.",
        ),
        (lambda: frames.loop(3, 3), r"num_given: is 3 of 3 frames\. Leave at least one frame to draw\."),
        (lambda: frames.plan_for(frames.loop(9), 3), r"observed: is given beside a pattern\. Leave it out"),
        (
            lambda: frames.loop(9, 2).place(torch.zeros(1, 4)),
            r"given: has shape \(1, 4\), but the pattern has 2 frames",
        ),
        (lambda: frames.tree(30, 4, 8, max_gap=0), r"max_gap: is 0\. Pass 1 or more frames\."),
        (lambda: frames.tree(30, 4, 8, num_context=8), r"num_context: is 8 of a window of 8\. Leave room to draw"),
        (lambda: frames.tree(30, 4, 8, num_context=1), r"num_context: is 1\. Pass at least 2\."),
        (lambda: frames.tree(30, 4, 2), r"window: is 2\. Pass at least 3\."),
        (lambda: frames.refine(frames.tree(30, 4, 8), -1), r"sweeps: is -1\. Pass at least 0\."),
        (lambda: frames.refine(frames.tree(30, 4, 8), at=[30]), r"at: holds frame 30\. Frames are numbered 0 to 29\."),
        (
            lambda: frames.refine(frames.tree(30, 4, 8), num_targets=7),
            r"num_targets: is 7 of a window of 8\. Leave room to observe a frame on either side\.",
        ),
    ],
)
def test_bad_arguments(call: Callable[[], object], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        call()
