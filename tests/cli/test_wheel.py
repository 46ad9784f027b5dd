"""What is installed: packages, configs and the example. The command and the example are found from any folder."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flexgen.cli.compose import config_dir
from flexgen.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel that is built from the source distribution, as `python -m build` does, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    done = run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, sdist, cwd=folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_packages_configs_and_markers(installed):
    for package in ("flexgen", "samplers"):
        sources = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert sources == {path.relative_to(installed) for path in (installed / package).rglob("*.py")}
        assert (installed / package / "py.typed").is_file()
    files = {path.relative_to(config_dir()) for path in config_dir().rglob("*.yaml")}
    packed = installed / "flexgen" / "_configs"
    assert files == {path.relative_to(packed) for path in packed.rglob("*.yaml")}
    example = {path.relative_to(ROOT / "checkpoints") for path in (ROOT / "checkpoints").rglob("*")}
    packed = installed / "flexgen" / "_checkpoints"
    assert Path("mazes32/backbone.json") in example
    assert example == {path.relative_to(packed) for path in packed.rglob("*")}
    assert {path.name for path in installed.iterdir()} - {"flexgen", "samplers"} == {
        path.name for path in installed.glob("*.dist-info")
    }
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "flexgen = flexgen.cli.main:main" in entry_points.read_text()


def test_the_installed_command_finds_its_configs(installed, tmp_path):
    code = f"""
import flexgen, samplers
from pathlib import Path
from flexgen.cli.compose import config_dir
from flexgen.cli.main import main
site = Path({str(installed)!r})
assert Path(flexgen.__file__).is_relative_to(site) and Path(samplers.__file__).is_relative_to(site)
assert config_dir() == site / "flexgen" / "_configs"
for command in {[name for name in COMMANDS if (config_dir() / f"{name}.yaml").is_file()]!r}:
    assert main([command, "--config"]) == 0 and main([command, "--help"]) == 0
assert main(["train", "--config", "experiment=iris", "law=mae"]) == 0
"""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "samplers.laws.mae" in done.stdout


def test_the_metadata_name_authors_and_the_readme_without_dead_links(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "\nAuthor: The flexgen developers\n" in text
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = r"\]\((?!https?:)"
    assert re.findall(relative, page)
    assert not re.findall(relative, text)
    for path in re.findall(r"\]\((docs/[^)#]+\.md)\)", page):
        assert path in text
    assert re.findall(r"```python\n(.*?)```", text, re.DOTALL) == re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_with_a_home_the_links_lead_there():
    """[project.urls] Source makes the README's links absolute; until there is one, they are names of files."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = hook.for_an_index(page, "https://example.org/flexgen/", "1.2")
    links = [found for found in re.findall(r"\]\(([^)]+)\)", shown) if not found.startswith("#")]
    assert all(link.startswith(("https://", "http://")) for link in links)
    assert "](https://example.org/flexgen/blob/v1.2/docs/command.md)" in shown
    assert "![Real rows" in shown
    assert "](https://example.org/flexgen/raw/v1.2/docs/images/demo_pairs.png)" in shown
    for path in re.findall(r"example\.org/flexgen/(?:raw|blob)/v1\.2/([^)#]+)", shown):
        assert (ROOT / path).exists(), path


def test_the_example_is_found_by_name(installed, tmp_path):
    code = f"""
import flexgen as fg
from pathlib import Path
pipe = fg.VideoPipeline.from_pretrained("mazes32")
out = pipe("mazes32/held_out.mp4", num_observed=12, num_frames=14, num_inference_steps=1, generator=0)
assert out.frames.shape == (14, 32, 32, 3)
assert fg.data.example("mazes32") == Path({str(installed)!r}) / "flexgen/_checkpoints/mazes32"
"""
    done = run(sys.executable, "-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
