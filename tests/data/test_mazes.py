"""Mazes and walks through them; frames where MiniWorld and a display are there."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil

import numpy as np
import pytest

from flexgen.cli.main import main
from flexgen.data import maze_renderer
from flexgen.data.mazes import GAP, ROOM, Maze, WalkingStyle, walk
from flexgen.errors import DataError

NEEDS_DISPLAY = pytest.mark.skipif(
    importlib.util.find_spec("miniworld") is None or shutil.which("Xvfb") is None, reason="needs miniworld and Xvfb"
)
TINY = ["num_frames=4", "size=8", "supersample=2", "progress=false"]


def clearance(maze: Maze, poses: np.ndarray) -> np.ndarray:
    """Metres to the nearest wall, of each frame."""
    walls = []
    for room in range(maze.num_rooms):
        x, z = maze.centre(room) - ROOM / 2
        row, column = divmod(room, maze.grid)
        sides = {
            (row - 1, column): ((x, z), (x + ROOM, z)),
            (row + 1, column): ((x, z + ROOM), (x + ROOM, z + ROOM)),
            (row, column - 1): ((x, z), (x, z + ROOM)),
            (row, column + 1): ((x + ROOM, z), (x + ROOM, z + ROOM)),
        }
        walls += [
            wall
            for (r, c), wall in sides.items()
            if not (0 <= r < maze.grid and 0 <= c < maze.grid and r * maze.grid + c in maze.neighbours(room))
        ]
    first, last = np.array(walls).transpose(1, 0, 2)
    along, points = last - first, poses[:, None, :2]
    share = np.clip(((points - first) * along).sum(-1) / (along**2).sum(-1), 0, 1)
    return np.linalg.norm(points - (first + share[..., None] * along), axis=-1).min(1)


@pytest.mark.parametrize("grid", [2, 3, 5])
@pytest.mark.parametrize("clip", range(8))
def test_a_maze_is_connected_and_has_no_dead_end(grid, clip):
    maze = Maze.draw(7, clip, grid=grid)
    reached, border = {0}, [0]
    while border:
        fresh = set(maze.neighbours(border.pop())) - reached
        reached |= fresh
        border += fresh
    assert reached == set(range(grid**2))
    assert min(len(maze.neighbours(room)) for room in range(grid**2)) >= 2
    assert len(set(maze.walls)) == min(grid**2, 12)


def test_a_clip_has_a_maze_and_a_walk_of_its_own_that_are_always_the_same():
    mazes = [Maze.draw(seed, clip) for seed in (0, 1) for clip in (0, 1)]
    assert len({(maze.passages, maze.walls) for maze in mazes}) == 4
    assert Maze.draw(0, 1) == mazes[1]
    walks = [walk(maze, 50, seed=0, clip=clip) for clip, maze in enumerate(mazes[:2])]
    assert np.abs(walks[0] - walks[1]).max() > 0.1
    np.testing.assert_array_equal(walk(mazes[1], 50, seed=0, clip=1), walks[1])
    np.testing.assert_array_equal(walk(mazes[1], 20, seed=0, clip=1), walks[1][:20])


@pytest.mark.parametrize("clip", range(12))
def test_a_walk_is_smooth_explores_and_keeps_away_from_walls(clip):
    maze, style = Maze.draw(3, clip), WalkingStyle()
    poses = walk(maze, 300, seed=3, clip=clip)
    assert poses.dtype == np.float32
    assert poses.shape == (300, 3)
    steps = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
    assert steps.min() > 0.99 * style.speed * style.slowest  # no still frames
    assert steps.max() < 1.01 * style.speed
    turns = (np.diff(poses[:, 2]) + math.pi) % (2 * math.pi) - math.pi
    assert np.degrees(np.abs(turns)).max() < style.most_turn + 0.01
    assert np.degrees(np.abs(np.diff(turns))).max() < style.most_turn_change + 0.01
    heading = np.arctan2(-np.diff(poses[:, 1]), np.diff(poses[:, 0]))
    off = (heading - poses[1:, 2] + math.pi) % (2 * math.pi) - math.pi
    assert np.abs(off).max() < 1e-3  # it walks where it looks
    assert clearance(maze, poses).min() > 0.6
    assert {maze.room_at(x, z) for x, z, _ in poses} == set(range(9))


def test_a_walk_through_walls_would_be_noticed():
    maze = Maze.draw(3, 0)
    shut = next(room for room in range(8) if room % 3 < 2 and room + 1 not in maze.neighbours(room))
    line = np.linspace(maze.centre(shut), maze.centre(shut + 1), 50)
    assert clearance(maze, np.column_stack([line, np.zeros(50)])).min() < 0.1


def test_room_at():
    maze = Maze.draw(0, 0, grid=4)
    assert [maze.room_at(*maze.centre(room)) for room in range(16)] == list(range(16))
    assert maze.room_at(-5.0, 100.0) == 12
    assert maze.room_at(ROOM + GAP + 0.1, 0.1) == 1


def test_bad_arguments():
    with pytest.raises(DataError, match=r"grid: is 1\. Pass at least 2"):
        Maze.draw(0, 0, grid=1)
    with pytest.raises(DataError, match="num_frames: is 0"):
        walk(Maze.draw(0, 0), 0, seed=0, clip=0)


def test_without_a_display_or_miniworld_the_error_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(maze_renderer, "_own_display", maze_renderer._own_display.__wrapped__)
    monkeypatch.setattr(maze_renderer.shutil, "which", lambda _: None)
    assert main(["render", f"output={tmp_path / 'a'}", "num_clips=1", *TINY]) == 2
    said = capsys.readouterr().err
    assert "DISPLAY: is not set, and Xvfb is not installed" in said
    assert "libgl1-mesa-dri" in said
    assert "xvfb-run -a" in said
    monkeypatch.setattr(maze_renderer.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"miniworld: is not installed\. Install flexgen-samplers\[render\]"):
        maze_renderer.MazeRenderer(8)


def test_an_xvfb_that_ends_at_once_is_told(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(maze_renderer, "_own_display", maze_renderer._own_display.__wrapped__)
    monkeypatch.setattr(maze_renderer.shutil, "which", lambda _: "/bin/false")
    with pytest.raises(DataError, match="and Xvfb ended: without a word"), maze_renderer.display():
        pass


@NEEDS_DISPLAY
def test_render_resumes_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    out = tmp_path / "videos"
    command = ["render", f"output={out}", *TINY]
    assert main([*command, "num_clips=1"]) == 0, capsys.readouterr().err
    first = np.load(out / "clip-00000.npy", mmap_mode="r")
    assert first.shape == (4, 8, 8, 3)
    assert first.dtype == np.uint8
    assert first[..., 2].std() > 5  # walls, floor and sky, not one colour
    assert (first[0, 0, :, 2] > 200).all()  # the sky is above
    assert np.load(out / "poses-00000.npy").shape == (4, 3)
    changed = (out / "clip-00000.npy").stat().st_mtime_ns
    assert main([*command, "num_clips=2"]) == 0
    assert (out / "clip-00000.npy").stat().st_mtime_ns == changed
    record = json.loads((out / "videos.json").read_text())
    assert (record["num_clips"], record["size"], record["fps"]) == (2, 8, 10)
    assert sorted(path.name for path in out.iterdir()) == [
        *("clip-00000.npy", "clip-00001.npy", "poses-00000.npy", "poses-00001.npy", "videos.json"),
    ]
    assert np.abs(np.load(out / "clip-00001.npy").astype(int) - first).mean() > 5
    assert main([*command, "num_clips=2", "seed=4"]) == 2
    assert "seed: is 4, but the clips" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("size=2", "size: is 2. Pass at least 8."),
        ("grid=1", "grid: is 1. Pass at least 2."),
        ("walking.speed=fast", "walking.speed: is 'fast'. Pass a number."),
        ("clips=3", "clips: is no key of flexgen render"),
    ],
)
def test_bad_keys(override, said, tmp_path, capsys):
    assert main(["render", f"output={tmp_path / 'a'}", override]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_touched(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["render", f"output={tmp_path}"]) == 2
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "videos.json").write_text("{")
    assert main(["render", f"output={tmp_path}"]) == 2
    assert "is damaged" in capsys.readouterr().err
