"""How noisy a gradient is, what it costs, and what a method gains: for anyone's gradients and anyone's steps."""

from carv3d.accounting.cost import CostMeter, CostModel
from carv3d.accounting.efficiency import Baseline, best_resamples, relative_efficiency
from carv3d.accounting.methods import BASELINE, Measurement, Method, measure, methods, second_moments
from carv3d.accounting.unbiasedness import SignProjection, z_scores
from carv3d.accounting.variance import Interval, VarianceMeter

__all__ = [
    "BASELINE",
    "Baseline",
    "CostMeter",
    "CostModel",
    "Interval",
    "Measurement",
    "Method",
    "SignProjection",
    "VarianceMeter",
    "best_resamples",
    "measure",
    "methods",
    "relative_efficiency",
    "second_moments",
    "z_scores",
]
