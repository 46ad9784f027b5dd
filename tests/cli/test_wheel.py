"""What is installed: the wheel holds both packages and the configs, and its command runs away from the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flexgen.cli.compose import config_dir
from flexgen.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, ROOT]
    done = subprocess.run(
        [*map(str, command), "--disable-pip-version-check"], capture_output=True, text=True, check=False
    )
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
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "samplers.laws.mae" in done.stdout
