"""What incompatibility costs in fit: the pseudo-log-likelihood of a network against that of a joint, and a bound."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from flexgen.checks import kind_of, whole_number
from flexgen.compatibility.arguments import check_confidence, numbers
from flexgen.conditional import HasLogProb
from flexgen.energy.joints import FiniteJoint
from flexgen.errors import DataError, FlexgenError
from flexgen.exact import Gaussian, GaussianMixture, JointTable
from flexgen.query import Query

__all__ = ["ExcessRisk", "excess_pseudo_log_likelihood", "pseudo_log_likelihood"]

_JOINTS = (JointTable, Gaussian, GaussianMixture, FiniteJoint)


@dataclass(frozen=True)
class ExcessRisk:
    """How many nats a row the conditionals of a joint, or of another model, gain over those of a network.

    Args:
        network, joint: mean pseudo-log-likelihoods, nats a row.
        gain: of the joint over the network; a lower bound, up to its error, on the network's excess risk
            sum_i KL(p_i || q_i) under the distribution of the data, since the joint's own excess risk is not negative.
            That holds of any model in the joint's place.
        standard_error: over rows.
        low, high: interval of the gain.
        confidence: of the interval.
        certificate: the I-certificate, nats: under no distribution is the network's excess risk smaller. None if not
            given.
        num_rows: rows, each one observation.
        names: what the text calls the two: the second is "joint" where it is known to be one, else "other model".
    """

    network: float
    joint: float
    gain: float
    standard_error: float
    low: float
    high: float
    confidence: float
    certificate: float | None
    num_rows: int
    names: tuple[str, str] = ("network", "joint")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        first, second = self.names
        lines = [
            f"pseudo-log-likelihood, nats a row over {self.num_rows} rows: {first} {self.network:.4f}, {second} "
            f"{self.joint:.4f}",
            f"  the {second} gains {self.gain:+.4f} ({self.low:+.4f} to {self.high:+.4f}, {self.confidence:.0%})",
        ]
        if self.certificate is not None:
            lines.append(
                f"  incompatibility alone costs the network at least {self.certificate:.4f}, "
                "whatever the data's distribution"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def excess_pseudo_log_likelihood(
    network: HasLogProb,
    joint: HasLogProb,
    x: Tensor,
    *,
    certificate: float | None = None,
    weights: Tensor | None = None,
    confidence: float = 0.95,
    batch_size: int = 1024,
) -> ExcessRisk:
    """Pseudo-log-likelihood sum_i log p(x_i | rest) of held-out rows: what a joint gains over a network.

    Set beside the I-certificate, min over distributions r of sum_i KL(r || r_{-i} q_i), which `closest_joint` gives for
    tables: the certificate holds for any data, the gain for these. Both bound the network's excess risk from below. A
    joint that gains nothing repairs compatibility for free; one that loses pays for it.

    Args:
        network: the incompatible conditionals.
        joint: what is set against it. A model with a joint: the closest one, a distilled one, the distribution of the
            random scan; or another model, such as the network after a repair. The text calls it a joint only where it
            is known to be one.
        x: ``[B, N]``, rows that neither was fitted to.
        certificate: in nats, if known.
        weights: ``[B]``, probabilities of the rows where they are all states of a known distribution: the gain is then
            exact, and its error 0.
        confidence: of the interval, which is Student's over rows.
        batch_size: rows evaluated at once.

    Raises:
        DataError: too few rows, weights that are no probabilities, a row that one of the two holds impossible.
        SpaceError: rows outside the space of one of the two.
        FlexgenError: options that cannot be used, or a network or joint without log-probabilities.
    """
    check_confidence(confidence)
    if certificate is not None and not (isinstance(certificate, int | float) and math.isfinite(certificate)):
        raise FlexgenError("certificate", f"is {kind_of(certificate)}", "Pass a number of nats, or None.")
    x = _checked_rows(x, 2)
    share = torch.full((len(x),), 1 / len(x), dtype=torch.float64) if weights is None else _shares(weights, len(x))
    _check_conditional("network", network)
    _check_conditional("joint", joint)
    of_network = pseudo_log_likelihood(network, x, batch_size=batch_size)
    of_joint = pseudo_log_likelihood(joint, x, batch_size=batch_size)
    read = share > 0  # rows of no weight may be impossible
    for argument, values in (("network", of_network), ("joint", of_joint)):
        wrong = (~values.isfinite() & read).nonzero()[:, 0].tolist()
        if wrong and float(values[wrong[0]]) == -math.inf:
            raise DataError(
                argument, f"holds row {wrong[0]} of x impossible", "Smooth it, or leave out rows outside its support."
            )
        if wrong:
            raise DataError(
                argument, f"gives row {wrong[0]} of x {float(values[wrong[0]])} nats", "Look at its answers there."
            )
    gains = (of_joint - of_network)[read]
    gain = float(share[read] @ gains)
    error = float(gains.std()) / math.sqrt(len(x)) if weights is None else 0.0
    reach = float(stats.t.isf((1 - confidence) / 2, len(x) - 1)) * error
    return ExcessRisk(
        float(share[read] @ of_network[read]),
        float(share[read] @ of_joint[read]),
        gain,
        error,
        gain - reach,
        gain + reach,
        confidence,
        certificate,
        len(x),
        ("network", "joint" if isinstance(joint, _JOINTS) else "other model"),
    )


def pseudo_log_likelihood(conditional: HasLogProb, x: Tensor, *, batch_size: int = 1024) -> Tensor:
    """sum_i log p(x_i | rest) in nats, float64 ``[B]``; N evaluations of every row.

    Raises:
        DataError: rows that are no table of numbers.
        SpaceError: rows outside the space.
        FlexgenError: a conditional without log-probabilities, or a batch size below 1.
    """
    _check_conditional("conditional", conditional)
    batch_size = whole_number("batch_size", batch_size, 1)
    x = _checked_rows(x, 1)
    num_sites = conditional.space.num_sites
    total = torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        for site in range(num_sites):
            query = Query.complete(site, num_sites=num_sites, device=x.device)
            parts = [conditional.log_prob(rows, query) for rows in torch.split(x, batch_size)]
            total += torch.cat(parts).to("cpu", torch.float64)
    return total


def _checked_rows(x: Tensor, least: int) -> Tensor:
    rows = numbers("x", x, "Pass rows [B, N].")
    if rows.ndim < 2 or len(rows) < least:
        fix = f"Pass {'two rows' if least == 2 else 'one row'} or more, [B, N]."
        raise DataError("x", f"has shape {tuple(rows.shape)}", fix)
    return rows


def _shares(weights: Tensor, num_rows: int) -> Tensor:
    fix = "Pass one probability a row, summing to 1."
    share = numbers("weights", weights, fix).to("cpu", torch.float64)
    if share.shape != (num_rows,):
        raise DataError("weights", f"has shape {tuple(share.shape)}, for {num_rows} rows", fix)
    wrong = (~(share >= 0)).nonzero()[:, 0].tolist()  # NaN is not >= 0, either
    if wrong:
        raise DataError("weights", f"holds {float(share[wrong[0]])} for row {wrong[0]}", fix)
    if not abs(float(share.sum()) - 1) <= 1e-6:
        raise DataError("weights", f"sum to {float(share.sum()):.6g}", fix)
    return share


def _check_conditional(argument: str, value: Any) -> None:
    if not (hasattr(value, "space") and callable(getattr(value, "log_prob", None))):
        raise FlexgenError(
            argument,
            f"is {kind_of(value)}, which has no space and log_prob",
            "Pass a conditional with log-probabilities: a model, or tables of flexgen.exact.",
        )
