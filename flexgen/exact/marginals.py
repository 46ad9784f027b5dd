"""Marginals of real sites: at each, a mixture of normal distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import kind_of, whole_number
from flexgen.conditional import take_at
from flexgen.errors import FlexgenError
from flexgen.rng import Randomness

__all__ = ["GaussianMixtureMarginals"]

_LOG_2PI = math.log(2 * math.pi)
_MODE_CHUNK_ENTRIES = 1 << 18  # densities of all components at all component means held at once


class GaussianMixtureMarginals:
    """A mixture of K normal distributions at every site of every row: what a network's head or a mixture answers.

    Args:
        log_weights: ``[B, N, K]``, or broadcastable to it; normalised here over K.
        means: ``[B, N, K]``; of sites with an event shape ``[B, N, K, *site]`` beside log-weights of three axes at
            most: the entries of an event are independent within a component, and share the component.
        sds: like `means`, positive.
    """

    def __new__(cls, log_weights: Tensor, means: Tensor, sds: Tensor) -> GaussianMixtureMarginals:  # noqa: ARG004
        are_tensors = isinstance(means, Tensor) and isinstance(log_weights, Tensor)
        has_events = cls is GaussianMixtureMarginals and are_tensors and means.ndim > 3 >= log_weights.ndim
        return object.__new__(_EventMixtureMarginals if has_events else cls)

    def __init__(self, log_weights: Tensor, means: Tensor, sds: Tensor) -> None:
        for name, given in (("log_weights", log_weights), ("means", means), ("sds", sds)):
            if not isinstance(given, Tensor) or not given.is_floating_point() or given.ndim == 0:
                found = f"is a tensor of {given.dtype}" if isinstance(given, Tensor) else f"is {kind_of(given)}"
                raise FlexgenError(name, found, "Pass real numbers [B, N, K], one for each row, site and component.")
        has_events = isinstance(self, _EventMixtureMarginals)
        if sds.shape != means.shape and not has_events:
            raise FlexgenError("sds", f"has shape {tuple(sds.shape)}", f"Pass {list(means.shape)}, as means has.")
        _require_within("sds", sds, means.shape)
        weighted = means.shape[:3] if has_events else means.shape
        _require_within("log_weights", log_weights, weighted)
        self.log_weights = log_weights.log_softmax(-1).expand(weighted)
        self.means = means
        self.sds = sds

    def __getnewargs__(self) -> tuple[Tensor, Tensor, Tensor]:  # of copies and pickles
        return self.log_weights, self.means, self.sds

    def at(self, sites: Tensor) -> GaussianMixtureMarginals:
        """The same answers at sites ``[S]`` or ``[B, S]`` alone."""
        parts = (self.log_weights, self.means, self.sds.expand_as(self.means))
        return GaussianMixtureMarginals(*(take_at(part, sites) for part in parts))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats of each site on its own, ``[B, N]``."""
        return self._log_density(self._values(x)[..., None])[..., 0]

    def cdf(self, x: Tensor) -> Tensor:
        """The probability of a value at most x, ``[B, N]``; uniform under the law itself, as calibration checks use."""
        z = (self._values(x)[..., None] - self.means) / self.sds
        return (self.log_weights.exp() * 0.5 * torch.erfc(-z / math.sqrt(2))).sum(-1)

    def sample(self, *, generator: Randomness) -> Tensor:
        """Independent draws, ``[B, N]``: a component, then a normal number."""
        component = rng.categorical(self.log_weights, generator=generator)[..., None]  # [B, N, 1]
        noise = rng.normal(component.shape[:-1], generator=generator, dtype=self.means.dtype)
        mean, sd = self.means.gather(-1, component)[..., 0], self.sds.gather(-1, component)[..., 0]
        return mean + sd * noise

    def mean(self) -> Tensor:
        """``[B, N]``."""
        return (self.log_weights.exp() * self.means).sum(-1)

    def sd(self) -> Tensor:
        """Standard deviation of the mixture, ``[B, N]``."""
        between = self.means - self.mean()[..., None]
        return (self.log_weights.exp() * (self.sds.square() + between.square())).sum(-1).sqrt()

    def mode(self, *, num_steps: int = 30) -> Tensor:
        """A mode of the density, ``[B, N]``: the best component mean, moved uphill by `num_steps` of mean shift.

        Mean shift (Carreira-Perpiñán 2000: an EM step, so the density never falls) ends at a local maximum at least as
        high as the density at every component's mean. That is the highest mode unless some mode away from all means
        beats it; for K = 1 it is the mean, exactly.
        """
        num_steps = whole_number("num_steps", num_steps, most=10_000)
        num_components = self.means.shape[-1]
        if num_components == 1:
            return self.means[..., 0].clone()
        mode = torch.empty_like(self.means[..., 0])
        rows_at_once = max(1, _MODE_CHUNK_ENTRIES // (self.means.shape[1] * num_components**2 or 1))
        for start in range(0, len(mode), rows_at_once):
            rows = slice(start, start + rows_at_once)
            part = GaussianMixtureMarginals(self.log_weights[rows], self.means[rows], self.sds[rows])
            best = part._log_density(part.means).argmax(-1, keepdim=True)  # [b, N, 1]
            at = part.means.gather(-1, best)
            for _ in range(num_steps):
                pull = (part._log_terms(at)[..., 0, :].softmax(-1)) / part.sds.square()  # [b, N, K]
                at = ((pull * part.means).sum(-1) / pull.sum(-1))[..., None]
            mode[rows] = at[..., 0]
        return mode

    def _values(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.is_complex() or x.layout != torch.strided or x.is_meta:
            raise FlexgenError("x", f"is {kind_of(x)}", f"Pass a tensor of real numbers {list(self.means.shape[:-1])}.")
        shape = self.means.shape[:-1]
        if x.ndim > len(shape) or any(
            1 not in (a, b) and a != b for a, b in zip(x.shape[::-1], shape[::-1], strict=False)
        ):
            raise FlexgenError("x", f"has shape {tuple(x.shape)}", f"Pass {list(shape)}, or what broadcasts with it.")
        return x.to(self.means.dtype) if x.dtype == torch.bool else x

    def _log_terms(self, at: Tensor) -> Tensor:
        """log w_k p_k at Q points a site: ``[B, N, Q]`` -> ``[B, N, Q, K]``."""
        z = (at[..., None] - self.means[..., None, :]) / self.sds[..., None, :]
        return self.log_weights[..., None, :] - 0.5 * z.square() - self.sds.log()[..., None, :] - 0.5 * _LOG_2PI

    def _log_density(self, at: Tensor) -> Tensor:
        """Log density at Q points a site: ``[B, N, Q]`` -> ``[B, N, Q]``."""
        return self._log_terms(at).logsumexp(-1)


class _EventMixtureMarginals(GaussianMixtureMarginals):
    """Sites whose values are events ``[*site]``: log-probabilities ``[B, N]``, values ``[B, N, *site]``."""

    at = GaussianMixtureMarginals.at

    def log_prob(self, x: Tensor) -> Tensor:
        """Joint log density of each site's event in nats, ``[B, N]``."""
        return self._log_density_at(x[:, :, None])[:, :, 0]

    def cdf(self, x: Tensor) -> Tensor:
        """The probability of a value at most x of each entry on its own, ``[B, N, *site]``."""
        z = (x[:, :, None] - self.means) / self.sds
        return (self._weights() * 0.5 * torch.erfc(-z / math.sqrt(2))).sum(2)

    def sample(self, *, generator: Randomness) -> Tensor:
        """Independent draws, ``[B, N, *site]``: a component for each site, then a normal number for each entry."""
        component = rng.categorical(self.log_weights, generator=generator)  # [B, N]
        at = component.view(*component.shape, 1, *self._ones()).expand_as(self.means[:, :, :1])
        mean, sd = self.means.gather(2, at)[:, :, 0], self.sds.expand_as(self.means).gather(2, at)[:, :, 0]
        return mean + sd * rng.normal(mean.shape, generator=generator, dtype=self.means.dtype)

    def mean(self) -> Tensor:
        """``[B, N, *site]``."""
        return (self._weights() * self.means).sum(2)

    def sd(self) -> Tensor:
        """Standard deviation of each entry, ``[B, N, *site]``."""
        between = self.means - self.mean()[:, :, None]
        return (self._weights() * (self.sds.square() + between.square())).sum(2).sqrt()

    def mode(self, *, num_steps: int = 30) -> Tensor:
        """A mode of the events' joint density, ``[B, N, *site]``, by mean shift as for scalar sites."""
        if self.means.shape[2] == 1:
            return self.means[:, :, 0].clone()
        heights = torch.stack([self.log_prob(mean) for mean in self.means.unbind(2)], -1)  # [B, N, K]
        best = heights.argmax(-1).view(*heights.shape[:2], 1, *self._ones()).expand_as(self.means[:, :, :1])
        at = self.means.gather(2, best)  # [B, N, 1, *site]
        for _ in range(num_steps):
            share = self._log_terms_at(at)[:, :, 0].softmax(-1)  # [B, N, K]
            pull = share.view(*share.shape, *self._ones()) / self.sds.square()
            at = ((pull * self.means).sum(2) / pull.sum(2))[:, :, None]
        return at[:, :, 0]

    def _ones(self) -> tuple[int, ...]:
        return (1,) * (self.means.ndim - 3)

    def _weights(self) -> Tensor:
        """``[B, N, K, 1, ..]``."""
        return self.log_weights.exp().view(*self.log_weights.shape, *self._ones())

    def _log_terms_at(self, at: Tensor) -> Tensor:
        """log w_k p_k at Q events a site: ``[B, N, Q, *site]`` -> ``[B, N, Q, K]``."""
        z = (at[:, :, :, None] - self.means[:, :, None]) / self.sds.expand_as(self.means)[:, :, None]
        each = -0.5 * z.square() - self.sds.expand_as(self.means).log()[:, :, None] - 0.5 * _LOG_2PI
        return self.log_weights[:, :, None] + each.flatten(4).sum(-1)

    def _log_density_at(self, at: Tensor) -> Tensor:
        return self._log_terms_at(at).logsumexp(-1)


def _require_within(argument: str, given: Tensor, shape: torch.Size) -> None:
    """Refuses what does not broadcast to `shape`."""
    if given.ndim > len(shape) or any(a not in (1, b) for a, b in zip(given.shape[::-1], shape[::-1], strict=False)):
        raise FlexgenError(
            argument, f"has shape {tuple(given.shape)}", f"Pass {list(shape)}, or what broadcasts to it."
        )
