"""Trains the network that reads videos of mazes, and says how well it reads held-out ones.

    flexgen render output=mazes/train num_clips=240
    flexgen render output=mazes/held_out num_clips=24 seed=1
    python -m benchmarks.maze_features

About ten minutes on one core. Weights go to where ``flexgen.metrics.video.maze_features`` finds them. ``--evaluate``
only reads: R^2 of speed and turn, of the way that is clear and of the change of it, accuracy on textures; and what the
measures built on it say of real videos, so that figures of generated ones can be read: the Frechet distance and the
distances of speeds and turns of real videos from other real videos, and of real videos that were spoilt on purpose.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.data.mazes import FLOORS, GAP, ROOM, WALLS, Maze
from flexgen.metrics.video import FrechetDistance, RevisitConsistency
from flexgen.metrics.video.maze_features import FLAWS, STACK, WEIGHTS, MazeFeatures, WalkStatistics

FARTHEST, STEP = 6.0, 0.05  # metres to look ahead for a wall, and how finely


@dataclass(frozen=True)
class Labelled:
    """Clips, and what each stack of five frames should be read as.

    Args:
        frames: uint8 ``[V, F, 32, 32, 3]``.
        poses: ``[V, F, 3]``.
        numbers: speed, turn, clear, ``[V, F - 4, 3]``.
        wall, floor: numbers of textures, int64 ``[V, F - 4]``.
    """

    frames: Tensor
    poses: Tensor
    numbers: Tensor
    wall: Tensor
    floor: Tensor

    @classmethod
    def load(cls, folder: str | Path) -> Labelled:
        """The clips of a folder that ``flexgen render`` wrote; their mazes are drawn again from its seed."""
        folder = Path(folder)
        if not (folder / "videos.json").is_file():
            raise SystemExit(f"{folder} holds no videos: flexgen render output={folder} num_clips=24 seed=1")
        facts = json.loads((folder / "videos.json").read_text())
        frames, poses, numbers, walls, floors = [], [], [], [], []
        for clip, path in enumerate(sorted(folder.glob("clip-*.npy"))):
            maze = Maze.draw(facts["seed"], clip, grid=facts["maze"]["grid"])
            walk = np.load(path.with_name(path.name.replace("clip", "poses"))).astype(np.float64)
            frames.append(torch.from_numpy(np.load(path)))
            poses.append(torch.from_numpy(walk))
            numbers.append(torch.from_numpy(np.stack([*motion(walk), clear_ahead(maze, walk[STACK - 1 :])], -1)))
            middle = walk[STACK // 2 : len(walk) - STACK // 2]
            rooms = [maze.room_at(x, z) for x, z, _ in middle]
            walls.append(torch.tensor([WALLS.index(maze.walls[room]) for room in rooms]))
            floors.append(torch.tensor([FLOORS.index(maze.floors[room]) for room in rooms]))
        stacked = [torch.stack(parts) for parts in (frames, poses, numbers, walls, floors)]
        return cls(stacked[0], stacked[1].float(), stacked[2].float(), stacked[3], stacked[4])


def motion(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean speed (metres a frame) and turn (radians a frame) over the four steps of each stack, ``[F - 4]``."""
    steps = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=-1)
    turns = (np.diff(poses[:, 2]) + np.pi) % (2 * np.pi) - np.pi
    each = np.ones(STACK - 1) / (STACK - 1)
    return np.convolve(steps, each, "valid"), np.convolve(turns, each, "valid")


def clear_ahead(maze: Maze, poses: np.ndarray) -> np.ndarray:
    """Metres from each pose straight ahead to a wall, at most 6, ``[n]``."""
    reach = np.arange(0.0, FARTHEST + STEP, STEP)
    ahead = np.stack([np.cos(poses[:, 2]), -np.sin(poses[:, 2])], -1)
    points = poses[:, None, :2] + reach[:, None] * ahead[:, None]  # [n, steps, 2]
    blocked = ~is_free(maze, points)
    return np.where(blocked.any(-1), reach[blocked.argmax(-1)], FARTHEST)


def is_free(maze: Maze, points: np.ndarray) -> np.ndarray:
    """Whether points (x, z), ``[.., 2]``, lie in a room or in an opening between two."""
    x, z = points[..., 0], points[..., 1]
    free = np.zeros(x.shape, bool)
    for room in range(maze.num_rooms):
        left, top = maze.centre(room) - ROOM / 2
        free |= (x >= left) & (x <= left + ROOM) & (z >= top) & (z <= top + ROOM)
    for first, second in maze.passages:
        left, top = maze.centre(first) - ROOM / 2
        if second - first == 1:
            free |= (x >= left + ROOM) & (x <= left + ROOM + GAP) & (z >= top) & (z <= top + ROOM)
        else:
            free |= (z >= top + ROOM) & (z <= top + ROOM + GAP) & (x >= left) & (x <= left + ROOM)
    return free


def fit(data: Labelled, *, num_steps: int, batch_size: int, lr: float, seed: int) -> MazeFeatures:
    """The network, trained on stacks at random, half of them mirrored and half of them spoilt, see `flawed`.

    Blur and noise leave the poses as they were, so that it reads them through both.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "initial weights"))
        network = MazeFeatures().train()
    flat = data.numbers.flatten(0, 1)
    network.mean.copy_(torch.stack([flat[:, 0].mean(), flat.new_zeros(()), flat[:, 2].mean()]))  # turns: no side first
    network.deviation.copy_(flat.std(0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=num_steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(rng.key(seed, "batches"))
    num_videos, num_stacks = data.wall.shape
    began = time.monotonic()
    for step in range(1, num_steps + 1):
        video = torch.randint(num_videos, (batch_size,), generator=generator)
        start = torch.randint(num_stacks, (batch_size,), generator=generator)
        mirrored = torch.rand(batch_size, generator=generator) < 0.5
        stacks = data.frames[video[:, None], start[:, None] + torch.arange(STACK)]
        stacks = torch.where(mirrored.view(-1, 1, 1, 1, 1), stacks.flip(3), stacks)
        wanted = (data.numbers[video, start] - network.mean) / network.deviation
        wanted[:, 1] = torch.where(mirrored, -wanted[:, 1], wanted[:, 1])
        stacks, flaw = flawed(stacks, generator)
        features = network.of_stacks(stacks)
        readable = flaw < FLAWS.index("jump")
        loss = (network.numbers(features) - wanted)[readable].square().mean()
        for head, classes in ((network.wall, data.wall), (network.floor, data.floor)):
            loss = loss + 0.2 * nn.functional.cross_entropy(head(features)[readable], classes[video, start][readable])
        loss = loss + 0.2 * nn.functional.cross_entropy(network.flaw(features), flaw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return network.eval()


def flawed(stacks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The stacks, half of them spoilt, and what is wrong with each as a place in FLAWS, ``[n]``.

    Blur by a share of a 3 x 3 average; noise of 4 to 20 grey levels; a jump to another stack's frames; one to four
    frames that stand still.
    """
    n, place = len(stacks), torch.arange(STACK)
    flaw = (torch.rand(n, generator=generator) * 2 * (len(FLAWS) - 1)).long()
    flaw = torch.where(flaw < len(FLAWS), flaw, 0)
    share = torch.rand(n, generator=generator)
    first = torch.randint(1, STACK, (n,), generator=generator)  # frame that jumps, or stands still
    out = stacks.float()
    for name in FLAWS[1:]:
        mine = (flaw == FLAWS.index(name)).nonzero().flatten()
        clean, of = out[mine], share[mine].view(-1, 1, 1, 1, 1)
        if name == "blur":
            clean = clean + (0.25 + 0.75 * of) * (blurred(clean) - clean)
        elif name == "noise":
            clean = clean + (4.0 + 16.0 * of) * torch.randn(clean.shape, generator=generator)
        elif name == "jump":
            later = (place >= first[mine, None]).view(-1, STACK, 1, 1, 1)
            clean = torch.where(later, stacks[mine - 1].float(), clean)
        elif name == "still":
            held = torch.where(place >= first[mine, None], first[mine, None] - 1, place)
            clean = clean[torch.arange(len(mine))[:, None], held]
        out[mine] = clean
    return out.round().clamp(0, 255).to(torch.uint8), flaw


def blurred(video: Tensor) -> Tensor:
    """Averages of 3 x 3 pixels, float, of ``[B, F, H, W, C]``."""
    images = video.flatten(0, 1).movedim(-1, 1).float()
    out = nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return out.movedim(1, -1).reshape(video.shape)


def r_squared(found: Tensor, truth: Tensor) -> float:
    return 1.0 - float((found - truth).square().mean() / truth.var(correction=0))


def accuracy(network: MazeFeatures, data: Labelled) -> dict[str, float]:
    """How well it reads videos whose poses are known."""
    found = network.read(data.frames)
    speed, turn, clear = data.numbers.unbind(-1)
    return {
        "speed R2": r_squared(found.speed, speed),
        "turn R2": r_squared(found.turn, turn),
        "clear R2": r_squared(found.clear, clear),
        "speed error, cm a frame": 100 * float((found.speed - speed).square().mean().sqrt()),
        "turn error, degrees a frame": float((found.turn - turn).square().mean().sqrt().rad2deg()),
        "turn bias within a video, degrees a frame": float(
            (found.turn - turn).mean(1).square().mean().sqrt().rad2deg()
        ),
        "clear error, metres": float((found.clear - clear).square().mean().sqrt()),
        "walls right": float((found.wall.argmax(-1) == data.wall).float().mean()),
        "floors right": float((found.floor.argmax(-1) == data.floor).float().mean()),
        "flawless stacks seen as flawed": float((found.flaw.argmax(-1) > 0).float().mean()),
    }


# Real videos made worse, to see what each measure notices.
SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "half blurred": lambda video: (0.5 * video + 0.5 * blurred(video)).round().to(torch.uint8),
    "every second frame twice": lambda video: video[:, torch.arange(video.shape[1]) // 2 * 2],
    "every second frame": lambda video: video[:, ::2],
    "another video each 10 frames": lambda video: torch.cat(
        [part.roll(number, 0) for number, part in enumerate(torch.split(video, 10, 1))], 1
    ),
    "backwards": lambda video: video.flip(1),
}


def evaluate(network: MazeFeatures, train: Labelled, held_out: Labelled) -> dict[str, float]:
    """Prints what the measures say of held-out videos, as they are and spoilt, against as many training videos."""
    scores = accuracy(network, held_out)
    for name, value in scores.items():
        print(f"  {name:44s} {value:8.4f}")
    keys = ("speed_distance", "turn_distance", "near_wall", "receding", "flawed")
    print(f"{'against training videos':28s}{'frechet':>9}" + "".join(f"{key:>16}" for key in keys))
    for how in ("as they are", *SPOILT):
        frechet, walk = FrechetDistance(network), WalkStatistics(network)
        for video, real in ((train.frames[: len(held_out.frames)], True), (held_out.frames, False)):
            shown = video if real or how == "as they are" else SPOILT[how](video)
            frechet.update(shown, real=real)
            walk.update(shown, real=real)
        found = walk.compute()
        print(f"{how:28s}{float(frechet.compute()):9.3f}" + "".join(f"{float(found[key]):16.4f}" for key in keys))
    print("revisits of held-out videos, by poses")
    for name, poses in (("true", held_out.poses), ("reckoned", network.reckon(held_out.frames))):
        revisits = RevisitConsistency()
        revisits.update(held_out.frames, poses)
        found = revisits.compute()
        print(
            f"  {name:10s} ratio {float(found['ratio']):.3f} +- {float(found['ratio_se']):.3f}, {found['pairs']} pairs"
        )
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="mazes/train")
    parser.add_argument("--held-out", default="mazes/held_out")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = Labelled.load(arguments.train), Labelled.load(arguments.held_out)
    if not arguments.evaluate:
        how = {"num_steps": arguments.steps, "batch_size": arguments.batch_size}
        fit(train, **how, lr=arguments.lr, seed=arguments.seed).save(arguments.weights)
    evaluate(MazeFeatures.pretrained(weights=arguments.weights), train, held_out)


if __name__ == "__main__":
    main()
