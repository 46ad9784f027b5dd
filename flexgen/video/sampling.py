"""Draws of the target frames of windows given their observed frames, by denoising."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.errors import ConfigError, FlexgenError, QueryError, SpaceError
from flexgen.networks.context import Kernels
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.training.guards import evaluating
from flexgen.video.backbone import VideoBackbone
from flexgen.video.options import arithmetic, finite, flag_or_none
from flexgen.video.process import NUM_TIMESTEPS
from flexgen.video.slots import gather_frames, members

__all__ = ["WindowSampler"]


class WindowSampler:
    """p(targets | observed) of windows of frames, as a diffusion model answers it.

    Args:
        backbone: the trained model.
        num_inference_steps: denoising steps.
        scheduler: see `NoiseProcess.scheduler`; default ``"unipc"`` for flows, ``"ddim"`` otherwise.
        history_guidance: w >= 0: predictions are moved to p(x | C) + w (p(x | C) - p(x)), away from what the network
            would say without observed frames (history guidance, Song et al. 2025); 0 costs nothing, more costs a
            second evaluation a step. The network must have been trained with windows without observed frames.
        observed_noise: level that observed frames are given, noise included, and told; for models trained with it.
        cached: use the cache of a one-way network; by default where there is one.
        dtype: of the arithmetic, or its name: None or ``"float32"``; ``"bfloat16"`` or ``"float16"`` by autocast.
        on_step: called after every step with its number and the targets' present values ``[B, P, c, h, w]``,
            which are tensors of inference mode: clone them to write into them.

    The draws of a row depend on its stream, its frames and their indices: not on the rows beside it, nor on padding, as
    far as the arithmetic of the device does not.
    """

    def __init__(
        self,
        backbone: VideoBackbone,
        *,
        num_inference_steps: int = 10,
        scheduler: str | None = None,
        history_guidance: float = 0.0,
        observed_noise: float = 0.0,
        cached: bool | None = None,
        dtype: torch.dtype | str | None = None,
        on_step: Callable[[int, Tensor], object] | None = None,
    ) -> None:
        self.backbone = backbone
        self.num_inference_steps = whole_number("num_inference_steps", num_inference_steps, 1, ConfigError)
        self.scheduler_name = scheduler or ("unipc" if backbone.process.is_flow else "ddim")
        backbone.process.scheduler(self.scheduler_name, self.num_inference_steps)  # refuses what does not fit
        self.history_guidance = finite("history_guidance", history_guidance)
        self.observed_noise = finite("observed_noise", observed_noise)
        if self.history_guidance < 0:
            raise ConfigError("history_guidance", f"is {history_guidance}", "Pass 0 or more.")
        if not 0 <= self.observed_noise < 1:
            raise ConfigError("observed_noise", f"is {observed_noise}", "Pass a level in [0, 1).")
        one_way = backbone.network.one_way
        self.cached = one_way if flag_or_none("cached", cached) is None else bool(cached)
        if self.cached and not one_way:
            raise ConfigError("cached", "is True", "A network with attention='full' has no cache: pass False.")
        self.dtype = arithmetic(dtype)
        if not (on_step is None or callable(on_step)):
            raise ConfigError("on_step", f"is {on_step!r}", "Pass a function, or None.")
        self.on_step = on_step

    @classmethod
    def from_settings(cls, backbone: VideoBackbone, settings: Mapping[str, Any]) -> WindowSampler:
        """The sampler that ``settings()`` described, of the same backbone."""
        if settings.get("backbone") != backbone.fingerprint():
            raise ConfigError("backbone", "is not the one that the settings are of", "Load the same checkpoint.")
        names = ("num_inference_steps", "scheduler", "history_guidance", "observed_noise", "cached")
        return cls(backbone, **{name: settings[name] for name in names}, dtype=settings["arithmetic"])

    @property
    def evaluations_per_window(self) -> int:
        """How often the network sees the targets of a window."""
        steps = len(self.backbone.process.scheduler(self.scheduler_name, self.num_inference_steps).timesteps)
        return steps * (2 if self.history_guidance else 1)

    @property
    def window(self) -> int:
        return self.backbone.window

    def settings(self) -> dict[str, Any]:
        """All that the draws depend on besides the seed, as JSON: what a store of frames remembers."""
        return {
            "backbone": self.backbone.fingerprint(),
            "num_inference_steps": self.num_inference_steps,
            "scheduler": self.scheduler_name,
            "history_guidance": self.history_guidance,
            "observed_noise": self.observed_noise,
            "cached": self.cached,
            "arithmetic": str(self.dtype or torch.float32).removeprefix("torch."),
        }

    @torch.no_grad()
    def sample_window(
        self,
        x: Tensor,
        query: Query,
        *,
        frame_index: Tensor,
        generator: Streams,
    ) -> Tensor:
        """x with the target frames drawn; observed frames and padding come back as they were.

        Args:
            x: uint8 ``[B, K, h, w, c]``.
            query: over the slots, ``[K]`` or ``[B, K]``; slots in neither set are padding.
            frame_index: int64 ``[B, K]`` or ``[K]``, the frames' places in the video.
            generator: one stream a row.
        """
        query = query.expand(len(x))
        self._check(x, query, frame_index, generator)
        device, scale = self.backbone.device, self.backbone.scale
        frame_index = frame_index.expand(len(x), -1).to(device)
        target_slot, is_target = members(query.target.to(device))  # [B, P]
        observed_slot, is_observed = members(query.observed.to(device))  # [B, C]
        if not bool(is_target.any()):
            return x.clone()
        target_index = frame_index.gather(1, target_slot)
        observed_index = frame_index.gather(1, observed_slot)
        observed = scale.to_network(gather_frames(x.to(device), observed_slot))  # [B, C, c, h, w]
        noise = self._noise((*target_slot.shape, *observed.shape[2:]), generator, device)
        observed_level = torch.full(observed_index.shape, self.observed_noise, device=device)
        if self.observed_noise:
            extra = self._noise(observed.shape, generator, device)
            observed = self.backbone.process.noised(observed, extra, observed_level)
        # Inference mode, past no_grad, spares the bookkeeping of 1800 small operations a pass.
        with evaluating(self.backbone), self._arithmetic(device), torch.inference_mode():
            ask = _Asking(self, target_index, is_target, observed, observed_level, observed_index, is_observed)
            values = self._denoise(ask, noise, generator)
        pixels = scale.to_pixels(values).to(x.device)  # [B, P, h, w, c]
        out = x.clone()
        row, place = is_target.to(x.device).nonzero(as_tuple=True)
        out[row, target_slot.to(x.device)[row, place]] = pixels[row, place]
        return out

    def _denoise(self, ask: _Asking, noise: Tensor, generator: Streams) -> Tensor:
        scheduler = self.backbone.process.scheduler(self.scheduler_name, self.num_inference_steps, device=noise.device)
        ancestral, values = self.scheduler_name == "ddpm", noise
        for number, timestep in enumerate(scheduler.timesteps):
            level = timestep.to(noise.device, torch.float32) / NUM_TIMESTEPS
            extra = {"variance_noise": self._noise(noise.shape, generator, noise.device)} if ancestral else {}
            values = scheduler.step(ask.prediction(values, level).float(), timestep, values, **extra).prev_sample
            if self.on_step is not None:
                self.on_step(number, values)
        return values

    def _noise(self, shape: tuple[int, ...], generator: Streams, device: torch.device) -> Tensor:
        # A row with fewer frames than others has the same numbers as alone: they are counted from its first frame on.
        return rng.normal(shape, generator=generator).to(device)

    def _arithmetic(self, device: torch.device) -> Any:
        return nullcontext() if self.dtype is None else torch.autocast(device.type, dtype=self.dtype)

    def _check(self, x: Tensor, query: Query, frame_index: Tensor, generator: Streams) -> None:
        shape = self.backbone.frame_shape
        if x.dtype != torch.uint8 or x.ndim != 5 or tuple(x.shape[2:]) != shape:
            raise SpaceError(
                "x",
                f"is {x.dtype} of shape {tuple(x.shape)}",
                f"Pass uint8 frames [B, K, {', '.join(map(str, shape))}].",
            )
        if query.num_sites != x.shape[1]:
            raise QueryError(
                "query", f"is about {query.num_sites} slots, but x has {x.shape[1]}", "Name every slot of the window."
            )
        if frame_index.dtype != torch.int64 or tuple(frame_index.shape) not in ((x.shape[1],), tuple(x.shape[:2])):
            raise QueryError(
                "frame_index",
                f"is {frame_index.dtype} of shape {tuple(frame_index.shape)}",
                f"Pass int64 of shape [{x.shape[1]}] or [{x.shape[0]}, {x.shape[1]}], a place for every slot.",
            )
        if not isinstance(generator, Streams) or len(generator) != len(x):
            kind = f"{len(generator)} streams" if isinstance(generator, Streams) else type(generator).__name__
            raise FlexgenError("generator", f"is {kind}", f"Pass Streams(seed, {len(x)}), one stream a row of x.")


class _Asking:
    """The network's prediction for the targets of a batch of windows, whatever way it is had."""

    def __init__(
        self,
        sampler: WindowSampler,
        target_index: Tensor,
        is_target: Tensor,
        observed: Tensor,
        observed_level: Tensor,
        observed_index: Tensor,
        is_observed: Tensor,
    ) -> None:
        network, self.guidance = sampler.backbone.network, sampler.history_guidance
        self.network, self.target_index = network, target_index
        self.observed, self.observed_level = observed, sampler.backbone.process.seen(observed_level)
        self.has_observed = bool(is_observed.any())
        self.joined = self.has_observed and not sampler.cached
        # What all steps share is computed once.
        nothing, kernels = torch.zeros_like(is_target), Kernels()
        asked: dict[str, Any] = {"observed": nothing, "present": is_target, "kernels": kernels}
        if self.guidance or not self.has_observed:
            self.context_alone = network.context(target_index, **asked)
        if self.joined:
            self.context = network.context(
                torch.cat([target_index, observed_index], 1),
                observed=torch.cat([nothing, is_observed], 1),
                present=torch.cat([is_target, is_observed], 1),
                kernels=kernels,
            )
        elif self.has_observed:
            shared = kernels if observed_index.shape == target_index.shape else None  # one pass is worth no packing
            cache = network.observe(observed, self.observed_level, observed_index, present=is_observed, kernels=shared)
            self.context = network.context(target_index, cache=cache, **asked)

    def prediction(self, values: Tensor, level: Tensor) -> Tensor:
        """``[B, P, c, h, w]`` for targets at one noise level."""
        levels = level.expand(self.target_index.shape)
        if not self.has_observed:
            return self._alone(values, levels)
        told = self._given(values, levels)
        if self.guidance:
            told = told + self.guidance * (told - self._alone(values, levels))
        return told

    def _alone(self, values: Tensor, levels: Tensor) -> Tensor:
        out: Tensor = self.network(values, levels, context=self.context_alone)
        return out

    def _given(self, values: Tensor, levels: Tensor) -> Tensor:
        if self.joined:
            frames, levels = torch.cat([values, self.observed], 1), torch.cat([levels, self.observed_level], 1)
        else:
            frames = values
        out: Tensor = self.network(frames, levels, context=self.context)
        return out[:, : values.shape[1]]
