"""A small fixed network that reads videos of ``flexgen render``: speed, turns, the way ahead, textures, flaws.

A Frechet distance of mazes is taken in its features; what it reads says whether generated walks are like real ones.

Trained by ``python -m benchmarks.maze_features``, on videos alone that were rendered with seed 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics import Metric

from flexgen import saving
from flexgen.data.mazes import FLOORS, WALLS
from flexgen.errors import CheckpointError, DataError
from flexgen.metrics.video.arguments import joined, mean_and_error, require_video

__all__ = ["FLAWS", "MazeFeatures", "MazeReading", "WalkStatistics"]

WEIGHTS = Path(__file__).with_name("maze_features.safetensors")
FLAWS = ("none", "blur", "noise", "jump", "still")
SIZE, STACK = 32, 5  # pixels a side; frames that are read at once
_AT_ONCE = 1024  # stacks
_BINS, _FASTEST, _SHARPEST = 400, 0.4, 20.0  # of the histograms of speeds (metres) and turns (degrees) a frame


class MazeReading(NamedTuple):
    """What stacks of five neighbouring frames show, ``[..]`` each and, of the last three, ``[.., classes]``."""

    speed: Tensor
    """Metres a frame."""
    turn: Tensor
    """Radians a frame; positive to the left, as the direction of a pose grows."""
    clear: Tensor
    """Metres to the wall straight ahead of the last frame, at most 6."""
    wall: Tensor
    """Log-odds of the textures of the room around the middle frame, in the order of ``flexgen.data.mazes.WALLS``."""
    floor: Tensor
    """The same of FLOORS."""
    flaw: Tensor
    """Log-odds of FLAWS: the kinds of spoilt videos that the network was shown beside real ones."""


class MazeFeatures(nn.Module):
    """Takes uint8 ``[B, F, 32, 32, 3]``, gives ``num_features`` numbers for each stack of five frames.

    ``MazeFeatures.pretrained()`` is the network to use; the class makes one without training.

    Args:
        stride: frames between the beginnings of stacks, for `forward`; 4 are stacks that share a frame.

    >>> frechet = FrechetDistance(MazeFeatures.pretrained())  # no FVD: another network, other videos
    """

    num_features = 32

    def __init__(self, *, stride: int = 4) -> None:
        super().__init__()
        self.stride = stride
        self.trunk = nn.Sequential(
            nn.Conv2d(3 * STACK, 32, 5, stride=2, padding=2),
            nn.GroupNorm(4, 32),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GroupNorm(4, 64),
            nn.SiLU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            nn.GroupNorm(4, 96),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(96 * (SIZE // 8) ** 2, 128),
            nn.SiLU(),
            nn.Linear(128, self.num_features),
        )
        self.numbers = nn.Linear(self.num_features, 3)  # speed, turn, clear, each over its deviation
        self.wall = nn.Linear(self.num_features, len(WALLS))
        self.floor = nn.Linear(self.num_features, len(FLOORS))
        self.flaw = nn.Linear(self.num_features, len(FLAWS))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("deviation", torch.ones(3))
        self.mean: Tensor
        self.deviation: Tensor

    @classmethod
    def pretrained(cls, *, stride: int = 4, weights: str | Path = WEIGHTS) -> MazeFeatures:
        """The network with the weights that come with the package, in eval mode, its weights fixed.

        Raises:
            CheckpointError: the file of `weights` is missing, damaged or of another network.
        """
        network = cls(stride=stride)
        try:
            network.load_state_dict({name: weight.float() for name, weight in load_file(weights).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            fix = "Install flexgen anew, or run python -m benchmarks.maze_features."
            raise CheckpointError("weights", f"{str(weights)!r} cannot be read: {reason}", fix) from error
        return network.eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Writes the weights in float16, as safetensors."""
        weights = {name: weight.half().contiguous() for name, weight in self.state_dict().items()}
        with saving.writing("path", path), saving.replacing(path) as partial:
            save_file(weights, partial)

    def of_stacks(self, stacks: Tensor) -> Tensor:
        """Features ``[n, D]`` of uint8 ``[n, 5, 32, 32, 3]``."""
        x = rearrange(stacks, "n f h w c -> n (f c) h w").float() / 127.5 - 1.0  # [n, 15, 32, 32]
        features: Tensor = self.trunk(x)
        return features

    def reading(self, features: Tensor) -> MazeReading:
        """Speeds, turns, walls and flaws that are read off features ``[.., D]``."""
        speed, turn, clear = (self.numbers(features) * self.deviation + self.mean).unbind(-1)
        return MazeReading(speed, turn, clear, self.wall(features), self.floor(features), self.flaw(features))

    def features(self, video: Tensor, *, stride: int | None = None) -> Tensor:
        """``[B, n, D]``: of the stacks that begin every `stride` frames of uint8 ``[B, F, 32, 32, 3]``."""
        require_video("video", video, least_frames=STACK)
        if video.shape[2:] != (SIZE, SIZE, 3):
            raise DataError("video", f"has shape {tuple(video.shape)}", f"Pass [B, F, {SIZE}, {SIZE}, 3].")
        stacks = rearrange(
            video.unfold(1, STACK, self.stride if stride is None else stride), "b n h w c f -> (b n) f h w c"
        )
        found = torch.cat([self.of_stacks(part) for part in torch.split(stacks, _AT_ONCE)])
        features: Tensor = rearrange(found, "(b n) d -> b n d", b=len(video))
        return features

    def forward(self, video: Tensor) -> Tensor:
        features: Tensor = rearrange(self.features(video), "b n d -> (b n) d")
        return features

    @torch.no_grad()
    def read(self, video: Tensor) -> MazeReading:
        """The reading of every stack, ``[B, F - 4]`` each; number k is of frames k to k + 4."""
        return self.reading(self.features(video, stride=1))

    def reckon(self, video: Tensor) -> Tensor:
        """Poses ``[B, F, 3]``, as `RevisitConsistency` takes them, by adding up speeds and turns from the pose 0 on.

        They drift, so that revisits are found less surely: over 300 frames of real mazes 829 pairs in place of 2296,
        and a consistency of 0.38 in place of 0.18.
        """
        found, edge = self.read(video), STACK // 2
        speed, turn = (nn.functional.pad(part, (edge, edge - 1), "replicate") for part in (found.speed, found.turn))
        direction = nn.functional.pad(turn.cumsum(1), (1, 0))  # [B, F]
        heading = (direction[:, 1:] + direction[:, :-1]) / 2
        x, z = (nn.functional.pad((speed * part).cumsum(1), (1, 0)) for part in (heading.cos(), -heading.sin()))
        return torch.stack([x, z, direction], -1)


class WalkStatistics(Metric):
    """Does the viewer of generated videos walk and turn as in real ones, and stay out of the walls?

    The network's reading stands for poses that nobody knows; it is the network's word on both sides, errors included.

    Args:
        features: default: `MazeFeatures.pretrained`.
        near: metres; a wall that is nearer straight ahead is too near. Real walkers turn at 2.1 or before.
        straight: degrees; over eight frames of less turn, a wall ahead has to come nearer by what was walked.

    `compute` returns scores and, as ``..._se``, their standard errors over the generated videos:

    * ``speed_distance``, ``turn_distance``: Wasserstein distances (metres, degrees a frame) between the distributions
      of the speeds, and of the sizes of turns, of all stacks;
    * ``speed``, ``turn``: means of both;
    * ``near_wall``: share of stacks that end too near to a wall;
    * ``receding``: share of straight walks towards a wall after which it is a metre farther than it has to be: it was
      walked through, or has become another;
    * ``flawed``: share of stacks in which the network sees one of FLAWS.

    All but the distances also of real videos, with ``real_`` in front.
    """

    full_state_update = False

    def __init__(self, features: MazeFeatures | None = None, *, near: float = 1.9, straight: float = 5.0) -> None:
        super().__init__()
        self.features = MazeFeatures.pretrained() if features is None else features
        self.near, self.straight = near, straight
        for name in ("speed_law", "turn_law", "speed", "turn", "near_wall", "receding", "flawed"):
            self.add_state(name, [], dist_reduce_fx="cat")
            self.add_state(f"real_{name}", [], dist_reduce_fx="cat")

    def update(self, video: Tensor, *, real: bool = False) -> None:
        """Args: video, uint8 ``[B, F, 32, 32, 3]``; real, whether it is of the real ones."""
        found, name = self.features.read(video), "real_" if real else ""
        speed, turn = found.speed.double(), found.turn.double().rad2deg()
        of_videos = {
            "speed_law": _histogram(speed, _FASTEST),
            "turn_law": _histogram(turn.abs(), _SHARPEST),
            "speed": speed.mean(1),
            "turn": turn.abs().mean(1),
            "near_wall": (found.clear < self.near).double().mean(1),
            "receding": _receding(speed, turn, found.clear.double(), self.straight),
            "flawed": (found.flaw.argmax(-1) > 0).double().mean(1),
        }
        for part, values in of_videos.items():
            getattr(self, name + part).append(values)

    def compute(self) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = {}
        for part, most in (("speed", _FASTEST), ("turn", _SHARPEST)):
            laws, real_laws = joined(getattr(self, f"{part}_law")), joined(getattr(self, f"real_{part}_law"))
            if 0 in (len(laws), len(real_laws)):
                raise DataError("video", "was given of one kind alone", "Update with real and with generated videos.")
            scores[f"{part}_distance"] = _distance(laws.sum(0), real_laws.sum(0), most)
            left_out = torch.stack([_distance(laws.sum(0) - law, real_laws.sum(0), most) for law in laws])
            scores[f"{part}_distance_se"] = jackknife_error(left_out)
        for part in ("speed", "turn", "near_wall", "receding", "flawed"):
            values = joined(getattr(self, part))
            scores[part], scores[f"{part}_se"] = mean_and_error(values[~values.isnan()])
            values = joined(getattr(self, f"real_{part}"))
            scores[f"real_{part}"] = mean_and_error(values[~values.isnan()])[0]
        return scores


def jackknife_error(left_out: Tensor) -> Tensor:
    """Standard error of a score from its values ``[n]`` with one of n independent videos left out."""
    n = len(left_out)
    return (
        ((left_out - left_out.mean()).square().sum() * (n - 1) / n).sqrt() if n > 1 else left_out.new_tensor(torch.nan)
    )


def _histogram(values: Tensor, most: float) -> Tensor:
    """Counts ``[B, bins]`` of ``[B, n]`` between 0 and `most`; what lies beyond counts at the ends."""
    place = (values / most * _BINS).long().clamp(0, _BINS - 1)
    return torch.zeros(len(values), _BINS, dtype=torch.float64, device=values.device).scatter_add_(
        1, place, torch.ones_like(values)
    )


def _distance(counts: Tensor, others: Tensor, most: float) -> Tensor:
    """The 1-Wasserstein distance of two histograms; NaN where one is empty."""
    apart = counts.cumsum(0) / counts.sum() - others.cumsum(0) / others.sum()
    return apart.abs().sum() * (most / _BINS)


def _receding(speed: Tensor, turn: Tensor, clear: Tensor, straight: float, span: int = 8) -> Tensor:
    """`WalkStatistics`' share of walls that recede, ``[B]``; NaN in videos without a straight walk to a wall."""
    if speed.shape[1] <= span:
        return speed.new_full((len(speed),), torch.nan)
    turned, walked = (part[:, 1:].unfold(1, span, 1).sum(-1) for part in (turn, speed))  # [B, n - span]
    before, after = clear[:, :-span], clear[:, span:]
    towards = (turned.abs() < straight) & (before < 5.0)  # the network reads no more than 6
    recedes = towards & (after > before - walked + 1.0)
    return recedes.sum(1) / towards.sum(1)
