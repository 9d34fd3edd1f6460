"""The training loop: one engine, and the step of text to 3-D."""
