"""Kills a video in the making, again and again, and compares what comes of it with an undisturbed run.

    .venv/bin/python -m benchmarks.kill_resume --kills 20

A child process draws a video into a store of frames. It is killed (SIGKILL) after random times, some while it writes,
and started again by the same call. Whenever a video is complete it is compared with the undisturbed one, byte by byte.
About two minutes on one core, most of it the start of Python. Exits with 1 if a byte differs.

``--model``: ``noise`` (integers that depend on all that a window reads; exact in any arithmetic), ``gaussian`` (an
exact Gaussian process), or the folder of a video checkpoint. ``--processes 2``: two processes share every wave.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexgen import rng
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.video.storage import FrameStore
from samplers import frames
from samplers.executor import FrameConditional, OverVideo, execute

PLANS: dict[str, Any] = {
    "autoregressive": frames.autoregressive,
    "hierarchy-2": frames.hierarchical,
    "tree": frames.tree,
}
SEED = 3


class Noise:
    """Pixels of a target: those of the slot before it and noise, modulo 256; the first hangs on all observed frames."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def sample_window(self, x: Tensor, query: Query, *, frame_index: Tensor, generator: Streams) -> Tensor:
        time.sleep(self.seconds)
        events = (1,) * (x.ndim - 2)
        shown, places = (t.view(*t.shape, *events) for t in (query.observed, frame_index))
        noise = rng.integers(256, x.shape, generator=generator)
        total = (torch.where(shown, x.long() * (1 + 2 * places), 0).sum(1, keepdim=True) + noise.cumsum(1)) % 256
        return torch.where(query.target.view(*query.target.shape, *events), total.to(x.dtype), x)


def job(arguments: argparse.Namespace) -> tuple[FrameConditional, Any, dict[str, Any]]:
    """The model, the plan, and what the store is opened with."""
    num_frames, num_given, window = arguments.frames, arguments.given, arguments.window
    if arguments.model == "noise":
        model: FrameConditional = Noise(arguments.seconds)
        shape: tuple[int, ...] = (num_frames, 16, 16, 3)
        given = np.random.default_rng(0).integers(256, size=(num_given, *shape[1:]), dtype=np.uint8)
    elif arguments.model == "gaussian":
        from flexgen.exact import Gaussian

        apart = torch.arange(num_frames, dtype=torch.float64)
        covariance = torch.exp(-(apart[:, None] - apart).abs() / 5)
        model, shape = OverVideo(Gaussian(torch.zeros(num_frames), covariance)), (num_frames,)
        given = np.zeros(num_given)
    else:
        from flexgen.video.backbone import VideoBackbone
        from flexgen.video.sampling import WindowSampler

        backbone = VideoBackbone.from_pretrained(arguments.model)
        model, window = WindowSampler(backbone, num_inference_steps=arguments.steps), backbone.window
        shape = (num_frames, *backbone.frame_shape)
        given = np.full((num_given, *backbone.frame_shape), 128, np.uint8)
    plan = PLANS[arguments.plan](num_frames, num_given, window)
    opening = {"shape": shape, "dtype": given.dtype, "observed": range(num_given), "observed_frames": given}
    return model, plan, {**opening, "request": {"model": arguments.model, "steps": arguments.steps}}


def draw(arguments: argparse.Namespace) -> None:
    """What the child does."""
    torch.set_num_threads(1)
    (arguments.folder / f".pid-{os.getpid()}").touch()
    model, plan, opening = job(arguments)
    store = FrameStore.open(arguments.folder / "store", **opening)
    (arguments.folder / ".started").touch()
    execute(model, plan, store, seed=SEED, batch_size=arguments.batch_size)
    (arguments.folder / ".finished").touch()


class Child:
    """A process, or several, that draw into a folder."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder = folder
        for name in (".started", *(path.name for path in folder.glob(".pid-*"))):
            (folder / name).unlink(missing_ok=True)
        flags = [f"--{name}={value}" for name, value in vars(arguments).items() if name not in ("folder", "kills")]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.processes}"]
        module = ["-m", "benchmarks.kill_resume", *flags, f"--folder={folder}"]
        command = [sys.executable, *(launcher if arguments.processes > 1 else []), *module]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment)

    def until(self, name: str, deadline: float = float("inf")) -> float:
        """Waits until it has left the file `name`, and tells the time."""
        while not (self.folder / name).exists() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return time.monotonic()

    def kill_after(self, seconds: float) -> bool:
        """Kills it so long after it began to draw; False if the video was complete before."""
        self.until(".finished", self.until(".started") + seconds)
        if (self.folder / ".finished").exists() or self.process.poll() is not None:
            self.finish()
            return False
        self.process.kill()
        self.process.wait()
        # The workers of torchrun outlive it; each has left its number.
        for pid in (int(path.name.removeprefix(".pid-")) for path in self.folder.glob(".pid-*")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            while _is_alive(pid):
                time.sleep(0.002)
        return True

    def finish(self) -> None:
        if code := self.process.wait():
            raise SystemExit(f"the child failed with {code}")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--model", default="checkpoints/mazes32", help="noise, gaussian, or the folder of a checkpoint")
    parser.add_argument("--plan", choices=PLANS, default="tree")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--given", type=int, default=10)
    parser.add_argument("--window", type=int, default=10, help="of a checkpoint, its own")
    parser.add_argument("--steps", type=int, default=2, help="of a checkpoint, denoising steps a window")
    parser.add_argument("--seconds", type=float, default=0.05, help="that `noise` takes for a batch")
    parser.add_argument("--batch-size", dest="batch_size", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args([flag.replace("batch_size", "batch-size") for flag in sys.argv[1:]])
    if arguments.folder is not None:
        draw(arguments)
        return

    dice = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        undisturbed = Path(place) / "undisturbed"
        undisturbed.mkdir()
        child = Child(undisturbed, arguments)
        seconds = -child.until(".started") + child.until(".finished")
        child.finish()
        expected = FrameStore.existing(undisturbed / "store").frames()
        _, plan, _ = job(arguments)
        print(f"{plan!r}: {seconds:.1f} s undisturbed", flush=True)
        kills, videos, differing, folder = 0, 0, 0, Path(place) / "0"
        folder.mkdir()
        while True:
            if kills < arguments.kills and Child(folder, arguments).kill_after(dice.uniform(0, seconds / 2)):
                kills += 1
                done = len(FrameStore.existing(folder / "store").done)
                print(f"kill {kills}: {done} of {len(plan.windows)} windows done", flush=True)
                continue
            if kills == arguments.kills:
                Child(folder, arguments).finish()
            videos += 1
            differing += int((np.asarray(FrameStore.existing(folder / "store").frames()) != expected).sum())
            if kills == arguments.kills:
                break
            folder = Path(place) / str(videos)
            folder.mkdir()
    print(f"{kills} kills, {videos} videos completed; values that differ from the undisturbed video: {differing}")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
