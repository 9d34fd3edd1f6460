"""Comparison of methods: the same prompts and seeds, at equal time or at equal teacher calls."""

from carv3d.comparison.comparison import Comparison, Outcome, compare
from carv3d.comparison.plan import Method, Plan

__all__ = ["Comparison", "Method", "Outcome", "Plan", "compare"]
