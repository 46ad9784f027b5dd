"""A chain's draws depend on its name and seed alone: not on batching, processes, or interruptions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flexgen.errors import CheckpointError, FlexgenError
from flexgen.exact import JointTable
from samplers import ChainState, GibbsSampler, MetropolisSampler, ParallelTempering, scans
from samplers.driver import ChainSampler
from samplers.scans import Scan
from tests.samplers.tabulated import TabulatedMarginals

MODEL = TabulatedMarginals(4)
SCANS = [
    scans.systematic([3, 1, 0, 2]),
    scans.random(),
    scans.random_permutation(),
    scans.blocked([[0, 1], [1, 2, 3]]),
    scans.coloured([[1], [0], [3], [2]]),
]


def energy(x: Tensor) -> Tensor:
    return (x.double() @ torch.tensor([1.0, -0.5, 0.3, 0.2], dtype=torch.float64)) * x[:, 0].double().add(1)


def samplers_for(scan: Scan) -> list[ChainSampler]:
    made: list[ChainSampler] = [GibbsSampler(MODEL, scan=scan)]
    if not isinstance(scan, scans.Coloured):
        made.append(MetropolisSampler(MODEL, energy, scan=scan))
        made.append(ParallelTempering(MODEL, energy, betas=[1.0, 0.5, 0.1], scan=scan))
    return made


def ragged(num_chains: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (num_chains, 4), generator=generator)
    return x, torch.rand(num_chains, 4, generator=generator) < 0.4


@pytest.mark.parametrize("scan", SCANS, ids=str)
def test_resumed_run_equals_uninterrupted_run(scan: Scan, tmp_path: Path) -> None:
    x, clamped = ragged(6)
    for sampler in samplers_for(scan):
        whole = sampler.run(x=x, clamped=clamped, draws=20, thin=2, warmup=3, generator=5)
        first = sampler.run(x=x, clamped=clamped, draws=8, thin=2, warmup=3, generator=5)
        first.state.save(tmp_path / "state.safetensors")
        second = sampler.run(state=ChainState.load(tmp_path / "state.safetensors"), draws=12, thin=2)
        assert torch.equal(torch.cat([first.draws, second.draws]), whole.draws)
        assert torch.equal(second.state.x, whole.state.x)
        assert second.state.num_sweeps == whole.state.num_sweeps == 43


def test_state_round_trips_without_pickle(tmp_path: Path) -> None:
    state = GibbsSampler(MODEL, scan=scans.random()).run(chains=3, draws=2, generator=1).state
    state.save(tmp_path / "state.safetensors")
    assert set(load_file(tmp_path / "state.safetensors")) == {"x", "clamped", "chain_ids"}
    again = ChainState.from_state_dict(ChainState.load(tmp_path / "state.safetensors").state_dict())
    assert (again.seed, again.num_sweeps) == (state.seed, 2)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no chain state"):
        ChainState.load(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"path: .*absent.* cannot be read .* Pass a file that state.save"):
        ChainState.load(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(CheckpointError, match=r"path: .*text.safetensors cannot be read"):
        ChainState.load(tmp_path / "text.safetensors")
    with pytest.raises(FlexgenError, match=r"chains: is given beside state, which already holds it"):
        GibbsSampler(MODEL, scan=scans.random()).run(chains=3, state=state, draws=1)


@pytest.mark.parametrize("scan", SCANS, ids=str)
@pytest.mark.parametrize("chain_batch", [1, 3])
def test_draws_do_not_depend_on_chain_batch(scan: Scan, chain_batch: int) -> None:
    x, clamped = ragged(7)
    for sampler in samplers_for(scan):
        for options in ({"x": x, "clamped": clamped}, {"x": x, "clamped": clamped, "initialise": True}, {"chains": 7}):
            whole = sampler.run(**options, draws=4, warmup=2, generator=5)  # type: ignore[arg-type]
            parts = sampler.run(**options, draws=4, warmup=2, generator=5, chain_batch=chain_batch)  # type: ignore[arg-type]
            assert torch.equal(whole.draws, parts.draws)


def test_chain_ids_name_the_streams() -> None:
    sampler = GibbsSampler(MODEL, scan=scans.random())
    whole = sampler.run(chains=10, draws=5, generator=5).draws
    part = sampler.run(chain_ids=range(4, 9), draws=5, generator=5).draws
    assert torch.equal(whole[:, 4:9], part)
    assert not torch.equal(whole, sampler.run(chains=10, draws=5, generator=6).draws)


PROGRAM = """
import json, sys, torch
from samplers import GibbsSampler, scans
from tests.samplers.tabulated import TabulatedMarginals
first, last = int(sys.argv[1]), int(sys.argv[2])
out = GibbsSampler(TabulatedMarginals(4), scan=scans.random_permutation()).run(
    chain_ids=range(first, last), draws=6, warmup=2, generator=torch.Generator().manual_seed(9))
print(json.dumps(out.draws.tolist()))
"""


def test_two_processes_equal_one() -> None:
    root = Path(__file__).parents[2]
    commands = [[sys.executable, "-c", PROGRAM, str(first), str(last)] for first, last in ((0, 4), (4, 9))]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for command in commands]
    parts = [torch.tensor(json.loads(process.communicate()[0])) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    generator = torch.Generator().manual_seed(9)
    sampler = GibbsSampler(MODEL, scan=scans.random_permutation())
    whole = sampler.run(chains=9, draws=6, warmup=2, generator=generator).draws
    assert torch.equal(torch.cat(parts, dim=1), whole)


class InterruptAt:
    """An observer under whose hands the user presses Ctrl-C."""

    def __init__(self, draw: int) -> None:
        self.draw, self.seen = draw, 0

    def update(self, x: Tensor) -> None:  # noqa: ARG002
        self.seen += 1
        if self.seen == self.draw:
            raise KeyboardInterrupt


def test_interrupt_keeps_draws_and_state() -> None:
    sampler = GibbsSampler(MODEL, scan=scans.random())
    whole = sampler.run(chains=5, draws=12, warmup=2, generator=5)
    broken = sampler.run(chains=5, draws=12, warmup=2, generator=5, observers=[InterruptAt(8)])
    assert broken.interrupted
    assert "interrupted" in repr(broken)
    assert len(broken.draws) == 7
    rest = sampler.run(state=broken.state, draws=5)
    assert torch.equal(torch.cat([broken.draws, rest.draws]), whole.draws)


def test_the_state_of_another_sampler_or_model_is_refused() -> None:
    joint = JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(0))
    energy = lambda x: -joint.p[tuple(x.T)].log()  # noqa: E731
    tempered = ParallelTempering(joint, energy, betas=[1.0, 0.5], scan=scans.systematic())
    cold = tempered.run(chains=4, draws=2, generator=0).state
    gibbs = GibbsSampler(joint, scan=scans.systematic())
    with pytest.raises(FlexgenError, match="state: holds 8 rows for 4 chains, and GibbsKernel has 4"):
        gibbs.run(draws=3, state=cold)
    own = gibbs.run(chains=4, draws=2, generator=0).state
    wider = JointTable.random((2, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    with pytest.raises(FlexgenError, match=r"^state: "):
        GibbsSampler(wider, scan=scans.systematic()).run(draws=3, state=own)
    with pytest.raises(FlexgenError, match=r"^state: "):
        gibbs.run(draws=3, state=replace(own, x=own.x + 7))
