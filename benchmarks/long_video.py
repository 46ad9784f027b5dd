"""Thousands of frames in one run: seconds, and memory that does not grow with the length.

    .venv/bin/python -m benchmarks.long_video --frames 15000

Generates the video twice as a user would, by ``VideoPipeline`` with an output folder, each time in fresh processes:
once `--short` frames long and once `--frames`, and prints seconds, frames a second and the largest resident memory of
any process. The first frames of the clip that comes with the checkpoint are given. With ``--processes 2`` (the
default) two processes of one thread share every wave.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "checkpoints/mazes32"


def generate(arguments: argparse.Namespace) -> None:
    """One run, in this process and its siblings; every process leaves its peak memory in the folder."""
    import os

    import torch

    from flexgen.video_pipeline import VideoPipeline

    torch.set_num_threads(1)
    pipe = VideoPipeline.from_pretrained(arguments.model)
    began = time.monotonic()
    out = pipe(
        arguments.observed,
        num_frames=arguments.frames,
        plan=arguments.plan,
        num_inference_steps=arguments.steps,
        generator=0,
        output_dir=arguments.folder,
        progress=arguments.progress,
    )
    record = {
        "seconds": time.monotonic() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "windows": len(out.plan.windows),
        "waves": out.plan.critical_path,
        "frame_evaluations": out.frame_evaluations,
    }
    Path(arguments.folder, f"record-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(record))


def run(frames: int, arguments: argparse.Namespace) -> dict[str, float]:
    """The run in processes of its own."""
    folder = Path(tempfile.mkdtemp(prefix="long-video-"))
    command = [sys.executable]
    if arguments.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes)]
    command += ["-m", "benchmarks.long_video", "--child", "--folder", str(folder), "--frames", str(frames)]
    command += ["--model", arguments.model, "--observed", arguments.observed, "--plan", arguments.plan]
    command += ["--steps", str(arguments.steps), *(["--progress"] if arguments.progress else [])]
    try:
        subprocess.run(command, check=True)
        records = [json.loads(path.read_text()) for path in folder.glob("record-*.json")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {name: max(record[name] for record in records) for name in records[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=15_000)
    parser.add_argument("--short", type=int, default=1000)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--observed", default=f"{MODEL}/held_out.mp4")
    parser.add_argument("--plan", default="tree")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        generate(arguments)
        return
    print(f"{arguments.plan} plan, {arguments.steps} steps, {arguments.processes} process(es) of one thread")
    print(f"{'frames':>8}{'windows':>9}{'waves':>7}{'evals/frame':>12}{'seconds':>9}{'frames/s':>10}{'peak MiB':>9}")
    peaks = []
    for frames in (arguments.short, arguments.frames):
        found = run(frames, arguments)
        peaks.append(found["peak_mib"])
        print(
            f"{frames:>8}{found['windows']:>9.0f}{found['waves']:>7.0f}{found['frame_evaluations']:>12.1f}"
            f"{found['seconds']:>9.0f}{frames / found['seconds']:>10.1f}{found['peak_mib']:>9.0f}",
            flush=True,
        )
    print(f"peak memory of {arguments.frames} frames over that of {arguments.short}: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
