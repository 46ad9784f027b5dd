"""The page on writing a conditional runs, and what it trains is what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flexgen as fg

PAGE = Path(__file__).parents[1] / "docs" / "conditionals.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's code leaves."""
    left: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), left)
    return left


def weather_log_prob(x: Tensor) -> Tensor:
    """log p of the page's rows: three kinds, the first uniform, each next one the same with chance .6 + .4 / 3."""
    same = x[:, 1:] == x[:, :-1]
    steps = torch.where(same, 0.6 + 0.4 / 3, 0.4 / 3)
    return torch.log(torch.tensor(1 / 3)) + steps.log().sum(-1)


def test_the_categorical_network_learns_its_law(names: dict[str, Any]) -> None:
    truth = weather_log_prob(names["held_out"])
    assert names["nats"].shape == (500,)
    assert -0.1 < float(names["nats"].double().mean() - truth.mean()) < 0.02  # independent days lose 1.6 nats
    draws = names["chains_of_weather"].draws.flatten(0, 1).long()
    assert abs(float(weather_log_prob(draws).mean() - truth.mean())) < 0.4
    assert names["report"].verdict == "refuted"
    assert torch.equal(names["filled"][:, [0, 1, 4, 5]], names["x"][:4, [0, 1, 4, 5]])


def test_the_real_network_learns_its_law(names: dict[str, Any]) -> None:
    y, gaussian, real = names["y"], names["gaussian"], names["real"]
    query = fg.Query.complete(0, num_sites=3)
    with torch.no_grad():
        learned = real.marginals(y, query).log_prob(y)[:, 0].double()
    gap = gaussian.marginals(y.double(), query).log_prob(y.double())[:, 0] - learned
    assert -0.02 < float(gap.mean()) < 0.02  # without the other two sites: 0.53 nats
    assert (names["chains"].draws.flatten(0, 1).T.corrcoef() - names["covariance"]).abs().max() < 0.1


def test_the_machine_samples_its_blocks(names: dict[str, Any]) -> None:
    """At weights near zero hidden and visible sites are fair coins, and the refusal says what is answered."""
    states = names["states"]
    assert states.shape == (100, 40)
    assert abs(float(states.double().mean()) - 0.5) < 5 * 0.5 / 4000**0.5 * 2  # the weights correlate the sites
    query = fg.Query.of([0, 1], [2, 3], num_sites=40)
    with pytest.raises(fg.errors.UnsupportedQueryError, match="answers only sites of one of its 2 blocks"):
        names["machine"].log_prob(states, query)


def test_the_pages_it_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(links) > 4
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
