"""Data attribution: gradients of single rows, projection, shared draws, the cache, scores, and the command."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from carv3d.attribution import Projection, RowGradients, SharedDraws, ends, scores
from carv3d.attribution import attribution as pipeline
from carv3d.attribution.builtin_world import BuiltinWorld
from carv3d.attribution.cache import Cache
from carv3d.attribution.image_folder import ImageFolder
from carv3d.attribution.pictures import InMemory, unknown_camera
from carv3d.attribution.signatures import SignatureMaker, Signatures
from carv3d.errors import UserError
from carv3d.shapes import COLOURS, colourise, palette, shade_maps, training_views
from carv3d.system.threads import each_on_a_core
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.config import DiffusersTeacherConfig
from tests.pipelines import MAKERS, make_pipeline
from tests.test_cli import carv3d


class Small(nn.Module):
    """Convolutions of several kinds, a layer used twice, linear layers on places and on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False)
        self.c = nn.Linear(4, 4)
        self.d = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        x = torch.tanh(self.b(torch.tanh(self.b(x))))
        x = torch.tanh(self.c(x.flatten(2).mT)).mean(1)
        return self.d(self.c(x))[:, 0]


@pytest.mark.parametrize("pattern", ["", "b", "c|d"])
def test_row_gradients_are_those_of_the_rows_alone(pattern: str) -> None:
    """Against autograd, a row at a time; layers used twice add up."""
    net = Small()
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = RowGradients(net, pattern)
    found = dict(rows(net(x).square()))
    assert list(found) == [name for name in "abcd" if not pattern or name in pattern]
    rows.close()
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_(True)
    for n in range(5):
        loss = net(x[n : n + 1]).square().sum()
        for name, layer in rows.layers.items():
            alone = torch.cat([g.flatten() for g in torch.autograd.grad(loss, layer.parameters(), retain_graph=True)])
            torch.testing.assert_close(found[name][n], alone, rtol=1e-4, atol=1e-6)


def test_a_network_that_did_not_run_its_layers_has_gradients_of_zero() -> None:
    """Of a loss that comes from elsewhere."""
    rows = RowGradients(Small(), "d")
    losses = torch.zeros(3, requires_grad=True)
    assert [(name, bool(found.any())) for name, found in rows(losses)] == [("d", False)]


def test_signatures_do_not_depend_on_the_number_of_threads() -> None:
    """Batches are computed side by side, each by one thread, and come in order."""
    net, batches = Small(), torch.randn(7, 5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    rows, before, found = RowGradients(net, ""), torch.get_num_threads(), []

    def gradients(batch: Tensor) -> Tensor:
        return torch.cat([found for _, found in rows(net(batch).square())], 1)

    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.stack(list(each_on_a_core(gradients, batches))))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0][3], gradients(batches[3]))


def test_a_part_that_fails_ends_the_work() -> None:
    """The error of the first part that failed is raised, and parts that have not begun are not computed."""
    begun: list[int] = []

    def fail(part: int) -> int:
        begun.append(part)
        if part == 1:
            raise UserError("part 1")
        return part

    with pytest.raises(UserError, match="part 1"):
        list(each_on_a_core(fail, range(1000)))
    assert len(begun) < 10


@pytest.mark.parametrize("family", list(MAKERS))
def test_row_gradients_of_every_family(family: str, tmp_path: Path) -> None:
    """A row's gradient does not depend on the rows beside it, and is not zero: U-Nets and the transformer."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(MAKERS[family](tmp_path))))
    rows = RowGradients(teacher.family.network, r"blocks\.0\..*(conv1|to_q)")
    draws = SharedDraws.of(2, teacher.latent_shape, len(teacher.schedule.alpha), torch.Generator().manual_seed(0))
    signer = SignatureMaker(teacher, rows, Projection(rows.sizes, 64, 0), draws, rows=3)
    g = torch.Generator().manual_seed(1)
    size = teacher.image_size
    pictures = InMemory(
        "", ["x", "y"], ["a view", "side"], unknown_camera(2), torch.rand(2, 3, size, size, generator=g)
    )
    both, second = signer(pictures, [0, 1]), signer(pictures, [1])
    assert both.direction.shape == (2, 2, 64) and both.norm.min() > 0
    torch.testing.assert_close(both.direction[1], second.direction[0], rtol=1e-3, atol=1e-4)


def test_layers_that_are_not_there_are_refused() -> None:
    """Before any work, naming what there is."""
    with pytest.raises(UserError, match=r"layers='nothing' is in no layer's name; .* in a, b, c, d"):
        RowGradients(Small(), "nothing")
    with pytest.raises(UserError, match="not a regular expression"):
        RowGradients(Small(), "(")


def test_projection_keeps_products() -> None:
    """Unbiased, with the variance of a dense projection, over 400 seeds; |z| < 4."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 600, generator=g).double()
    y = y + x
    sizes, D = {"a": 200, "b": 400}, 64
    products = []
    for seed in range(400):
        projection = Projection(sizes, D, seed)
        short, norm = projection((name, torch.stack([x, y])[:, part]) for name, part in _parts(sizes))
        products.append((short[0] * short[1]).sum().item())
    torch.testing.assert_close(norm, torch.stack([x.norm(), y.norm()]))
    error = np.std(products, ddof=1) / math.sqrt(len(products))
    assert abs(np.mean(products) - (x @ y).item()) < 4 * error
    expected = ((x @ x) * (y @ y) + (x @ y) ** 2 - 2 * (x**2 * y**2).sum()).item() / D
    assert 0.7 < np.var(products, ddof=1) / expected < 1.4


def _parts(sizes: dict[str, int]) -> list[tuple[str, slice]]:
    edges = np.cumsum([0, *sizes.values()])
    return [(name, slice(low, high)) for name, low, high in zip(sizes, edges, edges[1:], strict=False)]


def test_projection_above_the_parameters_is_refused() -> None:
    """It would make gradients longer."""
    with pytest.raises(UserError, match=r"projection.dimension=11 is above the 10 parameters"):
        Projection({"a": 4, "b": 6}, 11, 0)


@given(count=st.integers(1, 40), low=st.integers(0, 400), width=st.integers(40, 600), seed=st.integers(0, 99))
def test_draws_are_one_a_stratum(count: int, low: int, width: int, seed: int) -> None:
    """With global strata every B-th part of the range has one timestep; every draw its own noise."""
    rng = torch.Generator().manual_seed(seed)
    draws = SharedDraws.of(count, (1, 2, 2), 1000, rng, t_range=(low / 1000, (low + width - 1) / 1000))
    share = (draws.t - low + 0.5) / width * count
    stratum = torch.arange(count)
    assert ((share > stratum - count / width) & (share < stratum + 1 + count / width)).all()
    assert draws.eps.shape == (count, 1, 2, 2) and draws.eps.flatten(1).unique(dim=0).shape[0] == count


def test_antithetic_draws_come_in_pairs() -> None:
    """The noise goes through `carv3d.sampling` as in training."""
    draws = SharedDraws.of(6, (1, 2, 2), 1000, torch.Generator().manual_seed(0), coupling="antithetic")
    torch.testing.assert_close(draws.eps[::2], -draws.eps[1::2])


def test_scores_are_mean_cosines(tmp_path: Path) -> None:
    """Against torch, from a file in many blocks; a picture's score with itself is 1; ends are in order."""
    g = torch.Generator().manual_seed(0)
    x = nn.functional.normalize(torch.randn(7, 3, 16, generator=g), dim=2)
    np.save(tmp_path / "x.npy", x.half().numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = scores(x[:2], mapped)
    wanted = torch.cosine_similarity(x[:2, None], x[None], dim=3).mean(2).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    top, bottom = ends(found, 3)
    assert top[0, 0] == 0 and top[1, 0] == 1 and bottom.shape == (2, 3)
    assert (np.diff(np.take_along_axis(found, top, 1)) <= 0).all()
    assert (np.take_along_axis(found, bottom, 1)[:, 0] == found.min(1)).all()


def test_the_cache_refuses_what_was_made_otherwise(tmp_path: Path) -> None:
    """The first key that differs is named, and a file that was cut short is seen."""
    recipe = {"weights": "abc", "draws.count": 2}
    cache = Cache(tmp_path, (3, 2, 4), recipe)
    cache.append(Signatures(torch.ones(2, 2, 4) / 2, torch.ones(2, 2)))
    again = Cache(tmp_path, (3, 2, 4), recipe)
    assert again.done == 2 and not again.complete
    assert again.directions()[:2].min() == 0.5 and again.norms()[:2].min() == 1
    with pytest.raises(UserError, match=r"made with other draws.count \(2, here 16\).*delete"):
        Cache(tmp_path, (3, 16, 4), {**recipe, "draws.count": 16})
    with pytest.raises(UserError, match=r"made with other weights"):
        Cache(tmp_path, (3, 2, 4), {**recipe, "weights": "def"})
    path = tmp_path / "gradients.npy"
    whole = path.read_bytes()
    last = bytes([whole[-1] ^ 1])  # of a picture that is not done
    path.write_bytes(whole[:-1] + last)
    assert Cache(tmp_path, (3, 2, 4), recipe).done == 2
    for damaged in (whole[:-1], b"x" * len(whole), whole[:-20] + b"x" + whole[-19:], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"gradients.npy is damaged: delete"):
            Cache(tmp_path, (3, 2, 4), recipe)
    path.unlink()
    with pytest.raises(UserError, match=r"gradients.npy or .* is missing or damaged"):
        Cache(tmp_path, (3, 2, 4), recipe)


def test_a_full_disk_is_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole size is known at the start."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"take 0.0 GB and .* has room for 0.0 GB: lower data.items"):
        Cache(tmp_path / "x", (1000, 4, 512), {})
    assert not (tmp_path / "x" / "cache.json").exists()


def test_the_built_in_world_is_the_training_set() -> None:
    """Pictures are those that training rendered, from its cameras, rounded as there; the choice is repeatable."""
    world = BuiltinWorld(6, seed=3)
    assert world.names == BuiltinWorld(6, seed=3).names != BuiltinWorld(6, seed=4).names
    assert world.total == 64_000 and len(set(world.names)) == 6
    views = list(training_views())
    loaded = world.load([4, 1])
    for picture, row in zip(loaded, (4, 1), strict=True):
        shape, view, colour = world.names[row].split("-")
        batch, own = divmod(int(view), 20)
        assert views[batch][0] == shape and colour in COLOURS
        maps = shade_maps(shape, views[batch][1]).mul(255).round() / 255
        torch.testing.assert_close(picture, colourise(maps, palette(colour))[own], atol=1e-5, rtol=0)
        assert world.captions[row].startswith(("a ", "an ")) and "view" in world.captions[row]


def _picture(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, np.full((*size, len(colour)), colour, np.uint8))


def test_image_folders_in_both_layouts(tmp_path: Path) -> None:
    """metadata.jsonl, or a text beside each; other sizes are cut to a square, what is transparent is white."""
    _picture(tmp_path / "a" / "wide.png", (255, 0, 0), (16, 40))
    _picture(tmp_path / "a" / "clear.png", (0, 0, 0, 0))
    lines = [{"file_name": "wide.png", "text": "a view"}, {"file_name": "clear.png", "text": ""}]
    (tmp_path / "a" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    listed = ImageFolder(tmp_path / "a", 16)
    assert listed.names == ["clear.png", "wide.png"] and listed.captions == ["", "a view"]
    found = listed.load([0, 1])
    assert found.shape == (2, 3, 16, 16) and found[0].min() == 1
    torch.testing.assert_close(found[1, :, 8, 8], torch.tensor([1.0, 0.0, 0.0]))
    assert ImageFolder(tmp_path / "a" / "metadata.jsonl", 16).digest() == listed.digest()
    _picture(tmp_path / "b" / "deep" / "x.jpg", (9, 9, 9))
    (tmp_path / "b" / "deep" / "x.txt").write_text("a side\n view")
    beside = ImageFolder(tmp_path / "b", 16)
    assert beside.names == ["deep/x.jpg"] and beside.captions == ["a side view"]


def test_bad_folders_are_one_line_each(tmp_path: Path) -> None:
    """No pictures, no caption, no such file, a damaged file, a bad line."""
    with pytest.raises(UserError, match="no pictures at"):
        ImageFolder(tmp_path / "none", 16)
    with pytest.raises(UserError, match="has no pictures"):
        ImageFolder(tmp_path, 16)
    _picture(tmp_path / "x.png", (1, 2, 3))
    with pytest.raises(UserError, match=r"x.png has no caption: write x.txt beside it"):
        ImageFolder(tmp_path, 16)
    (tmp_path / "x.txt").write_text("a view")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"x.png cannot be read as a picture"):
        ImageFolder(tmp_path, 16)
    stream = io.BytesIO()
    Image.new("RGB", (700, 500), "red").save(stream, "GIF")
    (tmp_path / "x.png").write_bytes(stream.getvalue()[:-300])  # of which Pillow's verify() sees nothing
    with pytest.raises(UserError, match=r"x.png cannot be read as a picture"):
        ImageFolder(tmp_path, 16)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "y.png", "text": "a"}\n')
    with pytest.raises(UserError, match=r"names y.png, which is not there"):
        ImageFolder(tmp_path, 16)
    (tmp_path / "metadata.jsonl").write_text('{"file": "y.png"}\n')
    with pytest.raises(UserError, match=r"metadata.jsonl:1: no file_name and text"):
        ImageFolder(tmp_path, 16)


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a view")
    with pytest.raises(UserError, match="has no pictures"):
        ImageFolder(tmp_path, 16)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "a"}\n')
    with pytest.raises(UserError, match=r"names b.png, which is not there"):
        ImageFolder(tmp_path, 16)


def test_pictures_of_sixteen_bits_keep_their_grey(tmp_path: Path) -> None:
    """Half of the light stays half; numbers whose white is not known are refused at the start."""
    (tmp_path / "x.txt").write_text("a view")
    Image.fromarray(np.full((16, 16), 32768, np.uint16)).save(tmp_path / "x.png")
    assert ImageFolder(tmp_path, 16).load([0]).sub(0.5).abs().max() < 0.01
    (tmp_path / "x.png").unlink()
    for kind in (np.float32, np.int32):
        Image.fromarray(np.full((16, 16), 1, kind)).save(tmp_path / "x.tif")
        with pytest.raises(UserError, match=r"x\.tif has .* so that its white is not known"):
            ImageFolder(tmp_path, 16)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA"])
def test_pictures_of_every_mode_are_read(tmp_path: Path, mode: str) -> None:
    """White stays white and black black."""
    for name, colour in (("a", "white"), ("b", "black")):
        picture = Image.new("RGB", (16, 16), colour).convert(mode)
        picture.save(tmp_path / f"{name}.{'tif' if mode == 'CMYK' else 'png'}")
        (tmp_path / f"{name}.txt").write_text("a view")
    found = ImageFolder(tmp_path, 16).load([0, 1])
    assert found[0].min() > 0.98 and found[1].max() < 0.02


def test_captions_as_other_programs_write_them(tmp_path: Path) -> None:
    """Line separators of Unicode in a caption; null, Latin-1 and .csv are named; hidden folders are not pictures."""
    _picture(tmp_path / "a.png", (1, 2, 3))
    listing = tmp_path / "metadata.jsonl"
    listing.write_text('{"file_name": "a.png", "text": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert ImageFolder(tmp_path, 16).captions == ["one\u2028two\x85three"]
    listing.write_text('{"file_name": "a.png", "text": null}\n')
    with pytest.raises(UserError, match=r"metadata.jsonl:1: no file_name and text"):
        ImageFolder(tmp_path, 16)
    listing.unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a view\n")
    with pytest.raises(UserError, match=r"captions in a \.csv file, which is not read"):
        ImageFolder(tmp_path, 16)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "a.txt").write_bytes("na\xefve".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not a text in UTF-8"):
        ImageFolder(tmp_path, 16)
    (tmp_path / "a.txt").write_text("a view")
    _picture(tmp_path / ".thumbnails" / "a.png", (9, 9, 9))
    assert ImageFolder(tmp_path, 16).names == ["a.png"]


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    """Words of a small attribution: a tiny Stable Diffusion, eight pictures, of which two are given as queries too."""
    make_pipeline(tmp_path / "teacher")
    g = np.random.default_rng(0)
    for n in range(8):
        for folder in ("data", "given") if n < 2 else ("data",):
            path = tmp_path / folder / f"{n}.png"
            path.parent.mkdir(exist_ok=True)
            if folder == "given":
                shutil.copy(tmp_path / "data" / path.name, path)
            else:
                iio.imwrite(path, g.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            path.with_suffix(".txt").write_text("a view")
    return [
        "attribute",
        f"teacher.path={tmp_path / 'teacher'}",
        f"data.path={tmp_path / 'data'}",
        "layers=mid_block",
        "draws.count=3",
        "projection.dimension=64",
        "rows=3",
        "top=3",
        "threads=1",
        *("--output", str(tmp_path / "out")),
    ]


def test_given_pictures_are_traced_to_themselves(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command: pictures that are in the training set score 1 with themselves; all results are there."""
    given = f"queries.path={tmp_path / 'given'}"
    code, out, _ = carv3d(*study, given, "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["items"] == 8 and found["computed"] == 8 and found["class_share"] is None
    for query in found["queries"]:
        assert query["top"][0]["item"] == query["query"]
        assert query["top"][0]["score"] == pytest.approx(1, abs=2e-3) and query["top"][1]["score"] < 0.995
    out_folder = tmp_path / "out"
    archive = np.load(out_folder / "scores.npz", allow_pickle=False)
    assert archive["scores"].shape == (2, 8) and list(archive["items"]) == [f"{n}.png" for n in range(8)]
    assert {p.name for p in out_folder.iterdir()} >= {"report.html", "contact_sheet.png", "environment.json"}
    assert iio.imread(out_folder / "contact_sheet.png").shape[2] == 3
    # Other queries: not one training picture is looked at again.
    code, out, _ = carv3d(*study, "a side view", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["computed"] == 0 and found["queries"][0]["caption"] == "a side view"


def test_a_killed_attribution_goes_on_with_the_same_numbers(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the numbers of a batch and their count, which is the worst moment."""
    code, _, _ = carv3d(*study, "a view", capsys=capsys)
    assert code == 0
    whole = [(tmp_path / "out" / name).read_bytes() for name in ("scores.npz", "cache/gradients.npy")]
    shutil.rmtree(tmp_path / "out")
    real, calls = Cache._count, [0]

    def killed(cache: Cache) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        real(cache)

    monkeypatch.setattr(pipeline, "_batch", lambda signer: 3)
    monkeypatch.setattr(Cache, "_count", killed)
    code, _, err = carv3d(*study, "a view", capsys=capsys)
    assert code == 130 and "the same command goes on" in err
    monkeypatch.setattr(Cache, "_count", real)
    assert json.loads((tmp_path / "out" / "cache" / "cache.json").read_text())["done"] == 0
    code, out, _ = carv3d(*study, "a view", "--json", capsys=capsys)
    assert code == 0 and json.loads(out)["computed"] == 8
    again = np.load(tmp_path / "out" / "scores.npz")["scores"]
    (tmp_path / "whole.npz").write_bytes(whole[0])
    np.testing.assert_allclose(again, np.load(tmp_path / "whole.npz")["scores"], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to explain"),
        (["a view", "queries.path=here"], "not both"),
        (["a view", "layers=nothing"], "layers='nothing' is in no layer's name"),
        (["a view", "projection.dimension=65536"], "is above the"),
        (["a view", "draws.count=0"], "draws.count must be from 1 to 4096"),
        (["a view", "teacher.dtype=float16"], "teacher.dtype must be float32 or bfloat16"),
        (["a view", "teacher.posterior=sample"], "teacher.posterior must be mode"),
        (["a view", "data.path=builtin"], "data.path must be a folder of pictures"),
        (["a view", "data.path=/nowhere"], "no pictures at /nowhere"),
        (["a view", "draws.cuont=4"], "did you mean 'draws.count'"),
        (["a view", "data.item=4"], "did you mean 'data.items'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    study: list[str], tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = carv3d(*study, *words, capsys=capsys)
    assert code == 2 and message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_the_exact_teacher_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a formula: there is no network to take a gradient of."""
    code, _, err = carv3d(
        "attribute", "a red cone", "teacher.type=exact", "--output", str(tmp_path / "x"), capsys=capsys
    )
    assert code == 2 and "gradients are taken of a pipeline's network" in " ".join(err.split())


def test_a_cache_of_other_weights_is_refused(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One number of one tensor is enough."""
    from safetensors.torch import load_file, save_file

    assert carv3d(*study, "a view", capsys=capsys)[0] == 0
    weights = tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors: dict[str, Any] = load_file(weights)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    code, _, err = carv3d(*study, "a view", capsys=capsys)
    assert code == 2 and "made with other weights" in err


def test_the_config_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With comments, and a bad value is refused with the verb's own rules."""
    code, out, _ = carv3d("config", "--of", "attribute", capsys=capsys)
    assert code == 0 and "count: 16" in out and "# random projection" in out.lower()
    code, _, err = carv3d("config", "--of", "attribute", "draws.count=0", capsys=capsys)
    assert code == 2 and "draws.count must be from 1 to 4096" in err
