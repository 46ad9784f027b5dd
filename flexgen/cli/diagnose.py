"""``flexgen diagnose``: how far a saved model's conditionals are from having a joint, printed and as a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flexgen import saving
from flexgen.cli.files import load_model, read_input, require_file, require_free, require_model
from flexgen.cli.parameters import read
from flexgen.errors import ConfigError, DataError

__all__ = ["run"]


@dataclass(frozen=True)
class Parameters:
    """The keys of configs/diagnose.yaml."""

    model: Path
    input: Path
    output: Path
    save: Path | None
    budget: str
    margin: float | None
    sites: tuple[str, ...] | None
    level: float
    seed: int
    batch_size: int | None
    dry_run: bool
    overwrite: bool

    def __post_init__(self) -> None:
        for name, path, suffix in (("output", self.output, ".html"), ("save", self.save, ".safetensors")):
            if path is not None and path.suffix != suffix:
                raise ConfigError(name, f"is {str(path)!r}, which does not end in {suffix}", f"Name a {suffix} file.")


def run(config: DictConfig) -> None:
    """Config: configs/diagnose.yaml."""
    chosen = read(Parameters, config)
    files = {name: path for name, path in (("output", chosen.output), ("save", chosen.save)) if path is not None}
    if not chosen.dry_run:
        for name, path in files.items():
            if path.is_dir():
                raise ConfigError(name, f"is {str(path)!r}, a folder", "Name a file.")
            require_free(path, argument=name, overwrite=chosen.overwrite)
    require_model(chosen.model)
    require_file(chosen.input, argument="input")
    from flexgen.checks import renamed
    from flexgen.diagnosis import diagnose

    model = load_model(chosen.model)
    data = read_input(chosen.input, argument="input", model=model)
    options: dict[str, Any] = {
        "budget": int(chosen.budget) if chosen.budget.isdecimal() else chosen.budget,
        "sites": chosen.sites,
        "margin": chosen.margin,
        "level": chosen.level,
        "batch_size": chosen.batch_size,
        "generator": chosen.seed,
    }
    if chosen.dry_run:
        print(diagnose(model, data, dry_run=True, **options))
        return
    report = diagnose(model, data, **options)
    print(report)
    for name, path in files.items():
        with saving.writing(name, path, DataError):
            path.parent.mkdir(parents=True, exist_ok=True)
    with renamed(path="output"):
        written = [str(report.to_html(chosen.output))]
    if chosen.save is not None:
        with renamed(path="save"):
            written.append(str(report.save(chosen.save)))
    print(f"saved to {' and '.join(written)}")
