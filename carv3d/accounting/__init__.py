"""Variance, cost and efficiency of gradient estimates. These functions work with the gradients of any pipeline."""

from carv3d.accounting.cost import CostMeter, CostModel
from carv3d.accounting.efficiency import Baseline, best_resamples, relative_efficiency
from carv3d.accounting.methods import (
    BASELINE,
    SKETCH,
    STEADY,
    Gradient,
    Measurement,
    Method,
    measure,
    methods,
    second_moments,
)
from carv3d.accounting.unbiasedness import CountSketch, detectable_bias, disagreement, z_scores
from carv3d.accounting.variance import Interval, VarianceMeter
from carv3d.accounting.windows import decay, gram_of, window_variance

__all__ = [
    "BASELINE",
    "SKETCH",
    "STEADY",
    "Baseline",
    "CostMeter",
    "CostModel",
    "CountSketch",
    "Gradient",
    "Interval",
    "Measurement",
    "Method",
    "VarianceMeter",
    "best_resamples",
    "decay",
    "detectable_bias",
    "disagreement",
    "gram_of",
    "measure",
    "methods",
    "relative_efficiency",
    "second_moments",
    "window_variance",
    "z_scores",
]
