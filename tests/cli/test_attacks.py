"""No value of a configuration runs code, imports a module, or reads or writes a file.

A payload is a mapping whose `_target_` acts if it is ever called: it calls a function of a foreign module, imports one,
unpickles, touches, reads or removes a file. A delivery hides it in a configuration: nested, in lists, as a text in
``${...}`` behind any number of escapes, behind a reference, a tag, an alias, a list of defaults. An audit hook sees
what the interpreter does, whichever library does it. The builder that this package had, a check followed by Hydra's
`instantiate`, stands beside ours to show that the deliveries work and the hook sees them.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flexgen.cli.compose import ALLOWED_MODULES, build, config_dir, load_config
from flexgen.cli.main import main
from flexgen.errors import ConfigError, FlexgenError

SECRET = "secret-of-the-environment"

# What the interpreter reports while `watched`; a hook can be added but never removed.
_seen: list[str] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    told = repr(args)
    if event in ("import", "os.listdir"):  # of any import, as the scene is on the path
        is_act = args[0] == "hostile_file"
    else:
        is_act = event.startswith(("pickle.", "subprocess.", "os.system", "os.exec")) or "scene-of-the-crime" in told
    if is_act:
        _seen.append(f"{event} {told[:200]}")


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[str]]:
    """What was done in this time that no configuration may do."""
    global _seen
    _seen = seen = []
    try:
        yield seen
    finally:
        _seen = None


def record(*args: Any, **kwargs: Any) -> str:
    """The foreign function; its calls are acts."""
    if _seen is not None:
        _seen.append(f"called with {args!r} {kwargs!r}"[:200])
    return "0.5"


class Unpickled:
    def __reduce__(self) -> Any:
        return record, ()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files to read, remove and unpickle, and foreign modules: one that is loaded and one that is not."""
    folder = tmp_path_factory.mktemp("scene-of-the-crime")
    (folder / "hostile_file.py").write_text("def act(**_):\n    return 0.5\n")
    loaded = types.ModuleType("hostile_loaded")
    loaded.act = record  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hostile_loaded", loaded)
        patch.setattr(record, "__module__", "hostile_loaded")
        patch.setattr(record, "__qualname__", "act")
        patch.setattr(record, "__name__", "act")
        patch.syspath_prepend(str(folder))
        patch.setenv("FLEXGEN_SECRET", SECRET)
        patch.chdir(folder)
        (folder / "data.pkl").write_bytes(pickle.dumps(Unpickled()))
        for module in ALLOWED_MODULES:
            importlib.import_module(module)
        yield folder


def restored(scene: Path) -> None:
    """The scene as it was, after a wrong builder has been at it."""
    sys.modules.pop("hostile_file", None)
    for path in scene.iterdir():
        if path.name not in ("hostile_file.py", "data.pkl", "__pycache__"):
            path.unlink() if path.is_file() else path.rmdir()
    (scene / "victim").write_text("here")


def payloads(scene: Path) -> dict[str, dict[str, Any]]:
    """Mappings that act when they are instantiated. What they do stays inside the scene."""
    made, victim, pickled = (str(scene / name) for name in ("made", "victim", "data.pkl"))
    return {
        "foreign call": {"_target_": "hostile_loaded.act", "a": 1},
        "import": {"_target_": "hostile_file.act"},
        "touch": {"_target_": "pathlib.Path.touch", "self": made},
        "unlink": {"_target_": "pathlib.Path.unlink", "self": victim},
        "os.unlink": {"_target_": "os.unlink", "path": victim},
        "truncate": {"_target_": "os.truncate", "path": victim, "length": 0},
        "read": {"_target_": "zipfile.is_zipfile", "filename": victim},
        "copy": {"_target_": "shutil.copyfile", "src": victim, "dst": made},
        "mkdir": {"_target_": "os.mkdir", "path": made},
        "rename": {"_target_": "os.rename", "src": victim, "dst": made},
        "read_pickle": {"_target_": "pandas.read_pickle", "filepath_or_buffer": pickled},
        "joblib": {"_target_": "joblib.load", "filename": pickled},
        "numpy": {"_target_": "numpy.load", "file": pickled, "allow_pickle": True},
        "torch": {"_target_": "torch.load", "f": pickled, "weights_only": False},
        "get_object": {"_target_": "hydra.utils.get_object", "path": "hostile_file.act"},
        "import_module": {"_target_": "importlib.import_module", "name": "hostile_file"},
        "run_path": {"_target_": "runpy.run_path", "path_name": str(scene / "hostile_file.py")},
        "run_module": {"_target_": "runpy.run_module", "mod_name": "hostile_file"},
        "pickle by an allowed module's name": {
            "_target_": "flexgen.data.tables.pd.read_pickle",
            "filepath_or_buffer": pickled,
        },
    }


def flow(value: Any, quote: str = "") -> str:
    """A value as Hydra's and OmegaConf's grammars write it: ``{key:value,...}``."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{flow(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(flow(item, quote) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{quote}{value}{quote}" if isinstance(value, str) else str(value)


def escaped(text: str, levels: int) -> str:
    """A text that so many resolutions turn into one that the next one evaluates."""
    return "\\" * (2**levels - 1) + text


def interpolation(payload: dict[str, Any], rng: random.Random) -> str:
    """A text that OmegaConf resolves to the payload."""
    created = "${oc.create:" + flow(payload) + "}"
    return rng.choice(
        [
            created,
            created,
            "${oc.create:'" + flow(payload) + "'}",
            "${oc.decode:'" + flow(payload).replace("'", "\\'") + "'}",
            "${oc.create:${oc.decode:'" + flow(payload) + "'}}",
            "${oc.select:nowhere," + flow(payload) + "}",
            "${ oc.create : " + flow(payload) + " }",
        ]
    )


LAW: dict[str, Any] = {"_target_": "samplers.laws.Bernoulli", "rate": 0.5}


def around(value: Any, depth: int, rng: random.Random) -> dict[str, Any]:
    """A law with the value somewhere inside."""
    for _ in range(depth):
        value = rng.choice(
            [
                lambda v: [v],
                lambda v: [0.5, v],
                lambda v: {"inner": v},
                lambda v: {"_target_": "samplers.laws.Share", "rate": v},
                lambda v: {"_target_": "samplers.laws.Beta", "a": 1.0, "b": v},
                lambda v: {"_target_": "samplers.laws.Mixture", "laws": [LAW, v]},
            ]
        )(value)
    return {**LAW, rng.choice(["rate", "rate", "weight", "more"]): value}


def generated(scene: Path, seed: int, count: int, *, most_levels: int = 3) -> Iterator[tuple[str, dict[str, Any]]]:
    """Laws with a payload, as a mapping or as a text."""
    rng = random.Random(seed)
    every = payloads(scene)
    for number in range(count):
        name = rng.choice(sorted(every))
        depth, levels = rng.choice([0, 0, 1, 2, 3]), rng.randint(-1, most_levels)
        # -1: the mapping itself; then a text, behind so many escapes.
        value: Any = every[name] if levels < 0 else escaped(interpolation(every[name], rng), levels)
        if levels < 0 and rng.random() < 0.2:
            value = {**value, rng.choice(["_partial_", "_recursive_", "_convert_"]): rng.choice([True, False, "all"])}
        config = value if isinstance(value, dict) and rng.random() < 0.1 else around(value, depth, rng)
        yield f"{number}: {name}, {depth} deep, {levels} escapes", config


def checked_then_instantiated(config: Any) -> Any:
    """The builder of old: OmegaConf resolves, the result is checked, and Hydra's instantiate resolves again."""
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)

    def checked(value: Any) -> None:
        if isinstance(value, dict):
            target = value.get("_target_", "samplers.laws.mae")
            if target.rpartition(".")[0] not in ALLOWED_MODULES:
                raise ConfigError("law._target_", f"is {target!r}", "Allowed are others.")
            for item in value.values():
                checked(item)
        elif isinstance(value, list):
            for item in value:
                checked(item)

    checked(config)
    return instantiate(config, _convert_="all")


def acts(builder: Callable[[Any], Any], cases: Iterator[tuple[str, Any]], scene: Path) -> dict[str, list[str]]:
    """The cases in which something was done, and what."""
    found = {}
    for name, case in cases:
        restored(scene)
        with watched() as seen:
            try:
                made = builder(case)
                if "hostile" in repr(made) or SECRET in repr(made):
                    seen.append(f"made {made!r}")
            except FlexgenError as error:
                if SECRET in str(error):
                    seen.append(f"told {error}")
            except Exception as error:
                seen.append(f"raised {error!r}") if builder is not checked_then_instantiated else None
        if seen:
            found[name] = seen
    return found


def by_dict(scene: Path, seed: int, count: int) -> Iterator[tuple[str, Any]]:
    return generated(scene, seed, count)


def by_config(scene: Path, seed: int, count: int) -> Iterator[tuple[str, Any]]:
    """OmegaConf's containers: of the whole, inside a dict, and a node of a larger one with a reference."""
    rng = random.Random(seed)
    for name, case in generated(scene, seed, count):
        form = rng.randrange(3)
        if form == 0:
            yield f"{name}, config", OmegaConf.create(case)
        elif form == 1:
            yield f"{name}, config in a dict", {**LAW, "rate": OmegaConf.create({"inner": case})}
        else:
            larger = {"elsewhere": case, "law": {**LAW, "rate": escaped("${elsewhere}", rng.randrange(3))}}
            yield f"{name}, reference", OmegaConf.create(larger).law


def strict(config: Any) -> Any:
    """Ours; that a payload is built into something is as wrong as that it acts."""
    made = build(config, at="law")
    raise AssertionError(f"built {made!r}")


@pytest.mark.parametrize("deliver", [by_dict, by_config])
def test_no_generated_configuration_acts(deliver: Any, scene: Path) -> None:
    assert acts(strict, deliver(scene, 0, 600), scene) == {}


def test_the_builder_of_old_is_caught_by_the_same_cases(scene: Path) -> None:
    """It must be: no escape is needed in a dict, one level in OmegaConf's containers."""
    found = acts(checked_then_instantiated, by_dict(scene, 0, 600), scene)
    assert len(found) > 60
    kinds = " ".join(act for case in found.values() for act in case)
    for act in ("called with", "exec ", "pickle.find_class", "open ", "os.remove", "os.mkdir", "shutil.copyfile"):
        assert act in kinds, act
    assert len(acts(checked_then_instantiated, by_config(scene, 0, 300), scene)) > 10


KEYS = [
    "law.rate",
    "+law.more",
    "++law.rate",
    "+law.rate._target_",
    "law",
    "++law",
    "law.weight",
    "data.name",
    "++data",
]
KEYS += ["+data.x", "given.a", "kinds.a", "kinds", "model.ridges", "training.lr", "+x", "output", "experiment"]


def commands(scene: Path, seed: int, count: int) -> Iterator[tuple[str, list[str]]]:
    """Overrides of flexgen train that carry a payload."""
    rng = random.Random(seed)
    every = payloads(scene)
    for number in range(count):
        name, levels = rng.choice(sorted(every)), rng.choice([-1, 0, 1, 2, 2, 2, 3])
        payload = every[name]
        text = flow(payload) if levels < 0 else escaped(interpolation(payload, rng), levels)
        text = rng.choice(
            [
                lambda t: t,
                lambda t: "'" + t.replace("'", "\\'") + "'",
                lambda t: '"' + t.replace('"', '\\"') + '"',
                lambda t: f"[{t}]",
                lambda t: "{inner: " + t + "}",
                lambda t: "{_target_: samplers.laws.Share, rate: " + t + "}",
                lambda t: t.replace("{", "\\{").replace("}", "\\}").replace(":", "\\:").replace(",", "\\,"),
                lambda t: f"str({t})",
                lambda t: f"json_str({t})",
            ]
        )(text)
        key = "law.rate" if rng.random() < 0.4 else rng.choice(KEYS)
        yield f"{number}: {name}, {levels} escapes: {key}", ["law=bernoulli", f"{key}={text}"]


def loaded_and_built(overrides: list[str], **options: Any) -> None:
    """What the commands do with their configuration before any work."""
    config = load_config("train", ["data=iris", "output=out", *overrides], **options)
    assert "${" not in OmegaConf.to_yaml(config)
    build(config.law, at="law")
    build(config.data, at="data")


def test_no_override_acts(scene: Path) -> None:
    assert acts(loaded_and_built, commands(scene, 1, 250), scene) == {}


def resolved_and_instantiated(overrides: list[str]) -> None:
    """The command of old."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides=["data=iris", "output=out", *overrides])
    OmegaConf.resolve(config)
    checked_then_instantiated(config.law)


def test_the_command_of_old_is_caught_by_the_same_overrides(scene: Path) -> None:
    found = {}
    for name, case in commands(scene, 1, 250):
        restored(scene)
        with watched() as seen, contextlib.suppress(Exception):
            resolved_and_instantiated(case)
        if seen:
            found[name] = seen
    assert len(found) >= 4


def attacks(scene: Path) -> dict[str, list[str]]:
    """The forms by name, as words of a command."""
    act = "{_target_:hostile_loaded.act}"
    made = scene / "made"
    return {
        "escaped oc.create": ["law=bernoulli", "law.rate='\\\\\\${oc.create:" + act + "}'"],
        "oc.create": ["law=bernoulli", "law.rate='${oc.create:" + act + "}'"],
        "oc.create without quotes": ["law=bernoulli", "law.rate=${oc.create:" + act + "}"],
        "oc.decode": ["law=bernoulli", "law.rate='${oc.decode:" + act + "}'"],
        "oc.select with a default": ["law=bernoulli", "law.rate='${oc.select:x," + act + "}'"],
        "escaped braces": ["law=bernoulli", "law.rate=$\\{oc.create\\:" + act.replace("{", "\\{") + "\\}"],
        "a whole law": ["law='${oc.create:" + act + "}'"],
        "in a list": ["law=bernoulli", "law.rate=['${oc.create:" + act + "}']"],
        "in a key": ["law=bernoulli", "law.rate={'${oc.env:FLEXGEN_SECRET}': 1}"],
        "environment": ["law=bernoulli", "law.rate='${oc.env:FLEXGEN_SECRET}'"],
        "environment in a path": ["output='${oc.env:FLEXGEN_SECRET}'"],
        "environment in a column's value": ["kinds.a=${oc.env:FLEXGEN_SECRET}"],
        "environment of an absent key": ["output='${oc.env:NOWHERE,x}'"],
        "hydra resolver": ["output='${hydra:runtime.cwd}'"],
        "now resolver": ["output='${now:%Y}'"],
        "another key": ["output='${data.name}'"],
        "a reference in the target": ["law._target_='${data.name}'"],
        "target of another module": ["law._target_=hostile_loaded.act"],
        "target of a file": ["law._target_=hostile_file.act"],
        "target inside": ["law=bernoulli", "law.rate={_target_:pathlib.Path.touch,self:" + str(made) + "}"],
        "positional arguments": ["law._target_=pathlib.Path", "+law._args_=[x]"],
        "partial": ["+law._partial_=true"],
        "convert": ["+law._convert_=all"],
        "recursive": ["+law._recursive_=false"],
        "search path": [f"hydra.searchpath=[file://{scene}]", "law=foreign"],
        "added search path": [f"+hydra.searchpath=[file://{scene}]"],
        "hydra key": [f"hydra.run.dir={made}"],
        "hydra group": ["hydra/job_logging=none"],
        "added hydra group": ["+hydra/launcher=basic"],
        "hydra itself": ["hydra=null"],
        "deleted hydra": ["~hydra"],
        "hydra mode": ["hydra.mode=MULTIRUN"],
        "package": ["law@data=mae"],
        "added package": ["+law@_global_=mae"],
        "package of hydra": ["+law@hydra.job=mae"],
        "option by a path": [f"law={scene}/foreign"],
        "option by a relative path": ["law=../data/iris"],
        "list of options": ["law=[mae,fdm]"],
        "added option by a path": [f"+law={scene}/foreign"],
        "deleted group": ["~law"],
        "allowed target, other kind": ["law._target_=flexgen.data.tables.table_names"],
        "allowed module, not exported": ["law._target_=flexgen.data.tables.pd.read_pickle", "+law.filepath=x"],
        "method of an export": ["law._target_=flexgen.table_model.TableModel.from_pretrained", "+law.folder=x"],
        "module of a module": ["law._target_=samplers.laws.base.torch.load"],
        "dunder": ["law._target_=samplers.laws.__builtins__"],
        "no text as a target": ["law._target_=[hostile_loaded.act]"],
    }


FORMS = sorted(attacks(Path("x")))


def test_there_are_forms_enough() -> None:
    assert len(FORMS) >= 25


@pytest.mark.parametrize("form", FORMS)
def test_an_attack_is_refused_by_one_line(form: str, scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    restored(scene)
    (scene / "foreign.yaml").write_text("_target_: hostile_loaded.act\n")
    before = sorted(path.name for path in scene.iterdir())
    with watched() as seen:
        assert main(["train", "data=iris", f"output={scene}/out", *attacks(scene)[form]]) == 2
    told = capsys.readouterr().err
    assert seen == []
    assert told.startswith("flexgen train: ")
    assert told.count("\n") == 1
    assert SECRET not in told
    assert sorted(path.name for path in scene.iterdir()) == before


def test_what_is_refused_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        (["law=bernoulli", "law.rate='\\${oc.create:{a:1}}'"], "law.rate: is "),
        (["law=bernoulli", "law.rate='${oc.env:HOME}'"], "law.rate: is "),
        (["kinds.a=${oc.env:HOME}"], "kinds.a: is '"),
        (["law=bernoulli", "law.rate=$\\{oc.env\\:HOME\\}"], "law.rate: is '${oc.env:HOME}'. Write the value itself: "),
        (["hydra.run.dir=x"], "hydra.run.dir: is a key of Hydra's own. Remove it"),
        (["hydra/launcher=basic"], "hydra/launcher: names a package. Write group=option or key.path=value."),
        (["law@data=mae"], "law@data: names a package."),
        (["law=../data/iris"], "law: has no option '../data/iris'. Choose one of any_order"),
        (["law=[mae]"], "law: has no option ['mae']. Choose"),
        (["law=null"], "law: is null. Choose one of any_order"),
        (["data=null"], "data: is null. Choose one of"),
        (["model=null"], "model: is null. Choose one of"),
        (["~law=power_cardinality"], "law: cannot be deleted. Choose one of"),
        (["law=mac", "law._target_=samplers.scans.random"], "which makes a RandomSite. Name what"),
        (["law=bernoulli", "law.rate={_target_:samplers.laws.Beta,a:-1,b:1}"], "law.rate.a: is -1"),
        (["law={1: 2}"], "law: has the key 1. Keys are texts"),
        (["output=a\0b"], "output: is 'a\\x00b', with a NUL character. Remove it."),
        (["output=\udcff"], "output: is '\\udcff', which is no UTF-8."),
        ([f"output={'x' * 5000}"], "cannot be looked for: File name too long. Name another path."),
        ([f"output={'x' * 100_001}"], "output: holds a text of 100001 letters. Pass at most 100000."),
        ([f"data.drop={'[' * 40}{']' * 40}"], "data.drop: is '"),
        ([f"kinds.a={'[' * 5000}"], "kinds.a: is '"),
        (["seed=.nan"], "seed: is '.nan'. Pass a whole number."),
        (["seed=nan"], "seed: is nan. Pass a whole number."),
        (["seed=inf"], "seed: is inf. Pass a whole number."),
        (["seed=1e30"], "seed: is 1e+30. Pass a whole number."),
        ([f"seed={'9' * 25}"], "seed: is a whole number of more than 64 bits. Pass a smaller one."),
        ([f"seed={'9' * 5000}"], "seed: is '9999"),
        (["training.lr=nan"], "training.lr: is nan. Pass a number above 0."),
        (["kinds=null", "kinds.a=real"], "kinds: is None. Leave it out, or kinds.a."),
        (["output=~nobody-of-this-name/x"], "cannot be looked for: Could not determine home directory"),
    ):
        assert main(["train", "data=iris", "output=nowhere/out", *words]) == 2, words
        told = capsys.readouterr().err
        assert text in told, (words, told)
        assert told.count("\n") == 1


def test_the_allow_list_holds_only_our_own() -> None:
    """Of every name that a configuration may call: it is defined in this package, or an annotation."""
    for module in map(importlib.import_module, ALLOWED_MODULES):
        for name in module.__all__:
            exported = getattr(module, name)
            if isinstance(exported, type | types.FunctionType):
                assert exported.__module__.partition(".")[0] in ("flexgen", "samplers"), f"{module.__name__}.{name}"
            else:
                with pytest.raises(ConfigError, match="cannot be built"):
                    build({"_target_": f"{module.__name__}.{name}"})


@pytest.mark.parametrize("depth", [33, 100_000])
def test_too_deep_is_named(depth: int) -> None:
    value: Any = 0.5
    for _ in range(depth):
        value = [value]
    with pytest.raises(ConfigError, match=r"^law: is more than 32 levels deep"):
        build({**LAW, "rate": value}, at="law")


def test_a_configuration_inside_itself_is_named() -> None:
    config: dict[str, Any] = {**LAW}
    config["rate"] = config
    with pytest.raises(ConfigError, match=r"^law: is more than 32 levels deep"):
        build(config, at="law")


@pytest.mark.parametrize("value", [record, Unpickled, b"x", {1, 2}, object(), {1: 2}, {None: 1}, {(1,): 2}, 2**70])
def test_other_values_are_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^law\.rate: (is a |has the key )"):
        build({**LAW, "rate": value}, at="law")


def test_what_a_mapping_says_is_read_once() -> None:
    """What is checked is what is built, whatever the mapping says when it is asked again."""

    class TwoFaced(dict):  # type: ignore[type-arg]
        asked = 0

        def items(self) -> Any:
            TwoFaced.asked += 1
            return (LAW if TwoFaced.asked == 1 else {"_target_": "hostile_loaded.act"}).items()

    assert repr(build(TwoFaced(LAW))).startswith("Bernoulli")
    assert TwoFaced.asked == 1


# Options of the user's own, in a folder of --config-dir.

FILES = {
    "no mapping": "- 1\n",
    "no YAML": "rate: [0.5\n",
    "python tag": "rate: !!python/object/apply:hostile_loaded.act []\n",
    "python name": "rate: !!python/name:hostile_loaded.act\n",
    "own tag": "rate: !act 1\n",
    "binary": "rate: !!binary aGVsbG8=\n",
    "aliases": "a: &a [1]\nrate: *a\n",
    "a tree of aliases": "a: &a [1,1]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(20)),
    "deep": "rate: " + "[" * 5000 + "]" * 5000 + "\n",
    "two documents": "rate: 1\n---\nrate: 2\n",
    "a key twice": "rate: 1\nrate: 2\n",
    "a key that is no text": "rate: {1: 2}\n",
    "NUL": 'rate: "a\\0b"\n',
    "large number": "rate: 0x" + "f" * 5000 + "\n",
    "hydra": "_target_: samplers.laws.mae\nhydra: {run: {dir: x}}\n",
    "package of hydra": "# @package hydra.job\nname: x\n",
    "package": "# @package data\nname: wine\n",
    "defaults of hydra": "defaults:\n  - override /hydra/job_logging: none\n_target_: samplers.laws.mae\n",
    "defaults by a path": "defaults:\n  - ../data/iris\n",
    "defaults by interpolation": "defaults:\n  - ${oc.env:FLEXGEN_SECRET}\n",
    "defaults of a package": "defaults:\n  - /data@law: iris\n",
    "defaults that are none": "defaults: 5\n",
    "environment": "_target_: samplers.laws.Bernoulli\nrate: ${oc.env:FLEXGEN_SECRET}\n",
    "environment by another spelling": '_target_: samplers.laws.Bernoulli\nrate: "\\x24{oc.env:FLEXGEN_SECRET}"\n',
    "oc.create": '_target_: samplers.laws.Bernoulli\nrate: "${oc.create:{_target_:hostile_loaded.act}}"\n',
    "escaped": '_target_: samplers.laws.Bernoulli\nrate: "\\\\${oc.create:{_target_:hostile_loaded.act}}"\n',
    "escaped twice": "_target_: samplers.laws.Bernoulli\nrate: '\\\\\\${oc.create:{_target_:hostile_loaded.act}}'\n",
    "reference in a text": "_target_: samplers.laws.${data.name}\n",
    "reference to a mapping": "_target_: samplers.laws.Bernoulli\nrate: ${data}\n",
    "reference to nothing": "_target_: samplers.laws.Bernoulli\nrate: ${nowhere.rate}\n",
    "reference to itself": "_target_: samplers.laws.Bernoulli\nrate: ${law.rate}\n",
    "reference with a mapping": "_target_: samplers.laws.Bernoulli\nrate: '${oc.select:x,{a:1}}'\n",
    "relative reference": "_target_: samplers.laws.Bernoulli\nrate: ${.weight}\n",
    "target": "_target_: hostile_loaded.act\n",
    "target inside": "_target_: samplers.laws.Bernoulli\nrate: {_target_: hostile_file.act}\n",
    "positional": "_target_: samplers.laws.Bernoulli\n_args_: [0.5]\n",
}


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_of_the_users_is_under_the_same_rules(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "mine.yaml").write_text(FILES[name])
    with watched() as seen:
        words = ["train", f"--config-dir={tmp_path}", "data=iris", f"output={tmp_path / 'out'}", "law=mine"]
        assert main(words) == 2
    told = capsys.readouterr().err
    assert seen == []
    assert told.startswith(("flexgen train: --config-dir: ", "flexgen train: law"))
    assert told.count("\n") == 1
    assert SECRET not in told
    assert not (tmp_path / "out").exists()


def test_no_generated_file_acts(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()

    def written_and_built(case: dict[str, Any]) -> None:
        (tmp_path / "law" / "mine.yaml").write_text(yaml.safe_dump(case))
        loaded_and_built(["law=mine"], own_options=tmp_path)
        raise AssertionError("was built")

    assert acts(written_and_built, generated(scene, 2, 60), scene) == {}


def test_options_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for group, option, text in (
        ("law", "mine", "# half of the entries\n_target_: samplers.laws.Bernoulli\nrate: 0.5\n"),
        ("law", "mae", "# ours, at another rate\n_target_: samplers.laws.mae\nrate: 0.25\n"),
        ("law", "windows", "_target_: samplers.laws.fdm\nwindow: ${model.window}\n"),
        ("law", "windows_or", '_target_: samplers.laws.fdm\nwindow: "${oc.select:model.window,7}"\n'),
        ("model", "tiny", "# small, and smaller\ndefaults:\n  - small\n  - _self_\n\nwidth: 8\n"),
        ("experiment", "both", "# @package _global_\ndefaults:\n  - override /law: mine\n  - override /model: tiny\n"),
    ):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / f"{option}.yaml").write_text(text)
    (tmp_path / "notes.txt").write_text("not a group")

    def config(*words: str) -> DictConfig:
        return load_config("train", words, complete=False, own_options=tmp_path)

    assert build(config("law=mine").law) == build({"_target_": "samplers.laws.Bernoulli", "rate": 0.5})
    assert config("law=mae").law.rate == 0.25
    assert load_config("train", ["law=mae"], complete=False).law.rate == 0.75
    assert config("law=bernoulli").law._target_ == "samplers.laws.Bernoulli"
    assert config("law=windows", "model=frame_unet_80m").law.window == 20
    assert config("law=windows_or", "model=pooled").law.window == 7
    assert config("law=windows_or", "model=frame_unet_4m", "model.window=5").law.window == 5
    assert config("model=tiny").model.width == 8
    assert config("model=tiny").model.restarts == 1
    assert config("experiment=both").law.rate == 0.5
    assert config("experiment=both").model.width == 8

    with pytest.raises(ConfigError, match=r"^law: has no option 'mine'"):
        load_config("train", ["law=mine"], complete=False)
    with pytest.raises(ConfigError, match=r"^law: has no option 'min'\. Choose one of any_order, .* mine, "):
        config("law=min")
    with pytest.raises(ConfigError, match=r"^law\.window: is '\$\{model\.window\}', but model\.window holds none"):
        config("law=windows", "model=pooled")

    for spelled in ([f"--config-dir={tmp_path}"], ["--config-dir", str(tmp_path)]):
        assert main(["train", *spelled, "--help"]) == 0
        told = capsys.readouterr().out
        assert "mine                 half of the entries" in told
        assert "ours, at another rate" in told
        assert "a fixed share of the entries" not in told
        assert "tiny            small, and smaller" in told
        assert main([*spelled, "train", "law=mine", "--config"]) == 0
        assert "rate: 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--config-dir"], "--config-dir: '' is no folder"),
        (["--config-dir="], "--config-dir: '' is no folder"),
        (["--config-dir=nowhere"], "--config-dir: 'nowhere' is no folder. Name a folder with a folder for a group"),
        (["--config-dir=file"], "--config-dir: 'file' is no folder"),
        (["--config-dir=empty"], "--config-dir: 'empty' holds no option of a group. Name a folder with"),
        (["--config-dir=commands"], "'commands' holds train.yaml, the file of a command"),
        (["--config-dir=named"], "a b.yaml' is no name of an option"),
        (["--config-dir=latin"], "latin/law/x.yaml' is no UTF-8"),
        (["--config-dir=dirs"], "cannot be read: Is a directory"),
        (["--config-dir=~nobody-of-this-name"], "cannot be read: "),
        (["--config-dir=" + "x" * 5000], "cannot be read: File name too long"),
        (["--config-dir=a\0b"], "is no folder"),
        (["--config-dir=empty", "--config-dir=empty"], "--config-dir: is given 2 times. Name one folder."),
    ],
)
@pytest.mark.parametrize("asked", ["--help", "--config"])
def test_a_folder_that_is_none_is_named(
    words: list[str],
    text: str,
    asked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for folder in ("empty/law", "commands/law", "named/law", "latin/law", "dirs/law/x.yaml"):
        Path(folder).mkdir(parents=True)
    Path("commands/train.yaml").write_text("law: 1")
    Path("named/law/a b.yaml").write_text("rate: 1")
    Path("latin/law/x.yaml").write_bytes(b"rate: \xff")
    assert main(["train", asked, *words]) == 2
    told = capsys.readouterr().err
    assert text in told
    assert told.count("\n") == 1


def test_shipped_options_build_what_hydra_builds() -> None:
    """Equal objects, for every law and scan that ships."""
    for group, command, at in (("law", "train", "law"), ("sampler", "sample", "sampler.scan")):
        for path in sorted((config_dir() / group).glob("*.yaml")):
            overrides = [f"{group}={path.stem}"]
            mine = build(OmegaConf.select(load_config(command, overrides, complete=False), at), at=at)
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                theirs = compose(command, overrides=overrides)
            node = OmegaConf.select(theirs, at)
            expected = None if node is None else instantiate(node, _convert_="all")
            assert repr(mine) == repr(expected)
            assert mine == expected, path.stem


def test_interrupted_training_says_how_to_go_on_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "mine.yaml").write_text("_target_: samplers.laws.mae\n")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flexgen.cli.train.run", interrupted)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config-dir", ".", "data=iris", "output=x", "law=mine"]) == 130
    told = capsys.readouterr().err
    assert "Go on with: flexgen train data=iris output=x law=mine resume=true --config-dir=." in told
    assert [path.name for path in tmp_path.iterdir()] == ["law"]
