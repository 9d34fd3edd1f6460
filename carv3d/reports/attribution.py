"""The page and the contact sheet of `carv3d attribute`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from carv3d.attribution import Attributed
from carv3d.images import encode_png, sheet, write_png
from carv3d.reports.page import Page, Table
from carv3d.reports.plots import subplots, svg

_SHOWN = 24  # queries on the contact sheet and with pictures on the page
_SIDE = 96  # pixels of a picture on the page


def lead(found: Attributed) -> str:
    """The finding in one or two sentences."""
    count, k = len(found.queries.names), found.top.shape[1]
    text = f"{count} {'query' if count == 1 else 'queries'} compared with {found.items.source}."
    share = found.class_share
    if share is None:
        return text
    chance = np.mean([list(found.items.classes).count(kind) for kind in found.queries.classes]) / len(found.items.names)
    return f"{text} Of the top {k}, {share:.0%} show the query's object; by chance it would be {chance:.0%}."


def write_page(found: Attributed, path: Path, footer: str) -> None:
    """The page, one file; and `contact_sheet.png` beside it.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    pictures = _Pictures(found)
    write_png(contact_sheet(found, pictures), path.with_name("contact_sheet.png"))
    page = Page("Which training pictures made it", lead(found), footer=footer)
    for q, name in enumerate(found.queries.names[:_SHOWN]):
        section = page.section(name)
        own = (found.queries.captions[q] or "no caption", pictures.query(q))
        best, worst = (
            [(_label(found, q, int(n)), pictures.item(int(n))) for n in of[q]] for of in (found.top, found.bottom)
        )
        section.media([[own, *best[:3]], best[3:7]], caption="The sample, and the training pictures of highest score.")
        section.media([worst[:4]], caption="The lowest scores.")
        if len(best) > 7:
            rest = [[f"{n + 1}", *label.split(" ", 1)] for n, (label, _) in enumerate(best[7:], 7)]
            section.table(Table(["rank", "score", "training picture"], rest))
    _summary(page, found)
    page.write(path)


def contact_sheet(found: Attributed, pictures: _Pictures | None = None) -> Tensor:
    """(3, H, W): a row a query: the query, its top 8, its bottom 4."""
    pictures = pictures or _Pictures(found)
    rows = []
    for q in range(min(len(found.queries.names), _SHOWN)):
        best, worst = ([pictures.tensor(int(n)) for n in of[q]] for of in (found.top, found.bottom))
        gap = torch.ones(3, _SIDE, _SIDE // 4)
        parts = [pictures.query_tensor(q), gap, *best[:8], gap, *worst[:4]]
        rows.append(torch.cat(parts, 2))
    return sheet(torch.stack(rows), 1, gap=4)


class _Pictures:
    """Pictures of the page, each loaded once."""

    def __init__(self, found: Attributed) -> None:
        shown = slice(_SHOWN)
        needed = sorted({int(n) for of in (found.top[shown], found.bottom[shown]) for n in of.ravel()})
        self._items = dict(zip(needed, _small(found.items.load(needed)), strict=True))
        self._queries = _small(found.queries.load(range(min(len(found.queries.names), _SHOWN))))

    def tensor(self, n: int) -> Tensor:
        return self._items[n]

    def query_tensor(self, q: int) -> Tensor:
        return self._queries[q]

    def item(self, n: int) -> bytes:
        return encode_png(self._items[n])

    def query(self, q: int) -> bytes:
        return encode_png(self._queries[q])


def _small(pictures: Tensor) -> Tensor:
    if pictures.shape[-1] < _SIDE:
        return F.interpolate(pictures, (_SIDE, _SIDE), mode="bicubic").clamp(0, 1)
    return F.interpolate(pictures, (_SIDE, _SIDE), mode="bilinear", antialias=True)


def _label(found: Attributed, q: int, n: int) -> str:
    return f"{found.scores[q, n]:+.3f} {found.items.captions[n]}"


def _summary(page: Page, found: Attributed) -> None:
    section = page.section("Scores and gradients")
    parameters = sum(found.layers.values())
    section.text(
        "A score is the cosine of two pictures' projected gradients, averaged over shared draws of timestep and noise: "
        f"{len(found.t)} draws, {len(found.layers)} layers with {parameters:,} parameters."
    )
    figure, axes = subplots(2)
    _scores(axes[0], found)
    _norms(axes[1], found)
    section.plot(
        svg(figure),
        "Norms of the gradients before they are normalised. Where they are flat in t, importance sampling would have "
        "nothing to gain even without the normalisation.",
    )
    head = ["query", "highest", "of", "median", "lowest"]
    section.table(Table(head, [_row(found, q) for q in range(len(found.queries.names))]))


def _row(found: Attributed, q: int) -> Sequence[str]:
    own = found.scores[q]
    best = int(found.top[q, 0])
    return [
        found.queries.names[q],
        f"{own.max():+.3f}",
        found.items.names[best],
        f"{float(np.median(own)):+.3f}",
        f"{own.min():+.3f}",
    ]


def _scores(axes: Axes, found: Attributed) -> None:
    axes.hist(found.scores.ravel(), bins=80, color="#0072B2", log=True)
    axes.set(xlabel="score", ylabel="pairs of query and picture", title="All scores")


def _norms(axes: Axes, found: Attributed) -> None:
    order = np.argsort(found.t)
    low, middle, high = np.quantile(found.norms[:, order], [0.1, 0.5, 0.9], axis=0)
    axes.fill_between(found.t[order], low, high, color="#0072B2", alpha=0.2, label="10 to 90 %")
    axes.plot(found.t[order], middle, marker="o", ms=3, label="median picture")
    axes.set(xlabel="t", ylabel="norm of the gradient", title="Gradient by timestep", ylim=(0, None))
    axes.legend(fontsize=8)
