"""Scans: exact kernels built from the schedules' own queries, costs, serialisation, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flexgen import rng
from flexgen.compatibility import classifier_scan_test, scan_divergence, stationary
from flexgen.errors import FlexgenError
from flexgen.exact import ConditionalTables, JointTable
from flexgen.query import Query
from flexgen.rng import Randomness
from samplers import ChainState, GibbsSampler, scans
from samplers.scans import Scan, Sweep
from samplers.schedule import Factorized, Schedule, Step
from tests.samplers.tabulated import FALSE_ALARM, TabulatedMarginals, markov_chain_joint, p_value, step_kernel

SIZES = (2, 3, 2, 2)
CHAIN_GRAPH = [[1], [0, 2], [1, 3], [2]]
ALL_SCANS = [
    scans.systematic(),
    scans.systematic([2, 0, 3, 1]),
    scans.random(),
    scans.random_permutation(),
    scans.blocked([[0, 1], [2, 3]]),
    scans.blocked([[0, 2], [1, 3, 2]]),
    scans.coloured(CHAIN_GRAPH),
]


def sweep_kernel(joint: JointTable, sweep: Sweep, seed: int = 0) -> Tensor:
    kernel = torch.eye(joint.space.num_states, dtype=torch.float64)
    x = joint.space.states()[:1]
    for step in sweep.walk(x, generator=torch.Generator().manual_seed(seed)):
        kernel = kernel @ step_kernel(joint, step)
    return kernel


@pytest.mark.parametrize("scan", ALL_SCANS, ids=str)
@pytest.mark.parametrize("clamped", [(), (1,), (0, 3)])
def test_joint_is_invariant_under_every_scan(scan: Scan, clamped: tuple[int, ...]) -> None:
    joint = JointTable(markov_chain_joint(SIZES))
    free = torch.ones(4, dtype=torch.bool)
    free[list(clamped)] = False
    law = joint.p.flatten()
    for seed in range(5):  # random scans: every realised sequence of sites leaves it invariant
        kernel = sweep_kernel(joint, scan.over(free), seed)
        torch.testing.assert_close(kernel.sum(1), torch.ones(len(law), dtype=torch.float64), atol=1e-12, rtol=0)
        assert (law @ kernel - law).abs().max() < 1e-12
        states = joint.space.states()
        moves = (states[:, None] != states[None])[..., list(clamped)].any(-1)
        assert not kernel[moves].any()


def test_simultaneous_update_of_neighbours_is_rejected() -> None:
    joint = JointTable(markov_chain_joint(SIZES))
    wrong = scans.coloured(CHAIN_GRAPH, colours=[0, 0, 1, 1], allow_simultaneous=True)
    law = joint.p.flatten()
    assert (law @ sweep_kernel(joint, wrong.over(4)) - law).abs().max() > 1e-3


def test_simultaneous_update_needs_consent() -> None:
    with pytest.raises(FlexgenError, match=r"colours: gives the neighbours 0 and 1 the same colour 0 .*allow_simultan"):
        scans.coloured(CHAIN_GRAPH, colours=[0, 0, 1, 1])


def test_greedy_colouring_is_proper_and_small() -> None:
    side = 6
    grid = torch.zeros(side * side, side * side, dtype=torch.bool)
    for i in range(side):
        for j in range(side):
            for a, b in ((i + 1, j), (i, j + 1)):
                if a < side and b < side:
                    grid[i * side + j, a * side + b] = grid[a * side + b, i * side + j] = True
    scan = scans.coloured(grid)
    for sites in scan.classes:
        assert not grid[list(sites)][:, list(sites)].any()
    assert sorted(site for sites in scan.classes for site in sites) == list(range(side * side))
    assert len(scan.classes) <= int(grid.sum(1).max()) + 1
    assert scan.over(side * side).num_evaluations == len(scan.classes)


@pytest.mark.parametrize("scan", ALL_SCANS, ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_sweep_is_a_schedule_with_known_cost(scan: Scan, ragged: bool) -> None:
    free = torch.ones(4, dtype=torch.bool)
    if ragged:
        free = torch.tensor([[True] * 4, [False, True, True, True], [False] * 4])
    sweep = scan.over(free, num_sweeps=2)
    assert isinstance(sweep, Schedule)
    steps = list(sweep.walk(torch.zeros(3, 4), generator=torch.Generator()))
    queries = [step.query if isinstance(step, Factorized) else step for step in steps]
    visits = sum(query.expand(3).target.long() for query in queries)
    per_row = free.expand(3, -1).sum(-1) * 2
    if not isinstance(scan, scans.Blocked):
        assert visits.sum(-1).tolist() == per_row.tolist()
        assert sweep.num_evaluations == len(steps)
    assert not (visits.bool() & ~free).any(), "a clamped site was updated"
    for query in queries:
        Query(query.target, query.observed)  # disjoint
    again = Sweep.from_dict(json.loads(json.dumps(sweep.to_dict())))
    assert again.scan == scan
    assert torch.equal(again.free, free)
    assert again.num_sweeps == 2
    assert f"{sweep.num_evaluations} evaluations" in repr(sweep)


def test_ragged_sweep_visits_each_rows_own_sites_in_order() -> None:
    free = torch.tensor([[True, False, True, True], [False, True, False, False]])
    sweep = scans.systematic([3, 2, 1, 0]).over(free)
    targets = [step.target.tolist() for step in sweep.walk(torch.zeros(2, 4), generator=torch.Generator())]
    assert [[row.index(True) if any(row) else None for row in step] for step in targets] == [
        [3, 1],
        [2, None],
        [0, None],
    ]


def test_random_scan_visits_free_sites_uniformly() -> None:
    free = torch.tensor([True, False, True, True]).expand(20_000, -1)
    visits = sum(
        step.target.double()
        for step in scans.random().over(free).walk(free, generator=torch.Generator().manual_seed(0))
    )
    share = visits.sum(0) / visits.sum()
    assert share[1] == 0
    error = (2 / 9 / visits.sum()).sqrt()  # binomial
    assert ((share[[0, 2, 3]] - 1 / 3).abs() < 5.5 * error).all()  # false alarm below 1e-6


@dataclass(frozen=True)
class EvensFirst(Scan):
    """A scan of one's own: even sites, then odd ones, `times` over."""

    times: int = 1
    skip: tuple[int, ...] = ()

    @property
    def is_fixed(self) -> bool:
        return True

    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:  # noqa: ARG002
        num_sites = free.shape[-1]
        for site in self.times * [*range(0, num_sites, 2), *range(1, num_sites, 2)]:
            target = free & (torch.arange(num_sites) == site)
            if site not in self.skip and bool(target.any()):
                yield Query(target, ~target)


class OwnForm(Scan):
    """A scan that serialises itself in its own way, and whose order is random."""

    def __init__(self, first: int) -> None:
        self.first = first

    def orders(self, num_sites: int) -> dict[tuple[tuple[int, ...], ...], float]:
        rest = [(site,) for site in range(num_sites) if site != self.first]
        return {((self.first,), *rest): 0.5, ((self.first,), *rest[::-1]): 0.5}

    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:
        blocks = list(self.orders(free.shape[-1]))
        which = rng.bernoulli(torch.full((num_rows,), 0.5), generator=generator)  # [B]
        for one, other in zip(*blocks, strict=True):
            site = torch.where(which, one[0], other[0])
            target = torch.nn.functional.one_hot(site, free.shape[-1]).bool() & free
            yield Query(target, ~target)

    def to_dict(self) -> dict[str, object]:
        return {"scan": self._kind(), "begins": self.first}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> OwnForm:
        return cls(int(str(data["begins"])))


@pytest.mark.parametrize("scan", [EvensFirst(2), EvensFirst(skip=(7, 8)), OwnForm(1)], ids=["fixed", "tuple", "own"])
def test_a_scan_of_ones_own_serialises_itself(scan: Scan) -> None:
    data = json.loads(json.dumps(scan.over(4).to_dict()))
    again = Sweep.from_dict(data)
    assert type(again.scan) is type(scan)
    assert again.scan.to_dict() == scan.to_dict()
    assert ":" in data["scan"]["scan"], "a name without its module would clash"


class Nameless(Scan):
    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> Iterator[Step]:  # noqa: ARG002
        yield Query(free, ~free)


@pytest.mark.statistical
@pytest.mark.parametrize("scan", [EvensFirst(), OwnForm(1), scans.random_permutation()], ids=["fixed", "own", "perms"])
def test_a_scan_of_ones_own_runs_resumes_and_is_read_by_the_diagnostics(scan: Scan, tmp_path: Path) -> None:
    """What the exact diagnostic reads off the scan is where its chains go."""
    model = TabulatedMarginals(3, seed=1)
    tables = ConditionalTables(model.tables())
    sampler = GibbsSampler(model, scan=scan)
    whole = sampler.run(chains=5_000, draws=2, warmup=14, generator=0)
    first = sampler.run(chains=5_000, draws=1, warmup=14, generator=0)
    first.state.save(tmp_path / "state.safetensors")
    state = ChainState.load(tmp_path / "state.safetensors")
    assert torch.equal(sampler.run(state=state, draws=1).draws[-1], whole.draws[-1])
    expected = stationary(tables, scan)
    assert p_value(whole.draws[-1], expected) > FALSE_ALARM
    assert scan_divergence(tables, scan, scans.systematic((2, 1, 0))).tv > 0.02
    assert scan_divergence(tables, scan, scan).tv < 1e-12
    assert p_value(whole.draws[-1], stationary(tables, (2, 1, 0))) < 1e-9, "the test would not notice another scan"


@pytest.mark.statistical
def test_draws_of_a_scan_of_ones_own_are_told_apart() -> None:
    model = TabulatedMarginals(3, seed=1)
    orders = {"evens": EvensFirst(), "same": scans.systematic((0, 2, 1)), "back": scans.systematic((1, 2, 0))}
    draws = {
        name: GibbsSampler(model, scan=scan).run(chains=160, draws=5, warmup=15, thin=3, generator=seed)
        for seed, (name, scan) in enumerate(orders.items())
    }
    same = classifier_scan_test({name: draws[name] for name in ("evens", "same")}, generator=0)
    other = classifier_scan_test({name: draws[name] for name in ("evens", "back")}, generator=0)
    assert same.p_value > 0.01  # false alarm of a hundredth, for a seed drawn at random
    assert other.p_value <= 0.001, "the least that its permutations can give"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Nameless().to_dict(),
            r"scan: is a Nameless, whose fields are not known. Make its class a frozen data",
        ),
        (
            lambda: Nameless().orders(3),
            r"scan: is .*Nameless.*, which does not say its orders. Define orders\(num_sites\)",
        ),
        (lambda: scans.random_permutation().orders(7), r"scan: is RandomPermutation\(\) over 7 sites, 5040 orders"),
        (
            lambda: scans.from_dict({"scan": "gone:Mine"}),
            r"scan: is 'gone:Mine'. .*of your own, import its module first",
        ),
        (lambda: scans.systematic([0, 1]).orders(3), r"scan: never visits the free site"),
        (
            lambda: scans.coloured([[], [], []]).orders(3),
            r"scan: is Coloured.*draws several sites from their marginals",
        ),
        (lambda: scans.systematic([0, 1]).over(3), r"order: never visits the free site\(s\) \[2\]"),
        (lambda: scans.systematic([0, 1, 3]).over(3), r"order: holds site 3. Sites are numbered 0 to 2"),
        (lambda: scans.systematic([0, 1, 1, 2]).over(3), r"order: visits a site twice"),
        (lambda: scans.blocked([[0], [1]]).over(3), r"blocks: never visits the free site"),
        (lambda: scans.coloured(torch.tensor([[0, 1], [0, 0]])), r"graph: is no symmetric"),
        (lambda: scans.systematic("age"), r"order: holds 'age' in place of a list. Pass lists of site numbers"),
        (lambda: scans.systematic([0, "age"]), r"order: holds 'age'. Pass site numbers; of a table's column, model"),
        (lambda: scans.systematic([0.5]), r"order: holds 0.5. Pass site numbers"),
        (lambda: scans.blocked([["age"]]), r"blocks: holds 'age'. Pass site numbers; of a table's column, model"),
        (lambda: scans.blocked([0, 1]), r"blocks: holds 0 in place of a list. Pass lists of site numbers"),
        (lambda: scans.blocked("age"), r"blocks: is 'age'. Pass lists of site numbers, such as \[\[0, 1\], \[2\]\]"),
        (lambda: scans.coloured(3), r"graph: is 3. Pass lists of site numbers"),
        (lambda: scans.coloured([["age"]]), r"graph: holds 'age'. Pass site numbers"),
        (lambda: scans.coloured([[5]]), r"graph: holds the neighbour 5 of site 0"),
        (lambda: scans.coloured([[1], [0]], colours=[0]), r"colours: holds 1 colours for 2 sites"),
        (lambda: scans.from_dict({"scan": "Other"}), r"scan: is 'Other'. Choose one of Systematic, RandomSite"),
    ],
)
def test_errors_name_argument_and_fix(make: object, text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        make()  # type: ignore[operator]
