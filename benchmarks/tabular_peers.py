"""The peers of tabular.py: each fits, imputes and, where it can, scores log p(missing | observed)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks import protocol
from benchmarks.protocol import Table, summarise
from flexgen.data import TableSchema
from flexgen.data.one_hot import OneHot
from flexgen.exact import Gaussian, GaussianMixture
from flexgen.query import Query
from flexgen.table_model import TableModel
from flexgen.tables.conditional import TableConditional
from flexgen.tables.members import ClassMixture, DenseGaussian, NormalMixture
from flexgen.tables.network import LatentRows


@dataclass
class Answer:
    """A peer's figures, and its joint sampler if it has one."""

    row: dict[str, Any]
    sample: Callable[[int], pd.DataFrame] | None = None


def mean_mode(table: Table, _: TableModel) -> Answer:
    clock = time.process_time()
    fill = {
        c: table.train[c].mean() if table.train[c].dtype == float else table.train[c].mode()[0] for c in table.train
    }
    imputed = [table.with_gaps(d).fillna(fill) for d in range(protocol.NUM_DRAWS)]
    return Answer({"fit_s": time.process_time() - clock, **protocol.score(table, imputed)})


def sklearn_imputer(make: Callable[[], Any], most_rows: int | None = None) -> Callable[[Table, TableModel], Answer]:
    def run(table: Table, _: TableModel) -> Answer:
        coding = OneHot(TableSchema.infer(table.train))
        clock = time.process_time()
        imputer = make().fit(coding.encode(table.train.iloc[:most_rows]))
        fit_seconds = time.process_time() - clock
        gapped = [table.with_gaps(d) for d in range(protocol.NUM_DRAWS)]
        imputed = [coding.decode(imputer.transform(coding.encode(frame)), frame) for frame in gapped]
        return Answer({"fit_s": fit_seconds, **protocol.score(table, imputed)})

    return run


def _iterative() -> Any:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes the next import work
    from sklearn.impute import IterativeImputer

    return IterativeImputer(max_iter=10, tol=0, random_state=0)


def _nearest() -> Any:
    from sklearn.impute import KNNImputer

    return KNNImputer(n_neighbors=10)


def exact(num_components: tuple[int, ...], ridge: float) -> Callable[[Table, TableModel], Answer | None]:
    """A Gaussian, or the mixture with the best likelihood on a tenth of the rows; numeric tables only."""

    def run(table: Table, _: TableModel) -> Answer | None:
        if not table.is_numeric:
            return None
        schema = TableSchema.infer(table.train)
        x = schema.encode(table.train)
        clock = time.process_time()
        best = _best_mixture(x, num_components, ridge)
        law: Gaussian | GaussianMixture = (
            Gaussian(x.mean(0), torch.cov(x.T, correction=0) + 1e-6 * torch.eye(x.shape[1], dtype=x.dtype))
            if best == 1
            else GaussianMixture.fit(x, best, generator=0, ridge=ridge)
        )
        seconds = time.process_time() - clock
        test, imputed, scores = schema.encode(table.test), [], []
        for missing in map(torch.from_numpy, table.missing):
            query = Query(missing, ~missing)
            imputed.append(schema.decode(torch.where(missing, law.marginals(test, query).mean(), test)))
            scores.append(law.log_prob(test, query).mean().item())
        everything = Query.rest(torch.zeros(x.shape[1], dtype=torch.bool))

        def sample(count: int) -> pd.DataFrame:
            return schema.decode(
                law.sample(test[:1].expand(count, -1), everything, generator=torch.Generator().manual_seed(0))
            )

        row = {"fit_s": seconds, **protocol.score(table, imputed), "ac_ll": summarise(scores), "note": f"K={best}"}
        return Answer(row, sample)

    return run


def _best_mixture(x: Tensor, num_components: tuple[int, ...], ridge: float) -> int:
    if len(num_components) == 1:
        return num_components[0]
    cut = int(0.9 * len(x))
    everything = Query.rest(torch.zeros(x.shape[1], dtype=torch.bool))
    scores = {
        k: GaussianMixture.fit(x[:cut], k, generator=0, ridge=ridge).log_prob(x[cut:], everything).mean().item()
        for k in num_components
        if k * x.shape[1] * 3 <= cut
    }
    return max(scores, key=scores.__getitem__) if scores else 1


def mapped(num_components: tuple[int, ...], ridge: float) -> Callable[[Table, TableModel], Answer]:
    """Maximum likelihood in the model's own latent space: a Gaussian with one-hot codes, or a mixture of classes."""

    def run(table: Table, model: TableModel) -> Answer:
        maps, schema = model.conditional().maps, model.schema
        rows, layout = LatentRows.of(maps, schema.encode(table.train)), maps.layout()
        clock = time.process_time()
        if num_components == (1,):
            z = torch.cat([rows.y, layout.one_hot(rows.codes, dtype=torch.float64)], 1)
            covariance = torch.cov(z.T, correction=0) + ridge * torch.eye(z.shape[1], dtype=z.dtype)
            one = torch.ones(1, dtype=z.dtype)
            member: Any = DenseGaussian(layout, NormalMixture(one, z.mean(0)[None], covariance[None]))
            note = ""
        else:
            member, note = _class_mixture(rows, layout, num_components, ridge)
        seconds = time.process_time() - clock
        law = TableConditional(schema.space, maps, [member], torch.zeros(1, schema.space.num_sites))
        peer = TableModel(schema, law)
        imputed = [peer.impute(table.with_gaps(d)) for d in range(protocol.NUM_DRAWS)]
        scores = [
            peer.log_prob(table.test, target=missing, generator=d).mean() for d, missing in enumerate(table.missing)
        ]
        return Answer({"fit_s": seconds, **protocol.score(table, imputed), "ac_ll": summarise(scores), "note": note})

    return run


def _class_mixture(rows: LatentRows, layout: Any, num_components: tuple[int, ...], ridge: float) -> tuple[Any, str]:
    """scikit-learn's mixture on latents and one-hot codes gives the classes; their tables are counted from it."""
    from sklearn.mixture import GaussianMixture as Fitted

    z = torch.cat([rows.y, layout.one_hot(rows.codes, dtype=torch.float64)], 1).numpy()
    cut, scores = int(0.9 * len(z)), {}
    for k in num_components:
        if k * z.shape[1] * 3 <= cut:
            scores[k] = Fitted(k, reg_covar=ridge, random_state=0, max_iter=200).fit(z[:cut]).score(z[cut:])
    best = max(scores, key=scores.__getitem__) if scores else 1
    fitted = Fitted(best, reg_covar=ridge, random_state=0, max_iter=300).fit(z)
    S = layout.num_numeric
    shares = torch.from_numpy(fitted.means_[:, S:]).clamp_min(1e-3)
    law = NormalMixture(
        *(torch.from_numpy(a) for a in (fitted.weights_, fitted.means_[:, :S], fitted.covariances_[:, :S, :S]))
    )
    return ClassMixture(layout, law, shares.log()), f"K={best}"


PEERS: dict[str, Callable[[Table, TableModel], Answer | None]] = {
    "mean / mode": mean_mode,
    "IterativeImputer": sklearn_imputer(_iterative),
    "KNNImputer(10)": sklearn_imputer(_nearest, most_rows=5000),
    "exact Gaussian": exact((1,), 1e-6),
    "exact mixture": exact((2, 4, 8, 16, 32), 1e-4),
    "mapped Gaussian": mapped((1,), 1e-3),
    "mapped mixture": mapped((1, 2, 4, 8, 16, 32), 1e-3),
}

__all__ = ["PEERS", "Answer"]
