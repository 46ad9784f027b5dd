"""The loop against one written out by hand, and the behaviour it promises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flexgen import rng
from flexgen.errors import ConfigError, DataError, FlexgenError
from flexgen.training import (
    EpochOrder,
    TensorData,
    TrainingSettings,
    held_out_loss,
    latest_checkpoint,
    learning_rate,
    train,
)
from tests.training import toy


def by_hand(network: nn.Module, objective: object, x: Tensor, settings: TrainingSettings) -> None:
    """The updates that `train` documents, with plain PyTorch."""
    matrices = [w for w in network.parameters() if w.ndim >= 2]
    vectors = [w for w in network.parameters() if w.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    order = EpochOrder(len(x), settings.batch_size, seed=settings.seed)
    network.train()
    with torch.random.fork_rng(devices=[]):
        for step in range(settings.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            torch.manual_seed(rng.key(settings.seed, "dropout", step, 0))
            streams = rng.Streams(rng.key(settings.seed, "objective", step), settings.batch_size)
            loss = objective(network, x[order.rows(step)], streams).mean()
            optimizer.zero_grad()
            loss.backward()
            if settings.grad_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.grad_clip)
            optimizer.step()


@pytest.mark.parametrize(
    "changes", [{}, {"grad_clip": None, "weight_decay": 0.3}, {"grad_clip": 0.01, "betas": (0.5, 0.6)}]
)
def test_the_updates_are_those_of_a_loop_by_hand(changes: dict) -> None:
    settings = TrainingSettings(num_steps=30, batch_size=24, lr=1e-2, num_warmup_steps=5, seed=3, **changes)
    network, objective, data, _ = toy.parts()
    expected, *_ = toy.parts()
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)  # left by the caller; must not count
    train(network, objective, data, settings)
    by_hand(expected, objective, data.columns, settings)
    for name, weight in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight), name


def test_clipping_bounds_the_update_and_the_record_shows_the_norm_before() -> None:
    network = nn.Linear(1, 1, bias=False)

    def steep(network: nn.Module, batch: Tensor, generator: rng.Randomness) -> Tensor:  # noqa: ARG001
        return 1e3 * network(batch).flatten()

    settings = TrainingSettings(num_steps=2, batch_size=2, validate_every=1, grad_clip=0.5)
    result = train(network, steep, TensorData(torch.ones(4, 1)), settings)
    assert [record["grad_norm"] for record in result.history] == pytest.approx([1e3, 1e3])


class Climber(nn.Module):
    """One weight, pulled from 0 towards 1 by the training data, best at 0.5 by the held-out data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def squared(network: nn.Module, batch: Tensor, generator: rng.Randomness) -> Tensor:  # noqa: ARG001
    return (network.weight - batch.flatten()).square()


@pytest.mark.parametrize("ema", [None, 0.8])
def test_early_stopping_restores_the_best(ema: float | None) -> None:
    train_on, held_out = TensorData(torch.ones(10, 1)), TensorData(torch.full((7, 1), 0.5))
    settings = TrainingSettings(
        num_steps=500, batch_size=4, lr=0.02, lr_schedule="constant", num_warmup_steps=0, ema_decay=ema,
        validate_every=3, patience=4,
    )  # fmt: skip
    network = Climber()
    result = train(network, squared, train_on, settings, held_out=held_out)
    losses = [record["held_out_loss"] for record in result.history]
    best = losses.index(min(losses))
    assert result.stopped == "patience"
    assert (result.best_loss, result.best_step) == (losses[best], result.history[best]["step"])
    assert len(losses) == best + 1 + 4
    # No validation after the best was as good, and neither were the last weights: what is restored is the best.
    assert (network.weight.item() - 0.5) ** 2 == pytest.approx(result.best_loss, rel=1e-6)
    assert losses[-1] > 4 * result.best_loss
    assert not network.training


def test_without_held_out_data_the_average_is_what_remains() -> None:
    """The weights move along a known path w_t, so the average is known in closed form."""
    settings = TrainingSettings(
        num_steps=40, batch_size=4, lr=0.05, ema_decay=0.9, num_warmup_steps=0, validate_every=1
    )
    path: list[float] = []
    network = Climber()

    def watched(network: nn.Module, batch: Tensor, generator: rng.Randomness) -> Tensor:
        path.append(network.weight.item())  # before update t: w_t
        return squared(network, batch, generator)

    train(network, watched, TensorData(torch.ones(10, 1)), settings)
    last = Climber()
    train(last, squared, TensorData(torch.ones(10, 1)), TrainingSettings(**{**vars(settings), "ema_decay": None}))
    path.append(last.weight.item())
    decays = [min(0.9, (1 + t) / (10 + t)) for t in range(40)]
    # average = prod(d) * w_0 + sum_t (1 - d_t) * prod_{s > t} d_s * w_{t+1}
    average = math.prod(decays) * path[0] + sum(
        (1 - d) * math.prod(decays[t + 1 :]) * path[t + 1] for t, d in enumerate(decays)
    )
    assert network.weight.item() == pytest.approx(average, rel=1e-5)
    assert abs(last.weight.item() - average) > 1e-3


def test_validation_asks_the_same_questions_whatever_the_batch_size() -> None:
    from accelerate import Accelerator

    network, objective, _, held_out = toy.parts()
    losses = [
        held_out_loss(network, objective, held_out, TrainingSettings(batch_size=size, held_out_draws=2), Accelerator())
        for size in (40, 40, 7)
    ]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-6)
    assert network.training  # back in the mode it was


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path: Path, bad: float) -> None:
    network, objective, data, _ = toy.parts()
    steps = 0

    def breaking(network: nn.Module, batch: Tensor, generator: rng.Randomness) -> Tensor:
        nonlocal steps
        steps += 1
        return objective(network, batch, generator) * (bad if steps == 14 else 1.0)

    settings = TrainingSettings(num_steps=20, batch_size=8, checkpoint_every=5)
    with pytest.raises(FlexgenError, match=rf"loss of {bad} .* at step 13\. Checkpoints written before are intact"):
        train(network, breaking, data, settings, directory=tmp_path)
    assert latest_checkpoint(tmp_path).name == "step-000000010"
    result = train(network, breaking, data, settings, directory=tmp_path, resume=True)
    assert all(weight.isfinite().all() for weight in network.parameters())
    assert result.stopped == "finished"


def test_records_and_data_frame() -> None:
    network, objective, data, held_out = toy.parts()
    seen: list[dict] = []
    settings = TrainingSettings(num_steps=25, batch_size=8, validate_every=10)
    result = train(network, objective, data, settings, held_out=held_out, on_record=seen.append)
    frame = result.to_dataframe()
    assert seen == result.history
    assert frame["step"].tolist() == [10, 20, 25]
    assert {"loss", "held_out_loss", "lr", "grad_norm", "seconds"} <= set(frame.columns)
    assert result.best_loss == frame["held_out_loss"].min()


def test_the_bar_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    network, objective, data, held_out = toy.parts()
    settings = TrainingSettings(num_steps=3, batch_size=8, validate_every=1)
    train(network, objective, data, settings, held_out=held_out)
    assert capsys.readouterr().err == ""
    train(network, objective, data, settings, held_out=held_out, progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "held_out_loss" in shown


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains_float32_weights(amp: str) -> None:
    network, objective, data, _ = toy.parts()
    result = train(network, objective, data, TrainingSettings(num_steps=60, batch_size=50, validate_every=20, amp=amp))
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile's own imports
def test_compiled_training_follows_the_eager_one() -> None:
    results = []
    for compile_ in (False, True):
        network, objective, data, _ = toy.parts(dropout=0.0)
        settings = TrainingSettings(num_steps=20, batch_size=24, validate_every=5, compile=compile_)
        results.append([record["loss"] for record in train(network, objective, data, settings).history])
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_learning_rate() -> None:
    cosine = TrainingSettings(num_steps=110, lr=2.0, num_warmup_steps=10)
    assert [learning_rate(cosine, step) for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert learning_rate(cosine, 60) == pytest.approx(1.0)
    assert 0 < learning_rate(cosine, 109) < 2e-3
    constant = TrainingSettings(num_steps=110, lr=2.0, num_warmup_steps=0, lr_schedule="constant")
    assert {learning_rate(constant, step) for step in range(110)} == {2.0}


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 4), (10, 10), (3, 8), (1, 2)])
def test_every_epoch_sees_every_row_once(num_rows: int, batch_size: int) -> None:
    order = EpochOrder(num_rows, batch_size, seed=1)
    visited = torch.cat([order.rows(step) for step in range(num_rows * 3)])  # 3 * batch_size whole epochs
    assert visited.view(-1, num_rows).sort(-1).values.unique(dim=0).tolist() == [list(range(num_rows))]
    later = EpochOrder(num_rows, batch_size, seed=1).rows(7)  # asked for out of turn
    assert torch.equal(later, order.rows(7))
    if num_rows >= 10:
        assert not torch.equal(order.permutation(0), order.permutation(1))
        assert not torch.equal(order.permutation(0), EpochOrder(num_rows, batch_size, seed=2).permutation(0))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_steps": 0}, "num_steps: is 0. Pass at least 1."),
        ({"lr": -1.0}, "lr: is -1.0. Pass a number above 0."),
        ({"lr_schedule": "linear"}, "lr_schedule: is 'linear'. Pass 'cosine' or 'constant'."),
        ({"amp": "fp8"}, "amp: is 'fp8'. Pass None, 'bf16' or 'fp16'."),
        ({"ema_decay": 1.0}, r"ema_decay: is 1.0. Pass in \[0, 1\), or None."),
        ({"betas": (0.9,)}, r"betas: is \(0.9,\). Pass two numbers"),
    ],
)
def test_settings_refuse(changes: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TrainingSettings(**changes)


def test_arguments_refuse() -> None:
    network, objective, data, _ = toy.parts()
    with pytest.raises(ConfigError, match="patience: is 3 without held-out data"):
        train(network, objective, data, TrainingSettings(patience=3))
    with pytest.raises(DataError, match="data: has no rows"):
        train(network, objective, TensorData(torch.zeros(0, 6)))
    with pytest.raises(DataError, match="held_out: has no rows"):
        train(network, objective, data, held_out=TensorData(torch.zeros(0, 6)))
    with pytest.raises(DataError, match=r"columns: have \[3, 4\] rows"):
        TensorData({"x": torch.zeros(3, 2), "present": torch.ones(4, 2)})
    with pytest.raises(FlexgenError, match=r"objective: returned shape \(\) for a batch of 256 rows. .*shape \[B\]"):
        train(network, lambda *arguments: objective(*arguments).mean(), data)
