"""Files that commands read and write: checked before any work is done, written without leaving halves behind."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flexgen import saving
from flexgen.cli.compose import build
from flexgen.cli.parameters import convert
from flexgen.errors import CheckpointError, ConfigError, DataError, FlexgenError

if TYPE_CHECKING:
    import pandas as pd

    from flexgen.table_model import TableModel

__all__ = [
    "SUFFIXES",
    "load_model",
    "read_input",
    "read_source",
    "require_file",
    "require_free",
    "require_free_folder",
    "require_model",
    "require_table",
    "write_table",
]

SUFFIXES = (".csv", ".tsv", ".parquet")


def require_free(path: Path, *, argument: str, overwrite: bool) -> Path:
    """`path` if it may be written; nothing is made yet.

    Raises:
        DataError: something is there already and may not be overwritten, or the folder cannot be written to.
    """
    if path.is_symlink() and not path.is_dir():
        raise DataError(argument, f"{str(path)!r} is a link to a file", "Name the file itself, or another one.")
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(argument, f"{str(path)!r} is there already", "Name another, or add overwrite=true.")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise DataError(argument, f"{str(path)!r} is below {str(folder)!r}, which is a file", "Name another folder.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise DataError(argument, f"{str(path)!r} cannot be written", "Name a folder that you may write to.")
    return path


def require_free_folder(path: Path, *, argument: str, overwrite: bool) -> Path:
    """As `require_free`, of a folder."""
    if path.exists() and not path.is_dir():
        raise DataError(argument, f"{str(path)!r} is a file", "Name a folder.")
    return require_free(path, argument=argument, overwrite=overwrite)


def load_model(folder: Path) -> TableModel:
    """The model of a folder; a complaint about its files names the key ``model``."""
    # Imported late: what is wrong with the arguments is said at once.
    from flexgen.table_model import TableModel

    try:
        return TableModel.from_pretrained(folder)
    except CheckpointError as error:
        raise CheckpointError("model", error.problem, error.fix) from error


def require_table(path: Path, *, argument: str) -> Path:
    """`path` if its suffix is one of a table that can be read and written here."""
    if path.suffix not in SUFFIXES:
        raise DataError(argument, f"{str(path)!r} ends in {path.suffix!r}", "Name a .csv, .tsv or .parquet file.")
    if path.is_dir():
        raise DataError(argument, f"{str(path)!r} is a folder", "Name a .csv, .tsv or .parquet file.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise DataError(argument, f"{str(path)!r} needs pyarrow", "Install flexgen-samplers[parquet], or use .csv.")
    return path


def require_model(path: Path) -> Path:
    """`path` if a trained model is there."""
    if (path / "config.json").is_file() or "config.json" in saving.saved_files(path):
        return path
    if (path / "checkpoints").is_dir():
        raise DataError("model", f"{str(path)!r} holds a training that is not finished", "Go on with resume=true.")
    raise DataError("model", f"{str(path)!r} holds no model", "Pass a folder that flexgen train wrote.")


def read_input(path: Path, *, argument: str, model: TableModel | None = None) -> pd.DataFrame:
    """The table of a file.

    Args:
        path: of the file.
        argument: named in errors.
        model: its columns distinguish levels such as ``"2"`` from numbers, which a text file does not.

    Raises:
        DataError: what the file holds is no table of its suffix.
    """
    from flexgen.data.tables import read_table

    try:
        table = read_table(path)
    except FlexgenError as error:
        raise DataError(argument, error.problem, error.fix) from error
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(argument, f"{str(path)!r} cannot be read: {reason}", "Check the file.") from error
    for column in () if model is None else model.schema.columns:
        if column.name in table and table[column.name].dtype.kind in "iuf":
            text = table[column.name].convert_dtypes().astype("string").astype(object)  # 2.0 beside gaps is "2"
            if set(text.dropna()) <= set(column.levels):
                table[column.name] = text
    return table


def read_source(config: DictConfig) -> pd.DataFrame:
    """The table of the group ``data``: a file, checked first, or one of a name."""
    if "path" in config:
        require_file(convert(config.path, Path, "data.path"), argument="data.path")
    import pandas as pd

    table: pd.DataFrame = build(config, at="data", kind=pd.DataFrame)
    return table


def require_file(path: Path, *, argument: str) -> Path:
    """`path` if there is a table to read."""
    if not path.is_file():
        raise DataError(argument, f"{str(path)!r} is no file", "Pass a .csv, .tsv or .parquet file.")
    return require_table(path, argument=argument)


def write_table(df: pd.DataFrame, path: Path, *, index: bool = False, spreadsheet_safe: bool = False) -> None:
    """A ``.csv``, ``.tsv`` or ``.parquet`` file, by suffix; in place only once it is whole.

    Args:
        df: the table.
        path: its file.
        index: write the index as columns, too.
        spreadsheet_safe: put ``'`` before texts and names of columns that a spreadsheet would take for a formula.
    """
    require_table(path, argument="output")
    if spreadsheet_safe:
        df = _without_formulas(df)
    with saving.writing("output", path, ConfigError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with saving.replacing(path) as partial:
            if path.suffix == ".parquet":
                df.to_parquet(partial, index=index)
            else:
                df.to_csv(partial, index=index, sep="\t" if path.suffix == ".tsv" else ",")


def _without_formulas(df: pd.DataFrame) -> pd.DataFrame:
    """Source: OWASP, *CSV Injection*: what begins with one of = + - @, a tab or a carriage return, and is no number."""
    from pandas.api.types import is_numeric_dtype

    def quoted(value: Any) -> Any:
        if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r"):
            return value
        try:
            float(value)
        except ValueError:
            return f"'{value}"
        return value

    safe = df.rename(columns=quoted)
    for place, dtype in enumerate(df.dtypes):
        if not is_numeric_dtype(dtype):
            safe.isetitem(place, [quoted(value) for value in df.iloc[:, place]])
    return safe
