"""Attention with an additive bias, by whichever backend runs here."""

from __future__ import annotations

import functools
import logging
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flexgen.errors import ConfigError

__all__ = ["Backend", "attend", "resolve_backend"]

Backend = Literal["auto", "sdpa", "flex", "xformers"]

logger = logging.getLogger(__name__)

# Keys up to which the plain formula trains faster on a CPU than the fused kernel, whose backward pass is slow there:
# 2.5 against 26 ms at 16 keys, 19 against 60 at 64, 337 against 175 at 256 (384 heads, bfloat16).
_SHORT = 128


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: ``[B, H, Q, d]``; k, v: ``[B, H, K, d]``.
        bias: ``[B or 1, H, Q, K]``; -inf where a query may not look. Every query must be allowed one key.
        backend: a resolved one, see `resolve_backend`.
    """
    if backend == "xformers":
        return _xformers(q, k, v, bias)
    if backend == "flex":
        return _flex(q, k, v, bias)
    if q.device.type == "cpu" and q.requires_grad and k.shape[2] <= _SHORT:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@functools.cache
def resolve_backend(backend: str, device_type: str) -> str:
    """The backend that will run on this kind of device, tried once with a small forward pass, and logged.

    ``"auto"`` is ``"sdpa"``: with a bias that has a gradient it is the one that every device has, and on the window
    sizes of video the others do not beat it.

    Raises:
        ConfigError: an unknown name, or a named backend that cannot run here.
    """
    if backend not in get_args(Backend):
        raise ConfigError("attention_backend", f"is {backend!r}", f"Choose one of {', '.join(get_args(Backend))}.")
    chosen = "sdpa" if backend == "auto" else backend
    probe = torch.ones(1, 2, 8, 16, device=device_type)
    try:
        attend(probe, probe, probe, torch.zeros(1, 2, 8, 8, device=device_type), backend=chosen)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            "attention_backend", f"is {backend!r}, which cannot run on {device_type}: {reason}", "Use 'auto' or 'sdpa'."
        ) from error
    logger.info("attention by %s on %s", chosen, device_type)
    return chosen


def _xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    if bias is not None:
        # Its kernels read a bias whose rows begin at multiples of 8.
        columns = bias.shape[-1]
        padded = F.pad(bias.expand(len(q), q.shape[1], -1, -1), (0, -columns % 8)).contiguous()
        bias = padded[..., :columns].to(q.dtype)
    out = memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_bias=bias)  # [B, Q, H, d]
    mixed: Tensor = out.transpose(1, 2)
    return mixed


def _flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if bias is None:
        plain: Any = flex_attention(q, k, v)
        return plain  # type: ignore[no-any-return]
    table = bias.expand(len(q), -1, -1, -1)

    def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + table[b, h, i, j]

    out: Any = flex_attention(q, k, v, score_mod=add_bias)
    return out  # type: ignore[no-any-return]
