"""Parallel decoding: several sites a step, from the marginals of one evaluation, within a budget of evaluations.

Guarantee: with as many steps as targets and the random rule, one site a step, this is any-order decoding with a
uniformly random order, and exact where the conditionals are compatible. The budget is exact: `num_steps` evaluations.

Caveats: sites filled in the same step are drawn independently, so with fewer steps what they have in common given the
rest is lost. The confidence rule prefers values that are easy to guess, which biases the distribution even at one site
a step: it decodes, it does not sample. Remasking gives errors a second chance and has no known distribution in general
either.

Sources: confidence: Chang et al. (2022), *MaskGIT*. Random: Sahoo et al. (2024), *MDLM*, with the number of sites a
step fixed where MDLM's own sampler draws it (binomially). Remasking: Wang et al. (2025), *ReMDM*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flexgen import rng
from flexgen.checks import instance, malformed, mapping, number, one_of, whole_number
from flexgen.conditional import Conditional
from flexgen.errors import FlexgenError
from flexgen.query import Query, question
from flexgen.rng import Randomness
from samplers.any_order import refuse_missing
from samplers.schedule import Factorized, Walk, query_from_dict, query_to_dict, run

__all__ = ["ParallelDecode", "sample"]


@dataclass(frozen=True, eq=False)
class ParallelDecode:
    """The targets of a query in a given number of evaluations: an adaptive `Schedule`.

    Args:
        query: targets and observed sites, ``[N]`` or ``[B, N]``.
        num_steps: evaluations. Without remasking at most as many as the fullest row has targets.
        rule: which sites of a step to keep: ``"confidence"``, those whose drawn value has the highest probability; or
            ``"random"``.
        temperature: of Gumbel noise on the log-confidence, falling linearly to 0 at the last step.
        noise_schedule: how many targets are filled after t of T steps: ``"cosine"`` (few first; as in MaskGIT) or
            ``"linear"``. At least one a step, while there are any.
        remask: share of the filled targets that is masked again before every step but the first: at random under the
            random rule, the least confident under the confidence rule.
    """

    query: Query
    num_steps: int
    rule: Literal["confidence", "random"] = "confidence"
    temperature: float = 0.0
    noise_schedule: Literal["cosine", "linear"] = "cosine"
    remask: float = 0.0

    def __post_init__(self) -> None:
        instance("query", self.query, Query, "Pass a flexgen.Query.")
        one_of("rule", self.rule, ("confidence", "random"))
        one_of("noise_schedule", self.noise_schedule, ("cosine", "linear"))
        number("temperature", self.temperature, 0.0, fix="Give a number from 0.")
        if not 0 <= number("remask", self.remask, fix="Give a share from 0 to below 1.") < 1:
            raise FlexgenError("remask", f"is {self.remask}", "Give a share from 0 to below 1.")
        whole_number("num_steps", self.num_steps)
        most = int(self.query.target.sum(-1).max()) if self.query.target.numel() else 0
        if self.num_steps < min(most, 1):
            raise FlexgenError("num_steps", f"is {self.num_steps}", "Give at least one evaluation.")
        if self.num_steps > most and not self.remask:
            raise FlexgenError(
                "num_steps",
                f"is {self.num_steps}, but no row has more than {most} target(s)",
                f"Give at most {most}, or let steps go over sites again with remask > 0.",
            )

    @property
    def only_adds(self) -> bool:
        """Whether each step knows what the step before knew and more, so that a decoder can remember."""
        return not self.remask

    @property
    def num_evaluations(self) -> int:
        return self.num_steps

    @property
    def critical_path(self) -> int:
        return self.num_steps

    def walk(self, x: Tensor, *, generator: Randomness) -> Walk:
        query = question(x, self.query)
        num_targets = query.target.sum(-1)  # [B]
        filled = torch.zeros_like(query.target)  # [B, N]
        confidence = torch.zeros(query.target.shape, dtype=torch.float64, device=query.device)  # of filled sites
        for step in range(self.num_steps):
            if step and self.remask:
                score = (
                    confidence
                    if self.rule == "confidence"
                    else rng.uniform(filled.shape, generator=generator, dtype=torch.float64)
                )
                num_remasked = (self.remask * filled.sum(-1)).floor().long()
                filled = filled & ~_highest(-score, filled, num_remasked)
            num_kept = self._num_filled(step + 1, num_targets) - filled.sum(-1)  # [B]
            masked = query.target & ~filled
            kept = torch.zeros_like(filled)

            def keep(log_prob: Tensor) -> Tensor:
                nonlocal kept, confidence
                score = self._score(log_prob.double(), step, generator)  # noqa: B023
                kept = _highest(score, masked, num_kept)  # noqa: B023
                confidence = torch.where(kept, log_prob.double(), confidence)
                return kept

            yield Factorized(Query._trusted(masked, query.observed | filled), keep)
            filled = filled | kept

    def _score(self, log_prob: Tensor, step: int, generator: Randomness) -> Tensor:
        """What ranks the sites of a step, ``[B, N]``; the highest are kept."""
        if self.rule == "random":
            return rng.uniform(log_prob.shape, generator=generator, dtype=torch.float64)
        annealed = self.temperature * (1.0 - (step + 1) / self.num_steps)
        if not annealed:
            return log_prob
        return log_prob + annealed * rng.gumbel(log_prob.shape, generator=generator, dtype=torch.float64)

    def _num_filled(self, step: int, num_targets: Tensor) -> Tensor:
        """How many targets are filled after `step` steps, ``[B]``."""
        if step == self.num_steps:
            return num_targets
        done = step / self.num_steps
        masked = math.cos(0.5 * math.pi * done) if self.noise_schedule == "cosine" else 1.0 - done
        # The tiny addition keeps exact shares, such as n - t of n, from being rounded down past a whole number.
        left = (num_targets * masked + 1e-9).floor().long()
        return num_targets - torch.minimum(left, (num_targets - step).clamp_min(0))

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "query": query_to_dict(self.query)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ParallelDecode:
        fix = "Pass what to_dict() gave."
        mapping("data", data, fix)
        with malformed("data", fix, FlexgenError):
            return cls(**{**data, "query": query_from_dict(data["query"])})

    def __repr__(self) -> str:
        return f"ParallelDecode({self.query}, {self.rule}, {self.noise_schedule}, {self.num_steps} evaluations)"


def sample(
    conditional: Conditional,
    x: Tensor,
    query: Query,
    *,
    num_steps: int,
    generator: Randomness | int | None,
    rule: Literal["confidence", "random"] = "confidence",
    temperature: float = 0.0,
    noise_schedule: Literal["cosine", "linear"] = "cosine",
    remask: float = 0.0,
    progress: bool = False,
) -> Tensor:
    """x with the target decoded in `num_steps` evaluations, ``[B, N]``; see `ParallelDecode`."""
    refuse_missing(x, query)
    schedule = ParallelDecode(query, num_steps, rule, temperature, noise_schedule, remask)
    return run(conditional, x, schedule, generator=generator, progress=progress)


def _highest(score: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Bool ``[B, N]``: in each row the `count` members of `among` with the highest scores."""
    rank = score.masked_fill(~among, -torch.inf).argsort(-1, descending=True).argsort(-1)
    return among & (rank < count[:, None])
