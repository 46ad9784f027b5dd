"""Imputation and arbitrary conditional likelihoods on tables, beside what a user would pick instead.

    python -m benchmarks.tabular magic10 magic german            # several minutes a large table, one thread
    python -m benchmarks.tabular wine iris diabetes breast_cancer

The protocol is in protocol.py. Peers: column means and modes, scikit-learn's IterativeImputer and KNNImputer, the exact
Gaussian and full-covariance Gaussian mixtures on standardised columns ("exact"), and both with flexgen's column maps
("mapped"), which are what the default must not lose to. Also, for ours and the mixture: whether a classifier can tell
joint samples from held-out rows.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import protocol
from benchmarks.protocol import Table, summarise
from benchmarks.tabular_peers import PEERS
from flexgen.metrics import classifier_two_sample_test
from flexgen.table_model import TableModel, TableSettings

NUM_ORDERS = 8


def ours(table: Table, settings: TableSettings | None = None) -> tuple[dict[str, Any], TableModel]:
    """flexgen's default recipe."""
    clock = time.process_time()
    model = TableModel.fit(table.train, settings=settings, seed=0)
    row: dict[str, Any] = {"method": "flexgen", "fit_s": time.process_time() - clock}
    row |= protocol.score(table, [model.impute(table.with_gaps(d)) for d in range(protocol.NUM_DRAWS)])
    for name, orders in (("ac_ll", 1), (f"ac_ll_{NUM_ORDERS}", NUM_ORDERS)):
        each = [
            model.log_prob(table.test, target=missing, num_orders=orders, generator=d).mean()
            for d, missing in enumerate(table.missing)
        ]
        row[name] = summarise(each)
    row["note"] = ", ".join(f"{name} {weight:.2f}" for name, weight in model.report.weights.items())
    return row, model


def two_sample(table: Table, model: TableModel, mixture: Callable[[int], pd.DataFrame] | None) -> None:
    """Joint samples against held-out rows."""
    count = min(len(table.test), 3000)
    test = table.test.iloc[:count]
    print("  classifier two-sample test against held-out rows (0.5: cannot be told apart)")
    print(f"    flexgen, chain rule   {classifier_two_sample_test(test, model.sample(count, generator=1))}")
    if mixture is not None:
        print(f"    exact mixture         {classifier_two_sample_test(test, mixture(count))}")
    print(f"    training rows         {classifier_two_sample_test(test, table.train.iloc[:count])}", flush=True)


def show(row: dict[str, Any]) -> None:
    def figure(name: str) -> str:
        value = row.get(name)
        return f"{'-':>16}" if value is None else f"{value[0]:8.4f} ±{value[1]:6.4f}"

    figures = "".join(figure(name) for name in ("nrmse", "accuracy", "ac_ll", f"ac_ll_{NUM_ORDERS}"))
    print(f"  {row['method']:<24}{row['fit_s']:7.1f}{figures}  {row.get('note', '')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=protocol.names())
    parser.add_argument("--max-rows", type=int, help="train on the first so many rows")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="which peers")
    parser.add_argument(
        "--quick", action="store_true", help="also a network of 600 steps, for the time to a likelihood"
    )
    parser.add_argument("--json", help="append the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="sklearn")
    for name in args.tables:
        table = protocol.load(name, max_rows=args.max_rows)
        print(
            f"\n{name}: {len(table.train)} rows to learn from, {len(table.test)} to score; "
            "means ± standard errors over masks"
        )
        heads = "".join(f"{h:>16}" for h in ("NRMSE", "accuracy", "AC-LL", f"AC-LL, {NUM_ORDERS} orders"))
        print(f"  {'':<24}{'fit s':>7}{heads}")
        row, model = ours(table)
        rows = [row]
        show(row)
        if args.quick:
            fast = TableSettings(num_networks=1, num_steps=600, dropout=0.0)
            rows.append(ours(table, fast)[0] | {"method": "flexgen, 600 steps"})
            show(rows[-1])
        sampler = None
        for peer in args.peers:
            answer = PEERS[peer](table, model)
            if answer is None:
                continue
            rows.append({"method": peer, **answer.row})
            sampler = answer.sample or sampler
            show(rows[-1])
        two_sample(table, model, sampler)
        if args.json:
            with Path(args.json).open("a") as file:
                file.writelines(json.dumps({"table": name, **row}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
