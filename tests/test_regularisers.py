"""Regularisers: their values in closed form and where their gradients push."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from carv3d.renderers import RaySamples, Render
from carv3d.training.regularisers import opacity, orientation, sparsity


def render(alpha: Tensor, samples: RaySamples | None = None) -> Render:
    image = alpha.view(1, 1, 1, -1)
    return Render(image.expand(-1, 3, -1, -1), image, torch.zeros_like(image), None, samples)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_opacity_and_sparsity_are_means_of_their_formulas(values: list[float]) -> None:
    """A (1 - A), and sqrt(A^2 + 0.01), averaged over pixels: independent of the image's size."""
    image = render(torch.tensor(values, dtype=torch.float64))
    n = len(values)
    assert opacity(image).item() == pytest.approx(math.fsum(a * (1 - a) for a in values) / n)
    assert sparsity(image).item() == pytest.approx(math.fsum(math.sqrt(a * a + 0.01) for a in values) / n)


def test_gradients_push_towards_empty_or_full() -> None:
    """Descent on `opacity` moves a pixel to its nearer end, on `sparsity` always to empty; finite at 0."""
    alpha = torch.tensor([0.0, 0.2, 0.8, 1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(opacity(render(alpha)), alpha)
    assert torch.equal(gradient.sign(), torch.tensor([1.0, 1.0, -1.0, -1.0]))
    (gradient,) = torch.autograd.grad(sparsity(render(alpha)), alpha)
    assert gradient[0] == 0 and (gradient[1:] > 0).all()


def test_orientation_counts_visible_samples_that_face_away() -> None:
    """Mean over rays of w max(0, n.d)^2, for the samples kept, with no gradient through the weights."""
    weights = torch.tensor([0.5, 0.25, 0.125], requires_grad=True)
    directions = torch.tensor([[1.0, 0, 0], [0, 0, -1.0]])
    # Kept: both samples of the first ray (one faces the camera, one 60 degrees away), one of the second.
    normals = torch.tensor([[-1.0, 0, 0], [0.5, math.sqrt(0.75), 0], [0, 0, -1.0]], requires_grad=True)
    samples = RaySamples(weights, torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 2.0]), directions, normals)
    value = orientation(render(torch.zeros(2), samples))
    assert value.item() == pytest.approx((0.25 * 0.25 + 0.125) / 2)
    value.backward()
    assert weights.grad is None and normals.grad is not None
    assert (normals.grad[0] == 0).all() and normals.grad[1, 0] > 0


def test_orientation_needs_normals() -> None:
    """A silent zero would hide that the render was made without them."""
    samples = RaySamples(torch.ones(1), torch.tensor([0]), torch.ones(1), torch.ones(1, 3), None)
    for image in (render(torch.zeros(1)), render(torch.zeros(1), samples)):
        with pytest.raises(ValueError, match="normals=True"):
            orientation(image)
