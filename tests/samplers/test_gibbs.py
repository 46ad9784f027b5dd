"""The Gibbs sampler: its law, clamping, initialisation, warnings, errors."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pandas as pd
import pytest
import torch
from torch import Tensor

from flexgen import rng
from flexgen.conditional import CategoricalMarginals, MarginalConditional
from flexgen.errors import FlexgenError, SpaceError, UnsupportedQueryError
from flexgen.exact import ConditionalTables, Gaussian, JointTable, kernels
from flexgen.query import Query
from flexgen.rng import Randomness
from flexgen.space import Space
from samplers import GibbsSampler, MixingWarning, ReducibleWarning, chains, driver, observers, reducibility, scans
from samplers.reducibility import warn_if_unmixed
from samplers.scans import Scan
from tests.samplers.tabulated import FALSE_ALARM, GaussianSites, TabulatedMarginals, markov_chain_joint, p_value

CHAINS = 8_000


def last_states(conditional: object, scan: Scan, *, sweeps: int = 15, **options: object) -> Tensor:
    return GibbsSampler(conditional, scan=scan).run(draws=1, warmup=sweeps - 1, generator=0, **options).draws[-1]  # type: ignore[arg-type]


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["marginals", "tables"])
def test_law_is_the_left_eigenvector_for_incompatible_conditionals(kind: str) -> None:
    model = TabulatedMarginals(3, seed=1)
    tables = ConditionalTables(model.tables())
    conditional = model if kind == "marginals" else tables
    laws = {order: kernels.stationary(kernels.sweep_kernel(tables, order)) for order in ((0, 1, 2), (2, 0, 1))}
    for order, law in laws.items():
        draws = last_states(conditional, scans.systematic(order), chains=CHAINS)
        assert p_value(draws, law) > FALSE_ALARM
        other = next(other for name, other in laws.items() if name != order)
        assert p_value(draws, other) < 1e-12, "the test would not notice another scan"
    random_law = kernels.stationary(kernels.random_scan_kernel(tables))
    assert p_value(last_states(conditional, scans.random(), chains=CHAINS), random_law) > FALSE_ALARM
    # A random permutation a sweep: the mean of the six systematic kernels.
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    mean = torch.stack([kernels.sweep_kernel(tables, order) for order in orders]).mean(0)
    draws = last_states(conditional, scans.random_permutation(), chains=CHAINS)
    assert p_value(draws, kernels.stationary(mean)) > FALSE_ALARM


@pytest.mark.statistical
@pytest.mark.parametrize(
    "scan",
    [
        scans.systematic(),
        scans.random(),
        scans.random_permutation(),
        scans.blocked([[0, 1], [2, 3]]),
        scans.coloured([[1], [0, 2], [1, 3], [2]]),
    ],
    ids=str,
)
def test_law_is_the_joint_for_compatible_conditionals(scan: Scan) -> None:
    joint = JointTable(markov_chain_joint((2, 3, 2, 2)))
    start = torch.zeros(CHAINS, 4, dtype=torch.int64)
    draws = last_states(joint, scan, x=start, sweeps=40)
    assert p_value(draws, joint.p) > FALSE_ALARM
    if isinstance(scan, scans.Blocked):
        return  # converges at once
    one_sweep = last_states(joint, scan, x=start, sweeps=1)
    assert p_value(one_sweep, joint.p) < FALSE_ALARM, "the test would not notice a chain that has not converged"


@pytest.mark.statistical
def test_simultaneous_updates_are_rejected_by_the_same_test() -> None:
    joint = JointTable(markov_chain_joint((2, 3, 2, 2)))
    wrong = scans.coloured([[1], [0, 2], [1, 3], [2]], colours=[0, 0, 1, 1], allow_simultaneous=True)
    assert p_value(last_states(joint, wrong, chains=CHAINS, sweeps=40), joint.p) < 1e-12


class IgnoresClamping(Scan):
    """Deliberately wrong: visits clamped sites too."""

    def steps(self, free: Tensor, num_rows: int, *, generator: Randomness) -> object:
        return scans.systematic().steps(torch.ones_like(free), num_rows, generator=generator)


@pytest.mark.statistical
def test_clamped_chains_follow_the_conditional_law() -> None:
    joint = JointTable.random((2, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    # Half of the chains clamp site 1 at 2, the others sites 0 and 3 at 1 and 0.
    x = torch.zeros(2 * CHAINS, 4, dtype=torch.int64)
    clamped = torch.zeros(2 * CHAINS, 4, dtype=torch.bool)
    x[:CHAINS, 1], clamped[:CHAINS, 1] = 2, True
    x[CHAINS:, 0], clamped[CHAINS:, [0, 3]] = 1, True

    def check(scan: Scan) -> tuple[float, float, bool]:
        draws = last_states(joint, scan, x=x, clamped=clamped)
        first = p_value(draws[:CHAINS][:, [0, 2, 3]], joint.p[:, 2] / joint.p[:, 2].sum())
        second = p_value(draws[CHAINS:][:, [1, 2]], joint.p[1, :, :, 0] / joint.p[1, :, :, 0].sum())
        return first, second, torch.equal(draws[clamped], x[clamped])

    for scan in (scans.systematic(), scans.random(), scans.random_permutation(), scans.blocked([[0, 1], [2, 3]])):
        first, second, untouched = check(scan)
        assert first > FALSE_ALARM
        assert second > FALSE_ALARM
        assert untouched
    first, second, untouched = check(IgnoresClamping())
    assert max(first, second) < 1e-12
    assert not untouched


@pytest.mark.statistical
def test_gaussian_sweep_is_gauss_seidel() -> None:
    """E[x_t+1 | x_t] = M x_t with M = -(D + L)^-1 U, hence in two dimensions autocorrelations rho^(2 t)."""
    rho = 0.8
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for covariance in (torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64), root @ root.T + torch.eye(4)):
        precision = torch.linalg.inv(covariance)
        expected = -torch.linalg.solve(precision.tril(), precision.triu(1))  # M
        if len(covariance) == 2:
            rates = torch.linalg.eigvals(expected).abs()
            torch.testing.assert_close(rates.max(), torch.tensor(rho**2, dtype=torch.float64))
        start = torch.randn(CHAINS, len(covariance), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        start = start @ torch.linalg.cholesky(covariance).T  # stationary
        for scan, is_right in ((scans.systematic(), True), (scans.systematic(range(len(covariance))[::-1]), False)):
            after = last_states(GaussianSites(precision), scan, x=start, sweeps=1)
            gram = torch.linalg.inv(start.T @ start)
            estimate = (gram @ start.T @ after).T  # least squares of x_t+1 on x_t
            residual = (after - start @ estimate.T).var(0)
            z = (estimate - expected).abs() / (residual[:, None] * gram.diagonal()).sqrt()
            assert bool((z < 6).all()) == is_right  # false alarm below 16 * 2e-9


@pytest.mark.statistical
def test_geweke_joint_distribution() -> None:
    """Redrawing data given parameters and parameters given data, in turn, must keep the joint of both."""
    joint = JointTable(markov_chain_joint((2, 3, 2, 2), seed=3))
    parameters = torch.tensor([True, True, False, False])
    start = joint.sample(
        torch.zeros(CHAINS, 4, dtype=torch.int64),
        Query.of(range(4), num_sites=4),
        generator=torch.Generator().manual_seed(0),
    )

    def successive(scan: Scan) -> float:
        x, generator = start, torch.Generator().manual_seed(1)
        sampler = GibbsSampler(joint, scan=scan)
        for _ in range(5):
            x = sampler.run(draws=1, x=x, clamped=~parameters, generator=generator).draws[-1]
            x = joint.sample(x, Query(~parameters, parameters), generator=generator)
        return p_value(x, joint.p)

    assert successive(scans.systematic()) > FALSE_ALARM
    wrong = scans.coloured([[1], [0], [], []], colours=[0, 0, 1, 1], allow_simultaneous=True)
    assert successive(wrong) < 1e-12


@pytest.mark.statistical
def test_simulation_based_calibration_of_clamped_draws() -> None:
    """The true parameters' rank among posterior draws is uniform, if the posterior is the prior's."""
    joint = JointTable(markov_chain_joint((2, 3, 2, 2), seed=3))
    generator = torch.Generator().manual_seed(0)
    truth = joint.sample(
        torch.zeros(2 * CHAINS, 4, dtype=torch.int64), Query.of(range(4), num_sites=4), generator=generator
    )
    clamped = torch.tensor([False, False, True, True])
    weights = torch.tensor([30, 10, 0, 0])
    num_draws = 9

    def calibration(scan: Scan) -> float:
        result = GibbsSampler(joint, scan=scan).run(
            x=truth, clamped=clamped, initialise=True, draws=num_draws, thin=6, warmup=10, generator=1
        )
        ties = torch.rand(num_draws + 1, len(truth), generator=torch.Generator().manual_seed(2))
        statistic = lambda x: x @ weights  # noqa: E731
        rank = (statistic(result.draws) + ties[1:] < statistic(truth) + ties[0]).sum(0)
        return p_value(rank[:, None], torch.full((num_draws + 1,), 1 / (num_draws + 1)))

    assert calibration(scans.systematic()) > FALSE_ALARM
    wrong = scans.coloured([[1], [0], [], []], colours=[0, 0, 1, 1], allow_simultaneous=True)
    assert calibration(wrong) < FALSE_ALARM


def test_start_is_drawn_from_the_conditional_if_it_can_say() -> None:
    joint = JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(0))
    start = GibbsSampler(joint, scan=scans.systematic()).run(chains=CHAINS, draws=0, generator=0).state.x
    assert p_value(start, joint.p) > FALSE_ALARM
    tables = joint.conditional_tables()  # answers complete conditionals only: a uniform start
    start = GibbsSampler(tables, scan=scans.systematic()).run(chains=CHAINS, draws=0, generator=0).state.x
    assert p_value(start, torch.full((2, 2, 2), 1 / 8, dtype=torch.float64)) > FALSE_ALARM


def test_missing_values_are_drawn_when_clamped_around() -> None:
    joint = JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0.0, float("nan"), 1.0], [float("nan"), 1.0, float("nan")]])
    sampler = GibbsSampler(joint, scan=scans.systematic())
    with pytest.raises(
        SpaceError, match=r"x: holds NaN at chain 0, site '1'.*clamped=~x.isnan\(\) and initialise=True"
    ):
        sampler.run(x=x, draws=1, generator=0)
    result = sampler.run(x=x, clamped=~x.isnan(), initialise=True, draws=5, generator=0)
    assert not result.draws.isnan().any()
    assert torch.equal(result.draws[:, ~x.isnan()], x[~x.isnan()].expand(5, -1))
    with pytest.raises(SpaceError, match=r"x: holds NaN at chain 0, site '1'"):
        sampler.run(x=x, clamped=torch.ones(3, dtype=torch.bool), initialise=True, draws=1, generator=0)


def test_clamping_by_a_query_holds_its_observed_sites() -> None:
    joint = JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(0))
    query = Query.of([0], [2], num_sites=3)
    x = torch.tensor([0, 0, 1])
    draws = GibbsSampler(joint, scan=scans.random()).run(chains=50, x=x, clamped=query, draws=4, generator=0).draws
    assert (draws[..., 2] == 1).all()
    assert draws.float().std((0, 1))[:2].min() > 0


class Copies(MarginalConditional):
    """Two binary sites that equal each other, and a third that is free."""

    space = Space.binary(3)  # type: ignore[assignment]

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:  # noqa: ARG002
        probs = torch.full((len(x), 3, 2), 0.5)
        for site, other in ((0, 1), (1, 0)):
            probs[:, site] = torch.nn.functional.one_hot(x[:, other].long(), 2).float()
        return CategoricalMarginals(probs.log())


def test_deterministic_conditionals_warn() -> None:
    start = torch.zeros(8, 3, dtype=torch.int64)
    sampler = GibbsSampler(Copies(), scan=scans.systematic())
    with pytest.warns(
        ReducibleWarning, match=r"deterministic .* of 8 of 8 chains to the site\(s\) '0', '1'\. .*blocked"
    ):
        sampler.run(x=start, draws=5, warmup=20, generator=0)
    everything_but_the_third = torch.tensor([False, False, True])
    with pytest.warns(ReducibleWarning, match=r"8 of 8 chains never moved in 100 sweeps"):
        sampler.run(x=start, clamped=everything_but_the_third, draws=100, generator=0)
    tables = JointTable(torch.eye(2) / 2).conditional_tables(undefined="uniform")
    with pytest.warns(ReducibleWarning, match="deterministic"):
        GibbsSampler(tables, scan=scans.random()).run(chains=4, draws=20, warmup=30, generator=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block = scans.blocked([[0, 1]])
        GibbsSampler(JointTable(torch.eye(2) / 2), scan=block).run(chains=4, draws=20, warmup=20, generator=0)


def test_watching_does_not_change_the_draws() -> None:
    model = TabulatedMarginals(3)
    sampler = GibbsSampler(model, scan=scans.random())
    watched = sampler.run(chains=16, draws=5, warmup=10, generator=3).draws
    plain = sampler.run(chains=16, draws=15, generator=3).draws[10:]
    assert torch.equal(watched, plain)


class OneByOne:
    """Marginals, not categorical by type, that can draw a single site; drawing all of them is refused."""

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs

    def sample_site(self, site: int | Tensor, *, generator: Randomness) -> Tensor:
        rows = slice(None) if isinstance(site, int) else torch.arange(len(self.log_probs))
        return rng.categorical(self.log_probs[rows, site], generator=generator)

    def sample(self, *, generator: Randomness) -> Tensor:  # noqa: ARG002
        raise AssertionError("drew all sites")


@pytest.mark.statistical
@pytest.mark.parametrize("scan", [scans.systematic(), scans.random_permutation()], ids=str)
@pytest.mark.parametrize("clamp", [False, True])
def test_marginals_that_draw_one_site_are_asked_for_one(scan: Scan, clamp: bool) -> None:
    joint = JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(0))

    class Sitewise(MarginalConditional):
        space = joint.space  # type: ignore[assignment]

        def marginals(self, x: Tensor, query: Query) -> OneByOne:  # type: ignore[override]
            return OneByOne(joint.marginals(x, query).log_probs)

    x = torch.zeros(CHAINS, 3, dtype=torch.int64)
    clamped = torch.zeros(CHAINS, 3, dtype=torch.bool)
    clamped[: CHAINS // 2, 0] = clamp
    draws = last_states(Sitewise(), scan, x=x, clamped=clamped)
    first = joint.p[:1] / joint.p[:1].sum() if clamp else joint.p
    assert p_value(draws[: CHAINS // 2], torch.cat([first, 0 * first]) if clamp else first) > FALSE_ALARM
    assert p_value(draws[CHAINS // 2 :], joint.p) > FALSE_ALARM


@pytest.mark.statistical
def test_real_sites_start_from_the_conditional_and_keep_its_law() -> None:
    covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 2.0]], dtype=torch.float64)
    gaussian = Gaussian(torch.zeros(3, dtype=torch.float64), covariance)
    draws = GibbsSampler(gaussian, scan=scans.random()).run(chains=CHAINS, draws=3, generator=0).draws[-1].double()
    estimate = draws.T @ draws / CHAINS
    # Isserlis: var(x_i x_j) = S_ii S_jj + S_ij^2. Six entries, each with a false alarm of 6e-7 at 5 sd.
    error = ((covariance.diagonal().outer(covariance.diagonal()) + covariance**2) / CHAINS).sqrt()
    assert ((estimate - covariance).abs() < 5 * error).all()


def test_progress_bar_shows_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    GibbsSampler(TabulatedMarginals(3), scan=scans.random()).run(chains=2, draws=3, generator=0, progress=True)
    assert "GibbsSampler" in capsys.readouterr().err


def test_observers_agree_with_stored_draws() -> None:
    model = TabulatedMarginals(3)
    seen = (
        observers.MeanVariance(),
        observers.Histogram(2),
        observers.PairwiseCounts(2),
        observers.Histogram([0.5, 2]),
    )
    sampler = GibbsSampler(model, scan=scans.systematic())
    draws = sampler.run(chains=7, draws=20, generator=0, observers=seen).draws.double()
    moments, histogram, pairs, upper = seen
    torch.testing.assert_close(moments.mean, draws.mean(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(moments.variance, draws.var(0), atol=1e-12, rtol=0)
    assert torch.equal(histogram.counts[:, 1], draws.sum((0, 1)).long())
    assert torch.equal(upper.counts[:, 0], histogram.counts[:, 1])
    assert upper.num_outside == int((draws == 0).sum())
    flat = draws.flatten(0, 1)
    assert float(pairs.counts[0, 2, 1, 0]) == float((flat[:, 0] * (1 - flat[:, 2])).sum())
    assert pairs.counts.sum((2, 3)).unique().tolist() == [140.0]
    unstored = sampler.run(chains=7, draws=3, generator=0, store=False)
    with pytest.raises(FlexgenError, match=r"draws: were not stored. Run with store=True, or use an observer"):
        _ = unstored.draws


def test_summary_and_shapes() -> None:
    result = GibbsSampler(TabulatedMarginals(3), scan=scans.systematic()).run(chains=4, draws=50, generator=0)
    assert result.draws.shape == (50, 4, 3)
    assert result.rhat().shape == result.ess().shape == result.ess(kind="tail").shape == (3,)
    table = result.summary()
    assert set(table.to_dict()) == {"0", "1", "2"}
    assert "ess_bulk" in repr(table)
    assert "draws (50, 4, 3)" in repr(result)


def test_global_randomness_is_untouched() -> None:
    before = torch.get_rng_state()
    GibbsSampler(TabulatedMarginals(3), scan=scans.random()).run(chains=4, draws=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"draws": 1}, r"chains: is not given. Say how many chains to run, or pass their states as x"),
        ({"draws": -1, "chains": 1}, r"draws: is -1. Pass at least 0"),
        ({"draws": 1, "chains": 1, "thin": 0}, r"thin: is 0. Pass at least 1"),
        ({"draws": 1, "chains": 0}, r"chains: is for 0 chains"),
        ({"draws": 1, "chains": 3, "x": torch.zeros(2, 3)}, r"x: is for 2 chain\(s\), but chains for 3"),
        (
            {"draws": 1, "chains": 2, "clamped": torch.ones(3, dtype=torch.bool)},
            r"x: is not given, but sites are clamped",
        ),
        ({"draws": 1, "chains": 2, "initialise": False}, r"x: is not given, and initialise=False"),
        ({"draws": 1, "chains": 2, "clamped": torch.ones(4, dtype=torch.bool)}, r"clamped: has shape \(4,\)"),
        ({"draws": 1, "x": torch.full((2, 3), 5)}, r"x: holds 5 at row 0, site '0'"),
        ({"draws": "9", "chains": 1}, r"draws: is '9'. Pass a whole number, 0 or more"),
        ({"draws": 1, "chains": 2.5}, r"chains: is 2.5. Pass a whole number"),
        ({"draws": 1, "chains": 1, "chain_batch": 0}, r"chain_batch: is 0. Pass at least 1"),
        (
            {"draws": 1, "x": pd.DataFrame({"a": [1]})},
            r"x: is a DataFrame. Pass a tensor \[B, N\]; of a frame, model.schema.encode\(df\)",
        ),
        ({"draws": 1, "x": [[0, 1, 0]]}, r"x: is a list. Pass a tensor"),
        (
            {"draws": 1, "chains": 2, "clamped": ["age", "sex"]},
            r"clamped: is a list. Pass a tensor of booleans, one a site: "
            r"torch.tensor\(\[name in \['age', 'sex'\] for name in conditional.space.names\]\)",
        ),
        ({"draws": 1, "chains": 2, "clamped": "age"}, r"clamped: is 'age'. Pass a tensor .*name in \['age'\] for"),
        ({"draws": 1, "chains": 2, "clamped": [True, False, True]}, r"clamped: is a list. .*name in \['0'\] for"),
        ({"draws": 1, "chain_ids": 3}, r"chain_ids: is 3. Pass a whole number for every chain"),
        ({"draws": 1, "chains": 2, "generator": "a"}, r"generator: is 'a'. Pass a whole number as seed"),
        ({"draws": 1, "chains": 2, "observers": [print]}, r"observers: hold a builtin.* Pass a list of"),
        ({"draws": 1, "chains": 2, "observers": 3}, r"observers: hold 3"),
        ({"draws": 1, "state": {}}, r"state: is a dict. Pass the state of an earlier result: result.state"),
    ],
)
def test_errors_name_argument_and_fix(options: dict[str, object], text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        GibbsSampler(TabulatedMarginals(3), scan=scans.systematic()).run(**options)  # type: ignore[arg-type]


class Silent(TabulatedMarginals):
    """May not be asked anything."""

    def marginals(self, x: Tensor, query: Query) -> CategoricalMarginals:  # noqa: ARG002
        raise AssertionError("was asked")


@pytest.mark.parametrize(
    ("scan", "text"),
    [
        (scans.systematic([40]), r"scan: holds site 40\. Sites are numbered 0 to 2"),
        (scans.systematic([0, 1, 1, 2]), r"scan: visits a site twice: \(0, 1, 1, 2\)"),
        (scans.blocked([[0, 1], [2, 3]]), r"scan: holds site 3\. Sites are numbered 0 to 2"),
        (scans.coloured([[1], [0], [], []]), r"scan: holds site 3\. Sites are numbered 0 to 2"),
    ],
    ids=str,
)
def test_a_scan_of_sites_that_do_not_exist_is_refused_when_the_sampler_is_made(scan: Scan, text: str) -> None:
    with pytest.raises(FlexgenError, match=text):
        GibbsSampler(Silent(3), scan=scan)


def test_a_scan_that_leaves_out_free_sites_is_refused_before_the_conditional_is_asked() -> None:
    sampler = GibbsSampler(Silent(3), scan=scans.systematic([0, 1]))
    with pytest.raises(FlexgenError, match=r"scan: never visits the free site\(s\) \[2\]\. Visit them, or clamp them"):
        sampler.run(chains=2, draws=1, generator=0)
    clamped, x = torch.tensor([False, False, True]), torch.zeros(2, 3, dtype=torch.int64)
    state = GibbsSampler(TabulatedMarginals(3), scan=sampler.scan).run(x=x, clamped=clamped, draws=1).state
    assert state.num_sweeps == 1
    open_ended = GibbsSampler(TabulatedMarginals(3), scan=scans.random()).run(chains=2, draws=0).state
    with pytest.raises(FlexgenError, match=r"scan: never visits the free site"):
        sampler.run(state=open_ended, draws=1)


def test_chains_start_where_the_weights_are() -> None:
    """Without x a module's chains start on its device; on that of a generator for whatever has no weights."""

    class Elsewhere(torch.nn.Module, TabulatedMarginals):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            TabulatedMarginals.__init__(self, 3)
            self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

    def start(conditional: object, generator: object = None) -> torch.device:
        return driver.chain_device(conditional, generator)  # type: ignore[arg-type]

    assert start(Elsewhere()) == torch.device("meta")
    assert start(Elsewhere(), torch.Generator()) == torch.device("meta")
    assert start(TabulatedMarginals(3), torch.Generator()) == torch.device("cpu")
    assert start(TabulatedMarginals(3), 0) == torch.device("cpu")


def test_real_sites_need_a_start() -> None:
    class CompleteOnly(GaussianSites):
        def sample(self, x: Tensor, query: Query, *, generator: Randomness) -> Tensor:
            if bool((query.target.sum(-1) > 1).any()):
                raise UnsupportedQueryError("query", "has several targets", "Ask for one.")
            return super().sample(x, query, generator=generator)

    with pytest.raises(
        FlexgenError, match=r"x: is to be initialised, but the conditional cannot draw .*rows of the data"
    ):
        GibbsSampler(CompleteOnly(torch.eye(2)), scan=scans.systematic()).run(chains=2, draws=1, generator=0)


def test_import_is_light() -> None:
    code = (
        "import sys, samplers; from samplers import GibbsSampler, scans, run;"
        "bad = [m for m in sys.modules if m.split('.')[0] in "
        "('arviz', 'pandas', 'scipy', 'matplotlib', 'diffusers', 'transformers')"
        " or m.startswith(('flexgen.exact', 'flexgen.networks', 'flexgen.training'))]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


STICKY = torch.tensor([[0.495, 0.005], [0.005, 0.495]], dtype=torch.float64)


def sticky_run(scan: Scan, **options: object) -> None:
    """Two sites that nearly determine each other, and a third that is free; half of the chains begin at each end."""
    joint = JointTable(STICKY[..., None] * torch.tensor([0.5, 0.5], dtype=torch.float64))
    start = torch.tensor([[0, 0, 0], [1, 1, 1]]).repeat(4, 1)
    GibbsSampler(joint, scan=scan).run(**{"x": start, "draws": 60, "generator": 0, **options})  # type: ignore[arg-type]


def test_runs_that_have_not_mixed_say_which_sites_and_what_to_do() -> None:
    told = r"R-hat is \d\.\d\d at '[01]', \d\.\d\d at '[01]' \(of 3 site.*Run longer.*blocked.*model.scan"
    with pytest.warns(MixingWarning, match=told):
        sticky_run(scans.systematic())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sticky_run(scans.blocked([[0, 1], [2]]))
        sticky_run(scans.systematic(), draws=39)  # too few to say
        sticky_run(scans.systematic(), store=False)
        # Chains of different targets may differ.
        sticky_run(scans.systematic(), clamped=torch.tensor([True, False, False]))
        sticky_run(scans.systematic(), clamped=torch.tensor([[True, False, False]] * 8))


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["normal", "coin", "rare", "ordered"])
def test_independent_draws_never_warn_and_slow_ones_do(kind: str) -> None:
    """False alarms at a rate of 1e-6 a run; an autoregression of 0.98 is found in each of as many runs."""
    generator = torch.Generator().manual_seed(0)
    for num_draws, num_chains in [(40, 2), (41, 50), (200, 1), (200, 4), (1000, 3)] * 4:
        noise = torch.randn(num_draws, num_chains, 6, generator=generator, dtype=torch.float64)
        slow = noise.clone()
        for t in range(1, num_draws):
            slow[t] = 0.98 * slow[t - 1] + (1 - 0.98**2) ** 0.5 * noise[t]
        code = {"normal": lambda x: x, "coin": lambda x: x > 0, "rare": lambda x: x > 2, "ordered": torch.round}[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_if_unmixed(code(noise).double(), list("abcdef"))
        if kind != "rare" and num_chains > 2 and num_draws <= 200:
            with pytest.warns(MixingWarning):
                warn_if_unmixed(code(slow).double(), list("abcdef"))


def test_the_check_of_a_large_run_looks_at_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reducibility, "_LOOKED_AT", 4000)
    looked_at = []
    whole = chains.plain_rhat
    monkeypatch.setattr(chains, "plain_rhat", lambda draws: looked_at.append(draws.shape) or whole(draws))
    draws = torch.randn(5000, 50, 2, generator=torch.Generator().manual_seed(0))
    warn_if_unmixed(draws, ["a", "b"])
    with pytest.warns(MixingWarning, match=r"at 'b' \(of 2"):
        warn_if_unmixed(draws + torch.tensor([0.0, 1.0]) * torch.arange(50)[:, None], ["a", "b"])
    assert all(shape.numel() <= 4000 for shape in looked_at)
