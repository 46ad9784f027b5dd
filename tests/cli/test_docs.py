"""The commands that the page and the help show are ones that the command takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from flexgen.cli.compose import config_dir
from flexgen.cli.help import groups, options
from flexgen.cli.main import COMMANDS, main

PAGE = (Path(__file__).parents[2] / "docs" / "command.md").read_text()
TEXTS = {
    "docs/command.md": "\n".join(re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)).replace("\\\n", " "),
    **{path.name: path.read_text() for path in sorted(config_dir().rglob("*.yaml"))},
    "usage": "\n".join(COMMANDS.values()),
}
SHOWN = sorted(
    {
        found
        for text in TEXTS.values()
        for found in re.findall(
            r"^(?:#|.*:)? *(flexgen +(?:train|impute|sample|video|render)\b.*)$", text, flags=re.MULTILINE
        )
    }
)


def test_there_are_commands_to_check():
    assert len(SHOWN) > 12


@pytest.fixture
def beside_the_pages_files(tmp_path, monkeypatch):
    """A folder with the files that the page shows."""
    shown = re.findall(r"`(my_configs/[\w/]+\.yaml)`.*?```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(shown) == 2
    for path, text in shown:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("beside_the_pages_files")
@pytest.mark.parametrize("shown", SHOWN)
def test_a_command_that_is_shown_composes(shown, capsys):
    assert main([*shlex.split(shown)[1:], "--config"]) == 0, capsys.readouterr().err


@pytest.mark.usefixtures("beside_the_pages_files")
def test_the_pages_own_options_do_what_it_says(capsys):
    words = ["train", "--config-dir", "my_configs", "data=iris", "output=x", "law=half", "model=wide", "--config"]
    assert main(words) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["law"] == {"_target_": "samplers.laws.Bernoulli", "rate": 0.5, "weight": "one"}
    assert config["model"]["width"] == 512
    assert config["model"]["small_width"] == 128
    assert main(["train", "--config-dir=my_configs", "--help"]) == 0
    assert "half of the entries asked for" in capsys.readouterr().out


def test_the_page_names_the_groups_and_their_options():
    for command in ("train", "sample", "video"):
        for group in groups(command):
            assert f"| `{group}` |" in PAGE
    for group in ("model", "training", "sampler", "plan"):
        assert all(f"`{option}`" in PAGE for option in options(group)), group
