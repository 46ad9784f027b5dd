"""``flexgen demo``: learns a real table, samples its joint by Gibbs, and leaves scores and a picture."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning

from flexgen import rng, saving
from flexgen.cli.compose import build
from flexgen.cli.files import read_source, require_free_folder, write_table
from flexgen.cli.parameters import read, table_settings
from flexgen.data.one_hot import OneHot
from flexgen.errors import DataError
from flexgen.laws import MaskLaw
from flexgen.metrics import ImputationError, classifier_two_sample_test
from flexgen.plots import compare_rows
from flexgen.processes import Processes
from flexgen.query import Query
from flexgen.table_model import TableModel
from flexgen.tables.checkpoint import TABLE_FILES, earlier_table_files
from samplers import GibbsSampler, any_order

__all__ = ["run"]

_FILES = ("joint.csv", "pairs.png", "report.json")


@dataclass(frozen=True)
class Sampler:
    """The keys of ``sampler`` in configs/demo.yaml."""

    block_correlation: float
    chains: int
    draws: int
    warmup: int
    thin: int
    picture_every: int


@dataclass(frozen=True)
class Parameters:
    """The keys of configs/demo.yaml."""

    output: Path
    overwrite: bool
    seed: int
    test_share: float
    missing: float
    test_missing: float
    columns: tuple[str, ...] | None
    num_orders: int
    sampler: dict[str, Any]
    data: dict[str, Any]
    law: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]


def run(config: DictConfig) -> None:
    """Config: configs/demo.yaml."""
    chosen, sampler = read(Parameters, config), read(Sampler, config.sampler, at="sampler.")
    settings, law = table_settings(config), build(config.law, at="law", kind=MaskLaw)
    processes, output = Processes(), chosen.output
    processes.first(lambda: _require_free(output, overwrite=chosen.overwrite))
    name, df = str(chosen.data.get("name") or chosen.data.get("path")), read_source(config.data)
    train, test = _split(df, chosen.test_share, chosen.seed)
    gaps = rng.uniform(train.shape, generator=rng.stream(chosen.seed, "gaps")).numpy() < chosen.missing
    gapped = train.mask(gaps)
    console = Console()
    console.print(
        f"[bold]{name}[/]: {len(train)} rows to learn from, {gaps.mean():.0%} of their entries removed; "
        f"{len(test)} rows held out; {df.shape[1]} columns"
    )
    clock = time.perf_counter()
    model = TableModel.fit(gapped, settings=settings, law=law, seed=chosen.seed)
    fit_seconds = time.perf_counter() - clock
    if not processes.is_first:
        return  # they have shared in the fit; the rest is work for one
    console.print(f"fitted in {fit_seconds:.0f} s: {model}")
    model.save_pretrained(output / "model")

    conditional = model.conditional()
    scan = model.scan(gapped, correlation=sampler.block_correlation)
    console.print(f"Gibbs over {len(scan.blocks)} blocks of columns; {_named(scan.blocks, model.schema.names)}")
    chains = GibbsSampler(conditional, scan=scan).run(
        chains=sampler.chains,
        draws=sampler.draws,
        warmup=sampler.warmup,
        thin=sampler.thin,
        generator=chosen.seed,
        progress=sys.stderr.isatty(),
    )
    joint = model.schema.decode(chains.draws.flatten(0, 1))
    last = model.schema.decode(chains.draws[-1])  # one row a chain: independent of each other
    spaced = model.schema.decode(chains.draws[:: sampler.picture_every].flatten(0, 1))
    picture = compare_rows(df, spaced, chosen.columns)

    report: dict[str, Any] = {
        "data": name,
        "fit_seconds": round(fit_seconds, 1),
        "members": model.report.weights,
        "imputation": _imputation(model, gapped, test, chosen),
        "two_sample_auc": _two_sample(model, last, train, test, chosen),
        "chains": {"rhat": chains.rhat().tolist(), "ess_bulk": chains.ess().tolist(), "columns": model.schema.names},
        "incompatibility": _order_gap(model, test, chosen),
    }

    def write(new: Path) -> None:
        write_table(joint, new / "joint.csv")
        picture.savefig(new / "pairs.png", dpi=90)
        (new / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    saving.update_folder(output, write, earlier=_earlier_files, argument="output")
    _show(console, report)
    console.print(f"[bold]{output}/[/]: joint.csv ({len(joint)} rows), pairs.png, report.json, model/")


def _earlier_files(folder: Path) -> list[str]:
    """What a demo left before there were manifests, known by its report."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        known = {"data", "fit_seconds", "members", "imputation", "two_sample_auc", "chains", "incompatibility"}
        return list(_FILES) if report.keys() == known else []
    except (OSError, ValueError, AttributeError):
        return []


def _require_free(output: Path, *, overwrite: bool) -> None:
    require_free_folder(output, argument="output", overwrite=overwrite)
    saving.require_ours(output, _FILES, earlier=_earlier_files, argument="output", error=DataError)
    saving.refuse_links(output, ["model/config.json"], "output", DataError)
    saving.require_ours(output / "model", TABLE_FILES, earlier=earlier_table_files, argument="output", error=DataError)


def _split(df: pd.DataFrame, test_share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    order = torch.randperm(len(df), generator=rng.stream(seed, "split")).numpy()
    cut = int(len(df) * (1 - test_share))
    return df.iloc[order[:cut]].reset_index(drop=True), df.iloc[order[cut:]].reset_index(drop=True)


def _named(blocks: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    joint = [" + ".join(names[j] for j in block) for block in blocks if len(block) > 1]
    return "together: " + "; ".join(joint) if joint else "each column on its own"


def _imputation(model: TableModel, train: pd.DataFrame, test: pd.DataFrame, chosen: Parameters) -> dict[str, Any]:
    """Errors on held-out rows with entries missing completely at random, beside scikit-learn's imputers."""
    missing = rng.uniform(test.shape, generator=rng.stream(chosen.seed, "missing")).numpy() < chosen.test_missing
    gapped = test.mask(missing)
    imputed = {
        "flexgen": model.impute(gapped),
        "IterativeImputer": _iterative_imputer(model, train, gapped),
        "mean / mode": gapped.fillna(
            {c: train[c].mean() if pd.api.types.is_numeric_dtype(train[c]) else train[c].mode()[0] for c in train}
        ),
    }
    truth = model.schema.encode(test)
    scores = {}
    for name, frame in imputed.items():
        metric = ImputationError(model.schema.space, sync_on_compute=False)  # of several processes, this one alone
        values = torch.tensor(_numbers(model, frame))
        metric.update(values, truth, torch.from_numpy(missing))
        scores[name] = {key: round(float(value), 4) for key, value in metric.compute().items()}
    return scores


def _numbers(model: TableModel, frame: pd.DataFrame) -> np.ndarray:
    """Codes and numbers, as `TableSchema.encode` but without asking that means of whole numbers be whole."""
    columns = model.schema.columns
    return np.column_stack(
        [c.encode(frame[c.name]) if c.kind == "categorical" else frame[c.name].to_numpy(float) for c in columns]
    )


def _iterative_imputer(model: TableModel, train: pd.DataFrame, gapped: pd.DataFrame) -> pd.DataFrame:
    """scikit-learn's, on numbers and one-hot codes (the last code of each column dropped: it would be collinear)."""
    import warnings

    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes the next import work
    from sklearn.impute import IterativeImputer

    coding = OneHot(model.schema)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        filled = IterativeImputer(random_state=0).fit(coding.encode(train)).transform(coding.encode(gapped))
    return coding.decode(filled, gapped)


def _two_sample(
    model: TableModel, gibbs: pd.DataFrame, train: pd.DataFrame, test: pd.DataFrame, chosen: Parameters
) -> dict[str, str]:
    """Whether boosted trees can tell sampled rows from held-out ones: 0.5 is the best there is."""
    count = len(test)
    # Of other rows: a value that stands in both sets would give its row away.
    shuffled = pd.DataFrame({c: train[c].sample(count, random_state=i).to_numpy() for i, c in enumerate(train)})
    rows = {
        "Gibbs": gibbs.iloc[:count],
        "chain rule": model.sample(count, generator=chosen.seed),
        "columns shuffled": shuffled,  # right marginals, no dependence: what the test can see
    }
    return {name: str(classifier_two_sample_test(test, frame)) for name, frame in rows.items()}


def _order_gap(model: TableModel, test: pd.DataFrame, chosen: Parameters) -> dict[str, float]:
    """How much log p(row) depends on the order of the chain rule, in nats: zero for conditionals that share a joint."""
    x = model.schema.encode(test)
    present = ~x.isnan()
    query = Query(present, torch.zeros_like(present))
    orders = [
        any_order.log_prob(model.conditional(), x.nan_to_num(0.0), query, generator=rng.stream(chosen.seed, "order", i))
        for i in range(chosen.num_orders)
    ]
    log_probs = torch.stack(orders)  # [M, B]
    spread = log_probs.std(0)
    best = log_probs.logsumexp(0) - np.log(len(orders))
    return {
        "nats_per_row_one_order": round(float(log_probs.mean()), 3),
        f"nats_per_row_{len(orders)}_orders_averaged": round(float(best.mean()), 3),
        "sd_over_orders": round(float(spread.mean()), 3),
        "sd_over_orders_standard_error": round(float(spread.std() / len(spread) ** 0.5), 3),
    }


def _show(console: Console, report: dict[str, Any]) -> None:
    table = Table(title="Imputation of held-out rows", title_justify="left")
    for heading in ("", "NRMSE", "accuracy"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, score in report["imputation"].items():
        table.add_row(name, f"{score['nrmse']:.3f}", f"{score['accuracy']:.3f}")
    console.print(table)
    table = Table(title="Can a classifier tell sampled rows from held-out ones?", title_justify="left")
    table.add_column("")
    table.add_column("")
    for name, text in report["two_sample_auc"].items():
        table.add_row(name, text)
    console.print(table)
    chains, gap = report["chains"], report["incompatibility"]
    console.print(
        f"Chains: largest R-hat {max(chains['rhat']):.3f}, smallest bulk ESS {min(chains['ess_bulk']):.0f}\n"
        f"Incompatibility: log p(row) varies by {gap['sd_over_orders']} ± {gap['sd_over_orders_standard_error']} "
        "nats (sd) with the order of the chain rule; 0 if the conditionals shared a joint"
    )
