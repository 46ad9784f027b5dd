"""How the frames of a window see each other: relations of frame indices, and the layers that attend by them.

Nothing here depends on where a window lies or on the order of its rows: only differences of frame indices enter, on a
logarithmic scale, so that a gap of one frame and a gap of fifteen thousand are both read well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from flexgen.networks.attention import attend

__all__ = ["FeatureCache", "FrameAttention", "FrameRelation", "SpaceAttention", "observed_gaps"]


@dataclass(frozen=True, eq=False)
class FrameRelation:
    """Between the frames of the queries and the frames of the keys.

    Args:
        features: ``[B, Q, K, 3]``: log(1 + d) forward, log(1 + d) back, and whether d = 0, for index distances d.
        allowed: bool ``[B, Q, K]``: which frames a frame may look at; always itself.
    """

    features: Tensor
    allowed: Tensor

    @classmethod
    def between(cls, queries: Tensor, keys: Tensor, allowed: Tensor) -> FrameRelation:
        """From frame indices ``[B, Q]`` and ``[B, K]``."""
        distance = (keys[:, None, :] - queries[:, :, None]).float()  # [B, Q, K]
        features = torch.stack(
            [distance.clamp_min(0).log1p(), (-distance).clamp_min(0).log1p(), (distance == 0).float()], dim=-1
        )
        return cls(features, allowed)


@dataclass(eq=False)
class FeatureCache:
    """Features of the observed frames of a window, which its targets attend to, layer by layer.

    Args:
        frame_index: int64 ``[B, C]``, of the observed frames.
        present: bool ``[B, C]``; False where a row has fewer of them.
        layers: keys and values ``[B, C, S, 2 D]`` of every attention over frames, in order of evaluation.
    """

    frame_index: Tensor
    present: Tensor
    layers: list[Tensor] = field(default_factory=list)


def observed_gaps(frame_index: Tensor, present: Tensor, observed_index: Tensor, observed: Tensor) -> Tensor:
    """How far each frame is from the nearest observed frames on either side, ``[B, K, 4]``.

    log(1 + gap) / 10 before and after, 0 where there is none, and whether there is one. A frame is not its own
    neighbour; absent frames get zeros.

    Args:
        frame_index: int64 ``[B, K]``; present: bool ``[B, K]``.
        observed_index: int64 ``[B, C]``; observed: bool ``[B, C]``, where False the index means nothing.
    """
    gap = (observed_index[:, None, :] - frame_index[:, :, None]).float()  # [B, K, C]
    far = torch.finfo(gap.dtype).max
    parts = []
    for sided in (-gap, gap):
        side = torch.where((sided > 0) & observed[:, None, :], sided, far)
        nearest = side.amin(-1) if side.shape[-1] else torch.full(frame_index.shape, far, device=gap.device)
        exists = (nearest < far) & present
        parts += [torch.where(exists, nearest, 0.0).log1p() / 10.0, exists.to(gap.dtype)]
    return torch.stack(parts, dim=-1)


class FrameAttention(nn.Module):
    """Frames of a window attend to each other, residually; the last projection starts at zero.

    Args:
        channels: D.
        num_heads: H.
        num_positions: S. A joint layer has a learned embedding of each.
        joint: every position of a frame looks at every position of the others (worth its price at low resolution,
            where a moving camera carries things from one position to another); else at the same position only.
    """

    def __init__(self, channels: int, num_heads: int, num_positions: int, *, joint: bool = False) -> None:
        super().__init__()
        self.num_heads, self.num_positions = num_heads, num_positions
        self.joint = joint
        self.norm = nn.GroupNorm(_num_groups(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, num_heads))
        self.position = nn.Parameter(torch.randn(num_positions, channels) * 0.02) if joint else None
        for last in (self.out, self.bias[-1]):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def biases(self, relation: FrameRelation) -> Tensor:
        """Of the frames' attention, as `attend` takes it: ``[B S, H, Q, K]``; of a joint layer ``[B, H, Q S, K S]``."""
        bias = self.bias(relation.features).masked_fill(~relation.allowed[..., None], -math.inf)  # [B, Q, K, H]
        shape = "b q k h -> b h (q s1) (k s2)" if self.joint else "b q k h -> (b s1 s2) h q k"
        spread: Tensor = repeat(bias, shape, s1=self.num_positions, s2=self.num_positions if self.joint else 1)
        return spread

    def forward(
        self, x: Tensor, biases: Tensor, *, past: Tensor | None = None, backend: str = "sdpa"
    ) -> tuple[Tensor, Tensor]:
        """The frames ``[B, K, D, h, w]`` after they have looked, and their own keys and values ``[B, K, S, 2 D]``.

        Args:
            biases: of the relation from these frames to `past` and then themselves.
            past: keys and values of further frames, such as observed ones of a cache.
        """
        batch, _, channels, height, width = x.shape
        tokens = rearrange(self.norm(rearrange(x, "b k d h w -> (b k) d h w")), "(b k) d h w -> b k (h w) d", b=batch)
        if self.position is not None:
            tokens = tokens + self.position
        q, own = self.qkv(tokens).split((channels, 2 * channels), dim=-1)
        k, v = (own if past is None else torch.cat([past, own], dim=1)).chunk(2, dim=-1)
        y = attend(self._grouped(q), self._grouped(k), self._grouped(v), biases.to(q.dtype), backend=backend)
        y = self.out(rearrange(y, "g n t d -> g t (n d)"))  # [B, K S, D], or [B S, K, D]
        shape = "b (k h w) d -> b k d h w" if self.joint else "(b h w) k d -> b k d h w"
        return x + rearrange(y, shape, h=height, w=width), own

    def _grouped(self, tokens: Tensor) -> Tensor:
        """``[B, K, S, D]`` as sets of tokens that see each other: ``[B, H, K S, d]``, or ``[B S, H, K, d]``."""
        shape = "b k s (n d) -> b n (k s) d" if self.joint else "b k s (n d) -> (b s) n k d"
        grouped: Tensor = rearrange(tokens, shape, n=self.num_heads)
        return grouped


class SpaceAttention(nn.Module):
    """Every frame attends over its own positions, residually."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(_num_groups(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, *, backend: str = "sdpa") -> Tensor:
        """``[B, D, h, w]``, one frame a row."""
        tokens = rearrange(self.norm(x), "b d h w -> b (h w) d")
        q, k, v = rearrange(self.qkv(tokens), "b s (three n d) -> three b n s d", three=3, n=self.num_heads)
        y = self.out(rearrange(attend(q, k, v, None, backend=backend), "b n s d -> b s (n d)"))
        seen: Tensor = x + rearrange(y, "b (h w) d -> b d h w", h=x.shape[2])
        return seen


def _num_groups(channels: int) -> int:
    return math.gcd(8, channels)
