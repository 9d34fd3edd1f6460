"""The built-in world: words, solids, true pictures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from carv3d.cameras import Cameras, orbit
from carv3d.errors import UserError
from carv3d.shapes import ALL_THINGS, COLOURS, SHAPES, Thing, parse, reference, shade_maps
from carv3d.shapes.solids import box, capsule, cone, cylinder, ellipsoid, gable, minus, sphere, torus


@given(st.sampled_from(ALL_THINGS), st.sampled_from(["{}", "{}.", "The {}", " {}!"]))
def test_captions_parse_to_their_thing(thing: Thing, form: str) -> None:
    assert parse(form.format(thing.caption)) == thing


def test_a_prompt_without_a_colour_takes_the_natural_one() -> None:
    assert parse("a duck") == Thing("duck", "yellow") and parse("a grey mug") == Thing("mug", "gray")


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("a red elephant", "does not know 'elephant'"),
        ("a red hosue", "did you mean 'house'"),
        ("red", "names 0 objects"),
        ("a chair and a table", "does not know 'and'"),
        ("a chair table", "names 2 objects"),
        ("a red blue chair", "2 colours"),
    ],
)
def test_prompts_it_cannot_know(prompt: str, message: str) -> None:
    """The message lists what it knows."""
    with pytest.raises(UserError, match=message) as caught:
        parse(prompt)
    assert all(word in str(caught.value) for word in [*SHAPES, *COLOURS])


SOLIDS = {
    "sphere": sphere((0.1, 0, 0), 0.5),
    "ellipsoid": ellipsoid((0, 0, 0), (0.6, 0.4, 0.5)),
    "box": box((0, 0.1, 0), (0.5, 0.4, 0.3)),
    "cylinder": cylinder((0, 0, 0), 0.4, 0.5),
    "cone": cone(-0.5, 0.6, 0.5, 0.1),
    "torus": torus((0, 0, 0), 0.5, 0.2),
    "capsule": capsule((0, 0, -0.3), (0.2, 0, 0.4), 0.2),
    "gable": gable(-0.3, 0.5, 0.5, 0.6),
    "minus": minus(sphere((0, 0, 0), 0.6), cylinder((0, 0, 0), 0.2, 1.0)),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_never_overstate_the_distance(name: str) -> None:
    """Sphere tracing needs |f(p) - f(q)| <= |p - q|, or it steps through walls; ellipsoids are only nearly so."""
    g = torch.Generator().manual_seed(0)
    p = torch.rand(3, 20_000, generator=g) * 2 - 1
    q = p + 0.02 * torch.randn(p.shape, generator=g)
    before, after = SOLIDS[name](list(p)), SOLIDS[name](list(q))
    outside = (before > 0) & (after > 0)
    slope = ((before - after).abs() / (p - q).norm(dim=0))[outside]
    assert slope.max() <= (1.3 if name == "ellipsoid" else 1.001)
    assert (before < 0).any()


def test_sphere_covers_the_disc_it_should() -> None:
    """A ball of radius r at distance d fills a disc of tan(asin(r / d)) in the picture plane."""
    _, opacity = reference(Thing("sphere", "red"), orbit(1, 0.0, distance=3.0, fov=40.0, height=128, width=128))
    radius = torch.tensor(0.7 / 3).asin().tan() / torch.tensor(20.0).deg2rad().tan() * 64
    assert float(opacity.sum()) == pytest.approx(float(torch.pi * radius**2), rel=0.02)


def test_every_object_is_seen_from_everywhere_and_inside_the_picture() -> None:
    """No object is cut off, but for a corner of the table that comes near the camera."""
    cameras = Cameras.look_at_origin(torch.tensor([0.0, 70.0, 160.0, -100.0]), torch.tensor([-10.0, 20.0, 50.0, 80.0]))
    for shape in SHAPES:
        opacity = shade_maps(shape, cameras, supersample=1)[:, -1]
        assert (opacity.mean((1, 2)) > 0.02).all(), shape
        border = torch.cat([opacity[:, 0], opacity[:, -1], opacity[:, :, 0], opacity[:, :, -1]], 1)
        assert border.mean() < (0.03 if shape == "table" else 1e-6), shape


def test_colour_is_the_only_thing_that_colour_changes() -> None:
    cameras = orbit(2, 15.0)
    (red, a), (blue, b) = (reference(Thing("chair", colour), cameras) for colour in ("red", "blue"))
    assert torch.equal(a, b) and not torch.equal(red, blue)
    assert torch.allclose(red[:, :, 0, 0], torch.ones(2, 3))  # white background
