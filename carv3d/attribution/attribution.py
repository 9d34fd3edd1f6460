"""`carv3d attribute` from start to end: signatures of the training pictures and of the queries, scores, results."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from carv3d import build
from carv3d.attribution.builtin_world import BuiltinWorld
from carv3d.attribution.cache import Cache
from carv3d.attribution.draws import SharedDraws
from carv3d.attribution.gradients import RowGradients
from carv3d.attribution.image_folder import ImageFolder
from carv3d.attribution.pictures import Pictures
from carv3d.attribution.projection import Projection
from carv3d.attribution.samples import sample_pictures
from carv3d.attribution.scores import Floats, ends, scores, share_of_class
from carv3d.attribution.signatures import SignatureMaker
from carv3d.config import AttributeConfig
from carv3d.errors import UserError
from carv3d.runs import replace_file
from carv3d.runs.locking import locked
from carv3d.shapes import parse
from carv3d.system.progress import progress, shown
from carv3d.system.threads import each_on_a_core, set_threads
from carv3d.teachers import DiffusersTeacher

_TEACHER_KEYS = ("dtype", "posterior", "camera", "image_size")
"""Of the config's teacher: what changes its gradients, the weights apart."""


@dataclass(frozen=True)
class Attributed:
    """Scores of all training pictures for all queries.

    Attributes:
        items, queries: N training pictures, Q queries.
        scores: (Q, N).
        top, bottom: (Q, k) indices of training pictures, the highest scores and the lowest.
        t: (B,) timesteps of the draws.
        norms: (N, B) of the gradients.
        layers: number of parameters of every chosen layer.
        new: number of pictures whose gradients were computed by this call.
    """

    items: Pictures
    queries: Pictures
    scores: Floats
    top: NDArray[np.intp]
    bottom: NDArray[np.intp]
    t: NDArray[np.int64]
    norms: Floats
    layers: dict[str, int]
    new: int

    @property
    def class_share(self) -> float | None:
        """Share of the top pictures that show the query's object, if the objects are known."""
        if not self.items.classes or not self.queries.classes:
            return None
        return share_of_class(self.top, list(self.items.classes), list(self.queries.classes))


def attribute(
    config: AttributeConfig,
    prompts: Sequence[str],
    folder: Path,
    console: Console,
    *,
    device: torch.device | None = None,
) -> Attributed:
    """Compute the scores of training pictures for queries; write `cache/` and `scores.npz` into the folder.

    Args:
        config: a valid one.
        prompts: of the queries that the teacher samples; none if `queries.path` gives the queries.
        folder: of the results; the call continues what an earlier or interrupted call left there.
        console: where the progress bar goes.
        device: where to compute; None for that of the config.

    Raises:
        UserError: see `Cache`, `ImageFolder`, `RowGradients`, `Projection`; no queries.
    """
    if bool(prompts) == bool(config.queries.path):
        raise UserError(
            "nothing to explain: give a prompt, --prompts FILE, or queries.path=FOLDER"
            if not prompts
            else "give prompts, or pictures with queries.path, not both"
        )
    set_threads(config.threads)
    device = device or build.device(config)
    if getattr(config.teacher, "builtin_world", False) and not config.force:
        for prompt in prompts:
            parse(prompt)
    teacher = build.teacher(config, device)
    assert isinstance(teacher, DiffusersTeacher)
    items = open_pictures(config, teacher)
    given = ImageFolder(config.queries.path, teacher.image_size) if config.queries.path else None
    gradients = RowGradients(teacher.family.network, config.layers)
    try:
        maker = signature_maker(config, teacher, gradients)
        recipe = _recipe(config, teacher, maker, items)
        with locked(folder, "carv3d attribute"):
            shape = (len(items.names), len(maker.draws), config.projection.dimension)
            cache = Cache(folder / "cache", shape, recipe)
            before = cache.done
            fill(cache, maker, items, console)
            queries = given or _sampled(config, teacher, prompts, console)
            with progress(console) as bar:
                task = bar.add_task("queries", total=len(queries.names))
                parts = []
                for rows in torch.arange(len(queries.names)).split(_batch(maker)):
                    parts.append(maker(queries, rows.tolist()).direction)
                    bar.advance(task, len(rows))
            found = scores(torch.cat(parts), cache.directions())
            top, bottom = ends(found, config.top)
            names = {"items": items.names, "queries": queries.names, "captions": queries.captions}
            write_scores(folder / "scores.npz", found, names)
            return Attributed(
                items,
                queries,
                found,
                top,
                bottom,
                maker.draws.t.cpu().numpy(),
                cache.norms(),
                gradients.sizes,
                cache.done - before,
            )
    finally:
        gradients.close()


def open_pictures(config: AttributeConfig, teacher: DiffusersTeacher) -> Pictures:
    """The training pictures that the config names."""
    if config.data.path == "builtin":
        return BuiltinWorld(config.data.items, config.data.seed)
    return ImageFolder(config.data.path, teacher.image_size, config.data.items)


def signature_maker(config: AttributeConfig, teacher: DiffusersTeacher, gradients: RowGradients) -> SignatureMaker:
    """The shared draws and the projection of the config."""
    section = config.draws
    draws = SharedDraws.of(
        section.count,
        teacher.latent_shape,
        len(teacher.schedule.alpha),
        torch.Generator(teacher.device).manual_seed(section.seed),
        t_range=(section.t_min, section.t_max),
        strata=section.strata,
        coupling=section.coupling,
    )
    projection = Projection(gradients.sizes, config.projection.dimension, config.projection.seed, teacher.device)
    return SignatureMaker(teacher, gradients, projection, draws, config.rows)


def fill(cache: Cache, maker: SignatureMaker, items: Pictures, console: Console) -> None:
    """Compute the missing signatures, batch by batch. Interrupted at any moment, the next call continues."""
    total, size = len(items.names), _batch(maker)
    if cache.complete:
        return
    with progress(console) as bar:
        task = bar.add_task("gradients", total=total, completed=cache.done)
        batches = (range(first, min(first + size, total)) for first in range(cache.done, total, size))
        find = partial(maker, items)
        for found in each_on_a_core(find, batches) if maker.teacher.device.type == "cpu" else map(find, batches):
            cache.append(found)
            bar.update(task, completed=cache.done)


def write_scores(path: Path, found: Floats, names: dict[str, Sequence[str]]) -> None:
    """Write a NumPy archive.

    `scores` (Q, N) float32; `items` (N,), `queries` and `captions` (Q,) texts.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    stream = io.BytesIO()
    arrays: dict[str, Any] = {key: np.array(value, dtype=str) for key, value in names.items()}
    np.savez_compressed(stream, scores=found, **arrays)
    replace_file(path, stream.getvalue())


def _batch(maker: SignatureMaker) -> int:
    """Pictures in a batch, so that a batch takes a few calls of the denoiser."""
    return max(1, 8 * maker.rows // len(maker.draws))


def _sampled(config: AttributeConfig, teacher: DiffusersTeacher, prompts: Sequence[str], console: Console) -> Pictures:
    section = config.queries
    with shown(console, f"sampling {len(prompts) * section.count} queries"):
        return sample_pictures(
            teacher, prompts, count=section.count, scale=section.scale, steps=section.steps, seed=section.seed
        )


def _recipe(
    config: AttributeConfig, teacher: DiffusersTeacher, maker: SignatureMaker, items: Pictures
) -> dict[str, Any]:
    """All values that signatures depend on. Those that a user changes most often come first, for the error message."""
    section: Any = config.teacher
    return {
        **{f"teacher.{key}": getattr(section, key) for key in _TEACHER_KEYS},
        "weights": _weights(teacher),
        "layers": list(maker.gradients.sizes),
        "data.items": len(items.names),
        "pictures": items.digest(),
        **{f"draws.{key}": value for key, value in asdict(config.draws).items()},
        "draws": maker.draws.digest(),
        **{f"projection.{key}": value for key, value in asdict(config.projection).items()},
    }


def _weights(teacher: DiffusersTeacher) -> str:
    """SHA-256 of the contents of the pipeline's files."""
    found = hashlib.sha256()
    assert teacher.weights is not None  # it was loaded from files
    root = teacher.weights.folder
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".safetensors", ".bin", ".json") and p.is_file()):
        found.update(path.relative_to(root).as_posix().encode())
        with open(path, "rb") as file:
            while block := file.read(2**22):
                found.update(block)
    return found.hexdigest()
