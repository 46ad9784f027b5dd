"""A space-time UNet over a window of frames at arbitrary frame indices."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from einops import rearrange, repeat
from torch import Tensor, nn

from flexgen.errors import ConfigError
from flexgen.networks.attention import resolve_backend
from flexgen.networks.context import FrameContext, Kernels, packs_kernels
from flexgen.networks.frames import FeatureCache, FrameAttention, FrameRelation, SpaceAttention, observed_gaps

__all__ = ["FrameUNet"]


class FrameUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts what to take off the target frames of a window, given noisy targets and observed frames.

    Convolutions and attention over positions see one frame at a time; attention over frames joins them. A frame tells
    the network its own noise level, whether it is observed, and how far the nearest observed frames are.

    ``attention="full"`` (as in FDM, Harvey et al. 2022): every frame looks at every frame. ``"one_way"``: observed
    frames look at observed ones only. Their features then depend neither on the targets nor on their noise, are
    computed once by `observe`, and serve all denoising steps: `forward` with the cache equals `forward` without.

    Results do not change when all frame indices are shifted, when rows of a window are permuted (they permute along),
    or when absent frames are appended.

    Args:
        sample_size: height and width in pixels.
        in_channels: of a frame.
        channels: widths, one a resolution, each half of the one before.
        attention_levels: what happens at each resolution: ``"none"``, ``"space"``, ``"frames"`` (same positions of
            other frames), ``"both"``, or ``"joint"`` (all positions of all frames); after every residual block on the
            way down, after the last one on the way up.
        num_blocks: residual blocks a resolution on the way down; one more on the way up.
        num_heads: of all attention.
        attention: ``"one_way"`` or ``"full"``.
        attention_backend: ``"auto"``, ``"sdpa"``, ``"flex"`` or ``"xformers"``.
        dropout: in the residual blocks.
        patch_size: side of the squares of pixels that become one position with so many times the channels, on the way
            in and out (Hoogeboom et al. 2023, *simple diffusion*): work at full resolution is what costs most.
    """

    _supports_gradient_checkpointing = False

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        channels: tuple[int, ...] = (32, 64, 96, 128),
        attention_levels: tuple[str, ...] = ("none", "frames", "both", "joint"),
        num_blocks: int = 1,
        num_heads: int = 4,
        attention: str = "one_way",
        attention_backend: str = "auto",
        dropout: float = 0.0,
        patch_size: int = 1,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        _check(
            sample_size, in_channels, channels, attention_levels, num_blocks, num_heads, attention, dropout, patch_size
        )
        side, area = sample_size // patch_size, patch_size * patch_size
        resolve_backend(attention_backend, "cpu" if attention_backend in ("auto", "sdpa") else _device_type())
        temb = 4 * channels[0]
        self.timesteps = Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed_level = TimestepEmbedding(channels[0], temb)
        self.embed_gaps = nn.Sequential(nn.Linear(4, temb), nn.SiLU(), nn.Linear(temb, temb))
        self.embed_observed = nn.Embedding(2, temb)
        self.conv_in = nn.Conv2d(in_channels * area + 1, channels[0], 3, padding=1)

        def block(width_in: int, level: int, *, attends: bool = True) -> _Block:
            kind = attention_levels[level] if attends else "none"
            return _Block(width_in, channels[level], temb, kind, num_heads, (side >> level) ** 2, dropout)

        last = len(channels) - 1
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        skips, width = [channels[0]], channels[0]
        for level in range(len(channels)):
            for _ in range(num_blocks):
                self.down.append(block(width, level))
                width = channels[level]
                skips.append(width)
            if level < last:
                self.downsample.append(Downsample2D(width, use_conv=True, name="halve"))
                skips.append(width)
        self.middle = nn.ModuleList([block(width, last), _Resnet(width, width, temb, dropout)])
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(channels))):
            for number in range(num_blocks + 1):
                self.up.append(block(width + skips.pop(), level, attends=number == num_blocks))
                width = channels[level]
            if level > 0:
                self.upsample.append(Upsample2D(width, use_conv=True))
        self.norm_out = nn.GroupNorm(8 if width % 8 == 0 else 1, width)
        self.conv_out = nn.Conv2d(width, in_channels * area, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        self._attentions = [part for part in self.modules() if isinstance(part, FrameAttention)]
        self._resnets = [part for part in self.modules() if isinstance(part, _Resnet)]
        # Frames are channels-last throughout; weights laid out alike need no reordering at every call.
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def one_way(self) -> bool:
        return bool(self.config["attention"] == "one_way")

    def observe(
        self,
        frames: Tensor,
        level: Tensor,
        frame_index: Tensor,
        *,
        present: Tensor | None = None,
        kernels: Kernels | None = None,
    ) -> FeatureCache:
        """The features of a window's observed frames, for all of its denoising steps.

        Args:
            frames: ``[B, C, channels, h, w]``, all observed.
            level: ``[B, C]``, their noise levels, 0 for clean ones.
            frame_index: int64 ``[B, C]``.
            present: bool ``[B, C]``; False where a row has fewer observed frames.
            kernels: see `context`.
        """
        if not self.one_way:
            raise ConfigError(
                "attention", "is 'full': observed frames look at the targets", "Only attention='one_way' has a cache."
            )
        present = _all_true(frame_index) if present is None else present
        cache = FeatureCache(frame_index, present)
        context = self.context(frame_index, observed=present, present=present, kernels=kernels)
        self._pass(frames, level, context, recorded=cache.layers)
        return cache

    def context(
        self,
        frame_index: Tensor,
        *,
        observed: Tensor,
        present: Tensor | None = None,
        cache: FeatureCache | None = None,
        kernels: Kernels | None = None,
    ) -> FrameContext:
        """What all passes over the frames of a window share, as long as no weight changes.

        Args:
            frame_index, observed, present, cache: see `forward`.
            kernels: an empty dict, for many passes: convolutions keep there what they otherwise prepare at every call
                (without gradients in float32 on a CPU; elsewhere it stays empty).
        """
        present = _all_true(frame_index) if present is None else present
        observed = observed & present
        seen_index, seen = frame_index, observed
        if cache is not None:
            seen_index, seen = torch.cat([cache.frame_index, frame_index], 1), torch.cat([cache.present, observed], 1)
        gaps = observed_gaps(frame_index, present, seen_index, seen).to(self.embed_observed.weight.dtype)
        relation = self._relation(frame_index, observed, present, cache)
        projections = [block.time_emb_proj for block in self._resnets]
        return FrameContext(
            observed=observed,
            embedding=(self.embed_gaps(gaps) + self.embed_observed(observed.long())).flatten(0, 1),
            projection=(
                torch.cat([each.weight for each in projections]),
                torch.cat([each.bias for each in projections]),
            ),
            biases={layer: layer.biases(relation) for layer in self._attentions},
            past={} if cache is None else dict(zip(self._attentions, cache.layers, strict=True)),
            kernels=kernels if kernels is not None and packs_kernels(self.conv_in.weight) else None,
            backend=resolve_backend(self.config["attention_backend"], frame_index.device.type),
        )

    def forward(
        self,
        frames: Tensor,
        level: Tensor,
        frame_index: Tensor | None = None,
        *,
        observed: Tensor | None = None,
        present: Tensor | None = None,
        cache: FeatureCache | None = None,
        context: FrameContext | None = None,
    ) -> Tensor:
        """The prediction for every frame, ``[B, K, channels, h, w]``; only that of targets means something.

        Args:
            frames: ``[B, K, channels, h, w]``: targets with their noise, observed frames as they are.
            level: ``[B, K]``, the noise level of each frame, from 0 (clean) to 1 (all noise).
            frame_index: int64 ``[B, K]``, positions in the video.
            observed: bool ``[B, K]``.
            present: bool ``[B, K]``; False for padding.
            cache: of observed frames that are not among `frames`.
            context: in place of these four, for many passes over the frames of one window.
        """
        if context is None:
            if frame_index is None or observed is None:
                raise ConfigError("frame_index", "or observed is missing", "Pass both, or the context of a window.")
            context = self.context(frame_index, observed=observed, present=present, cache=cache)
        out = self._pass(frames, level, context)
        assert out is not None
        return out

    def _pass(
        self, frames: Tensor, level: Tensor, context: FrameContext, recorded: list[Tensor] | None = None
    ) -> Tensor | None:
        x = rearrange(frames, "b k c h w -> (b k) c h w")
        x = nn.functional.pixel_unshuffle(x, self.config["patch_size"])
        height, width = x.shape[2:]
        indicator = repeat(context.observed.to(x.dtype), "b k -> (b k) 1 h w", h=height, w=width)
        x = torch.cat([x, indicator], dim=1)  # [B K, channels + 1, h, w]
        steps = self.timesteps((1000.0 * level).flatten()).to(frames.dtype)
        flow = _Flow(context, self._changes(self.embed_level(steps) + context.embedding, context), recorded)
        x = context.convolve(self.conv_in, x.contiguous(memory_format=torch.channels_last))
        skips, each = [x], self.config["num_blocks"]
        for number, block in enumerate(self.down, start=1):
            x = block(x, flow)
            skips.append(x)
            if number % each == 0 and number < len(self.down):
                x = context.convolve(self.downsample[number // each - 1].conv, x)
                skips.append(x)
        attending, resnet = self.middle
        x = resnet(attending(x, flow), flow)
        for number, block in enumerate(self.up, start=1):
            if recorded is not None and len(recorded) == len(self._attentions):
                return None  # only the features were needed
            x = block(torch.cat([x, skips.pop()], dim=1), flow)
            if number % (each + 1) == 0 and number < len(self.up):
                x = nn.functional.interpolate(x, scale_factor=2.0)
                x = context.convolve(self.upsample[number // (each + 1) - 1].conv, x)
        out = context.convolve(self.conv_out, nn.functional.silu(self.norm_out(x)))
        out = nn.functional.pixel_shuffle(out, self.config["patch_size"])
        answer: Tensor = rearrange(out, "(b k) c h w -> b k c h w", b=len(level))
        return answer

    def _changes(self, embedding: Tensor, context: FrameContext) -> dict[_Resnet, Tensor]:
        """What frames of an embedding ``[B K, T]`` change in every residual block: scale and shift ``[B K, 2 D]``."""
        changes = nn.functional.linear(nn.functional.silu(embedding), *context.projection)
        widths = [2 * block.out_channels for block in self._resnets]
        return dict(zip(self._resnets, torch.split(changes, widths, dim=1), strict=True))

    def _relation(
        self, frame_index: Tensor, observed: Tensor, present: Tensor, cache: FeatureCache | None
    ) -> FrameRelation:
        allowed = present[:, None, :].expand(-1, frame_index.shape[1], -1)  # [B, Q, K]
        if self.one_way:
            allowed = allowed & (observed[:, None, :] | ~observed[:, :, None])
        allowed = allowed | torch.eye(frame_index.shape[1], dtype=torch.bool, device=frame_index.device)
        keys = frame_index
        if cache is not None:
            seen = cache.present[:, None, :].expand(-1, frame_index.shape[1], -1)
            allowed = torch.cat([seen, allowed], dim=2)
            keys = torch.cat([cache.frame_index, frame_index], dim=1)
        return FrameRelation.between(frame_index, keys, allowed)


class _Flow:
    """What a pass carries from block to block."""

    def __init__(self, context: FrameContext, changes: dict[_Resnet, Tensor], recorded: list[Tensor] | None) -> None:
        self.context, self.changes, self._recorded = context, changes, recorded

    def through(self, layer: FrameAttention, x: Tensor) -> Tensor:
        """The frames ``[B K, D, h, w]`` after they have looked at each other, and at those of a cache."""
        context = self.context
        frames = rearrange(x, "(b k) d h w -> b k d h w", b=len(context.observed))
        frames, own = layer(frames, context.biases[layer], past=context.past.get(layer), backend=context.backend)
        if self._recorded is not None:
            self._recorded.append(own)
        seen: Tensor = rearrange(frames, "b k d h w -> (b k) d h w")
        return seen


class _Resnet(ResnetBlock2D):
    """Diffusers' residual block and its weights; a shorter way through it."""

    def __init__(self, width_in: int, width: int, temb: int, dropout: float) -> None:
        super().__init__(
            in_channels=width_in,
            out_channels=width,
            temb_channels=temb,
            dropout=dropout,
            eps=1e-5,
            time_embedding_norm="scale_shift",
            groups=8 if width_in % 8 == 0 else 1,
            groups_out=8 if width % 8 == 0 else 1,
        )
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, flow: _Flow) -> Tensor:  # type: ignore[override]
        """``[B K, D, h, w]``."""
        convolve = flow.context.convolve
        h = convolve(self.conv1, nn.functional.silu(self.norm1(x)))
        scale, shift = flow.changes[self][:, :, None, None].chunk(2, dim=1)
        h = nn.functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        if self.conv_shortcut is not None:  # a convolution of one pixel is a matrix product, and faster as one
            weight = self.conv_shortcut.weight.flatten(1)
            x = nn.functional.linear(x.movedim(1, -1), weight, self.conv_shortcut.bias).movedim(-1, 1)
        return convolve(self.conv2, self.dropout(h), plus=x)


class _Block(nn.Module):
    """A residual block on each frame, then the attention of its resolution."""

    def __init__(
        self, width_in: int, width: int, temb: int, kind: str, num_heads: int, num_positions: int, dropout: float
    ) -> None:
        super().__init__()
        self.resnet = _Resnet(width_in, width, temb, dropout)
        self.over_frames = self.over_space = None
        if kind in ("frames", "both", "joint"):
            joint = kind == "joint"
            self.over_frames = FrameAttention(width, num_heads, num_positions, joint=joint)
        if kind in ("space", "both"):
            self.over_space = SpaceAttention(width, num_heads)

    def forward(self, x: Tensor, flow: _Flow) -> Tensor:
        x = self.resnet(x, flow)
        if self.over_frames is not None:
            x = flow.through(self.over_frames, x)
        if self.over_space is not None:
            x = self.over_space(x, backend=flow.context.backend)
        return x


def _all_true(frame_index: Tensor) -> Tensor:
    return torch.ones_like(frame_index, dtype=torch.bool)


def _device_type() -> str:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def _check(
    sample_size: int,
    in_channels: int,
    channels: Any,
    attention_levels: Any,
    num_blocks: int,
    num_heads: int,
    attention: str,
    dropout: float,
    patch_size: int,
) -> None:
    counts = {
        "sample_size": sample_size, "in_channels": in_channels, "num_blocks": num_blocks, "num_heads": num_heads,
        "patch_size": patch_size,
    }  # fmt: skip
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(name, f"is {count}", "Pass at least 1.")
    if not channels:
        raise ConfigError("channels", f"is {channels!r}", "Give a width for each resolution.")
    if not 0 <= dropout < 1:
        raise ConfigError("dropout", f"is {dropout}", "Pass a number in [0, 1).")
    if attention not in ("one_way", "full"):
        raise ConfigError("attention", f"is {attention!r}", "Choose 'one_way' or 'full'.")
    if len(attention_levels) != len(channels):
        raise ConfigError(
            "attention_levels",
            f"has {len(attention_levels)} entries for {len(channels)} resolutions",
            "Give one for each of channels.",
        )
    for kind in attention_levels:
        if kind not in ("none", "space", "frames", "both", "joint"):
            raise ConfigError(
                "attention_levels", f"holds {kind!r}", "Choose of 'none', 'space', 'frames', 'both', 'joint'."
            )
    if sample_size % (multiple := patch_size << (len(channels) - 1)):
        patches = f" in patches of {patch_size}" if patch_size > 1 else ""
        raise ConfigError(
            "sample_size",
            f"is {sample_size}, which{patches} cannot be halved {len(channels) - 1} times",
            f"Pass a multiple of {multiple}, or fewer channels.",
        )
    for width in channels:
        if width < 1:
            raise ConfigError("channels", f"holds {width}", "Pass widths of at least 1.")
        if width % num_heads:
            raise ConfigError("channels", f"holds {width} for {num_heads} heads", "Pass multiples of num_heads.")
