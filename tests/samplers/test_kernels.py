"""Kernels: pure steps, which one loop runs, and which compose; against exact transition matrices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flexgen import rng
from flexgen.errors import CheckpointError, FlexgenError
from flexgen.exact import ConditionalTables, JointTable, kernels
from flexgen.rng import Streams
from flexgen.space import Space
from samplers import (
    ChainSampler,
    ChainState,
    GibbsKernel,
    GibbsSampler,
    Kernel,
    KernelState,
    MetropolisKernel,
    MetropolisSampler,
    ParallelTempering,
    Ratio,
    TemperingKernel,
    cycle,
    mixture,
    scans,
)
from samplers.kernels import Info
from tests.samplers.tabulated import FALSE_ALARM, TabulatedMarginals, p_value

MODEL = TabulatedMarginals(3, seed=1)
TABLES = ConditionalTables(MODEL.tables())
JOINT = JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(4), concentration=0.7)
FORTH, BACK = (GibbsKernel(MODEL, scan=scans.systematic(order)) for order in ((0, 1, 2), (2, 1, 0)))
CHAINS = 5_000


def energy(x: Tensor) -> Tensor:
    return -JOINT.p[tuple(x.long().T)].log()


class Flip(Kernel):
    """A kernel of one's own: flips one site at random, if the energy agrees. Remembers the energy, and counts."""

    def __init__(self, *, always: bool = False) -> None:
        self.space = Space.binary(3)  # type: ignore[misc]
        self.always = always

    def init(self, x: Tensor, *, clamped: Tensor | None = None) -> KernelState:
        state = super().init(x, clamped=clamped)
        return state.moved(x, energy=energy(x), num_steps=torch.zeros(len(x), dtype=torch.int64))

    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
        streams = streams.fold_in("flip")
        site = rng.integers(3, (len(state.x),), generator=streams)
        flip = torch.nn.functional.one_hot(site, 3).bool() & ~state.clamped
        proposal = torch.where(flip, 1 - state.x, state.x)
        proposed, present = energy(proposal), state.memory["energy"]
        u = rng.uniform((len(state.x),), generator=streams, dtype=torch.float64)
        accepted = (u < (present - proposed).exp()) | self.always
        x = torch.where(accepted[:, None], proposal, state.x)
        after = state.moved(x, energy=torch.where(accepted, proposed, present), num_steps=state.memory["num_steps"] + 1)
        return after, {"acceptance_rate": Ratio(accepted.sum(), torch.tensor(len(accepted)))}


def all_kernels() -> dict[str, Kernel]:
    return {
        "gibbs": FORTH,
        "blocked": GibbsKernel(MODEL, scan=scans.blocked([[0, 1], [1, 2]])),
        "random": GibbsKernel(MODEL, scan=scans.random()),
        "metropolis": MetropolisKernel(MODEL, energy, scan=scans.random_permutation()),
        "tempering": TemperingKernel(MODEL, energy, betas=[1.0, 0.4], scan=scans.systematic(), corrected=True),
        "own": Flip(),
        "cycle": cycle(FORTH, MetropolisKernel(MODEL, energy), GibbsKernel(MODEL, scan=scans.random())),
        "mixture": mixture([BACK, MetropolisKernel(MODEL, energy)], [0.3, 0.7]),
    }


@pytest.mark.parametrize("name", all_kernels())
def test_a_step_is_pure_and_the_loop_is_its_repetition(name: str) -> None:
    kernel = all_kernels()[name]
    x = torch.randint(0, 2, (9, 3), generator=torch.Generator().manual_seed(0))
    clamped = torch.tensor([False, True, False])
    result = ChainSampler(kernel).run(x=x, clamped=clamped, draws=5, warmup=1, thin=2, generator=3)
    state, streams = kernel.init(x, clamped=clamped), Streams(result.state.seed, 9)
    kept = []
    for number in range(1, 12):
        before, own = state.x.clone(), streams.fold_in("sweep", number)
        state, info = kernel.step(state, own)
        again, same = kernel.step(KernelState(before, state.clamped, _memory_before(kernel, state, before)), own)
        assert torch.equal(again.x, state.x)
        assert info.keys() == same.keys()
        assert own.counter == 0
        kept.append(state.x[:: len(state.x) // 9])
    assert torch.equal(torch.stack(kept[2::2]), result.draws)
    assert torch.equal(state.x, result.state.x)


def _memory_before(kernel: Kernel, state: KernelState, x: Tensor) -> dict[str, Tensor]:
    if not isinstance(kernel, Flip):
        return dict(state.memory)
    return {"energy": energy(x), "num_steps": state.memory["num_steps"] - 1}


@pytest.mark.parametrize("name", all_kernels())
@pytest.mark.parametrize("chain_batch", [1, 4])
def test_draws_depend_on_neither_batches_nor_interruptions(name: str, chain_batch: int, tmp_path: Path) -> None:
    x = torch.randint(0, 2, (7, 3), generator=torch.Generator().manual_seed(0))
    sampler = ChainSampler(all_kernels()[name])
    whole = sampler.run(x=x, draws=9, generator=3)
    first = sampler.run(x=x, draws=4, generator=3, chain_batch=chain_batch)
    first.state.save(tmp_path / "state.safetensors")
    rest = sampler.run(state=ChainState.load(tmp_path / "state.safetensors"), draws=5, chain_batch=chain_batch)
    assert torch.equal(torch.cat([first.draws, rest.draws]), whole.draws)
    for entry, value in whole.state.memory.items():
        assert torch.equal(rest.state.memory[entry], value)


def test_samplers_are_the_loop_with_their_kernel() -> None:
    x = torch.randint(0, 2, (6, 3), generator=torch.Generator().manual_seed(0))
    for sampler, kernel in (
        (GibbsSampler(MODEL, scan=scans.random()), GibbsKernel(MODEL, scan=scans.random())),
        (MetropolisSampler(MODEL, energy, scan=scans.systematic()), MetropolisKernel(MODEL, energy)),
        (
            ParallelTempering(MODEL, energy, betas=[1.0, 0.2], scan=scans.systematic()),
            TemperingKernel(MODEL, energy, betas=[1.0, 0.2], scan=scans.systematic()),
        ),
    ):
        one, other = (s.run(x=x, draws=6, warmup=2, generator=1) for s in (sampler, ChainSampler(kernel)))
        assert torch.equal(one.draws, other.draws)
        assert one.statistics.keys() == other.statistics.keys()


def after(kernel: Kernel, num_steps: int) -> Tensor:
    start = torch.zeros(CHAINS, 3, dtype=torch.int64)
    return ChainSampler(kernel).run(x=start, draws=1, warmup=num_steps - 1, generator=0).draws[-1]


@pytest.mark.statistical
def test_cycles_multiply_and_mixtures_average_transition_matrices() -> None:
    """Oracle: enumerated transition matrices of incompatible conditionals, three steps from one state."""
    forth, back = (kernels.sweep_kernel(TABLES, order) for order in ((0, 1, 2), (2, 1, 0)))

    def expected(matrix: Tensor) -> Tensor:
        return torch.linalg.matrix_power(matrix, 3)[0]

    once = kernels.sweep_kernel(TABLES, (0,))
    first = GibbsKernel(MODEL, scan=scans.systematic())  # of one free site: a step that has not forgotten the start
    clamped = torch.tensor([False, True, True])
    draws = ChainSampler(cycle(first, first)).run(
        x=torch.zeros(CHAINS, 3, dtype=torch.int64), clamped=clamped, draws=1, generator=0
    )
    assert p_value(draws.draws[-1], (once @ once)[0]) > FALSE_ALARM
    both = cycle(FORTH, BACK)
    assert p_value(after(both, 3), expected(forth @ back)) > FALSE_ALARM
    assert p_value(after(both, 3), expected(back @ forth)) < 1e-12, "the test would not notice the other order"
    mixed = mixture([FORTH, BACK], [0.8, 0.2])
    assert p_value(after(mixed, 3), expected(0.8 * forth + 0.2 * back)) > FALSE_ALARM
    assert p_value(after(mixed, 3), expected(0.2 * forth + 0.8 * back)) < 1e-12, "the test would not notice the weights"


@pytest.mark.statistical
def test_composed_kernels_keep_what_their_members_keep() -> None:
    members = [MetropolisKernel(MODEL, energy, scan=scans.random()), GibbsKernel(JOINT, scan=scans.systematic())]
    for kernel in (cycle(*members), mixture(members)):
        result = ChainSampler(kernel).run(chains=CHAINS, draws=1, warmup=12, generator=0)
        assert p_value(result.draws[-1], JOINT.p) > FALSE_ALARM
        assert set(result.statistics) == {"0/acceptance_rate"}
    wrong = cycle(members[0], GibbsKernel(MODEL, scan=scans.systematic()))
    assert p_value(after(wrong, 5), JOINT.p) < 1e-12


@pytest.mark.statistical
def test_a_kernel_of_ones_own() -> None:
    result = ChainSampler(Flip()).run(chains=CHAINS, draws=1, warmup=60, generator=0)
    assert p_value(result.draws[-1], JOINT.p) > FALSE_ALARM
    assert 0 < float(result.statistics["acceptance_rate"]) < 1
    assert (result.state.memory["num_steps"] == 61).all()
    assert p_value(after(Flip(always=True), 60), JOINT.p) < 1e-12
    composed = cycle(Flip(), GibbsKernel(JOINT, scan=scans.random()))  # whose memory only its own steps may read
    assert set(composed.init(torch.zeros(2, 3, dtype=torch.int64)).memory) == {"0/energy", "0/num_steps"}


class Bare:
    """Three methods and no base class are a kernel, too."""

    space = Space.binary(3)

    def init(self, x: Tensor, *, clamped: Tensor | None = None) -> KernelState:
        return KernelState(x, torch.zeros(3, dtype=torch.bool) if clamped is None else clamped)

    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:
        draw = (rng.uniform(state.x.shape, generator=streams) < 0.5).to(state.x.dtype)
        return state.moved(torch.where(state.clamped, state.x, draw)), {}


def test_the_protocol_is_enough() -> None:
    assert isinstance(Bare(), Kernel)
    draws = ChainSampler(Bare()).run(chains=500, draws=2, generator=0).draws
    assert p_value(draws[-1], torch.full((2, 2, 2), 1 / 8, dtype=torch.float64)) > FALSE_ALARM


class ReturnsX(Bare):
    def step(self, state: KernelState, streams: Streams) -> Tensor:  # type: ignore[override]  # noqa: ARG002
        return state.x


class Shrinks(Bare):
    def step(self, state: KernelState, streams: Streams) -> tuple[KernelState, Info]:  # noqa: ARG002
        return state.moved(state.x[:1]), {}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ChainSampler(3), r"kernel: is 3, which has no init and no step and no space. Pass a kernel, such as"),  # type: ignore[arg-type]
        (lambda: ChainSampler(ReturnsX()).run(chains=2, draws=1), r"ReturnsX.step returned a Tensor. Return \(state"),
        (lambda: ChainSampler(Shrinks()).run(chains=2, draws=1), r"Shrinks.step returned a state of shape \(1, 3\)"),
        (lambda: cycle(), r"kernels: are none. Pass at least one"),
        (lambda: cycle(FORTH, 3), r"kernels: is 3, which has no init"),  # type: ignore[arg-type]
        (lambda: cycle(FORTH, GibbsKernel(TabulatedMarginals(2), scan=scans.random())), r"kernels: are over .* and"),
        (
            lambda: cycle(TemperingKernel(MODEL, energy, betas=[1.0, 0.5], scan=scans.random())),
            r"kernels: hold a TemperingKernel, whose chains have several replicas",
        ),
        (lambda: mixture([FORTH, BACK], [0.5, 0.6]), r"weights: are \[0.5, 0.6\]. Give each kernel a probability"),
        (lambda: mixture([FORTH, BACK], [1.0]), r"weights: are \[1.0\]"),
        (lambda: GibbsKernel(MODEL, scan=scans.systematic([0])).init(torch.zeros(1, 3)), r"scan: never visits"),
        (lambda: FORTH.init([[0, 1, 0]]), r"x: is a list. Pass a tensor"),  # type: ignore[arg-type]
        (lambda: FORTH.init(torch.zeros(2, 3), clamped=torch.zeros(2)), r"clamped: has shape \(2,\) and type"),
    ],
)
def test_errors_name_argument_and_fix(make: object, text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        make()  # type: ignore[operator]


def test_states_of_other_streams_are_refused(tmp_path: Path) -> None:
    state = GibbsSampler(MODEL, scan=scans.random()).run(chains=3, draws=2, generator=1).state
    tensors = {"x": state.x, "clamped": state.clamped, "chain_ids": state.chain_ids}
    for streams, told in ((None, "of an earlier version"), ("splitmix64", "of splitmix64")):
        header = {"seed": 1, "num_sweeps": 2} | ({} if streams is None else {"streams": streams})
        save_file(tensors, tmp_path / "old.safetensors", metadata={"flexgen_chain_state": json.dumps(header)})
        with pytest.raises(
            CheckpointError, match=rf"old.safetensors was saved with random streams {told}.*new run where"
        ):
            ChainState.load(tmp_path / "old.safetensors")
        with pytest.raises(CheckpointError, match=r"data: the state was saved with random streams"):
            ChainState.from_state_dict({**tensors, **header})
