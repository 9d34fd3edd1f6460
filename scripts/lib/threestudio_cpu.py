"""Stand-ins that let threestudio run where there is no CUDA: what cannot be installed there, in plain torch.

Real: threestudio itself, its launch.py, Lightning, systems, data, geometry, materials, renderers, prompt processors,
guidances, checkpoints. Replaced: the kernels of tinycudann (hash grids), nerfacc (weights and resampling),
nvdiffrast (without antialiasing, so that silhouettes have no gradient) and diff-gaussian-rasterization; and the
device's name. Other packages that are not installed are empty: enough to import, not to use.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from carv3d.mesh.raster import cover

EMPTY = (
    *("nvdiffrast", "nvdiffrast.torch", "tinycudann", "envlight", "igl", "torchvision", "torchvision.transforms"),
    *("torchvision.transforms.functional", "torchvision.models", "torchvision.utils", "wandb", "controlnet_aux"),
    *("pysdf", "IPython", "IPython.display", "extern", "extern.zero123", "extern.ldm_zero123"),
    *("extern.ldm_zero123.guidance", "diff_gaussian_rasterization", "simple_knn", "simple_knn._C", "mvdream"),
    *("mvdream.camera_utils", "mvdream.model_zoo", "kornia", "plyfile", "open3d", "clip", "taming"),
)


class _Nothing:
    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __call__(self, *args: Any, **options: Any) -> None:
        return None


class _Empty(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


def prepare(checkout: Path) -> Any:
    """Make `import threestudio` work in a checkout, and import it; the process is then in its folder."""
    # These look for torchvision and others when they are imported, and must not find something empty.
    import diffusers  # noqa: F401
    import pytorch_lightning  # noqa: F401
    import torchmetrics  # noqa: F401
    import transformers  # noqa: F401
    from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline  # noqa: F401
    from transformers import AutoTokenizer, BertForMaskedLM, CLIPTextModel  # noqa: F401

    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    for name in EMPTY:
        if "." not in name and importlib.util.find_spec(name) is not None and name != "extern":
            continue
        if name.partition(".")[0] in sys.modules and not isinstance(sys.modules[name.partition(".")[0]], _Empty):
            continue
        module = _Empty(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    _tinycudann()
    _nvdiffrast()
    _gaussians()
    _nerfacc()
    _device()
    import threestudio

    for name, module in list(sys.modules.items()):
        if name.startswith("threestudio") and "get_device" in vars(module):
            module.get_device = lambda: torch.device("cpu")
    # Its estimator "importance" is the only one without a CUDA grid walk, and reads an attribute that others set.
    threestudio.find("nerf-volume-renderer").randomized = True
    return threestudio


# ------------------------------------------------------------------------------------------------ device


class _Cpu(TorchFunctionMode):
    """Names of CUDA devices mean the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        if function is Tensor.cuda:
            return args[0]
        if function is Tensor.to and len(args) > 1 and "cuda" in str(args[1]):
            args = (args[0], "cpu", *args[2:])
        return function(*args, **kwargs)


def _device() -> None:
    import pytorch_lightning as pl

    torch.cuda.device = lambda index: contextlib.nullcontext()  # type: ignore[assignment, misc]
    torch.cuda.set_device = lambda index: None
    _Cpu().__enter__()

    class Trainer(pl.Trainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"accelerator": "cpu", "devices": int(os.environ.get("CHECK_DEVICES", "1"))})

    pl.Trainer = Trainer  # type: ignore[misc]


# ------------------------------------------------------------------------------------------- tinycudann


class Encoding(nn.Module):
    """A multiresolution hash grid (Müller et al., arXiv 2201.05989), trilinear; or spherical harmonics' directions."""

    def __init__(self, n_input_dims: int, config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        config = dict(config)
        self.directions = config["otype"] not in ("HashGrid", "Grid")
        if self.directions:
            self.n_output_dims = n_input_dims
            return
        levels, self.features = int(config["n_levels"]), int(config["n_features_per_level"])
        self.size = 2 ** int(config["log2_hashmap_size"])
        scale, base = float(config.get("per_level_scale", 2.0)), int(config["base_resolution"])
        self.cells = [int(base * scale**level) for level in range(levels)]
        self.table = nn.Parameter((torch.rand(levels, self.size, self.features) * 2 - 1) * 1e-2)
        self.n_output_dims = levels * self.features
        corners = [[i & 1, (i >> 1) & 1, (i >> 2) & 1][:n_input_dims] for i in range(2**n_input_dims)]
        self.register_buffer("corners", torch.tensor(corners), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.directions:
            return x * 2 - 1
        primes = torch.tensor([1, 2654435761, 805459861, 3674653429][: x.shape[-1]])
        found = []
        for level, cells in enumerate(self.cells):
            scaled = x.float() * cells
            first = scaled.detach().floor()
            part = scaled - first
            corner = first.long()[:, None] + self.corners
            hashed = corner * primes
            index = hashed[..., 0]
            for axis in range(1, x.shape[-1]):
                index = index ^ hashed[..., axis]
            share = torch.where(self.corners.bool(), part[:, None], 1 - part[:, None]).prod(-1)
            found.append((F.embedding(index % self.size, self.table[level]) * share[..., None]).sum(1))
        return torch.cat(found, -1)


def _tinycudann() -> None:
    module: Any = sys.modules["tinycudann"]
    module.Encoding = Encoding
    module.free_temporary_memory = lambda: None


# ------------------------------------------------------------------------------------------- nvdiffrast


def _corners(pos: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixels (V, 2) and depth (V,) of clip-space points (V, 4); rows go up, as in OpenGL."""
    ndc = pos[:, :3] / pos[:, 3:]
    return (ndc[:, :2] * 0.5 + 0.5) * torch.tensor([width, height]), ndc[:, 2]


def rasterize(ctx: Any, pos: Tensor, tri: Tensor, resolution: tuple[int, int], grad_db: bool = True) -> Any:
    """nvdiffrast's: (B, H, W, 4) of u, v, depth, triangle + 1; u and v carry gradients to `pos`."""
    height, width = resolution
    out = []
    tri = tri.long()
    for one in pos:
        pixels, depth = _corners(one, height, width)
        face, pixel, weights = cover(pixels.detach()[tri], height, width)
        at = (depth.detach()[tri[face]] * weights).sum(-1)
        order = torch.argsort(at, descending=True)  # the nearest is written last
        nearest = torch.full((height * width,), -1)
        nearest[pixel[order]] = face[order]
        seen = nearest >= 0
        rows = seen.nonzero()[:, 0]
        a, b, c = pixels[tri[nearest[seen]]].unbind(1)
        centre = torch.stack([rows % width, rows // width], -1) + 0.5
        area = _cross(b - a, c - a)
        u, v = _cross(b - centre, c - centre) / area, _cross(c - centre, a - centre) / area
        w = torch.stack([u, v, 1 - u - v], -1)
        z = (depth[tri[nearest[seen]]] * w).sum(-1)
        values = torch.stack([u, v, z, nearest[seen].float() + 1], -1)
        image = torch.zeros(height * width, 4).index_put((rows,), values)
        out.append(image.view(height, width, 4))
    found = torch.stack(out)
    return found, torch.zeros_like(found)


def interpolate(attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Any = None, diff_attrs: Any = None) -> Any:
    """nvdiffrast's: (B, H, W, C) of attributes (B or 1, V, C)."""
    face = rast[..., 3].long() - 1
    w = torch.stack([rast[..., 0], rast[..., 1], 1 - rast[..., 0] - rast[..., 1]], -1)
    attr = attr.expand(len(rast), -1, -1)
    rows = [
        (a[tri.long()[f.clamp_min(0)]] * weight[..., None]).sum(-2) for a, f, weight in zip(attr, face, w, strict=True)
    ]
    return torch.stack(rows) * (face >= 0)[..., None], None


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _nvdiffrast() -> None:
    module: Any = sys.modules["nvdiffrast.torch"]
    module.rasterize, module.interpolate = rasterize, interpolate
    module.antialias = lambda color, rast, pos, tri: color
    module.RasterizeGLContext = module.RasterizeCudaContext = type("Context", (_Nothing,), {})


def tetrahedra(path: Path, resolution: int) -> None:
    """A file such as threestudio's `load/tets/N_tets.npz`: the unit cube in tetrahedra, six a cell."""
    n = resolution + 1
    axis = np.linspace(-0.5, 0.5, n, dtype=np.float32)
    vertices = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    cell = np.stack(np.meshgrid(*[np.arange(resolution)] * 3, indexing="ij"), -1).reshape(-1, 3)
    found = []
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        corner, corners = cell.copy(), [cell]
        for axis_ in order:
            corner = corner.copy()
            corner[:, axis_] += 1
            corners.append(corner)
        if np.linalg.det(np.stack([np.eye(3)[a] for a in order])) < 0:
            corners[1], corners[2] = corners[2], corners[1]
        found.append(np.stack([c @ np.array([n * n, n, 1]) for c in corners], -1))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, vertices=vertices, indices=np.concatenate(found))


# --------------------------------------------------------------------------- diff-gaussian-rasterization


class Settings(NamedTuple):
    """Fields of the package's GaussianRasterizationSettings."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool


class Rasterizer(nn.Module):
    """Every Gaussian on every pixel, in order of depth: slow and plain (Kerbl et al., arXiv 2308.04079)."""

    def __init__(self, raster_settings: Settings) -> None:
        super().__init__()
        self.settings = raster_settings

    def forward(self, means3D: Tensor, means2D: Tensor, opacities: Tensor, **parts: Any) -> tuple[Tensor, ...]:  # noqa: N803
        s = self.settings
        h, w = s.image_height, s.image_width
        q = F.normalize(parts["rotations"], dim=-1)
        r, x, y, z = q.unbind(-1)
        rotation = torch.stack(
            [
                *(1 - 2 * (y * y + z * z), 2 * (x * y - r * z), 2 * (x * z + r * y)),
                *(2 * (x * y + r * z), 1 - 2 * (x * x + z * z), 2 * (y * z - r * x)),
                *(2 * (x * z - r * y), 2 * (y * z + r * x), 1 - 2 * (x * x + y * y)),
            ],
            -1,
        ).view(-1, 3, 3)
        m = rotation * parts["scales"][:, None] * s.scale_modifier
        homogeneous = F.pad(means3D, (0, 1), value=1.0)
        view, clip = homogeneous @ s.viewmatrix, homogeneous @ s.projmatrix
        depth = view[:, 2].clamp_min(0.2)
        ndc = clip[:, :2] / clip[:, 3:].clamp_min(1e-6) + means2D[:, :2]
        centre = ((ndc + 1) * torch.tensor([w, h]) - 1) * 0.5
        fx, fy = w / (2 * s.tanfovx), h / (2 * s.tanfovy)
        zero = torch.zeros_like(depth)
        jacobian = torch.stack(
            [fx / depth, zero, -fx * view[:, 0] / depth**2, zero, fy / depth, -fy * view[:, 1] / depth**2], -1
        ).view(-1, 2, 3)
        t = jacobian @ s.viewmatrix[:3, :3].T @ m
        covariance = t @ t.mT + 0.3 * torch.eye(2)
        inverse = torch.linalg.inv(covariance)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        pixel = torch.stack([columns, rows], -1).view(-1, 1, 2).float()
        d = pixel - centre
        power = -0.5 * torch.einsum("pni,nij,pnj->pn", d, inverse, d)
        seen = view[:, 2] > 0.2
        alpha = (opacities[:, 0] * power.exp() * seen).clamp(max=0.99)
        order = depth.argsort()
        alpha = alpha[:, order]
        through = torch.cumprod(1 - alpha, 1)
        weights = alpha * torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
        colours = parts["colors_precomp"]
        if colours is None:  # degree 0
            colours = (0.28209479177387814 * parts["shs"][:, 0] + 0.5).clamp_min(0)
        image = weights @ colours[order] + through[:, -1:] * s.bg
        radii = (3 * torch.linalg.eigvalsh(covariance.detach())[:, 1].sqrt()).ceil().int() * seen
        flat = [value.T.view(-1, h, w) for value in (image, weights @ depth[order, None], weights.sum(1, keepdim=True))]
        return flat[0], radii, flat[1], flat[2]


def _gaussians() -> None:
    module: Any = sys.modules["diff_gaussian_rasterization"]
    module.GaussianRasterizationSettings, module.GaussianRasterizer = Settings, Rasterizer
    knn: Any = sys.modules["simple_knn._C"]

    def squared_distances(points: Tensor) -> Tensor:
        """Mean squared distance to the three nearest others, as distCUDA2."""
        return torch.cdist(points, points).square().topk(4, largest=False).values[:, 1:].mean(1)

    knn.distCUDA2 = squared_distances


# ---------------------------------------------------------------------------------------------- nerfacc


def _transmittance(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Any = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Any = None,
) -> tuple[Tensor, Tensor]:
    depth = sigmas * (t_ends - t_starts)
    alphas = 1 - torch.exp(-depth)
    if ray_indices is None:
        return torch.exp(-(depth.cumsum(-1) - depth)), alphas
    before = depth.double().cumsum(0) - depth.double()
    first = torch.ones_like(ray_indices, dtype=torch.bool)
    first[1:] = ray_indices[1:] != ray_indices[:-1]
    start = first.nonzero()[:, 0][first.cumsum(0) - 1]
    return torch.exp(-(before - before[start]).clamp_min(0)).to(sigmas.dtype), alphas


def _nerfacc() -> None:
    import nerfacc
    from nerfacc import pdf, volrend
    from nerfacc.data_specs import RayIntervals

    def weight(*args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        through, alphas = _transmittance(*args, **options)
        return through * alphas, through, alphas

    def resample(intervals: Any, cdfs: Tensor, n: int, stratified: bool = False) -> tuple[Any, None]:
        vals = intervals.vals
        u = torch.linspace(0, 1, n + 1, dtype=vals.dtype).expand(len(vals), n + 1)
        if stratified:
            u = u * (1 - 1 / n) + torch.rand(len(vals), 1) / n
        right = torch.searchsorted(cdfs.contiguous(), u.contiguous(), right=True).clamp(1, cdfs.shape[1] - 1)
        low, high = cdfs.gather(1, right - 1), cdfs.gather(1, right)
        a, b = vals.gather(1, right - 1), vals.gather(1, right)
        share = ((u - low) / (high - low).clamp_min(1e-10)).clamp(0, 1)
        return RayIntervals(vals=a + share * (b - a)), None

    volrend.render_transmittance_from_density = _transmittance
    nerfacc.render_weight_from_density = volrend.render_weight_from_density = weight
    pdf.importance_sampling = resample


# ----------------------------------------------------------------------------------------------- launch


def main() -> None:
    """Run a checkout's launch.py: `python threestudio_cpu.py CHECKOUT [launch.py's arguments]`."""
    import runpy

    checkout = Path(sys.argv[1]).resolve()
    prepare(checkout)
    if os.environ.get("CHECK_GRADIENTS"):
        from check_threestudio import check_every_call

        check_every_call()
    sys.argv = [str(checkout / "launch.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
