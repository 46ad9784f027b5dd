"""A small FrameUNet whose every weight is at work, and windows for it: shared by the tests of networks and of video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexgen.networks import FrameUNet

LEVELS = ("both", "joint")


def network(**changes: Any) -> FrameUNet:
    """8 x 8 pixels, two resolutions; no weight is zero, so that no layer is silent."""
    options: dict[str, Any] = {"sample_size": 8, "in_channels": 2, "channels": (16, 32), "num_heads": 2}
    source = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        unet = FrameUNet(**{**options, "attention_levels": LEVELS, **changes})
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=source))
    return unet.eval()


def window(num_rows: int = 2, num_frames: int = 6, *, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of a pass: every third frame of a row observed."""
    source = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(40, generator=source)[:num_frames] for _ in range(num_rows)])
    observed = torch.zeros(num_rows, num_frames, dtype=torch.bool)
    observed[:, ::3] = True
    level = torch.rand(num_rows, num_frames, generator=source)
    return {
        "frames": torch.randn(num_rows, num_frames, 2, 8, 8, generator=source),
        "level": torch.where(observed, 0.0, level),
        "frame_index": index,
        "observed": observed,
    }
