"""The training loop: render, ask the teacher, step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from carv3d import build
from carv3d.accounting import CostMeter, Gradient
from carv3d.cameras import Cameras
from carv3d.estimator import Estimate
from carv3d.generation.config import Config
from carv3d.loss import Carv, check_finite, surrogate
from carv3d.renderers import Render
from carv3d.runs import generator_tensors, optimizer_state, optimizer_tensors, restore_generators
from carv3d.system.clock import Clock
from carv3d.teachers import Teacher
from carv3d.training.allocation import NEEDED, START, Allocation
from carv3d.training.moments import carry_moments
from carv3d.training.regularisers import opacity, orientation, sparsity

log = logging.getLogger(__name__)

_COST_ROUNDS = 5


@dataclass
class StepLog:
    """Figures of one step, still on the device.

    Attributes:
        step: number of steps done, this one included.
        t, norm: (R, K) timesteps, and norms of the weighted residuals.
        draws: how many of them the teacher judged, a probe's included.
        figures: scalar tensors by name.
    """

    step: int
    t: Tensor
    norm: Tensor
    draws: int
    figures: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """A run's moving parts. What a step depends on is in `state()`; the same state gives the same next step.

    Attributes:
        step_count: steps done.
        scene, renderer, sampler, teacher, carv: what the config describes.
        optimizer: Adam over the scene's and the renderer's parameters.
        rng: the one source of random draws, on the run's device.
        clock: where the time goes; set `clock.running` to measure.
    """

    def __init__(self, config: Config, teacher: Teacher | None = None, *, fresh: bool = True):
        """Build everything from the config; a teacher that is already loaded can be passed in.

        Args:
            fresh: False if a state will be loaded: what the scene would start from is then not read.
        """
        self.config = config
        self.device = build.device(config)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.teacher = teacher or build.teacher(config, self.device)
        self.scene = build.scene(config, self.rng, fresh=fresh)
        self.renderer = build.renderer(config, self.device)
        self.sampler = build.camera_sampler(config)
        self.carv = build.carv(config, self.teacher)
        first, second = config.optimizer.betas
        self.step_count = 0
        self.optimizer = torch.optim.Adam(self._parameter_groups(), betas=(first, second), eps=config.optimizer.eps)
        self.clock = Clock()
        self._allocation = Allocation() if config.guidance.resamples == "auto" else None
        if self._allocation is not None and config.training.steps <= NEEDED:
            log.warning(
                "guidance.resamples=auto keeps K = %d: it chooses after %d steps, and the run has %d",
                *(START, NEEDED, config.training.steps),
            )

    def step(self) -> StepLog:
        """One optimiser step. Waits for the device in the gather of occupied samples and in auto's probes only."""
        config = self.config
        self.set_schedules()
        self.renderer.update_occupancy(self.scene, self.step_count, self.rng)
        self.optimizer.zero_grad()
        probe = False
        if self._allocation is not None:
            if self._allocation.cost_ratio is None:
                self._allocation.cost_ratio = self._cost_ratio()
            self.carv.resamples, probe = self._allocation.resamples, self._allocation.due(self.step_count)
        cameras = self.sampler.of_step(self.step_count, config.guidance.renders, self.rng)
        render, found, update = self.backward(cameras, self.carv, self.rng, probe=probe)
        with self.clock("optimiser"):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            self.optimizer.step()
            self.step_count += 1
            changed = self.scene.after_step(self.step_count, self.fraction, render.footprints, self.rng)
            if changed is not None:
                carry_moments(self.optimizer, list(self.scene.parameters()), changed)
        with self.clock("objective"):
            figures = update()
        draws = found.draws.t.numel() * (3 if probe else 1)
        entry = StepLog(self.step_count, found.draws.t, found.norm, draws)
        entry.figures = figures | {
            "gradient_norm": norm,
            "effective_sample_size": found.effective_sample_size(),
            "residual_norm": found.norm.mean(),
            "opacity": render.opacity.detach().mean(),
        }
        if self._allocation is not None:
            entry.figures["resamples"] = torch.tensor(float(self.carv.resamples), device=self.device)
        return entry

    def _cost_ratio(self) -> float:
        """c_up / c_denoise of this machine and config. Draws of its own: the run's go on as if it had not been."""
        rng, renders = torch.Generator(self.device).manual_seed(0), self.config.guidance.renders
        proposal, strata, coupling = self.config.guidance.proposal, self.carv.strata, self.carv.coupling
        steps = {
            (renders, K): partial(
                self.trial,
                renders,
                self.carv.replace(resamples=K, proposal=proposal, strata=strata, coupling=coupling),
                rng,
            )
            for K in (1, 8)
        }
        meter = CostMeter(self.clock)
        with self.carv.kept():
            for step in steps.values():  # the first passes are slower than all others
                step()
            for _ in range(_COST_ROUNDS):
                meter.round(steps)
        self.clock.seconds = {}
        self.optimizer.zero_grad()
        return meter.model().ratio

    def look(self, cameras: Cameras, rng: torch.Generator) -> tuple[Render, Tensor, Any]:
        """Renders, their latents, and what the teacher is told of them.

        Latents are (R, C, h, w), or (R, V, C, h, w) for a teacher that judges V views jointly: a camera stands for
        a ring of V then, all of which are rendered.
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
        with self.clock("denoise"):  # a new view's words are encoded, others looked up
            condition = self.teacher.condition(config.prompt, cameras, config.negative_prompt)
        return render, z, condition

    def trial(self, renders: int, carv: Carv, rng: torch.Generator) -> None:
        """The passes of a step with independent cameras, to be timed: its gradient is left in the parameters."""
        *_, update = self.backward(self.sampler.sample(renders, rng), carv, rng)
        with self.clock("objective"):
            update()

    def backward(
        self, cameras: Cameras, carv: Carv, rng: torch.Generator, *, probe: bool = False
    ) -> tuple[Render, Estimate, Callable[[], dict[str, Tensor]]]:
        """Add one step's gradient to the parameters': render, encode, ask the teacher, one backward pass.

        With a probe, gradients for `auto` are taken as well: two before the backward pass, while the graph is in
        memory, and one after it, when that memory is free.

        Returns:
            The renders, the estimate, and what trains the objective's own parameters after the optimiser's step.
        """
        renders = len(cameras)
        render, z, condition = self.look(cameras, rng)
        with self.clock("denoise"):
            found = carv.estimate(z, condition, rng)
        if probe:
            with self.clock("probe"):
                gradient, again = Gradient(z, self.parameters()), carv.estimate(z, condition, rng)
                pair = torch.stack([gradient(one.fbar / renders) for one in (found, again)])
        with self.clock("backward"):
            loss = surrogate(z, found.fbar) + self._regularise(render, self.fraction)
            loss.backward()
        if probe and self._allocation is not None:
            with self.clock("probe"):
                self._allocation.probe(self.step_count, pair, self._elsewhere(renders, carv, rng))
        return render, found, partial(carv.update, z.detach(), condition, rng)

    def _elsewhere(self, renders: int, carv: Carv, rng: torch.Generator) -> Tensor:
        """(P,) the gradient of another step at the same scene, whose cameras have nothing to do with this one's."""
        _, z, condition = self.look(self.sampler.of_other_run(renders, rng), rng)
        return Gradient(z, self.parameters())(carv.estimate(z, condition, rng).fbar / renders)

    @property
    def fraction(self) -> float:
        """How far the run is, 0 to 1."""
        return self.step_count / self.config.training.steps

    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The scene's tensors, and all else that the next step depends on."""
        state = {f"renderer.{k}": v for k, v in self.renderer.state_dict().items()}
        moments, _ = optimizer_tensors(self.optimizer.state_dict())
        if self._allocation is not None:
            state |= self._allocation.state()
        state |= {f"objective.{k}": v for k, v in self.carv.objective.state_dict().items()}
        return dict(self.scene.state_dict()), state | moments | generator_tensors({"train": self.rng})

    def load_state(self, step: int, scene: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Go on after `step` steps, from what `state` gave."""
        renderer = {k.removeprefix("renderer."): v for k, v in state.items() if k.startswith("renderer.")}
        objective = {k.removeprefix("objective."): v for k, v in state.items() if k.startswith("objective.")}
        self.scene.load_state_dict(scene)
        self.carv.objective.load_state_dict(objective)
        self.renderer.load_state_dict(renderer)
        # The groups come from the config: their rates are set anew each step.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(optimizer_state(state, groups))
        restore_generators(state, {"train": self.rng})
        if self._allocation is not None and "allocation.numbers" in state:  # else it was asked for only now
            self._allocation.load_state(state)
        self.step_count = step

    def set_schedules(self) -> None:
        """Timestep range and learning rates of the step to come."""
        guidance, fraction = self.config.guidance, self.fraction
        t_range = (guidance.t_min.at(fraction), guidance.t_max.at(fraction))
        if t_range != self.carv.t_range:
            self.carv.t_range = t_range
        for group, now in zip(self.optimizer.param_groups, self._parameter_groups(), strict=True):
            group["lr"] = now["lr"]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, with the learning rates of the step to come."""
        rate = self.config.optimizer.lr.at(self.fraction)
        return self.scene.parameter_groups(rate, self.fraction) + self.renderer.parameter_groups(rate)

    def _regularise(self, render: Render, fraction: float) -> Tensor:
        weights = self.config.regularisers
        total = render.rgb.new_zeros(())
        if (w := weights.sparsity.at(fraction)) > 0:
            total = total + w * sparsity(render)
        if (w := weights.opacity.at(fraction)) > 0:
            total = total + w * opacity(render)
        if (w := weights.orientation.at(fraction)) > 0:
            total = total + w * orientation(render)
        for name, penalty in self.scene.penalties().items():
            # A plug-in's own term has no key here: the scene weighs it.
            w = getattr(weights, name).at(fraction) if hasattr(weights, name) else 1.0
            if w > 0:
                total = total + w * penalty()
        return total


def check_logs(logs: list[StepLog]) -> list[dict[str, float]]:
    """Fetch the figures of some steps from the device in one transfer.

    Raises:
        FloatingPointError: a residual was not finite; names the step and the timesteps.
    """
    stacked = torch.stack([torch.stack([f.float() for f in log.figures.values()]) for log in logs]).tolist()
    for log, row in zip(logs, stacked, strict=True):
        if not all(abs(x) < float("inf") for x in row):
            try:
                check_finite(log.norm, log.t)
            except FloatingPointError as error:
                raise FloatingPointError(f"step {log.step}: {error}") from None
            raise FloatingPointError(f"step {log.step}: the gradient is not finite, though the residuals are")
    return [dict(zip(log.figures, row, strict=True)) for log, row in zip(logs, stacked, strict=True)]
