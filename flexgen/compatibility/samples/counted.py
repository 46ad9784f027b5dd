"""The arithmetic of complete conditionals counted from samples, one sample a site, vectorised over replicates.

Counts are ``[R, N, V_0, .., V_{N-1}]``, float64: replicate, site, state. ``counts[r, i]`` are the states seen in
sample i, from which p(x_i | rest) is counted; all else that sample tells is not used.

The conditionals are compatible iff there are functions f of the state (the joint's log-probability) and g_i of the
other sites with log p(x_i | rest) = f - g_i for every i. That is a linear model, and both the Wald test and the
likelihood below are its fits: by weighted least squares to the logarithms of the counts (Grizzle, Starmer & Koch
1969), and by maximum likelihood of the conditionals. Every g_i is eliminated in closed form: a fit solves S equations.

Names here -> in the text: joint -> f, lines -> states that differ in x_i alone, information -> minus the Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["conditionals", "fit_likelihood", "fit_wald", "likelihood_ratio", "redraw", "totals"]

_CHUNK_ENTRIES = 1 << 22  # float64 entries of [R, S, S] held at once: 32 MiB
_MAX_STEPS = 50


def fit_wald(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares of log counts: the joint f, up to a constant, and the Wald statistic.

    The residual sum of squares *is* the Wald statistic of all log odds ratios at once, whatever basis of them is taken.

    Args:
        counts: positive (add one half to every cell first).

    Returns:
        f ``[R, V_0, ..]`` and the statistic ``[R]``.
    """
    pieces = [_fit_wald(part) for part in _chunks(counts)]
    return torch.cat([joint for joint, _ in pieces]), torch.cat([statistic for _, statistic in pieces])


def _fit_wald(counts: Tensor) -> tuple[Tensor, Tensor]:
    logs = counts.log()
    pull = sum(counts[:, i] * _centred(logs[:, i], counts[:, i], i + 1) for i in range(counts.shape[1]))
    assert isinstance(pull, Tensor)
    joint = _solve(_information(counts), pull)
    residuals = [counts[:, i] * _centred(logs[:, i] - joint, counts[:, i], i + 1) ** 2 for i in range(counts.shape[1])]
    return joint, torch.stack(residuals, 1).flatten(1).sum(1)


def fit_likelihood(counts: Tensor) -> Tensor:
    """The joint, ``[R, V_0, ..]`` in logarithms, whose conditionals make the counts most likely.

    Maximises sum_i sum_x counts_i(x) log r(x_i | rest) over joints r, which is concave in log r: Newton's method from
    the weighted least squares, halving steps that overshoot. It is the Arnold-Gokhale projection of the counted
    conditionals with the law given each rest weighed by how often that rest was seen.

    Args:
        counts: positive.
    """
    return torch.cat([_fit_likelihood(part) for part in _chunks(counts)])


def _fit_likelihood(counts: Tensor) -> Tensor:
    seen = totals(counts)
    joint, _ = _fit_wald(counts)
    value = _log_likelihood(counts, joint)
    for _ in range(_MAX_STEPS):
        expected = seen * conditionals(joint).exp()
        gradient = (counts - expected).sum(1)  # [R, V_0, ..]
        step = _solve(_information(expected), gradient)
        gain = (gradient * step).flatten(1).sum(1)  # twice what is left to gain, near the optimum
        if bool((gain <= 1e-10 * counts.flatten(1).sum(1)).all()):
            break
        scale = torch.ones_like(value)
        for _ in range(30):
            proposal = joint + step * scale.view(-1, *[1] * (joint.ndim - 1))
            new_value = _log_likelihood(counts, proposal)
            worse = new_value < value - 1e-12 * value.abs()
            if not bool(worse.any()):
                break
            scale = torch.where(worse, scale / 2, scale)
        joint, value = proposal, new_value
    return joint


def likelihood_ratio(counts: Tensor, joint: Tensor) -> Tensor:
    """Twice the log-likelihood that the free conditionals gain over those of `joint`, ``[R]``."""
    return 2 * ((counts * (counts.log() - totals(counts).log())).flatten(1).sum(1) - _log_likelihood(counts, joint))


def conditionals(joint: Tensor) -> Tensor:
    """log p(x_i | rest) of joints given as logarithms ``[R, V_0, ..]``, for every site: ``[R, N, V_0, ..]``."""
    return torch.stack([joint.log_softmax(i + 1) for i in range(joint.ndim - 1)], 1)


def redraw(seen: Tensor, log_conditionals: Tensor, *, generator: torch.Generator) -> Tensor:
    """New counts of the same contexts: in sample i every rest that was seen m times draws m values of x_i.

    Args:
        seen: ``[R, N, V_0, ..]``, how often each state's rest was seen; constant along axis i of sample i.
        log_conditionals: same shape.
    """
    drawn = []
    for i in range(seen.shape[1]):
        probability = log_conditionals[:, i].movedim(i + 1, 0).exp()  # [V_i, R, ..]
        left = seen[:, i].movedim(i + 1, 0)[0].clone()
        mass = torch.ones_like(left)
        values = []
        for p in probability[:-1]:  # a multinomial as a chain of binomials
            share = torch.where(mass > 0, p / mass, 0.0).clamp(0.0, 1.0)
            number = torch.binomial(left, share, generator=generator)
            values.append(number)
            left, mass = left - number, (mass - p).clamp_min(0.0)
        drawn.append(torch.stack([*values, left]).movedim(0, i + 1))
    return torch.stack(drawn, 1)


def _log_likelihood(counts: Tensor, joint: Tensor) -> Tensor:
    return (counts * conditionals(joint)).flatten(1).sum(1)


def totals(counts: Tensor) -> Tensor:
    """How often each state's rest was seen in sample i, spread over x_i."""
    return torch.stack(
        [counts[:, i].sum(i + 1, keepdim=True).expand_as(counts[:, i]) for i in range(counts.shape[1])], 1
    )


def _centred(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Less their weighted mean along each line: the best g_i is eliminated."""
    return values - (weights * values).sum(axis, keepdim=True) / weights.sum(axis, keepdim=True)


def _information(weights: Tensor) -> Tensor:
    """sum_i [Diag(w_i) - w_i w_i^T / (sum of the line)] within the lines of site i, ``[R, S, S]``."""
    shape = weights.shape[2:]
    states = torch.arange(math.prod(shape), device=weights.device).view(shape)
    out = torch.diag_embed(weights.flatten(2).sum(1))
    for i, line_total in enumerate(totals(weights).unbind(1)):
        line = states.select(i, 0).unsqueeze(i).expand(shape).flatten()  # its first state names a line
        share = (weights[:, i] / line_total).flatten(1)
        same = (line[:, None] == line).to(weights.dtype)
        out -= share[:, :, None] * weights[:, i].flatten(1)[:, None, :] * same
    return out


def _solve(information: Tensor, pull: Tensor) -> Tensor:
    """The minimiser with f = 0 in the first state: f matters up to a constant only."""
    factor = torch.linalg.cholesky(information[:, 1:, 1:])
    solution = torch.cholesky_solve(pull.flatten(1)[:, 1:, None], factor)[..., 0]
    return torch.nn.functional.pad(solution, (1, 0)).view(pull.shape)


def _chunks(counts: Tensor) -> Sequence[Tensor]:
    return torch.split(counts, max(1, _CHUNK_ENTRIES // math.prod(counts.shape[2:]) ** 2))
