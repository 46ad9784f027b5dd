"""Are a model's answers conditionals at all? A few questions, before many are spent on how they fit together."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from flexgen.compatibility.networks.effects import Cost
from flexgen.compatibility.networks.rounding import unit_roundoff
from flexgen.compatibility.networks.sites import SiteAnswers, absent_in
from flexgen.conditional import CategoricalMarginals, HasLogProb, HasMarginals
from flexgen.errors import FlexgenError
from flexgen.query import Query

__all__ = ["check_answers"]

_QUESTIONS = 8
_PASSES = 3  # of each: asked, asked again, asked with other values at unobserved places
_UNITS = 64.0  # of roundoff, by which the same question may be answered otherwise
_SUM = 0.02  # by which probabilities of a site may miss a sum of 1; a softmax in bfloat16 stays below it
_MOST_CATEGORIES = 32  # of a site that log_prob is summed over


@torch.no_grad()
def check_answers(answers: SiteAnswers, x: Tensor, present: Tensor, *, most: int, seed: int = 0) -> bool:
    """Refuses a model whose answers are no conditional probabilities.

    A few one-site questions, half of them about complete conditionals and half in random contexts, are asked twice, and
    once more with other values where nothing is observed. The answers must be the same, and those of a categorical site
    must sum to 1 over its categories. Densities of real sites are not integrated.

    Args:
        answers: of the model; the questions are counted in their cost.
        x: ``[R, N]``, data rows.
        present: bool ``[R, N]``.
        most: rows that may pass the network.
        seed: of rows, sites and contexts.

    Returns:
        Whether there was anything to ask, and rows for it.

    Raises:
        FlexgenError: names what is wrong with the answers.
    """
    source = torch.Generator().manual_seed(seed)
    categories = max(answers.num_categories)
    enumerates = not answers.has_marginals and 0 < categories <= _MOST_CATEGORIES
    row, site = present.nonzero(as_tuple=True)
    number = min(_QUESTIONS, answers.batch_size, most // (_PASSES + enumerates * categories), len(row))
    if number < 1:
        return False
    chosen = torch.randperm(len(row), generator=source)[:number].to(row.device)
    row, site = row[chosen], site[chosen]
    kept = (torch.rand(number, x.shape[1], generator=source) < 0.5).to(x.device)
    first = (number + 1) // 2
    kept[:first] = True
    observed = (present[row] & kept).scatter(1, site[:, None], False)
    asked = False
    for part in (slice(0, first), slice(first, number)):
        if part.start < part.stop:
            asked |= _check(answers, x[row[part]], observed[part], site[part], enumerates)
    return asked


def _check(answers: SiteAnswers, x: Tensor, observed: Tensor, site: Tensor, enumerates: bool) -> bool:
    observed = observed | absent_in(answers.conditional, x)
    each = torch.arange(len(x), device=x.device)
    target = torch.zeros_like(observed)
    target[each, site] = True
    query = Query(target, observed)
    read = observed if answers.has_marginals else observed | target
    blank = torch.zeros_like(x)
    there = x.nan_to_num(0.0) if x.is_floating_point() else x
    other = torch.where(there == 0, torch.ones_like(x), there)
    own = x[each, site].double()[:, None]
    try:
        (before, by_category), (again, _), (after, _) = (
            _asked(answers, torch.where(read, x, fill), query, site, own) for fill in (blank, blank, other)
        )
        sums = _by_value(answers, torch.where(read, x, blank), query, site) if enumerates else None
    except FlexgenError as error:
        if error.argument in ("marginals", "log_probs"):
            raise  # what came back is no answer to any question
        return False  # a model need not answer every question; diagnostics say which they could not ask
    name = type(answers.conditional).__name__
    unit = unit_roundoff(answers.conditional)
    noise = _differ(before, again, unit)
    if noise is not None:
        raise FlexgenError(
            "model",
            f"{name} answers the same question twice and differently, by up to {noise:.2g} nats: its answers are "
            "random, and no incompatibility can be told from that",
            "Turn off what draws inside it (dropout, noise, sampled masks), or fix its seed in every call.",
        )
    change = _differ(before, after, unit)
    if change is not None:
        raise FlexgenError(
            "model",
            f"{name} reads places that are not observed: its answers change by up to {change:.2g} nats with the "
            "values there, and the contract is that what stands there is never read",
            "Blank them first, as in torch.where(query.observed, x, 0), and give the network query.observed beside it.",
        )
    if by_category:
        _check_sums(answers, before, site, name, unit)
    elif sums is not None:
        _check_sum(sums.logsumexp(-1), f"log_prob of {name}", unit)
    return True


def _asked(answers: SiteAnswers, x: Tensor, query: Query, site: Tensor, own: Tensor) -> tuple[Tensor, bool]:
    """Log-probabilities of every category ``[b, K]``, or of the data's own value ``[b, 1]``; which of the two."""
    conditional, each, by_category = answers.conditional, torch.arange(len(x), device=x.device), False
    began = time.perf_counter()
    if isinstance(conditional, HasMarginals):
        marginals = conditional.marginals(x, query)
        if isinstance(marginals, CategoricalMarginals):
            found, by_category = marginals.log_probs[each, site], True
        else:
            filled = x.clone()
            filled[each, site] = own[:, 0].to(x.dtype)
            found = marginals.log_prob(filled)[each, site][:, None]
    else:
        assert isinstance(conditional, HasLogProb)
        found = conditional.log_prob(x, query)[:, None]
    answers.cost += Cost(len(x), 1, time.perf_counter() - began, len(x))
    return found.double(), by_category


def _by_value(answers: SiteAnswers, x: Tensor, query: Query, site: Tensor) -> Tensor:
    """log p of every category ``[b, K]`` from `log_prob` alone; -inf beyond a site's own, NaN where it has none."""
    counts = torch.tensor(answers.conditional.space.num_categories, device=x.device)[site]
    columns = []
    for code in range(max(answers.num_categories)):
        filled = x.clone()
        known = code < counts
        filled[torch.arange(len(x), device=x.device), site] = torch.where(known, code, 0).to(x.dtype)
        found = _asked(answers, filled, query, site, filled[:, :1])[0][:, 0]
        columns.append(torch.where(known, found, torch.where(counts > 0, -torch.inf, torch.nan)))
    return torch.stack(columns, dim=-1)


def _differ(before: Tensor, after: Tensor, unit: float) -> float | None:
    """The largest change, in nats, if any is more than rounding makes of one computation done twice."""
    same = (before == after) | (before.isnan() & after.isnan())
    change = torch.where(same, 0.0, (after - before).abs().nan_to_num(torch.inf))
    allowed = _UNITS * unit * (1.0 + torch.where(before.isfinite(), before, 0.0).abs())
    return float(change.max()) if bool((change > allowed).any()) else None


def _check_sums(answers: SiteAnswers, log_probs: Tensor, site: Tensor, name: str, unit: float) -> None:
    counts = torch.tensor(answers.conditional.space.num_categories, device=site.device)[site]
    width = log_probs.shape[-1]
    categorical = counts > 0
    if not bool(categorical.any()):
        return
    log_probs, counts, site = log_probs[categorical], counts[categorical], site[categorical]
    if int(counts.max()) > width:
        short = int(counts.argmax())
        raise FlexgenError(
            "marginals",
            f"of {name} have {width} categories, but site {int(site[short])} of its space has {int(counts[short])}",
            "Return log-probabilities [B, N, K] of all K categories.",
        )
    beyond = torch.arange(width, device=site.device) >= counts[:, None]
    outside = log_probs.masked_fill(~beyond, -torch.inf).logsumexp(-1).exp().nan_to_num(0.0)
    if float(outside.max()) > _SUM:
        worst = int(outside.argmax())
        raise FlexgenError(
            "marginals",
            f"of {name} have {width} categories, and give {float(outside[worst]):.3g} to those beyond the "
            f"{int(counts[worst])} that site {int(site[worst])} of its space has",
            "Let the space say how many categories there are, or set the others to -inf before log_softmax.",
        )
    inside = log_probs.masked_fill(beyond, 0.0)
    if bool((inside >= 0).all()) and bool(((inside.sum(-1) - 1.0).abs() < _SUM).all()):
        raise FlexgenError("marginals", f"of {name} are probabilities, not their logarithms", "Return their log().")
    _check_sum(log_probs.masked_fill(beyond, -torch.inf).logsumexp(-1), f"marginals of {name}", unit)


def _check_sum(log_sums: Tensor, what: str, unit: float) -> None:
    """Sums over a site's categories; impossible contexts (0 or NaN) have none."""
    miss = torch.where(log_sums.isfinite(), log_sums.abs(), 0.0)
    if float(miss.max()) > max(_SUM, _UNITS * unit):
        total = float(log_sums[int(miss.argmax())].exp())
        verb = "are" if what.startswith("marginals") else "is"
        raise FlexgenError(
            what.split()[0],
            f"{what.partition(' ')[2]} {verb} not normalised: the probabilities of a site's categories sum to "
            f"{total:.4g}, not 1",
            "Return log-probabilities, as log_softmax(-1) makes them.",
        )
