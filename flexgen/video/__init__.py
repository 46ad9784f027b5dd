"""Models of long videos: a backbone over windows of frames, its training, its draws, and a store for what it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexgen._lazy import lazily

if TYPE_CHECKING:
    from flexgen.video.backbone import VideoBackbone as VideoBackbone
    from flexgen.video.fit import BackboneSettings as BackboneSettings
    from flexgen.video.fit import fit_backbone as fit_backbone
    from flexgen.video.fit import pixel_scale as pixel_scale
    from flexgen.video.objective import FrameDenoising as FrameDenoising
    from flexgen.video.process import NoiseProcess as NoiseProcess
    from flexgen.video.process import PixelScale as PixelScale
    from flexgen.video.sampling import WindowSampler as WindowSampler
    from flexgen.video.storage import FrameStore as FrameStore

# Loaded on first use: a backbone brings diffusers with it, which takes seconds.
_MODULE_OF = {
    "BackboneSettings": "flexgen.video.fit",
    "FrameDenoising": "flexgen.video.objective",
    "FrameStore": "flexgen.video.storage",
    "NoiseProcess": "flexgen.video.process",
    "PixelScale": "flexgen.video.process",
    "VideoBackbone": "flexgen.video.backbone",
    "WindowSampler": "flexgen.video.sampling",
    "fit_backbone": "flexgen.video.fit",
    "pixel_scale": "flexgen.video.fit",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazily(__name__, __all__, _MODULE_OF)
