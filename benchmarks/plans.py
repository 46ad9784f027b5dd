"""What plans of long videos cost: FDM's, and the keyframe tree.

    python -m benchmarks.plans

36 frames are given, the network sees 20. Windows; waves (the longest chain of windows that wait for each other); reach
(over how many frames coherence must be held at once); frames that pass the network for each generated frame, at 10
denoising steps: all frames of a window at every step, or, with the features of observed frames cached, its targets at
every step and the observed frames once. Counts, no clock: seconds.
"""

from __future__ import annotations

import argparse
import math

from samplers import frames
from samplers.frames import Plan

GIVEN, WINDOW = 36, 20
GAPS = (math.inf, None, 240, 100, 50, 18)


def plans(num_frames: int) -> dict[str, Plan]:
    """The plans to compare, by name."""
    compared = {
        "autoregressive": frames.autoregressive(num_frames, GIVEN, WINDOW),
        "long-range": frames.long_range(num_frames, GIVEN, WINDOW),
        **{f"hierarchy-{n}": frames.hierarchical(num_frames, GIVEN, WINDOW, n) for n in (2, 3, 5)},
        "**tree**": frames.tree(num_frames, GIVEN, WINDOW),
    }
    return compared | {"**tree** + 1 sweep": frames.refine(compared["**tree**"])}


def row(name: str, num_frames: int, plan: Plan, num_steps: int) -> str:
    whole, cached = (plan.evaluations_per_frame(num_steps, cached=cached) for cached in (False, True))
    return (
        f"| {num_frames} | {name} | {len(plan.windows)} | {plan.critical_path} | {plan.reach} | {whole:.1f} "
        f"| {cached:.1f} | {len(plan.seams)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps a window (default 10)")
    steps = parser.parse_args().steps
    columns = ("N", "plan", "windows", "waves", "reach", "frames a generated frame", "cached", "seams")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    print(head)
    for num_frames in (300, 1000, 15_000):
        for name, plan in plans(num_frames).items():
            print(row(name, num_frames, plan, steps))
    print("\nThe tree's waves against its reach:\n")
    print(head)
    for gap in GAPS:
        plan = frames.tree(15_000, GIVEN, WINDOW, max_gap=gap)
        print(row(f"max_gap={'default' if gap is None else gap}", 15_000, plan, steps))


if __name__ == "__main__":
    main()
