"""Measurements behind docs/benchmarks.md: `python -m scripts.benchmarks SUITE`. A suite is a file of this folder."""
