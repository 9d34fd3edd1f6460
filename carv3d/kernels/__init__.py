"""Compiled kernels: our own for the CPU, and those of other packages, which are built and tried."""
