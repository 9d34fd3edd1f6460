"""Gaussians as a scene: colours, the mesh of them, and their part of the config."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from carv3d.config import Config, LinearSchedule, constant, validate
from carv3d.errors import UserError
from carv3d.mesh import extract
from carv3d.scenes import Gaussians
from carv3d.scenes.config import GaussiansConfig
from carv3d.scenes.spherical_harmonics import basis
from tests.gaussians import seeded, small


def test_spherical_harmonics_are_the_real_ones() -> None:
    """Against scipy's complex ones, in the order and with the signs of splat viewers."""
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=seeded(), dtype=torch.float64), dim=-1)
    x, y, z = directions.numpy().T
    polar, azimuth = np.arccos(z), np.arctan2(y, x)
    for degree in (1, 2, 3):
        columns = []
        for m in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(m), polar, azimuth)
            part = value.real if m >= 0 else value.imag
            columns.append(part * (math.sqrt(2) if m else 1))
        np.testing.assert_allclose(basis(degree, directions).numpy(), np.stack(columns, -1), atol=1e-12)


def test_each_parameter_has_its_learning_rate() -> None:
    """A share of the optimizer's: a linear schedule over the run; the harmonics' goes with the colours'."""
    shares = {
        "lr_scale": constant(0.3),
        "lr_rotation": constant(0.4),
        "lr_opacity": constant(0.5),
        "lr_colour": LinearSchedule(1.0, 0.5),
    }
    scene = Gaussians(
        GaussiansConfig(count=3, degree=1, lr_position=LinearSchedule(0.2, 0.0, end=0.5), **shares), seeded()
    )
    for progress, expected in (
        (0.0, [0.2, 0.3, 0.4, 0.5, 1.0, 0.05]),
        (0.25, [0.1, 0.3, 0.4, 0.5, 0.875, 0.04375]),
        (0.5, [0.0, 0.3, 0.4, 0.5, 0.75, 0.0375]),
    ):
        groups = scene.parameter_groups(10.0, progress)
        assert [group["params"][0] for group in groups] == list(scene.parameters())
        assert [group["lr"] for group in groups] == pytest.approx([10 * share for share in expected])


def test_density_hides_as_much_as_the_gaussian() -> None:
    """Along a line through a round Gaussian the sampled density absorbs its opacity; its colour is the Gaussian's."""
    scene = Gaussians(GaussiansConfig(count=1), seeded())
    with torch.no_grad():
        scene.positions.zero_()
        scene.log_scales.fill_(math.log(0.1))
        scene.opacity_logits.fill_(torch.tensor(0.8).logit())
        scene.colours[0] = torch.tensor([1.0, 0.0, -1.0])
    field = scene.field(65)
    line = torch.stack([torch.linspace(-1, 1, 2001), torch.zeros(2001), torch.zeros(2001)], -1)
    absorbed = 1 - math.exp(-field.density(line).sum().item() * 0.001)
    assert absorbed == pytest.approx(0.8, abs=0.02)
    density, rgb = field.query(torch.tensor([[0.0, 0.05, 0.0], [0.9, 0, 0], [3.0, 0, 0]]))
    torch.testing.assert_close(rgb[0], scene.rgb()[0], atol=1e-4, rtol=0)
    assert density[0] > 1 and (density[1:] == 0).all()


def test_mesh_of_a_ball_of_gaussians_is_the_ball() -> None:
    """One closed surface of the ball's size, without holes."""
    scene = Gaussians(GaussiansConfig(count=1500, radius=0.5, opacity=0.9), seeded())
    mesh = extract(scene.field(48), resolution=48, threshold=0.5)
    assert mesh.info["watertight"]
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert radius.min() > 0.4 and radius.max() < 0.65


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "regularisers.total_variation",
            LinearSchedule(1, 1),
            r"total_variation must be 0 \(scene\.type=gaussians has no such",
        ),
        ("scene.densify.begin", 0.9, "scene.densify.begin and .end must be in order"),
        ("scene.lr_position", LinearSchedule(0.1, -0.1), "scene.lr_position must be at least 0"),
        ("scene.opacity", 1.0, "scene.opacity must be greater than 0 and less than 1"),
        ("scene.degree", 4, "scene.degree must be from 0 to 3"),
        ("scene.radius", 2.0, "scene.radius must be at most scene.bound"),
    ],
)
def test_values_that_make_no_run(key: str, value: object, message: str) -> None:
    """Found before anything is built."""
    config = small()
    section, name = config, key.split(".")
    for part in name[:-1]:
        section = getattr(section, part)
    setattr(section, name[-1], value)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_what_is_of_gaussians_is_not_of_fields() -> None:
    """A field has no splats to write, no gsplat to draw it, no Gaussians to keep small."""
    for key, value in (
        ("mesh.formats", ["splat"]),
        ("renderer.backend", "gsplat"),
        ("regularisers.gaussian_scale", LinearSchedule(1, 1)),
    ):
        config = Config(prompt="a red cone")
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
        with pytest.raises(UserError, match=key):
            validate(config)
