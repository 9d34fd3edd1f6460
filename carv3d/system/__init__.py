"""The machine: arithmetic, cache folder, clock, progress bars, and `carv3d doctor`."""
