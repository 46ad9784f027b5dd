"""Makes the notebooks from their sources and runs them.

    python notebooks/build.py [names ..] [--check] [--quick]

Every notebook is written as a script of cells (``# %%``), which reads well and compares well: `01_theory.py`. This
file turns it into `01_theory.ipynb` beside it, runs that in a fresh kernel and keeps the results. Edit the script, not
the notebook; `make notebooks` runs them all. A notebook whose package is not installed is left as it is.

Options: names, such as ``01 05``: these alone; ``--check``: run, and write nothing; ``--quick``: smaller numbers (the
variable FLEXGEN_NOTEBOOK_QUICK), as in the default tests.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
NEEDS = {"03_masked_language_model": "antiberty"}  # notebook -> a package that not everybody has
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # two threads of a small network are slower than one
_KEPT = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def names(chosen: Iterable[str] = ()) -> list[str]:
    """The notebooks whose names begin so; all of them where nothing is said."""
    chosen = tuple(chosen)
    found = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
    return [name for name in found if not chosen or name.startswith(chosen)]


def missing(name: str) -> str | None:
    """The package that a notebook lacks."""
    package = NEEDS.get(name)
    return package if package is not None and find_spec(package) is None else None


def source(name: str) -> NotebookNode:
    """The notebook of a script, without results."""
    notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    notebook.metadata = nbformat.from_dict(_KEPT)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"  # else a random one, and no notebook would ever be the same twice
        cell.metadata = nbformat.from_dict({})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def executed(notebook: NotebookNode, *, quick: bool = False, timeout: float = 1800) -> NotebookNode:
    """The notebook with its results, from a fresh kernel in this folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    switches = {**ONE_THREAD, "FLEXGEN_NOTEBOOK_QUICK": "1" if quick else "", "PYTHONHASHSEED": "0"}
    before = {key: os.environ.get(key) for key in switches}
    os.environ.update(switches)
    try:
        NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(FOLDER)}},
            extra_arguments=["--IPKernelApp.log_level=40"],  # that it listens on this machine needs no warning
            startup_timeout=600,  # of a machine that is busy otherwise
        ).execute()
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    notebook.metadata = nbformat.from_dict(_KEPT)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/plain" in (data := output.get("data", {})):  # an address would differ at every run
                data["text/plain"] = re.sub(r" at 0x[0-9a-f]+>", ">", data["text/plain"])
    return notebook


def outputs(notebook: NotebookNode) -> Iterator[tuple[str, Any]]:
    """(kind, content) of every result: "stdout", "stderr", "error" or a media type."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield output.name, output.text
            elif output.output_type == "error":
                yield "error", "\n".join(output.traceback)
            else:
                yield from output.data.items()


def complaints(notebook: NotebookNode) -> list[str]:
    """What does not belong into a notebook that others read: errors, warnings, progress bars, paths of a machine."""
    found = []
    for kind, content in outputs(notebook):
        if kind in ("error", "stderr"):
            found.append(f"{kind}: {content[:300]}")
        elif not kind.startswith("image/"):
            path = re.search(r"(?<![\w./<])/(?:home|root|tmp|work|usr|opt|Users|mnt)\b\S*", str(content))
            found += [f"a path of this machine: {path[0]}"] if path else []
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="notebooks/build.py", description="Makes and runs the notebooks.")
    parser.add_argument("names", nargs="*", help="the first letters of some; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--quick", action="store_true", help="smaller numbers; implies --check")
    options = parser.parse_args(argv)
    failed = 0
    for name in names(options.names):
        if package := missing(name):
            print(f"{name}: left as it is, {package} is not installed")
            continue
        began, used = time.perf_counter(), _processor_seconds()
        notebook = executed(source(name), quick=options.quick)
        bad = complaints(notebook)
        text = nbformat.writes(notebook) + "\n"
        if not (bad or options.check or options.quick):
            (FOLDER / f"{name}.ipynb").write_text(text, encoding="utf-8")
        spent = f"{_processor_seconds() - used:.0f} processor seconds, {time.perf_counter() - began:.0f} s"
        print(f"{name}: {spent}, {len(text) / 1000:.0f} kB", *bad, sep="\n  ", flush=True)
        failed += bool(bad)
    return failed


def _processor_seconds() -> float:
    """Of the kernels that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


if __name__ == "__main__":
    sys.exit(main())
