"""carv3d's guidances in threestudio, on a stand-in for it: gradients, draws, mistakes."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from carv3d.integrations.threestudio import install as extension
from tests.pipelines import LENGTH, make_pipeline
from tests.threestudio_stand_in import Prompts, stand_in

ONE: dict[str, Any] = {"resamples": 1, "proposal": "uniform", "strata": "none", "coupling": "independent"}
PACKAGE = Path(extension.__file__).parents[2]


@pytest.fixture(scope="module")
def threestudio() -> Iterator[Any]:
    with stand_in() as module:
        guidance = module.find("carv-guidance")
        guidance.picture_size, guidance.latent_size = 16, 8  # of the small pipeline
        yield module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def prompts(model: Path) -> Prompts:
    width = json.loads((model / "unet" / "config.json").read_text())["cross_attention_dim"]
    g = torch.Generator().manual_seed(5)
    return Prompts(torch.randn(4, LENGTH, width, generator=g), torch.randn(LENGTH, width, generator=g))


def cameras(count: int) -> dict[str, Tensor]:
    azimuth = torch.linspace(-170, 100, count)
    return {"elevation": torch.full((count,), 15.0), "azimuth": azimuth, "camera_distances": torch.full((count,), 2.0)}


def made(threestudio: Any, model: Path, name: str = "carv-guidance", step: int = 0, **keys: Any) -> Any:
    common = {"pretrained_model_name_or_path": str(model), "half_precision_weights": False}
    guidance = threestudio.find(name)(OmegaConf.create({**common, **keys}))
    guidance.update_step(0, step)
    if name == "carv-vsd-guidance":
        guidance.inner.update_step(0, step)
    return guidance


def called(guidance: Any, prompts: Any, count: int = 1, **call: Any) -> tuple[dict[str, Any], Tensor, Any]:
    """What a guidance returns for some latents, the gradient at them, and the draws."""
    inner = getattr(guidance, "inner", guidance)
    draws, draw = [], inner.distiller.carv.draw
    inner.distiller.carv.draw = lambda *a, **o: draws.append(draw(*a, **o)) or draws[-1]
    z = torch.randn(count, 8, 8, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    out = guidance(z, prompts, **cameras(count), rgb_as_latents=True, **call)
    del inner.distiller.carv.draw
    loss = out["loss_vsd"] if "loss_vsd" in out else out["loss_sds"]
    (gradient,) = torch.autograd.grad(loss, z, retain_graph=True)
    return out, gradient.permute(0, 3, 1, 2), draws[0]


def formula(
    guidance: Any, prompts: Any, draws: Any, weight: str, how: str = "sds", clip: float | None = None
) -> Tensor:
    """The gradient that threestudio's own guidance has on average over these draws, one draw of one view at a time.

    In float64 from the U-Net's predictions: `mean_k (p / q) w (text + s (text - uncond) - eps) / B`, Perp-Neg
    (arXiv 2304.04968, algorithm 1), CSD and VSD in the same terms.
    """
    R, K = draws.t.shape
    z = torch.randn(R, 8, 8, 4, generator=torch.Generator().manual_seed(3)).permute(0, 3, 1, 2)
    view, alphas, s = cameras(R), guidance.alphas.double(), guidance.cfg.guidance_scale
    unet = guidance.pipe.unet
    lengths = guidance.distiller.carv.p.double() / guidance.distiller.carv.proposal.q.double().cpu()
    rows = []
    for r in range(R):
        one = {key: angles[r : r + 1] for key, angles in view.items()}
        angles = (one["elevation"], one["azimuth"], one["camera_distances"])
        if prompts.use_perp_neg:
            told, weights = prompts.get_text_embeddings_perp_neg(*angles)
        else:
            told = prompts.get_text_embeddings(*angles, guidance.cfg.view_dependent_prompting)
        total = torch.zeros(z.shape[1:], dtype=torch.float64)
        for k in range(K):
            t, eps = draws.t[r, k], draws.eps[r, k]
            a = alphas[t]
            z_t = (a.sqrt() * z[r] + (1 - a).sqrt() * eps).float()
            with torch.no_grad():
                seen = [unet(z_t[None], t, row[None]).sample[0].double() for row in told]
            text, none = seen[:2]
            d = text - none
            if prompts.use_perp_neg:
                for negative, share in zip(seen[2:], weights[0].double(), strict=True):
                    x = negative - none
                    d = d + share * (x - (x * (text - none)).sum() / (text - none).square().sum() * (text - none))
                guided = none + s * d
            else:
                guided = none + s * d if how == "vsd" else text + s * d
            residual = guided - (eps.double() if how == "sds" else text)
            w = {"sds": 1 - a, "uniform": 1.0, "fantasia3d": a.sqrt() * (1 - a)}[weight]
            total += lengths[t] * w * residual / K
        rows.append(total if clip is None else total.clamp(-clip, clip))
    return torch.stack(rows) / R


def agree(found: Tensor, true: Tensor) -> None:
    assert float((found.double() - true).norm() / true.norm()) < 2e-5


# --------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("weight", ["sds", "uniform", "fantasia3d"])
def test_one_draw_is_the_own_gradient(threestudio: Any, model: Path, prompts: Prompts, weight: str) -> None:
    guidance = made(threestudio, model, **ONE, weighting_strategy=weight, guidance_scale=7.5)
    out, gradient, draws = called(guidance, prompts, 2)
    agree(gradient, formula(guidance, prompts, draws, weight))
    # The value is that of threestudio's own loss, and its figures are there.
    value = 0.5 * (2 * gradient).square().sum() / 2
    torch.testing.assert_close(out["loss_sds"].detach(), value)
    assert {"grad_norm", "min_step", "max_step", "effective_sample_size"} < out.keys() and "noise_share" not in out
    assert all(
        not isinstance(value, Tensor) or value.numel() == 1 for value in out.values()
    )  # fantasia3d logs them all


@pytest.mark.parametrize("keys", [{}, {"chunk": 3}, {"proposal": "uniform", "strata": "global"}], ids=str)
def test_many_draws_average_the_own_gradient(threestudio: Any, model: Path, prompts: Prompts, keys: Any) -> None:
    guidance = made(threestudio, model, **keys)
    out, gradient, draws = called(guidance, prompts, 2)
    assert draws.t.shape == (2, 8) and 1 <= out["effective_sample_size"] <= 16 and 0 <= out["noise_share"] <= 1
    agree(gradient, formula(guidance, prompts, draws, "sds"))


@pytest.mark.parametrize("resamples", [1, 4])
def test_perp_neg_judges_each_view_by_itself(threestudio: Any, model: Path, prompts: Prompts, resamples: int) -> None:
    """threestudio's own mixes the views of a batch."""
    told = Prompts(prompts.text, prompts.none, use_perp_neg=True)
    guidance = made(threestudio, model, **{**ONE, "resamples": resamples}, guidance_scale=20.0)
    _, gradient, draws = called(guidance, told, 2)
    agree(gradient, formula(guidance, told, draws, "sds"))
    _, plain, draws = called(guidance, prompts, 2)  # and the next call may be without
    agree(plain, formula(guidance, prompts, draws, "sds"))


def test_clipping_and_sjc(threestudio: Any, model: Path, prompts: Prompts) -> None:
    """Clipping is of the averaged gradient; its limit follows a schedule. SJC is SDS with weight 1."""
    guidance = made(threestudio, model, step=50, grad_clip=[0, 3.0, 1.0, 100], **ONE)
    _, gradient, draws = called(guidance, prompts, 2)
    assert gradient.abs().max() == pytest.approx(2.0 / 2)
    agree(gradient, formula(guidance, prompts, draws, "sds", clip=2.0))
    guidance = made(threestudio, model, use_sjc=True, **ONE)
    _, gradient, draws = called(guidance, prompts)
    agree(gradient, formula(guidance, prompts, draws, "uniform"))


def test_csd_and_an_objective_with_keys(threestudio: Any, model: Path, prompts: Prompts) -> None:
    for given in ("csd", {"type": "csd"}):
        guidance = made(threestudio, model, resamples=2, objective=given, guidance_scale=7.5)
        _, gradient, draws = called(guidance, prompts)
        agree(gradient, formula(guidance, prompts, draws, "sds", how="csd"))


def test_the_teacher_guidance_says_what_the_own_networks_say(threestudio: Any, model: Path) -> None:
    """The same folder through carv3d's teacher and texts, and through threestudio's."""
    teacher = made(threestudio, model, "carv-teacher-guidance", **ONE, guidance_scale=10.0)
    held = threestudio.find("carv-prompt-processor")({"prompt": "a view", "negative_prompt": "b"})()
    words = teacher.teacher.family.embed([f"a view, {view} view" for view in ("side", "front", "back", "overhead")])
    told = Prompts(words["text"], teacher.teacher.family.embed(["b"])["text"][0])
    own = made(threestudio, model, **ONE, guidance_scale=10.0)
    _, ours, draws = called(teacher, held, 2)
    agree(ours, formula(own, told, draws, "sds"))
    picture = torch.rand(1, 32, 32, 3, requires_grad=True)
    teacher(picture, held, **cameras(1))["loss_sds"].backward()
    assert picture.grad is not None and picture.grad.abs().max() > 0


# ------------------------------------------------------------------------------------- draws and steps


def test_ranges_follow_the_schedules(threestudio: Any, model: Path, prompts: Prompts) -> None:
    """Whole timesteps, cut off as threestudio cuts them; both ends are drawn."""
    guidance = made(threestudio, model, min_step_percent=0.0309, max_step_percent=[0, 0.98, 0.5, 100], step=100)
    out, _, draws = called(guidance, prompts)
    assert (out["min_step"], out["max_step"]) == (30, 500)
    assert guidance.distiller.carv.p.nonzero()[:, 0].tolist() == list(range(30, 501))
    assert draws.t.min() >= 30 and draws.t.max() <= 500
    end = made(threestudio, model, min_step_percent=1.0, max_step_percent=1.0)  # threestudio's draws would be outside
    assert called(end, prompts)[0]["max_step"] == 999


def test_draws_are_a_function_of_seed_rank_step_and_call(
    threestudio: Any, model: Path, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a resumed run repeats them and every rank has its own."""

    def drawn(seed: int, rank: int, steps: list[int], calls: int = 1) -> list[list[Any]]:
        monkeypatch.setenv("RANK", str(rank))
        torch.manual_seed(seed + rank)  # as launch.py does
        guidance = made(threestudio, model, resamples=2)
        found = []
        for step in steps:
            guidance.update_step(0, step)
            found += [[d.t.tolist(), d.eps.sum().item()] for d in (called(guidance, prompts)[2] for _ in range(calls))]
        return found

    whole = drawn(0, 0, [0, 1, 2, 3])
    assert drawn(0, 0, [2, 3]) == whole[2:]
    others = [drawn(0, 1, [2, 3]), drawn(1, 0, [2, 3])]
    assert len({str(row) for rows in (whole, *others, drawn(0, 0, [0], calls=2)[1:]) for row in rows}) == 9


def test_half_precision_pictures_have_a_finite_value(threestudio: Any, model: Path, prompts: Prompts) -> None:
    """Under automatic mixed precision; the square of a gradient at scale 100 leaves the range of float16."""
    guidance = made(threestudio, model, guidance_scale=10000.0, **ONE)
    z = torch.randn(1, 8, 8, 4).half().requires_grad_()
    loss = guidance(z, prompts, **cameras(1), rgb_as_latents=True)["loss_sds"]
    loss.backward()
    assert loss > 65504 and z.grad is not None and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("perp_neg", [False, True])
def test_evaluation_tells_threestudio_the_first_draws(
    threestudio: Any, model: Path, prompts: Prompts, perp_neg: bool
) -> None:
    """Of no more views than it looks at, whose words are its every second row."""
    told = Prompts(prompts.text, prompts.none, perp_neg)
    guidance = made(threestudio, model, max_items_eval=2)
    with torch.no_grad():
        z = torch.randn(3, 8, 8, 4)
        out = guidance(z, told, **cameras(3), rgb_as_latents=True, guidance_eval=True)
    shown = out["eval"]
    assert shown["bs"] == 2 and len(shown["texts"]) == 2 and shown["texts"][0].split("\n")[2] == "a-170.0"
    angles = [part[:2] for part in cameras(3).values()]
    if perp_neg:
        rows, weights = told.get_text_embeddings_perp_neg(*angles)
        torch.testing.assert_close(shown["told"], rows[[0, 1, 2, 3, 4, 6, 5, 7]])
        torch.testing.assert_close(shown["weights"], weights)
    else:
        torch.testing.assert_close(shown["told"], told.get_text_embeddings(*angles))
    assert not out["loss_sds"].requires_grad


# ------------------------------------------------------------------------------------------------- VSD


def test_vsd_starts_as_the_formula_and_learns_by_threestudios_optimiser(
    threestudio: Any, model: Path, prompts: Prompts
) -> None:
    """`loss_lora` trains what the checkpoint holds, and nothing of the frozen network."""
    keys = {
        "pretrained_model_name_or_path_lora": "stabilityai/stable-diffusion-2-1",
        "camera_condition_type": "extrinsics",
    }
    guidance = made(threestudio, model, "carv-vsd-guidance", resamples=2, **keys)
    out, gradient, draws = called(guidance, prompts, 2)
    agree(gradient, formula(guidance.inner, prompts, draws, "sds", how="vsd"))
    frozen = {name: p.clone() for name, p in guidance.inner.pipe.unet.named_parameters()}
    optimizer = torch.optim.Adam(guidance.parameters(), lr=1e-2)
    objective = guidance.inner.distiller.carv.objective
    z = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    condition = guidance.inner.condition(prompts, *cameras(32).values())

    def loss() -> float:
        with torch.no_grad():
            return float(objective.loss(z, condition, torch.Generator().manual_seed(1)))

    before = loss()
    for step in range(30):
        guidance.inner.update_step(0, step)
        out, *_ = called(guidance, prompts, 2)
        optimizer.zero_grad()
        out["loss_lora"].backward()
        optimizer.step()
    assert loss() < 0.99 * before
    assert all(torch.equal(frozen[name], p) for name, p in guidance.inner.pipe.unet.named_parameters())
    state = guidance.state_dict()
    assert state and all(".first." in name or ".second." in name for name in state)
    again = made(threestudio, model, "carv-vsd-guidance", resamples=2)
    again.load_state_dict(state)
    again.inner.update_step(0, 30), guidance.inner.update_step(0, 30)
    assert torch.equal(called(again, prompts)[1], called(guidance, prompts)[1])


def test_vsd_that_nothing_trains_is_said(threestudio: Any, model: Path, prompts: Prompts) -> None:
    guidance = made(threestudio, model, "carv-vsd-guidance", **ONE)
    with pytest.raises(RuntimeError, match=r"nothing trains the second network .*optimizer\.params\.guidance\.lr"):
        for _ in range(25):
            called(guidance, prompts)


# -------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "name, keys, said",
    [
        (
            "carv-guidance",
            {"resample": 4},
            r"system\.guidance\.resample is no key of carv-guidance: did you mean resamples",
        ),
        ("carv-guidance", {"resamples": 0}, r"resamples must be a whole number of at least 1, not 0"),
        ("carv-guidance", {"chunk": -1}, "chunk must be"),
        ("carv-guidance", {"coupling": "antithetical"}, "did you mean 'antithetic'"),
        ("carv-guidance", {"strata": "renders"}, "did you mean 'render'"),
        ("carv-guidance", {"proposal": "importence"}, "did you mean 'importance'"),
        ("carv-guidance", {"weighting_strategy": "sd"}, "did you mean 'sds'"),
        ("carv-guidance", {"objective": "csdd"}, "system.guidance.objective: .*did you mean 'csd'"),
        ("carv-guidance", {"objective": {"type": "csd", "rank": 3}}, "objective.rank is no key of Csd"),
        ("carv-guidance", {"objective": "vsd"}, "use carv-vsd-guidance"),
        ("carv-guidance", {"use_img_loss": True}, "set system.guidance.use_img_loss=false"),
        ("carv-guidance", {"use_sjc": True, "var_red": False}, "set system.guidance.var_red=true"),
        ("carv-guidance", {"pretrained_model_name_or_path_lora": "x"}, "use carv-vsd-guidance"),
        ("carv-guidance", {"model_name": "sd-v2.1-base-4view"}, "judges four views together"),
        ("carv-vsd-guidance", {"guidance_scale_lora": 7.5}, "guidance_scale_lora must be 1"),
        ("carv-vsd-guidance", {"objective": "csd"}, "use carv-guidance for other objectives"),
        ("carv-vsd-guidance", {"lora_rank": 0}, "lora_rank must be at least 1"),
        ("carv-teacher-guidance", {"posterior": "mean"}, "posterior must be sample or mode"),
        (
            "carv-teacher-guidance",
            {"pretrained_model_name_or_path": "/nowhere"},
            "pretrained_model_name_or_path: .*nowhere",
        ),
        ("carv-prompt-processor", {"prompt_front": "its face"}, "leave out system.prompt_processor.prompt_front"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_one_line(threestudio: Any, model: Path, name: str, keys: dict[str, Any], said: str) -> None:
    common = (
        {} if "processor" in name else {"pretrained_model_name_or_path": str(model), "half_precision_weights": False}
    )
    with pytest.raises(ValueError, match=said) as error:
        threestudio.find(name)({**common, **keys})
    assert "\n" not in str(error.value)


def test_models_and_prompt_processors_that_do_not_fit(
    threestudio: Any, model: Path, prompts: Prompts, tmp_path: Path
) -> None:
    velocity = make_pipeline(tmp_path / "v", prediction="v_prediction")
    with pytest.raises(ValueError, match=r"predicts v_prediction, .* use carv-teacher-guidance"):
        made(threestudio, velocity)
    held = threestudio.find("carv-prompt-processor")({"prompt": "a view"})()
    with pytest.raises(ValueError, match=r"takes the words of stable-diffusion-prompt-processor"):
        called(made(threestudio, model), held)
    with pytest.raises(ValueError, match="prompt_processor_type=carv-prompt-processor"):
        called(made(threestudio, model, "carv-teacher-guidance"), prompts)


def test_another_threestudio_is_told_what_it_lacks(threestudio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from carv3d.integrations import threestudio as plug_in

    monkeypatch.setattr(threestudio, "__version__", "0.1.0")
    with pytest.raises(ImportError, match=r"needs threestudio 0\.2\.0 or newer, and this is 0\.1\.0"):
        plug_in.register()
    monkeypatch.undo()
    own = threestudio.find("stable-diffusion-guidance")
    monkeypatch.delattr(own, "guidance_eval")
    with pytest.raises(ImportError, match=r"has no stable-diffusion-guidance\.guidance_eval, which carv3d uses"):
        plug_in.register()


def test_carv3d_itself_imports_nothing_of_it() -> None:
    """Only the verbs do, which put it into a checkout and read its pictures."""
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("carv3d.integrations") for name in names) and "integrations" not in path.parts:
                users.add(path.name)
    assert users == {"threestudio.py", "results.py"}


def test_the_ready_configs_hold_keys_that_exist(threestudio: Any) -> None:
    """And name guidances that are registered, with `tag` and `exp_root_dir` as threestudio has them."""
    import yaml

    files = sorted((PACKAGE / "integrations" / "threestudio" / "extension" / "configs").glob("*.yaml"))
    assert len(files) == 3
    for path in files:
        values = yaml.safe_load(path.read_text())
        system = values["system"]
        kind = threestudio.find(system["guidance_type"])
        assert set(system["guidance"]) <= set(kind.Config.__dataclass_fields__), path
        losses = {"carv-vsd-guidance": {"lambda_vsd", "lambda_lora"}}.get(system["guidance_type"], {"lambda_sds"})
        assert losses <= set(system["loss"]) and {"name", "tag", "exp_root_dir"} <= set(values)
