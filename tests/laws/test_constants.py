"""Constants of the field's laws, as published or counted in the original code.

Exact where the law is in closed form. Where a constant is itself an estimate, the tolerance is that of its last digit
plus the sampling error of the draws here, at a false-alarm rate of 1e-6 a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from samplers import laws
from samplers.laws.spans import span_counts, truncated_geometric

FALSE_ALARM = 1e-6


def sets(law: laws.Law, num_rows: int, num_sites: int, seed: int = 0, **extras: Tensor) -> tuple[Tensor, Tensor]:
    present = torch.ones(num_rows, num_sites, dtype=torch.bool)
    query = law.draw(present, generator=torch.Generator().manual_seed(seed), **extras).query
    return query.target, query.observed


def assert_mean(draws: Tensor, expected: float, *, digit: float = 0.0, expected_draws: float = math.inf) -> None:
    """The mean of `draws` is `expected`, which was rounded to `digit`, or estimated from so many draws."""
    draws = draws.double()
    error = float(draws.std()) * math.sqrt(1 / len(draws) + 1 / expected_draws)
    assert float(draws.mean()) == pytest.approx(expected, abs=stats.norm.isf(FALSE_ALARM / 2) * error + digit / 2)


def num_spans(target: Tensor) -> Tensor:
    """Runs of True in each row."""
    return target[:, 0] + (target[:, 1:] & ~target[:, :-1]).sum(-1)


def test_bert_asks_for_15_percent() -> None:
    assert torch.allclose(laws.bert().law.inclusion(64), torch.tensor(0.15, dtype=torch.float64))
    words = laws.Labels((0, 0, 1, 2, 2, 2))
    assert torch.allclose(laws.whole_word_bert(words=words).law.inclusion(6), torch.tensor(0.15, dtype=torch.float64))


@pytest.mark.statistical
def test_bert_corrupts_80_10_10() -> None:
    present = torch.ones(2000, 128, dtype=torch.bool)
    drawn = laws.bert().draw(present, generator=torch.Generator().manual_seed(0))
    target = drawn.query.target
    assert drawn.kept is not None
    assert drawn.replaced is not None
    assert not (drawn.kept & drawn.replaced).any()
    assert not ((drawn.kept | drawn.replaced) & ~target).any()
    for fate in (drawn.kept, drawn.replaced):
        assert_mean(fate[target], 0.1)


@pytest.mark.statistical
def test_span_bert() -> None:
    lengths = truncated_geometric(0.2, 10)
    assert float(lengths @ torch.arange(1.0, 11.0).double()) == pytest.approx(3.797, abs=5e-4)
    target, _ = sets(laws.GeometricSpans(), 500, 400)
    assert (target.sum(-1) == 60).all()  # the budget is spent exactly
    words = torch.arange(400).div(3, rounding_mode="floor").expand(500, -1)
    target, _ = sets(laws.span_bert(), 500, 400, groups=words)
    whole = target[:, :399].view(500, 133, 3)
    assert (whole == whole[..., :1]).all()
    assert (whole[..., 0].sum(-1) + target[:, 399] == math.ceil(0.15 * 134)).all()


@pytest.mark.parametrize(
    ("density", "mean_length", "targets", "spans"),
    [
        (0.15, 3, 77, 26),  # T5, and UL2's R
        (0.15, 8, 77, 10),
        (0.5, 3, 256, 85),
        (0.5, 8, 256, 32),
        (0.15, 64, 77, 1),
        (0.5, 64, 256, 4),
    ],
)
def test_spans_of_512_tokens(density: float, mean_length: float, targets: int, spans: int) -> None:
    counts = span_counts(torch.tensor([512]), density, mean_length)
    assert [int(count) for count in counts] == [targets, spans]
    target, observed = sets(laws.Spans(density, mean_length), 50, 512)
    assert (target.sum(-1) == targets).all()
    assert (num_spans(target) == spans).all()
    assert observed[:, 0].all()  # the sequence begins with what is observed


def test_t5_is_that_row() -> None:
    assert laws.t5() == laws.Spans(0.15, 3)


def test_ul2_mixes_seven_denoisers() -> None:
    law = laws.ul2()
    assert isinstance(law, laws.Mixture)
    assert len(law.laws) == 7
    target, observed = sets(laws.ul2(("S",)), 5, 512)
    assert (num_spans(target) == 1).all()
    assert target[:, -128:].all()
    assert observed[:, :-128].all()


def test_xlnet_predicts_a_sixth() -> None:
    target, _ = sets(laws.xlnet(), 500, 512)
    assert (target.sum(-1) == 85).all()
    assert pytest.approx(1 / 6, abs=1e-3) == 85 / 512
    runs = target.sum() / num_spans(target).sum()
    mean_gram = 5 / sum(1 / g for g in range(1, 6))
    assert 1.5 < float(runs) < mean_gram  # n-grams of mean 2.19, thinned by single sites that complete the count


def test_image_laws_have_fixed_counts() -> None:
    assert (sets(laws.mae(), 20, 196)[0].sum(-1) == 147).all()
    simmim = sets(laws.sim_mim((48, 48), (8, 8)), 20, 48 * 48)[0]
    assert (simmim.sum(-1) == 22 * 64).all()  # 0.6 of 36 patches of 32 pixels, rounded up
    tube = sets(laws.video_mae((8, 14, 14)), 20, 8 * 196)[0].view(20, 8, 196)
    assert (tube == tube[:, :1]).all()
    assert (tube[:, 0].sum(-1) == 176).all()


@pytest.mark.statistical
def test_beit() -> None:
    target, _ = sets(laws.beit(), 8000, 196)
    count, grid = target.sum(-1), target.view(-1, 14, 14)
    assert count.max() <= 75
    assert_mean(count, 74.5, digit=0.1)
    assert_mean(grid[:, 6:8, 6:8].float().mean((1, 2)), 0.72, digit=0.02)
    assert_mean(grid[:, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean(1), 0.044, digit=0.002)


def test_rates_of_maskgit_and_mage() -> None:
    assert laws.Cosine().mean == pytest.approx(2 / math.pi, abs=1e-12)
    u = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    assert float((laws.Cosine().quantile(u) > 0.9).double().mean()) == pytest.approx(0.287, abs=5e-4)
    mage = laws.TruncatedNormal(0.55, 0.25, 0.5, 1.0)
    reference = stats.truncnorm(-0.2, 1.8, 0.55, 0.25)
    assert (mage.mean, mage.std) == pytest.approx((reference.mean(), reference.std()), abs=1e-9)
    assert (mage.mean, mage.std) == pytest.approx((0.694, 0.129), abs=5e-4)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("rate", "reference"),
    [
        (laws.Uniform(0.1, 0.8), stats.uniform(0.1, 0.7)),
        (laws.TruncatedNormal(0.55, 0.25, 0.5, 1.0), stats.truncnorm(-0.2, 1.8, 0.55, 0.25)),
        (laws.Beta(1, 4), stats.beta(1, 4)),
        (laws.Beta(0.3, 0.6), stats.beta(0.3, 0.6)),
        (laws.Beta(7.5, 2), stats.beta(7.5, 2)),
    ],
    ids=lambda value: repr(value) if isinstance(value, laws.Rate) else "",
)
def test_rates_follow_their_distributions(rate: laws.Rate, reference: object) -> None:
    draws = rate.draw(20_000, generator=torch.Generator().manual_seed(1))
    assert stats.kstest(draws.numpy(), reference.cdf).pvalue > FALSE_ALARM  # type: ignore[attr-defined]
    assert (rate.mean, rate.std) == pytest.approx((reference.mean(), reference.std()), abs=1e-9)  # type: ignore[attr-defined]


def test_mdlm_hides_a_uniform_number() -> None:
    pmf = laws.mdlm(epsilon=1e-3).cardinality_pmf(12)
    assert torch.allclose(pmf, torch.tensor(1 / 13, dtype=torch.float64), atol=1e-3)
    exact = laws.mdlm(epsilon=0.0).cardinality_pmf(300)
    assert torch.allclose(exact, torch.tensor(1 / 301, dtype=torch.float64), rtol=1e-9)


def test_any_order_observes_a_uniform_number() -> None:
    d = 10
    pmf = laws.any_order().cardinality_pmf(d, "observed")
    assert torch.allclose(pmf[:d], torch.tensor(1 / d, dtype=torch.float64))
    assert pmf[d] == 0
    assert float(pmf @ torch.arange(d + 1).double()) / d == pytest.approx((d - 1) / (2 * d))


def test_power_cardinality_is_k_plus_one() -> None:
    pmf = laws.power_cardinality().cardinality_pmf(9, "observed")
    assert torch.allclose(pmf, torch.tensor([*range(1, 10), 0]).double() / 45)


def test_mac_law_of_the_observed_number() -> None:
    pmf = laws.mac().cardinality_pmf(10, "observed")
    assert pmf[:3].tolist() == pytest.approx([0.293, 0.193, 0.143], abs=5e-4)
    assert float(pmf[9]) == pytest.approx(0.010, abs=5e-4)
    assert laws.mac().cardinality_pmf(10)[1] == pytest.approx(1.0)


def test_vaeac_tables_and_image_areas() -> None:
    assert torch.allclose(laws.vaeac_tables().inclusion(7), torch.tensor(0.2, dtype=torch.float64))
    law = laws.vaeac_images((32, 32))
    assert isinstance(law, laws.Mixture)
    assert law.probabilities == (0.5, 0.25, 0.25)
    rectangle = sets(law.laws[0], 3000, 1024)[0].view(-1, 32, 32)
    area = rectangle.sum((1, 2))
    assert area.min() >= 0.3 * 1024
    assert torch.equal(rectangle.any(1).sum(1) * rectangle.any(2).sum(1), area)  # it is a rectangle
    boxes = law.laws[1]
    assert isinstance(boxes, laws.Mixture)
    assert len(boxes.laws) == 6
    assert [int(box.inclusion(1024).sum()) for box in law.laws[2].laws[-4:]] == [512] * 4  # type: ignore[attr-defined]
    assert int(law.laws[2].laws[0].inclusion(1024).sum()) == 256  # type: ignore[attr-defined]


def cubic(d: Tensor) -> Tensor:
    """Keys' kernel with a = -3/4."""
    near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def linear(d: Tensor) -> Tensor:
    return (1 - d).clamp_min(0.0)


def share_below(threshold: float, kernel: Callable[[Tensor], Tensor]) -> float:
    """P(Σ_ij w_i(s) w_j(t) U_ij < threshold), U uniform and s, t the uniform place of a site between coarse cells.

    Gil-Pelaez: a weighted sum of uniforms, its mean 1/2, has characteristic function e^{iu/2} Π sin(uw/2) / (uw/2).
    """
    s = (torch.arange(24, dtype=torch.float64) + 0.5) / 48  # up to 1/2, for the kernel is even
    weights = kernel(torch.stack([1 + s, s, 1 - s, 2 - s], -1))  # [24, 4]
    du = 0.25
    u = du * (torch.arange(1000, dtype=torch.float64) + 0.5)
    total = torch.zeros(())
    for row in weights:
        products = (row[:, None] * weights[:, None, :]).flatten(1)  # [24, 16]
        characteristic = torch.sinc(u[:, None, None] * products / (2 * math.pi)).prod(-1)  # [1000, 24]
        total = total + (torch.sin(u * (0.5 - threshold)) / u * characteristic.mean(-1)).sum() * du
    return 0.5 - float(total) / len(weights) / math.pi


@pytest.mark.statistical
def test_pattern_has_the_density_of_its_field() -> None:
    """No site is special, and the share of targets is that of cubic enlargement; of a linear one it is smaller."""
    share = sets(laws.Pattern((32, 32), 0.06, 0.25), 2000, 1024)[0].float()
    assert_mean(share.mean(1), share_below(0.25, cubic))
    assert_mean(share[:, 0] - share[:, 1000], 0.0)
    with pytest.raises(AssertionError):
        assert_mean(share.mean(1), share_below(0.25, linear))


def test_simformer() -> None:
    law, d = laws.simformer(), 10
    assert float(law.cardinality_pmf(d, "observed")[0]) == pytest.approx(0.287, abs=5e-4)
    assert float(law.inclusion(d, "observed").sum()) / d == pytest.approx(0.199, abs=5e-4)


def test_simformer_tasks() -> None:
    theta, x = (0, 1), (2, 3, 4)
    law = laws.simformer_tasks(theta, x)
    for observed, target in ((theta, x), (x, theta)):
        wanted = torch.tensor([i in observed for i in range(5)]), torch.tensor([i in target for i in range(5)])
        probability = next(
            p for q, p in law.support(5) if torch.equal(q.observed, wanted[0]) and torch.equal(q.target, wanted[1])
        )
        rest = len(target)
        bernoulli = sum(r ** len(observed) * (1 - r) ** rest for r in (0.3, 0.7))
        assert probability == pytest.approx(0.2 + 0.2 * bernoulli)


@pytest.mark.statistical
def test_fdm() -> None:
    """Against 3000 draws of the original code at K=20, T=300: mean |P| 12.8, |C| 2.2, C empty in 70.6%."""
    target, observed = sets(laws.fdm(20), 6000, 300)
    p, c = target.sum(-1), observed.sum(-1)
    assert (p + c).max() <= 20
    assert p.min() >= 1
    assert_mean(p, 12.8, digit=0.1, expected_draws=3000)
    assert_mean(c, 2.2, digit=0.1, expected_draws=3000)
    assert_mean((c == 0).float(), 0.706, digit=1e-3, expected_draws=3000)
    assert_mean(((c >= 8) & (p >= 8)).float(), 0.039, digit=1e-3, expected_draws=3000)
    assert_mean(20 - p - c, 0.25 * 20, digit=0.2, expected_draws=3000)
    both = c > 0
    site = torch.arange(300)
    first_p, last_p = torch.where(target, site, 300).amin(-1), torch.where(target, site, -1).amax(-1)
    first_c, last_c = torch.where(observed, site, 300).amin(-1), torch.where(observed, site, -1).amax(-1)
    assert_mean((both & (last_c < first_p)).float(), 0.067, digit=1e-3, expected_draws=3000)
    assert_mean((both & (first_c < first_p) & (last_c > last_p)).float(), 0.050, digit=1e-3, expected_draws=3000)
