"""Windows of a finished video drawn again, alone or with all that hangs on them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from flexgen.errors import FlexgenError
from samplers.executor import Execution, execute, resample
from samplers.frames.plan import Plan, Window
from tests.samplers.crashes import until_done
from tests.samplers.walk_model import PLAN, SEED, Walk, open_store, video


@pytest.fixture(autouse=True)
def _hasty_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return video(tmp_path_factory.mktemp("undisturbed") / "s")


def with_draw(folder: Path, window: int, draw: int, plan: Plan = PLAN) -> np.ndarray:
    """The video, had the window been that draw from the start."""
    store = open_store(folder)
    store.reopen(notes={"draws": {str(window): draw}})
    execute(Walk(), plan, store, seed=SEED)
    return np.array(store.frames())


def test_resampling_one_window(undisturbed: np.ndarray, tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    execute(Walk(), PLAN, store, seed=SEED)
    assert PLAN.dependents(2) == (5, 7, 8, 9)
    report = resample(Walk(), PLAN, store, window=2, seed=SEED)
    assert report == Execution(num_windows=10, num_drawn=1, stale=(5, 7, 8, 9))
    changed = [i for i in range(20) if not np.array_equal(store.read([i])[0], undisturbed[i])]
    assert changed == [5, 6, 7]
    assert resample(Walk(), PLAN, store, window=2, seed=SEED).num_drawn == 0  # the same call again
    store.verify()

    report = resample(Walk(), PLAN, store, window=2, seed=SEED, redo_dependents=True)
    assert (report.num_drawn, report.stale) == (len(PLAN.needed_to_redo(2)), ())
    assert np.array_equal(store.frames(), with_draw(tmp_path / "fresh", 2, 1))
    resample(Walk(), PLAN, store, window=2, seed=SEED, draw=0, redo_dependents=True)
    assert np.array_equal(store.frames(), undisturbed)


def test_resampling_a_window_that_was_revised(tmp_path: Path) -> None:
    video(tmp_path / "s")
    assert PLAN.rewriters(0) == (5, 6, 8)
    with pytest.raises(FlexgenError, match=r"window: is 0, whose frames window 5 drew anew later. Resample 5, or pass"):
        resample(Walk(), PLAN, open_store(tmp_path / "s"), window=0, seed=SEED)


@pytest.mark.parametrize("window", range(10))
def test_redoing_dependents_is_as_good_as_starting_over(tmp_path: Path, window: int) -> None:
    video(tmp_path / "s")
    resample(Walk(), PLAN, open_store(tmp_path / "s"), window=window, seed=SEED, draw=3, redo_dependents=True)
    assert np.array_equal(open_store(tmp_path / "s").frames(), with_draw(tmp_path / "fresh", window, 3))


def test_resampling_killed_at_every_write(tmp_path: Path) -> None:
    video(tmp_path / "s")
    expected = with_draw(tmp_path / "fresh", 1, 2)

    def run() -> None:
        resample(Walk(), PLAN, open_store(tmp_path / "s"), window=1, seed=SEED, draw=2, redo_dependents=True)

    assert until_done(run, steps=1) > 3
    assert np.array_equal(open_store(tmp_path / "s").frames(), expected)


def random_plan(seed: int) -> Plan:
    """Windows that read and redraw anything that is there."""
    dice, done, windows = random.Random(seed), [0], []
    while len(done) < 20 or dice.random() < 0.7:
        refines = len(done) > 6 and (len(done) == 20 or dice.random() < 0.5)
        pool = sorted(set(done) - {0}) if refines else sorted(set(range(20)) - set(done))
        target = dice.sample(pool, min(len(pool), dice.randint(1, 3)))
        observed = dice.sample(sorted(set(done) - set(target)), min(2, len(set(done) - set(target))))
        windows.append(Window(tuple(target), tuple(observed), refines))
        done = sorted({*done, *target})
    return Plan(20, (0,), 5, tuple(windows), "random")


@pytest.mark.parametrize("seed", range(4))
def test_random_plans_killed_and_resampled(tmp_path: Path, seed: int) -> None:
    plan = random_plan(seed)
    whole = video(tmp_path / "whole", plan=plan, batch_size=3)
    until_done(lambda: video(tmp_path / "s", plan=plan, batch_size=2), steps=3)
    assert np.array_equal(open_store(tmp_path / "s").frames(), whole)
    window = random.Random(seed).randrange(len(plan.windows))
    resample(Walk(), plan, open_store(tmp_path / "s"), window=window, seed=SEED, redo_dependents=True)
    assert np.array_equal(open_store(tmp_path / "s").frames(), with_draw(tmp_path / "fresh", window, 1, plan))
