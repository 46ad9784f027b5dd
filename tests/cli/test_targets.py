"""What a config may not name, however it is wrapped."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from flexgen.cli.compose import build
from flexgen.cli.main import main
from flexgen.errors import ConfigError
from samplers import laws

HOSTILE = [
    "os.unlink",
    "os.system",
    "pathlib.Path.unlink",
    "shutil.rmtree",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "flexgen.rng.torch.load",
    "flexgen.table_model.torch.load",
    "flexgen.table_model.TableModel.from_pretrained",
    "flexgen.training.write_checkpoint",
    "samplers.laws.base.torch.load",
    "samplers.laws.__init__",
    "samplers.scans.torch",
    "builtins.eval",
    "builtins.__import__",
    "eval",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "antigravity.webbrowser",
    "",
]


def wrapped(target: object) -> dict[str, object]:
    """A config that names the target at every place that Hydra would look at."""
    bad = {"_target_": target, "path": "x"}
    law = {"_target_": "samplers.laws.Bernoulli", "rate": 0.5}
    return {
        "top": bad,
        "argument": {**law, "rate": bad},
        "deep": {**law, "rate": {"_target_": "samplers.laws.Beta", "a": {"b": bad}}},
        "list": {"_target_": "samplers.laws.Mixture", "laws": [law, [bad]]},
        "positional": {"_target_": "samplers.laws.Swap", "_args_": [bad]},
    }


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("place", ["top", "argument", "deep", "list", "positional"])
@pytest.mark.parametrize("as_config", [True, False], ids=["config", "dict"])
def test_hostile_targets_are_refused_by_text(place, target, as_config):
    config = wrapped(target)[place]
    with pytest.raises(
        ConfigError, match=r"^law\..*(_target_: is .*Allowed are public names of|_args_: is .*Remove it)"
    ):
        build(OmegaConf.create(config) if as_config else config, at="law")


@pytest.mark.parametrize("target", [5, ["os.unlink"], {"_target_": "os.unlink"}, None])
def test_targets_that_are_no_text_are_refused(target):
    with pytest.raises(ConfigError, match=r"^law\._target_: is .*Allowed are"):
        build({"_target_": target}, at="law")


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_"])
def test_hydras_other_special_keys_are_refused(key):
    config = {"_target_": "samplers.laws.Swap", "law": {"_target_": "samplers.laws.mae", key: True}}
    with pytest.raises(ConfigError, match=rf"^law\.law\.{key}: is True. Remove it: {key} is not allowed"):
        build(config, at="law")


def test_an_interpolated_target_is_not_resolved():
    config = OmegaConf.create({"a": "samplers.laws", "law": {"_target_": "${a}.mae"}})
    with pytest.raises(ConfigError, match=r"^law\._target_: is '\$\{a\}\.mae'\. Write the value itself"):
        build(config.law, at="law")


def test_hydra_alone_would_have_called_one(tmp_path):
    """The check is what stands between a config and the call: without it the same config acts."""
    config = {"_target_": "pathlib.Path", "_args_": [str(tmp_path)]}
    assert instantiate(config) == tmp_path
    with pytest.raises(ConfigError, match=r"Remove it|Allowed are"):
        build(config)


def test_refused_targets_are_never_imported(tmp_path):
    (tmp_path / "hostile.py").write_text("raise SystemExit('imported')")
    code = """
from flexgen.cli.main import main
for at in ("law._target_=hostile.act", "+law.law={_target_: hostile.act}",
           "data._target_=hostile.act", "data._target_=antigravity.webbrowser"):
    assert main(["train", "data=iris", "output=x", at]) == 2, at
import sys
assert "hostile" not in sys.modules and "antigravity" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Allowed are public names of") == 4
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.py"]


def test_the_command_refuses_a_hostile_target_without_touching_the_file(tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.write_text("")
    words = ["train", "data=iris", f"output={tmp_path / 'model'}", "law=any_order"]
    assert main([*words, "law._target_=os.unlink", f"+law.path={victim}"]) == 2
    assert victim.exists()
    assert not (tmp_path / "model").exists()
    assert "law._target_: is 'os.unlink'" in capsys.readouterr().err


def test_allowed_targets_build_nested():
    config = {"_target_": "samplers.laws.Bernoulli", "rate": {"_target_": "samplers.laws.Beta", "a": 1, "b": 4}}
    assert build(config) == laws.Bernoulli(laws.Beta(1, 4))
    assert build(None) is None


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"rate": 0.5}, r"^law: is \{'rate': 0\.5\}\. Give a mapping with a _target_"),
        ("mae", r"^law: is 'mae'\. Give a mapping"),
        (
            {"_target_": "samplers.laws.mae", "share": 1},
            r"^law: cannot be built: .*unexpected keyword argument 'share'",
        ),
        ({"_target_": "samplers.laws.mae", "rate": 7}, r"^law\.rate: is 7.*Pass a number between 0 and 1"),
        ({"_target_": "samplers.laws.Law"}, r"^law: cannot be built: .*abstract"),
    ],
)
def test_what_cannot_be_built_is_explained(config, text):
    with pytest.raises(ConfigError, match=text) if "rate: is 7" not in text else pytest.raises(ValueError, match=text):
        build(config, at="law")
