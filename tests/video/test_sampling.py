"""Draws of windows: what they may depend on, guidance, errors. Their law is tested in test_gaussian_process.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.errors import ConfigError, FlexgenError, QueryError, SpaceError
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.video import NoiseProcess, PixelScale, VideoBackbone, WindowSampler
from tests.networks import small

KINDS = ["ooottt", "ttpppp", "totopp", "tooooo", "oopppp"]
SCHEDULERS = [
    *((NoiseProcess(), name) for name in ("euler", "heun", "dpm++", "unipc")),
    *((NoiseProcess(kind), name) for kind in ("epsilon", "v_prediction") for name in ("dpm++", "ddim", "ddpm")),  # type: ignore[arg-type]
]


def backbone(process: NoiseProcess | None = None, **changes: Any) -> VideoBackbone:
    return VideoBackbone(small.network(**changes), process or NoiseProcess(), PixelScale(), window=6)


def query(kinds: list[str] = KINDS) -> Query:
    target, observed = (torch.tensor([[letter == kind for letter in row] for row in kinds]) for kind in "to")
    return Query(target, observed)


def window(num_rows: int = len(KINDS)) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (num_rows, 6, 8, 8, 2), dtype=torch.uint8, generator=source)
    return frames, torch.stack([torch.randperm(99, generator=source)[:6].sort().values for _ in range(num_rows)])


def values_of(sampler: WindowSampler, frames: Tensor, asked: Query, index: Tensor, seed: int = 0) -> Tensor:
    """The targets' values after the last step, before they are rounded to pixels."""
    seen: list[Tensor] = []
    sampler.on_step = lambda _, values: seen.append(values)
    sampler.sample_window(frames, asked, frame_index=index, generator=Streams(seed, len(frames)))
    return seen[-1]


@pytest.mark.parametrize(("process", "scheduler"), SCHEDULERS)
@pytest.mark.parametrize("attention", ["one_way", "full"])
def test_all_but_the_targets_stays_as_it_was(process: NoiseProcess, scheduler: str, attention: str) -> None:
    sampler = WindowSampler(backbone(process, attention=attention), num_inference_steps=2, scheduler=scheduler)
    frames, index = window()
    out = sampler.sample_window(frames, query(), frame_index=index, generator=Streams(0, 5))
    target = query().target
    assert out.dtype == torch.uint8
    assert torch.equal(out[~target], frames[~target])
    assert (out[target] != frames[target]).flatten(1).any(1).all()
    again = sampler.sample_window(frames, query(), frame_index=index, generator=Streams(0, 5))
    assert torch.equal(out, again)
    other = sampler.sample_window(frames, query(), frame_index=index, generator=Streams(1, 5))
    assert not torch.equal(out, other)


@pytest.mark.parametrize(("process", "scheduler"), SCHEDULERS)
def test_the_cache_changes_nothing(process: NoiseProcess, scheduler: str) -> None:
    model, (frames, index) = backbone(process), window()
    # The small network is no denoiser: its answers make values grow, and their rounding with them.
    options = {"num_inference_steps": 4, "scheduler": scheduler, "observed_noise": 0.1}
    cached, plain = (
        values_of(WindowSampler(model, cached=cached, **options), frames, query(), index) for cached in (True, False)
    )
    taken = torch.arange(cached.shape[1]) < query().target.sum(1)[:, None]
    assert (cached - plain)[taken].abs().max() < 1e-5 * plain[taken].abs().max().clamp_min(1)


@pytest.mark.parametrize(("process", "scheduler"), [SCHEDULERS[0], SCHEDULERS[5]])
def test_rows_are_drawn_as_alone(process: NoiseProcess, scheduler: str) -> None:
    """Neither the rows beside a row nor padding nor unlisted frames count, as far as rounding does not."""
    sampler = WindowSampler(
        backbone(process), num_inference_steps=3, scheduler=scheduler, observed_noise=0.2, history_guidance=0.5
    )
    frames, index = window()
    together = values_of(sampler, frames, query(), index)
    for row, kind in enumerate(KINDS[:4]):
        keep = torch.tensor([letter != "p" for letter in kind])
        seen: list[Tensor] = []
        sampler.on_step = lambda _, values, seen=seen: seen.append(values)
        asked = Query(query().target[row : row + 1, keep], query().observed[row : row + 1, keep])
        sampler.sample_window(
            frames[row : row + 1, keep], asked, frame_index=index[row, keep], generator=Streams(0, torch.tensor([row]))
        )
        count = kind.count("t")
        scale = together[row, :count].abs().max().clamp_min(1)
        assert (seen[-1][0] - together[row, :count]).abs().max() < 2e-5 * scale, row
    other = torch.where((query().target | query().observed)[..., None, None, None], frames, 255 - frames)
    assert torch.equal(values_of(sampler, other, query(), index)[:, :1], together[:, :1])


def test_what_stands_at_targets_is_not_read() -> None:
    sampler, (frames, index) = WindowSampler(backbone(), num_inference_steps=2), window()
    other = torch.where(query().target[..., None, None, None], 255 - frames, frames)
    first, second = (
        sampler.sample_window(x, query(), frame_index=index, generator=Streams(0, 5)) for x in (frames, other)
    )
    assert torch.equal(first[query().target], second[query().target])


def test_history_guidance() -> None:
    """Of none: nothing changes, at no cost. Of w: predictions move by w times what the observed frames say."""
    model, (frames, index) = backbone(), window()
    evaluations = []
    model.network.register_forward_hook(lambda *_: evaluations.append(1))
    none, zero = (
        WindowSampler(model, num_inference_steps=1),
        WindowSampler(model, num_inference_steps=1, history_guidance=0),
    )
    told = values_of(none, frames, query(), index)
    assert len(evaluations) == 1 == none.evaluations_per_window
    assert torch.equal(values_of(zero, frames, query(), index), told)
    guided = WindowSampler(model, num_inference_steps=1, history_guidance=0.5)
    evaluations.clear()
    moved = values_of(guided, frames, query(), index)
    assert len(evaluations) == 2 == guided.evaluations_per_window
    alone = values_of(none, frames, Query(query().target, torch.zeros_like(query().observed)), index)
    torch.testing.assert_close(moved, told + 0.5 * (told - alone), atol=1e-4, rtol=1e-4)
    assert (moved - told)[0].abs().max() > 1e-2
    torch.testing.assert_close(moved[1, :2], told[1, :2], atol=1e-4, rtol=1e-4)  # a row that observes nothing


def test_every_step_is_shown() -> None:
    model, (frames, index) = backbone(), window()
    steps: list[tuple[int, tuple[int, ...]]] = []
    sampler = WindowSampler(
        model, num_inference_steps=3, on_step=lambda number, values: steps.append((number, tuple(values.shape)))
    )
    out = sampler.sample_window(frames, query(), frame_index=index, generator=Streams(0, 5))
    assert steps == [(number, (5, 3, 2, 8, 8)) for number in range(3)]
    assert not out.is_inference()  # its reader may write into it
    shown = PixelScale().to_pixels(values_of(sampler, frames, query(), index))
    assert torch.equal(out[0, 3:], shown[0])


def test_dropout_is_off_while_sampling() -> None:
    model = backbone(dropout=0.5).train()
    sampler, (frames, index) = WindowSampler(model, num_inference_steps=2), window()
    state = torch.get_rng_state()
    first, second = (
        sampler.sample_window(frames, query(), frame_index=index, generator=Streams(0, 5)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator
    assert model.network.training


def test_windows_without_anything_to_draw() -> None:
    sampler, (frames, index) = WindowSampler(backbone(), num_inference_steps=2), window(2)
    out = sampler.sample_window(frames, query(["oopppp", "pppppp"]), frame_index=index, generator=Streams(0, 2))
    assert torch.equal(out, frames)
    empty = sampler.sample_window(
        frames[:0], Query.of([0], [1], num_sites=6), frame_index=index[:0], generator=Streams(0, 0)
    )
    assert empty.shape == (0, 6, 8, 8, 2)


def test_bfloat16_is_near() -> None:
    model, (frames, index) = backbone(), window()
    exact = values_of(WindowSampler(model, num_inference_steps=2), frames, query(), index)
    rough = values_of(WindowSampler(model, num_inference_steps=2, dtype=torch.bfloat16), frames, query(), index)
    error = (exact - rough)[:, 0].square().mean().sqrt() / exact[:, 0].square().mean().sqrt()
    assert 0 < error < 0.1


def test_settings_make_the_sampler_again() -> None:
    model = backbone(NoiseProcess("epsilon"))
    first = WindowSampler(model, num_inference_steps=5, scheduler="ddpm", observed_noise=0.1, dtype=torch.bfloat16)
    assert WindowSampler.from_settings(model, first.settings()).settings() == first.settings()
    with pytest.raises(ConfigError, match="backbone: is not the one that the settings are of"):
        WindowSampler.from_settings(backbone(), first.settings())


def test_errors() -> None:
    model, (frames, index) = backbone(), window()
    for options, text in (
        ({"history_guidance": -0.1}, "history_guidance: is -0.1. Pass 0 or more"),
        ({"observed_noise": 1}, r"observed_noise: is 1. Pass a level in \[0, 1\)"),
        ({"num_inference_steps": 0}, "num_inference_steps: is 0"),
        ({"scheduler": "ddim"}, "scheduler: is 'ddim', which does not follow the process"),
        ({"dtype": torch.float64}, "dtype: is torch.float64"),
        ({"dtype": "float8"}, "dtype: is 'float8'. Choose float32, bfloat16 or float16"),
        ({"num_inference_steps": True}, "num_inference_steps: is True. Pass a whole number"),
        ({"history_guidance": float("nan")}, "history_guidance: is nan. Pass a number"),
        ({"cached": 1}, "cached: is 1. Pass True, False or None"),
        ({"on_step": 3}, "on_step: is 3. Pass a function"),
    ):
        with pytest.raises(ConfigError, match=text):
            WindowSampler(model, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cached: is True\. A network with attention='full' has no cache"):
        WindowSampler(backbone(attention="full"), cached=True)
    sampler, streams = WindowSampler(model), Streams(0, 5)
    with pytest.raises(
        SpaceError, match=r"x: is torch.float32 of shape \(5, 6, 8, 8, 2\). Pass uint8 frames \[B, K, 8, 8, 2\]"
    ):
        sampler.sample_window(frames.float(), query(), frame_index=index, generator=streams)
    with pytest.raises(QueryError, match="query: is about 4 slots, but x has 6"):
        sampler.sample_window(frames, Query.of([0], [1], num_sites=4), frame_index=index, generator=streams)
    with pytest.raises(
        QueryError, match=r"frame_index: is torch.int64 of shape \(5, 5\). Pass int64 of shape \[6\] or \[5, 6\]"
    ):
        sampler.sample_window(frames, query(), frame_index=index[:, :5], generator=streams)
    with pytest.raises(FlexgenError, match=r"generator: is 4 streams. Pass Streams\(seed, 5\)"):
        sampler.sample_window(frames, query(), frame_index=index, generator=Streams(0, 4))
    with pytest.raises(FlexgenError, match="generator: is Generator"):
        sampler.sample_window(frames, query(), frame_index=index, generator=torch.Generator())  # type: ignore[arg-type]
