"""carv3d inside other frameworks. The rest of carv3d does not import this package."""
