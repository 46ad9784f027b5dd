"""``flexgen <command> [overrides]``: which command, then everything else is Hydra's override grammar."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from omegaconf import OmegaConf

from flexgen import __version__
from flexgen.errors import ConfigError, FlexgenError

__all__ = ["main"]

COMMANDS = {
    "demo": "learn a real table, sample its joint by Gibbs, leave pictures and scores",
    "train": "learn a table:            flexgen train data=file data.path=my.csv output=model",
    "impute": "fill in missing entries:  flexgen impute model=model input=gaps.csv output=filled.csv",
    "sample": "draw rows of the joint:   flexgen sample model=model num_rows=1000 output=rows.csv",
}

USAGE = """usage: flexgen <command> [key=value ...] [--config]

{commands}

  flexgen <command> --config    print the command's configuration, overrides applied, and stop
  flexgen --version

Options of a group (data, law, network, sampler, training) are files of configs/<group>/; keys are set as
key.path=value. A Python traceback of an error is shown with --traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 on bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = {a for a in arguments if a.startswith("--")}
    words = [a for a in arguments if not a.startswith("-")]
    if "--version" in flags:
        print(f"flexgen {__version__}")
        return 0
    if not words or "--help" in flags or "-h" in arguments:
        print(USAGE.format(commands="\n".join(f"  {name:8}{text}" for name, text in COMMANDS.items())))
        return 0 if words or flags or "-h" in arguments else 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return _run(words[0], words[1:], flags)
    except FlexgenError as error:
        if "--traceback" in flags:
            raise
        print(f"flexgen {words[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"flexgen {words[0]}: interrupted", file=sys.stderr)
        return 130


def _run(command: str, overrides: Sequence[str], flags: set[str]) -> int:
    if command not in COMMANDS:
        raise ConfigError("command", f"is {command!r}", f"Choose one of {', '.join(COMMANDS)}.")
    unknown = flags - {"--config", "--traceback"}
    if unknown:
        raise ConfigError("flag", f"is {sorted(unknown)[0]!r}", "Write options as key=value, see flexgen --help.")
    # Imported late: a usage message must not wait for torch.
    from flexgen.cli.compose import load_config

    config = load_config(command, overrides)
    if "--config" in flags:
        print(OmegaConf.to_yaml(config), end="")
        return 0
    importlib.import_module(f"flexgen.cli.{command}").run(config)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
