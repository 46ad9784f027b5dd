"""Joints that are known up to a constant: p(x) ∝ exp(-E(x)).

Complete conditionals follow by enumerating one site's values, and belong to one joint by construction. `FiniteJoint`
derives them from a log-weight; `EnergyModel` takes the log-weight from a network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from einops import rearrange
from torch import Tensor, nn

from flexgen import rng
from flexgen.answers import Answers, CompleteConditionals
from flexgen.checks import instance, kind_of, whole_number, whole_tensor
from flexgen.conditional import CategoricalMarginals
from flexgen.errors import FlexgenError, SpaceError, UnsupportedQueryError
from flexgen.exact import JointTable
from flexgen.networks import ResidualMLP
from flexgen.query import Query, question
from flexgen.rng import Randomness
from flexgen.space import Space

__all__ = ["EnergyModel", "FiniteJoint", "PottsNetwork", "TableEnergy"]

MAX_STATES = 1 << 16  # that are enumerated
_STATES_AT_ONCE = 1 << 14


class FiniteJoint(ABC):
    """A joint over finite sites whose log-probability is known up to a constant; base of what distillation makes.

    A subclass gives `log_weight`. Complete conditionals p(x_i | rest) follow, K evaluations each, and belong to one
    joint by construction; so do all samplers' answers built on them. `energy` is what ``samplers.MetropolisSampler``
    corrects towards.
    """

    answers: Answers = CompleteConditionals()

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._space = space

    @property
    def space(self) -> Space:
        return self._space

    @abstractmethod
    def log_weight(self, x: Tensor) -> Tensor:
        """log p(x) + constant, nats, ``[B]``."""

    def log_normaliser(self) -> float:
        """What `log_weight` exceeds log p by, by enumeration.

        Raises:
            UnsupportedQueryError: more than 2^16 states.
        """
        self._require_enumerable()
        return float(self._log_weights().logsumexp(0))

    @torch.no_grad()
    def energy(self, x: Tensor) -> Tensor:
        """-log p(x) + constant, float64 ``[B]``: for ``MetropolisSampler(network, joint.energy, scan=..)``."""
        self.space.validate(x)
        return -self.log_weight(x).double()

    def table(self) -> JointTable:
        """The joint, of at most 2^16 states."""
        self._require_enumerable()
        return JointTable(self._log_weights().softmax(0).view(self.space.num_categories))

    def line_log_probs(self, x: Tensor, site: Tensor) -> Tensor:
        """log p(x_site = v | rest) of every value v, ``[M, K]``, for one site a row; -inf beyond its categories.

        Args:
            x: ``[M, N]``.
            site: int64 ``[M]``.

        Carries gradients to the joint's parameters.
        """
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != self.space.num_sites:
            raise SpaceError("x", f"is {kind_of(x)}", f"Pass states [M, {self.space.num_sites}].")
        if whole_tensor("site", site, "[M]", ndim=1).shape != x.shape[:1] or (
            len(site) and not 0 <= int(site.min()) <= int(site.max()) < self.space.num_sites
        ):
            fix = f"Pass one number a row of x, 0 to {self.space.num_sites - 1}."
            raise FlexgenError("site", f"has shape {tuple(site.shape)} or names no site", fix)
        site = site.long()
        if not self.space.is_finite:
            raise UnsupportedQueryError("query", "asks for values of a site that is not finite", "Ask for log_prob.")
        sizes = torch.tensor(self.space.num_categories, device=x.device)[site]  # [M]
        values = torch.arange(max(self.space.num_categories), device=x.device)
        possible = values < sizes[:, None]  # [M, K]
        at = site[:, None, None].expand(-1, len(values), 1)
        put = torch.where(possible, values, 0)[..., None].to(x.dtype)  # [M, K, 1]
        states = x[:, None].expand(-1, len(values), -1).scatter(2, at, put)
        scores = self.log_weight(rearrange(states, "m k n -> (m k) n"))
        scores = rearrange(scores, "(m k) -> m k", k=len(values))
        return scores.masked_fill(~possible, -torch.inf).log_softmax(-1)

    def marginals(self, x: Tensor, query: Query, *, sites: Tensor | None = None) -> CategoricalMarginals:
        """p(x_i | rest) at each row's target, ``[B, N, K]``; the same at the row's other sites, where it means nothing.

        Args:
            sites: int64 ``[S]`` or ``[B, S]``; the answer is ``[B, S, K]``. None: all, ``[B, N, K]``.

        Raises:
            UnsupportedQueryError: several targets, or an unobserved site beside the target: sums over states of a joint
                that is known up to a constant.
        """
        query = question(x, query)
        self._require_complete(query)
        self.space.validate(x, where=query.observed)
        site = query.target.long().argmax(-1)  # [B], 0 where there is none
        whole = torch.where(query.observed, x, torch.zeros_like(x))
        num_sites = x.shape[1] if sites is None else sites.shape[-1]
        return CategoricalMarginals(self.line_log_probs(whole, site)[:, None].expand(-1, num_sites, -1))

    def log_prob(self, x: Tensor, query: Query | None = None) -> Tensor:
        """log p(x_i | rest), or of all sites given nothing (the default), nats ``[B]``.

        All sites need the normalising constant: enumerated (2^16 states at most) where it is not known.
        """
        if query is None:
            self.space.validate(x)
            query = Query.rest(torch.zeros(x.shape[1], dtype=torch.bool, device=x.device))
        query = question(x, query)
        if len(x) and bool(query.target.all()):
            self.space.validate(x)
            return self.log_weight(x) - self.log_normaliser()
        log_probs = self.marginals(x, query).log_prob(x)
        return torch.where(query.target, log_probs, 0.0).sum(-1)

    def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
        """x with each row's target drawn from p(x_i | rest)."""
        query = question(x, query)
        draw = rng.categorical(self.marginals(x, query).log_probs[:, 0], generator=generator)
        return torch.where(query.target, draw[:, None].to(x.dtype), x)

    @torch.no_grad()
    def _log_weights(self) -> Tensor:
        """Of all states, float64 ``[S]``."""
        parts = torch.split(self.space.states(), _STATES_AT_ONCE)
        return torch.cat([self.log_weight(states.to(self._device())).double().cpu() for states in parts])

    def _device(self) -> torch.device:
        return torch.device("cpu")

    def _require_enumerable(self) -> None:
        if not self.space.is_finite or self.space.num_states > MAX_STATES:
            raise UnsupportedQueryError(
                "query",
                f"needs the normalising constant of a joint over {self.space}",
                f"At most {MAX_STATES} states are enumerated: ask for complete conditionals, or compare energies.",
            )

    def _require_complete(self, query: Query) -> None:
        count = query.target.sum(-1)
        wrong = (count > 1) | ((count == 1) & query.marginalised.any(-1))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            single = Query(query.target[row], query.observed[row])
            raise UnsupportedQueryError(
                "query",
                f"asks for {single!r} in row {row}, which takes sums over states",
                "Ask for one target with all other sites observed, or sample with the observed sites clamped.",
            )


# Energies over finite sites.

_MOST_PARAMETERS = 1 << 20


class EnergyModel(nn.Module, FiniteJoint):
    """The joint p(x) ∝ exp(-E(x)) of a network E: ``[B, N] -> [B]``.

    Its complete conditionals share this joint, whatever the weights. A Gibbs sampler on it, or
    ``MetropolisSampler(network, model.energy, ..)`` with any network's proposals, leaves it invariant.

    Args:
        space: finite.
        network: the energy; default: a `PottsNetwork`.
    """

    def __init__(self, space: Space, network: nn.Module | None = None) -> None:
        nn.Module.__init__(self)
        self._space = _finite(space)
        if network is not None:
            instance("network", network, nn.Module, "Pass a torch.nn.Module from [B, N] to [B], or None.")
        self.network = PottsNetwork(space) if network is None else network
        self.eval()

    def log_weight(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim != 2 or x.is_complex() or x.layout != torch.strided:
            raise SpaceError("x", f"is {kind_of(x)}", f"Pass states [B, {self._space.num_sites}].")
        try:
            energy: Tensor = self.network(x)
        except (IndexError, RuntimeError):
            self._space.validate(x)  # the values are looked at only where they failed: this is an inner step of chains
            raise
        return -energy

    forward = log_weight

    def _device(self) -> torch.device:
        return next((weight.device for weight in self.parameters()), torch.device("cpu"))


class TableEnergy(nn.Module):
    """A free energy for every state: any positive joint can be had. For spaces that can be enumerated."""

    strides: Tensor

    def __init__(self, space: Space) -> None:
        super().__init__()
        sizes = _finite(space).num_categories
        if space.num_states > _MOST_PARAMETERS:
            raise SpaceError(
                "space", f"has {space.num_states} states", f"At most {_MOST_PARAMETERS}: use PottsNetwork."
            )
        strides = [math.prod(sizes[site + 1 :]) for site in range(len(sizes))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        self.energies = nn.Parameter(torch.zeros(space.num_states, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.energies[x.long() @ self.strides]


class PottsNetwork(nn.Module):
    """E(x) = -sum_i h_i(x_i) - sum_{i<j} J_ij(x_i, x_j) - perceptron(x): pairs at once, the rest learned.

    The perceptron starts at zero, the fields and couplings do too: the uniform distribution.

    Args:
        space: finite.
        width, depth: of the perceptron, see `ResidualMLP`; depth 0 leaves it out, a plain Potts model.
        seed: of the initial weights.
    """

    offsets: Tensor
    between_sites: Tensor

    def __init__(self, space: Space, *, width: int = 64, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        sizes = torch.tensor(_finite(space).num_categories)
        width, depth = whole_number("width", width, 1, most=1 << 14), whole_number("depth", depth, most=1 << 10)
        seed = whole_number("seed", seed)
        if int(sizes.sum()) ** 2 > _MOST_PARAMETERS:
            raise SpaceError("space", f"has {int(sizes.sum())} categories", "Their pairs need a smaller space.")
        num_features = int(sizes.sum())
        site_of = torch.arange(len(sizes)).repeat_interleave(sizes)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("between_sites", (site_of[:, None] < site_of).float(), persistent=False)
        self.fields = nn.Parameter(torch.zeros(num_features))
        self.couplings = nn.Parameter(torch.zeros(num_features, num_features))
        self.perceptron = None
        if depth:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.perceptron = ResidualMLP(num_features, 1, width=width, depth=depth)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != len(self.offsets):
            raise SpaceError("x", f"is {kind_of(x)}", f"Pass states [B, {len(self.offsets)}].")
        places = x.long() + self.offsets  # [B, N]
        hot = self.fields.new_zeros(len(x), len(self.fields)).scatter(1, places, 1.0)  # [B, F]
        score = hot @ self.fields + (hot @ (self.couplings * self.between_sites) * hot).sum(-1)
        if self.perceptron is not None:
            score = score + self.perceptron(hot)[:, 0]
        return -score


def _finite(space: Space) -> Space:
    instance("space", space, Space, "Pass a flexgen.Space, such as Space.categorical([2, 3]).", SpaceError)
    if not space.is_finite:
        raise SpaceError("space", f"is not finite: {space}", "An energy is distilled over categorical sites only.")
    return space
