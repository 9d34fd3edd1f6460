"""What is optimised: fields that give a density and a colour at every point, and clouds of Gaussians."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names and modules: __init__.pyi
