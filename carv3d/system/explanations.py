"""What the user is told about an error, whoever raised it: one line, and the exit code."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import traceback
from typing import NamedTuple

from carv3d.errors import UserError

_MEMORY = (
    "out of memory: lower guidance.chunk (draws a teacher call; of distill matching.chunk), guidance.renders, "
    "renderer.samples or the cameras' size, or use teacher.dtype=float16; with measure, fewer --renders and "
    "--resamples; a run goes on from its last checkpoint with --resume"
)


class Explanation(NamedTuple):
    """One line for the user.

    Attributes:
        line: what is wrong and what to do.
        code: the exit code: 2 for what the user can mend, 1 for a fault of carv3d.
    """

    line: str
    code: int


def explain(error: Exception) -> Explanation:
    """The line about an error. The traceback of one that nobody has foreseen goes to a file, whose path is said."""
    text = " ".join(str(error).split())
    match error:
        case UserError():
            return Explanation(text, 2)
        case UnicodeError():
            return Explanation(f"a text is not valid UTF-8 ({text[:200]}): save the file as UTF-8, or type it again", 2)
        case RecursionError():
            return Explanation("a value is nested too deeply: give a simpler one", 2)
        case OSError() if error.errno is not None:
            where = f"{error.filename}: " if error.filename is not None else ""
            return Explanation(
                f"{where}{(error.strerror or text).lower()}: mend the path or the disk, then try again", 2
            )
    # torch's error classes are not imported here, because that would take seconds.
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return Explanation(_MEMORY, 2)
    kept = _kept("".join(traceback.format_exception(error)))
    return Explanation(
        f"carv3d failed ({type(error).__name__}: {text[:200]}); the details are in {kept}: please report them, with "
        "the output of `carv3d doctor`",
        1,
    )


def _kept(details: str) -> str:
    """The path of a new file in the temporary folder with the details, or why there is none."""
    command = shlex.join(sys.argv)
    try:
        descriptor, path = tempfile.mkstemp(prefix="carv3d-error-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{command}\n\n{details}")
    except OSError as error:
        return f"no file ({error.strerror})"
    return path
