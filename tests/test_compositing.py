"""Compositing along rays in plain torch: against nerfacc's own mathematics, and its derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d.renderers.compositing import composite
from carv3d.renderers.rays import Rays


def rays_of(count: int, samples: int, length: Tensor) -> Rays:
    nowhere = length.new_zeros(count, 3)
    return Rays(nowhere, nowhere, length.new_zeros(count), length, samples)


@settings(max_examples=25)
@given(rays=st.integers(1, 6), samples=st.integers(1, 9), seed=st.integers(0, 1000), scale=st.floats(0.0, 100.0))
def test_composites_as_nerfacc(rays: int, samples: int, seed: int, scale: float) -> None:
    """Values and gradients of nerfacc's quadrature, whose mode for samples that are all there needs no CUDA."""
    nerfacc = pytest.importorskip("nerfacc")
    generator = torch.Generator().manual_seed(seed)
    length = torch.rand(rays, generator=generator).double()
    values = torch.rand(rays * samples, 3, generator=generator).double()
    drawn = scale * torch.rand(rays * samples, generator=generator).double()
    results = []
    for ours in (True, False):
        density, rgb = drawn.clone().requires_grad_(), values.clone().requires_grad_()
        if ours:
            index = torch.arange(rays * samples)
            weights, opacity, (pixels,) = composite(rays_of(rays, samples, length), index, density, [rgb])
        else:
            ends = length[:, None] * torch.arange(1.0, samples + 1).double()
            dense = density.view(rays, samples)
            weights = nerfacc.render_weight_from_density(ends - length[:, None], ends, dense)[0]
            opacity = nerfacc.accumulate_along_rays(weights)
            pixels, weights = nerfacc.accumulate_along_rays(weights, rgb.view(rays, samples, 3)), weights.reshape(-1)
        loss = pixels.square().sum() + weights.square().sum() + opacity.square().sum()
        results.append((weights, opacity, pixels, *torch.autograd.grad(loss, (density, rgb))))
    for ours_found, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours_found, theirs, atol=1e-12, rtol=1e-9)


def test_what_is_not_asked_for_is_empty() -> None:
    """Leaving samples out is the same as giving them no density; weights come in the order of the index."""
    generator = torch.Generator().manual_seed(0)
    rays = rays_of(3, 5, torch.tensor([0.2, 0.3, 0.4]))
    density, values = torch.rand(15, generator=generator) * 3, torch.rand(15, 2, generator=generator)
    index = torch.tensor([1, 2, 4, 10, 14])
    weights, opacity, (sums,) = composite(rays, index, density[index], [values[index]])
    thin = torch.zeros(15).index_copy(0, index, density[index])
    everything, whole, (expected,) = composite(rays, torch.arange(15), thin, [values])
    assert torch.equal(weights, everything[index]) and torch.equal(opacity, whole)
    torch.testing.assert_close(sums, expected)
    assert opacity[1] == 0 and (sums[1] == 0).all()


def test_compositing_passes_gradcheck() -> None:
    """First and second derivatives of the sums agree with finite differences, in float64."""
    generator = torch.Generator().manual_seed(0)
    rays, index = rays_of(3, 5, torch.full((3,), 0.2).double()), torch.tensor([0, 1, 3, 4, 6, 7, 8, 10, 13])
    density = (3 * torch.rand(9, generator=generator).double()).requires_grad_()
    values = torch.rand(9, 2, generator=generator).double().requires_grad_()

    def pixels(density: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, opacity, (sums,) = composite(rays, index, density, [values])
        return weights, opacity, sums

    assert torch.autograd.gradcheck(pixels, (density, values))
    assert torch.autograd.gradgradcheck(pixels, (density, values))
