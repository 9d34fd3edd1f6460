"""Methods against each other: the same prompts and seeds, and equal time or equal teacher calls."""

from carv3d.comparison.comparison import Comparison, Outcome, compare
from carv3d.comparison.plan import Method, Plan
from carv3d.comparison.prompts import DEFAULT_PROMPTS, find_prompts, read_prompts

__all__ = ["DEFAULT_PROMPTS", "Comparison", "Method", "Outcome", "Plan", "compare", "find_prompts", "read_prompts"]
