"""Configurations: composed by Hydra from configs/, objects built from an allow-list of targets."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flexgen.errors import ConfigError

__all__ = ["ALLOWED_MODULES", "build", "config_dir", "load_config", "options"]

# Hydra's `_target_` can name anything that is importable, `os.unlink` and `torch.load` included. A config may only name
# what one of these modules exports in its __all__.
ALLOWED_MODULES = (
    "flexgen.data.tables",
    "flexgen.networks",
    "flexgen.table_model",
    "flexgen.training",
    "samplers.any_order",
    "samplers.gibbs",
    "samplers.laws",
    "samplers.parallel",
    "samplers.scans",
)


def config_dir() -> Path:
    """The folder of the YAML files: inside the package when installed, beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError("configs", f"are neither in {package} nor beside it", "Reinstall flexgen-samplers.")


def options(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The composed configuration of a command.

    Args:
        name: a file of configs/, without its suffix.
        overrides: Hydra's, ``group=option`` or ``key.path=value``.

    Raises:
        ConfigError: an override that does not parse, an unknown key or option.
    """
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(name, overrides=list(overrides))
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            "overrides", reason, f"See `flexgen {name} --config` for the keys and their values."
        ) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError("overrides", f"leave out {', '.join(missing)}", f"Add {missing[0]}=... to the command.")
    return config


def build(config: Any) -> Any:
    """The object that a config describes, after checking every `_target_` in it against the allow-list."""
    for target in _targets(config):
        module, _, name = target.rpartition(".")
        if module not in ALLOWED_MODULES or name not in getattr(importlib.import_module(module), "__all__", ()):
            raise ConfigError(
                "_target_", f"is {target!r}", f"Allowed are public names of {', '.join(ALLOWED_MODULES)}."
            )
    try:
        return instantiate(config, _convert_="all")
    except HydraException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError):
            raise cause from error
        reason = " ".join(str(cause).split()).rstrip(".")
        raise ConfigError("config", reason, "See --config for what is passed.") from error


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, DictConfig | ListConfig):
        config = OmegaConf.to_container(config, resolve=True)
    if isinstance(config, dict):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from _targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from _targets(value)
