"""What a random number of `rng.Streams` costs beside torch's generators.

    .venv/bin/python -m benchmarks.random_streams

Nanoseconds a number on one thread, medians of alternating runs:

    streams       one stream a row, Philox 4x32-10: results do not depend on the batch;
    one           ``torch.rand`` from one generator for all rows: fast, and they do;
    each          ``torch.rand`` from one generator a row, seeded by the row's name, which has the same property;
    splitmix      the hash that `Streams` used before: two SplitMix64 finalisers, without a published test record.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from flexgen import rng

SHAPES = ((64, 1), (64, 16), (1024, 16), (64, 784), (1024, 256), (8, 61_440))
REPEATS = 15


def splitmix(rows: Tensor, num_numbers: int) -> Tensor:
    def mix(z: Tensor) -> Tensor:
        z = (z ^ ((z >> 30) & 0x3FFFFFFFF)).mul_(0xBF58476D1CE4E5B9 - (1 << 64))
        z.bitwise_xor_((z >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(0x94D049BB133111EB - (1 << 64))
        return z.bitwise_xor_((z >> 31).bitwise_and_(0x1FFFFFFFF))

    places = mix(torch.arange(num_numbers) * (0xD1B54A32D192ED03 - (1 << 64)))
    bits = mix(mix(rows)[:, None] ^ places)
    return ((bits >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53


def each(num_rows: int, num_numbers: int, dtype: torch.dtype) -> Tensor:
    drawn = torch.empty(num_rows, num_numbers, dtype=dtype)
    generator = torch.Generator()
    for row in range(num_rows):
        generator.manual_seed(rng.key(0, row))
        torch.rand(num_numbers, generator=generator, out=drawn[row])
    return drawn


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    print(f"ns a number, one thread; medians of {REPEATS} alternating runs")
    names = ("streams", "one", "each", "splitmix")
    print(f"{'rows':>6}{'numbers':>9}{'dtype':>10}" + "".join(f"{name:>10}" for name in names))
    for num_rows, num_numbers in SHAPES:
        for dtype in (torch.float64, torch.float32):
            streams, one = rng.Streams(0, num_rows), torch.Generator().manual_seed(0)
            shape = (num_rows, num_numbers)
            works: dict[str, Callable[[], object]] = {
                "streams": lambda: rng.uniform(shape, generator=streams, dtype=dtype),  # noqa: B023
                "one": lambda: torch.rand(shape, generator=one, dtype=dtype),  # noqa: B023
                "each": lambda: each(*shape, dtype),  # noqa: B023
                "splitmix": lambda: splitmix(streams.rows, num_numbers),  # noqa: B023
            }
            times: dict[str, list[float]] = {name: [] for name in names}
            repeats = max(1, 100_000 // (num_rows * num_numbers))
            for _ in range(REPEATS):
                for name, work in works.items():
                    times[name].append(seconds(lambda: [work() for _ in range(repeats)]))  # noqa: B023
            numbers = repeats * num_rows * num_numbers
            medians = "".join(f"{1e9 * statistics.median(times[name]) / numbers:>10.1f}" for name in names)
            print(f"{num_rows:>6}{num_numbers:>9}{str(dtype).removeprefix('torch.'):>10}{medians}")


if __name__ == "__main__":
    main()
