"""What is distilled: the residual and the weight that the estimator averages, a file an objective."""

from carv3d.objectives.base import Draw, Objective

__all__ = ["Draw", "Objective"]
