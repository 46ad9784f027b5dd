"""What exact checks of conditionals cost at their largest size, and that their answers are right.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.compatibility exact
    OPENBLAS_NUM_THREADS=1 python -m benchmarks.compatibility_exact [--sites 16]

Processor seconds on one thread, seconds on the clock and the process's peak memory, for binary sites with all complete
conditionals: once the conditionals of a random joint, whose answers are known, and once tables that share none. Some
seconds for 16 sites (2^16 states). Without OPENBLAS_NUM_THREADS=1 the inner products of GMRES run on several threads;
on busy cores these wait for each other, and count that as processor time: several times what one thread takes.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from flexgen.compatibility import check_tables, closest_joint, scan_divergence, stationary
from flexgen.exact import ConditionalTables, JointTable, kernels

Answer = TypeVar("Answer")


def timed(what: str, action: Callable[[], Answer]) -> Answer:
    """Does something and prints what it cost: processor seconds, seconds on the clock and memory."""
    start, since = time.process_time(), time.perf_counter()
    answer = action()
    spent, waited = time.process_time() - start, time.perf_counter() - since
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB -> GiB
    print(f"  {what:46s} {spent:8.2f} s   on the clock {waited:8.2f} s   peak {peak:.2f} GiB", flush=True)
    return answer


def compatible(sites: int, generator: torch.Generator) -> None:
    joint = JointTable.random((2,) * sites, generator=generator)
    tables = joint.conditional_tables()
    print(f"{sites} binary sites, all complete conditionals of a joint")
    check = timed("verdict, joint, log-odds gap", lambda: check_tables(tables))
    assert check.verdict == "compatible"
    assert check.unique
    assert check.joint is not None
    law = timed("law of the random scan", lambda: stationary(tables, "random"))
    print(f"  largest error of the joint {(check.joint.p - joint.p).abs().max():.1e}, of the law", end=" ")
    print(f"{(law - joint.p).abs().max():.1e} (largest probability {joint.p.max():.1e})")


def incompatible(sites: int, generator: torch.Generator) -> None:
    noise = torch.rand(sites, *(2,) * sites, generator=generator, dtype=torch.float64)
    tables = ConditionalTables([each / each.sum(site, keepdim=True) for site, each in enumerate(noise)])
    order = tuple(range(sites))
    print(f"{sites} binary sites, complete conditionals drawn at random")
    check = timed("verdict, worst loop, log-odds gap", lambda: check_tables(tables))
    assert check.verdict == "incompatible"
    law = timed("law of the random scan", lambda: stationary(tables, "random"))
    moved = sum(kernels.sweep(law, tables, [site]) for site in order) / sites
    apart = timed("two orders and their divergence", lambda: scan_divergence(tables, order, order[::-1]))
    for kind in ("I", "AG"):
        closest = timed(f"closest joint, {kind}", lambda kind=kind: closest_joint(tables, kind))  # type: ignore[misc]
        print(f"    {closest}")
    print(f"  log-odds gap {check.log_odds_gap:.3f} nats; the random scan's law is off balance by", end=" ")
    print(f"{0.5 * (moved - law).abs().sum():.1e} in total variation; forward and backward order: {apart}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sites", type=int, default=16)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {platform.processor() or platform.machine()}")
    generator = torch.Generator().manual_seed(0)
    compatible(options.sites, generator)
    incompatible(options.sites, generator)


if __name__ == "__main__":
    main()
