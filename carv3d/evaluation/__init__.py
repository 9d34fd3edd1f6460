"""How good a result is: against the true object, and by CLIP."""
