"""The arithmetic of the video benchmarks: labels of mazes, seams, matched supervision, differences, tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import matched_laws, maze_features, video_laws, video_scores
from benchmarks.video_scores import Score
from flexgen.data.mazes import FLOORS, WALLS, Maze, walk
from flexgen.metrics.video.maze_features import FLAWS
from samplers import frames, laws
from samplers.frames import Plan, Window


def test_labels_of_a_walk() -> None:
    poses = walk(Maze.draw(0, 0), 100, seed=0, clip=0).astype(np.float64)
    speed, turn = maze_features.motion(poses)
    assert len(speed) == len(turn) == 96
    assert speed[7] == pytest.approx(np.linalg.norm(np.diff(poses[7:12, :2], axis=0), axis=1).mean())
    across = np.array([[0.0, 0, 3.1], [0.1, 0, 3.14], [0.2, 0, -3.1], [0.3, 0, -3.0], [0.4, 0, -2.9]])
    assert maze_features.motion(across)[1] == pytest.approx([(2 * math.pi - 6.0) / 4])


def test_the_way_ahead() -> None:
    maze = Maze(2, frozenset({(0, 1), (1, 3), (0, 2), (2, 3)}), WALLS[:4], FLOORS[:4])
    x, z = maze.centre(0)
    poses = np.array([[x, z, angle] for angle in (0.0, math.pi / 2, math.pi)])  # to room 1, to the wall at z = 0, back
    assert maze_features.clear_ahead(maze, poses) == pytest.approx([1.5 + 0.25 + 3.0, 1.5, 1.5], abs=0.051)
    shut = Maze(2, frozenset({(0, 2), (2, 3), (1, 3)}), WALLS[:4], FLOORS[:4])
    assert maze_features.clear_ahead(shut, poses)[0] == pytest.approx(1.5, abs=0.051)
    assert maze_features.is_free(maze, walk(maze, 300, seed=0, clip=0)[:, :2]).all()


def test_flawed_stacks() -> None:
    generator = torch.Generator().manual_seed(0)
    stacks = torch.randint(0, 256, (400, 5, 4, 4, 3), generator=generator).to(torch.uint8)
    spoilt, flaw = maze_features.flawed(stacks, generator)
    same = (spoilt == stacks).flatten(1).all(1)
    assert torch.equal(same, flaw == FLAWS.index("none"))
    assert abs(int(same.sum()) - 200) < 50  # a half: five standard deviations
    held = spoilt[flaw == FLAWS.index("still")]
    assert torch.equal(held[:, 0], stacks[flaw == FLAWS.index("still"), 0])
    assert (held[:, 4] == held[:, 3]).flatten(1).all()


def test_kinds_of_seams() -> None:
    windows = (Window((2, 3), (0, 1)), Window((4, 5), (2, 3)), Window((6, 7), (5,)))
    plan = Plan(8, (0, 1), 4, windows)
    assert video_scores.frame_windows(plan).tolist() == [-1, -1, 0, 0, 1, 1, 2, 2]
    kinds = {name: where.nonzero().flatten().tolist() for name, where in video_scores.seam_kinds(plan).items()}
    assert kinds == {"given": [1], "window": [3, 5], "unseen": [4, 5]}  # frame 5 was never seen between 4 and 6
    refined = frames.refine(plan)
    assert not video_scores.seam_kinds(refined)["unseen"].any()
    assert video_scores.seam_scores(torch.zeros(2, 8, 2, 2, 3, dtype=torch.uint8), None, refined).keys()


def test_a_jump_is_seen_at_its_kind_of_seam() -> None:
    plan = frames.autoregressive(20, 4, 8)
    video = torch.arange(20).view(1, 20, 1, 1, 1) + 20 * (video_scores.frame_windows(plan) + 1).view(1, 20, 1, 1, 1)
    video = video.expand(2, 20, 4, 4, 3).to(torch.uint8)
    steady = torch.arange(20).view(1, 20, 1, 1, 1).expand(2, 20, 4, 4, 3).to(torch.uint8)
    scores = video_scores.seam_scores(video, steady, plan)
    assert scores["window seams"].value > 5
    assert scores["window seams, real"].value == pytest.approx(1.0)
    assert math.isnan(scores["unseen seams"].value)


@pytest.mark.parametrize("targets", [1.3, 4.0, 6.69, 7.77, 11.9])
def test_supervision_is_matched(targets: float) -> None:
    wanted = 4000 * 8 * 7.77
    found = matched_laws.Supervision.matching(wanted, targets, num_steps=4000)
    assert found.targets == pytest.approx(wanted, rel=0.001)
    assert found.num_steps == pytest.approx(4000, rel=0.5 / found.batch_size + 0.001)


def test_laws_of_the_table() -> None:
    assert matched_laws.mean_targets("half", 12) == pytest.approx(
        (matched_laws.mean_targets("fdm", 12) + matched_laws.mean_targets("plans", 12)) / 2, abs=0.1
    )
    assert matched_laws.mean_targets("curriculum", 12) == pytest.approx(matched_laws.mean_targets("half", 12), abs=0.1)
    shapes = matched_laws.plan_windows(12)
    assert list(shapes) == ["autoregressive", "hierarchy-2", "tree", "refine"]
    tree = frames.tree(matched_laws.NUM_FRAMES, matched_laws.NUM_GIVEN, 12)
    ours, theirs = laws.PlanWindows([shapes["tree"]]), laws.PlanWindows([tree])
    present = torch.ones(50, 300, dtype=torch.bool)
    for law in (ours, theirs):
        assert law.draw(present, generator=torch.Generator().manual_seed(0)).query.target.any(1).all()
    assert sum(count for *_, count in shapes["tree"]) == len(tree.windows)
    assert sum(count for *_, count in shapes["refine"]) == len(frames.refine(tree).windows) - len(tree.windows)


def test_differences_pair_clips_and_not_seeds() -> None:
    clips = 10 * torch.randn(1, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seeds = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    found = video_laws.difference(clips + seeds + 1.0, clips + seeds)
    assert found.value == pytest.approx(1.0)
    assert found.error == pytest.approx(math.sqrt(2 * 0.01 / 3))  # nothing of the clips, the seeds of both sides
    assert video_laws.difference(clips + 1.0, clips).error == pytest.approx(0.0, abs=1e-9)


def test_ratios_are_of_pairs() -> None:
    others = torch.tensor([[1.0, 3.0], [4.0, 4.0], [9.0, 3.0]], dtype=torch.float64)
    assert video_scores.paired(2 * others, others) == (2.0, 0.0)


def test_tables() -> None:
    rows = {
        "a": {"x": Score(0.12345, 0.01), "y": Score(1234.5)},
        "long name": {"y": Score(2.0, 0.5), "z": Score(math.nan)},
    }
    assert video_scores.format_table("Title", rows).splitlines() == [
        "Title",
        "                       x            y  z",
        "a          0.123 ± 0.010         1234  -",
        "long name              -  2.00 ± 0.50  -",
    ]  # fmt: skip
    names = [video_scores.bin_name(a, b) for a, b in ((1, 2), (2, 5), (65, math.inf))]
    assert names == ["1", "2-4", "65-"]


def test_a_folder_without_clips_says_how_to_render_them(tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"holds 0 held-out clips\. Render them: flexgen render output=mazes/held_out"):
        video_scores.load_clips(tmp_path)
