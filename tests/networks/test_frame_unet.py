"""The space-time UNet: what its answers may depend on, its cache, its errors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from flexgen.errors import ConfigError
from flexgen.networks import FrameUNet
from tests.networks import small

WAYS = ("one_way", "full")


def close(first: Tensor, second: Tensor, *, atol: float = 2e-5) -> None:
    """Up to the rounding of float32 sums in another order; answers are of order one."""
    torch.testing.assert_close(first, second, atol=atol, rtol=0)


def rows(window: dict[str, Tensor], chosen: Any) -> dict[str, Tensor]:
    return {name: value[:, chosen] for name, value in window.items()}


@pytest.mark.parametrize("attention", WAYS)
@pytest.mark.parametrize("shift", [1, 17, 10_000, -3])
@torch.no_grad()
def test_shifting_all_frame_indices_changes_nothing(attention: str, shift: int) -> None:
    network, window = small.network(attention=attention), small.window()
    moved = {**window, "frame_index": window["frame_index"] + shift}
    assert torch.equal(network(**window), network(**moved))


@torch.no_grad()
def test_shifting_some_frame_indices_changes_the_answer() -> None:
    network, window = small.network(), small.window()
    index = window["frame_index"].clone()
    index[:, 0] += 50
    assert (network(**window) - network(**{**window, "frame_index": index})).abs().max() > 1e-2


@torch.no_grad()
def test_patches_are_the_network_on_unshuffled_pixels() -> None:
    patched, window = small.network(patch_size=2), small.window()
    plain = small.network(sample_size=4, in_channels=8)
    plain.load_state_dict(patched.state_dict())
    folded = torch.nn.functional.pixel_unshuffle(window["frames"], 2)
    answer = plain(**{**window, "frames": folded})
    assert torch.equal(patched(**window), torch.nn.functional.pixel_shuffle(answer, 2))


@pytest.mark.parametrize("attention", WAYS)
@torch.no_grad()
def test_permuting_a_window_permutes_the_answer(attention: str) -> None:
    network, window = small.network(attention=attention), small.window()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    close(network(**rows(window, order)), network(**window)[:, order])


@pytest.mark.parametrize("attention", WAYS)
@torch.no_grad()
def test_padding_changes_nothing(attention: str) -> None:
    network, window = small.network(attention=attention), small.window()
    padded = {name: torch.cat([value, value[:, :2]], 1) for name, value in window.items()}
    present = torch.tensor([[True] * 6 + [False] * 2]).expand(2, -1)
    first = network(**padded, present=present)
    close(first[:, :6], network(**window))
    padded["frames"][:, 6:] = 1e4
    padded["frame_index"][:, 6:] = 9_999
    padded["level"][:, 6:] = 0.9
    padded["observed"][:, 6:] = ~padded["observed"][:, 6:]
    assert torch.equal(network(**padded, present=present)[:, :6], first[:, :6])


@pytest.mark.parametrize("attention", WAYS)
@torch.no_grad()
def test_rows_of_different_sizes_answer_as_alone(attention: str) -> None:
    """Among them rows without observed frames and one without targets: no NaN, no word from one row to another."""
    network = small.network(attention=attention)
    kinds = ["ooottt", "ttp", "otp", "tppppp", "oopp", "pppppp"]
    present = torch.tensor([[letter != "p" for letter in kind.ljust(6, "p")] for kind in kinds])
    observed = torch.tensor([[letter == "o" for letter in kind.ljust(6, "p")] for kind in kinds])
    window = {**small.window(len(kinds)), "observed": observed}
    together = network(**window, present=present)
    assert together.isfinite().all()
    for row in range(len(kinds) - 1):
        alone = {name: value[row : row + 1, present[row]] for name, value in window.items()}
        close(together[row : row + 1, present[row]], network(**alone))


@torch.no_grad()
def test_observed_frames_look_at_no_target() -> None:
    window = small.window()
    other = {**window, "frames": torch.where(window["observed"][..., None, None, None], window["frames"], 5.0)}
    seen = window["observed"]
    one_way, full = small.network(), small.network(attention="full")
    assert torch.equal(one_way(**window)[seen], one_way(**other)[seen])
    assert (full(**window)[seen] - full(**other)[seen]).abs().max() > 1e-2  # which the cache could not serve
    other = {**window, "frames": torch.where(seen[..., None, None, None], 5.0, window["frames"])}
    assert (one_way(**window)[~seen] - one_way(**other)[~seen]).abs().max() > 1e-2


@pytest.mark.parametrize("levels", [("both", "joint"), ("frames", "none"), ("none", "space"), ("joint", "both")])
@torch.no_grad()
def test_the_cache_changes_nothing(levels: tuple[str, ...]) -> None:
    network, window = small.network(attention_levels=levels, num_blocks=2), small.window()
    seen = window["observed"][0]
    past, now = rows(window, seen), rows(window, ~seen)
    past.pop("observed")
    cache = network.observe(**past)
    close(network(**now, cache=cache), network(**window)[:, ~seen], atol=1e-5)
    now["level"] = torch.rand(2, 4)  # one cache serves all steps
    now["frames"] = torch.randn(2, 4, 2, 8, 8)
    whole = {name: torch.cat([rows(window, seen)[name], now[name]], 1) for name in window}
    close(network(**now, cache=cache), network(**whole)[:, 2:], atol=1e-5)


@torch.no_grad()
def test_a_cache_of_rows_of_different_sizes() -> None:
    """A row that observes nothing has an empty part of it."""
    network, window = small.network(), small.window(3)
    past, now = rows(window, slice(3)), rows(window, slice(3, None))
    past.pop("observed")
    present = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    now["observed"] = torch.zeros(3, 3, dtype=torch.bool)
    cached = network(**now, cache=network.observe(**past, present=present))
    whole = {
        **window,
        "observed": torch.cat([present, now["observed"]], 1),
        "present": torch.cat([present, torch.ones(3, 3, dtype=torch.bool)], 1),
    }
    assert cached.isfinite().all()
    close(cached, network(**whole)[:, 3:], atol=1e-5)
    close(cached[2:], network(**{name: value[2:] for name, value in now.items()}), atol=1e-5)


@pytest.mark.parametrize("attention", WAYS)
@torch.no_grad()
def test_a_context_serves_many_passes(attention: str) -> None:
    """Packed kernels are read in another order, and nothing else; windows of another size pack their own."""
    network, kernels = small.network(attention=attention), {}
    for num_frames in (6, 4, 6):
        window = small.window(num_frames=num_frames)
        frames, level = window.pop("frames"), window.pop("level")
        context = network.context(**window, kernels=kernels)
        for _ in range(2):
            close(network(frames, level, context=context), network(frames, level, **window), atol=1e-5)
            frames, level = torch.randn_like(frames), torch.rand_like(level)
    assert len(kernels) == 2 * sum(
        isinstance(part, torch.nn.Conv2d) and part.padding != (0, 0) for part in network.modules()
    )


@torch.no_grad()
def test_the_cache_of_a_context_changes_nothing() -> None:
    network, window, kernels = small.network(), small.window(), {}
    seen = window["observed"][0]
    past, now = rows(window, seen), rows(window, ~seen)
    past.pop("observed")
    frames, level = now.pop("frames"), now.pop("level")
    context = network.context(**now, cache=network.observe(**past, kernels=kernels), kernels=kernels)
    close(network(frames, level, context=context), network(**window)[:, ~seen], atol=1e-5)


def test_kernels_are_not_kept_where_they_would_be_wrong() -> None:
    """Under gradients, which must reach the weights, and under autocast; a new context sees new weights."""
    network, window = small.network(), small.window()
    frames, level = window.pop("frames"), window.pop("level")
    kernels: dict[Any, Any] = {}
    network(frames, level, context=network.context(**window, kernels=kernels)).sum().backward()
    assert not kernels
    assert all(weight.grad is not None for weight in network.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(frames, level, context=network.context(**window, kernels=kernels))
    assert not kernels
    with torch.no_grad():
        first = network(frames, level, context=network.context(**window, kernels={}))
        network.conv_in.weight.data.mul_(2)
        second = network(frames, level, context=network.context(**window, kernels={}))
        close(second, network(frames, level, **window), atol=1e-5)
        assert (first - second).abs().max() > 1e-2


def test_a_pass_needs_a_window() -> None:
    window = small.window()
    with pytest.raises(ConfigError, match="frame_index: or observed is missing"):
        small.network()(window["frames"], window["level"], window["frame_index"])


def test_full_attention_has_no_cache() -> None:
    window = small.window()
    window.pop("observed")
    with pytest.raises(ConfigError, match="attention: is 'full': observed frames look at the targets"):
        small.network(attention="full").observe(**window)


@torch.no_grad()
def test_gaps_of_any_length_are_read() -> None:
    network, window = small.network(), small.window(1, 2)
    window["observed"] = torch.tensor([[True, False]])
    gaps = (-15_000, -100, -1, 1, 2, 10, 100, 1_000, 14_000, 15_000)
    answers = [network(**{**window, "frame_index": torch.tensor([[20_000, 20_000 + gap]])})[:, 1] for gap in gaps]
    stacked = torch.stack(answers).flatten(1)
    assert stacked.isfinite().all()
    apart = torch.cdist(stacked, stacked)[~torch.eye(len(answers), dtype=torch.bool)]
    assert apart.min() > 3e-4 * stacked.norm(dim=1).mean()  # even 14 000 and 15 000; rounding is 1e-6


@torch.no_grad()
def test_every_frame_has_its_own_noise_level() -> None:
    network, window = small.network(), small.window()
    first = network(**window)
    for frame in (1, 0):  # a target, and an observed frame
        level = window["level"].clone()
        level[:, frame] += 0.3
        changed = (network(**{**window, "level": level}) - first).abs().amax((0, 2, 3, 4))
        assert changed[frame] > 1e-2


def test_the_gradient_reaches_every_parameter() -> None:
    network, window = small.network(num_blocks=2), small.window()
    network(**window).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        if not name.endswith("over_frames.bias.2.bias"):  # the same for all frames: softmax does not see it
            assert weight.grad.abs().max() > 1e-4, name


def test_a_fresh_network_says_zero_and_learns() -> None:
    torch.manual_seed(0)
    network = FrameUNet(8, 2, (16, 32), small.LEVELS, num_heads=2)
    window = small.window()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    target, losses = torch.randn(2, 6, 2, 8, 8), []
    for _ in range(15):
        out = network(**window)
        losses.append((out - target).square().mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0].item() == pytest.approx(float(target.square().mean()), rel=1e-6)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"attention": "causal"}, "attention: is 'causal'. Choose 'one_way' or 'full'"),
        ({"attention_levels": ("none",)}, "attention_levels: has 1 entries for 2 resolutions"),
        ({"attention_levels": ("none", "time")}, "attention_levels: holds 'time'"),
        ({"sample_size": 9}, "sample_size: is 9, which cannot be halved 1 times. Pass a multiple of 2"),
        (
            {"sample_size": 8, "patch_size": 8},
            "sample_size: is 8, which in patches of 8 cannot be halved 1 times. Pass a mul",
        ),
        ({"patch_size": 0}, "patch_size: is 0. Pass at least 1"),
        ({"sample_size": 0}, "sample_size: is 0. Pass at least 1"),
        ({"channels": (8, 15)}, "channels: holds 15 for 2 heads"),
        ({"channels": (), "attention_levels": ()}, r"channels: is \(\). Give a width for each resolution"),
        ({"num_blocks": 0}, "num_blocks: is 0"),
        ({"dropout": 1.0}, r"dropout: is 1.0. Pass a number in \[0, 1\)"),
        ({"attention_backend": "magic"}, "attention_backend: is 'magic'. Choose one of auto, sdpa, flex, xformers"),
    ],
)
def test_bad_configs_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        small.network(**changes)


def test_importing_the_packages_loads_no_diffusers() -> None:
    code = "import flexgen.networks, flexgen.video, sys; sys.exit(int('diffusers' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
