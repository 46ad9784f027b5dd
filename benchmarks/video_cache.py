"""What one-way attention and its cache save when a window of video is drawn.

    .venv/bin/python -m benchmarks.video_cache

About three minutes on one idle core. `FrameUNet` as it comes (32 x 32 pixels), with the same weights in three ways:

    full      every frame looks at every frame: observed frames go through the network again at every step;
    one-way   observed frames look at observed ones only, still recomputed at every step;
    cached    one-way, with the observed frames' features computed once a window.

It times batches of windows of ten Euler steps for P target and C observed frames, in CPU time, on one thread; the three
alternate and the medians are compared. At P = C the cache leaves half of the frames of every step and one pass over the
observed ones, of which the last blocks are not needed: the goal is .56 of full. ``products`` is the ratio of cached to
full in multiplications, as PyTorch counts them, which no other load on the machine disturbs. ``difference`` is the
largest between the targets' values after ten steps with and without the cache, in standard deviations of a pixel.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gibbs_overhead import keep_freed_memory
from flexgen.networks.frame_unet import FrameUNet
from flexgen.query import Query
from flexgen.rng import Streams
from flexgen.video.backbone import VideoBackbone
from flexgen.video.process import NoiseProcess, PixelScale
from flexgen.video.sampling import WindowSampler


def samplers(num_steps: int) -> dict[str, WindowSampler]:
    """The three ways, with equal weights, none of them zero."""
    torch.manual_seed(0)
    first = FrameUNet()
    with torch.no_grad():
        for weight in first.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    full = FrameUNet(attention="full")
    full.load_state_dict(first.state_dict())
    ways = {"full": (full, False), "one-way": (first, False), "cached": (first, True)}
    out = {}
    for name, (network, cached) in ways.items():
        backbone = VideoBackbone(network.eval(), NoiseProcess(), PixelScale(), window=20)
        out[name] = WindowSampler(backbone, num_inference_steps=num_steps, scheduler="euler", cached=cached)
    return out


def windows(number: int, num_targets: int, num_observed: int) -> tuple[Tensor, Query, Tensor]:
    count = num_targets + num_observed
    frames = torch.randint(0, 256, (number, count, 32, 32, 3), dtype=torch.uint8)
    query = Query.of(range(num_observed, count), range(num_observed), num_sites=count)
    return frames, query, torch.arange(count)


def draw(sampler: WindowSampler, job: tuple[Tensor, Query, Tensor]) -> tuple[float, Tensor]:
    """CPU seconds, and the values after the last step."""
    values: list[Tensor] = []
    start = time.process_time()
    frames, query, index = job
    sampler.on_step = lambda _, value: values.append(value)
    sampler.sample_window(frames, query, frame_index=index, generator=Streams(0, len(frames)))
    return time.process_time() - start, values[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    ways = samplers(arguments.steps)
    size = sum(weight.numel() for weight in ways["full"].backbone.parameters()) / 1e6
    print(f"FrameUNet of {size:.1f}M parameters, {arguments.steps} steps, medians of {arguments.repeats}; ms a window")
    heads = ("windows", "P/C", *ways, "cached/full", "products", "difference")
    print("".join(f"{head:>12}" for head in heads))
    for number, num_targets, num_observed in ((1, 6, 6), (1, 10, 10), (1, 9, 3), (4, 6, 6)):
        job = windows(number, num_targets, num_observed)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        values, products = {}, {}
        for name, sampler in ways.items():  # and warm up
            values[name] = draw(sampler, job)[1]
            torch.backends.mkldnn.enabled = False  # whose packed convolutions PyTorch does not count
            with FlopCounterMode(display=False) as counter:
                draw(sampler, job)
            torch.backends.mkldnn.enabled = True
            products[name] = counter.get_total_flops()
        for _ in range(arguments.repeats):
            for name, sampler in ways.items():
                seconds[name].append(draw(sampler, job)[0])
        medians = [1e3 * statistics.median(seconds[name]) / number for name in ways]
        row = [f"{number}", f"{num_targets}/{num_observed}", *(f"{median:.0f}" for median in medians)]
        row += [f"{medians[2] / medians[0]:.3f}", f"{products['cached'] / products['full']:.3f}"]
        row += [f"{float((values['cached'] - values['one-way']).abs().max()):.1e}"]
        print("".join(f"{cell:>12}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
