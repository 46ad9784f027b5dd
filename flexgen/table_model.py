"""`TableModel`: learn a table with mixed columns and gaps; impute it, sample its joint, compute likelihoods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm import tqdm

from flexgen import rng
from flexgen.checks import (
    entries,
    flag,
    folder_path,
    instance,
    is_number,
    kind_of,
    randomness,
    renamed,
    usable_device,
    whole_number,
)
from flexgen.data.schema import TableSchema
from flexgen.data.selection import Columns, column_numbers, given_row, query_of
from flexgen.errors import DataError
from flexgen.laws import MaskLaw
from flexgen.processes import Processes
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Kind
from flexgen.tables import FitReport, TableConditional, TableSettings, fit_table
from flexgen.tables.checkpoint import read_table_model, write_table_model
from flexgen.tables.conditional import describe
from samplers import ChainResult, GibbsSampler, any_order
from samplers.laws import power_cardinality
from samplers.scans import Blocked, Scan, blocked

__all__ = ["TableModel", "TableSettings"]

LEAST_ROWS = 10
_ROWS_AT_ONCE = 4096

Method = Literal["mean", "mode", "draw"]
METHODS = get_args(Method)

_MOST_DRAWS = 1 << 20
_MOST_ENTRIES = 1 << 32  # of a frame that is drawn at once, 32 GiB


class TableModel:
    """Distributions of any columns of a table given any others.

    >>> model = TableModel.fit(df)                                # doctest: +SKIP
    >>> model.impute(df, method="draw")                           # doctest: +SKIP
    >>> model.sample(1000, given={"species": "setosa"})           # doctest: +SKIP
    >>> model.log_prob(df, target=["width"])                      # doctest: +SKIP

    Make one with `fit` or `from_pretrained`.
    """

    def __init__(self, schema: TableSchema, conditional: TableConditional, report: FitReport | None = None) -> None:
        fix = "Make a model with TableModel.fit(df) or TableModel.from_pretrained(folder)."
        self.schema = instance("schema", schema, TableSchema, fix, DataError)
        self._conditional = instance("conditional", conditional, TableConditional, fix, DataError)
        self.report = FitReport() if report is None else instance("report", report, FitReport, fix, DataError)

    @classmethod
    def fit(
        cls,
        df: pd.DataFrame,
        *,
        kinds: Mapping[str, Kind] | None = None,
        settings: TableSettings | None = None,
        law: MaskLaw | None = None,
        seed: int = 0,
        progress: bool | None = None,
        checkpoint_dir: str | Path | None = None,
        resume: bool = False,
    ) -> TableModel:
        """Fits the default recipe (``flexgen.tables.fit``) to a data frame.

        Args:
            df: one row an item. Numbers, booleans, strings, categories; NaN, None or NA where an entry is missing.
            kinds: column -> "real", "integer" or "categorical", where a dtype does not say what is meant.
            settings: see `TableSettings`; the defaults are meant for tables of every size.
            law: which queries to practise; default ``samplers.laws.power_cardinality()``.
            seed: everything random derives from it; the same call gives the same model (on one machine).
            progress: show progress bars; by default if standard error is a terminal.
            checkpoint_dir: a folder for checkpoints of the training.
            resume: go on from the checkpoints of an interrupted call with the same arguments.

        Under torchrun every process makes this same call; they share the networks that are trained, and all get the
        model that one process would have fitted.

        Raises:
            DataError: nothing to learn from, or values that no column can hold; names the column and the fix.
            CheckpointError: `checkpoint_dir` is of another call, cannot be written to, or is full.
        """
        if settings is not None and not isinstance(settings, TableSettings):
            raise DataError("settings", f"is {kind_of(settings)}", "Pass a TableSettings(...).")
        if law is not None and not isinstance(law, MaskLaw):
            raise DataError("law", f"is {kind_of(law)}", "Pass a law of samplers.laws, such as laws.any_order().")
        seed = whole_number("seed", seed, 0)
        instance("resume", resume, bool, "Pass True or False.", DataError)
        if checkpoint_dir is not None:
            checkpoint_dir = folder_path("checkpoint_dir", checkpoint_dir)
        elif resume:
            raise DataError("resume", "is True without checkpoint_dir", "Pass the folder of the call to go on with.")
        schema = TableSchema.infer(df, kinds)
        x = schema.encode(df)
        x = x[~x.isnan().all(1)]  # a row without an entry teaches nothing
        if len(x) < LEAST_ROWS:
            raise DataError("df", f"has {len(x)} row(s) with an entry", f"Pass at least {LEAST_ROWS}.")
        schema.require_moderate(x)
        with renamed(directory="checkpoint_dir"):
            conditional, report = fit_table(
                x,
                schema.space,
                law or power_cardinality(),
                settings or TableSettings(),
                seed=seed,
                directory=checkpoint_dir,
                resume=resume,
                progress=progress,
            )
        return cls(schema, conditional, report)

    def conditional(self) -> TableConditional:
        """The model as a `Conditional` over ``self.schema.space``, for samplers and diagnostics.

        Its x is float64 ``[B, N]``: ``model.schema.encode(df)``; back with ``model.schema.decode(x)``.
        """
        return self._conditional

    def to(self, device: torch.device | str) -> TableModel:
        """Moves the model; frames are computed on its device from then on."""
        self._conditional.to(usable_device("device", device))
        return self

    @property
    def device(self) -> torch.device:
        return self._conditional.log_weights.device

    def impute(
        self,
        df: pd.DataFrame,
        method: Method = "mean",
        *,
        num_draws: int = 1,
        generator: Randomness | int | None = None,
        batch_size: int = _ROWS_AT_ONCE,
        progress: bool = False,
        processes: Processes | None = None,
    ) -> pd.DataFrame:
        """The frame with its missing entries filled; present ones and further columns stay as they are.

        Args:
            df: rows to fill, one or a million; memory beyond the frame itself is bounded by `batch_size`.
            method: "mean" E[x_i | x_observed] (categorical: the most probable level), "mode", or "draw": all missing
                entries of a row drawn jointly, so that several draws show how uncertain they are.
            num_draws: with "draw": so many completed frames, on a first index level ``draw``.
            generator: of the draws; a row's draw does not depend on the rows beside it. An int is a seed.
            batch_size: rows computed at once.
            progress: show a bar.
            processes: share the batches with the other processes of the job (``flexgen.processes.Processes()`` under
                torchrun), all of which make this call and get its result.
        """
        if not isinstance(method, str) or method not in METHODS:
            raise DataError("method", f"is {kind_of(method)}", "Choose 'mean', 'mode' or 'draw'.")
        num_draws = whole_number("num_draws", num_draws, 1, DataError, most=_MOST_DRAWS)
        if num_draws > 1 and method != "draw":
            raise DataError("num_draws", f"is {num_draws} with method {method!r}", "Pass 1, or method='draw'.")
        batch_size, progress = whole_number("batch_size", batch_size, 1), flag("progress", progress)
        generator = randomness("generator", generator)
        x = self.schema.encode(df)
        seed = rng.seed_from(generator) if method == "draw" else 0
        rows = x.isnan().any(1).nonzero()[:, 0]
        batches = rows.split(batch_size) if len(rows) else ()
        processes = Processes.alone() if processes is None else processes
        frames = []
        with tqdm(total=num_draws * sum(map(len, processes.share(batches))), disable=not progress, unit="row") as bar:
            for number in range(num_draws):

                def fill(some: Tensor, seed: int = rng.key(seed, "impute", number)) -> Tensor:
                    bar.update(len(some))
                    return self._fill(x[some], method, rng.Streams(seed, some))

                filled = x.clone()
                for some, values in zip(batches, processes.map(fill, batches), strict=True):
                    filled[some] = values
                frames.append(self.schema.fill(df, filled))
        if num_draws == 1:
            return frames[0]
        return pd.concat(frames, keys=range(num_draws), names=["draw"])

    def impute_stream(
        self, frames: Iterable[pd.DataFrame], method: Method = "mean", **options: Any
    ) -> Iterator[pd.DataFrame]:
        """`impute` for a table that does not fit in memory, e.g. ``pandas.read_csv(..., chunksize=10_000)``.

        Each frame draws from a seed of its own, derived from `generator` and its number.
        """
        seed = rng.seed_from(randomness("generator", options.pop("generator", None)))
        if isinstance(frames, str | bytes | pd.DataFrame | Mapping | Tensor) or not hasattr(frames, "__iter__"):
            raise DataError("frames", f"is {kind_of(frames)}", "Pass an iterable of data frames.")
        for number, frame in enumerate(frames):
            yield self.impute(frame, method, generator=rng.key(seed, "frame", number), **options)

    def sample(
        self,
        num_rows: int,
        *,
        given: Mapping[str, Any] | None = None,
        scan: Scan | None = None,
        num_sweeps: int = 0,
        generator: Randomness | int | None = None,
        batch_size: int = _ROWS_AT_ONCE,
        progress: bool = False,
        processes: Processes | None = None,
    ) -> pd.DataFrame:
        """Rows of the joint distribution.

        Each row is drawn by the chain rule in a random order of its own; then, optionally, updated by Gibbs sweeps.

        Args:
            num_rows: how many.
            given: column -> value that all rows have; the others are drawn given these.
            scan: of the Gibbs sweeps, see ``samplers.scans``.
            num_sweeps: Gibbs sweeps over the free columns, each row a chain of its own.
            generator: a seed or a source; row i is the same whatever `num_rows` and `batch_size` are.
            batch_size: rows computed at once.
            progress: show a bar.
            processes: as in `impute`.
        """
        num_rows = whole_number("num_rows", num_rows, 0, most=1 << 32)
        num_sweeps = whole_number("num_sweeps", num_sweeps, 0)
        batch_size, progress = whole_number("batch_size", batch_size, 1), flag("progress", progress)
        if scan is not None and not isinstance(scan, Scan):
            raise DataError("scan", f"is {kind_of(scan)}", "Pass a scan of samplers.scans, such as scans.random().")
        if num_rows * len(self.schema.columns) > _MOST_ENTRIES:
            fix = "Draw in parts: row i of a seed is the same whatever num_rows is."
            raise DataError("num_rows", f"is {num_rows} of {len(self.schema.columns)} columns", fix)
        if (scan is None) != (num_sweeps == 0):
            raise DataError(
                "num_sweeps", f"is {num_sweeps} with scan {scan}", "Pass a scan and at least one sweep, or neither."
            )
        start, observed = given_row(self.schema, {} if given is None else given)
        seed = rng.seed_from(randomness("generator", generator))
        processes = Processes.alone() if processes is None else processes
        batches = torch.arange(num_rows).split(batch_size) if num_rows else ()
        with tqdm(total=sum(map(len, processes.share(batches))), disable=not progress, unit="row") as bar:

            def draw(rows: Tensor) -> Tensor:
                x = start.expand(len(rows), -1).to(self.device)
                query = Query.rest(observed.to(self.device).expand(len(rows), -1))
                streams = rng.Streams(rng.key(seed, "sample"), rows.to(self.device))
                x = any_order.sample(self._conditional, x, query, generator=streams)
                if scan is not None:
                    chains = GibbsSampler(self._conditional, scan=scan).run(
                        draws=1,
                        warmup=num_sweeps - 1,
                        x=x,
                        clamped=observed.to(self.device),
                        chain_ids=rows,
                        generator=seed,
                    )
                    x = chains.draws[-1]
                bar.update(len(rows))
                return x.cpu()

            parts = processes.map(draw, batches)
        return self.schema.decode(torch.cat(parts) if parts else torch.zeros(0, len(self.schema.columns)))

    def scan(
        self, df: pd.DataFrame | None = None, *, correlation: float = 0.5, generator: Randomness | int = 0
    ) -> Blocked:
        """A scan whose Gibbs chains mix: columns that depend strongly on each other are drawn together, in blocks.

        Updated one by one, two columns of correlation rho move as slowly as an autoregression with rho^2.

        Args:
            df: rows whose rank correlations are looked at; default: 1000 rows drawn from the model.
            correlation: columns are tied from this rank correlation on, 0 to 1; blocks are what ties connect. At 0 all
                columns are one block: the chain rule, drawn afresh every time.
            generator: of the rows drawn.

        >>> GibbsSampler(model.conditional(), scan=model.scan()).run(chains=64, draws=200)     # doctest: +SKIP
        """
        from flexgen.plots import rank_correlation  # loads matplotlib

        if not is_number(correlation) or not 0 <= correlation <= 1:
            raise DataError("correlation", f"is {kind_of(correlation)}", "Pass a number from 0 to 1.")
        names = list(self.schema.names)
        if df is None:
            df = self.sample(1000, generator=generator)
        elif not isinstance(df, pd.DataFrame) or not set(names) <= set(df.columns):
            raise DataError("df", f"is {kind_of(df)}", f"Pass a data frame with the columns {', '.join(names)}.")
        count, label = connected_components(rank_correlation(df[names]) >= correlation)
        return blocked(np.flatnonzero(label == block).tolist() for block in range(count))

    def log_prob(
        self,
        df: pd.DataFrame,
        target: Columns = None,
        *,
        observed: Columns = None,
        num_orders: int = 1,
        generator: Randomness | int = 0,
        batch_size: int = _ROWS_AT_ONCE,
    ) -> pd.Series:
        """log p(target | observed) of every row, in nats.

        Densities are in the units of the data; categorical, integer and few-valued columns count as probabilities.
        Missing entries are marginalised, wherever they stand.

        Args:
            df: rows.
            target: names of columns, or booleans of the frame's shape; default: every column that is not observed.
            observed: likewise; default: every column that is not target, or nothing if `target` is not given either.
            num_orders: random orders of the chain rule whose likelihoods are averaged; the conditionals of a learned
                model differ a little between orders, and the average is the better density.
            generator: of the orders.
            batch_size: rows computed at once.
        """
        batch_size = whole_number("batch_size", batch_size, 1)
        num_orders = whole_number("num_orders", num_orders, 1)
        source = rng.seed_from(randomness("generator", generator))
        x = self.schema.encode(df)
        query = query_of(self.schema, df, x, target, observed)
        parts = []
        for rows in torch.arange(len(x)).split(batch_size) if len(x) else ():
            values = x[rows].nan_to_num(0.0).to(self.device)
            streams = rng.Streams(rng.key(source, "orders"), rows.to(self.device))
            some = query[rows].to(self.device)
            parts.append(
                any_order.log_prob(self._conditional, values, some, orders=num_orders, generator=streams).cpu()
            )
        nats = torch.cat(parts).numpy() if parts else np.zeros(0)
        return pd.Series(nats, df.index, name="log_prob")

    def marginals(
        self, df: pd.DataFrame, columns: Sequence[str] | None = None, *, quantiles: Sequence[float] = (0.05, 0.5, 0.95)
    ) -> dict[str, pd.DataFrame]:
        """Distributions of each row's missing entries given its present ones, one column at a time.

        Args:
            df: rows.
            columns: which to describe, treated as missing in every row; default: the missing entries as they are.
            quantiles: of numeric columns, each between 0 and 1.

        Returns:
            Column -> frame with ``mean``, ``sd`` and the quantiles, or the probability of every level. By default a
            row per row in which the column is missing.
        """
        quantiles = _quantiles(quantiles)
        chosen = column_numbers(self.schema, self.schema.names if columns is None else columns, "columns")
        x = self.schema.encode(df)
        observed = ~x.isnan()
        if columns is not None:
            observed[:, chosen] = False
        answers: dict[str, list[pd.DataFrame]] = {self.schema.names[j]: [] for j in chosen}
        for rows in torch.arange(len(x)).split(_ROWS_AT_ONCE):
            some = observed[rows]
            query = Query(torch.zeros_like(some), some).to(self.device)
            marginals = self._conditional.marginals(x[rows].nan_to_num(0.0).to(self.device), query)
            described = describe(self.schema, marginals, df.index[rows.numpy()], quantiles, chosen)
            for name, frame in described.items():
                answers[name].append(frame[~some[:, self.schema.position(name)].numpy()])
        return {name: pd.concat(frames) for name, frames in answers.items() if sum(map(len, frames))}

    def to_frame(self, chains: ChainResult | Tensor) -> pd.DataFrame:
        """The draws of chains over the model's conditional, as rows of the table.

        Args:
            chains: what a sampler returned, or its draws ``[S, B, N]``.

        Returns:
            A row a draw, on an index of ``chain`` (its name) and ``draw``, with the dtypes of the table.
        """
        draws = chains.draws if isinstance(chains, ChainResult) else chains
        if not isinstance(draws, Tensor) or draws.ndim != 3:
            found = f"have shape {tuple(draws.shape)}" if isinstance(draws, Tensor) else f"is {kind_of(chains)}"
            raise DataError("chains", found, "Pass what a sampler's run() returned, or its draws [S, B, N].")
        names = chains.state.chain_ids.tolist() if isinstance(chains, ChainResult) else range(draws.shape[1])
        index = pd.MultiIndex.from_product([names, range(len(draws))], names=["chain", "draw"])
        return self.schema.decode(draws.transpose(0, 1).flatten(0, 1), index)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors``, both or neither, and their checksums (``flexgen.saving``).

        Raises:
            CheckpointError: the folder cannot be written to, or holds files of these names that are not ours.
        """
        write_table_model(folder, self.schema, self._conditional, self.report)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TableModel:
        """Reads what `save_pretrained` wrote; nothing is unpickled or imported by name.

        Raises:
            CheckpointError: files absent, damaged, of another format, or of different models.
        """
        return cls(*read_table_model(folder))

    def __repr__(self) -> str:
        shares = self.report.shares
        return f"TableModel({self.schema.space}{'; ' + shares if shares else ''})"

    def _fill(self, x: Tensor, method: Method, streams: rng.Streams) -> Tensor:
        """x with NaN replaced."""
        missing = x.isnan()
        observed = ~missing
        values = x.nan_to_num(0.0).to(self.device)
        query = Query._trusted(missing, observed).to(self.device)
        if method == "draw":
            streams = rng.Streams(streams.seed, streams.rows.to(self.device))
            filled = any_order.sample(self._conditional, values, query, generator=streams)
        else:
            marginals = self._conditional.marginals(values, query)
            filled = marginals.mean() if method == "mean" else marginals.mode()
            if method == "mean":
                categorical = self._conditional.maps.categorical
                filled[:, categorical] = marginals.latents.log_probs.argmax(-1).double()
        return torch.where(missing, filled.cpu(), x)


def _quantiles(quantiles: Any) -> list[float]:
    chosen = entries("quantiles", quantiles, "Pass a list of numbers, such as [0.05, 0.5, 0.95].", error=DataError)
    for q in chosen:
        if not isinstance(q, Real) or not 0 < float(q) < 1:
            raise DataError("quantiles", f"holds {kind_of(q)}", "Pass numbers between 0 and 1.")
    return [float(q) for q in chosen]
