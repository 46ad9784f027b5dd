"""Calls the public face with wrong arguments, many times, and judges what comes back.

`tests/fuzz/calls.py` holds right calls as text. A fuzzed call is one of them in which one argument (or an element of
one, at any depth) was replaced: by a value of the wrong kind, a number that no computer can serve, a tensor of another
shape or type, or a spoilt copy of the right value. A call passes if it returns finite numbers or raises one of the
project's own errors. Anything else is a failure: another exception, more than `SECONDS` of work, more memory than
`MEMORY`, a number that is not finite where the question was.

Calls run in a process of their own, so that none can take the tests with it. Call `i` of a seed is always the same
text, and a failure prints it: paste it behind ``from tests.fuzz.calls import *``.

    python -m tests.fuzz.fuzzer --calls 20000 --seed 0
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import json
import math
import os
import random
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SECONDS = 3.0  # of the processor's time, so that a busy machine is no hang
SECONDS_ON_THE_WALL = 90.0  # for a call that Python's signals cannot reach
MEMORY = 3 << 30  # bytes beyond what the modules take

# What may stand in for any argument. Every entry is an expression over the names of `calls.py`.
ANYTHING = (
    "None",
    "True",
    "0",
    "1",
    "-1",
    "7",
    "2**31",
    "2**63",
    "-2**63 - 1",
    "10**9",
    "10**400",
    "0.5",
    "-0.25",
    "1e308",
    "-1e308",
    "1e-320",
    "nan",
    "inf",
    "-inf",
    "1j",
    "''",
    "'x'",
    "'a\\0b'",
    "'\\ud800'",
    "b'x'",
    "[]",
    "()",
    "{}",
    "set()",
    "[None]",
    "['a', 1]",
    "[[0, 1], [2]]",
    "[nan]",
    "[2**63]",
    "{'a': {'b': [1]}}",
    "{1: 2}",
    "deep(3000)",
    "object()",
    "int",
    "len",
    "lambda *a, **k: None",
    "range(3)",
    "range(10**9)",
    "(i for i in range(3))",
    "np.float64('nan')",
    "np.int64(3)",
    "np.array(3)",
    "np.array([])",
    "np.array(['a', None], dtype=object)",
    "np.array([[1.0, 2.0]])",
    "torch.tensor(nan)",
    "torch.tensor([])",
    "torch.zeros(0, 3)",
    "torch.ones(3, dtype=torch.bool)",
    "torch.zeros(2, 2, 2, 2)",
    "torch.tensor([2**62, -1])",
    "torch.ones(2, 3, dtype=torch.complex64)",
    "torch.zeros(3, device='meta')",
    "torch.eye(3).to_sparse()",
    "pd.DataFrame()",
    "pd.DataFrame([[1, 2.0]], columns=['a', 'a'])",
    "pd.Series([1.0, nan])",
    "Decimal('nan')",
    "Fraction(1, 3)",
    "datetime.date(2020, 1, 1)",
    "Path('nowhere')",
    "fg.Query.of([0], [1], num_sites=3)",
    "fg.Space.real(2)",
    "torch.Generator()",
    "rng.Streams(0, 2)",
)
HUGE = frozenset(("2**31", "2**63", "10**9", "10**400", "1e308", "torch.tensor([2**62, -1])"))
# How much work is to be done: to ask for a billion steps is no mistake, and takes as long as it takes.
PATIENCE = frozenset(
    [
        "draws",
        "max_iter",
        "num_draws",
        "num_inference_steps",
        "num_orders",
        "num_permutations",
        "num_probes",
        "num_splits",
        "num_steps",
        "num_sweeps",
        "sweeps",
        "thin",
        "warmup",
    ]
)
_MAKES_TENSORS = "torch.tensor"  # of a long range it takes minutes, before anything of ours is called
# What a right value can be turned into; `{v}` is its text.
OF_ANY = ("[{v}]", "str({v})", "[{v}, {v}]", "np.asarray({v}, dtype=object)", "({v},)", "{{'a': {v}}}")
OF_NUMBER = ("-({v})", "({v}) + 100", "float({v})", "np.int32({v})", "({v}) * 1e300", "torch.tensor({v})")
OF_TENSOR = (
    "{v}[..., :-1]",
    "{v}[None]",
    "{v}[:0]",
    "{v}[..., 0]",
    "{v}.double()",
    "{v}.half()",
    "{v}.long()",
    "{v}.bool()",
    "{v}.to(torch.uint8)",
    "{v}.numpy()",
    "{v}.tolist()",
    "{v}.to('meta')",
    "{v}.to_sparse()",
    "{v} + 0j",
    "{v}.double() * 1e308 * 10",
    "{v}.double() * nan",
    "poked({v}, nan)",
    "poked({v}, inf)",
    "poked({v}, -1)",
    "poked({v}, 1e308)",
    "torch.cat([{v}, {v}])",
    "torch.cat([{v}, {v}], -1)",
)
OF_FRAME = (
    "twice_named({v})",
    "{v}.iloc[:0]",
    "{v}.iloc[:, :0]",
    "{v}.iloc[:, 1:]",
    "{v}.astype(object)",
    "{v}.astype(str)",
    "{v}.to_numpy()",
    "{v}.set_axis(range({v}.shape[1]), axis=1)",
    "{v}.T",
    "poked_frame({v}, nan)",
    "poked_frame({v}, inf)",
    "poked_frame({v}, 1e308)",
    "poked_frame({v}, 'x')",
    "poked_frame({v}, [1])",
    "poked_frame({v}, 2**63)",
    "poked_frame({v}, None)",
    "{v}.set_index([0] * len({v}))",
    "{v}.to_dict()",
    "{v}.iloc[0]",
)
OF_TEXT = ("{v}.encode()", "{v}.upper()", "{v} + ' '", "{v} * 1000", "Path({v})")


class Hang(BaseException):
    """Raised by the alarm; no `except Exception` of the code under test may swallow it."""


# ---------------------------------------------------------------------------------------------------- making a call


def places(call: str, helpers: frozenset[str]) -> list[tuple[int, str, str]]:
    """The expressions of a call that may be replaced: (number in the order of `ast.walk`, text, keyword).

    Of what stands within ``torch.tensor(..)`` the keyword is ``"torch.tensor"``.

    They are the arguments of every call except those of helpers (functions of `calls.py`), and the elements of lists,
    tuples and dictionaries among them.
    """
    tree = ast.parse(call, mode="eval")
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    found: list[tuple[int, str, str]] = []

    def elements(node: ast.AST, keyword: str = "") -> None:
        found.append((numbers[id(node)], ast.unparse(node), keyword))
        if isinstance(node, ast.List | ast.Tuple):
            for element in node.elts:
                elements(element, keyword if keyword == _MAKES_TENSORS else "")
        if isinstance(node, ast.Dict):
            for element in (*node.keys, *node.values):
                if element is not None:
                    elements(element)

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not _is_helper(node.func, helpers):
            for argument in node.args:
                elements(argument, _MAKES_TENSORS if ast.unparse(node.func) == _MAKES_TENSORS else "")
            for keyword in node.keywords:
                elements(keyword.value, keyword.arg or "")
    return found


def _is_helper(function: ast.expr, helpers: frozenset[str]) -> bool:
    return isinstance(function, ast.Name) and function.id in helpers


class _Replace(ast.NodeTransformer):
    def __init__(self, nodes: Mapping[int, ast.expr]) -> None:
        self.nodes = nodes

    def visit(self, node: ast.AST) -> Any:
        return self.nodes.get(id(node)) or self.generic_visit(node)


def replaced(call: str, number: int, text: str) -> str:
    """The call with one of its expressions replaced."""
    tree = ast.parse(call, mode="eval")
    old = next(node for place, node in enumerate(ast.walk(tree)) if place == number)
    return ast.unparse(_Replace({id(old): ast.parse(text, mode="eval").body}).visit(tree))


def spoilt(text: str, source: random.Random, kind: str) -> str:
    """Something that stands where a right value stood."""
    own = {"number": OF_NUMBER, "tensor": OF_TENSOR, "frame": OF_FRAME, "text": OF_TEXT}.get(kind, ())
    pool = source.choice((ANYTHING, ANYTHING, OF_ANY, own or ANYTHING, own or ANYTHING))
    return source.choice(pool).format(v=f"({text})") if pool is not ANYTHING else source.choice(pool)


def kind_of_text(text: str) -> str:
    if text.startswith(("frame(", "numbers_frame(")):
        return "frame"
    if text.startswith(("torch.", "x_of(", "present(", "video(", "states(")):
        return "tensor"
    node = ast.parse(text, mode="eval").body
    if isinstance(node, ast.Constant):
        return "text" if isinstance(node.value, str) else "number" if not isinstance(node.value, bool) else ""
    return ""


def fuzzed(groups: Mapping[str, Sequence[str]], helpers: frozenset[str], seed: int, number: int) -> tuple[str, str]:
    """Group and text of one call; a function of (seed, number)."""
    source = random.Random(f"{seed}/{number}")
    names = [name for name, calls in groups.items() for _ in calls]  # a group in proportion to its calls
    group = source.choice(names)
    call = source.choice(list(groups[group]))
    for _ in range(source.choice((1, 1, 1, 2))):
        candidates = places(call, helpers)
        if not candidates:
            break
        place, text, keyword = source.choice(candidates)
        new = spoilt(text, source, kind_of_text(text))
        while (keyword in PATIENCE and new in HUGE) or (keyword == _MAKES_TENSORS and "10**9" in new):
            new = spoilt(text, source, kind_of_text(text))
        call = replaced(call, place, new)
    return group, call


# ------------------------------------------------------------------------------------------------------- judging it


def not_finite(value: Any, *, minus_infinity: bool, depth: int = 0) -> str | None:
    """Where `value` holds NaN or an infinity, in words; None where every number is finite."""
    import numpy as np
    import pandas as pd
    import torch

    if depth > 6:
        return None
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number) or number == math.inf or (number == -math.inf and not minus_infinity):
            return repr(number)
        return None
    if isinstance(value, torch.Tensor):
        if value.device.type == "meta" or not (value.is_floating_point() or value.is_complex()):
            return None
        value = value.detach()
        value = value.to_dense() if value.layout != torch.strided else value
        wrong = ~torch.isfinite(value)
        if minus_infinity and value.is_floating_point():
            wrong &= value != -math.inf
        return f"{int(wrong.sum())} of {value.numel()} numbers" if wrong.any() else None
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return None
        return not_finite(torch.from_numpy(value.copy()), minus_infinity=minus_infinity, depth=depth + 1)
    parts: Iterator[tuple[Any, Any]]
    if isinstance(value, pd.DataFrame | pd.Series):
        frame = value.to_frame() if isinstance(value, pd.Series) else value
        parts = ((name, frame.iloc[:, i].to_numpy()) for i, name in enumerate(frame.columns))
    elif isinstance(value, Mapping):
        parts = iter(list(value.items())[:100])
    elif isinstance(value, list | tuple):
        parts = enumerate(value[:100])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
    else:
        return None
    for name, part in parts:
        if found := not_finite(part, minus_infinity=minus_infinity, depth=depth + 1):
            return f"{found} at {name!r}"
    return None


# Missing numbers in data are a question, not a mistake: what is asked of them may be answered by missing numbers.
_DATA_WITH_GAPS = ("* nan", "poked(", "poked_frame(", "* 1e308", "* 1e300", "torch.tensor(nan)", "Series([1.0, nan])")


def judged(call: str, names: Mapping[str, Any], *, strict: bool) -> tuple[str, str]:
    """The kind of outcome ("answered", "refused", "raw", "hang", "non-finite") and what was seen."""
    import signal

    from flexgen.errors import FlexgenError

    def stop(*_: Any) -> None:
        raise Hang

    try:
        code = compile(call, "<call>", "eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        return "unmade", str(error)
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        result = eval(code, dict(names))
        signal.setitimer(signal.ITIMER_PROF, 0)
    except FlexgenError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Hang:
        return "hang", f"more than {SECONDS:g} s of work"
    except BaseException as error:
        if _of_the_call(error):  # a spoilt value that could not even be made, or a wrong number of arguments
            return "unmade", str(error)
        return "raw", f"{type(error).__name__}: {str(error)[:300]}" + _place(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if not strict and any(gap in call for gap in _DATA_WITH_GAPS):
        return "answered", ""
    logarithm = any(word in call for word in ("log_", "marginals", "Marginals", "energy"))
    if found := not_finite(result, minus_infinity=logarithm):
        return "non-finite", found
    return "answered", ""


def _of_the_call(error: BaseException) -> bool:
    """Whether the call's own text raised: the spoilt value could not be made, or Python bound no arguments."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        if trace.tb_frame.f_code.co_filename == "<call>" and _outside_project(trace.tb_next):
            return True
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename == "<call>"


def _outside_project(trace: Any) -> bool:
    """Whether no frame below is the project's: numpy could not make the array that was to be passed."""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith((*_packages(), "<string>")):
            return False
        trace = trace.tb_next
    return True


def _place(error: BaseException) -> str:
    """The project's innermost line, for the reader."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(_packages()):
            found = f"  ({'/'.join(name.split('/')[-2:])}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


@functools.cache
def _packages() -> tuple[str, ...]:
    """The folders of the project's packages."""
    import flexgen
    import samplers

    return tuple(str(Path(package.__file__).parent) + os.sep for package in (flexgen, samplers) if package.__file__)


# ---------------------------------------------------------------------------------------------- a process for calls


def serve(module: str) -> None:
    """Reads calls from stdin, a JSON a line, and writes their outcomes; what the calls print goes nowhere."""
    import importlib
    import resource
    import warnings

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    warnings.simplefilter("ignore")
    calls = importlib.import_module(module)
    names = {name: value for name, value in vars(calls).items() if not name.startswith("__")}
    strict = frozenset(getattr(calls, "STRICT", ()))
    calls.prepare()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    answers.write("ready\n")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for line in sys.stdin:
            group, call = json.loads(line)
            answers.write(json.dumps(judged(call, names, strict=group in strict)) + "\n")


class Worker:
    """A process that judges calls; started anew when a call takes it along."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def judge(self, group: str, call: str) -> tuple[str, str]:
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps([group, call]).encode() + b"\n")
        process.stdin.flush()
        line = self._line(SECONDS_ON_THE_WALL)
        if line is None:
            self._stop()
            return "hang", "does not return to Python"
        if not line:  # the pipe's end
            status = process.wait()
            self._stop()
            return "raw", f"the process died ({status})"
        kind, seen = json.loads(line)
        return kind, seen

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fuzz.fuzzer", "--serve", self.module]
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root, env=environment
        )
        if self._line(300.0) != b"ready\n":
            raise RuntimeError(f"the process for {self.module} did not start: run `{' '.join(command)}` to see why")
        return self._process

    def _line(self, seconds: float) -> bytes | None:
        """The next line; empty if the process has ended, None if it does not answer."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None


# ------------------------------------------------------------------------------------------------------- a campaign

FAILURES = ("raw", "hang", "non-finite")


@dataclasses.dataclass
class Outcome:
    """What a campaign saw: counts of each group, and the failures as (group, kind, call, what was seen)."""

    counts: dict[str, Counter[str]]
    failures: list[tuple[str, str, str, str]]

    def table(self) -> str:
        names = ("calls", "answered", "refused", *FAILURES)
        rows = [("group", *names)]
        total: Counter[str] = Counter()
        for group, counter in self.counts.items():
            total += counter
            rows.append((group, *(str(counter[name]) for name in names)))
        rows.append(("all", *(str(total[name]) for name in names)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in rows)
        )

    def report(self) -> str:
        lines = [f"{kind} [{group}] {call}\n    {seen}" for group, kind, call, seen in self.failures]
        return "\n".join([*lines, self.table()])


def campaign(
    num_calls: int,
    *,
    seed: int = 0,
    module: str = "tests.fuzz.calls",
    groups: Sequence[str] | None = None,
    most_failures: int | None = None,
    on_failure: Callable[[str], object] | None = None,
) -> Outcome:
    """Makes and judges `num_calls` calls of the groups named (default: all)."""
    import importlib

    calls = importlib.import_module(module)
    known = {**calls.GROUPS, **getattr(calls, "NOT_YET", {})}
    chosen = {name: known[name] for name in (groups or calls.GROUPS)}
    outcome = Outcome({name: Counter() for name in chosen}, [])
    number = made = 0
    with Worker(module) as worker:
        while made < num_calls:
            group, call = fuzzed(chosen, calls.HELPERS, seed, number)
            number += 1
            kind, seen = worker.judge(group, call)
            if kind == "unmade":
                continue
            made += 1
            outcome.counts[group].update(["calls", kind])
            if kind in FAILURES:
                outcome.failures.append((group, kind, call, seen))
                if on_failure is not None:
                    on_failure(f"{kind} [{group}] {call}\n    {seen}")
                if most_failures is not None and len(outcome.failures) >= most_failures:
                    break
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", nargs="*", help="some groups of tests/fuzz/calls.py")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve)
        return 0
    outcome = campaign(
        options.calls, seed=options.seed, groups=options.groups, on_failure=functools.partial(print, flush=True)
    )
    print(outcome.table())
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
