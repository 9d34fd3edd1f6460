"""One step of distribution matching distillation: the fake score follows the generator, then the generator moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from carv3d import build
from carv3d.arithmetic import autocast
from carv3d.cameras import Cameras
from carv3d.config import DistillConfig
from carv3d.distillation.conditions import Conditions, prompts_of
from carv3d.distillation.networks import Denoiser
from carv3d.distillation.objective import denoising_loss, score_difference
from carv3d.estimator import Estimate, estimate
from carv3d.loss import check_finite
from carv3d.runs import generator_tensors, optimizer_state, optimizer_tensors, restore_generators
from carv3d.sampling import Proposal, proposal, sds_weight, uniform_pmf
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.diffusers_pipeline import TextCondition

_SETTLED = 20  # updates of the fake score before its running level is one
_MEMORY = 0.98  # of that level, an update


class DivergenceError(ArithmeticError):
    """The fake score's loss is not finite, or far above its running level."""


class Distiller:
    """A distillation's moving parts. What a step depends on is in `state()`; the same state gives the same next step.

    Attributes:
        step_count: generator steps done.
        teacher, generator, fake: the three networks, on the run's device.
        average: the running average of the generator's weights, by name; what is kept in the end.
        timestep: that the generator's noise is given as.
        rng: the one source of random draws, on the run's device.
    """

    def __init__(self, config: DistillConfig, teacher: DiffusersTeacher | None = None) -> None:
        """Load the teacher, if it is not brought, and copy its network twice.

        Raises:
            UserError: prompts or a teacher that will not do.
        """
        self.config = config
        shared = config.shared()
        self.device = build.device(shared)
        prompts = prompts_of(config.prompts)
        if teacher is None:
            teacher = build.diffusers_teacher(shared, self.device)
        self.teacher = teacher
        self.generator, self.fake = Denoiser(teacher), Denoiser(teacher)
        self.conditions = Conditions(teacher, prompts, config.negative_prompt)
        self.cameras = build.camera_sampler(shared)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        timesteps = len(teacher.schedule)
        self.timestep = min(round(config.generator.timestep * timesteps), timesteps - 1)
        low, high = (min(round(x * timesteps), timesteps - 1) for x in (config.matching.t_min, config.matching.t_max))
        p = uniform_pmf(timesteps, low, high)
        self.w = sds_weight(teacher.schedule.alpha.cpu(), teacher.schedule.sigma.cpu(), "uniform").to(self.device)
        self.q = proposal(p, p, "uniform").to(self.device)
        whole = uniform_pmf(timesteps, 0, timesteps - 1)
        self._q_fake: Proposal = proposal(whole, whole, "uniform").to(self.device)
        self._optimizers = {
            name: torch.optim.Adam(
                network.network.parameters(), lr=section.lr, betas=(section.betas[0], section.betas[1])
            )
            for name, network, section in (
                ("generator", self.generator, config.generator),
                ("fake", self.fake, config.fake),
            )
        }
        self.average = {name: p.detach().clone() for name, p in self.generator.network.named_parameters()}
        self.step_count = 0
        self._level = torch.zeros(2, dtype=torch.float64)  # updates of the fake score, and its running loss

    def step(self) -> dict[str, float]:
        """Some updates of the fake score, one of the generator; figures to log.

        Raises:
            DivergenceError: the fake score has diverged.
            FloatingPointError: a score difference is not finite.
        """
        config = self.config
        for _ in range(config.fake.updates):
            fake_loss = self._update_fake()
        z, condition = self.outputs(config.matching.renders, self.rng)
        found = self.estimate(z, condition, self.rng)
        check_finite(found)
        optimizer = self._optimizers["generator"]
        optimizer.zero_grad()
        ((z * found.fbar).sum() / len(z)).backward()
        gradients = [p.grad for p in self.generator.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer.step()
        self.step_count += 1
        decay = min(config.generator.average, self.step_count / (self.step_count + 9))
        with torch.no_grad():
            for name, p in self.generator.network.named_parameters():
                self.average[name].lerp_(p, 1 - decay)
        figures = {"fake_loss": fake_loss, "gradient_norm": float(norm)}
        return figures | {"difference": float(found.fbar.flatten(1).norm(dim=1).mean())}

    def outputs(self, count: int, rng: torch.Generator) -> tuple[Tensor, TextCondition]:
        """Fresh outputs z (count, C, h, w) of the generator, and what they were asked to show."""
        index = torch.randint(len(self.conditions.prompts), (count,), generator=rng, device=rng.device)
        cameras = self.cameras.sample(count, rng).to(self.device)
        condition = self.conditions(index, cameras)
        noise = torch.randn((count, *self.teacher.latent_shape), generator=rng, device=self.device)
        with self.arithmetic():
            return self.generator.one_step(noise, self.timestep, condition), condition

    def estimate(self, z: Tensor, condition: TextCondition, rng: torch.Generator, **other: Any) -> Estimate:
        """The averaged score difference of outputs; `other` replaces K, kind or coupling."""
        section = self.config.matching
        options = {"K": section.resamples, "kind": section.strata, "coupling": section.noise} | other
        with self.arithmetic():
            difference = score_difference(self.teacher, self.fake, condition, section.scale)
            return estimate(z.detach(), difference, self.q, self.w, rng=rng, chunk=section.chunk, **options)

    def sample(self, index: Sequence[int], cameras: Cameras, rng: torch.Generator) -> Tensor:
        """Latents (N, C, h, w) by the averaged weights, for prompts `index` and N cameras."""
        condition = self.conditions(torch.tensor(index), cameras.to(self.device))
        noise = torch.randn((len(index), *self.teacher.latent_shape), generator=rng, device=self.device)
        with torch.no_grad(), self.averaged():
            return self.generator.one_step(noise, self.timestep, condition)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The generator with its averaged weights, for as long as the block lasts."""
        network = self.generator.network
        own = {name: p.detach().clone() for name, p in network.named_parameters()}
        try:
            network.load_state_dict(self.average, strict=False)
            yield
        finally:
            network.load_state_dict(own, strict=False)

    def arithmetic(self) -> AbstractContextManager[None]:
        """The networks' precision."""
        return autocast(self.config.training.precision, self.device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The averaged generator, and all else that the next step depends on."""
        state = {f"network.{k}": v for k, v in self.generator.network.state_dict().items()}
        state |= {f"fake.{k}": v for k, v in self.fake.network.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            state |= optimizer_tensors(optimizer.state_dict(), f"adam_{name}")[0]
        return dict(self.average), state | {"level": self._level} | generator_tensors({"train": self.rng})

    def load_state(self, step: int, average: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Go on after `step` steps, from what `state` gave.

        Raises:
            RuntimeError, KeyError, ValueError: it is of another network.
        """
        for prefix, network in (("network", self.generator.network), ("fake", self.fake.network)):
            own = {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}
            network.load_state_dict(own)
        if {k: v.shape for k, v in average.items()} != {k: v.shape for k, v in self.average.items()}:
            raise ValueError("the average is of another network")
        self.average = {name: tensor.to(self.device) for name, tensor in average.items()}
        for name, optimizer in self._optimizers.items():
            groups = optimizer.state_dict()["param_groups"]  # rates come from the config
            optimizer.load_state_dict(optimizer_state(state, groups, f"adam_{name}"))
        self._level = state["level"].clone()
        restore_generators(state, {"train": self.rng})
        self.step_count = step

    def _update_fake(self) -> float:
        with torch.no_grad():
            z, condition = self.outputs(self.config.fake.batch, self.rng)
        optimizer = self._optimizers["fake"]
        optimizer.zero_grad()
        with self.arithmetic():
            loss = denoising_loss(self.fake, z, condition, self._q_fake, self.rng)
        value = float(loss.detach())
        self._watch(value)
        loss.backward()
        optimizer.step()
        return value

    def _watch(self, loss: float) -> None:
        """Compare one loss of the fake score with those before it."""
        count, level = self._level.tolist()
        step = self.step_count + 1
        if not math.isfinite(loss):
            raise DivergenceError(f"step {step}: the fake score's loss is not finite")
        if count >= _SETTLED and loss > self.config.fake.divergence * level:
            raise DivergenceError(
                f"step {step}: the fake score's loss is {loss:.3g}, {loss / level:.0f} times its running level"
            )
        self._level[0] = count + 1
        self._level[1] = level + max(1 - _MEMORY, 1 / (count + 1)) * (loss - level)
