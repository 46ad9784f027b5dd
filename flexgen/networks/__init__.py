"""Neural networks, as plain modules that know nothing of laws, training or sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexgen._lazy import lazily

if TYPE_CHECKING:
    from flexgen.networks.frame_unet import FrameUNet as FrameUNet
    from flexgen.networks.frames import FeatureCache as FeatureCache
    from flexgen.networks.residual_mlp import ResidualMLP as ResidualMLP

# Loaded on first use: a UNet brings diffusers with it, which takes seconds.
_MODULE_OF = {
    "FeatureCache": "flexgen.networks.frames",
    "FrameUNet": "flexgen.networks.frame_unet",
    "ResidualMLP": "flexgen.networks.residual_mlp",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
