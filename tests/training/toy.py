"""A small masked network and a small law, whole enough to train: shared by the tests and their subprocesses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexgen import MaskDraw, Query, Space, rng
from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.rng import Randomness
from flexgen.training import MaskedLikelihood, TensorData, TrainingSettings


class UniformLaw:
    """The number of observed sites uniform, which ones uniform, every other one a target."""

    def draw(self, present: Tensor, *, generator: Randomness, x: Tensor | None = None) -> MaskDraw:  # noqa: ARG002
        num_rows, num_sites = present.shape
        count = rng.integers(num_sites, (num_rows, 1), generator=generator)
        rank = rng.permutation(num_rows, num_sites, generator=generator).argsort(-1)
        observed = (rank < count) & present
        target = ~observed & present
        return MaskDraw(Query(target, observed), target.sum(-1).clamp_min(1).float().reciprocal())


def _at_least_float(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class ToyNetwork(nn.Module, MarginalConditional):
    """Binary sites; one hidden layer over (value, observed)."""

    def __init__(self, num_sites: int, width: int = 32, dropout: float = 0.0, *, seed: int = 0) -> None:
        super().__init__()
        self._space = Space.binary(num_sites)
        self.layers = nn.Sequential(
            nn.Linear(2 * num_sites, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, num_sites),
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                scale = weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.0
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))

    @property
    def space(self) -> Space:
        return self._space

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        value = torch.where(observed, 2.0 * x.float() - 1.0, 0.0)
        return self.layers(torch.cat([value, observed.float()], -1).to(self.layers[0].weight.dtype))

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:
        logit = self(x, query.expand(len(x)).observed)
        return CategoricalMarginals(
            nn.functional.logsigmoid(torch.stack([-logit, logit], -1).to(_at_least_float(logit)))
        )


def joint(num_sites: int, *, seed: int = 0) -> Tensor:
    """A pairwise joint over binary sites, float64 ``[2^N]``, rows in the order of ``Space.states``."""
    spin = 2.0 * Space.binary(num_sites).states().double() - 1.0
    coupling = torch.randn(num_sites, num_sites, generator=rng.stream(seed, "coupling"), dtype=torch.float64) * 0.5
    return torch.softmax(torch.einsum("si,ij,sj->s", spin, coupling.triu(1), spin), 0)


def draws(num_rows: int, num_sites: int = 6, *, seed: int = 0, name: str = "data") -> Tensor:
    p = joint(num_sites)
    rows = torch.multinomial(p, num_rows, replacement=True, generator=rng.stream(seed, name))
    return Space.binary(num_sites).states()[rows]


def everything_on(num_steps: int = 120, **changes: object) -> TrainingSettings:
    """Settings in which every part that has a memory is at work."""
    base: dict[str, object] = {
        "num_steps": num_steps, "batch_size": 24, "lr": 3e-3, "num_warmup_steps": 10, "ema_decay": 0.95,
        "validate_every": 10, "patience": 50, "checkpoint_every": 7, "seed": 0,
    }  # fmt: skip
    return TrainingSettings(**{**base, **changes})  # type: ignore[arg-type]


def parts(dropout: float = 0.2) -> tuple[ToyNetwork, MaskedLikelihood, TensorData, TensorData]:
    """A network, its objective, rows to train on and held-out rows. 100 rows: batches of 24 straddle the epochs."""
    return (
        ToyNetwork(6, dropout=dropout),
        MaskedLikelihood(UniformLaw()),
        TensorData(draws(100)),
        TensorData(draws(40, name="held-out")),
    )
