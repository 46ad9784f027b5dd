"""How the frames of a window see each other: relations of frame indices, and the layers that attend by them.

Nothing here depends on where a window lies or on the order of its rows: only differences of frame indices enter, on a
logarithmic scale, so that a gap of one frame and a gap of fifteen thousand are both read well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn

from flexgen.networks.attention import attend

__all__ = ["FeatureCache", "FrameAttention", "FrameRelation", "SpaceAttention", "observed_gaps"]


@dataclass(frozen=True, eq=False)
class FrameRelation:
    """Between the frames that ask and the frames that answer.

    Args:
        features: ``[B, Q, K, 3]``: log(1 + d) forward, log(1 + d) back, and whether d = 0, for index distances d.
        allowed: bool ``[B, Q, K]``: which frames a frame may look at; always itself.
    """

    features: Tensor
    allowed: Tensor

    @classmethod
    def between(cls, asking: Tensor, answering: Tensor, allowed: Tensor) -> FrameRelation:
        """From frame indices ``[B, Q]`` and ``[B, K]``."""
        distance = (answering[:, None, :] - asking[:, :, None]).float()  # [B, Q, K]
        features = torch.stack(
            [distance.clamp_min(0).log1p(), (-distance).clamp_min(0).log1p(), (distance == 0).float()], dim=-1
        )
        return cls(features, allowed)


@dataclass(eq=False)
class FeatureCache:
    """What the observed frames of a window have to say to its targets, layer by layer.

    Args:
        frame_index: int64 ``[B, C]``, of the observed frames.
        present: bool ``[B, C]``; False where a row has fewer of them.
        layers: keys and values ``[B, C, S, D]`` of every attention over frames, in the order in which they are asked.
    """

    frame_index: Tensor
    present: Tensor
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


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
        joint: every position of a frame looks at every position of the others (worth its price at low resolution,
            where a moving camera carries things from one position to another); else at the same position only.
        num_positions: S, of a joint layer: its positions have learned embeddings.
    """

    def __init__(self, channels: int, num_heads: int, *, joint: bool = False, num_positions: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.joint = joint
        self.norm = nn.GroupNorm(_num_groups(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, num_heads))
        self.position = nn.Parameter(torch.randn(num_positions, channels) * 0.02) if joint else None
        for last in (self.out, self.bias[-1]):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        relation: FrameRelation,
        *,
        past: tuple[Tensor, Tensor] | None = None,
        backend: str = "sdpa",
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The frames ``[B, K, D, h, w]`` after they have looked, and their own keys and values ``[B, K, S, D]``.

        Args:
            relation: from these frames to `past` and then themselves.
            past: keys and values of frames that are not asked, such as observed ones of a cache.
        """
        num_frames, height = x.shape[1], x.shape[3]
        flat = rearrange(x, "b k d h w -> (b k) d h w")
        tokens = rearrange(self.norm(flat), "(b k) d h w -> b k (h w) d", k=num_frames)  # [B, K, S, D]
        if self.position is not None:
            tokens = tokens + self.position
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)  # [B, K, S, D] each
        own = (k, v)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        bias = self.bias(relation.features).masked_fill(~relation.allowed[..., None], -math.inf)  # [B, Q, K, H]
        bias = rearrange(bias, "b q k h -> b h q k").to(q.dtype)
        positions = q.shape[2]
        if self.joint:
            q, k, v = (rearrange(t, "b k s (n d) -> b n (k s) d", n=self.num_heads) for t in (q, k, v))
            bias = bias.repeat_interleave(positions, 2).repeat_interleave(positions, 3)
            y = attend(q, k, v, bias, backend=backend)
            y = rearrange(y, "b n (k s) d -> b k s (n d)", s=positions)
        else:
            q, k, v = (rearrange(t, "b k s (n d) -> (b s) n k d", n=self.num_heads) for t in (q, k, v))
            y = attend(q, k, v, bias.repeat_interleave(positions, 0), backend=backend)
            y = rearrange(y, "(b s) n k d -> b k s (n d)", s=positions)
        return x + rearrange(self.out(y), "b k (h w) d -> b k d h w", h=height), own


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
        q, k, v = (rearrange(t, "b s (n d) -> b n s d", n=self.num_heads) for t in self.qkv(tokens).chunk(3, -1))
        y: Tensor = self.out(rearrange(attend(q, k, v, None, backend=backend), "b n s d -> b s (n d)"))
        return x + rearrange(y, "b (h w) d -> b d h w", h=x.shape[2])


def _num_groups(channels: int) -> int:
    return math.gcd(8, channels)
