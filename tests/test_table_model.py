"""`TableModel`: what it fills, draws and scores, and that nothing but the arguments decides it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flexgen.errors import CheckpointError, DataError
from flexgen.saving import MANIFEST
from flexgen.table_model import TableModel
from flexgen.training import latest_checkpoint
from samplers import GibbsSampler, MixingWarning, scans
from tests.tables.small import EXACT, LONGER, NETWORK, mixed_table, with_gaps

CHILD = Path(__file__).parent / "tables" / "child.py"


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return mixed_table()


@pytest.fixture(scope="module")
def gappy(frame: pd.DataFrame) -> pd.DataFrame:
    return with_gaps(frame)


@pytest.fixture(scope="module")
def model(frame: pd.DataFrame) -> TableModel:
    return TableModel.fit(with_gaps(frame, 0.1, seed=9), settings=NETWORK, seed=3, progress=False)


def assert_same_model(left: TableModel, right: TableModel) -> None:
    one, other = left.conditional().state_dict(), right.conditional().state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert left.conditional().maps.columns == right.conditional().maps.columns
    assert left.schema == right.schema


# Filling --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mean", "mode", "draw"])
def test_impute_fills_gaps_alone(model: TableModel, gappy: pd.DataFrame, frame: pd.DataFrame, method: str) -> None:
    before = gappy.copy()
    filled = model.impute(gappy.assign(extra="kept"), method, generator=0)
    pd.testing.assert_frame_equal(gappy, before)
    assert list(filled.columns) == [*frame.columns, "extra"]
    assert filled.index.equals(frame.index)
    assert not filled.isna().any().any()
    for name in frame:
        present = gappy[name].notna()
        assert (filled[name][present] == gappy[name][present]).all()
    assert filled["kind"].isin(["a", "b"]).all()
    assert filled["grade"].dtype == frame["grade"].dtype
    if method != "mean":  # whole numbers and levels stay what they are; means fall between
        assert (filled["whole"] == filled["whole"].round()).all()
        assert filled["few"].isin([0.0, 1.0, 2.0]).all()
    one_row = model.impute(gappy.iloc[[5]], method, generator=0)
    assert one_row.shape == (1, 7)
    assert not one_row.isna().any().any()
    assert model.impute(gappy.iloc[:0], method).shape == (0, 7)


def test_nothing_missing_is_nothing_changed(model: TableModel, frame: pd.DataFrame) -> None:
    for method in ("mean", "mode", "draw"):
        pd.testing.assert_frame_equal(model.impute(frame, method, generator=0), frame)


def test_a_row_without_any_entry_is_drawn_from_the_joint(model: TableModel, frame: pd.DataFrame) -> None:
    empty = frame.iloc[:3].mask(np.ones((3, 7), bool))
    assert not model.impute(empty, "draw", generator=0).isna().any().any()


def test_several_draws(model: TableModel, gappy: pd.DataFrame) -> None:
    draws = model.impute(gappy, "draw", num_draws=3, generator=5)
    assert draws.index.names[0] == "draw"
    assert len(draws) == 3 * len(gappy)
    missing = gappy["real"].isna()
    values = draws["real"].unstack("draw")
    assert (values[missing].nunique(axis=1) == 3).all()
    assert (values[~missing].nunique(axis=1) == 1).all()
    pd.testing.assert_frame_equal(draws, model.impute(gappy, "draw", num_draws=3, generator=5))


def test_draws_depend_on_neither_batch_size_nor_the_rows_beside(model: TableModel, gappy: pd.DataFrame) -> None:
    """To rounding: a row's arithmetic may be vectorised in another way in a batch of another size."""
    whole = model.impute(gappy, "draw", generator=1)
    for batch_size in (1, 7, 64):
        pd.testing.assert_frame_equal(model.impute(gappy, "draw", generator=1, batch_size=batch_size), whole, rtol=1e-4)
    some = model.impute(gappy.iloc[:20], "draw", generator=1)
    pd.testing.assert_frame_equal(some, whole.iloc[:20], rtol=1e-4)
    changed = gappy.copy()
    changed.iloc[30:] = gappy.iloc[30:].sample(frac=1, random_state=0).to_numpy()
    pd.testing.assert_frame_equal(
        model.impute(changed, "draw", generator=1).iloc[:30], whole.iloc[:30], rtol=1e-4, check_dtype=False
    )
    assert not model.impute(gappy, "draw", generator=2)["real"].equals(whole["real"])


def test_streams_of_frames(model: TableModel, gappy: pd.DataFrame) -> None:
    chunks = [gappy.iloc[:50], gappy.iloc[50:50], gappy.iloc[50:]]
    means = pd.concat(list(model.impute_stream(chunks, "mean")))
    pd.testing.assert_frame_equal(means, model.impute(gappy, "mean"), rtol=1e-5)
    draws = list(model.impute_stream(iter(chunks), "draw", generator=4, batch_size=16))
    assert [len(d) for d in draws] == [50, 0, 100]
    again = list(model.impute_stream(iter(chunks), "draw", generator=4))
    pd.testing.assert_frame_equal(draws[2], again[2], rtol=1e-4)
    twice = list(model.impute_stream([chunks[0], chunks[0]], "draw", generator=4))
    assert not twice[0]["real"].equals(twice[1]["real"])


# Sampling -------------------------------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_how_many_are_drawn(model: TableModel, frame: pd.DataFrame) -> None:
    whole = model.sample(40, generator=7)
    dtypes = frame.dtypes.replace({np.dtype("int64"): np.dtype("float64")})  # as it was fitted, with gaps
    assert whole.dtypes.equals(dtypes)
    assert not whole.isna().any().any()
    for num_rows, batch_size in ((40, 9), (13, 4096), (1, 1)):
        some = model.sample(num_rows, generator=7, batch_size=batch_size)
        pd.testing.assert_frame_equal(some, whole.iloc[:num_rows], rtol=1e-4)
    empty = model.sample(0)
    assert empty.dtypes.equals(dtypes)
    assert len(empty) == 0
    assert not model.sample(40, generator=8)["real"].equals(whole["real"])


def test_given_values_stand_in_every_row(model: TableModel) -> None:
    rows = model.sample(60, given={"kind": "b", "whole": 3, "grade": "mid"}, generator=0)
    assert (rows["kind"] == "b").all()
    assert (rows["whole"] == 3).all()
    assert (rows["grade"] == "mid").all()
    assert rows["real"].nunique() == 60


def test_gibbs_sweeps(model: TableModel) -> None:
    scan = scans.random()
    rows = model.sample(20, scan=scan, num_sweeps=2, generator=0, given={"kind": "a"})
    assert (rows["kind"] == "a").all()
    assert not rows["real"].equals(model.sample(20, generator=0, given={"kind": "a"})["real"])
    some = model.sample(6, scan=scan, num_sweeps=2, generator=0, given={"kind": "a"}, batch_size=4)
    pd.testing.assert_frame_equal(some, rows.iloc[:6], rtol=1e-4)


# Likelihoods ----------------------------------------------------------------------------------------------------------


def test_probabilities_of_levels_sum_to_one(model: TableModel, gappy: pd.DataFrame) -> None:
    for name, levels in (("kind", ["a", "b"]), ("grade", ["low", "mid", "high"]), ("few", [0.0, 1.0, 2.0])):
        total = sum(np.exp(model.log_prob(gappy.assign(**{name: level}), [name])) for level in levels)
        np.testing.assert_allclose(total, 1.0, atol=1e-5)  # float32 in the network
    whole = sum(np.exp(model.log_prob(gappy.iloc[:5].assign(whole=v), ["whole"])) for v in range(-120, 121))
    np.testing.assert_allclose(whole, 1.0, atol=1e-4)


def test_target_and_observed(model: TableModel, frame: pd.DataFrame, gappy: pd.DataFrame) -> None:
    order_free = {"num_orders": 1, "generator": 0}
    everything = model.log_prob(frame, **order_free)
    pd.testing.assert_series_equal(everything, model.log_prob(frame, list(frame), observed=[], **order_free))
    given_rest = model.log_prob(frame, ["real"])
    pd.testing.assert_series_equal(given_rest, model.log_prob(frame, observed=[c for c in frame if c != "real"]))
    assert not given_rest.equals(model.log_prob(frame, ["real"], observed=[]))
    masks = np.zeros(frame.shape, bool)
    masks[:, 0] = True
    pd.testing.assert_series_equal(given_rest, model.log_prob(frame, masks))
    shown = pd.DataFrame(masks, frame.index, frame.columns)
    pd.testing.assert_series_equal(given_rest, model.log_prob(frame, shown[shown.columns[::-1]]))
    # The chain rule in one order, by hand.
    by_hand = model.log_prob(frame, ["kind"], observed=["few"]) + model.log_prob(
        frame, ["grade"], observed=["few", "kind"]
    )
    other = model.log_prob(frame, ["grade"], observed=["few"]) + model.log_prob(
        frame, ["kind"], observed=["few", "grade"]
    )
    joint = model.log_prob(frame, ["kind", "grade"], observed=["few"], num_orders=1)
    np.testing.assert_array_less(np.minimum(abs(joint - by_hand), abs(joint - other)), 1e-5)
    # Missing entries are marginalised: what is not there is neither target nor observed.
    present = gappy.iloc[[2]].dropna(axis=1)
    hidden = gappy.iloc[[2]]
    chosen = [c for c in present if c != "kind"]
    together = model.log_prob(hidden, ["kind"]) if "kind" in present else model.log_prob(hidden, ["real"])
    alone = model.log_prob(frame.iloc[[2]], ["kind" if "kind" in present else "real"], observed=chosen)
    if "kind" in present:
        assert float(together.iloc[0]) == pytest.approx(float(alone.iloc[0]), abs=1e-6)
    nothing = frame.iloc[:2].mask(np.ones((2, 7), bool))
    assert (model.log_prob(nothing) == 0).all()
    assert len(model.log_prob(frame.iloc[:0])) == 0


def test_densities_are_in_the_units_of_the_data(frame: pd.DataFrame) -> None:
    """x -> 10 x shifts the log density by -log 10, for real, rounded and zero-inflated columns alike; masses stay."""
    some = frame[["real", "skewed", "zeros"]].assign(rounded=frame["real"].round(2))
    one = TableModel.fit(some, settings=EXACT, seed=0, progress=False)
    scaled = TableModel.fit(10 * some, settings=EXACT, seed=0, progress=False)
    for name in some:
        shift = scaled.log_prob(10 * some, [name]) - one.log_prob(some, [name])
        atom = some[name] == 0 if name == "zeros" else np.zeros(len(some), bool)
        # The maps are fitted anew; their knots agree to rounding.
        np.testing.assert_allclose(shift[~atom], -np.log(10), atol=1e-6)
        np.testing.assert_allclose(shift[atom], 0.0, atol=1e-6)


def test_marginals(model: TableModel, gappy: pd.DataFrame, frame: pd.DataFrame) -> None:
    described = model.marginals(gappy)
    for name, answer in described.items():
        assert answer.index.equals(gappy.index[gappy[name].isna()])
        assert np.isfinite(answer.to_numpy(float)).all()
    assert list(described["grade"].columns) == ["low", "mid", "high"]
    np.testing.assert_allclose(described["grade"].sum(axis=1), 1, atol=1e-5)
    numbers = described["skewed"]
    assert (numbers["q5"] <= numbers["q50"]).all()
    assert (numbers["q50"] <= numbers["q95"]).all()
    assert (numbers["sd"] >= 0).all()
    chosen = model.marginals(frame, ["few"], quantiles=[0.25])
    assert list(chosen) == ["few"]
    assert list(chosen["few"].columns) == ["mean", "sd", "q25"]
    assert len(chosen["few"]) == len(frame)
    means = model.impute(frame.assign(few=np.nan), "mean")["few"]
    np.testing.assert_allclose(chosen["few"]["mean"], means, rtol=1e-5)


# Files ----------------------------------------------------------------------------------------------------------------


def test_saved_models_come_back_bit_for_bit(model: TableModel, gappy: pd.DataFrame, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "deep" / "folder")
    again = TableModel.from_pretrained(tmp_path / "deep" / "folder")
    assert_same_model(model, again)
    assert again.report.to_dict() == json.loads(json.dumps(model.report.to_dict()))
    assert repr(again) == repr(model)
    pd.testing.assert_frame_equal(
        model.impute(gappy, "draw", generator=0), again.impute(gappy, "draw", generator=0), rtol=0
    )
    pd.testing.assert_frame_equal(model.sample(9, generator=0), again.sample(9, generator=0), rtol=0)
    pd.testing.assert_series_equal(model.log_prob(gappy), again.log_prob(gappy), rtol=0)
    exact = TableModel.fit(gappy, settings=EXACT, progress=False)
    exact.save_pretrained(tmp_path / "deep" / "folder")  # replaces
    assert_same_model(exact, TableModel.from_pretrained(tmp_path / "deep" / "folder"))


def save_as_earlier(model: TableModel, folder: Path) -> None:
    """As versions without manifests did: a checksum of the tensors in the config, none of the config."""
    model.save_pretrained(folder)
    (folder / MANIFEST).unlink()
    config = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps({**config, "flexgen_format": 1, "model_sha256": digest}))


def test_models_saved_by_earlier_versions_are_read(model: TableModel, gappy: pd.DataFrame, tmp_path: Path) -> None:
    save_as_earlier(model, tmp_path)
    assert_same_model(model, TableModel.from_pretrained(tmp_path))
    exact = TableModel.fit(gappy, settings=EXACT, progress=False)
    exact.save_pretrained(tmp_path)  # knows the files for ours
    assert_same_model(exact, TableModel.from_pretrained(tmp_path))
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"lacks its flexgen-manifest.json\. Copy the whole folder"):
        TableModel.from_pretrained(tmp_path)


def test_damaged_files_are_refused(model: TableModel, frame: pd.DataFrame, tmp_path: Path) -> None:
    good = tmp_path / "good"
    save_as_earlier(model, good)
    weights = (good / "model.safetensors").read_bytes()
    config = json.loads((good / "config.json").read_text())

    def refused(match: str, *, text: str | None = None, data: bytes | None = None, remove: str = "") -> None:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        if text is not None:
            (folder / "config.json").write_text(text)
        if data is not None:
            (folder / "model.safetensors").write_bytes(data)
        if remove:
            (folder / remove).unlink()
        with pytest.raises(CheckpointError, match=match):
            TableModel.from_pretrained(folder)

    refused(r"holds no config\.json\. Pass a folder that save_pretrained wrote", remove="config.json")
    refused(r"holds no model\.safetensors", remove="model.safetensors")
    refused("is damaged", text=json.dumps(config)[:-40])
    refused("is damaged", text="[]")
    refused("has format 99. This version reads format 2", text=json.dumps({**config, "flexgen_format": 99}))
    refused("do not fit together", data=weights[: len(weights) // 2])
    refused("do not fit together", data=b"")
    refused("do not fit together", text=json.dumps({**config, "conditional": {}}))
    fewer = {**config, "schema": {"columns": config["schema"]["columns"][:-1]}}
    refused("holds a conditional over Space.*Use the model's own files", text=json.dumps(fewer))
    other = tmp_path / "other"
    TableModel.fit(frame[["real", "kind"]], settings=EXACT, progress=False).save_pretrained(other)
    refused("do not fit together", data=(other / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="holds no config"):
        TableModel.from_pretrained(tmp_path / "absent")


# Repeatability --------------------------------------------------------------------------------------------------------


def test_the_same_call_gives_the_same_model_and_leaves_the_global_state(model: TableModel, frame: pd.DataFrame) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    again = TableModel.fit(with_gaps(frame, 0.1, seed=9), settings=NETWORK, seed=3, progress=False)
    assert_same_model(model, again)
    again.sample(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    other = TableModel.fit(with_gaps(frame, 0.1, seed=9), settings=NETWORK, seed=4, progress=False)
    with pytest.raises(AssertionError):
        assert_same_model(model, other)


def test_a_killed_fit_resumes_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL at a random moment after the first checkpoint; the resumed fit equals one that was never disturbed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHILD.parents[2])}
    child = subprocess.Popen([sys.executable, str(CHILD), str(tmp_path)], env=environment)
    folder = tmp_path / "network-0"
    deadline = time.monotonic() + 60
    while latest_checkpoint(folder) is None and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.5))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    table = mixed_table(80)
    killed_at = latest_checkpoint(folder)
    resumed = TableModel.fit(table, settings=LONGER, checkpoint_dir=tmp_path, resume=True, progress=False)
    assert killed_at.name < latest_checkpoint(folder).name
    assert_same_model(resumed, TableModel.fit(table, settings=LONGER, progress=False))


def test_files_of_two_models_do_not_mix(model: TableModel, frame: pd.DataFrame, tmp_path: Path) -> None:
    """Of one structure, so that only the hash tells them apart."""
    other = TableModel.fit(frame, settings=EXACT, seed=1)
    model.save_pretrained(tmp_path / "one")
    TableModel.fit(frame.sample(frac=1, random_state=0), settings=EXACT).save_pretrained(tmp_path / "two")
    other.save_pretrained(tmp_path / "three")
    (tmp_path / "two/model.safetensors").replace(tmp_path / "three/model.safetensors")
    with pytest.raises(CheckpointError, match=r"three/model.safetensors' is damaged or of another save"):
        TableModel.from_pretrained(tmp_path / "three")


def test_present_entries_keep_their_very_values() -> None:
    """Whole numbers beyond 2^53 are no float64."""
    big = 2**60 + np.arange(40)
    df = pd.DataFrame({"id": pd.array(big, dtype="Int64"), "x": np.random.default_rng(0).normal(size=40)})
    df.loc[3, "id"] = pd.NA
    filled = TableModel.fit(df, kinds={"id": "real"}, settings=EXACT).impute(df, "draw", generator=0)
    present = df["id"].notna()
    assert (filled["id"][present].astype("Int64") == df["id"][present]).all()


def test_filled_booleans_are_booleans() -> None:
    real = np.random.default_rng(0).normal(size=60)
    whole = pd.DataFrame({"flag": real > 0, "real": real})
    gappy = whole.assign(flag=whole["flag"].astype(object).mask(np.arange(60) % 4 == 0))
    assert gappy["flag"].dtype == object
    nullable = gappy.assign(flag=gappy["flag"].astype("boolean"))
    for learned in (whole, gappy, nullable):
        model = TableModel.fit(learned, settings=EXACT, progress=False)
        for method in ("mean", "mode", "draw"):
            filled = model.impute(gappy, method, generator=0)["flag"]
            assert filled.dtype == bool
            assert (filled == whole["flag"])[gappy["flag"].notna()].all()
            assert model.impute(nullable, method, generator=0)["flag"].dtype == "boolean"


# Chains ---------------------------------------------------------------------------------------------------------------


def test_chains_as_a_frame(model: TableModel) -> None:
    sampler = GibbsSampler(model.conditional(), scan=scans.systematic())
    chains = sampler.run(draws=3, chain_ids=[5, 2], generator=0)
    rows = model.to_frame(chains)
    assert rows.index.names == ["chain", "draw"]
    assert list(rows.index) == [(chain, draw) for chain in (5, 2) for draw in range(3)]
    assert rows.dtypes.equals(model.sample(1).dtypes)
    for b, chain in enumerate((5, 2)):
        own = rows.loc[chain]
        pd.testing.assert_frame_equal(own, model.schema.decode(chains.draws[:, b], own.index))
    pd.testing.assert_frame_equal(model.to_frame(chains.draws).reset_index(drop=True), rows.reset_index(drop=True))


def test_the_report_prints_short(model: TableModel) -> None:
    told = repr(model.report)
    assert told.startswith(f"FitReport({model.report.held_out['pool']:.3f} nats an entry held out; gaussian ")
    assert told.endswith("1 network(s) trained)")
    assert len(told) < 120


def test_the_scan_that_mixes_draws_dependent_columns_together() -> None:
    """Two columns of correlation .999 move one at a time as slowly as an autoregression with .998."""
    normal = np.random.default_rng(0).normal(size=(200, 3))
    frame = pd.DataFrame({"a": normal[:, 0], "c": normal[:, 1], "b": normal[:, 0] + 0.045 * normal[:, 2]})
    model = TableModel.fit(frame, settings=EXACT, progress=False)
    scan = model.scan()
    assert scan == model.scan(frame) == scans.blocked([[0, 2], [1]])
    assert model.scan(frame, correlation=0) == scans.blocked([[0, 1, 2]])
    assert model.scan(frame, correlation=1) == scans.blocked([[0], [1], [2]])
    options = {"chains": 8, "draws": 60, "warmup": 5, "generator": 0}
    with pytest.warns(MixingWarning, match=r"R-hat is .* at '[ab]', .* at '[ab]' \(of 3"):
        GibbsSampler(model.conditional(), scan=scans.systematic()).run(**options)
    assert (
        GibbsSampler(model.conditional(), scan=scan).run(**options).rhat().max() < 1.05
    )  # a warning would be an error
    for wrong in (2, "high", None):
        with pytest.raises(DataError, match=r"correlation: is .*Pass a number from 0 to 1"):
            model.scan(correlation=wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"df: is a DataFrame. Pass a data frame with the columns a, c, b"):
        model.scan(frame[["a"]])
