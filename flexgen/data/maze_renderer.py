"""First-person videos of mazes by MiniWorld; a display that is not there is started."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.util
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from flexgen.data.mazes import ROOM, Maze
from flexgen.errors import DataError

__all__ = ["LICENCE", "MazeRenderer", "display", "generator_name"]

LICENCE = "MiniWorld and its textures: Apache-2.0, Farama Foundation; the videos are made here"

PACKAGES = "xvfb libgl1 libglu1-mesa libgl1-mesa-dri"
_FIX = f"Install what it needs (Debian: apt-get install {PACKAGES}), and run under `xvfb-run -a`."


@contextlib.contextmanager
def display() -> Iterator[None]:
    """A display to render on: the one of the environment, or an Xvfb of one's own.

    That Xvfb lives as long as the process, since OpenGL does not survive the end of a display that it has seen.

    Raises:
        DataError: there is neither.
    """
    if os.environ.get("DISPLAY"):
        yield
        return
    os.environ["DISPLAY"] = _own_display()
    try:
        yield
    finally:
        del os.environ["DISPLAY"]


@functools.cache
def _own_display() -> str:
    program = shutil.which("Xvfb")
    if program is None:
        raise DataError("DISPLAY", "is not set, and Xvfb is not installed", _FIX)
    read, write = os.pipe()
    # Xvfb takes the first number that is free, and says which through the pipe once it is ready; it ends by itself
    # with its last client, should this process be killed.
    command = [program, "-displayfd", str(write), "-screen", "0", "640x480x24", "-nolisten", "tcp", "-terminate"]
    with tempfile.TemporaryFile() as log, os.fdopen(read) as pipe:
        server = subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=log)
        os.close(write)
        number = pipe.readline().strip()
        if not number:
            server.wait()
            log.seek(0)
            said = " ".join(log.read().decode(errors="replace").split()) or "without a word"
            raise DataError("DISPLAY", f"is not set, and Xvfb ended: {said[-300:]}", _FIX)
    atexit.register(_end, server)
    return f":{number}"


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait()


class MazeRenderer:
    """Renders poses in mazes, one maze after another on one window.

    Frames are rendered `supersample` times as large and averaged over areas, so that textures neither flicker nor
    alias at 32 pixels.

    Args:
        size: pixels a side.
        supersample: rendered pixels a side of each pixel.

    Raises:
        DataError: MiniWorld or a display is not there.
    """

    def __init__(self, size: int, *, supersample: int = 4) -> None:
        self.size = size
        self.supersample = supersample
        self._world = _open(size * supersample)

    def frames(self, maze: Maze, poses: np.ndarray) -> Iterator[np.ndarray]:
        """uint8 ``[size, size, 3]``, one a pose (x, z, direction)."""
        self._world.maze = maze
        with contextlib.redirect_stdout(io.StringIO()):
            self._world.reset()
        for x, z, direction in poses:
            self._world.agent.pos = np.array([x, 0.0, z])
            self._world.agent.dir = float(direction)
            yield self._averaged(self._world.render_obs())

    def _averaged(self, image: np.ndarray) -> np.ndarray:
        s, n = self.supersample, self.size
        blocks = rearrange(image, "(n s1) (m s2) c -> n m (s1 s2) c", n=n, m=n)
        sums = blocks.sum(2, dtype=np.uint32)
        averaged: np.ndarray = ((2 * sums + s * s) // (2 * s * s)).astype(np.uint8)
        return averaged

    def close(self) -> None:
        self._world.shadow_window.close()


def generator_name() -> str:
    """What renders, with its version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"miniworld {version('miniworld')}"
    except PackageNotFoundError:
        return "miniworld"


def _open(pixels: int) -> Any:
    if importlib.util.find_spec("miniworld") is None:
        raise DataError("miniworld", "is not installed", "Install flexgen-samplers[render].")
    try:
        base = importlib.import_module("miniworld.miniworld")
        textures = importlib.import_module("miniworld.opengl").Texture.tex_paths
        folder = Path(str(base.__file__)).parent / "textures"
        textures["door_garage_red"] = [str(folder / "door_garage_red.png")]  # found by number alone, which it lacks
        with contextlib.redirect_stdout(io.StringIO()):
            return _world_class(base)(pixels)
    except Exception as error:  # of many kinds: the library of OpenGL or the display may be missing
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError("miniworld", f"cannot render: {said}", _FIX) from error


def _world_class(base: Any) -> Any:
    # Made here, since what it inherits from can only be imported where there is a display.
    class MazeWorld(base.MiniWorldEnv):  # type: ignore[misc]
        maze = Maze.draw(0, 0)

        def __init__(self, pixels: int) -> None:
            params = importlib.import_module("miniworld.params").DEFAULT_PARAMS.no_random()
            params.set("light_pos", [-30.0, 40.0, -15.0])  # walls of two directions differ in brightness
            params.set("light_ambient", [0.55, 0.55, 0.55])
            params.set("cam_height", 1.1)
            params.set("cam_fov_y", 75)
            super().__init__(
                obs_width=pixels, obs_height=pixels, window_width=16, window_height=16, params=params, domain_rand=False
            )

        def _gen_world(self) -> None:
            rooms = []
            for room in range(self.maze.num_rooms):
                x, z = self.maze.centre(room) - ROOM / 2
                rooms.append(
                    self.add_rect_room(
                        min_x=x,
                        max_x=x + ROOM,
                        min_z=z,
                        max_z=z + ROOM,
                        wall_height=2.2,
                        wall_tex=self.maze.walls[room],
                        floor_tex=self.maze.floors[room],
                        no_ceiling=True,
                    )
                )
            for first, second in sorted(self.maze.passages):
                a = rooms[first]
                along = {"min_z": a.min_z, "max_z": a.max_z}
                if second - first != 1:  # below each other
                    along = {"min_x": a.min_x, "max_x": a.max_x}
                self.connect_rooms(a, rooms[second], **along)
            self.place_agent(pos=np.array([ROOM / 2, 0.0, ROOM / 2]), dir=0.0)

    return MazeWorld
