"""What the passes over one window share: how its frames see each other, and what else their noise does not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexgen.networks.frames import FrameAttention

__all__ = ["FrameContext", "Kernels", "packs_kernels"]

Kernels = dict[tuple[nn.Conv2d, torch.Size], Tensor]
"""Kernels of convolutions, by layer and shape of input, in the order in which oneDNN reads them there.

It would bring them into this order at every call, a price that does not depend on how many frames there are. It chooses
the order by shape, and pays much for another one.
"""


@dataclass(eq=False)
class FrameContext:
    """Of the frames ``[B, K]`` of a window, all but their values and noise levels; made by `FrameUNet.context`.

    Args:
        observed: bool ``[B, K]``.
        embedding: ``[B K, T]``, of being observed and of how far the nearest observed frames are.
        projection: weight and bias that project the embeddings for all residual blocks at once.
        biases: of every attention over frames, see `FrameAttention.biases`.
        past: keys and values of observed frames that are not among these.
        kernels: kept from the first pass on; None: nothing is kept.
        backend: of attention.
    """

    observed: Tensor
    embedding: Tensor
    projection: tuple[Tensor, Tensor]
    biases: Mapping[FrameAttention, Tensor]
    past: Mapping[FrameAttention, Tensor]
    kernels: Kernels | None
    backend: str

    def convolve(self, layer: nn.Conv2d, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """The layer's answer to ``[B K, D, h, w]``, `plus` something of its shape."""
        out: Tensor
        if self.kernels is None or torch.is_grad_enabled():
            out = layer(x)
            return out if plus is None else plus + out
        geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
        kernel = self.kernels.get((layer, x.shape))
        if kernel is None:
            kernel = torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *geometry, x.shape)
            self.kernels[layer, x.shape] = kernel
        convolution = torch.ops.mkldnn._convolution_pointwise
        if plus is None:
            out = convolution(x, kernel, layer.bias, *geometry, "none", [], "")
        else:
            out = convolution.binary(x, plus, kernel, layer.bias, *geometry, "add", None, None, [], None)
        return out


def packs_kernels(weight: Tensor) -> bool:
    """Whether convolutions now run by oneDNN as it is for float32: on a CPU, with nothing to differentiate."""
    return (
        not torch.is_grad_enabled()
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )
