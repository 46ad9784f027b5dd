"""`TableModel`: learn a table with mixed columns and gaps; impute it, sample its joint, ask it for likelihoods."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from flexgen import rng
from flexgen.data.schema import TableSchema
from flexgen.errors import CheckpointError, DataError
from flexgen.laws import MaskLaw
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Kind
from flexgen.tables import FitReport, TableConditional, TableMarginals, TableSettings, fit_table
from flexgen.tables.checkpoint import conditional_from_config, conditional_to_config
from samplers import GibbsSampler, any_order
from samplers.laws import power_cardinality
from samplers.scans import Scan

__all__ = ["TableModel", "TableSettings"]

LEAST_ROWS = 10
_ROWS_AT_ONCE = 4096
_FORMAT = 1
_MOST_MAGNITUDE = 1e100

Method = Literal["mean", "mode", "draw"]
Columns = Sequence[str] | np.ndarray | pd.DataFrame | None


class TableModel:
    """Distributions of any columns of a table given any others.

    >>> model = TableModel.fit(df)                                # doctest: +SKIP
    >>> model.impute(df, method="draw")                           # doctest: +SKIP
    >>> model.sample(1000, given={"species": "setosa"})           # doctest: +SKIP
    >>> model.log_prob(df, target=["width"])                      # doctest: +SKIP

    Make one with `fit` or `from_pretrained`.
    """

    def __init__(self, schema: TableSchema, conditional: TableConditional, report: FitReport | None = None) -> None:
        self.schema = schema
        self._conditional = conditional
        self.report = report or FitReport()

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

        Raises:
            DataError: nothing to learn from, or values that no column can hold; names the column and the fix.
        """
        if settings is not None and not isinstance(settings, TableSettings):
            raise DataError("settings", f"is a {type(settings).__name__}", "Pass a TableSettings(...).")
        if law is not None and not isinstance(law, MaskLaw):
            raise DataError("law", f"is {law!r}", "Pass a law of samplers.laws, such as laws.any_order().")
        schema = TableSchema.infer(df, kinds)
        x = schema.encode(df)
        x = x[~x.isnan().all(1)]  # a row without an entry teaches nothing
        if len(x) < LEAST_ROWS:
            raise DataError("df", f"has {len(x)} row(s) with an entry", f"Pass at least {LEAST_ROWS}.")
        _require_moderate(schema, x)
        conditional, report = fit_table(
            x,
            schema.space,
            law or power_cardinality(),
            settings or TableSettings(),
            seed=seed,
            directory=None if checkpoint_dir is None else Path(checkpoint_dir),
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
        self._conditional.to(device)
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
        """
        if method not in ("mean", "mode", "draw"):
            raise DataError("method", f"is {method!r}", "Choose 'mean', 'mode' or 'draw'.")
        if num_draws < 1 or (num_draws > 1 and method != "draw"):
            raise DataError("num_draws", f"is {num_draws} with method {method!r}", "Pass 1, or method='draw'.")
        _require_positive("batch_size", batch_size)
        x = self.schema.encode(df)
        seed = rng.seed_from(generator) if method == "draw" else 0
        frames = []
        with tqdm(total=num_draws * len(x), disable=not progress, unit="row") as bar:
            for number in range(num_draws):
                filled = x.clone()
                rows = x.isnan().any(1).nonzero()[:, 0]
                for some in rows.split(batch_size) if len(rows) else ():
                    filled[some] = self._fill(x[some], method, rng.Streams(rng.key(seed, "impute", number), some))
                    bar.update(len(some))
                frames.append(self._merged(df, filled))
        if num_draws == 1:
            return frames[0]
        return pd.concat(frames, keys=range(num_draws), names=["draw"])

    def impute_stream(
        self, frames: Iterable[pd.DataFrame], method: Method = "mean", **options: Any
    ) -> Iterator[pd.DataFrame]:
        """`impute` for a table that does not fit in memory, e.g. ``pandas.read_csv(..., chunksize=10_000)``.

        Each frame draws from a seed of its own, derived from `generator` and its place.
        """
        seed = rng.seed_from(options.pop("generator", None))
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
    ) -> pd.DataFrame:
        """Rows of the joint distribution.

        Each row is drawn by the chain rule in a random order of its own; then, if asked, updated by Gibbs sweeps.

        Args:
            num_rows: how many.
            given: column -> value that all rows have; the others are drawn given these.
            scan: of the Gibbs sweeps, see ``samplers.scans``.
            num_sweeps: Gibbs sweeps over the free columns, each row a chain of its own.
            generator: a seed or a source; row i is the same whatever `num_rows` and `batch_size` are.
            batch_size: rows computed at once.
            progress: show a bar.
        """
        if not isinstance(num_rows, int) or num_rows < 0:
            raise DataError("num_rows", f"is {num_rows!r}", "Pass a whole number, 0 or more.")
        if given is not None and not isinstance(given, Mapping):
            raise DataError("given", f"is a {type(given).__name__}", "Pass a mapping, such as {'column': value}.")
        _require_positive("batch_size", batch_size)
        if (scan is None) != (num_sweeps == 0):
            raise DataError(
                "num_sweeps", f"is {num_sweeps} with scan {scan}", "Pass a scan and at least one sweep, or neither."
            )
        start, observed = self._given(given or {})
        seed = rng.seed_from(generator)
        parts = []
        with tqdm(total=num_rows, disable=not progress, unit="row") as bar:
            for rows in torch.arange(num_rows).split(batch_size) if num_rows else ():
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
                parts.append(x.cpu())
                bar.update(len(rows))
        return self.schema.decode(torch.cat(parts) if parts else torch.zeros(0, len(self.schema.columns)))

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
        _require_positive("batch_size", batch_size)
        _require_positive("num_orders", num_orders)
        x = self.schema.encode(df)
        query = self._query(df, x, target, observed)
        source = rng.seed_from(generator)
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
        """What each row's present entries say about its missing ones, one column at a time.

        Args:
            df: rows.
            columns: which to describe, treated as missing in every row; default: the missing entries as they are.
            quantiles: of numeric columns, each between 0 and 1.

        Returns:
            Column -> frame with ``mean``, ``sd`` and the quantiles, or the probability of every level. By default a
            row per row in which the column is missing.
        """
        if isinstance(columns, str):
            raise DataError("columns", f"is the string {columns!r}", f"Pass a list, [{columns!r}].")
        outside = [q for q in quantiles if not 0 < q < 1]
        if outside:
            raise DataError("quantiles", f"holds {outside[0]}", "Pass numbers between 0 and 1.")
        x = self.schema.encode(df)
        observed = ~x.isnan()
        chosen = [self.schema.position(name, argument="columns") for name in columns or self.schema.names]
        if columns is not None:
            observed[:, chosen] = False
        answers: dict[str, list[pd.DataFrame]] = {self.schema.names[j]: [] for j in chosen}
        for rows in torch.arange(len(x)).split(_ROWS_AT_ONCE):
            some = observed[rows]
            query = Query(torch.zeros_like(some), some).to(self.device)
            marginals = self._conditional.marginals(x[rows].nan_to_num(0.0).to(self.device), query)
            described = _describe(self.schema, marginals, df.index[rows.numpy()], quantiles, chosen)
            for name, frame in described.items():
                answers[name].append(frame[~some[:, self.schema.position(name)].numpy()])
        return {name: pd.concat(frames) for name, frames in answers.items() if sum(map(len, frames))}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors``; what stood there is replaced only once both are whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "flexgen_format": _FORMAT,
            "schema": self.schema.to_dict(),
            "conditional": conditional_to_config(self._conditional),
            "report": self.report.to_dict(),
        }
        tensors = {name: t.detach().cpu().contiguous() for name, t in self._conditional.state_dict().items()}
        save_file(tensors, folder / ".model.partial")
        config["model_sha256"] = _sha256(folder / ".model.partial")  # so that files of two models do not mix
        (folder / ".config.partial").write_text(json.dumps(config, indent=1))
        (folder / ".model.partial").replace(folder / "model.safetensors")
        (folder / ".config.partial").replace(folder / "config.json")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TableModel:
        """Reads what `save_pretrained` wrote; nothing is unpickled or imported by name.

        Raises:
            CheckpointError: files absent, damaged, of another format, or of different models.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise CheckpointError(
                    "folder", f"{str(folder)!r} holds no {name}", "Pass a folder that save_pretrained wrote."
                )
        again = "Save the model again."
        try:
            config = json.loads((folder / "config.json").read_text())
            found = config["flexgen_format"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("folder", f"{folder / 'config.json'} is damaged ({error})", again) from error
        if found != _FORMAT:
            raise CheckpointError(
                "folder", f"{str(folder)!r} has format {found}", f"This version reads format {_FORMAT}."
            )
        try:
            schema = TableSchema.from_dict(config["schema"])
            conditional = conditional_from_config(config["conditional"], schema.space)
            if config["model_sha256"] != _sha256(folder / "model.safetensors"):
                raise ValueError("model.safetensors is not the file that config.json was saved with")
            tensors = load_file(folder / "model.safetensors")
            conditional.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                "folder", f"{str(folder)!r} holds files that do not fit together ({reason})", again
            ) from error
        return cls(schema, conditional, FitReport(**config["report"]))

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {weight:.0%}" for name, weight in self.report.weights.items())
        return f"TableModel({self.schema.space}{'; ' + shares if shares else ''})"

    # -- helpers

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

    def _merged(self, df: pd.DataFrame, filled: Tensor) -> pd.DataFrame:
        """The caller's frame with its gaps filled; present entries keep their very values."""
        decoded = self.schema.decode(filled, df.index)
        gaps = [name for name in df.columns if str(name) in self.schema.names and df[name].isna().any()]
        merged = df.copy()
        for name in gaps:
            guess, own = decoded[str(name)], df[name]
            if pd.api.types.is_numeric_dtype(guess.dtype) and guess.dtype != own.dtype:
                own = own.astype(guess.dtype) if not own.isna().any() else own.astype("Float64").astype(float)
            merged[name] = guess.where(df[name].isna(), own)
        return merged

    def _given(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """A row of values ``[N]``, and which are given."""
        observed = torch.zeros(len(self.schema.columns), dtype=torch.bool)
        x = torch.zeros(len(self.schema.columns), dtype=torch.float64)
        for name, value in given.items():
            place = self.schema.position(name, argument="given")
            code = float(self.schema.columns[place].encode(pd.Series([value], name=name))[0])
            if np.isnan(code):
                raise DataError("given", f"holds no value for {name!r}", "Leave the column out to have it drawn.")
            x[place], observed[place] = code, True
        return x, observed

    def _query(self, df: pd.DataFrame, x: Tensor, target: Columns, observed: Columns) -> Query:
        present = ~x.isnan()
        wanted = None if target is None else self._sites(df, target, "target")
        known = None if observed is None else self._sites(df, observed, "observed")
        if wanted is None:
            wanted = torch.ones_like(present) if known is None else ~known
        elif known is None:
            known = ~wanted
        known = torch.zeros_like(present) if known is None else known
        return Query(wanted.expand_as(present) & present, known.expand_as(present) & present)

    def _sites(self, df: pd.DataFrame, chosen: Columns, argument: str) -> Tensor:
        """bool ``[N]`` or ``[B, N]``."""
        assert chosen is not None
        if isinstance(chosen, str):
            raise DataError(argument, f"is the string {chosen!r}", f"Pass a list, [{chosen!r}].")
        if isinstance(chosen, pd.DataFrame):
            chosen = chosen.rename(columns=str)
            absent = [name for name in self.schema.names if name not in chosen]
            if absent:
                raise DataError(argument, f"lacks the column {absent[0]!r}", "Pass booleans for every column.")
            chosen = chosen[list(self.schema.names)].to_numpy(bool)
        if isinstance(chosen, np.ndarray):
            if chosen.dtype != bool or chosen.shape != (len(df), len(self.schema.columns)):
                raise DataError(
                    argument,
                    f"has shape {chosen.shape} and dtype {chosen.dtype}",
                    f"Pass booleans of shape {(len(df), len(self.schema.columns))}, or names of columns.",
                )
            return torch.from_numpy(chosen.copy())
        sites = torch.zeros(len(self.schema.columns), dtype=torch.bool)
        for name in chosen:
            sites[self.schema.position(name, argument=argument)] = True
        return sites


def _require_positive(argument: str, number: int) -> None:
    if number < 1:
        raise DataError(argument, f"is {number}", "Pass at least 1.")


def _require_moderate(schema: TableSchema, x: Tensor) -> None:
    """Refuses numbers whose squares, or those of their differences, leave the range of float64."""
    for name, values in zip(schema.names, x.numpy().T, strict=True):
        present = values[~np.isnan(values)]
        if len(present) == 0:
            continue
        low, high = present.min(), present.max()
        if max(-low, high) > _MOST_MAGNITUDE or 0 < high - low < 1 / _MOST_MAGNITUDE:
            raise DataError(f"column {name!r}", f"runs from {low:g} to {high:g}, too far for float64", "Rescale it.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(
    schema: TableSchema, marginals: TableMarginals, index: pd.Index, quantiles: Sequence[float], chosen: Sequence[int]
) -> dict[str, pd.DataFrame]:
    maps = marginals.maps
    numbers = {"mean": marginals.mean(), "sd": marginals.sd()} | {
        f"q{100 * q:g}": marginals.quantile(q) for q in quantiles
    }
    places = maps.categorical.tolist()
    described = {}
    for j in chosen:
        column = schema.columns[j]
        if column.kind == "categorical":
            shares = marginals.latents.log_probs[:, places.index(j), : len(column.levels)].exp()
            described[column.name] = pd.DataFrame(shares.cpu().numpy(), index, list(column.levels))
        else:
            described[column.name] = pd.DataFrame({k: v[:, j].cpu().numpy() for k, v in numbers.items()}, index)
    return described
