"""Mazes of textured rooms, and a walker who explores them: pure functions of (seed, clip), nothing is rendered here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.errors import DataError

__all__ = ["Maze", "WalkingStyle", "walk"]

ROOM = 3.0  # metres, the side of a room
GAP = 0.25  # between two rooms: the thickness of a wall

# Textures that ship with MiniWorld and look different when a wall is a dozen pixels wide.
WALLS = (
    "brick_wall", "wood", "water", "slime", "lava", "picket_fence", "cinder_blocks", "door_garage_red",
    "metal_grill", "airduct_grate", "wood_planks", "cardboard",
)  # fmt: skip
FLOORS = ("floor_tiles_bw", "asphalt", "grass", "wood_planks", "concrete_tiles", "cardboard")


@dataclass(frozen=True)
class Maze:
    """Square rooms on a grid, numbered row by row; no room is a dead end.

    Args:
        grid: rooms a side.
        passages: pairs of neighbouring rooms, the smaller number first, whose common wall is open.
        walls, floors: the texture of each room.
    """

    grid: int
    passages: frozenset[tuple[int, int]]
    walls: tuple[str, ...]
    floors: tuple[str, ...]

    @classmethod
    def draw(cls, seed: int, clip: int, *, grid: int = 3) -> Maze:
        """The maze of a clip: a random spanning tree, and one more opening for each room that would be a dead end."""
        grid = whole_number("grid", grid, 2, DataError)
        generator = _generator(seed, "maze", clip)
        rooms = grid * grid
        passages: set[tuple[int, int]] = set()
        trail, seen = [int(generator.integers(rooms))], set[int]()
        while trail:
            seen.add(trail[-1])
            fresh = [room for room in _beside(trail[-1], grid) if room not in seen]
            if not fresh:
                trail.pop()
                continue
            chosen = int(generator.choice(fresh))
            passages.add(_pair(trail[-1], chosen))
            trail.append(chosen)
        for room in map(int, generator.permutation(rooms)):
            shut = [other for other in _beside(room, grid) if _pair(room, other) not in passages]
            if shut and sum(room in pair for pair in passages) < 2:
                passages.add(_pair(room, int(generator.choice(shut))))
        walls = [WALLS[place % len(WALLS)] for place in range(rooms)]
        rest = [FLOORS[place % len(FLOORS)] for place in range(rooms)]
        return cls(grid, frozenset(passages), _shuffled(walls, generator), _shuffled(rest, generator))

    @property
    def num_rooms(self) -> int:
        return self.grid * self.grid

    def centre(self, room: int) -> np.ndarray:
        """(x, z), metres."""
        return (ROOM + GAP) * np.array([room % self.grid, room // self.grid], np.float64) + ROOM / 2

    def room_at(self, x: float, z: float) -> int:
        """The room whose centre is nearest to a point of the maze."""
        column, row = (min(self.grid - 1, max(0, int((v + GAP / 2) // (ROOM + GAP)))) for v in (x, z))
        return row * self.grid + column

    def neighbours(self, room: int) -> list[int]:
        """The rooms that one can walk to."""
        return [other for other in _beside(room, self.grid) if _pair(room, other) in self.passages]


@dataclass(frozen=True)
class WalkingStyle:
    """How the walker moves.

    Args:
        speed: metres a frame, where the way is straight.
        slowest: share of that speed that is kept in the sharpest turn.
        most_turn: degrees a frame.
        most_turn_change: degrees a frame, from one frame to the next.
        look_ahead: metres along the route to the point that is steered at; larger cuts corners more.
        wander: metres by which the route passes a room's centre on either side.
    """

    speed: float = 0.16
    slowest: float = 0.5
    most_turn: float = 7.0
    most_turn_change: float = 1.5
    look_ahead: float = 1.6
    wander: float = 0.35

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def walk(maze: Maze, num_frames: int, *, seed: int, clip: int, style: WalkingStyle = WalkingStyle()) -> np.ndarray:
    """The poses of one exploration, float32 ``[F, 3]``: x, z in metres, direction in radians in [-pi, pi).

    The walker goes by the shortest way to the nearest room that was not visited yet, without turning on the spot, and
    begins anew when all are known. Direction 0 looks along x, and pi/2 against z, as in MiniWorld.
    """
    num_frames = whole_number("num_frames", num_frames, 1, DataError)
    generator = _generator(seed, "walk", clip)
    route = _points(_rooms(maze, generator), maze, style, generator)
    position = next(route)
    carrot = next(route)
    direction, turn = _bearing(carrot - position), 0.0
    most, change = math.radians(style.most_turn), math.radians(style.most_turn_change)
    poses = np.empty((num_frames, 3), np.float32)
    for frame in range(num_frames):
        while np.linalg.norm(carrot - position) < style.look_ahead:
            carrot = next(route)
        if frame == 0:
            direction = _bearing(carrot - position)
        poses[frame] = *position, _wrapped(direction)
        off = _wrapped(_bearing(carrot - position) - direction)
        goal = min(most, max(-most, 0.35 * off))
        turn += min(change, max(-change, goal - turn))
        direction += turn
        pace = style.speed * max(style.slowest, math.cos(off))
        position = position + pace * np.array([math.cos(direction), -math.sin(direction)])
    return poses


def _rooms(maze: Maze, generator: np.random.Generator) -> Iterator[int]:
    """The rooms in the order of the exploration, without end."""
    here, before = int(generator.integers(maze.num_rooms)), -1
    visited = {here}
    yield here
    while True:
        for room in _way_to_unknown(maze, here, before, visited, generator):
            here, before = room, here
            visited.add(room)
            yield room
        if len(visited) == maze.num_rooms:
            visited = {here, before}


def _way_to_unknown(maze: Maze, here: int, before: int, visited: set[int], generator: np.random.Generator) -> list[int]:
    """The shortest way to a room outside `visited` that never turns round; ties are broken at random."""
    begun = {(here, before)}
    ways = deque([([here], before)])
    while ways:
        way, last = ways.popleft()
        if way[-1] not in visited:
            return way[1:]
        for room in map(int, generator.permutation(maze.neighbours(way[-1]))):
            if room != last and (way[-1], room) not in begun:
                begun.add((way[-1], room))
                ways.append(([*way, room], way[-1]))
    raise AssertionError("a maze without dead ends has a way on")


def _points(
    rooms: Iterator[int], maze: Maze, style: WalkingStyle, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Points 5 cm apart along straight lines from room to room."""

    def passed(room: int) -> np.ndarray:
        return maze.centre(room) + generator.uniform(-style.wander, style.wander, 2)

    start = passed(next(rooms))
    for room in rooms:
        end = passed(room)
        steps = max(1, int(np.linalg.norm(end - start) / 0.05))
        for step in range(steps):
            yield start + (end - start) * (step / steps)
        start = end


def _generator(seed: int, purpose: str, clip: int) -> np.random.Generator:
    return np.random.default_rng(rng.key(seed, purpose, clip))


def _beside(room: int, grid: int) -> list[int]:
    row, column = divmod(room, grid)
    places = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [r * grid + c for r, c in places if 0 <= r < grid and 0 <= c < grid]


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def _shuffled(names: list[str], generator: np.random.Generator) -> tuple[str, ...]:
    return tuple(names[place] for place in generator.permutation(len(names)))


def _bearing(step: np.ndarray) -> float:
    return math.atan2(-step[1], step[0])


def _wrapped(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi
