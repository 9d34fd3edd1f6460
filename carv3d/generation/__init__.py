"""Text to 3-D from start to end: train, then make the results."""
