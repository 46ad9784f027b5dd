"""``flexgen <command> [overrides]``: which command, then everything else is Hydra's override grammar."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flexgen import __version__
from flexgen.errors import ConfigError, FlexgenError
from flexgen.processes import Processes, is_shared

__all__ = ["main"]

COMMANDS = {
    "demo": "learn a real table, sample its joint by Gibbs, leave pictures and scores",
    "train": "learn a table:            flexgen train data.path=my.csv output=model",
    "impute": "fill in missing entries:  flexgen impute model=model input=gaps.csv output=filled.csv",
    "sample": "draw rows of the joint:   flexgen sample model=model num_rows=1000 output=rows.csv",
    "diagnose": "is it compatible?         flexgen diagnose model=model input=held_out.csv",
    "video": "generate a long video:    flexgen video model=model observed=start.mp4 output=out/video",
    "render": "make videos of mazes:     flexgen render output=mazes/train num_clips=240",
}

USAGE = """usage: flexgen <command> [key=value ...] [--config-dir DIR] [--config]

{commands}

  flexgen <command> --help      its keys, its groups and their options
  flexgen <command> --config    print the command's configuration, overrides applied, and stop
  flexgen <command> --config-dir DIR    options of your own as well: DIR/<group>/<option>.yaml
  flexgen --version

A Python traceback of an error is shown with --traceback."""

FOR_ONE = ("diagnose", "render")  # of several processes, the others wait

CONFIG_DIR = "--config-dir"
FLAGS = ("--config", "--traceback", "--help", "-h", "--version")

# What torch says, in errors of no class of their own.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Storage size calculation overflowed")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 on bad input, 130 when interrupted.

    Under torchrun every process runs the command, and the first of them speaks.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, words, flags = _split(arguments)
    name = " ".join(["flexgen", *words[:1]])
    processes = Processes()
    try:
        with contextlib.ExitStack() as stack:
            if not processes.is_first:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            return processes.together(lambda: _run(words, flags, own, processes))
    except FlexgenError as error:
        if "--traceback" in flags:
            raise
        complaint, code = str(error), 2
        is_said = not processes.is_first and is_shared(error)
    except (MemoryError, RuntimeError) as error:  # numpy's, and torch's
        if "--traceback" in flags or not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or "there is not enough"
        complaint, code = f"memory: {reason[:300]}. Pass smaller sizes, such as batch_size or window.", 2
        is_said = not processes.is_first and is_shared(error)
    except KeyboardInterrupt:
        complaint, code = f"interrupted{_resumption(words, own)}", 130
        is_said = not processes.is_first
    if not is_said:
        print(f"{name}: {complaint}", file=sys.stderr)
    return code


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The folders of --config-dir, the words, and the other flags."""
    own: list[str] = []
    words: list[str] = []
    flags: list[str] = []
    left = iter(arguments)
    for argument in left:
        flag, equals, value = argument.partition("=")
        if flag == CONFIG_DIR:
            own.append(value if equals else next(left, ""))
        else:
            (flags if argument.startswith("-") else words).append(argument)
    return own, words, flags


def _run(words: Sequence[str], flags: Sequence[str], own: Sequence[str], processes: Processes) -> int:
    if len(own) > 1:
        raise ConfigError(CONFIG_DIR, f"is given {len(own)} times", "Name one folder.")
    for flag in flags:
        if flag not in FLAGS:
            raise ConfigError("flag", f"is {flag!r}", "Write options as key=value, see flexgen --help.")
    wants_help = "--help" in flags or "-h" in flags
    if "--version" in flags:
        print(f"flexgen {__version__}")
        return 0
    if not words:
        text = USAGE.format(commands="\n".join(f"  {name:9} {text}" for name, text in COMMANDS.items()))
        print(text, file=None if wants_help else sys.stderr)
        return 0 if wants_help else 2
    command, *overrides = words
    if command not in COMMANDS:
        raise ConfigError("command", f"is {command!r}", f"Choose one of {', '.join(COMMANDS)}.")
    # What follows is imported late: a message about usage must not wait for Hydra, nor an error for torch.
    if wants_help:
        from flexgen.cli.help import describe, user_dir

        print(describe(command, user_dir(own[0]) if own else None))
        return 0
    from flexgen.cli.compose import load_config

    config = load_config(command, overrides, complete="--config" not in flags, own_options=own[0] if own else None)
    if "--config" in flags:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config), end="")
        return 0
    # Before torch is there: small matrices gain nothing from more threads, and lose much where cores are shared.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    level = logging.INFO if processes.is_first else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    run = importlib.import_module(f"flexgen.cli.{command}").run
    if command in FOR_ONE:
        processes.first(lambda: run(config))
    else:
        run(config)
    return 0


def _resumption(words: Sequence[str], own: Sequence[str]) -> str:
    """How to go on after Ctrl-C, for the command that can."""
    more = [f"{CONFIG_DIR}={folder}" for folder in own]
    if words[:1] in (["render"], ["video"]):
        return f". Go on with: {shlex.join(['flexgen', *words, *more])}"
    if words[:1] != ["train"]:
        return ""
    kept = [word for word in words if not word.startswith(("resume=", "overwrite="))]
    return f". Go on with: {shlex.join(['flexgen', *kept, 'resume=true', *more])}"


if __name__ == "__main__":
    raise SystemExit(main())
