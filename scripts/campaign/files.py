"""Point clouds, pictures with captions and prompt libraries, as other programs and people make them."""

from __future__ import annotations

import io
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

from scripts.campaign.baseline import Baselines
from scripts.campaign.commands import ATTRIBUTE, GAUSSIANS, VOXELS, generate
from scripts.campaign.server import Box, run
from scripts.campaign.trial import Trial, outside

_TYPES = {"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"}


def point_cloud(folder: Path, rng: random.Random) -> tuple[str, list[str]]:
    """A .ply with columns of any types and names, in any format, which may be cut or have more in it."""
    names = ["x", "y", "z"] if rng.random() < 0.9 else rng.choice([["x", "y"], ["X", "Y", "Z"], ["px", "py", "pz"], []])
    kinds = {name: rng.choice(["float", "double", "float", "int"]) for name in names}
    colours = rng.choice(
        [
            [],
            ["red", "green", "blue"],
            ["red", "green", "blue", "alpha"],
            ["diffuse_red", "diffuse_green", "diffuse_blue"],
            ["r", "g", "b"],
            ["red", "green"],
            ["f_dc_0", "f_dc_1", "f_dc_2"],
            ["f_dc_0"],
            ["intensity"],
            ["rgb"],
        ]
    )
    kinds |= {name: rng.choice(["uchar", "float", "ushort", "int", "double", "char"]) for name in colours}
    splat = ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    kinds |= {name: "float" for name in splat if "f_dc_0" in colours}
    count, said = rng.choice([0, 1, 2, 30]), 0
    said = count + rng.choice([0, 0, 0, 1, -1, 10**9])
    form = rng.choice(["ascii", "binary_little_endian", "binary_big_endian"])
    header = ["ply", f"format {form} 1.0", *(["comment ä", "obj_info x"] if rng.random() < 0.3 else [])]
    header += [f"element vertex {said}", *(f"property {kind} {name}" for name, kind in kinds.items())]
    if rng.random() < 0.3:
        header += ["element face 0", "property list uchar int vertex_indices"]
    rows = [[_number(rng, kind) for kind in kinds.values()] for _ in range(count)]
    if form == "ascii":
        body = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    else:
        order = "<" if "little" in form else ">"
        pattern = order + "".join(_TYPES[kind] for kind in kinds.values())
        body = b"".join(struct.pack(pattern, *row) for row in rows)
    data = "\n".join([*header, "end_header", ""]).encode("latin-1") + body
    path = folder / "points.ply"
    path.write_bytes(_spoilt(data, rng))
    return "a point cloud", [*generate(*GAUSSIANS, steps=1), f"scene.points={path.name}", "--output", "out"]


def _number(rng: random.Random, kind: str) -> float | int:
    if kind in ("float", "double"):
        return rng.choice(
            [rng.uniform(-0.5, 0.5), 0.0, 1.0, rng.uniform(0, 255), 1e30, float("nan"), float("inf")][
                : 2 + (rng.random() < 0.2) * 5
            ]
        )
    low, high = {"char": (-128, 127), "uchar": (0, 255), "short": (-32768, 32767), "ushort": (0, 65535)}.get(
        kind, (-1, 1)
    )
    return rng.randint(low, high)


def _spoilt(data: bytes, rng: random.Random) -> bytes:
    """The bytes, most of the times as they are."""
    chosen = rng.random()
    if chosen < 0.6:
        return data
    place = rng.randrange(len(data)) if data else 0
    return rng.choice(
        [
            data[:place],
            data + rng.randbytes(30),
            data[:place] + rng.randbytes(3) + data[place + 3 :],
            b"",
            data.replace(b"\n", b"\r\n"),
            b"\xef\xbb\xbf" + data,
            data + data,
            rng.randbytes(200),
        ]
    )


_MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tiff": "TIFF", ".gif": "GIF"}


def pictures(folder: Path, rng: random.Random) -> tuple[str, list[str]]:
    """A folder of pictures of any mode and format with captions, or a list of them."""
    from PIL import Image

    root = folder / "pictures"
    root.mkdir()
    names = []
    for number in range(rng.randint(1, 4)):
        ending = rng.choice(list(_FORMATS))
        name = rng.choice(["a", "ä", "a b", "字", ".hidden", "sub/b", "A"]) + str(number)
        path = root / f"{name}{rng.choice([ending, ending, ending.upper(), '.png'])}"
        path.parent.mkdir(exist_ok=True)
        size = rng.choice([(64, 64), (1, 1), (3, 200), (700, 20)])
        stream = io.BytesIO()
        try:
            Image.new(rng.choice(_MODES), size).save(stream, _FORMATS[ending])
        except (OSError, KeyError, ValueError):  # no such mode in this format
            stream = io.BytesIO()
            Image.new("RGB", size, (200, 30, 30)).save(stream, _FORMATS[ending])
        path.write_bytes(_spoilt(stream.getvalue(), rng))
        names.append(path.relative_to(root).as_posix())
        caption = rng.choice(["a red cube", "a red cube\n", "ein Würfel", "", "a\u2028b", "x" * 3000])
        if rng.random() < 0.9:
            path.with_suffix(".txt").write_bytes(
                caption.encode(rng.choice(["utf-8", "utf-8-sig", "latin-1", "utf-16"]), "replace")
            )
    if rng.random() < 0.2:
        os.mkfifo(root / "b.png")
    if rng.random() < 0.4:
        _list(root, names, rng)
    return "pictures", ["attribute", "a red cube", *ATTRIBUTE, "data.path=pictures", "force=true", "--output", "out"]


def _list(root: Path, names: list[str], rng: random.Random) -> None:
    import json

    if rng.random() < 0.2:
        (root / "metadata.csv").write_text("file_name,text\n")
        return
    rows = [{"file_name": name, "text": rng.choice(["a red cube", None, 5, "a\u0085b", ""])} for name in names]
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows]
    lines += rng.choice(
        [
            [],
            [""],
            ["{}"],
            ["nothing"],
            ['{"file_name": "../x.png", "text": "a"}'],
            ['{"file_name": "b.png", "text": "a"}'],
        ]
    )
    (root / "metadata.jsonl").write_bytes(_spoilt("\n".join(lines).encode(), rng))


def library(folder: Path, rng: random.Random) -> tuple[str, list[str]]:
    """A prompt library in any encoding and format."""
    lines = rng.choices(
        [
            "a red cube",
            "A Red Cube",
            "a blue cone",
            "",
            "# remark",
            "a\u2028b",
            "ein Würfel",
            "x" * 5000,
            "lib:x",
            "字" * 90,
        ],
        k=rng.randint(0, 6),
    )
    text = rng.choice(["\n", "\r\n", "\r"]).join(lines)
    if rng.random() < 0.2:
        import json

        text = json.dumps(rng.choice([lines, {"prompts": lines}, "a red cube"]))
    data = text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace")
    path = folder / rng.choice(["library.txt", "library.json", "library"])
    path.write_bytes(_spoilt(data, rng))
    if rng.random() < 0.1:
        path.unlink()
        rng.choice([lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to(path.name)])()
    words = generate(*VOXELS, steps=1)
    words[1] = rng.choice(["lib:red cube", "lib:cone", "lib:x"])
    return "a prompt library", [*words, f"prompt_library={path.name}", "--output", "out"]


KINDS: list[Callable[[Path, random.Random], tuple[str, list[str]]]] = [point_cloud, point_cloud, pictures, library]


def trial(rng: random.Random, box: Box, baselines: Baselines) -> Trial:
    """Give one odd file."""
    box.make()
    kind, words = rng.choice(KINDS)(box.work, rng)
    found = Trial("odd files", kind)
    present = {path.name for path in box.work.iterdir()}
    ended = found.ran(words, run(words, box))
    trained = ended.code == 0 or "the training is saved" in ended.said  # a cloud of too few points has no surface
    found.wrong("outside", *outside(box, present | ({"out"} if trained else set())))
    return found
