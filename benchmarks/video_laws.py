"""Which windows to train on: a mask law for video backbones, by attention, at matched supervision.

    python -m benchmarks.video_laws                          # the tables of the scores kept beside this file
    make mazes && python -m benchmarks.video_laws --train    # train the models and score them: hours

Laws:

    fdm          FDM's groups of evenly spaced frames
    plans        the windows of the plans below, in equal shares
    half         either, by a fair coin
    curriculum   from fdm to plans, in a straight line over the steps

They differ in how many target frames a window has. Every row sees the same number of target frames, in expectation and
to a hundredth: a law of fewer targets has larger batches, of whole windows, and the steps make up for rounding.
``--steps`` are those of ``fdm`` at ``--batch-size``.

Tables: held-out loss by noise level on the windows of each plan, each in a row with its standard error over seeds and,
of the differences to the first row, over seeds and clips; and the quality of videos by each plan, as in
``benchmarks.video_quality``.

``--train`` keeps every model in ``out/video_laws/<law>-<attention>-seed<k>``, and all scores in
``out/video_laws/scores.json``: stop the command when you like, the same command goes on, in the midst of a training
from its last checkpoint. ``--laws``, ``--attention`` and ``--train-only`` do a part, so that two commands can share the
models.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.matched_laws import LAWS, NUM_FRAMES, NUM_GIVEN, Supervision, law_of, mean_targets, plan_windows
from benchmarks.video_scores import (
    PLANS,
    Job,
    Score,
    format_table,
    generate_all,
    load_clips,
    look_scores,
    mean_of,
    read_clips,
    seam_scores,
)
from flexgen import rng
from flexgen.data.videos import VideoFolder
from flexgen.metrics.video.maze_features import MazeFeatures
from flexgen.training import TrainingSettings
from flexgen.video.backbone import VideoBackbone
from flexgen.video.fit import BackboneSettings, fit_backbone
from flexgen.video.objective import FrameDenoising
from samplers import laws

ATTENTION = ("one_way", "full")
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
CONFIGS = Path(__file__).parents[1] / "configs" / "model"
SCORES = "scores.json"  # of a model in its folder, of all of them beside the folders
KEPT = Path(__file__).with_name("video_laws.json")
Models = dict[str, Any]  # "law-attention-seedK" -> the scores of a model


def model_name(law: str, attention: str, seed: int) -> str:
    return f"{law}-{attention}-seed{seed}"


@dataclass(frozen=True)
class Bench:
    """What all models share."""

    output: Path
    clips: list[Path]
    train: VideoFolder
    held_out: VideoFolder
    settings: BackboneSettings
    training: TrainingSettings
    processes: int
    num_videos: int
    held_out_draws: int

    def folder(self, law: str, attention: str, seed: int) -> Path:
        return self.output / model_name(law, attention, seed)

    def supervision(self, law: str) -> Supervision:
        training, window = self.training, self.settings.window
        wanted = training.num_steps * training.batch_size * mean_targets("fdm", window)
        return Supervision.matching(wanted, mean_targets(law, window), num_steps=training.num_steps)


def trained(bench: Bench, law: str, attention: str, seed: int) -> VideoBackbone | None:
    """The model, from its folder if it is complete there; None if its training was interrupted."""
    folder = bench.folder(law, attention, seed)
    settings = replace(bench.settings, network={**bench.settings.network, "attention": attention})
    given = bench.supervision(law)
    warmup = min(bench.training.num_warmup_steps, given.num_steps // 10)
    training = replace(
        bench.training, num_steps=given.num_steps, batch_size=given.batch_size, num_warmup_steps=warmup, seed=seed
    )
    if (folder / "backbone.json").is_file():
        backbone = VideoBackbone.from_pretrained(folder)
        wanted = json.loads(json.dumps({"settings": asdict(settings), "training": asdict(training)}))
        if any(backbone.trained_on.get(name) != value for name, value in wanted.items()):
            raise SystemExit(f"{folder} holds a model of other settings: pass them again, or another --output.")
        return backbone
    print(f"{folder.name}: {given}", flush=True)
    backbone, result = fit_backbone(
        bench.train,
        law_of(law, settings.window),
        settings,
        training,
        directory=folder / "checkpoints",
        resume=True,
        on_record=lambda record: print(f"  step {record['step']}: loss {record['loss']:.4f}", flush=True),
    )
    if result.stopped != "finished":
        return None
    backbone.save_pretrained(folder)
    return backbone


@torch.no_grad()
def held_out_losses(backbone: VideoBackbone, bench: Bench) -> dict[str, dict[str, list[float]]]:
    """Plan -> noise level -> the loss of each held-out clip; the windows and the noise are the same for all models."""
    window = backbone.window
    out: dict[str, dict[str, list[float]]] = {}
    rows = torch.arange(len(bench.held_out))
    for name, shapes in plan_windows(window).items():
        for level in LEVELS:
            objective = FrameDenoising(
                laws.PlanWindows([shapes]), backbone.process, backbone.scale, window=window, level=level
            )
            losses = torch.zeros(len(rows))
            for draw in range(bench.held_out_draws):
                for part in torch.split(rows, 8):
                    streams = rng.Streams(rng.key(0, "held-out", name, draw), part)
                    losses[part] += objective(backbone.network, bench.held_out.batch(part), streams)
            out.setdefault(name, {})[str(level)] = (losses / bench.held_out_draws).tolist()
    return out


def sample_scores(folder: Path, bench: Bench) -> dict[str, dict[str, Score]]:
    """Plan -> scores of videos that it makes."""
    chosen, rest = bench.clips[: bench.num_videos], bench.clips[bench.num_videos :]
    truth, reference = (read_clips(part)[:, :NUM_FRAMES] for part in (chosen, rest))
    network = MazeFeatures.pretrained()
    plans = {name: make(NUM_FRAMES, NUM_GIVEN, bench.settings.window) for name, make in PLANS.items()}
    jobs = [[Job(str(folder), clip, plan, seed=k) for k, clip in enumerate(chosen)] for plan in plans.values()]
    out = {}
    for (name, plan), made in zip(plans.items(), generate_all(jobs, processes=bench.processes), strict=True):
        looks = look_scores(made.videos[:, NUM_GIVEN:], truth[:, NUM_GIVEN:], reference, network)
        seams = seam_scores(made.videos, truth, plan)
        out[name] = {k: looks[k] for k in ("frechet", "motion", "sharpness", "flawed")} | seams
    return out


def scores_of(backbone: VideoBackbone, folder: Path, bench: Bench) -> dict[str, Any]:
    """The model's scores, kept in its folder."""
    asked = {"draws": bench.held_out_draws, "videos": bench.num_videos, "clips": len(bench.clips)}
    kept = folder / SCORES
    if kept.is_file() and (found := json.loads(kept.read_text()))["asked"] == asked:
        return dict(found)
    found = {"asked": asked, "losses": held_out_losses(backbone, bench), "samples": sample_scores(folder, bench)}
    write_json(kept, found)
    return found


def write_json(path: Path, value: Any) -> None:
    """At once or not at all; numbers to six digits."""

    def short(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: short(each) for name, each in part.items()}
        if isinstance(part, list | tuple):
            return [short(each) for each in part]
        return float(f"{part:.6g}") if isinstance(part, float) else part

    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(short(value)) + "\n")
    partial.replace(path)


def loss_table(scores: Mapping[str, list[dict[str, Any]]], plan: str) -> str:
    """Losses of each row by noise level, and how far they are from those of the first row."""
    rows: dict[str, dict[str, Score]] = {}
    first: dict[str, Tensor] = {}
    for name, models in scores.items():
        rows[name] = {}
        for level in map(str, LEVELS):
            losses = torch.tensor([model["losses"][plan][level] for model in models], dtype=torch.float64)  # [S, V]
            rows[name][level] = mean_of(losses.mean(1).tolist())
            first.setdefault(level, losses)
            if losses is not first[level]:
                rows[name][f"{level}, less"] = difference(losses, first[level])
    return format_table(f"\nHeld-out loss by noise level, windows of: {plan}", rows)


def difference(losses: Tensor, others: Tensor) -> Score:
    """Mean of ``[S, V]`` less that of ``[S', V]``; clips are the same on both sides, seeds are not.

    Its error is over both; where there is one seed, over clips alone.
    """
    apart = losses.mean(0) - others.mean(0)
    variance = float(apart.var()) / len(apart)
    for side in (losses, others):
        if len(side) > 1:
            variance += float(side.mean(1).var()) / len(side)
    return Score(float(apart.mean()), math.sqrt(variance))


def sample_table(scores: Mapping[str, list[dict[str, Any]]], plan: str) -> str:
    rows = {}
    for name, models in scores.items():
        samples = [model["samples"][plan] for model in models]
        values = {column: [sample[column] for sample in samples] for column in samples[0]}
        rows[name] = {
            column: mean_of([score[0] for score in found]) if len(found) > 1 else Score(*found[0])
            for column, found in values.items()
        }
    return format_table(f"\nVideos by the plan: {plan}", rows)


def bench_of(arguments: argparse.Namespace) -> Bench:
    data = Path(arguments.data)
    train, held_out = (VideoFolder(data / name, num_frames=NUM_FRAMES) for name in ("train", "held_out"))
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{arguments.model_config}.yaml"))
    training = TrainingSettings(
        num_steps=arguments.steps, batch_size=arguments.batch_size, lr=arguments.lr, num_warmup_steps=50,
        ema_decay=0.99, amp="bf16", validate_every=200, checkpoint_every=200,
    )  # fmt: skip
    return Bench(
        Path(arguments.output), load_clips(data / "held_out"), train, held_out,
        BackboneSettings(**config), training,  # type: ignore[arg-type]
        arguments.processes, arguments.videos, arguments.held_out_draws,
    )  # fmt: skip


def train_and_score(arguments: argparse.Namespace) -> Models:
    """What is asked for, in the order of the tables; scores of all that is there are written beside the models."""
    bench, models = bench_of(arguments), {}
    for attention in arguments.attention:
        for law in arguments.laws:
            for seed in range(arguments.seeds if attention == "one_way" else arguments.full_seeds):
                backbone = trained(bench, law, attention, seed)
                if backbone is None:
                    raise KeyboardInterrupt
                if not arguments.train_only:
                    folder = bench.folder(law, attention, seed)
                    models[folder.name] = scores_of(backbone, folder, bench) | {"about": backbone.trained_on}
    if models:
        write_json(bench.output / SCORES, models)
    return models


def print_tables(models: Models) -> None:
    """A row for each law and attention, over the seeds that there are."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for attention in ATTENTION:
        for law in LAWS:
            found = [models[name] for seed in range(100) if (name := model_name(law, attention, seed)) in models]
            if found:
                rows[f"{law}, {attention} ({len(found)})"] = found
    first = next(iter(models.values()))
    for plan in first["losses"]:
        print(loss_table(rows, plan))
    for plan in first["samples"]:
        print(sample_table(rows, plan))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, default=KEPT, help="a file of scores, for the tables")
    parser.add_argument("--train", action="store_true", help="train the models, and score them")
    parser.add_argument("--data", default="mazes", help="folder of train/ and held_out/")
    parser.add_argument("--output", default="out/video_laws")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=LAWS)
    parser.add_argument("--attention", nargs="+", choices=ATTENTION, default=ATTENTION)
    parser.add_argument("--model-config", default="frame_unet_1m", help="a file of configs/model")
    parser.add_argument("--steps", type=int, default=1000, help="of fdm; the others have as many targets")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3, help="of rows with one-way attention")
    parser.add_argument("--full-seeds", type=int, default=1, help="of rows with full attention")
    parser.add_argument("--videos", type=int, default=3, help="of each model and plan")
    parser.add_argument("--held-out-draws", type=int, default=4, help="windows of each clip, plan and level")
    parser.add_argument("--processes", type=int, default=1, help="that generate videos")
    parser.add_argument("--train-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        models = train_and_score(arguments)
    elif arguments.scores.is_file():
        models = json.loads(arguments.scores.read_text())
        print(f"Scores kept in {arguments.scores}; --train makes them anew.")
    else:
        raise SystemExit(f"{arguments.scores} is not there: pass --scores, or --train to make them.")
    if models:
        print_tables(models)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on") from None
