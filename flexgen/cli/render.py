"""``flexgen render``: first-person videos of mazes, with poses, to train and test video models on."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from flexgen import saving
from flexgen.cli.files import require_free_folder
from flexgen.cli.parameters import read
from flexgen.errors import ConfigError, DataError

__all__ = ["run"]

RECORD = "videos.json"
_FREE_TO_CHANGE = ("num_clips", "generator")


@dataclass(frozen=True)
class Parameters:
    """The keys of configs/render.yaml."""

    output: Path
    num_clips: int
    num_frames: int
    size: int
    seed: int
    grid: int
    fps: int
    supersample: int
    walking: dict[str, Any]
    progress: bool | None

    def __post_init__(self) -> None:
        least = {"num_clips": 1, "num_frames": 1, "size": 8, "grid": 2, "fps": 1, "supersample": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(name, f"is {getattr(self, name)}", f"Pass at least {low}.")


def run(config: DictConfig) -> None:
    """Config: configs/render.yaml."""
    from flexgen.data.maze_renderer import LICENCE, MazeRenderer, display, generator_name
    from flexgen.data.mazes import Maze, WalkingStyle, walk

    chosen = read(Parameters, config)
    style = read(WalkingStyle, chosen.walking, at="walking.")
    record = {
        "size": chosen.size,
        "num_frames": chosen.num_frames,
        "num_clips": chosen.num_clips,
        "fps": chosen.fps,
        "seed": chosen.seed,
        "supersample": chosen.supersample,
        "generator": generator_name(),
        "licence": LICENCE,
        "maze": {"grid": chosen.grid, "dead_ends": False},
        "policy": {"name": "walk to the nearest room not yet visited, never turning on the spot", **style.as_dict()},
        "pose": "x and z in metres, direction in radians: 0 looks along x, pi/2 against z",
    }
    _prepare(chosen.output, record)
    missing = [clip for clip in range(chosen.num_clips) if not _clip_path(chosen.output, clip).is_file()]
    if missing:
        began = time.monotonic()
        show = sys.stderr.isatty() if chosen.progress is None else chosen.progress
        with display():
            renderer = MazeRenderer(chosen.size, supersample=chosen.supersample)
            try:
                with tqdm(total=len(missing) * chosen.num_frames, unit="frame", disable=not show) as bar:
                    for clip in missing:
                        maze = Maze.draw(chosen.seed, clip, grid=chosen.grid)
                        poses = walk(maze, chosen.num_frames, seed=chosen.seed, clip=clip, style=style)
                        frames = np.empty((chosen.num_frames, chosen.size, chosen.size, 3), np.uint8)
                        for place, frame in enumerate(renderer.frames(maze, poses)):
                            frames[place] = frame
                            bar.update()
                        # The poses first: a clip that is there is whole.
                        _save(chosen.output / f"poses-{clip:05d}.npy", poses)
                        _save(_clip_path(chosen.output, clip), frames)
            finally:
                renderer.close()
        rate = len(missing) * chosen.num_frames / (time.monotonic() - began)
        print(f"rendered {len(missing)} clips of {chosen.num_frames} frames, {rate:.0f} frames/s", file=sys.stderr)
    print(f"{chosen.num_clips} clips of {chosen.num_frames} frames at {chosen.size}x{chosen.size} in {chosen.output}")


def _prepare(output: Path, record: dict[str, Any]) -> None:
    """Makes the folder, or checks that what is there was begun with the same settings."""
    path = output / RECORD
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(before, dict):
                raise ValueError("no record")
        except (ValueError, RecursionError) as error:
            raise DataError("output", f"{str(path)!r} is damaged", "Remove the folder, or name another.") from error
        for key, value in record.items():
            if key not in _FREE_TO_CHANGE and before.get(key) != value:
                raise ConfigError(
                    "walking" if key == "policy" else "grid" if key == "maze" else key,
                    f"is {value!r}, but the clips in {str(output)!r} have {before.get(key)!r}",
                    "Go on with what they have, or name another output.",
                )
        record["num_clips"] = max(record["num_clips"], int(before.get("num_clips", 0)))
    else:
        require_free_folder(output, argument="output", overwrite=False)
    with saving.writing("output", output, DataError):
        output.mkdir(parents=True, exist_ok=True)
        with saving.replacing(path) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _clip_path(output: Path, clip: int) -> Path:
    return output / f"clip-{clip:05d}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    """In place only once it is whole; a file that is there has to be the same, left by a call that was killed."""
    content = io.BytesIO()
    np.save(content, array)
    if path.is_symlink() or path.exists():
        if path.is_symlink() or not path.is_file() or path.read_bytes() != content.getvalue():
            problem = f"{str(path)!r} is there already, and is not of this call's making"
            raise DataError("output", problem, "Move it away, or name another output.")
        return
    with saving.writing("output", path, DataError), saving.replacing(path) as partial:
        partial.write_bytes(content.getbuffer())
