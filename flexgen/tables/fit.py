"""The recipe: column maps, exact members, masked networks, and the weights that pool them.

1. Each column gets a map to a roughly normal latent (`fit_column`).
2. The rows are cut into folds. Small tables have five that cover all rows, large ones a few with a small held-out part.
3. Exact members are fitted on every fold; their shrinkage and number of classes are chosen on the rows held out.
4. On every fold a masked network is trained, from that fold's Gaussian on, with early stopping on the rows held out.
5. The pool's weights are fitted on the rows held out; the exact members are refitted on all rows.

No member learns from the rows that it is weighed on. But these rows also choose the shrinkage, the number of classes
and when a network stops, so held-out scores in the report are a little optimistic. On a few hundred rows the exact
members get most of the weight, on ten thousand the networks do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.errors import FlexgenError
from flexgen.laws import MaskLaw
from flexgen.processes import Processes
from flexgen.space import Space
from flexgen.tables.columns import ColumnMaps, FeatureLayout, cell_log_prob, fit_column
from flexgen.tables.conditional import TableConditional
from flexgen.tables.members import LatentMarginals, fit_class_mixture, fit_dense_gaussian
from flexgen.tables.network import LatentRows, MaskedTableNetwork, TableLikelihood
from flexgen.tables.settings import TableSettings
from flexgen.training import OneProcess, TrainingSettings, train

__all__ = ["FitReport", "Fold", "HeldOutQueries", "cut_folds", "fit_table", "pool_weights"]

_SMALL_FOLDS = 5
_HELD_OUT_SHARE = 0.05  # of a large table, a fold
_DRAWS = 4  # queries a held-out row
_MOST_ROWS = 2000  # held-out rows of a fold with queries
_ROWS_AT_ONCE = 2048
_EM_STEPS = 200  # of the pool's weights


@dataclass(frozen=True)
class Fold:
    """Rows to learn from and rows held out, int64."""

    learn: Tensor
    held_out: Tensor


def cut_folds(num_rows: int, *, is_small: bool, num_folds: int, seed: int) -> list[Fold]:
    """Five folds that cover all rows of a small table; `num_folds` disjoint small held-out parts of a large one."""
    order = torch.randperm(num_rows, generator=rng.stream(seed, "folds"))
    if is_small:
        parts = order.tensor_split(_SMALL_FOLDS)
    else:
        size = max(1, int(_HELD_OUT_SHARE * num_rows))
        parts = order[: size * num_folds].split(size)
    everyone = torch.ones(num_rows, dtype=torch.bool)
    folds = []
    for part in parts:
        learn = everyone.clone()
        learn[part] = False
        folds.append(Fold(learn.nonzero()[:, 0], part.sort().values))
    return folds


@dataclass(frozen=True)
class HeldOutQueries:
    """The held-out rows of a fold, each with a few queries.

    Args:
        rows: repeated, once a query.
        observed, target: bool ``[E, N]``.
    """

    rows: LatentRows
    observed: Tensor
    target: Tensor

    @classmethod
    def of(cls, rows: LatentRows, law: MaskLaw, *, seed: int, fold: int) -> HeldOutQueries:
        rows = rows[torch.arange(min(len(rows), _MOST_ROWS)).repeat(_DRAWS)]
        streams = rng.Streams(rng.key(seed, "exam", fold), len(rows))
        draw = law.draw(rows.present, generator=streams, x=rows.x)
        return cls(rows, draw.query.observed, draw.query.target)

    @torch.no_grad()
    def log_probs(self, layout: FeatureLayout, members: Sequence[nn.Module]) -> Tensor:
        """log p of every entry under the mean of the members, in latent space, ``[E, N]``."""
        parts = []
        for some in torch.arange(len(self.rows)).split(_ROWS_AT_ONCE):
            rows = self.rows[some]
            each = []
            for member in members:
                answer: LatentMarginals = member(rows.y.nan_to_num(0.0), rows.codes, self.observed[some])
                answer = answer.double()
                out = torch.zeros(len(some), rows.present.shape[1], dtype=torch.float64)
                out[:, layout.numeric] = cell_log_prob(
                    rows.lower.nan_to_num(0.0, torch.inf, -torch.inf),
                    rows.upper.nan_to_num(0.0, torch.inf, -torch.inf),
                    answer.log_weights,
                    answer.means,
                    answer.sds,
                )
                codes = rows.codes.nan_to_num(0.0).long()[..., None]
                out[:, layout.categorical] = answer.log_probs.gather(-1, codes).squeeze(-1)
                each.append(out)
            parts.append(torch.stack(each).logsumexp(0) - math.log(len(each)))
        return torch.cat(parts)


def pool_weights(
    log_probs: Tensor, target: Tensor, *, kinds: Sequence[Tensor] | None = None, prior_entries: float = 100.0
) -> Tensor:
    """log weights ``[M, N]`` of a linear pool, each column's shrunk towards those of its kind of column.

    EM for the weights of a mixture with known components. First one set of weights for all columns of a kind, then each
    column's own with a Dirichlet prior of `prior_entries` entries centred there.

    Args:
        log_probs: ``[M, E, N]``, log p of held-out entries under each member.
        target: bool ``[E, N]``, the entries that were targets.
        kinds: int64 column numbers of each kind; default: all columns are of one.
        prior_entries: strength of the prior.
    """
    num_members, _, num_columns = log_probs.shape
    if kinds is None:
        kinds = [torch.arange(num_columns)]
    log_weights = log_probs.new_full((num_members, num_columns), -math.log(num_members))
    for columns in kinds:
        chosen = log_probs[:, :, columns][:, target[:, columns]]  # [M, number of targets]
        centre = _mixture_weights(chosen, log_probs.new_full((num_members,), 0.5))
        for j in columns.tolist():
            own = log_probs[:, target[:, j], j]
            log_weights[:, j] = _mixture_weights(own, prior_entries * centre).log()
    return log_weights


def _mixture_weights(log_probs: Tensor, prior_counts: Tensor) -> Tensor:
    """EM for mixture weights ``[M]`` under ``[M, n]`` component log-probabilities and Dirichlet pseudo-counts."""
    weights = torch.full_like(prior_counts, 1.0 / len(prior_counts))
    for _ in range(_EM_STEPS):
        counts = (log_probs + weights.log()[:, None]).softmax(0).sum(1) + prior_counts
        weights = counts / counts.sum()
    return weights


_ROWS_PER_CLASS = 5
_LEAST_WEIGHT = 0.01  # members below it in every column are dropped

Members = list[nn.Module]
Value = TypeVar("Value")
Fitter = Callable[[LatentRows], Members]


@dataclass(repr=False)
class FitReport:
    """What was chosen and why: plain numbers, saved beside the model.

    Attributes:
        held_out: nats an entry on held-out rows (latent space), by candidate.
        weights: of each kind of member, its mean over columns.
        maps: the map of each column.
        histories: of each network's training.
    """

    held_out: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)
    histories: list[list[dict[str, Any]]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def shares(self) -> str:
        """The weights in words."""
        return ", ".join(f"{name} {weight:.0%}" for name, weight in self.weights.items())

    def __repr__(self) -> str:
        parts = [f"{self.held_out['pool']:.3f} nats an entry held out"] if "pool" in self.held_out else []
        parts += [self.shares] if self.weights else []
        parts += [f"{len(self.histories)} network(s) trained"] if self.histories else []
        return f"FitReport({'; '.join(parts)})"


def fit_table(
    x: Tensor,
    space: Space,
    law: MaskLaw,
    settings: TableSettings,
    *,
    seed: int,
    directory: Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> tuple[TableConditional, FitReport]:
    """Fits a table's conditional.

    Args:
        x: float64 ``[n, N]`` in data units, NaN where missing.
        space: of the columns.
        law: draws the queries, in training and on held-out rows.
        settings: see `TableSettings`.
        seed: everything random derives from it.
        directory: checkpoints of the networks; None writes none.
        resume: go on from the checkpoints of an interrupted call with the same arguments.
        progress: show a bar for each network; by default if standard error is a terminal.

    Under torchrun, where every process makes the same call, they share the networks, and all return the model that one
    process would.
    """
    columns = [
        fit_column(x[:, j].numpy(), num_categories=site.num_categories, integer=site.kind == "integer", seed=seed)
        for j, site in enumerate(space.sites)
    ]
    maps = ColumnMaps(columns)
    report = FitReport(maps={n: c.map_name or c.kind for n, c in zip(space.names, columns, strict=True)})
    layout = maps.layout()
    if layout.num_features == 0:  # every column is constant: nothing is left to learn
        return TableConditional(space, maps, [], x.new_zeros(0, space.num_sites)), report
    job = _Job(layout, LatentRows.of(maps, x), law, settings, seed, report)

    ridge, scores = job.best({f"gaussian, ridge {r:g}": r for r in settings.ridges}, job.fit_gaussian)
    groups, log_probs = {"gaussian": job.fit_gaussian(job.rows, ridge)}, {"gaussian": scores}
    candidates = {f"{k} classes": k for k in settings.classes if _ROWS_PER_CLASS * k <= len(x)}
    if job.is_small and candidates:
        num_classes, _ = job.best(candidates, lambda rows, k: job.fit_classes(rows, k, restarts=1))

        def fit_classes(rows: LatentRows) -> Members:
            return job.fit_classes(rows, num_classes, restarts=settings.restarts)

        groups["classes"], log_probs["classes"] = fit_classes(job.rows), job.held_out_log_probs(fit_classes)
    if settings.num_networks:
        networks = job.train_networks(ridge, directory, resume, progress)
        groups["networks"] = list(networks)
        log_probs["networks"] = torch.cat(
            [e.log_probs(layout, [n]) for e, n in zip(job.held_out, networks, strict=True)]
        )
        report.held_out["one network"] = job.mean_score(log_probs["networks"])
    kinds = [columns for columns in (maps.numeric, maps.categorical) if len(columns)]
    log_weights = pool_weights(torch.stack(list(log_probs.values())), job.target, kinds=kinds)  # [M, N]
    varying = torch.cat(kinds)
    report.weights = dict(zip(groups, log_weights[:, varying].exp().mean(1).tolist(), strict=True))
    pooled = (torch.stack(list(log_probs.values())) + log_weights[:, None]).logsumexp(0)
    report.held_out["pool"] = job.mean_score(pooled)
    return TableConditional(space, maps, *_kept(groups, log_weights, varying)), report


class _Job:
    """What the steps of the recipe share."""

    def __init__(
        self,
        layout: FeatureLayout,
        rows: LatentRows,
        law: MaskLaw,
        settings: TableSettings,
        seed: int,
        report: FitReport,
    ) -> None:
        self.layout, self.rows, self.law, self.settings, self.seed, self.report = (
            layout,
            rows,
            law,
            settings,
            seed,
            report,
        )
        self.is_small = len(rows) <= settings.small_rows
        num_folds = max(settings.num_networks, 1)
        self.folds: list[Fold] = cut_folds(len(rows), is_small=self.is_small, num_folds=num_folds, seed=seed)
        self.held_out = [
            HeldOutQueries.of(rows[fold.held_out], law, seed=seed, fold=f) for f, fold in enumerate(self.folds)
        ]
        self.target = torch.cat([queries.target for queries in self.held_out])

    def fit_gaussian(self, rows: LatentRows, ridge: float) -> Members:
        return [fit_dense_gaussian(self.layout, rows.y, rows.codes, ridge=ridge)]

    def fit_classes(self, rows: LatentRows, num_classes: int, *, restarts: int) -> Members:
        return [
            fit_class_mixture(
                self.layout,
                rows.y,
                rows.codes,
                num_classes,
                strength=1.0,
                generator=rng.stream(self.seed, "classes", num_classes, restart),
            )
            for restart in range(restarts)
        ]

    def held_out_log_probs(self, fit: Fitter) -> Tensor:
        """log p of the held-out entries under members fitted without their rows, ``[E, N]``."""
        return torch.cat(
            [
                queries.log_probs(self.layout, fit(self.rows[fold.learn]))
                for fold, queries in zip(self.folds, self.held_out, strict=True)
            ]
        )

    def mean_score(self, log_probs: Tensor) -> float:
        return log_probs[self.target].mean().item()

    def best(
        self, candidates: Mapping[str, Value], fit: Callable[[LatentRows, Value], Members]
    ) -> tuple[Value, Tensor]:
        """The candidate with the best held-out score, and its log-probabilities ``[E, N]``.

        Candidates come in order of complexity; the search ends at the first that is worse than the one before.
        """
        chosen: tuple[Value, Tensor] | None = None
        best = -torch.inf
        for name, value in candidates.items():
            log_probs = self.held_out_log_probs(lambda rows, value=value: fit(rows, value))  # type: ignore[misc]
            score = self.report.held_out[name] = self.mean_score(log_probs)
            if not math.isfinite(score):
                raise FlexgenError(
                    "law",
                    f"{self.law!r} gives a held-out score of {score}",
                    "Use a law that has targets in every column.",
                )
            if score <= best:
                break
            chosen, best = (value, log_probs), score
        assert chosen is not None  # there is a first candidate, with a finite score
        return chosen

    def train_networks(
        self, ridge: float, directory: Path | None, resume: bool, progress: bool | None
    ) -> list[MaskedTableNetwork]:
        """One network a fold; the processes of the job share the folds."""
        settings, processes = self.settings, Processes()

        def train_one(f: int) -> tuple[MaskedTableNetwork, list[dict[str, Any]]]:
            fold = self.folds[f]
            learn, held_out = self.rows[fold.learn], self.rows[fold.held_out]
            batch_size = max(1, min(settings.batch_size, len(learn) // 4))
            num_steps = settings.small_steps if self.is_small else settings.num_steps
            training = TrainingSettings(
                num_steps=num_steps,
                batch_size=batch_size,
                optimizer=settings.optimizer,
                lr=settings.small_lr if self.is_small else settings.lr,
                muon_lr=settings.small_muon_lr if self.is_small else settings.muon_lr,
                weight_decay=settings.weight_decay,
                muon_weight_decay=settings.muon_weight_decay,
                betas=(0.9, 0.999),
                grad_clip=settings.grad_clip,
                ema_decay=settings.ema_decay,
                amp=_arithmetic(settings.amp),
                validate_every=max(1, num_steps // 20),
                held_out_draws=_validation_draws(len(held_out)),
                patience=settings.patience,
                max_seconds=settings.max_seconds,
                seed=rng.key(self.seed, "network", f),
            )
            network = self.new_network(learn, ridge, f)
            result = train(
                network,
                TableLikelihood(self.law),
                learn.to_data(),
                training,
                held_out=held_out.to_data(),
                directory=None if directory is None else directory / f"network-{f}",
                resume=resume,
                progress=progress if processes.is_first else False,
                accelerator=OneProcess(_device(processes)),
            )
            network.cpu()  # the other members are there; `TableModel.to` moves them together
            if result.stopped == "interrupted":
                raise KeyboardInterrupt
            # Without the time it took: the same call saves the same files.
            return network, [{k: v for k, v in record.items() if k != "seconds"} for record in result.history]

        networks, histories = zip(*processes.map(train_one, range(len(self.folds))), strict=True)
        self.report.histories.extend(histories)
        return list(networks)

    def new_network(self, learn: LatentRows, ridge: float, fold: int) -> MaskedTableNetwork:
        """Initial weights keyed by seed and fold; the global random state is left as it was."""
        settings = self.settings
        (base,) = copy.deepcopy(self.fit_gaussian(learn, ridge))  # a layout of its own: it moves between devices
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key(self.seed, "weights", fold))
            return MaskedTableNetwork(
                base,  # type: ignore[arg-type]
                num_components=settings.num_components,
                width=settings.small_width if self.is_small else settings.width,
                depth=settings.small_depth if self.is_small else settings.depth,
                dropout=settings.small_dropout if self.is_small else settings.dropout,
            )


def _device(processes: Processes) -> torch.device:
    """CUDA or the CPU: other devices lack the float64 of the exact members."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", processes.local_rank % torch.cuda.device_count())


def _arithmetic(amp: str | None) -> Literal["bf16", "fp16"] | None:
    """What "auto" stands for on this machine: bfloat16 where products in it are fast, not emulated."""
    if amp != "auto":
        return amp  # type: ignore[return-value]
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else None
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if has.get("amx_bf16") or has.get("avx512_bf16") else None


def _validation_draws(num_rows: int) -> int:
    """Enough queries a row that early stopping does not chase noise."""
    return max(2, min(16, 2000 // num_rows))


def _kept(groups: Mapping[str, Members], log_weights: Tensor, varying: Tensor) -> tuple[Members, Tensor]:
    """The members of every group that matters to some varying column, and each one's log weights ``[M, N]``."""
    members: Members = []
    rows = []
    for group, weights in zip(groups.values(), log_weights, strict=True):
        if weights[varying].exp().max() >= _LEAST_WEIGHT:
            members += group
            rows += [weights - torch.tensor(float(len(group))).log()] * len(group)
    return members, torch.stack(rows).log_softmax(0)
