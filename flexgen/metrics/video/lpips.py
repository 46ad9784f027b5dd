"""Learned perceptual distance of frames, with weights that come from a package, not from the network."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from pathlib import Path
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from flexgen.errors import DataError
from flexgen.metrics.video.arguments import require_same_shape, require_video, to_images

__all__ = ["LPIPS", "ShiftTolerantAlexNet"]

Item = TypeVar("Item")

_CHANNELS = (64, 192, 384, 256, 256)
_FIX = "Install flexgen-samplers[lpips]; it brings no other package."
_LEAST_SIDE = 21  # pixels, of images that the network can halve and pad
_AT_ONCE = 256  # images
_KEPT_BYTES = 512_000_000  # of embeddings


class LPIPS(Metric):
    """Mean perceptual distance between generated and true frames: shift-tolerant LPIPS on AlexNet.

    Args:
        network: gives the distance of two batches of images; None is `ShiftTolerantAlexNet.pretrained`. Its figures are
            not those of the LPIPS of 2018: compare them among each other.

    `compute` returns a scalar.

    Source: Zhang et al. 2018; Ghildyal & Liu 2022.

    Raises:
        DataError: the weights are not installed.
    """

    full_state_update = False
    higher_is_better = False

    total: Tensor
    count: Tensor

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = (ShiftTolerantAlexNet.pretrained() if network is None else network).eval()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self._embeddings: OrderedDict[tuple[tuple[int, ...], bytes], Tensor] = OrderedDict()

    @torch.no_grad()
    def distance(self, frames: Tensor, others: Tensor) -> Tensor:
        """Of frames to other frames, ``[M]``, both uint8 ``[M, H, W, C]``; what plans that look compare frames by.

        Plans compare the same frames again and again: each passes the network once.
        """
        video, other = require_video("frames", frames[None]), require_video("others", others[None])
        require_same_shape("frames", video, other)
        if not isinstance(self.network, ShiftTolerantAlexNet):
            return self.distances(video, other)[0]
        first, second = (self._embedded(self.network, x) for x in (frames, others))
        found = [
            (torch.stack(a) - torch.stack(b)).square().sum(1)
            for a, b in zip(_batches(first), _batches(second), strict=True)
        ]
        return torch.cat(found).to(frames.device)

    def _embedded(self, network: ShiftTolerantAlexNet, frames: Tensor) -> list[Tensor]:
        """The embedding of each frame; those seen last are kept."""
        names = [(tuple(frame.shape), frame.tobytes()) for frame in frames.cpu().numpy()]
        place = {name: number for number, name in enumerate(names)}
        known = {name: self._embeddings[name] for name in place if name in self._embeddings}
        for some in _batches([name for name in place if name not in known]):
            images = to_images(frames[[place[name] for name in some]][None]).expand(-1, 3, -1, -1) / 127.5 - 1
            # Copies: a view would keep the whole batch.
            known |= {
                n: e.clone() for n, e in zip(some, network.embedding(images.to(network.shift.device)), strict=True)
            }
        for name in place:
            self._embeddings[name] = known[name]
            self._embeddings.move_to_end(name)
        while self._embeddings and len(self._embeddings) * known[names[0]].nbytes > _KEPT_BYTES:
            self._embeddings.popitem(last=False)
        return [known[name] for name in names]

    @torch.no_grad()
    def distances(self, video: Tensor, truth: Tensor) -> Tensor:
        """Of every frame, ``[B, F]``, for videos uint8 ``[B, F, H, W, C]``."""
        require_same_shape("video", require_video("video", video), require_video("truth", truth))
        first, second = (to_images(v).expand(-1, 3, -1, -1) / 127.5 - 1 for v in (video, truth))
        found: Tensor = self.network(first, second)
        distances: Tensor = rearrange(found, "(b f) -> b f", b=len(video))
        return distances

    def update(self, video: Tensor, truth: Tensor) -> None:
        """Args: video and truth, uint8 ``[B, F, H, W, C]``."""
        found = self.distances(video, truth)
        self.total += found.double().sum()
        self.count += found.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class ShiftTolerantAlexNet(nn.Module):
    """Distance of images, ``[n]``, from AlexNet's features with blurred subsampling, weighed by channel.

    It takes images float ``[n, 3, H, W]`` in [-1, 1], 21 pixels a side or more.

    Source: Ghildyal & Liu 2022, Shift-tolerant Perceptual Similarity Metric; the blur is Zhang's of 2019.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 64, 11, 2), (64, 192, 5, 2), (192, 384, 3, 1), (384, 256, 3, 1), (256, 256, 3, 1))
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, side, padding=pad) for i, o, side, pad in sizes)
        self.weights = nn.ParameterList(torch.zeros(1, channels, 1, 1) for channels in _CHANNELS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    @classmethod
    def pretrained(cls) -> ShiftTolerantAlexNet:
        """With the weights that the package stlpips-pytorch brings; the package itself is not imported.

        Raises:
            DataError: it is not installed.
        """
        found = importlib.util.find_spec("stlpips_pytorch")
        if found is None or not found.submodule_search_locations:
            raise DataError("network", "needs the weights of stlpips-pytorch, which is not installed", _FIX)
        path = Path(found.submodule_search_locations[0]) / "weights/vST0.0/alex_shift_tolerant.pth"
        if not path.is_file():
            raise DataError("network", f"needs {str(path)!r}, which is not there", _FIX)
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network = cls()
        # The places of the convolutions among the layers of the original, in five slices.
        names = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")
        with torch.no_grad():
            for place, name in enumerate(names):
                convolution = network.convolutions[place]
                assert isinstance(convolution, nn.Conv2d)
                assert convolution.bias is not None
                convolution.weight.copy_(weights[f"net.{name}.weight"])
                convolution.bias.copy_(weights[f"net.{name}.bias"])
                network.weights[place].copy_(weights[f"lin{place}.model.1.weight"])
        return network.requires_grad_(False).eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """Five maps ``[n, c, h, w]``, each of unit length over the channels."""
        if min(images.shape[-2:]) < _LEAST_SIDE:
            sides = " x ".join(map(str, images.shape[-2:]))
            raise DataError("frames", f"have {sides} pixels", f"LPIPS needs {_LEAST_SIDE} a side or more.")
        x = (images - self.shift) / self.scale
        maps = []
        for place, convolution in enumerate(self.convolutions):
            if place in (1, 2):
                x = _blurred_half(F.max_pool2d(x, 3, stride=1))
            x = convolution(x)
            x = F.relu(_blurred_half(x) if place == 0 else x)
            maps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return maps

    def embedding(self, images: Tensor) -> Tensor:
        """``[n, D]``, whose squared distances are those of `forward`."""
        parts = []
        for map_, weight in zip(self.features(images), self.weights, strict=True):
            parts.append((map_ * (weight / map_[0, 0].numel()).sqrt()).flatten(1))
        return torch.cat(parts, 1)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        distance = images.new_zeros(len(images))
        for one, other, weight in zip(self.features(images), self.features(others), self.weights, strict=True):
            distance = distance + ((one - other).square() * weight).sum(1).mean((1, 2))
        return distance


def _blurred_half(x: Tensor) -> Tensor:
    """Every other pixel of `x` after a binomial blur, with two mirrored pixels at each border."""
    row = x.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _batches(items: list[Item]) -> list[list[Item]]:
    return [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
