"""Compare carv3d's guidances with threestudio's own, in a real checkout, on a CPU.

    python scripts/check_threestudio.py ~/threestudio --gaussians ~/threestudio-3dgs --mvdream ~/threestudio-mvdream

It needs a Python with carv3d and threestudio's imports, such as pytorch-lightning (see docs/how-to/threestudio.md).
The checkout is copied and not changed. What needs CUDA is replaced, see `scripts/lib/threestudio_cpu.py`.

`gradients`: the same timesteps and noises in both, the gradients at the picture compared. `systems`: threestudio's
launch.py with the configs that people use, with the same comparison at every call. `times`: whole steps, in turns.
`builtin`: an object from carv3d's own teacher, its pictures and its mesh.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "lib")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

PARTS = ("gradients", "systems", "times", "builtin")
ONE = {"resamples": 1, "proposal": "uniform", "strata": "none", "noise": "independent"}


# ------------------------------------------------------------------------------------------- gradients


@contextmanager
def fed(t: Tensor, eps: Tensor) -> Iterator[None]:
    """threestudio's own guidance draws these timesteps (B,) and noises (B, C, h, w)."""
    with (
        mock.patch.object(torch, "randint", lambda *a, **o: t),
        mock.patch.object(torch, "randn_like", lambda x, **o: eps.to(x.dtype)),
    ):
        yield


@contextmanager
def mode_of_posterior() -> Iterator[None]:
    """Both encode to the posterior's mode."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    with mock.patch.object(DiagonalGaussianDistribution, "sample", lambda self, *a, **o: self.mode()):
        yield


def gradient_of(call: Any, rgb: Tensor, name: str) -> Tensor:
    """At the picture, of a loss that a guidance returns."""
    leaf = rgb.detach().clone().requires_grad_()
    call(leaf)[name].backward()
    assert leaf.grad is not None
    return leaf.grad.float()


def reference(
    guidance: Any, rgb: Tensor, draws: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Tensor, float]:
    """The mean over K draws of p/q times threestudio's own gradient, and the mean norm of what is averaged."""
    from carv3d.integrations.threestudio.stable_diffusion import CarvGuidance, Own

    assert isinstance(guidance, CarvGuidance)
    ratio = guidance.distiller.carv.proposal.ratio[draws.t]
    total, size = torch.zeros_like(rgb, dtype=torch.float32), 0.0
    K = draws.t.shape[1]
    for k in range(K):
        with fed(draws.t[:, k], draws.eps[:, k]), mode_of_posterior():
            if guidance.loss == "loss_vsd":
                one = gradient_of(lambda x, k=k: vsd_formula(guidance, x, draws, k, args, options), rgb, "loss")
            else:
                one = gradient_of(lambda x: Own.__call__(guidance, x, *args, **options), rgb, "loss_sds")
        weighted = one * ratio[:, k].view(-1, 1, 1, 1).float()
        total, size = total + weighted / K, size + float(weighted.norm()) / K
    return total, size


def vsd_formula(guidance: Any, rgb: Tensor, draws: Any, k: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """VSD (arXiv 2305.16213, equation 9) before the second network has learned: it sees what the first sees."""
    z = guidance.encode_images(
        torch.nn.functional.interpolate(rgb.permute(0, 3, 1, 2), (512, 512), mode="bilinear", align_corners=False)
    )
    prompts = args[0]
    words = prompts.get_text_embeddings(options["elevation"], options["azimuth"], options["camera_distances"], True)
    t, eps = draws.t[:, k], draws.eps[:, k]
    a = guidance.alphas[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        z_t = a.sqrt() * z + (1 - a).sqrt() * eps
        text, none = guidance.forward_unet(torch.cat([z_t] * 2), torch.cat([t] * 2), words).chunk(2)
        grad = (1 - a) * (none + guidance.cfg.guidance_scale * (text - none) - text)
    return {"loss": (z * grad).sum() / len(z)}


def compare(guidance: Any, call: Any, rgb: Tensor, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[float, Any]:
    """How far our gradient at the picture is from threestudio's, in norms of what is averaged; and our draws.

    Opposite noises cancel most of each other: the average is smaller than what is averaged, and so than its rounding.
    """
    distiller, found = guidance.distiller, []
    before, draw = distiller._call, distiller.carv.draw
    distiller.carv.draw = lambda *a, **o: found.append(draw(*a, **o)) or found[-1]
    guidance.teacher.family.posterior = "mode"
    try:
        ours = gradient_of(lambda x: call(x, *args, **options), rgb, guidance.loss)
    finally:
        del distiller.carv.draw
        distiller._call = before
        guidance.teacher.family.posterior = "sample"
    theirs, size = reference(guidance, rgb, found[0], args, options)
    return float((ours - theirs).norm()) / size, found[0]


def check_every_call() -> None:
    """From now on every call of `carv-guidance` and `carv-vsd-guidance` prints how it compares, and its timesteps."""
    from carv3d.integrations import threestudio as plug_in

    plug_in.register()  # launch.py registers again, which does nothing
    from carv3d.integrations.threestudio.stable_diffusion import CarvGuidance

    original = CarvGuidance.__call__

    def checked(self: Any, rgb: Tensor, *args: Any, **options: Any) -> Any:
        if rgb.requires_grad:
            untrained = self.loss != "loss_vsd" or self.distiller.carv.objective.network.is_untrained()
            if untrained:
                state = torch.get_rng_state()
                difference, draws = compare(self, lambda x, *a, **o: original(self, x, *a, **o), rgb, args, options)
                torch.set_rng_state(state)
                at = f"step {self.distiller._step} {tuple(rgb.shape)}"
                print(f"\nCHECK {at} difference {difference:.3e} t {draws.t.tolist()}", flush=True)
        return original(self, rgb, *args, **options)

    CarvGuidance.__call__ = checked


def cameras(batch: int) -> dict[str, Tensor]:
    """The angles of some views."""
    azimuth = torch.linspace(-170, 150, batch) if batch > 1 else torch.tensor([30.0])
    return {"elevation": torch.full((batch,), 15.0), "azimuth": azimuth, "camera_distances": torch.full((batch,), 1.8)}


def gradients(checkout: Path, model: Path) -> dict[str, float]:
    """`carv-guidance` and `carv-teacher-guidance` against `stable-diffusion-guidance`, by case."""
    from omegaconf import OmegaConf
    from threestudio_cpu import prepare

    ts = prepare(checkout)
    from carv3d.integrations import threestudio as plug_in

    plug_in.register()
    common = {"pretrained_model_name_or_path": str(model), "half_precision_weights": False}
    texts = {"pretrained_model_name_or_path": str(model), "prompt": "a red chair", "negative_prompt": "blurry"}
    texts |= {"spawn": False}
    processor = ts.find("stable-diffusion-prompt-processor")
    plain, perp = processor(texts)(), processor({**texts, "use_perp_neg": True})()
    found: dict[str, float] = {}

    def case(
        name: str,
        keys: dict[str, Any] | None = None,
        *,
        batch: int = 1,
        prompts: Any = plain,
        step: int = 0,
        many: bool = False,
        dtype: torch.dtype = torch.float32,
        **call: Any,
    ) -> None:
        guidance = ts.find("carv-guidance")(OmegaConf.create({**common, **({} if many else ONE), **(keys or {})}))
        guidance.update_step(0, step)
        channels = 4 if call.get("rgb_as_latents") else 3
        rgb = torch.rand(batch, 32, 32, channels, generator=torch.Generator().manual_seed(3)).to(dtype)
        found[name], _ = compare(guidance, guidance, rgb, (prompts,), {**cameras(batch), **call})
        print(f"{name:48s} {found[name]:.1e}", flush=True)

    case("K = 1, scale 100, sds", {"guidance_scale": 100.0})
    case("K = 1, scale 7.5, uniform", {"guidance_scale": 7.5, "weighting_strategy": "uniform"})
    case("K = 1, fantasia3d", {"weighting_strategy": "fantasia3d"})
    case("K = 1, B = 4", batch=4)
    case("K = 1, B = 4, no view words", {"view_dependent_prompting": False}, batch=4)
    case("K = 1, B = 2, latents", batch=2, rgb_as_latents=True)
    case("K = 1, Perp-Neg", prompts=perp)
    case("K = 1, SJC", {"use_sjc": True})
    case("K = 1, grad_clip 2", {"grad_clip": 2.0})
    case("K = 1, annealed range, step 5000", {"max_step_percent": [0, 0.98, 0.5, 10000]}, step=5000)
    case("K = 1, sqrt_anneal, step 5000", {"sqrt_anneal": True}, step=5000)
    case("K = 8, uniform, independent", {**ONE, "resamples": 8})
    case("K = 8, defaults, B = 2", many=True, batch=2)
    case("K = 8, defaults, B = 2, chunk 3", {"chunk": 3}, many=True, batch=2)
    case("K = 1, half-precision renders", dtype=torch.float16)

    # threestudio's own Perp-Neg mixes the rows of a batch (its issue 456): it is asked for one view at a time.
    guidance = ts.find("carv-guidance")({**common, **ONE})
    guidance.update_step(0, 0)
    z = torch.randn(2, 64, 64, 4, generator=torch.Generator().manual_seed(3))
    angles = {**cameras(2), "rgb_as_latents": True}
    of_batch, draws = compare(guidance, guidance, z, (perp,), angles)
    with mock.patch.object(guidance.distiller.carv, "draw", lambda *a, **o: draws):
        ours = gradient_of(lambda x: guidance(x, perp, **angles), z, "loss_sds")
    rows = []
    for row in range(2):
        part = slice(row, row + 1)
        one = {k: v[part] if isinstance(v, Tensor) else v for k, v in angles.items()}
        rows.append(reference(guidance, z[part], type(draws)(draws.t[part], draws.eps[part]), (perp,), one)[0] / 2)
    theirs = torch.cat(rows)
    found["K = 1, Perp-Neg, B = 2, one view at a time"] = float((ours - theirs).norm() / theirs.norm())
    found["the same against its own batch of two"] = of_batch
    for name in list(found)[-2:]:
        print(f"{name:48s} {found[name]:.1e}", flush=True)

    for scale, perp_neg in ((100.0, False), (100.0, True)):
        own = ts.find("carv-guidance")({**common, **ONE, "guidance_scale": scale})
        teacher = ts.find("carv-teacher-guidance")({**common, **ONE, "guidance_scale": scale, "posterior": "mode"})
        held = ts.find("carv-prompt-processor")({**texts, "use_perp_neg": perp_neg})()
        for one in (own, teacher):
            one.update_step(0, 0)
        rgb = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(3))
        _, draws = compare(own, own, rgb, (perp if perp_neg else plain,), cameras(1))
        theirs, _ = reference(own, rgb, draws, (perp if perp_neg else plain,), cameras(1))
        with mock.patch.object(teacher.distiller.carv, "draw", lambda *a, d=draws, **o: d):
            ours = gradient_of(lambda x, t=teacher, h=held: t(x, h, **cameras(1)), rgb, "loss_sds")
        name = f"carv-teacher-guidance, K = 1{', Perp-Neg' if perp_neg else ''}"
        found[name] = float((ours - theirs).norm() / theirs.norm())
        print(f"{name:48s} {found[name]:.1e}", flush=True)

    looked = ts.find("carv-guidance")({**common, "resamples": 2, "max_items_eval": 1})
    looked.update_step(0, 0)
    for prompts in (plain, perp):
        out = looked(torch.rand(2, 32, 32, 3), prompts, **cameras(2), guidance_eval=True)["eval"]
        assert out["imgs_final"].shape == (1, 512, 512, 3) and out["texts"][0].startswith("n0.")
    print("guidance_eval pictures: drawn", flush=True)
    return found


# --------------------------------------------------------------------------------------------- systems

GRID = "{{otype: HashGrid, n_levels: {}, n_features_per_level: 2, log2_hashmap_size: {}, base_resolution: 8, "
GRID += "per_level_scale: 1.5}}"
NETWORK = GRID.format(4, 12)
FIELD = [
    "data.width=32",
    "data.height=32",
    f"system.geometry.pos_encoding_config={NETWORK}",
    "system.renderer.estimator=importance",
    "system.renderer.num_samples_per_ray=16",
    "system.renderer.num_samples_per_ray_importance=16",
    "system.renderer.near_plane=0.1",
    "system.renderer.far_plane=4.0",
]
ALL = ["data.eval_width=32", "data.eval_height=32", "data.n_val_views=1", "data.n_test_views=2", "trainer.precision=32"]
ALL += ["trainer.num_sanity_val_steps=0", "checkpoint.every_n_train_steps=2", "use_timestamp=false"]
MESH = ["data.width=48", "data.height=48", "system.geometry.isosurface_resolution=16"]
MESH += [f"system.geometry.pos_encoding_config={NETWORK}"]
SD = ["system.prompt_processor.spawn=false", "system.guidance.half_precision_weights=false"]


def launch(checkout: Path, config: str, *words: str, check: bool = True, mode: str = "--train") -> str:
    """What launch.py prints."""
    environment = os.environ | ({"CHECK_GRADIENTS": "1"} if check else {})
    command = [sys.executable, str(SCRIPTS / "lib" / "threestudio_cpu.py"), str(checkout)]
    done = subprocess.run(
        [*command, "--config", config, mode, "--gpu", "0", *words], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(
            f"{config} ended with exit code {done.returncode}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        )
    return done.stdout


def plain_material(config: Path, path: Path) -> str:
    """A config with colours alone in place of the physically based material, whose light is looked up on CUDA."""
    from omegaconf import OmegaConf

    values = OmegaConf.load(config)
    values.system.material_type = "no-material"
    values.system.material = {"n_output_dims": 3, "color_activation": "sigmoid"}
    OmegaConf.save(values, path)
    return str(path)


def systems(checkout: Path, model: Path, extensions: list[str]) -> dict[str, Any]:
    """The largest difference over the steps of every system."""
    found: dict[str, Any] = {}
    of_model = [f"system.{part}.pretrained_model_name_or_path={model}" for part in ("prompt_processor", "guidance")]
    prompt = 'system.prompt_processor.prompt="a red chair"'
    guided = "system.guidance_type=carv-guidance"

    def run(name: str, config: str, *words: str, steps: int = 4) -> str:
        out = f"exp_root_dir={checkout.parent / 'outputs'}"
        tag = name.replace(" ", "-").replace(",", "")
        said = launch(
            checkout, config, *of_model, prompt, *SD, *ALL, out, f"tag={tag}", f"trainer.max_steps={steps}", *words
        )
        rows = re.findall(r"CHECK step (\d+) \(([\d, ]+)\) difference ([\d.e+-]+) t (.*)", said)
        found[name] = {"calls": len(rows), "largest": max(float(row[2]) for row in rows), "render": rows[-1][1]}
        print(f"{name:40s} {len(rows)} calls, largest difference {found[name]['largest']:.1e}", flush=True)
        return said

    def kept(config_name: str, tag: str, step: str = "last") -> Path:
        return checkout.parent / "outputs" / config_name / tag / "ckpts" / f"{step}.ckpt"

    whole = run("dreamfusion", "configs/dreamfusion-sd.yaml", guided, *FIELD)
    resumed = run(
        "dreamfusion, resumed",
        "configs/dreamfusion-sd.yaml",
        guided,
        *FIELD,
        f"resume={kept('dreamfusion-sd', 'dreamfusion', 'epoch=0-step=2')}",
    )
    drawn = [dict(re.findall(r"CHECK step (\d+) .* (t .*)", said)) for said in (whole, resumed)]
    found["resumed draws the same"] = all(drawn[0][step] == t for step, t in drawn[1].items()) and len(drawn[1]) == 2
    print(f"a resumed run draws what the whole one did: {found['resumed draws the same']}", flush=True)
    run("magic3d, coarse", "configs/magic3d-coarse-sd.yaml", guided, *FIELD, "system.geometry.isosurface_resolution=16",
        "system.geometry.isosurface_coarse_to_fine=false")  # fmt: skip
    run(
        "magic3d, refinement",
        "configs/magic3d-refine-sd.yaml",
        guided,
        *MESH,
        f"system.geometry_convert_from={kept('magic3d-coarse-sd', 'magic3d-coarse')}",
        "system.renderer.context_type=cuda",
    )
    run("fantasia3d, geometry", "configs/fantasia3d.yaml", guided, *MESH, "system.latent_steps=2")
    run(
        "fantasia3d, texture",
        plain_material(checkout / "configs/fantasia3d-texture.yaml", checkout.parent / "fantasia3d-texture.yaml"),
        guided,
        *MESH,
        f"system.geometry_convert_from={kept('fantasia3d', 'fantasia3d-geometry')}",
        "system.geometry.n_feature_dims=3",
    )
    single = ["data.batch_size=1", "data.resolution_milestones=[]", "system.geometry.isosurface_resolution=16"]
    run(
        "prolificdreamer",
        "configs/prolificdreamer.yaml",
        "system.guidance_type=carv-vsd-guidance",
        *FIELD,
        *single,
    )
    if "gaussians" in extensions:
        run(
            "threestudio-3dgs",
            "custom/threestudio-3dgs/configs/gaussian_splatting.yaml",
            guided,
            *("data.width=32", "data.height=32", "data.batch_size=2", "system.geometry.init_num_pts=100"),
        )
    if "mvdream" in extensions:
        config = "custom/threestudio-mvdream/configs/mvdream-sd21.yaml"
        try:
            run("threestudio-mvdream", config, guided, *FIELD)
            found["threestudio-mvdream"] = "not refused"
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.startswith("ValueError")]
            found["threestudio-mvdream"] = lines[-1] if lines else str(error)[-400:]
        print(f"{'threestudio-mvdream':40s} {found['threestudio-mvdream']}", flush=True)
    return found


# ----------------------------------------------------------------------------------------------- times


def times(checkout: Path, models: dict[str, Path], rounds: int) -> dict[str, Any]:
    """CPU seconds of whole steps (render, guidance, backward), threestudio's own guidance and ours in turns."""
    from threestudio_cpu import prepare

    ts = prepare(checkout)
    from carv3d.integrations import threestudio as plug_in

    plug_in.register()
    from threestudio.utils.config import load_config

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for size, model in models.items():
        torch.manual_seed(0)
        words = [f"system.{part}.pretrained_model_name_or_path={model}" for part in ("prompt_processor", "guidance")]
        words += [*SD, *FIELD, "data.width=64", "data.height=64", "system.renderer.num_samples_per_ray=32", "tag=t"]
        words += ["system.prompt_processor.prompt=a red chair", f"exp_root_dir={checkout.parent / 'outputs'}"]
        cfg = load_config("configs/dreamfusion-sd.yaml", cli_args=[*words, "use_timestamp=false"], n_gpus=1)
        data = ts.find(cfg.data_type)(cfg.data)
        data.setup("fit")
        system = ts.find(cfg.system_type)(cfg.system)
        system.train()
        system.do_update_step(0, 0)
        prompts = ts.find(cfg.system.prompt_processor_type)(cfg.system.prompt_processor)()
        common = {"pretrained_model_name_or_path": str(model), "half_precision_weights": False}
        guidances = {
            "own": ts.find("stable-diffusion-guidance")(common),
            "ours, K = 1": ts.find("carv-guidance")({**common, **ONE}),
            "ours, K = 8": ts.find("carv-guidance")(common),
        }
        for guidance in guidances.values():
            guidance.update_step(0, 0)

        def step(
            guidance: Any, data: Any = data, system: Any = system, prompts: Any = prompts, parts: Any = None
        ) -> float:
            batch = data.train_dataset.collate(None)
            system.zero_grad()
            start = time.process_time()
            guidance(system.renderer(**batch)["comp_rgb"], prompts, **batch)["loss_sds"].backward()
            return time.process_time() - start

        for guidance in guidances.values():
            step(guidance)  # the first is slower
        seconds: dict[str, list[float]] = {name: [] for name in guidances}
        for _ in range(rounds):
            for name, guidance in guidances.items():
                seconds[name].append(step(guidance))
        pairs = list(zip(*seconds.values(), strict=True))
        found[size] = {
            "own, seconds": round(statistics.median(seconds["own"]), 2),
            "ours, K = 1, of own": round(statistics.median(b / a for a, b, _ in pairs), 3),
            "ours, K = 8, of own": round(statistics.median(c / a for a, _, c in pairs), 3),
            "ours, K = 8, of eight own": round(statistics.median(c / (8 * a) for a, _, c in pairs), 3),
        }
        print(size, found[size], flush=True)
    return found


# --------------------------------------------------------------------------------------------- builtin


def builtin(checkout: Path, steps: int) -> dict[str, str]:
    """A red mushroom by carv3d's own teacher in threestudio: its test pictures, and its mesh."""
    network = GRID.format(6, 14)
    outputs = checkout.parent / "outputs"
    words = [
        *("system.prompt_processor.prompt=a red mushroom", f"exp_root_dir={outputs}", "tag=mushroom"),
        *("use_timestamp=false", f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"),
        f"system.geometry.pos_encoding_config={network}",
        *("system.geometry.normal_type=null", "system.renderer.estimator=importance"),
        *("system.renderer.num_samples_per_ray=20", "system.renderer.num_samples_per_ray_importance=16"),
        *("system.renderer.near_plane=1.8", "system.renderer.far_plane=4.2", "data.n_test_views=8"),
        *("data.n_val_views=1", "checkpoint.every_n_train_steps=100"),
    ]
    config = "custom/threestudio-carv3d/configs/carv-builtin.yaml"
    started = time.time()
    launch(checkout, config, *words, check=False)
    trial = outputs / "carv-builtin" / "mushroom"
    exported = [f"resume={trial / 'ckpts' / 'last.ckpt'}", "system.exporter.fmt=obj", "system.exporter.save_uv=false"]
    exported += ["system.geometry.isosurface_method=mc-cpu", "system.geometry.isosurface_resolution=64"]
    launch(checkout, config, *words, *exported, check=False, mode="--export")
    pictures = sorted(trial.glob("save/it*-test/*.png"))
    mesh = next(trial.glob("save/it*-export/*.obj"))
    print(
        f"{steps} steps, pictures and mesh in {time.time() - started:.0f} s: {pictures[0].parent}, {mesh}", flush=True
    )
    return {"pictures": str(pictures[0].parent), "mesh": str(mesh)}


# ------------------------------------------------------------------------------------------------- main


def copied(checkout: Path, work: Path, extensions: dict[str, Path]) -> Path:
    """A copy of the checkout with the extensions in it."""
    from carv3d.integrations.threestudio.install import install

    copy = work / "threestudio"
    shutil.rmtree(copy, ignore_errors=True)
    left = shutil.ignore_patterns(".git", "outputs", "__pycache__", "threestudio-*", ".threestudio_cache")
    shutil.copytree(checkout, copy, ignore=left)
    for name, path in extensions.items():
        folder = {"gaussians": "threestudio-3dgs", "mvdream": "threestudio-mvdream"}[name]
        shutil.copytree(path, copy / "custom" / folder, ignore=shutil.ignore_patterns(".git"))
    install(copy)
    from threestudio_cpu import tetrahedra

    tetrahedra(copy / "load" / "tets" / "16_tets.npz", 16)
    return copy


def main() -> None:
    """Run the parts, each in a process of its own, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--gaussians", type=Path, help="a checkout of threestudio-3dgs")
    parser.add_argument("--mvdream", type=Path, help="a checkout of threestudio-mvdream")
    parser.add_argument("--work", type=Path, default=Path("outputs/threestudio"))
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=3, help="of times")
    parser.add_argument("--steps", type=int, default=400, help="of builtin")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    given = {"gaussians": options.gaussians, "mvdream": options.mvdream}
    extensions = {name: path.resolve() for name, path in given.items() if path}
    if options.part is None:
        copied(options.checkout.resolve(), work, extensions)
        for part in [options.only] if options.only else PARTS:
            print(f"== {part}", flush=True)
            subprocess.run([sys.executable, *sys.argv, "--part", part], check=True)
        return
    from random_teacher import make

    copy = work / "threestudio"
    small = make("small", work / "models" / "small", dtype=torch.float32, divide=40, groups=4)
    match options.part:
        case "gradients":
            found: Any = gradients(copy, small)
        case "systems":
            found = systems(copy, small, list(extensions))
        case "times":
            sizes = {f"widths / {n}": make("sd15", work / "models" / f"sd15-{n}", divide=n, groups=8) for n in (20, 10)}
            found = times(copy, sizes, options.rounds)
        case _:
            found = builtin(copy, options.steps)
    (work / f"{options.part}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
