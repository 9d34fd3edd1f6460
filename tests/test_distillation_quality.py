"""Quality of one-step generators: distances between sets of pictures, and retrieval."""

from __future__ import annotations

import pytest
import torch

from carv3d.cameras import Cameras
from carv3d.distillation.quality import frechet_distance
from carv3d.shapes import ALL_THINGS, Gallery, Thing


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """Diagonal Gaussians: sum (m_a - m_b)^2 + (s_a - s_b)^2; and zero of a set to itself."""
    rng = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    draws = (draws - draws.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(draws.T))).T
    s = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    m = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    expected = float(m.square().sum() + (1 - s).square().sum())
    assert frechet_distance(draws, draws * s + m) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(draws, draws) == pytest.approx(0, abs=1e-6)


def test_retrieval_finds_objects_from_known_and_unknown_cameras() -> None:
    """True pictures from the gallery's cameras, and from one some degrees off, are of their own object."""
    gallery = Gallery(Cameras.look_at_origin(torch.arange(4) * 90.0, torch.full((4,), 20.0)))
    thing = Thing("chair", "blue")
    assert gallery.nearest(gallery.truth(thing)) == [thing] * 4
    near = Gallery(Cameras.look_at_origin(torch.tensor([6.0]), torch.tensor([23.0])))
    found, error = gallery.nearest_anywhere(near.truth(thing))
    assert found == [thing] and 0 < float(error) < 0.01
    assert gallery.errors(gallery.truth(thing)).shape == (len(ALL_THINGS), 4)
