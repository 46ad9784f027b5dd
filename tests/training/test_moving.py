"""Objectives that move while training goes on: asked by the step, resumed bit for bit, validated as in the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flexgen.errors import CheckpointError
from flexgen.rng import Randomness
from flexgen.training import TensorData, TrainingSettings, train
from flexgen.video.fit import BackboneSettings, fit_backbone
from samplers import frames, laws

SETTINGS = TrainingSettings(
    num_steps=8, batch_size=2, lr=0.05, num_warmup_steps=2, validate_every=4, checkpoint_every=3, ema_decay=0.9
)


class Crash(RuntimeError):
    pass


class Towards:
    """Distance of the network's answer from `progress`."""

    def __init__(self, progress: float = 1.0, asked: list[float] | None = None) -> None:
        self.progress, self.asked = progress, [] if asked is None else asked

    def at(self, progress: float) -> Towards:
        return Towards(progress, self.asked)

    def __call__(self, network: nn.Module, batch: Tensor, generator: Randomness) -> Tensor:  # noqa: ARG002
        self.asked.append(self.progress)
        out: Tensor = (network(batch) - self.progress).square().mean(-1)
        return out

    def __repr__(self) -> str:
        return "Towards()"


def run(objective: Towards, directory: Path | None = None, settings: TrainingSettings = SETTINGS) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Linear(3, 1)
    data = TensorData(torch.linspace(-1, 1, 36).view(12, 3))
    train(network, objective, data, settings, held_out=data, directory=directory, resume=True)
    return {name: weight.clone() for name, weight in network.state_dict().items()}


def test_every_step_is_asked_at_its_time_and_validations_at_the_end() -> None:
    objective = Towards()
    run(objective)
    validations = [1.0] * 6  # 12 rows in batches of 2
    steps = [step / 8 for step in range(8)]
    assert objective.asked == [*steps[:4], *validations, *steps[4:], *validations]


def test_a_crashed_run_goes_on_at_its_time(tmp_path: Path) -> None:
    class Failing(Towards):
        def at(self, progress: float) -> Towards:
            if progress == 5 / 8:
                raise Crash
            return super().at(progress)

    expected = run(Towards())
    Failing.__qualname__ = Towards.__qualname__  # the same objective, for the checkpoint
    with pytest.raises(Crash):
        run(Failing(), tmp_path)
    objective = Towards()
    found = run(objective, tmp_path)
    assert objective.asked[0] == 3 / 8  # the checkpoint of step 3
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_moving_run_is_not_prolonged(tmp_path: Path) -> None:
    """Under a constant learning rate other runs may be; here all steps before would have been others."""
    constant = {"batch_size": 2, "lr_schedule": "constant"}
    run(Towards(), tmp_path, TrainingSettings(num_steps=4, **constant))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="num_steps"):
        run(Towards(), tmp_path, TrainingSettings(num_steps=8, **constant))  # type: ignore[arg-type]


class Clips:
    """Two clips of noise; raises once it was asked for so many batches."""

    def __init__(self, fuse: float = float("inf")) -> None:
        self.fuse = fuse
        self.frames = torch.randint(0, 256, (2, 12, 16, 16, 3), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 2

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        self.fuse -= 1
        if self.fuse < 0:
            raise Crash
        return {"frames": self.frames[indices].to(torch.uint8)}


def backbone(law: object, clips: Clips, directory: Path | None = None) -> dict[str, Tensor]:
    network = {"channels": [8, 8], "attention_levels": ["none", "joint"], "num_blocks": 1, "num_heads": 2}
    settings = BackboneSettings(window=6, network=network)
    training = TrainingSettings(num_steps=6, batch_size=2, num_warmup_steps=1, checkpoint_every=2)
    found, _ = fit_backbone(clips, law, settings, training, directory=directory, resume=True)  # type: ignore[arg-type]
    return found.network.state_dict()


def test_a_backbone_under_a_curriculum(tmp_path: Path) -> None:
    parts = [laws.fdm(6), laws.PlanWindows([frames.autoregressive(12, 3, 6)])]
    same: Callable[[dict[str, Tensor], dict[str, Tensor]], bool] = lambda a, b: all(torch.equal(a[n], b[n]) for n in a)  # noqa: E731
    curriculum = laws.Curriculum(parts, [1.0, 0.0], [0.0, 1.0])
    expected = backbone(curriculum, Clips())
    with pytest.raises(Crash):
        backbone(curriculum, Clips(fuse=7), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]
    assert not same(expected, backbone(curriculum.at(0.0), Clips()))
    assert not same(expected, backbone(curriculum.at(1.0), Clips()))
    stays = laws.Curriculum(parts, [1.0, 0.0], [1.0, 0.0])
    assert same(backbone(stays, Clips()), backbone(curriculum.at(0.0), Clips()))
    assert same(expected, backbone(curriculum, Clips(), tmp_path))
