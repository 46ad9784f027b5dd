"""What trains a video backbone: denoise the target frames of windows that a law draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.errors import ConfigError, DataError
from flexgen.laws import MaskLaw
from flexgen.rng import Randomness, Streams
from flexgen.training.batches import Batch
from flexgen.video.process import NoiseProcess, PixelScale
from flexgen.video.slots import gather_frames, members

__all__ = ["FrameDenoising"]


class FrameDenoising:
    """Mean squared error of the prediction over the pixels of the target frames, ``[B]``.

    A batch is a mapping with ``"frames"``, uint8 ``[B, T, h, w, c]``, and ``"present"``, bool ``[B, T]``. Of every clip
    the law draws which frames are targets and which are observed; no other frame is looked at.

    Args:
        law: over the frames of a clip; its targets and observed frames together fit the window.
        process: see `NoiseProcess`.
        scale: of pixels.
        window: K, slots of a window.
        observed_noise: highest noise level of observed frames. Half of the windows then have one level on all of
            theirs, drawn uniformly, and are told; it makes a model forgiving of flaws in frames it made itself.
        level: noise level of all targets, or None: drawn uniformly, spread evenly over the rows of a batch.
        flip: mirror half of the clips, left to right.

    Sources: Harvey et al. (2022); noise on observed frames: Ho et al. (2022), *Cascaded diffusion models*; a level per
    frame: Chen et al. (2024), *Diffusion forcing*.
    """

    def __init__(
        self,
        law: MaskLaw,
        process: NoiseProcess,
        scale: PixelScale,
        *,
        window: int,
        observed_noise: float = 0.0,
        level: float | None = None,
        flip: bool = False,
    ) -> None:
        if not 0 <= observed_noise < 1:
            raise ConfigError("observed_noise", f"is {observed_noise}", "Pass a level in [0, 1).")
        if window < 1:
            raise ConfigError("window", f"is {window}", "Pass at least 1.")
        self.law, self.process, self.scale = law, process, scale
        self.window, self.observed_noise, self.level, self.flip = window, observed_noise, level, flip

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        if isinstance(batch, Tensor) or "frames" not in batch:
            kind = "a tensor" if isinstance(batch, Tensor) else f"batches of {sorted(batch)}"
            raise DataError("data", f"yields {kind}", "Frame denoising needs 'frames' and 'present'; see VideoFolder.")
        frames = batch["frames"]  # [B, T, h, w, c]
        if frames.dtype != torch.uint8 or frames.ndim != 5:
            raise DataError(
                "data", f"yields frames {frames.dtype} {tuple(frames.shape)}", "Pass uint8 [B, T, h, w, c]."
            )
        present = batch.get("present", torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device))
        query = self.law.draw(present, generator=generator).query.expand(len(frames))
        index, taken = members(query.target | query.observed, self.window)  # [B, K]
        target = query.target.gather(1, index) & taken
        observed = query.observed.gather(1, index) & taken
        clean = self.scale.to_network(gather_frames(frames, index))  # [B, K, c, h, w]
        if self.flip:
            mirrored = rng.uniform((len(clean),), generator=generator) < 0.5
            clean = torch.where(mirrored.view(-1, 1, 1, 1, 1), clean.flip(-1), clean)
        noise = rng.normal(clean.shape, generator=generator)
        level = torch.where(target, self._target_level(len(frames), generator)[:, None], 0.0)
        level = torch.where(observed, self._observed_level(len(frames), generator)[:, None], level)
        noised = self.process.noised(clean, noise, level)
        predicted = network(noised, self.process.seen(level), index, observed=observed, present=taken)
        wanted = self.process.wanted(clean, noise, level)
        error = (predicted.float() - wanted).square().flatten(2).mean(-1)  # [B, K]
        return torch.where(target, error, 0.0).sum(1) / target.sum(1).clamp_min(1)

    def _target_level(self, num_rows: int, generator: Randomness) -> Tensor:
        if self.level is not None:
            return torch.full((num_rows,), float(self.level), device=generator.device)
        return _spread(num_rows, generator)

    def _observed_level(self, num_rows: int, generator: Randomness) -> Tensor:
        if not self.observed_noise:
            return torch.zeros(num_rows, device=generator.device)
        some, level = rng.uniform((num_rows, 2), generator=generator).unbind(1)
        return torch.where(some < 0.5, 0.0, self.observed_noise * level)

    def __repr__(self) -> str:
        return (
            f"FrameDenoising({self.law!r}, {self.process!r}, window={self.window}, "
            f"observed_noise={self.observed_noise}, level={self.level}, flip={self.flip})"
        )


_GOLDEN_RATIO = 0x9E3779B97F4A7C15 - (1 << 64)  # (sqrt(5) - 1) / 2 in units of 2^-64, as an int64


def _spread(num_rows: int, generator: Randomness) -> Tensor:
    """Uniform levels ``[B]`` that lie evenly over [0, 1): steps of the golden ratio by row name from a common start.

    A row's level depends on its name alone, not on the rows beside it, and is uniform by itself. Counted in units of
    2^-64, in which int64 wraps as the unit interval should, so that large names are as good as small ones.
    """
    if not isinstance(generator, Streams):
        return rng.uniform((num_rows,), generator=generator)
    start = rng.key(generator.seed, "level", generator.counter) * 2 - (1 << 63)
    turns = generator.rows * _GOLDEN_RATIO + start
    return ((turns >> 40) & 0xFFFFFF).float() * 2.0**-24
