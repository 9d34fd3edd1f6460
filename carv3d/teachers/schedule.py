"""Noise schedules, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MOST_BETA = 0.999


def is_flow(scheduler: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler's config is of flow matching."""
    return scheduler.get("prediction_type") == "flow_prediction" or "FlowMatch" in str(scheduler.get("_class_name"))


@dataclass(frozen=True)
class NoiseSchedule:
    """`z_t = alpha_t z + sigma_t eps` on T discrete timesteps, from nearly clean to nearly noise.

    Attributes:
        alpha, sigma: (T,) float64. Diffusion has `alpha_t^2 + sigma_t^2 = 1`, flow matching `alpha_t + sigma_t = 1`.
        times: (T,) float32, the network's input for a timestep: its index, or `1000 sigma_t` for flow matching.
    """

    alpha: Tensor
    sigma: Tensor
    times: Tensor

    @classmethod
    def of_alphas_cumprod(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """Diffusion, from alpha_t^2 (T,)."""
        a = alphas_cumprod.double()
        return cls(a.sqrt(), (1 - a).sqrt(), torch.arange(len(a), dtype=torch.float32, device=a.device))

    @classmethod
    def of_betas(cls, kind: str, start: float, end: float, timesteps: int) -> NoiseSchedule:
        """diffusers' "linear", "scaled_linear" and "squaredcos_cap_v2" schedules; the last has no start and end.

        Raises:
            ValueError: another kind.
        """
        if kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
        elif kind == "linear":
            betas = torch.linspace(start, end, timesteps, dtype=torch.float64)
        elif kind == "squaredcos_cap_v2":  # Nichol and Dhariwal, arXiv 2102.09672, equation 17
            time = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
            f = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - f[1:] / f[:-1]).clamp_max(_MOST_BETA)
        else:
            known = "'linear', 'scaled_linear' and 'squaredcos_cap_v2'"
            raise ValueError(f"unknown beta schedule {kind!r}: {known} are known")
        return cls.of_alphas_cumprod((1 - betas).cumprod(0))

    @classmethod
    def of_flow(cls, shift: float, timesteps: int) -> NoiseSchedule:
        """Flow matching along straight lines, `z_t = (1 - sigma) z + sigma eps`.

        `sigma = shift s / (1 + (shift - 1) s)` with s in steps of 1 / T up to 1 (Esser et al., arXiv 2403.03206,
        equation 23), as in diffusers' FlowMatchEulerDiscreteScheduler.
        """
        s = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
        sigma = shift * s / (1 + (shift - 1) * s)
        return cls(1 - sigma, sigma, (timesteps * sigma).float())

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule of a diffusers scheduler's config.

        Raises:
            ValueError: an unknown schedule.
        """
        if is_flow(config):
            if config.get("use_dynamic_shifting"):
                raise ValueError("use_dynamic_shifting is not supported")
            return cls.of_flow(config.get("shift", 1.0), config["num_train_timesteps"])
        if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
            raise ValueError("trained_betas and rescale_betas_zero_snr are not supported")
        try:
            names = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
            return cls.of_betas(*(config[name] for name in names))
        except KeyError as error:
            raise ValueError(f"the scheduler's config has no {error}") from None

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.alpha.device

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t for timesteps t (N,), shaped (N, 1, ...) to multiply `like` (N, ...)."""
        shape = (-1, *[1] * (like.ndim - 1))
        return self.alpha[t].view(shape).to(like.dtype), self.sigma[t].view(shape).to(like.dtype)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on another device."""
        return NoiseSchedule(self.alpha.to(device), self.sigma.to(device), self.times.to(device))
