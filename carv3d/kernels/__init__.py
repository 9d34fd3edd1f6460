"""Compiled kernels of other packages: build, try and time them."""
