"""One training run in a process of its own, for the tests that kill it or start several: ``child.py DIR DELAY``.

Writes the weights it ends with to ``DIR/result-RANK.safetensors``, and, if it is one of several,
the rows it saw.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import safetensors.torch
import torch
import toy

from flexgen.training import train


class Watched:
    """Data that note which rows were asked for, and take their time."""

    def __init__(self, data: object, delay: float) -> None:
        self.data, self.delay, self.seen = data, delay, []

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay)
        self.seen.append(indices)
        return self.data.batch(indices)


def main() -> None:
    directory, delay = Path(sys.argv[1]), float(sys.argv[2])
    rank, several = int(os.environ.get("RANK", 0)), "RANK" in os.environ
    torch.set_num_threads(1)
    network, objective, data, held_out = toy.parts(dropout=0.0 if several else 0.2)
    if several:
        network.double()  # so that the order of summation shows in the last digits only
    data = Watched(data, delay)
    train(network, objective, data, toy.everything_on(), held_out=held_out, directory=directory / "run", resume=True)
    seen = {"rows": torch.stack(data.seen[2:])} if several else {}  # two more: a look at the data, a fingerprint
    safetensors.torch.save_file({**network.state_dict(), **seen}, directory / f"result-{rank}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
