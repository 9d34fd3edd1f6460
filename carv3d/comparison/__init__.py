"""Methods against each other: the same prompts and seeds, and equal time or equal teacher calls."""

from carv3d.comparison.comparison import Comparison, Outcome, compare
from carv3d.comparison.plan import Method, Plan

__all__ = ["Comparison", "Method", "Outcome", "Plan", "compare"]
