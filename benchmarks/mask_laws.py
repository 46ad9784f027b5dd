"""What drawing queries costs, beside the training step it feeds.

    python -m benchmarks.mask_laws

Prints, for every law, the milliseconds of one draw of 4096 queries over 1024 sites on one thread, and its ratio to
one training step (forward, backward, AdamW) of a small network on that batch: a masked MLP from 2 x 1024 inputs
(values, and which are observed) through two hidden layers of 256 to 1024 outputs. A transformer's step is longer by
orders of magnitude, so this is the strict comparison. Processor time, which a busy machine disturbs less than the
clock; best of a few repetitions. A ratio below 1 passes.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torch import nn

from flexgen.laws import MaskLaw
from samplers import laws

ROWS, SITES, WIDTH, SIDE = 4096, 1024, 256, 32


def field_laws(x: torch.Tensor) -> dict[str, tuple[MaskLaw, dict[str, torch.Tensor]]]:
    """Every law, with what its draw takes besides the entries present."""
    grid, video = (SIDE, SIDE), (4, SIDE // 2, SIDE // 2)
    words = {"groups": (torch.arange(SITES) * 2 // 3).expand(len(x), -1)}
    values = {"x": x}
    generator = torch.Generator().manual_seed(0)
    drivers = range(SITES // 2)
    own, halves = range(SITES), (range(SITES // 2), range(SITES // 2, SITES))
    return {
        "uniform_cardinality / any_order": (laws.any_order(), {}),
        "power_cardinality (k + 1)": (laws.power_cardinality(), {}),
        "mac": (laws.mac(), {}),
        "vaeac_tables": (laws.vaeac_tables(), {}),
        "simformer": (laws.simformer(), {}),
        "simformer_tasks": (laws.simformer_tasks(*halves), {}),
        "bert (80/10/10)": (laws.bert(), {}),
        "whole_word_bert": (laws.whole_word_bert(), words),
        "span_bert": (laws.span_bert(), words),
        "t5": (laws.t5(), {}),
        "ul2": (laws.ul2(), {}),
        "xlnet": (laws.xlnet(), {}),
        "causal": (laws.causal(), {}),
        "mdlm / llada": (laws.mdlm(), {}),
        "mae": (laws.mae(), {}),
        "sim_mim": (laws.sim_mim(grid, (8, 8)), {}),
        "video_mae": (laws.video_mae(video), {}),
        "beit": (laws.beit(grid, 75 * SITES // 196), {}),
        "maskgit": (laws.maskgit(), {}),
        "mage": (laws.mage(), {}),
        "vaeac_images": (laws.vaeac_images(grid), {}),
        "fdm": (laws.fdm(), {}),
        "MAR, logistic": (laws.LogisticMissing.mar(x, drivers=drivers, rate=0.3, generator=generator), values),
        "MNAR, self-masked": (laws.LogisticMissing.mnar(x, rate=0.3), values),
        "MNAR, quantile": (laws.QuantileMissing.fit(x[:256], drivers=own, quantile=0.7, rate=0.5), values),
        "Strided": (laws.Strided(4), {}),
        "Product of two modalities": (laws.Product([(part, laws.mae()) for part in halves]), {}),
    }


def training_step() -> Callable[[], object]:
    """One step of the small network, as a function without arguments."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Linear(2 * SITES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, SITES)
    )
    optimizer = torch.optim.AdamW(network.parameters())
    x = torch.randn(ROWS, SITES, generator=generator)
    observed = torch.rand(ROWS, SITES, generator=generator) < 0.5

    def step() -> None:
        optimizer.zero_grad()
        answer = network(torch.cat([x * observed, observed.float()], -1))
        (((answer - x) ** 2) * ~observed).mean().backward()
        optimizer.step()

    return step


def milliseconds(call: Callable[[], object], repetitions: int) -> float:
    """Least processor time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, SITES, generator=generator)
    present = torch.ones(ROWS, SITES, dtype=torch.bool)

    step = milliseconds(training_step(), repetitions)
    print(f"{ROWS} queries over {SITES} sites, one thread, torch {torch.__version__}, {platform.machine()}")
    print(f"{'one training step (masked MLP, AdamW)':40s} {step:8.1f} ms")
    for name, (law, extra) in field_laws(x).items():
        cost = milliseconds(lambda law=law, extra=extra: law.draw(present, generator=generator, **extra), repetitions)  # type: ignore[misc]
        print(f"{name:40s} {cost:8.1f} ms   {cost / step:5.2f} of a step")


if __name__ == "__main__":
    main()
