"""`carv-guidance`: threestudio's own Stable Diffusion guidance, its networks and schedules, with K draws a render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import threestudio
import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.estimator import Estimate
from carv3d.guidance import ClassifierFree, Guidance, PerpNeg
from carv3d.integrations.threestudio.distiller import Distiller
from carv3d.integrations.threestudio.options import CarvOptions, check_keys, objective_of, refuse_state
from carv3d.objectives import Objective
from carv3d.teachers import DiffusersTeacher, TextCondition

Own: Any = threestudio.find("stable-diffusion-guidance")


@threestudio.register("carv-guidance")
class CarvGuidance(Own):
    """It has every key of `stable-diffusion-guidance`, and those of `CarvOptions`.

    The gradient has the same expectation as threestudio's own, whatever the keys of `CarvOptions` but `objective`.
    """

    @dataclass
    class Config(CarvOptions, Own.Config):
        """The keys."""

    cfg: Config
    name = "carv-guidance"
    loss = "loss_sds"
    picture_size, latent_size = 512, 64  # pixels along a side, as in threestudio for every model

    def __init__(self, cfg: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> None:
        check_keys(self.name, self.Config, cfg)
        super().__init__(cfg, *args, **options)

    def configure(self) -> None:
        """Load the networks, and check what can be checked before the first step.

        Raises:
            ValueError: a key or a model that this guidance does not support.
        """
        cfg = self.cfg
        if cfg.use_img_loss:
            raise ValueError(
                "carv-guidance averages gradients of latents, and use_img_loss asks for those of pictures: "
                "set system.guidance.use_img_loss=false"
            )
        if cfg.use_sjc and not cfg.var_red:
            raise ValueError("carv-guidance subtracts the noise: set system.guidance.var_red=true")
        objective = objective_of(cfg.objective)
        super().configure()
        kind = self.scheduler.config.get("prediction_type", "epsilon")
        if kind != "epsilon":
            raise ValueError(
                f"{cfg.pretrained_model_name_or_path} predicts {kind}, which threestudio's own guidance reads as "
                "noise: use carv-teacher-guidance with carv-prompt-processor for it"
            )
        self.teacher = DiffusersTeacher.from_pipeline(self.pipe, posterior="sample", camera="none")
        self.prompted = self.guidance(perp_neg=False), self.guidance(perp_neg=True)
        # SJC equals SDS: its (y + sigma eps) / sqrt(1 + sigma^2) is alpha y + sqrt(1 - alpha^2) eps.
        weighting = "uniform" if cfg.use_sjc else cfg.weighting_strategy
        self.distiller = Distiller(cfg, self.teacher, self.prompted[0], weighting, objective)
        self.check_objective(objective)

    def guidance(self, *, perp_neg: bool) -> Guidance:
        """threestudio's scale s: `text + s (text - uncond)`; with Perp-Neg `uncond + s (...)`."""
        scale = float(self.cfg.guidance_scale)
        return PerpNeg(scale) if perp_neg else ClassifierFree(scale + 1)

    def check_objective(self, objective: Objective) -> None:
        """See `refuse_state`."""
        refuse_state(objective)

    def condition(self, prompts: Any, elevation: Tensor, azimuth: Tensor, distances: Tensor) -> TextCondition:
        """The condition of B views, from threestudio's prompt processor."""
        if not hasattr(prompts, "get_text_embeddings"):
            raise ValueError(
                f"{self.name} takes the words of stable-diffusion-prompt-processor: set system.prompt_processor_type"
            )
        angles = (elevation, azimuth, distances, self.cfg.view_dependent_prompting)
        if not prompts.use_perp_neg:
            cond, uncond = prompts.get_text_embeddings(*angles).to(self.teacher.dtype).chunk(2)
            return self.teacher.embeddings_condition({"text": cond}, {"text": uncond})
        embeddings, weights = prompts.get_text_embeddings_perp_neg(*angles)
        count = len(elevation)
        cond, uncond, negatives = embeddings.to(self.teacher.dtype).split([count, count, 2 * count])
        pairs = {"text": negatives.unflatten(0, (count, 2))}
        return self.teacher.embeddings_condition({"text": cond}, {"text": uncond}, pairs, weights)

    def latents(self, rgb: Tensor, as_latents: bool, rng: torch.Generator) -> Tensor:
        """(B, 4, 64, 64) of renders (B, H, W, 3), or of latents (B, h, w, 4)."""
        size = self.latent_size if as_latents else self.picture_size
        rgb = F.interpolate(rgb.permute(0, 3, 1, 2), (size, size), mode="bilinear", align_corners=False)
        return rgb if as_latents else self.teacher.family.encode(rgb, rng)

    def __call__(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `Distiller`; the arguments are those of `stable-diffusion-guidance`."""
        rng = self.distiller.rng()
        with torch.autocast(rgb.device.type, enabled=False):
            z = self.latents(rgb, rgb_as_latents, rng)
            condition = self.condition(prompt_utils, elevation, azimuth, camera_distances)
            self.distiller.carv.guidance = self.prompted[bool(prompt_utils.use_perp_neg)]
            out, found = self.distiller(z, condition, rng, name=self.loss)
            if guidance_eval:
                out["eval"] = self.evaluation(z, condition, found, (elevation, azimuth, camera_distances))
            self.after(z, condition, rng, out)
        return out

    def after(self, z: Tensor, condition: TextCondition, rng: torch.Generator, out: dict[str, Any]) -> None:
        """For subclasses: add to what a call returns."""

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """See threestudio's; ranges and clipping follow its schedules."""
        super().update_step(epoch, global_step, on_load_weights)
        self.distiller.at(global_step, (self.min_step, self.max_step), self.grad_clip_val)

    @torch.no_grad()
    def evaluation(
        self, z: Tensor, condition: TextCondition, found: Estimate, angles: tuple[Tensor, ...]
    ) -> dict[str, Any]:
        """threestudio's pictures of the denoised first draw of each render."""
        # `guidance_eval` takes rows b, b + count, ... of the embeddings for render b; count is the number of renders.
        count = min(self.cfg.max_items_eval, len(z)) if self.cfg.max_items_eval > 0 else len(z)
        rows = torch.arange(count, device=z.device)
        z, condition = z[rows], condition[rows]
        t, eps = found.draws.t[rows, 0], found.draws.eps[rows, 0].to(z.dtype)
        alpha, sigma = self.teacher.schedule.at(t, z)
        z_t = alpha * z + sigma * eps
        guidance = self.distiller.carv.guidance
        prediction = guidance(self.teacher.predict(z_t, t, condition, guidance.branches), condition)
        perp_neg = bool(condition.negatives.shape[1])
        told = [condition.mixed(shares)["text"] for shares in (condition.cond, condition.uncond)]
        told += [condition.mixed(shares)["text"] for shares in condition.negatives.unbind(1)]
        weights = condition.weights if perp_neg else None
        out: dict[str, Any] = self.guidance_eval(t, torch.cat(told), z_t, prediction, perp_neg, weights)
        captions = zip(out["noise_levels"], *angles, strict=False)
        out["texts"] = [f"n{n:.02f}\ne{e.item():.01f}\na{a.item():.01f}\nc{c.item():.02f}" for n, e, a, c in captions]
        return out
