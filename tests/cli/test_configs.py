"""Every file of configs/ composes, builds, and says what it is."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
import torch
from omegaconf import OmegaConf

from flexgen.cli.compose import build, config_dir, load_config
from flexgen.cli.help import describe, groups, options
from flexgen.cli.main import COMMANDS
from flexgen.cli.parameters import read, table_settings
from flexgen.networks.frame_unet import FrameUNet
from flexgen.tables.settings import TableSettings
from flexgen.training import TrainingSettings
from flexgen.video.fit import BackboneSettings
from samplers.scans import Scan

PRIMARY = sorted(path.stem for path in config_dir().glob("*.yaml"))
OPTIONS = [(path.parent.name, path.stem) for path in sorted(config_dir().glob("*/*.yaml"))]
COMMAND_OF = {"sampler": "sample", "plan": "video"}  # the others belong to train


def is_for_videos(option: str) -> bool:
    return option.startswith("frame_unet") or option == "video"


def composed(group: str, option: str):
    return load_config(COMMAND_OF.get(group, "train"), [f"{group}={option}"], complete=False)


def test_every_primary_config_is_a_command_and_every_group_has_options():
    assert set(PRIMARY) <= set(COMMANDS)
    assert {"data", "experiment", "law", "model", "sampler", "training"} <= {group for group, _ in OPTIONS}


@pytest.mark.parametrize("command", PRIMARY)
def test_a_command_composes_and_its_help_names_all_its_keys_and_options(command):
    config = load_config(command, complete=False)
    text = describe(command)
    chosen = groups(command)
    for key in config:
        assert key in chosen or f"  {key} " in text or OmegaConf.is_dict(config[key]), key
    for group, default in chosen.items():
        for option in options(group):
            assert f" {option} " in text
        assert default == "null" or f"* {'':1}{default}" in text


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_composes_and_opens_with_a_comment(group, option):
    assert composed(group, option)
    opening = (config_dir() / group / f"{option}.yaml").read_text().splitlines()
    assert opening[0].startswith("# ")
    if group == "experiment":
        assert opening[:2] == ["# @package _global_", f"# flexgen train experiment={option}"] or opening[1].startswith(
            f"# flexgen train experiment={option} "
        )


@pytest.mark.parametrize("name", [name for name in options("data") if name not in ("file", "videos")])
def test_data_load(name):
    df = build(composed("data", name).data, at="data")
    assert len(df) >= 20
    assert df.shape[1] >= 5


@pytest.mark.parametrize("name", options("law"))
def test_laws_draw_queries_over_a_table_with_gaps(name):
    law = build(composed("law", name).law, at="law")
    num_sites = 300 if name == "frame_plans" else 7  # the plans' windows span more than a few frames
    present = torch.rand(200, num_sites, generator=torch.Generator().manual_seed(0)) < 0.8
    drawn = law.draw(present, generator=torch.Generator().manual_seed(1))
    target, observed = drawn.query.target, drawn.query.observed
    assert target.any()
    assert not (target & observed).any()
    assert not ((target | observed) & ~present).any()
    assert drawn.weight.isfinite().all()


def test_laws_of_different_names_differ():
    laws = [repr(build(composed("law", name).law)) for name in options("law")]
    assert len(set(laws)) == len(laws)


@pytest.mark.parametrize("name", options("plan"))
def test_plans_build_for_given_frames(name):
    plan = build({**composed("plan", name).plan, "num_frames": 40, "observed": [0, 1, 20], "window": 8}, at="plan")
    assert plan.num_generated == 37


@pytest.mark.parametrize("name", options("sampler"))
def test_samplers_hold_a_scan_and_sweeps_or_neither(name):
    sampler = composed("sampler", name).sampler
    scan = build(sampler.scan)
    assert isinstance(scan, Scan) if sampler.num_sweeps else scan is None
    assert (name == "chain") == (scan is None)


SETTINGS = [pair for pair in OPTIONS if pair[0] in ("model", "training")]


@pytest.mark.parametrize(("group", "option"), [pair for pair in SETTINGS if not is_for_videos(pair[1])])
def test_settings_build(group, option):
    assert isinstance(table_settings(composed(group, option)), TableSettings)


@pytest.mark.parametrize(("group", "option"), [pair for pair in SETTINGS if is_for_videos(pair[1])])
def test_settings_for_videos_build(group, option):
    chosen = OmegaConf.to_container(composed(group, option)[group])
    if group == "training":
        chosen.pop("start_from")
        assert read(TrainingSettings, chosen).num_steps
    else:
        settings = read(BackboneSettings, chosen)
        assert settings.process().is_flow
        with torch.device("meta"):  # its shape, without its numbers
            network = FrameUNet(
                **{name: tuple(v) if isinstance(v, list) else v for name, v in settings.network.items()}
            )
        million = sum(weight.numel() for weight in network.parameters()) / 1e6
        assert option == f"frame_unet_{million:.0f}m"


def test_the_defaults_are_those_of_the_package():
    config = load_config("train", complete=False)
    assert asdict(table_settings(config)) == asdict(TableSettings())
    assert {*config.model, *config.training} == {field.name for field in fields(TableSettings)}
    assert not {*config.model} & {*config.training}
