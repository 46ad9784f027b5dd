"""Diagnostics of Markov chains: R-hat, effective sample size, export to ArviZ.

Everything takes draws ``[S, B, ...]`` (draw, chain, quantity), is vectorised over the quantities, and computes in
float64.

Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), *Rank-normalization, folding, and localization: an
improved R-hat for assessing convergence of MCMC*; autocorrelations cut off as in Geyer (1992). Agrees with ArviZ 0.23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen.checks import entries, one_of, real_tensor
from flexgen.errors import FlexgenError

__all__ = ["Summary", "autocovariance", "ess", "rhat", "summary", "to_arviz"]

# Numbers that the diagnostics look at together.
_CHUNK = 1 << 23


def rhat(draws: Tensor) -> Tensor:
    """The larger of R-hat for location (rank-normalised) and for scale (folded about the median), of split chains.

    Near 1 where chains agree; above 1.01 they should run on. NaN where a quantity never varies.

    Args:
        draws: ``[S, B, ...]``, at least 4 draws.
    """
    return _in_chunks(_rhat_of_split, draws)


def _rhat_of_split(draws: Tensor) -> Tensor:
    split = _split(draws)  # [S', 2B, n]
    ordered = split.flatten(0, 1).sort(0).values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    folded = (split - median).abs()
    # Of few categories all folded values may tie; their R-hat is then NaN and says nothing.
    return torch.fmax(_rhat(_rank_normalised(split)), _rhat(_rank_normalised(folded)))


def ess(draws: Tensor, *, kind: Literal["bulk", "tail", "mean"] = "bulk") -> Tensor:
    """Effective sample size over all chains.

    Args:
        draws: ``[S, B, ...]``, at least 4 draws.
        kind: ``"bulk"``: of the rank-normalised draws; ``"tail"``: the smaller of those for the 5 % and 95 %
            quantiles; ``"mean"``: of the draws as they are, which the Monte Carlo error of the mean follows.

    A quantity that never varies has the number of draws, by convention.
    """
    one_of("kind", kind, ("bulk", "tail", "mean"))
    if kind == "bulk":
        return _in_chunks(lambda part: _ess(_rank_normalised(_split(part))), draws)
    if kind == "mean":
        return _in_chunks(lambda part: _ess(_split(part)), draws)
    if kind == "tail":
        return _in_chunks(_tail_ess, draws)
    raise FlexgenError("kind", f"is {kind!r}", "Choose 'bulk', 'tail' or 'mean'.")


def _tail_ess(draws: Tensor) -> Tensor:
    values = draws.flatten(0, 1)  # [S * B, n]
    low, high = (_ess(_split((draws <= _quantile(values, q)).to(torch.float64))) for q in (0.05, 0.95))
    return torch.minimum(low, high)


@dataclass(frozen=True, eq=False)
class Summary:
    """One row a site; prints as a table."""

    names: tuple[str, ...]
    columns: dict[str, Tensor]

    def to_dict(self) -> dict[str, dict[str, float]]:
        return {
            name: {column: float(values[i]) for column, values in self.columns.items()}
            for i, name in enumerate(self.names)
        }

    def __repr__(self) -> str:
        width = max([4, *(len(name) for name in self.names)])
        lines = [" " * width + "".join(f"{column:>12}" for column in self.columns)]
        for i, name in enumerate(self.names):
            lines.append(f"{name:<{width}}" + "".join(f"{float(v[i]):>12.4g}" for v in self.columns.values()))
        return "\n".join(lines)


def summary(draws: Tensor, names: Sequence[str]) -> Summary:
    """Mean, sd, Monte Carlo standard error of the mean (mcse), R-hat and effective sizes of draws ``[S, B, N]``."""
    real_tensor("draws", draws, "[S, B, N]", error=FlexgenError)
    names = tuple(str(name) for name in entries("names", names, "Pass one name a site."))
    if draws.ndim != 3 or draws.shape[2] != len(names):
        raise FlexgenError(
            "draws", f"have shape {tuple(draws.shape)}", f"Pass [S, B, N] with N = {len(names)}, one name a site."
        )
    values = draws.to(torch.float64)
    sd = values.flatten(0, 1).std(0)
    return Summary(
        tuple(names),
        {
            "mean": values.mean((0, 1)),
            "sd": sd,
            "mcse": sd / ess(draws, kind="mean").sqrt(),
            "rhat": rhat(draws),
            "ess_bulk": ess(draws),
            "ess_tail": ess(draws, kind="tail"),
        },
    )


def to_arviz(draws: Tensor, names: Sequence[str]) -> Any:
    """An ``arviz.InferenceData`` whose posterior has a variable for every site, ``(chain, draw, *site)``."""
    try:
        import arviz
    except ImportError as error:
        raise FlexgenError("arviz", "is not installed", "pip install 'flexgen-samplers[arviz]'.") from error
    values = draws.transpose(0, 1).cpu().numpy()  # [B, S, N, *site]
    return arviz.from_dict(posterior={name: values[:, :, i] for i, name in enumerate(names)})


def autocovariance(x: Tensor) -> Tensor:
    """Biased autocovariances (divided by S) along the first dimension, at lags 0 .. S-1, by FFT."""
    if real_tensor("x", x, "[S, ...]", error=FlexgenError).ndim == 0 or not len(x) or not x.is_floating_point():
        raise FlexgenError("x", f"has shape {tuple(x.shape)} and type {x.dtype}", "Pass real numbers [S, ...], S > 0.")
    x = x.double() if x.dtype == torch.half else x
    num_draws = len(x)
    size = 1 << (2 * num_draws - 1).bit_length()  # zero padding, at least 2 S, keeps the ends from meeting
    spectrum = torch.fft.rfft(x - x.mean(0), n=size, dim=0)
    products: Tensor = torch.fft.irfft(spectrum * spectrum.conj(), n=size, dim=0)
    return products[:num_draws] / num_draws


def _split(draws: Tensor) -> Tensor:
    """Each chain cut into two, ``[S // 2, 2 B, n]``; an odd middle draw is left out."""
    half = len(draws) // 2
    return torch.cat([draws[:half], draws[-half:]], dim=1)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Linearly interpolated quantile along the first dimension (``torch.quantile`` refuses large inputs)."""
    ordered = values.sort(0).values
    place = q * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    # a + g (b - a) is exactly a where a == b, so that comparisons with tied values come out right.
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _rank_normalised(x: Tensor) -> Tensor:
    """Normal scores of the average ranks over all chains: ndtri((rank - 3/8) / (n + 1/4)). Blom (1958)."""
    values = x.flatten(0, 1).T.contiguous()  # [n, S * B]
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values, side="left")
    up_to = torch.searchsorted(ordered, values, side="right")
    rank = (below + up_to + 1).to(torch.float64) / 2
    scores: Tensor = torch.special.ndtri((rank - 0.375) / (values.shape[1] + 0.25))
    return scores.T.reshape(x.shape)


def plain_rhat(draws: Tensor) -> Tensor:
    """R-hat of split chains as they are, ``[S, B, n]`` to ``[n]``: without ranks it is cheap, and blind to scale."""
    return _rhat(_split(draws))


def _rhat(x: Tensor) -> Tensor:
    """Gelman and Rubin's ratio for chains ``[S, B, n]``."""
    num_draws = len(x)
    within = x.var(0).mean(0)
    between = num_draws * x.mean(0).var(0)
    return ((between / within + num_draws - 1) / num_draws).sqrt()


def _ess(x: Tensor) -> Tensor:
    """Effective sample size of chains ``[S, B, n]``, by Geyer's initial monotone sequence, ``[n]``.

    Names here -> in Vehtari et al. (2021): rho -> rho-hat_t, pairs -> P-hat_t, tau -> tau-hat.
    """
    num_draws, num_chains, _ = x.shape
    total = num_draws * num_chains
    covariance = autocovariance(x).mean(1)  # [S, n]
    within = covariance[0] * num_draws / (num_draws - 1)
    var_plus = covariance[0] + (x.mean(0).var(0) if num_chains > 1 else 0.0)
    rho = 1.0 - (within - covariance) / var_plus  # [S, n]
    rho[0] = 1.0

    # Sums of an even and the next odd lag: positive and falling for a reversible chain. The last lags rest on too few
    # products to be used.
    last = max((num_draws - 3) // 2, 0)
    pairs = rho[0 : 2 * last + 1 : 2] + rho[1 : 2 * last + 2 : 2]  # [last + 1, n]
    positive = (pairs[:last] > 0).to(torch.int8).cumprod(0)  # the initial positive sequence
    cut = positive.sum(0)  # [n], the first pair that is left out
    monotone = (pairs[:last].cummin(0).values if last else pairs[:0]) * positive
    # Of the pair left out the even lag still counts if it is positive, which lowers the variance of tau.
    even = rho[0 : 2 * last + 1 : 2].gather(0, cut[None])[0]
    even = torch.where((even > 0) | (pairs.gather(0, cut[None])[0] >= 0), even, 0.0)
    tau = -1.0 + 2.0 * monotone.sum(0) + even
    tau = tau.clamp_min(1.0 / math.log10(total))  # antithetic chains: at most total * log10(total)
    constant = x.amax((0, 1)) - x.amin((0, 1)) < torch.finfo(torch.float64).eps
    return torch.where(constant, float(total), total / tau)


def _in_chunks(measure: Callable[[Tensor], Tensor], draws: Tensor) -> Tensor:
    """`measure` of draws ``[S, B, ...]``, some quantities at a time, which bounds the memory."""
    real_tensor("draws", draws, "[S, B, ...]", error=FlexgenError)
    if draws.ndim < 2 or len(draws) < 4 or not draws.shape[1]:
        raise FlexgenError(
            "draws", f"have shape {tuple(draws.shape)}", "Pass [S, B, ...]: at least 4 draws of one or more chains."
        )
    flat = draws.reshape(*draws.shape[:2], -1)  # [S, B, n]
    size = max(_CHUNK // max(flat[..., 0].numel(), 1), 1)
    parts: list[Tensor] = [measure(part.to(torch.float64)) for part in torch.split(flat, size, dim=2)]
    return torch.cat(parts).view(draws.shape[2:])
