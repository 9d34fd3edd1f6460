"""Bad inputs: values of every key, options of every verb, YAML files, prompts and paths. Each is one line, and nothing
is written.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from scripts.campaign.baseline import Baselines
from scripts.campaign.commands import ATTRIBUTE, DISTIL, EXACT, GAUSSIANS, HASH_GRID, TINY, VOXELS, generate
from scripts.campaign.server import Box, run
from scripts.campaign.trial import Trial, outside

# What no key and no option takes as it is, or only a text does.
_ODD = [
    "",
    " ",
    "x",
    "null",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0",
    "-0.0",
    "1e-320",
    "0x10",
    "1_0",
    "true",
    "[]",
    "[1]",
    "[1, 2]",
    "[null]",
    "[[[]]]",
    "{}",
    "{a: 1}",
    "{[1]: 2}",
    "???",
    "${seed}",
    "${nothing}",
    "${",
    "!!python/object:os.system x",
    "!!binary AAAA",
    "&a [*a]",
    "'",
    '"',
    "2020-01-01",
    "12:30:45",
    "1e9",
    "999999999999999999999999",
    "9" * 5000,
    "[" * 3000,
    "字" * 84,
    "a" * 5000,
    "~nobody-here/x",
    "/nowhere/at/all",
    "/dev/null",
    "/dev/zero/x",
    "..",
    "a\nb",
    "a\tb",
    "\udcff\udcfe",
    "\x1b[31m",
    "\u202e",
    "é" * 130,
    "🙂",
]


def _beyond(field: Any) -> list[str]:
    """Values just outside the limits of a key."""
    key, step = field.key, 1 if int in (field.hint, *get_args(field.hint)) else 1e-6
    numbers = [key.ge - step] if key.ge is not None else []
    numbers += [key.le + step] if key.le is not None else []
    numbers += [limit for limit in (key.gt, key.lt) if limit is not None]
    found = [str(number) for number in numbers]
    return [f"[{', '.join([text] * key.length)}]" for text in found] if key.length else found


Words = tuple[str, list[str], list[str], bool]
"""The case, the command line, the names of its results, and whether it must be refused."""


def key_value(rng: random.Random) -> Words:
    """A key of a config with an odd value."""
    from carv3d.config import AttributeConfig, Config, DistillConfig, load
    from carv3d.config.keys import walk

    of: Any
    base: list[str]
    verb, of, base, words = rng.choice(
        [
            ("generate", Config, VOXELS, generate(*VOXELS, steps=1)),
            ("generate", Config, HASH_GRID, generate(*HASH_GRID, steps=1)),
            ("generate", Config, GAUSSIANS, generate(*GAUSSIANS, steps=1)),
            ("attribute", AttributeConfig, [], ["attribute", "a red cube", *ATTRIBUTE, "data.items=4"]),
            ("distill", DistillConfig, [], ["distill", *DISTIL, "training.steps=1"]),
        ]
    )
    types = [word for word in [*base, *EXACT] if ".type=" in word] if verb == "generate" else []
    types += ["scene.type=gaussians"] if base is GAUSSIANS else []
    keys = [(path, field) for path, field, _ in walk(load(None, types, of=of)) if path != "prompt"]
    path, field = rng.choice(keys)
    beyond = [] if field.is_section else _beyond(field)
    value = rng.choice(beyond) if beyond and rng.random() < 0.4 else rng.choice(_ODD)
    return f"{verb} {path}", [*words, f"{path}={value}", "--output", "out"], ["out", "outputs"], value in beyond


def option(rng: random.Random) -> Words:
    """An option or argument of a verb with an odd value."""
    import typer

    from carv3d.cli.app import app

    base = {
        "generate": generate(*VOXELS, steps=1),
        "render": ["render", "run", "--frames", "2"],
        "export": ["export", "run"],
        "evaluate": ["evaluate", "run"],
        "measure": ["measure", "run", "--budget", "0.1", "--resamples", "1", "--renders", "1"],
        "attribute": ["attribute", "a red cube", *ATTRIBUTE],
        "distill": ["distill", *DISTIL, "training.steps=1"],
        "sample": ["sample", "distilled", "a red cube"],
        "compare": ["compare", "one.yaml", "two.yaml", "--prompts", "nothing.txt"],
        "config": ["config"],
        "doctor": ["doctor"],
        "threestudio": ["threestudio", "nowhere"],
    }
    commands: Any = typer.main.get_command(app)
    verb = rng.choice(list(base))
    options = [each for each in commands.commands[verb].params if each.opts and each.name != "help"]
    chosen = rng.choice(options)
    value = rng.choice([*_ODD, "run", "one.yaml", "distilled", "pipe", "loop", "one.yaml/x"])
    words = list(base[verb])
    if chosen.opts[0].startswith("--"):
        words += [chosen.opts[0]] if getattr(chosen, "is_flag", False) else [f"{chosen.opts[0]}={value}"]
    elif rng.random() < 0.5 or len(words) < 2:
        words.append(value)
    else:
        words[1] = value
    return f"{verb} {chosen.opts[0]}", words, ["out", "outputs", "samples.png", "run", value], False


def yaml_file(rng: random.Random) -> Words:
    """A config file with mistakes of the kinds that editors and programs make."""
    text = "\n".join(_yaml_lines(rng))
    data = text.encode(errors="surrogatepass")
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_MUTATIONS)(data, rng)
    Path("mine.yaml").write_bytes(data)
    words = ["generate", "a red cube", "mine.yaml", *TINY, *EXACT, *VOXELS[1:], "training.steps=1", "--output", "out"]
    return f"a file {data[:60]!r}", words, ["out", "outputs", "mine.yaml"], False


def _yaml_lines(rng: random.Random) -> list[str]:
    lines = ["# a config", "seed: 3", "scene:", "  type: voxel_grid", "  resolution: 8", "guidance:", "  scale: 20.0"]
    lines += ["optimizer:", "  betas: [0.9, 0.99]", "cameras:", "  elevation: [-10.0, 45.0]", "turntable: {frames: 2}"]
    strange = ["base: mine.yaml", "base: /dev/zero", "<<: {seed: 1}", "seed: 4", "- a", "x: &x {x: *x}", "prompt: 5"]
    strange += ["? [1]\n: 2", "seed: !!float 3", "--- \n--- ", "%YAML 9.9", "scene: null", "seed: |\n  3", "seed: 3 3"]
    return [*lines, rng.choice(strange)] if rng.random() < 0.7 else lines


def _at(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


_MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    lambda data, rng: data[: (place := _at(data, rng))] + rng.randbytes(rng.randint(1, 4)) + data[place:],
    lambda data, rng: data[: (place := _at(data, rng))] + data[place + rng.randint(1, 5) :],
    lambda data, rng: data.replace(b"  ", b"\t", 1),
    lambda data, rng: data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\x85"])),
    lambda data, rng: data.replace(b": ", rng.choice([b":", b" : ", b"= ", b": : "]), rng.randint(1, 3)),
    lambda data, rng: b"\xef\xbb\xbf" + data,
    lambda data, rng: data.decode("latin-1").encode("utf-16"),
    lambda data, rng: data + data,
    lambda data, rng: data[: _at(data, rng)],
    lambda data, rng: data + b"\x00",
    lambda data, rng: data + rng.choice([b"}", b"]", b"{", b"[", b"'", b'"', b"*x", b"&", b"!", b"|", b">"]),
    lambda data, rng: data.replace(b"seed", rng.choice([b"sed", b"Seed", b"seed seed", b"'seed", b"", b"prompt.x"])),
    lambda data, rng: data.replace(b"3", rng.choice([b"3.5", b"three", b"", b"[3]", b"{3}", b"1e3", b"9" * 70])),
    lambda data, rng: data + b"z: " + b"[" * rng.choice([5, 50, 5000]),
]


def prompt(rng: random.Random) -> Words:
    """Words in the place of a prompt."""
    more = [
        "lib:",
        "lib:nothing like this",
        "-x",
        "--",
        "seed:3",
        "seed = 3",
        "+seed=3",
        "seed[0]=1",
        "=",
        "a=b",
        "a red",
    ]
    more += ["a red cube\n", "a\u2028red cube", "A RED CUBE", "a red cube " * 500, "configs", "run", "pipe", "x.yaml"]
    value = rng.choice([*_ODD, *more])
    words = ["generate", value, *TINY, *EXACT, *VOXELS[1:], "training.steps=1", "--output", "out"]
    return f"the prompt {value[:40]!r}", words, ["out", "outputs"], False


KINDS = [key_value, key_value, option, option, yaml_file, prompt]


def trial(rng: random.Random, box: Box, baselines: Baselines) -> Trial:
    """Give one bad input."""
    box.make()
    prepared = baselines.provide(["run", "distilled"])
    for name in ("run", "distilled", "teacher", "prompts.txt", "one.yaml", "two.yaml"):
        (box.work / name).symlink_to(prepared / name)
    os.mkfifo(box.work / "pipe")
    (box.work / "loop").symlink_to("loop")
    os.chdir(box.work)
    what, words, results, refused = rng.choice(KINDS)(rng)
    words = [word.replace("\0", "") for word in words]
    found = Trial("bad inputs", what)
    present = {path.name for path in box.work.iterdir()}
    ended = found.ran(words, run(words, box))
    if refused and ended.code == 0:
        found.wrong("other", "a value out of range was accepted")
    allowed = present | (set(results) if ended.code == 0 else set())
    found.wrong("outside", *outside(box, _with_parents(allowed)))
    return found


def _with_parents(names: Sequence[str] | set[str]) -> set[str]:
    return {Path(name).parts[0] for name in names if name and Path(name).parts}
