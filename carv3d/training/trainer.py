"""One training step of text to 3-D: the outer loop of Algorithm 1 is `Trainer.step`, called again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from carv3d import build
from carv3d.cameras import Cameras
from carv3d.estimator import Estimate
from carv3d.generation.config import Config
from carv3d.loss import Carv, surrogate
from carv3d.renderers import Render
from carv3d.runs.state import GeneratorState, OptimizerState, Stateful, pack, unpack
from carv3d.system.clock import Clock
from carv3d.teachers import Teacher
from carv3d.training.automatic_resamples import NEEDED, START, AutomaticResamples
from carv3d.training.engine import StepLog
from carv3d.training.hooks import StepHook
from carv3d.training.moments import carry_moments
from carv3d.training.regularisers import regularise

log = logging.getLogger(__name__)


class Trainer:
    """The parts of a run, and the step that trains them. The same state gives the same next step.

    Attributes:
        step_count: steps done.
        scene, renderer, sampler, teacher, carv: the parts that the config describes.
        optimizer: Adam over the parameters of the scene and of the renderer.
        rng: the only source of random draws, on the run's device.
        hooks: observe the steps.
        clock: measures where the time goes, if `clock.running` is set.
    """

    def __init__(self, config: Config, teacher: Teacher | None = None, *, fresh: bool = True):
        """Build everything from the config.

        Args:
            config: of the run.
            teacher: the config's, if it is loaded already.
            fresh: False if a state will be loaded; then the scene reads no file to start from.
        """
        self.config = config
        self.device = build.device(config)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.teacher = teacher or build.teacher(config, self.device)
        self.scene = build.scene(config, self.rng, fresh=fresh)
        self.renderer = build.renderer(config, self.device)
        self.sampler = build.camera_sampler(config)
        self.carv = build.carv(config, self.teacher)
        self.step_count = 0
        first, second = config.optimizer.betas
        self.optimizer = torch.optim.Adam(self._parameter_groups(), betas=(first, second), eps=config.optimizer.eps)
        self.clock = Clock()
        self.hooks: list[StepHook] = []
        self._parts: dict[str, Stateful] = {
            "renderer": self.renderer,
            "objective": self.carv.objective,
            "optimizer": OptimizerState(self.optimizer),
            "generator": GeneratorState(self.rng),
        }
        if config.guidance.resamples == "auto":
            self._choose_resamples()

    def step(self) -> StepLog:
        """One step of the optimiser. It waits for the device only to gather occupied samples, and in auto's probes."""
        self.set_schedules()
        self.renderer.update_occupancy(self.scene, self.step_count, self.rng)
        self.optimizer.zero_grad()
        for hook in self.hooks:
            hook.before_step(self)
        cameras = self.sampler.of_step(self.step_count, self.config.guidance.renders, self.rng)
        render, found, update_objective = self.backward(cameras, self.carv, self.rng, self.hooks)
        with self.clock("optimiser"):
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
            self.optimizer.step()
            self.step_count += 1
            rows = self.scene.after_step(self.step_count, self.fraction, render.projection, self.rng)
            if rows is not None:
                carry_moments(self.optimizer, list(self.scene.parameters()), rows)
        with self.clock("objective"):
            figures = update_objective()
        return self._log(render, found, figures | {"gradient_norm": norm})

    def backward(
        self, cameras: Cameras, carv: Carv, rng: torch.Generator, hooks: Sequence[StepHook] = ()
    ) -> tuple[Render, Estimate, Callable[[], dict[str, Tensor]]]:
        """Add one step's gradient to the parameters': render, encode, estimate, one backward pass.

        Returns:
            the renders; the estimate; a function that trains the objective's own parameters.
        """
        render, z, condition = self.look(cameras, rng)
        with self.clock("denoise"):
            found = carv.estimate(z, condition, rng)
        for hook in hooks:
            hook.after_estimate(self, z, condition, found)
        with self.clock("backward"):
            loss = surrogate(z, found.fbar) + regularise(self.config.regularisers, self.fraction, render, self.scene)
            loss.backward()
        for hook in hooks:
            hook.after_backward(self)
        return render, found, partial(carv.update, z.detach(), condition, rng)

    def look(self, cameras: Cameras, rng: torch.Generator) -> tuple[Render, Tensor, Any]:
        """Renders, their latents with a graph, and the teacher's condition.

        Latents are (R, C, h, w), or (R, V, C, h, w) for a teacher that judges V views jointly: then each camera stands
        for a ring of V cameras, and all are rendered.
        """
        config = self.config
        with self.clock("render"):
            views = self.teacher.joint_views
            cameras = (cameras.ring(views) if views > 1 else cameras).to(self.device)
            normals = config.regularisers.orientation.at(self.fraction) > 0
            render = self.renderer(self.scene, cameras, rng, normals=normals)
        with self.clock("encode"):
            z = self.teacher.encode(render.rgb, rng)
            z = z.unflatten(0, (-1, views)) if views > 1 else z
        with self.clock("denoise"):  # the prompt embeddings of a new view are computed, others are looked up
            condition = self.teacher.condition(config.prompt, cameras, config.negative_prompt)
        return render, z, condition

    def trial(self, renders: int, carv: Carv, rng: torch.Generator) -> None:
        """The passes of a step with independent cameras, to be timed. It leaves a gradient in the parameters."""
        *_, update_objective = self.backward(self.sampler.sample(renders, rng), carv, rng)
        with self.clock("objective"):
            update_objective()

    @property
    def fraction(self) -> float:
        """The part of the run that is done, 0 to 1."""
        return self.step_count / self.config.training.steps

    def parameters(self) -> list[Tensor]:
        """All trained parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The scene's tensors, and all else that the next step depends on."""
        return dict(self.scene.state_dict()), pack(self._parts)

    def load_state(self, step: int, trained: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Go on after `step` steps, from what `state` gave.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another config.
        """
        self.scene.load_state_dict(trained)
        unpack(self._parts, state)
        self.step_count = step

    def set_schedules(self) -> None:
        """Set the timestep range and the learning rates of the next step."""
        guidance, fraction = self.config.guidance, self.fraction
        t_range = (guidance.t_min.at(fraction), guidance.t_max.at(fraction))
        if t_range != self.carv.t_range:
            self.carv.t_range = t_range
        for group, now in zip(self.optimizer.param_groups, self._parameter_groups(), strict=True):
            group["lr"] = now["lr"]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        rate = self.config.optimizer.lr.at(self.fraction)
        return self.scene.parameter_groups(rate, self.fraction) + self.renderer.parameter_groups(rate)

    def _choose_resamples(self) -> None:
        hook = AutomaticResamples()
        self.hooks.append(hook)
        self._parts["allocation"] = hook
        if self.config.training.steps <= NEEDED:
            log.warning(
                "guidance.resamples=auto keeps K = %d: it chooses after %d steps, and the run has %d",
                *(START, NEEDED, self.config.training.steps),
            )

    def _log(self, render: Render, found: Estimate, figures: dict[str, Tensor]) -> StepLog:
        figures = figures | {
            "effective_sample_size": found.effective_sample_size(),
            "residual_norm": found.norm.mean(),
            "opacity": render.opacity.detach().mean(),
        }
        for hook in self.hooks:
            figures |= hook.figures(self)
        draws = found.draws.t.numel() * (1 + sum(hook.extra_draws for hook in self.hooks))
        return StepLog(self.step_count, figures, found.draws.t, found.norm, draws)
