"""`carv-vsd-guidance`: variational score distillation with K draws a render, in place of threestudio's own guidance.

The second network is the first with low-rank additions to its attention layers. threestudio's optimiser trains the
additions by `loss_lora`, and its checkpoints hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import threestudio
import torch
from threestudio.utils.base import BaseModule
from torch import Tensor

from carv3d.guidance import ClassifierFree, Guidance, PerpNeg
from carv3d.integrations.threestudio.options import check_keys
from carv3d.integrations.threestudio.stable_diffusion import CarvGuidance
from carv3d.objectives import Objective
from carv3d.objectives.vsd import Vsd
from carv3d.teachers import TextCondition
from carv3d.teachers.denoiser import LowRank

_PATIENCE = 20  # calls after which additions that are still zero count as not trained


class _Inner(CarvGuidance):
    name = "carv-vsd-guidance"
    loss = "loss_vsd"

    def guidance(self, *, perp_neg: bool) -> Guidance:
        """The scale of threestudio's VSD: `uncond + s (text - uncond)`."""
        scale = float(self.cfg.guidance_scale)
        return PerpNeg(scale) if perp_neg else ClassifierFree(scale)

    def check_objective(self, objective: Objective) -> None:
        """Its state is that of a module."""

    def after(self, z: Tensor, condition: TextCondition, rng: torch.Generator, out: dict[str, Any]) -> None:
        """Add the loss of the second network."""
        if not z.requires_grad:
            return
        objective = self.distiller.carv.objective
        assert isinstance(objective, Vsd)
        with torch.enable_grad():
            out["loss_lora"] = objective.loss(z.detach(), condition, rng)


@threestudio.register("carv-vsd-guidance")
class CarvVsdGuidance(BaseModule):
    """Takes every key of `stable-diffusion-vsd-guidance`, and those of `CarvOptions` but `objective`.

    Differences from it: the second network starts as the first, whatever `pretrained_model_name_or_path_lora` says;
    it has no camera input; it is conditioned on the text, with view words, in every update.
    """

    @dataclass
    class Config(CarvGuidance.Config, BaseModule.Config):
        """The keys."""

        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        guidance_scale: float = 7.5
        pretrained_model_name_or_path_lora: str = ""  # not used: the second network starts as the first
        guidance_scale_lora: float = 1.0  # no other
        lora_cfg_training: bool = True  # not used: the second network is always conditioned on the text
        lora_n_timestamp_samples: int = 1  # noised copies of each render that the second network learns from
        camera_condition_type: str = "extrinsics"  # not used: the second network has no camera input
        lora_rank: int = 4

    cfg: Config

    def __init__(self, cfg: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> None:
        check_keys("carv-vsd-guidance", self.Config, cfg)
        super().__init__(cfg, *args, **options)

    def configure(self) -> None:
        """Load the networks.

        Raises:
            ValueError: a key that this guidance does not support.
        """
        cfg = self.cfg
        if cfg.lora_rank < 1:
            raise ValueError(f"system.guidance.lora_rank must be at least 1, not {cfg.lora_rank}")
        if cfg.guidance_scale_lora != 1:
            raise ValueError("carv-vsd-guidance does not guide its second network: guidance_scale_lora must be 1")
        if cfg.objective not in ("sds", "vsd"):  # sds: not set
            raise ValueError("carv-vsd-guidance distils vsd: use carv-guidance for other objectives")
        lora = cfg.pretrained_model_name_or_path_lora
        if lora and lora != cfg.pretrained_model_name_or_path:
            threestudio.info(f"carv-vsd-guidance starts its second network from the first, not from {lora}")
        keys = {key: cfg[key] for key in _Inner.Config.__dataclass_fields__}
        keys["objective"] = {"type": "vsd", "rank": cfg.lora_rank, "draws": cfg.lora_n_timestamp_samples}
        self.inner = _Inner(keys)
        objective = self.inner.distiller.carv.objective
        assert isinstance(objective, Vsd)
        network = objective.network
        assert isinstance(network, LowRank)
        self.second_network = network  # a module: trained and kept by threestudio
        self._calls = 0

    def forward(self, *args: Any, **options: Any) -> dict[str, Any]:
        """See `CarvGuidance`; the losses are `loss_vsd` and `loss_lora`.

        Raises:
            RuntimeError: nothing trains the second network.
        """
        if self._calls == _PATIENCE and self.second_network.is_untrained():
            raise RuntimeError(
                "nothing trains the second network of carv-vsd-guidance: add "
                "system.optimizer.params.guidance.lr=0.0001 and system.loss.lambda_lora=1, as prolificdreamer.yaml has"
            )
        out: dict[str, Any] = self.inner(*args, **options)
        self._calls += "loss_lora" in out
        return out
