"""The executor draws the law of its plan, the same frames in whatever batches, and names what it cannot run."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flexgen import rng
from flexgen.errors import CheckpointError, FlexgenError, PlanError, UnsupportedQueryError
from flexgen.exact import Gaussian
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.video.storage import FrameStore
from samplers import executor
from samplers.executor import Execution, OverVideo, execute, resample
from samplers.frames.plan import Plan, Window
from tests.samplers import walk_model
from tests.samplers.walk_model import PLAN, SEED, Walk, open_store, video


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return video(tmp_path_factory.mktemp("undisturbed") / "s")


def test_every_frame_is_what_its_last_window_drew(undisturbed: np.ndarray) -> None:
    """By hand: one window after the other, each on its own, from nothing but the model."""
    frames = np.zeros_like(undisturbed)
    frames[0] = walk_model.GIVEN[0]
    for number, window in enumerate(PLAN.windows):
        index = torch.tensor([*window.frame_index, *[0] * (PLAN.window - len(window))])[None]
        query = window.query()
        padding = torch.zeros(PLAN.window - len(window), dtype=torch.bool)
        target, observed = (torch.cat([side, padding])[None] for side in (query.target, query.observed))
        streams = Streams(rng.key(SEED, "windows"), torch.tensor([number]))
        x = torch.from_numpy(frames[index[0].numpy()])[None]  # what stands beyond the observed frames is not read
        drawn = Walk().sample_window(x, Query(target, observed), frame_index=index, generator=streams)
        frames[index[target].numpy()] = drawn[target].numpy()
    assert np.array_equal(frames, undisturbed)


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_batch_size_changes_nothing(undisturbed: np.ndarray, tmp_path: Path, batch_size: int) -> None:
    assert np.array_equal(video(tmp_path / "s", batch_size=batch_size), undisturbed)


def test_other_seeds_give_other_frames(undisturbed: np.ndarray, tmp_path: Path) -> None:
    other = video(tmp_path / "s", seed=SEED + 1)
    assert all(not np.array_equal(a, b) for a, b in zip(other[1:], undisturbed[1:], strict=True))


def test_batches_are_of_one_wave(tmp_path: Path) -> None:
    model, store = Walk(), open_store(tmp_path / "s")
    report = execute(model, PLAN, store, seed=SEED, batch_size=3)
    assert report == Execution(num_windows=10, num_drawn=10)
    assert [sorted(batch) for batch in model.batches] == [
        list(wave[start : start + 3]) for wave in PLAN.waves() for start in range(0, len(wave), 3)
    ]
    assert store.done == set(range(10))
    assert execute(model, PLAN, store, seed=SEED).num_drawn == 0


# --- the law

NUM_FRAMES, REPLICATES = 10, 4000
FALSE_ALARM = 1e-6
MARKOV_PLAN = Plan(
    NUM_FRAMES,
    (0,),
    5,
    (
        Window((4, 8), (0,)),
        Window((1, 2, 3), (0, 4)),
        Window((5, 6, 7), (4, 8)),
        Window((4,), (3, 5), refines=True),  # a Gibbs step, which leaves the law as it is
        Window((9,), (8,)),
    ),
    "markov",
)


def markov_law() -> Gaussian:
    """Frames of one pixel, correlated exp(-distance / 3): a Markov process, of which the plan above is exact."""
    time = torch.arange(NUM_FRAMES, dtype=torch.float64)
    return Gaussian(torch.linspace(-1, 1, NUM_FRAMES), torch.exp(-(time[:, None] - time).abs() / 3))


class Replicated:
    """Many videos at once: the last axis of a frame counts them, each a row of its own to the law."""

    def sample_window(self, x: Tensor, query: Query, *, frame_index: Tensor, generator: Streams) -> Tensor:
        num_windows, window, count = x.shape
        names = (generator.rows[:, None] * count + torch.arange(count)).flatten()
        every = Query(*(side.repeat_interleave(count, 0) for side in (query.target, query.observed)))
        rows = x.transpose(1, 2).reshape(num_windows * count, window)  # [B, K, R] -> [B R, K]
        streams = Streams(generator.seed, names)
        index = frame_index.repeat_interleave(count, 0)
        drawn = OverVideo(markov_law()).sample_window(rows, every, frame_index=index, generator=streams)
        return drawn.view(num_windows, count, window).transpose(1, 2)  # [B R, K] -> [B, K, R]


def p_value(frames: np.ndarray, given: float) -> float:
    """Whether frames 1 .. N-1, ``[N - 1, R]``, have the law given frame 0.

    Whitened, they are independent standard normals: means, variances and covariances are asymptotically so too, and
    their squares sum to a chi-squared variable.
    """
    law, dim = markov_law(), NUM_FRAMES - 1
    gain = law.covariance[1:, 0] / law.covariance[0, 0]
    mean = law.mean[1:] + gain * (given - law.mean[0])
    factor = torch.linalg.cholesky(law.covariance[1:, 1:] - torch.outer(gain, law.covariance[0, 1:]))
    z = torch.linalg.solve_triangular(factor, torch.from_numpy(frames) - mean[:, None], upper=False)  # [N - 1, R]
    count = z.shape[1]
    moments = z @ z.T / count
    above = moments[*torch.triu_indices(dim, dim, 1)]
    total = count * (z.mean(1).square().sum() + above.square().sum() + (moments.diagonal() - 1).square().sum() / 2)
    return float(stats.chi2.sf(float(total), dim + dim * (dim + 1) // 2))


def replicates(folder: Path, *, store_type: type[FrameStore] = FrameStore, given: float = 1.5) -> np.ndarray:
    first = np.full((1, REPLICATES), given)
    FrameStore.open(folder, shape=(NUM_FRAMES, REPLICATES), dtype="float64", observed=[0], observed_frames=first)
    store = store_type.existing(folder)
    execute(Replicated(), MARKOV_PLAN, store, seed=0, batch_size=2)
    return np.array(store.frames()[1:])


@pytest.mark.statistical
def test_the_law_is_the_plans(tmp_path: Path) -> None:
    assert p_value(replicates(tmp_path / "s"), 1.5) > FALSE_ALARM


@pytest.mark.statistical
def test_one_stream_for_all_windows_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "Streams", lambda seed, names: Streams(seed, torch.zeros_like(names)))
    assert p_value(replicates(tmp_path / "s"), 1.5) < FALSE_ALARM


@pytest.mark.statistical
def test_stale_reads_are_found_out(tmp_path: Path) -> None:
    class Stale(FrameStore):
        """Reads what was there when it was opened."""

        def read(self, indices: list[int]) -> np.ndarray:
            return np.where(np.isin(list(indices), [0])[:, None], super().read(list(indices)), 0.0)

        def verify(self) -> None:
            pass

    assert p_value(replicates(tmp_path / "s", store_type=Stale), 1.5) < FALSE_ALARM


@pytest.mark.statistical
def test_a_refinement_in_the_wave_of_its_readers_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a plan keeps them apart: the readers meet a frame that is about to change."""
    monkeypatch.setattr(Plan, "waves", lambda _: ((0,), (3, 1, 2), (4,)))
    assert p_value(replicates(tmp_path / "s"), 1.5) < FALSE_ALARM


# --- what it refuses


def test_former_names_warn() -> None:
    with pytest.warns(DeprecationWarning, match="samplers.executor"):
        assert importlib.import_module("samplers.frame_conditional").OverVideo is OverVideo
    with pytest.warns(DeprecationWarning, match="plan.dependents"):
        assert importlib.import_module("samplers.window_order").dependents(PLAN, 2) == PLAN.dependents(2)


def test_another_plan_or_seed_is_refused(tmp_path: Path) -> None:
    video(tmp_path / "s")
    with pytest.raises(CheckpointError, match=r"another request: seed was 5 and is now 6. Repeat the request"):
        video(tmp_path / "s", seed=6)
    with pytest.raises(CheckpointError, match="another request: plan is another"):
        video(tmp_path / "s", plan=replace(PLAN, name="other"))


def test_two_jobs_do_not_share_a_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    with store.exclusive(), pytest.raises(CheckpointError, match=r"is being written by another process"):
        execute(Walk(), PLAN, open_store(tmp_path / "s"), seed=SEED)


class Wrong(Walk):
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def sample_window(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            lambda x: x.float(),
            r"model: returned float32 \[1, 5, 2, 3\], and the store takes uint8 \[1, 5, 2, 3\]. Wrap",
        ),
        (lambda x: x[:, 1:], r"model: returned uint8 \[1, 4, 2, 3\]"),
    ],
)
def test_wrong_answers_are_named(tmp_path: Path, answer: object, told: str) -> None:
    with pytest.raises(FlexgenError, match=told):
        execute(Wrong(answer), PLAN, open_store(tmp_path / "s"), seed=SEED)


def test_nan_is_not_written(tmp_path: Path) -> None:
    store = FrameStore.open(
        tmp_path / "s", shape=(20, 2), dtype="float32", observed=[0], observed_frames=np.ones((1, 2), "f4")
    )
    with pytest.raises(FlexgenError, match=r"model: returned NaN or infinity in window 0. Nothing of it was written"):
        execute(Wrong(lambda x: x / 0), PLAN, store, seed=SEED)
    assert not store.done


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    with pytest.raises(UnsupportedQueryError, match=r"model: Gaussian has no sample_window.*OverVideo\(conditional\)"):
        execute(markov_law(), PLAN, store, seed=0)
    with pytest.raises(PlanError, match=r"plan: is a list. Pass a plan of samplers.frames"):
        execute(Walk(), [0], store, seed=0)
    with pytest.raises(FlexgenError, match=r"store: is for 20 frames, 1 given. The plan has 10, 1 given: agree"):
        execute(Walk(), MARKOV_PLAN, store, seed=0)
    with pytest.raises(FlexgenError, match=r"batch_size: is 0. Pass at least 1"):
        execute(Walk(), PLAN, store, seed=0, batch_size=0)
    with pytest.raises(FlexgenError, match=r"seed: is 'a'. Pass a whole number"):
        execute(Walk(), PLAN, store, seed="a")
    with pytest.raises(FlexgenError, match=r"store: lacks 10 window\(s\) of the video. Finish it by execute\(\) first"):
        resample(Walk(), PLAN, store, window=0, seed=0)
    with pytest.raises(FlexgenError, match=r"window: is 10. The plan's windows are 0 to 9"):
        resample(Walk(), PLAN, store, window=10, seed=0)
