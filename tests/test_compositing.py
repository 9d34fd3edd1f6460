"""Compositing along rays: the two backends, and derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d.renderers.compositing import (
    accumulate,
    nerfacc_accumulate,
    nerfacc_weights,
    render_weights,
    torch_accumulate,
    torch_weights,
)


@settings(max_examples=25, deadline=None)
@given(rays=st.integers(1, 6), samples=st.integers(1, 9), seed=st.integers(0, 1000), scale=st.floats(0.0, 100.0))
def test_torch_and_nerfacc_composite_alike(rays: int, samples: int, seed: int, scale: float) -> None:
    """CUDA's backend (nerfacc's dense mode, which also runs on CPU) has the same values and gradients."""
    pytest.importorskip("nerfacc")
    generator = torch.Generator().manual_seed(seed)
    edges = torch.rand(rays, samples + 1, generator=generator).double().cumsum(-1)
    values = torch.rand(3, rays, samples, generator=generator).double()
    drawn = scale * torch.rand(rays, samples, generator=generator).double()
    results = []
    for weigh, add in ((torch_weights, torch_accumulate), (nerfacc_weights, nerfacc_accumulate)):
        density, rgb = drawn.clone().requires_grad_(), values.clone().requires_grad_()
        weights = weigh(density, edges[:, :-1], edges[:, 1:])
        pixels = add(weights, rgb)
        gradients = torch.autograd.grad(pixels.square().sum() + weights.square().sum(), (density, rgb))
        results.append((weights, pixels, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_compositing_passes_gradcheck() -> None:
    """First and second derivatives of the weights and the sums agree with finite differences, in float64."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.arange(5).double().expand(3, 5) * 0.2
    density = (3 * torch.rand(3, 5, generator=generator).double()).requires_grad_()
    values = torch.rand(2, 3, 5, generator=generator).double().requires_grad_()

    def pixels(density: Tensor, values: Tensor) -> Tensor:
        return accumulate(render_weights(density, starts, starts + 0.2), values)

    assert torch.autograd.gradcheck(pixels, (density, values))
    assert torch.autograd.gradgradcheck(pixels, (density, values))
