"""SIGKILL at random moments of everything that is saved or resumed, and what is found after it.

    python -m tests.kill.kills --kills 100          # make kill

Each case has a job, done by a process of its own that is killed after a random time, again and again. After every kill
the files are read. They are *torn* if they cannot be read, or if the job cannot go on from them; *mixed* if what is
read is neither the state of before nor that of after; a completed job is *identical* if it is, to the bit, what comes
of one that was never disturbed. The last case saves two files one after the other, as one should not: it shows that
the kills come at moments that matter. Exits with 1 if any other case is torn, mixed or not identical.

Processes are forked from one that has imported everything, so that a kill costs milliseconds.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from flexgen.errors import FlexgenError
from flexgen.exact import Gaussian
from flexgen.table_model import TableModel
from flexgen.training import TrainingSettings, latest_checkpoint, read_checkpoint, train
from flexgen.video import NoiseProcess, PixelScale, VideoBackbone
from flexgen.video.storage import FrameStore
from flexgen.video_pipeline import VideoPipeline
from samplers import ChainState, GibbsSampler, scans
from tests.networks import small
from tests.tables.small import EXACT, mixed_table
from tests.training import toy


@dataclass
class Count:
    """What the kills of a case came to."""

    case: str
    kills: int = 0
    torn: int = 0
    mixed: int = 0
    completed: int = 0
    identical: int = 0

    @property
    def is_well(self) -> bool:
        return self.torn == self.mixed == 0 and self.identical == self.completed > 0


def forked(job: Callable[[], object]) -> int:
    """The number of a new process that does the job."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return number


def finished(job: Callable[[], object]) -> float:
    """Seconds of a job in a process of its own, undisturbed."""
    began = time.monotonic()
    if os.waitpid(forked(job), 0)[1]:
        raise SystemExit("the undisturbed job failed")
    return time.monotonic() - began


def killed(job: Callable[[], object], seconds: float) -> int | None:
    """Kills the job after so long; the code that it ended with if it was faster, else None."""
    number = forked(job)
    time.sleep(seconds)
    os.kill(number, signal.SIGKILL)
    status = os.waitpid(number, 0)[1]
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def killed_savers(
    case: str, place: Path, save: Callable[[Path, int], object], read: Callable[[Path], Any], kills: int, dice: Any
) -> Count:
    """Two versions are saved in turn to one folder, for ever; `read` gives what tells them apart."""
    states, count = [], Count(case)
    for version in (0, 1):
        save(place / f"version-{version}", version)
        states.append(read(place / f"version-{version}"))
    assert states[0] != states[1]
    folder = place / "folder"
    save(folder, 0)

    def saving(times: float) -> None:
        number = 0
        while number < times:
            number += 1
            save(folder, number % 2)

    seconds = finished(lambda: saving(6)) / 3
    while count.kills < kills:
        killed(lambda: saving(float("inf")), dice.uniform(0, seconds))
        count.kills += 1
        try:
            found = read(folder)
        except FlexgenError as error:
            print(f"{case}: {error}", file=sys.stderr)
            count.torn += 1
            shutil.rmtree(folder, ignore_errors=True)
        else:
            count.mixed += found not in states
        version, count.completed = count.kills % 2, count.completed + 1
        save(folder, version)
        count.identical += read(folder) == states[version]
    return count


def killed_runs(
    case: str,
    place: Path,
    run: Callable[[Path], object],
    look: Callable[[Path, Path], bool],
    result: Callable[[Path], Any],
    kills: int,
    dice: Any,
) -> Count:
    """A run that goes on from what it finds, killed until it is complete, and begun again in a new folder.

    Args:
        run: in a folder.
        look: whether what a killed run left in the first folder is on the way of the undisturbed one in the second.
        result: of a complete run.
    """
    undisturbed, count = place / "undisturbed", Count(case)
    undisturbed.mkdir()
    seconds = finished(lambda: run(undisturbed))
    expected, folder = result(undisturbed), place / "0"
    folder.mkdir()
    while count.kills < kills or not count.completed:
        job = functools.partial(run, folder)
        if count.kills < kills:
            code = killed(job, dice.uniform(0, seconds / 2))
        else:
            finished(job)
            code = 0
        if code is None:
            count.kills += 1
            try:
                count.mixed += not look(folder, undisturbed)
            except FlexgenError as error:
                print(f"{case}: {error}", file=sys.stderr)
                count.torn += 1
            continue
        count.torn += code != 0
        count.completed += 1
        count.identical += code == 0 and result(folder) == expected
        folder = place / str(count.completed)
        folder.mkdir()
    return count


# The cases.


def tables(place: Path, kills: int, dice: Any) -> Count:
    models = [TableModel.fit(mixed_table(40, seed=seed), settings=EXACT, progress=False) for seed in (0, 1)]

    def read(folder: Path) -> Any:
        model = TableModel.from_pretrained(folder)
        weights = {name: weight.tolist() for name, weight in model.conditional().state_dict().items()}
        return weights, model.schema.to_dict(), model.report.to_dict()

    return killed_savers("saving a table", place, lambda f, v: models[v].save_pretrained(f), read, kills, dice)


def backbones(place: Path, kills: int, dice: Any) -> Count:
    models = []
    for version in (0, 1):
        network = small.network()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(version)
        about = {"clips": version}
        models.append(VideoBackbone(network, NoiseProcess(), PixelScale(), window=5 + version, trained_on=about))

    def read(folder: Path) -> Any:
        model = VideoBackbone.from_pretrained(folder)
        return model.fingerprint(), model.trained_on

    return killed_savers("saving a backbone", place, lambda f, v: models[v].save_pretrained(f), read, kills, dice)


def training(place: Path, kills: int, dice: Any) -> Count:
    settings = TrainingSettings(num_steps=60, batch_size=8, checkpoint_every=2, validate_every=10, ema_decay=0.9)

    def run(folder: Path) -> None:
        network, objective, data, held_out = toy.parts()
        how = {"directory": folder, "resume": True, "progress": False}
        train(network, objective, data, settings, held_out=held_out, **how)

    def look(folder: Path, undisturbed: Path) -> bool:
        path = latest_checkpoint(folder)
        if path is None:
            return True
        found = read_checkpoint(path)
        return found.step <= read_checkpoint(latest_checkpoint(undisturbed)).step

    def result(folder: Path) -> Any:
        found = read_checkpoint(latest_checkpoint(folder))
        tensors = {f"{g}/{n}": t.tolist() for g, group in found.tensors.items() for n, t in group.items()}
        history = [{k: v for k, v in record.items() if k != "seconds"} for record in found.state["history"]]
        return found.step, tensors, history

    return killed_runs("training", place, run, look, result, kills, dice)


def gibbs(place: Path, kills: int, dice: Any) -> Count:
    covariance = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.5], [0.2, 0.5, 1.0]], dtype=torch.float64)
    sampler = GibbsSampler(Gaussian(torch.zeros(3), covariance), scan=scans.random())
    most, every = 60, 3

    def way(until: Callable[[ChainState], object], state: ChainState | None) -> None:
        while state is None or state.num_sweeps < most:
            start = {"chains": 4, "generator": 0} if state is None else {"state": state}
            state = sampler.run(draws=every, **start).state
            until(state)

    states: dict[int, list] = {}
    way(lambda state: states.update({state.num_sweeps: state.x.tolist()}), None)

    def run(folder: Path) -> None:
        path = folder / "chains.safetensors"
        way(lambda state: state.save(path), ChainState.load(path) if path.exists() else None)

    def look(folder: Path, _undisturbed: Path) -> bool:
        path = folder / "chains.safetensors"
        if not path.exists():
            return True
        state = ChainState.load(path)
        return states.get(state.num_sweeps) == state.x.tolist()

    def result(folder: Path) -> Any:
        return (folder / "chains.safetensors").read_bytes()

    return killed_runs("Gibbs", place, run, look, result, kills, dice)


def video(place: Path, kills: int, dice: Any) -> Count:
    network = small.network()
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.add_(0.05)
    pipe = VideoPipeline(VideoBackbone(network, NoiseProcess(), PixelScale(), window=6))

    def run(folder: Path) -> None:
        given = np.random.default_rng(0).integers(256, size=(2, *pipe.backbone.frame_shape), dtype=np.uint8)
        pipe(given, num_frames=20, num_inference_steps=1, generator=0, output_dir=folder / "out")

    def look(folder: Path, undisturbed: Path) -> bool:
        frames = folder / "out" / "frames"
        if not (frames / "frames.json").exists():
            return True
        store, whole = FrameStore.existing(frames), FrameStore.existing(undisturbed / "out" / "frames")
        store.verify()
        settled = sorted(store.settled)
        return bool((store.read(settled) == whole.read(settled)).all())

    def result(folder: Path) -> Any:
        files = ("frames/frames.npy", "plan.json", "contact_sheet.png", "flexgen-manifest.json")
        return [(folder / "out" / name).read_bytes() for name in files]

    return killed_runs("a video", place, run, look, result, kills, dice)


def one_file_after_the_other(place: Path, kills: int, dice: Any) -> Count:
    """The first by a rename, as is right for a file alone, the second in its place."""

    def save(folder: Path, version: int) -> None:
        folder.mkdir(exist_ok=True)
        for name in ("config.partial", "weights"):
            with (folder / name).open("wb") as file:
                for _ in range(20):
                    file.write(bytes([65 + version]) * 10_000)
            if name == "config.partial":
                (folder / name).replace(folder / "config")

    def read(folder: Path) -> Any:
        files = [(folder / name).read_bytes() for name in ("config", "weights")]
        if {len(content) for content in files} != {200_000}:
            raise FlexgenError("folder", "holds half a file", "Save it as flexgen does.")
        return files

    return killed_savers("one file after the other", place, save, read, kills, dice)


CASES = (tables, backbones, training, gibbs, video)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each case")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts = []
    for case in (*CASES, one_file_after_the_other):
        with tempfile.TemporaryDirectory() as place:
            kills = max(arguments.kills, 30) if case is one_file_after_the_other else arguments.kills
            counts.append(case(Path(place), kills, random.Random(f"{arguments.seed} {case.__name__}")))
    shown = Table(title="SIGKILL at random moments", title_justify="left")
    for heading in ("", "kills", "torn", "mixed", "completed after", "identical"):
        shown.add_column(heading, justify="right" if heading else "left")
    for count in counts:
        shown.add_row(count.case, *map(str, (count.kills, count.torn, count.mixed, count.completed, count.identical)))
    Console(width=100).print(shown)
    *ours, wrong = counts
    if not wrong.torn + wrong.mixed:
        raise SystemExit("the kills have missed even the saver that is wrong: they show nothing")
    sys.exit(0 if all(count.is_well for count in ours) else 1)


if __name__ == "__main__":
    main()
