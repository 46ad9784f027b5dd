"""The page on laws runs, and names every public law."""

from __future__ import annotations

import re
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from samplers import laws

PAGE = (Path(__file__).parents[2] / "docs" / "laws.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_code_of_the_page_runs() -> None:
    code = "\n".join(blocks("python")).replace("torch.rand(256, 12)", "torch.ones(256, 12)")  # no global randomness
    names: dict[str, object] = {}
    exec(code, names)
    assert repr(laws.mae()) in PAGE


def test_the_config_of_the_page_builds() -> None:
    (config,) = blocks("yaml")
    assert instantiate(OmegaConf.create(config), _convert_="all")["law"] == laws.Bernoulli(laws.Beta(1, 4))


def test_the_page_names_every_law() -> None:
    abstract = {"Exchangeable", "Groups", "Law", "Rate", "Size", "Support", "Weight"}
    assert [name for name in laws.__all__ if name not in abstract and name not in PAGE] == []
