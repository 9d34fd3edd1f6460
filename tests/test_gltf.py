"""The .glb against Khronos' glTF validator, and what it checks first where that is not installed.

The validator is an npm package: `npm install --prefix .venv --no-save gltf-validator` (as `.ci/run` does), or anywhere
that NODE_PATH names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carv3d.generation.config import MeshConfig
from carv3d.generation.results import export
from carv3d.scenes import Gaussians, Scene, VoxelGrid
from carv3d.scenes.config import GaussiansConfig, VoxelGridConfig
from tests.gaussians import seeded

VALIDATE = """
require("gltf-validator").validateBytes(new Uint8Array(require("fs").readFileSync(process.argv[1])), {maxIssues: 0})
    .then(report => console.log(JSON.stringify(report)));
"""
COMPONENTS = {5125: np.dtype("<u4"), 5126: np.dtype("<f4")}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


def node(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(Path(sys.prefix) / "node_modules"), os.environ.get("NODE_PATH")]))
    environment = os.environ | {"NODE_PATH": paths}
    return subprocess.run(["node", "-e", script, *words], capture_output=True, text=True, env=environment)


def has_validator() -> bool:
    return shutil.which("node") is not None and node('require("gltf-validator")').returncode == 0


@pytest.fixture(scope="module", params=["voxel grid, texture", "gaussians, texture", "gaussians, vertex colours"])
def glb(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `carv3d export` writes of either kind of scene."""
    kind, colours = request.param.split(", ")
    scene: Scene = VoxelGrid(VoxelGridConfig(resolution=16, blob_density=20.0), seeded())
    if kind == "gaussians":
        scene = Gaussians(GaussiansConfig(count=400, opacity=0.9), seeded())
    settings = MeshConfig(formats=["glb"], resolution=24, faces=300, texture_size=64)
    settings.texture = "uv" if colours == "texture" else "vertex"
    _, [path] = export(scene, settings, tmp_path_factory.mktemp("mesh"))
    return path


@pytest.mark.skipif(not has_validator(), reason="needs node and the npm package gltf-validator")
def test_the_validator_finds_nothing_to_say(glb: Path) -> None:
    """No errors, no warnings, not even hints."""
    found = node(VALIDATE, str(glb))
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["info"]["totalTriangleCount"] > 100  # it has read the mesh
    assert report["issues"]["messages"] == []


@pytest.mark.skipif(not has_validator(), reason="needs node and the npm package gltf-validator")
def test_the_validator_sees_a_fault(glb: Path, tmp_path: Path) -> None:
    """One normal that is not of unit length."""
    _, values, accessors = read(glb)
    data, broken = glb.read_bytes(), values["NORMAL"][0].tobytes()
    assert accessors["NORMAL"]["count"] > 100 and broken in data
    path = tmp_path / "broken.glb"
    path.write_bytes(data.replace(broken, np.float32([0, 2, 0]).tobytes()))
    report = json.loads(node(VALIDATE, str(path)).stdout)
    assert "ACCESSOR_VECTOR3_NON_UNIT" in {message["code"] for message in report["issues"]["messages"]}


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """The file's JSON, and its arrays and their accessors by attribute, taken apart by hand."""
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    tree, binary = json.loads(data[20 : 20 + length]), data[28 + length :]
    [primitive] = tree["meshes"][0]["primitives"]
    values, accessors = {}, {}
    for name, index in {**primitive["attributes"], "indices": primitive["indices"]}.items():
        accessors[name] = accessor = tree["accessors"][index]
        view, kind = tree["bufferViews"][accessor["bufferView"]], COMPONENTS[accessor["componentType"]]
        start, count = view["byteOffset"] + accessor.get("byteOffset", 0), accessor["count"] * WIDTHS[accessor["type"]]
        values[name] = np.frombuffer(binary, kind, count, start).reshape(accessor["count"], -1)
    return tree, values, accessors


def test_the_rules_of_the_format(glb: Path) -> None:
    """Sections of the glTF 2.0 specification (Khronos, 2021) that an exporter gets wrong most easily."""
    tree, values, accessors = read(glb)
    data = glb.read_bytes()
    assert tree["asset"]["version"] == "2.0" and len(data) == int.from_bytes(data[8:12], "little")
    for name, accessor in accessors.items():
        view = tree["bufferViews"][accessor["bufferView"]]
        assert (view["byteOffset"] + accessor.get("byteOffset", 0)) % 4 == 0  # 3.6.2.4, alignment
        assert view["target"] == (34963 if name == "indices" else 34962)  # 3.6.2.2, what a buffer is for
    assert accessors["POSITION"]["min"] == pytest.approx(values["POSITION"].min(0))  # 3.7.2.1, bounds
    assert accessors["POSITION"]["max"] == pytest.approx(values["POSITION"].max(0))
    np.testing.assert_allclose(np.linalg.norm(values["NORMAL"], axis=1), 1, atol=1e-4)  # 3.7.2.1, unit length
    assert values["indices"].max() < len(values["POSITION"])  # 3.7.2.1, no index beyond the vertices
    [material] = tree["materials"]
    if "TEXCOORD_0" in values:  # 3.9.2, a base colour
        source = tree["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]["source"]
        assert tree["images"][source]["mimeType"] == "image/png"
    else:
        assert values["COLOR_0"].min() >= 0 and values["COLOR_0"].max() <= 1
