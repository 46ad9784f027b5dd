"""Commands in this process, one of several that torchrun started: ``two_processes.py COMMANDS.json``.

Writes the exit codes of all commands, with what each of them said, to ``said-RANK.json``. A command ``fail RANK`` is an
error that one process meets between two calls, while the other is in the next.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from flexgen.cli.main import main
from flexgen.errors import DataError
from flexgen.processes import Processes


def fail(rank: int) -> int:
    processes = Processes()

    def work() -> None:
        if processes.rank == rank:
            raise DataError("disk", "is full", "Buy another.")
        processes.map(abs, [1, 2, 3])

    try:
        processes.together(work)
    except DataError as error:
        print(error)
        return 2
    return 0


def run() -> None:
    said = []
    for words in json.loads(Path(sys.argv[1]).read_text()):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = fail(int(words[1])) if words[0] == "fail" else main(words)
        said.append([code, out.getvalue(), err.getvalue()])
    Path(f"said-{os.environ['RANK']}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    run()
