"""Noise processes against closed forms, and every scheduler against a law whose exact denoiser is known."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from torch import Tensor

from flexgen import rng
from flexgen.errors import ConfigError
from flexgen.video.process import NoiseProcess, PixelScale

DIFFUSIONS = [
    NoiseProcess(kind, betas) for kind in ("epsilon", "v_prediction") for betas in ("linear", "squaredcos_cap_v2")
]
PROCESSES = [NoiseProcess(), *DIFFUSIONS]
PAIRS = [
    (process, name)
    for process in PROCESSES
    for name in (("euler", "heun", "dpm++", "unipc") if process.is_flow else ("dpm++", "ddim", "ddpm"))
]


def named(value: object) -> str:
    return "-".join(value.to_dict().values()) if isinstance(value, NoiseProcess) else str(value)


def coefficients(process: NoiseProcess, level: Tensor) -> tuple[Tensor, Tensor]:
    """x_l = a x_0 + s e, in float64."""
    level = level.double()
    if process.is_flow:
        return 1.0 - level, level
    t = torch.arange(1000, dtype=torch.float64)
    if process.betas == "linear":
        beta = 1e-4 + (0.02 - 1e-4) * t / 999
    else:  # Nichol & Dhariwal (2021), equation 17
        bar = lambda u: torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()  # noqa: E731
        beta = (1 - bar((t + 1) / 1000) / bar(t / 1000)).clamp_max(0.999)
    kept = (1 - beta).cumprod(0)[(level * 1000).long().clamp(0, 999)]
    return kept.sqrt(), (1 - kept).sqrt()


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_closed_forms(process: NoiseProcess) -> None:
    source = torch.Generator().manual_seed(0)
    level = torch.tensor([[0.0, 0.004, 0.2504], [0.5, 0.8011, 0.999]])
    clean, noise = torch.randn(2, 2, 3, 1, 4, 4, generator=source)
    a, s = (value[..., None, None, None] for value in coefficients(process, level))
    noised, wanted = process.noised(clean, noise, level), process.wanted(clean, noise, level)
    assert torch.equal(noised[0, 0], clean[0, 0])  # level 0: the data as they are
    later = level > 0
    torch.testing.assert_close(noised[later].double(), (a * clean + s * noise)[later], atol=1e-5, rtol=0)
    expected = {
        "flow": (noise - clean).double(), "epsilon": noise.double(), "v_prediction": a * noise - s * clean,
    }[process.prediction]  # fmt: skip
    torch.testing.assert_close(wanted.double()[later], expected[later], atol=1e-5, rtol=0)
    told = process.seen(level)
    assert told[0, 0] == 0
    if process.is_flow:
        assert torch.equal(told, level)
    else:
        torch.testing.assert_close(told, (level * 1000).floor() / 1000)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_the_signal_fades(process: NoiseProcess) -> None:
    a, s = coefficients(process, (torch.arange(1, 999) + 0.5) / 1000)
    assert (((a / s).log()).diff() < 0).all()
    if not process.is_flow:
        torch.testing.assert_close(a.square() + s.square(), torch.ones_like(a))


def drawn_moments(process: NoiseProcess, name: str, num_steps: int, mean: float, sd: float) -> tuple[float, float]:
    """Mean and standard deviation of what a scheduler makes of N(0, 1) under the exact denoiser of N(mean, sd^2).

    All solvers are affine in x and in their noise, so that noise on a grid of quantiles, scaled to variance 1, gives
    both moments without sampling error; where noise is added on the way, 200 000 numbers are drawn.
    """
    ancestral = name == "ddpm"
    count = 200_000 if ancestral else 1_000
    if ancestral:
        x = rng.normal((count,), generator=rng.stream(0, "start"))
    else:
        x = torch.special.ndtri((torch.arange(count).double() + 0.5) / count)
        x = (x / x.std(correction=0)).float()
    x = x.view(1, 1, count, 1, 1)
    scheduler, source = process.scheduler(name, num_steps), rng.stream(0, "ancestral")
    for timestep in scheduler.timesteps:
        level = (timestep.float() / 1000.0).view(1, 1)
        a, s = (float(value) for value in coefficients(process, level))
        gain = a * sd * sd / (a * a * sd * sd + s * s)  # E[x_0 | x] = mean + gain (x - a mean)
        clean = mean + gain * (x.double() - a * mean)
        noise = (x.double() - a * clean) / s
        wanted = {"flow": noise - clean, "epsilon": noise, "v_prediction": a * noise - s * clean}[process.prediction]
        extra = {"variance_noise": rng.normal(x.shape, generator=source)} if ancestral else {}
        x = scheduler.step(wanted.float(), timestep, x, **extra).prev_sample
    return float(x.double().mean()), float(x.double().std(correction=0))


@pytest.mark.statistical
@pytest.mark.parametrize(("process", "name"), PAIRS, ids=named)
def test_schedulers_reach_the_law_at_their_rate(process: NoiseProcess, name: str) -> None:
    """x_0 ~ N(0.7, 0.4^2). Errors of first-order solvers fall like 1 / steps, those of second order like 1 / steps^2.

    What is left after many steps: |a_1 mean|, the signal still in the noisiest level, where sampling starts from noise
    alone (0.006 of the mean for linear betas), and for "ddpm" five standard errors of 200 000 draws (false alarm 1e-6).
    """
    mean, sd = 0.7, 0.4
    order = 1 if name in ("euler", "ddim", "ddpm") else 2
    errors = {}
    for num_steps in (10, 20, 40, 80):
        m, s = drawn_moments(process, name, num_steps, mean, sd)
        errors[num_steps] = max(abs(m - mean), abs(s - sd))
    floor = 0.007 * mean + (5 * sd / math.sqrt(200_000) if name == "ddpm" else 0.0)
    allowed = (errors[10] + floor) * 8.0**-order
    assert errors[80] < 1.5 * allowed + floor, errors
    assert errors[10] < 0.25, errors


class _Slow(NoiseProcess):
    """Wrong on purpose: its steps follow nine tenths of the velocity."""

    def scheduler(self, name: str, num_steps: int, *, device: torch.device | str = "cpu") -> object:
        scheduler = super().scheduler(name, num_steps, device=device)
        step = scheduler.step
        scheduler.step = lambda wanted, timestep, x, **extra: step(0.9 * wanted, timestep, x, **extra)
        return scheduler


@pytest.mark.statistical
def test_a_wrong_scheduler_is_rejected() -> None:
    errors = [
        max(abs(m - 0.7), abs(s - 0.4)) for m, s in (drawn_moments(_Slow(), "euler", n, 0.7, 0.4) for n in (10, 80))
    ]
    assert errors[1] > 1.5 * errors[0] / 8 + 0.007 * 0.7  # what a right one stays below


@pytest.mark.parametrize("process", DIFFUSIONS, ids=named)
@pytest.mark.parametrize(("name", "peer"), [("ddim", "DDIMScheduler"), ("ddpm", "DDPMScheduler")])
def test_first_order_solvers_are_ddim_and_ddpm(process: NoiseProcess, name: str, peer: str) -> None:
    """Step by step as the schedulers of that name in diffusers, where the number of steps divides 1000."""
    num_steps, source = 20, torch.Generator().manual_seed(0)
    ours = process.scheduler(name, num_steps)
    theirs = getattr(diffusers, peer)(
        num_train_timesteps=1000, beta_schedule=process.betas, prediction_type=process.prediction,
        clip_sample=False, timestep_spacing="trailing",
    )  # fmt: skip
    theirs.set_timesteps(num_steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = torch.randn(1, 1, 1, 8, 8, generator=source, dtype=torch.float64)
    for number, timestep in enumerate(ours.timesteps):
        wanted, noise = torch.randn(2, *x.shape, generator=source, dtype=torch.float64)
        if name == "ddim":
            extra, peer_extra = {}, {}
        else:
            seed = torch.Generator().manual_seed(number)
            noise = torch.randn(x.shape, generator=seed, dtype=torch.float64)
            extra, peer_extra = {"variance_noise": noise}, {"generator": torch.Generator().manual_seed(number)}
        first = ours.step(wanted, timestep, x, **extra).prev_sample
        second = theirs.step(wanted, timestep, x, **peer_extra).prev_sample
        scale = second.abs().max()
        assert (first - second).abs().max() < 1e-3 * scale, number  # float32 tables; cosine betas end at a^2 = 2e-9
        x = torch.randn(x.shape, generator=source, dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 300, 600, 999, 1000])
def test_diffusions_end_at_the_data_for_any_number_of_steps(num_steps: int) -> None:
    for name in ("dpm++", "ddim", "ddpm"):
        scheduler = NoiseProcess("epsilon").scheduler(name, num_steps)
        assert len(scheduler.timesteps) == num_steps
        assert scheduler.timesteps[0] == 999
        assert scheduler.sigmas[-1] == 0


def test_levels_of_flows_are_where_the_solver_stands() -> None:
    process = NoiseProcess()
    assert torch.allclose(process.scheduler("euler", 5).timesteps / 1000, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]))
    for name in ("dpm++", "unipc"):
        for num_steps in (1, 7, 250):
            solver = process.scheduler(name, num_steps)
            assert torch.equal(solver.timesteps / 1000, solver.sigmas[:-1] * 1000 / 1000)
            assert len(solver.timesteps) == num_steps
            assert (solver.sigmas.diff() < 0).all()
            assert solver.sigmas[-1] == 0
    # Quantiles of Beta(.6, .6) by numerical integration of its density, shifted by 2.
    levels, grid = process.scheduler("unipc", 4).sigmas, torch.linspace(0, 1, 2_000_001, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    mass = (middle * (1 - middle)).pow(-0.4).cumsum(0)
    quantiles = middle[torch.searchsorted(mass / mass[-1], torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64))]
    torch.testing.assert_close(levels[1:4].double(), 0.999 * 2 * quantiles / (1 + quantiles), atol=1e-4, rtol=0)
    assert len(process.scheduler("heun", 5).timesteps) == 9


def test_errors() -> None:
    flow, diffusion = NoiseProcess(), NoiseProcess("epsilon")
    with pytest.raises(ConfigError, match="scheduler: is 'ddim', which does not follow the process"):
        flow.scheduler("ddim", 10)
    with pytest.raises(ConfigError, match=r"prediction='epsilon'\)\. Choose one of dpm\+\+, ddim, ddpm"):
        diffusion.scheduler("euler", 10)
    with pytest.raises(ConfigError, match="scheduler: is 'lms'"):
        flow.scheduler("lms", 10)
    with pytest.raises(ConfigError, match="num_inference_steps: is 0"):
        flow.scheduler("euler", 0)
    with pytest.raises(ConfigError, match="num_inference_steps: is 1001"):
        diffusion.scheduler("ddim", 1001)
    with pytest.raises(ConfigError, match="prediction: is 'score'"):
        NoiseProcess("score")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="betas: is 'cosine'"):
        NoiseProcess("epsilon", "cosine")  # type: ignore[arg-type]


def test_pixels_survive_the_scale() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 8, 8, 4)
    for scale in (PixelScale(), PixelScale(0.31, 0.07)):
        values = scale.to_network(pixels)
        assert values.shape == (1, 4, 8, 8)
        assert torch.equal(scale.to_pixels(values), pixels)
    assert PixelScale().to_pixels(torch.tensor([[[-99.0]], [[99.0]]])).flatten().tolist() == [0, 255]
