"""The package as a whole: its floors, its lazy imports, its errors."""

import pickle
import subprocess
import sys

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


def test_every_public_name_loads():
    for name in fg.__all__:
        assert getattr(fg, name) is not None
    assert dir(fg) == sorted(fg.__all__)


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Tablemodel'; its public names are .*TableModel"):
        fg.Tablemodel  # noqa: B018


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_are_value_errors_that_travel_between_processes(name):
    error = getattr(errors, name)("steps", "is -1", "Pass a positive number.")
    assert isinstance(error, ValueError)
    assert str(error) == "steps: is -1. Pass a positive number."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
