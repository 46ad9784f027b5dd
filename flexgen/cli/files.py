"""Files that commands read and write: checked before any work is done, written without leaving halves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from flexgen.errors import DataError

__all__ = ["require_free", "write_table"]


def require_free(path: Path, *, argument: str, overwrite: bool) -> Path:
    """`path` if it may be written, with its folder made.

    Raises:
        DataError: something is there already and may not be overwritten, or the folder cannot be written to.
    """
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(argument, f"{str(path)!r} is there already", "Name another, or add overwrite=true.")
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            argument, f"cannot be made in {str(folder)!r}: {error.strerror}", "Name another folder."
        ) from error
    if not os.access(folder, os.W_OK):
        raise DataError(argument, f"cannot be written in {str(folder)!r}", "Name a folder that you may write to.")
    return path


def write_table(df: pd.DataFrame, path: Path, *, index: bool = False) -> None:
    """A ``.csv``, ``.tsv`` or ``.parquet`` file, by suffix; in place only once it is whole."""
    if path.suffix not in (".csv", ".tsv", ".parquet"):
        raise DataError("output", f"ends in {path.suffix!r}", "Name a .csv, .tsv or .parquet file.")
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".parquet":
        df.to_parquet(partial, index=index)
    else:
        df.to_csv(partial, index=index, sep="\t" if path.suffix == ".tsv" else ",")
    partial.replace(path)
