"""The package as a whole: its floors, its lazy imports, its errors."""

import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import flexgen as fg
from flexgen import errors


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_flexgen_alone_is_light():
    modules = imported_by("import flexgen")
    assert not modules & {"torch", "pandas", "diffusers", "sklearn", "matplotlib"}


def test_importing_samplers_pulls_in_floor_0_alone():
    above = ("flexgen.exact", "flexgen.networks", "flexgen.training", "flexgen.data", "flexgen.table_model")
    modules = imported_by("import samplers; from samplers import GibbsSampler, laws, scans, run")
    assert not modules & {*above, "pandas", "sklearn", "diffusers", "accelerate", "arviz"}


def test_floors_are_kept():
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


LAZY = [
    "flexgen",
    "flexgen.adapters",
    "flexgen.compatibility",
    "flexgen.compatibility.repair",
    "flexgen.networks",
    "flexgen.video",
    "samplers",
]


def test_lazy_packages_are_those_with_a_stub():
    root = Path(fg.__file__).parents[1]
    stubs = [
        path.parent.relative_to(root) for package in ("flexgen", "samplers") for path in (root / package).rglob("*.pyi")
    ]
    assert sorted(".".join(path.parts) for path in stubs) == LAZY


@pytest.mark.parametrize("package", LAZY)
def test_every_public_name_loads(package):
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__) > 2
    for name in module.__all__:
        found = getattr(module, name)
        assert found is not None
        if inspect.ismodule(found):
            assert found.__name__ == f"{package}.{name}"
        elif inspect.isclass(found) or inspect.isfunction(found):
            assert found.__name__ == name
    scope: dict[str, object] = {}
    exec(f"from {package} import *", scope)
    assert set(module.__all__) <= set(scope)


def test_the_type_checker_sees_the_names(tmp_path):
    lines = [f"from {package} import {name}" for package in LAZY for name in importlib.import_module(package).__all__]
    (tmp_path / "user.py").write_text("\n".join([*lines, "from flexgen import Tablemodel", ""]))
    root = Path(fg.__file__).parents[1]
    stubs = [str(root / package.replace(".", "/") / "__init__.pyi") for package in LAZY]
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--follow-imports=skip", "--no-incremental"]
    done = subprocess.run([*command, "user.py", *stubs], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.count(" error: ") == 1, done.stdout
    assert 'has no attribute "Tablemodel"' in done.stdout


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Tablemodel'; its public names are .*TableModel"):
        fg.Tablemodel  # noqa: B018


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_are_value_errors_that_travel_between_processes(name):
    error = getattr(errors, name)("steps", "is -1", "Pass a positive number.")
    assert isinstance(error, ValueError)
    assert str(error) == "steps: is -1. Pass a positive number."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
