"""Between pixels and noise: how frames are scaled, noised, and what the network predicts; schedulers are diffusers'."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from scipy.special import betaincinv
from torch import Tensor

from flexgen.errors import ConfigError

__all__ = ["NoiseProcess", "PixelScale", "SchedulerName"]

Prediction = Literal["flow", "epsilon", "v_prediction"]
SchedulerName = Literal["unipc", "dpm++", "euler", "heun", "ddim", "ddpm"]
_FLOW_SOLVERS = {
    "unipc": "UniPCMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
}

NUM_TIMESTEPS = 1000  # of training, in diffusers' terms; a noise level is a timestep over this
# Where multistep solvers of flows stand: closer near both ends (quantiles of a Beta law: Lee et al. 2024), and closer
# where there is more noise (shift s, l -> s l / (1 + (s - 1) l): Esser et al. 2024). Of a grid of both, ten steps of
# UniPC came nearest to the limit of many steps here, in pixels and in sharpness: benchmarks/README.md.
FLOW_BETA, FLOW_SHIFT = 0.6, 2.0


@dataclass(frozen=True)
class PixelScale:
    """uint8 frames ``[.., h, w, c]`` as floats ``[.., c, h, w]`` of about zero mean and unit variance, and back.

    Args:
        mean, std: of the training data, in pixels over 255.
    """

    mean: float = 0.5
    std: float = 0.25

    def to_network(self, frames: Tensor) -> Tensor:
        return ((frames.float() / 255.0 - self.mean) / self.std).movedim(-1, -3)

    def to_pixels(self, values: Tensor) -> Tensor:
        pixels = (values.float() * self.std + self.mean) * 255.0
        return pixels.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


@dataclass(frozen=True)
class NoiseProcess:
    """A path from data to noise, and what is learned along it.

    Args:
        prediction: ``"flow"``: x_l = (1 - l) x_0 + l e on a straight line, the network predicts e - x_0 (flow matching,
            Lipman et al. 2023; rectified flow, Liu et al. 2023). ``"epsilon"`` or ``"v_prediction"``: variance
            preserving diffusion, the network predicts e, or v = a e - s x_0 (Salimans & Ho 2022).
        betas: of diffusion: ``"linear"`` (as FDM) or ``"squaredcos_cap_v2"`` (cosine).

    A level l is between 0 (data) and 1 (noise), one a frame.
    """

    prediction: Prediction = "flow"
    betas: Literal["linear", "squaredcos_cap_v2"] = "linear"

    def __post_init__(self) -> None:
        for name, options in (("prediction", get_args(Prediction)), ("betas", ("linear", "squaredcos_cap_v2"))):
            if getattr(self, name) not in options:
                raise ConfigError(name, f"is {getattr(self, name)!r}", f"Choose one of {', '.join(options)}.")

    @property
    def is_flow(self) -> bool:
        return self.prediction == "flow"

    def noised(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """x_l, ``[B, K, c, h, w]``, at levels ``[B, K]``; a level of exactly 0 leaves the data as they are."""
        at = level[..., None, None, None].to(clean.dtype)
        if self.is_flow:
            return (1.0 - at) * clean + at * noise
        mixed = self._ddpm.add_noise(*self._by_frame(clean, noise, level))
        return torch.where(at == 0, clean, rearrange(mixed, "(b k) c h w -> b k c h w", b=len(clean)))

    def wanted(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network should predict there, ``[B, K, c, h, w]``."""
        if self.is_flow:
            return noise - clean
        if self.prediction == "epsilon":
            return noise
        velocity = self._ddpm.get_velocity(*self._by_frame(clean, noise, level))
        out: Tensor = rearrange(velocity, "(b k) c h w -> b k c h w", b=len(clean))
        return out

    def _by_frame(self, clean: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As diffusers takes them: a frame a row."""
        frames, noises = (rearrange(x, "b k c h w -> (b k) c h w") for x in (clean, noise))
        return frames, noises, rearrange(self._timestep(level), "b k -> (b k)")

    def seen(self, level: Tensor) -> Tensor:
        """The level that the network is told: the timestep's, where the process has only so many."""
        return level if self.is_flow else torch.where(level == 0, 0.0, self._timestep(level) / NUM_TIMESTEPS)

    def scheduler(self, name: str, num_steps: int, *, device: torch.device | str = "cpu") -> Any:
        """A scheduler of diffusers for this process, its timesteps set; each, over 1000, is a level.

        Args:
            name: ``"unipc"`` (predictor and corrector of second order, one evaluation a step: Zhao et al. 2023),
                ``"dpm++"`` (of second order), ``"euler"`` or ``"heun"`` (two evaluations a step but the last) for
                flows; ``"dpm++"``, ``"ddim"`` or ``"ddpm"`` (ancestral, as FDM) for diffusions. DDIM and the ancestral
                sampler are the solvers of first order of DPM-Solver++ and of its stochastic kin (Lu et al. 2022).
            num_steps: denoising steps.
        """
        if name not in get_args(SchedulerName):
            raise ConfigError("scheduler", f"is {name!r}", f"Choose one of {', '.join(get_args(SchedulerName))}.")
        fitting = tuple(_FLOW_SOLVERS) if self.is_flow else ("dpm++", "ddim", "ddpm")
        if name not in fitting:
            raise ConfigError(
                "scheduler",
                f"is {name!r}, which does not follow the process (prediction={self.prediction!r})",
                f"Choose one of {', '.join(fitting)}.",
            )
        most = None if self.is_flow else NUM_TIMESTEPS
        if not isinstance(num_steps, int) or num_steps < 1 or (most is not None and num_steps > most):
            fix = "Take at least one step." if most is None else f"Take 1 to {most} steps."
            raise ConfigError("num_inference_steps", f"is {num_steps!r}", fix)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of diffusers' way to make arrays of tensors
            return (self._flow_scheduler if self.is_flow else self._diffusion_scheduler)(name, num_steps, device)

    @staticmethod
    def _flow_scheduler(name: str, num_steps: int, device: torch.device | str) -> Any:
        import diffusers

        kind: Any = getattr(diffusers, _FLOW_SOLVERS[name])
        if name == "heun":
            scheduler = kind()
            scheduler.set_timesteps(num_steps, device=device)
        elif name == "euler":  # evenly down to 0; diffusers' own last step would be wasted on 0.001 -> 0
            scheduler = kind()
            scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1.0 / num_steps, num_steps).tolist(), device=device)
        else:
            options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "final_sigmas_type": "zero"}
            scheduler = kind(num_train_timesteps=NUM_TIMESTEPS, **options)
            scheduler.set_timesteps(num_steps, device=device)
            levels = flow_levels(num_steps)
            scheduler.sigmas = torch.cat([levels, levels.new_zeros(1)])  # on the CPU, as diffusers keeps them
            # The level at which it stands, where diffusers rounds to a whole timestep.
            scheduler.timesteps = levels.to(device) * NUM_TIMESTEPS
        return scheduler

    def _diffusion_scheduler(self, name: str, num_steps: int, device: torch.device | str) -> Any:
        import diffusers

        options: dict[str, Any] = {"num_train_timesteps": NUM_TIMESTEPS, "beta_schedule": self.betas}
        options |= {"prediction_type": self.prediction, "final_sigmas_type": "zero"}
        if name != "dpm++":
            # DDIMScheduler and DDPMScheduler would step over 1000 // num_steps timesteps, or start below the highest.
            kind = "dpmsolver++" if name == "ddim" else "sde-dpmsolver++"
            options |= {"algorithm_type": kind, "solver_order": 1, "timestep_spacing": "trailing"}
        solver: Any = diffusers.DPMSolverMultistepScheduler
        scheduler = solver(**options)
        scheduler.set_timesteps(num_steps, device=device)
        return scheduler

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @cached_property
    def _ddpm(self) -> Any:
        import diffusers

        scheduler: Any = diffusers.DDPMScheduler
        return scheduler(num_train_timesteps=NUM_TIMESTEPS, beta_schedule=self.betas)

    @staticmethod
    def _timestep(level: Tensor) -> Tensor:
        return (level * NUM_TIMESTEPS).long().clamp(0, NUM_TIMESTEPS - 1)


def flow_levels(num_steps: int) -> Tensor:
    """The levels from which multistep solvers of flows step, ``[num_steps]``, falling from (nearly) 1; then comes 0."""
    even = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)[:-1]
    level = torch.from_numpy(betaincinv(FLOW_BETA, FLOW_BETA, even.numpy()))
    level = FLOW_SHIFT * level / (1.0 + (FLOW_SHIFT - 1.0) * level)
    return (0.999 * level).float()  # at 1 itself the logarithm of the signal is not finite
