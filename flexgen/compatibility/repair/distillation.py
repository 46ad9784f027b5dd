"""Distillation into an energy: the joint whose complete conditionals come closest to a network's, on given rows.

Network-targeted pseudo-likelihood minimises

    sum over rows x and sites i of KL(q_i(. | x_{-i}) || p_i(. | x_{-i})),    p(x) ∝ exp(-E(x)),

with the network's q_i as targets, not the data: no sampling, no normalising constant, and N queries of the network a
row, once. Over all states alike, of sites with equally many categories, and with a free energy for every state,
the minimiser is the closest joint by kind "AG" (Arnold & Gokhale 1998); over rows of a distribution it weighs contexts
by that distribution. Source of the criterion with data as targets: Besag (1975).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.checks import whole_number
from flexgen.compatibility.networks.effects import Cost
from flexgen.compatibility.networks.sites import Requests, SiteAnswers, present_in
from flexgen.conditional import Conditional
from flexgen.energy.joints import EnergyModel, FiniteJoint
from flexgen.errors import DataError
from flexgen.rng import Randomness
from flexgen.training import TensorData, TrainingResult, TrainingSettings, train
from flexgen.training.batches import Batch

__all__ = ["TargetedPseudoLikelihood", "complete_conditionals", "distil"]


@dataclass(frozen=True, eq=False)
class Distilled:
    """A joint made from a network.

    Args:
        model: the joint.
        training: its history; the loss is sum_i KL(q_i || p_i), nats a row.
        cost: what the targets took of the network.
        kl: sum_i KL(q_i || p_i) of the final model, mean over the rows, nats: what of the conditionals is lost.
    """

    model: EnergyModel
    training: TrainingResult
    cost: Cost
    kl: float

    def __str__(self) -> str:
        return (
            f"joint by distillation: conditionals lose {self.kl:.4g} nats a row in KL(network || joint), all sites "
            f"together; {self.cost.forwards:,} rows through the network"
        )


class TargetedPseudoLikelihood:
    """sum_i KL(q_i(. | rest) || p_i(. | rest)) of each row, nats ``[B]``: a training `Objective` for a `FiniteJoint`.

    Args:
        num_sites: random sites a row and step, without replacement, scaled up to all of them without bias; None: all.

    A batch maps ``"x"`` to ``[B, N]`` and ``"targets"`` to the network's log q_i, ``[B, N, K]``, see
    `complete_conditionals`.
    """

    def __init__(self, num_sites: int | None = None) -> None:
        self.num_sites = None if num_sites is None else whole_number("num_sites", num_sites, 1)

    def __call__(self, network: nn.Module, batch: Batch, generator: Randomness) -> Tensor:
        assert isinstance(network, FiniteJoint)
        assert not isinstance(batch, Tensor)
        x, targets = batch["x"], batch["targets"]
        total = x.shape[1]
        count = total if self.num_sites is None else min(self.num_sites, total)
        if count == total:
            sites = torch.arange(total, device=x.device).expand(len(x), -1)
        else:
            sites = rng.permutation(len(x), total, generator=generator)[:, :count]  # [B, n]
        log_p = network.line_log_probs(x.repeat_interleave(count, 0), sites.flatten())  # [B n, K]
        log_q = targets.gather(1, sites[..., None].expand(-1, -1, targets.shape[-1])).flatten(0, 1).to(log_p)
        possible = log_q > -torch.inf
        gap = torch.where(possible, log_q - torch.where(possible, log_p, 0.0), 0.0)
        kl = (log_q.exp() * gap).sum(-1)  # [B n]
        return total / count * kl.view(len(x), count).sum(-1)

    def __repr__(self) -> str:
        return f"TargetedPseudoLikelihood(num_sites={self.num_sites})"


def distil(
    network: Conditional | SiteAnswers,
    x: Tensor,
    *,
    model: EnergyModel | None = None,
    num_sites: int | None = None,
    settings: TrainingSettings | None = None,
    held_out: Tensor | None = None,
    directory: str | Path | None = None,
    progress: bool | None = None,
) -> Distilled:
    """Distils the complete conditionals of a network over finite sites into one joint.

    Args:
        network: has marginals or log-probabilities (or `SiteAnswers` of one, to choose the batch size).
        x: ``[R, N]``, rows whose contexts matter: data, or, since an energy is unconstrained where nobody looks, data
            and draws of the network's random scan.
        model: trained in place; default: an `EnergyModel` with a `PottsNetwork`.
        num_sites, settings, held_out, directory, progress: of the training, see `TargetedPseudoLikelihood` and
            `flexgen.training.train`. Default settings: `TrainingSettings`, held-out rows stop it.

    Raises:
        DataError: rows with missing entries, or none.

    What stays: the network, as it is, and its marginal answers. What changes: joint and conditionals are the model's.

    Cost: N rows a distinct context through the network, once; training costs N K evaluations of the energy a row and
    step (``num_sites`` K with fewer sites).
    """
    answers = network if isinstance(network, SiteAnswers) else SiteAnswers(network)
    for name, rows in (("x", x), ("held_out", held_out)):
        if rows is not None and (rows.ndim != 2 or not len(rows) or not bool(present_in(rows).all())):
            raise DataError(name, f"has shape {tuple(rows.shape)} or missing entries", "Pass complete rows, [R, N].")
    model = EnergyModel(answers.conditional.space) if model is None else model
    before = answers.cost
    data = _with_targets(answers, x)
    checked = None if held_out is None else _with_targets(answers, held_out)
    objective = TargetedPseudoLikelihood(num_sites)
    result = train(
        model,
        objective,
        data,
        settings or TrainingSettings(patience=None if held_out is None else 5),
        held_out=checked,
        directory=directory,
        progress=progress,
    )
    return Distilled(model, result, answers.cost - before, _mean_kl(model, data))


@torch.no_grad()
def _mean_kl(model: EnergyModel, data: TensorData) -> float:
    objective, total = TargetedPseudoLikelihood(), 0.0
    place = next(model.parameters()).device
    for rows in torch.split(torch.arange(len(data)), 1024):
        batch = data.batch(rows)
        assert not isinstance(batch, Tensor)
        moved = {name: tensor.to(place) for name, tensor in batch.items()}
        total += float(objective(model, moved, torch.Generator()).double().sum())
    return total / len(data)


def complete_conditionals(answers: SiteAnswers, x: Tensor) -> Tensor:
    """log q(x_i = v | rest of the row) of every site and value, float64 ``[R, N, K]``; -inf beyond a site's categories.

    Each distinct context is evaluated once.
    """
    space = answers.conditional.space
    num_rows, num_sites = x.shape
    sizes = torch.tensor(space.num_categories, device=x.device)
    values = torch.arange(int(sizes.max()), device=x.device)
    site = torch.arange(num_sites, device=x.device).repeat(num_rows)  # [R N]

    def make(some: Tensor) -> tuple[Tensor, Tensor]:
        observed = torch.ones(len(some), num_sites, dtype=torch.bool, device=x.device)
        return x[some // num_sites], observed.scatter(1, site[some, None], False)

    possible = values < sizes[site][:, None]
    possible_values = torch.where(possible, values, 0).double()
    log_probs = answers.log_prob(Requests(site, make), possible_values).masked_fill(~possible, -torch.inf)
    return log_probs.log_softmax(-1).view(num_rows, num_sites, -1)


def _with_targets(answers: SiteAnswers, x: Tensor) -> TensorData:
    return TensorData({"x": x, "targets": complete_conditionals(answers, x)})
