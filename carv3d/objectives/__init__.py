"""Objectives, one file each: the residual and the weight that the estimator averages."""

from carv3d.objectives.base import Draw, Objective

__all__ = ["Draw", "Objective"]
