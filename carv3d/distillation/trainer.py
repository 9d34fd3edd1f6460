"""One step of distribution matching distillation: update the fake score, then the generator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from carv3d import build
from carv3d.cameras import Cameras, Sampler
from carv3d.config import DistillConfig
from carv3d.distillation.conditions import Conditions, prompts_of
from carv3d.errors import UserError
from carv3d.loss import Carv
from carv3d.objectives.distribution_matching import DistributionMatching
from carv3d.objectives.fake_score import FakeScore
from carv3d.runs.state import GeneratorState, OptimizerState, Stateful, pack, unpack
from carv3d.system.arithmetic import autocast
from carv3d.teachers import DiffusersTeacher, Teacher
from carv3d.teachers.families.stable_diffusion import StableDiffusion
from carv3d.teachers.text_condition import TextCondition
from carv3d.training.engine import StepLog

_SETTLED = 20  # updates of the fake score before its running loss is compared with
_MEMORY = 0.98  # weight of the past in the running loss


class DivergenceError(ArithmeticError):
    """The fake score's loss is not finite, or far above its running level."""


class Distiller:
    """The parts of a distillation, and the step that trains them. The same state gives the same next step.

    Attributes:
        step_count: generator steps done.
        teacher, generator, fake: the three networks, on the run's device.
        carv: the estimator of the score difference.
        average: the running average of the generator's weights, by name; the result of the training.
        timestep: at which the generator is called.
        rng: the only source of random draws, on the run's device.
    """

    def __init__(self, config: DistillConfig, teacher: Teacher | None = None) -> None:
        """Load the teacher, if it is not given, and copy its network twice.

        Raises:
            UserError: prompts or a teacher that cannot be used.
        """
        self.config = config
        self.device = build.device(config)
        prompts = prompts_of(config.prompts)
        if teacher is None:
            teacher = build.teacher(config, self.device)
        if not isinstance(teacher, DiffusersTeacher) or not isinstance(teacher.family, StableDiffusion):
            source = teacher.source if isinstance(teacher, DiffusersTeacher) else type(teacher).__name__
            raise UserError(
                f"{source} cannot be distilled: only pipelines of the class StableDiffusionPipeline can "
                "(Stable Diffusion 1 and 2, the built-in teacher)"
            )
        self.teacher = teacher
        self.generator = teacher.trainable(rank=0, seed=config.seed)
        self.fake = FakeScore(teacher.trainable(rank=0, seed=config.seed), config.fake.lr, config.fake.betas)
        self.conditions = Conditions(teacher, prompts, config.negative_prompt)
        self.cameras: Sampler = build.camera_sampler(config)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        timesteps = len(teacher.schedule)
        self.timestep = min(round(config.generator.timestep * timesteps), timesteps - 1)
        section = config.matching
        self.carv = Carv(
            teacher,
            objective=DistributionMatching(self.fake),
            guidance=section.scale,
            resamples=section.resamples,
            proposal="uniform",
            strata=section.strata,
            coupling=section.coupling,
            t_range=(section.t_min, section.t_max),
            chunk=section.chunk,
        )
        first, second = config.generator.betas
        self._optimizer = torch.optim.Adam(self.generator.parameters(), lr=config.generator.lr, betas=(first, second))
        self.average = {name: p.detach().clone() for name, p in self.generator.network.named_parameters()}
        self.step_count = 0
        self._watch = DivergenceWatch(config.fake.divergence)
        self._parts: dict[str, Stateful] = {
            "network": self.generator,
            "fake": self.fake,
            "adam": OptimizerState(self._optimizer),
            "watch": self._watch,
            "generator": GeneratorState(self.rng),
        }

    def step(self) -> StepLog:
        """Some updates of the fake score, then one of the generator.

        Raises:
            DivergenceError: the fake score has diverged.
            FloatingPointError: a score difference is not finite.
        """
        config = self.config
        for _ in range(config.fake.updates):
            fake_loss = self._update_fake()
        z, condition = self.outputs(config.matching.renders, self.rng)
        self._optimizer.zero_grad()
        with self.arithmetic():
            loss, found = self.carv(z, condition, self.rng)
        loss.backward()
        gradients = [p.grad for p in self.generator.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._optimizer.step()
        self.step_count += 1
        decay = min(config.generator.average, self.step_count / (self.step_count + 9))
        with torch.no_grad():
            for name, p in self.generator.network.named_parameters():
                self.average[name].lerp_(p, 1 - decay)
        figures = {"fake_loss": fake_loss, "gradient_norm": norm}
        return StepLog(self.step_count, figures | {"difference": found.fbar.flatten(1).norm(dim=1).mean()})

    def outputs(self, count: int, rng: torch.Generator) -> tuple[Tensor, TextCondition]:
        """New outputs z (count, C, h, w) of the generator, and their conditions."""
        index = torch.randint(len(self.conditions.prompts), (count,), generator=rng, device=rng.device)
        cameras = self.cameras.sample(count, rng).to(self.device)
        condition = self.conditions(index, cameras)
        noise = torch.randn((count, *self.teacher.latent_shape), generator=rng, device=self.device)
        with self.arithmetic():
            return self.generator.one_step(noise, self.timestep, condition), condition

    def sample(self, index: Sequence[int], cameras: Cameras, rng: torch.Generator) -> Tensor:
        """Latents (N, C, h, w) by the averaged weights, for prompts `index` and N cameras."""
        condition = self.conditions(torch.tensor(index), cameras.to(self.device))
        noise = torch.randn((len(index), *self.teacher.latent_shape), generator=rng, device=self.device)
        with torch.no_grad(), self.averaged():
            return self.generator.one_step(noise, self.timestep, condition)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A block in which the generator has its averaged weights."""
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
        return dict(self.average), pack(self._parts)

    def load_state(self, step: int, average: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Go on after `step` steps, from what `state` gave.

        Raises:
            RuntimeError, KeyError, ValueError: it is of another network.
        """
        unpack(self._parts, state)
        if {k: v.shape for k, v in average.items()} != {k: v.shape for k, v in self.average.items()}:
            raise ValueError("the average is of another network")
        self.average = {name: tensor.to(self.device) for name, tensor in average.items()}
        self.step_count = step

    def _update_fake(self) -> Tensor:
        with torch.no_grad():
            z, condition = self.outputs(self.config.fake.batch, self.rng)
        with self.arithmetic():
            loss = self.fake.loss(z, condition, self.rng)
        self._watch.compare(float(loss.detach()))
        self.fake.step(loss)
        return loss.detach()


class DivergenceWatch:
    """Compares each loss of the fake score with the running loss.

    Args:
        limit: a loss that is this many times the running loss counts as divergence.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._level = torch.zeros(2, dtype=torch.float64)  # number of losses, and the running loss

    def compare(self, loss: float) -> None:
        """Add one loss.

        Raises:
            DivergenceError: the loss is not finite, or far above the running loss.
        """
        count, level = self._level.tolist()
        if not math.isfinite(loss):
            raise DivergenceError("the fake score's loss is not finite")
        if count >= _SETTLED and loss > self.limit * level:
            raise DivergenceError(f"the fake score's loss is {loss:.3g}, {loss / level:.0f} times its running level")
        self._level[0] = count + 1
        self._level[1] = level + max(1 - _MEMORY, 1 / (count + 1)) * (loss - level)

    def state_dict(self) -> dict[str, Tensor]:
        """See `carv3d.runs.state.Stateful`."""
        return {"level": self._level}

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """See `carv3d.runs.state.Stateful`."""
        self._level = state["level"].clone()
