"""Installs the extension in a threestudio checkout, and removes it. Imports nothing of threestudio."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from carv3d.errors import UserError
from carv3d.integrations.threestudio.interface import OF_GUIDANCE, OLDEST, version_numbers
from carv3d.runs import disk_errors, replace_file

NAME = "threestudio-carv3d"
"""The folder's. `carv3d` would hide the package: launch.py puts the folder's name into sys.modules."""

_SOURCES = Path(__file__).parent / "extension"
_GUIDANCE = "threestudio/models/guidance/stable_diffusion_guidance.py"
_TRY = """
import sys
try:
    from carv3d.integrations import threestudio as plug_in
except ImportError as error:
    sys.exit(f"carv3d: {error}")
sys.path.insert(0, ".")
try:
    import threestudio
except Exception as error:
    sys.exit(f"threestudio: {type(error).__name__}: {error}")
try:
    plug_in.register()
except ImportError as error:
    sys.exit(f"interface: {error}")
"""
_LOADER = '''"""carv3d's guidances, see README.md beside this file. Made by `carv3d threestudio`."""

try:
    from carv3d.integrations import threestudio as plug_in
except ImportError as error:
    raise ImportError("threestudio-carv3d needs carv3d in the Python that runs launch.py: install it there") from error
plug_in.register()
'''


@dataclass
class Installed:
    """What was done.

    Attributes:
        folder: of the extension.
        kept: files that differ from carv3d's and were not changed.
        untried: why the extension could not be tried; empty if it was.
    """

    folder: Path
    kept: list[Path] = field(default_factory=list)
    untried: str = ""


def install(checkout: Path, python: str = sys.executable) -> Installed:
    """Put the extension into `checkout/custom/`, after trying it in threestudio's environment.

    Args:
        checkout: of threestudio.
        python: the Python that runs launch.py.

    Raises:
        UserError: no threestudio, one that lacks something, or no carv3d in its environment. Then nothing is written.
    """
    check_checkout(checkout)
    found = Installed(checkout / "custom" / NAME, untried=_try(checkout, python))
    _check_ours(found.folder)
    for path, content in _files().items():
        target = found.folder / path
        # Users edit the configs, and not the other files.
        if path.suffix == ".yaml" and target.exists() and target.read_bytes() != content:
            found.kept.append(target)
            continue
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, content)
    return found


def remove(checkout: Path) -> Installed:
    """Remove the extension; changed configs are kept.

    Raises:
        UserError: no threestudio, or no extension in it.
    """
    check_checkout(checkout)
    found = Installed(checkout / "custom" / NAME)
    if not found.folder.exists():
        raise UserError(f"there is no {found.folder} to remove")
    _check_ours(found.folder)
    with disk_errors(found.folder):
        for path, content in _files().items():
            target = found.folder / path
            if target.is_file() and (path.suffix != ".yaml" or target.read_bytes() == content):
                target.unlink()
        shutil.rmtree(found.folder / "__pycache__", ignore_errors=True)
        for folder in sorted((path for path in found.folder.rglob("*") if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        found.kept = sorted(path for path in found.folder.rglob("*") if path.is_file())
        if not found.kept:
            found.folder.rmdir()
    return found


def check_checkout(checkout: Path) -> None:
    """Check a folder's files for the used parts of threestudio, without running it.

    Raises:
        UserError: names what is missing.
    """
    package, guidance = checkout / "threestudio" / "__init__.py", checkout / _GUIDANCE
    if not (checkout / "launch.py").is_file() or not package.is_file():
        raise UserError(
            f"{checkout} is no threestudio checkout, it has no launch.py beside threestudio/: give the folder that "
            "`git clone https://github.com/threestudio-project/threestudio` made"
        )
    found = re.search(r"__version__\s*=\s*[\"']([\d.]+)", package.read_text(encoding="utf-8"))
    version = found[1] if found else "of before 0.2.0"
    if found is None or version_numbers(version) < OLDEST or not (checkout / "custom").is_dir():
        raise UserError(f"{checkout} is threestudio {version}, which loads no extensions: git pull in it")
    source = guidance.read_text(encoding="utf-8") if guidance.is_file() else ""
    missing = [name for name in OF_GUIDANCE if f"def {name}(" not in source]
    if missing:
        raise UserError(
            f"{checkout} (threestudio {version}) has another stable-diffusion-guidance than carv3d was made for, "
            f"without {', '.join(missing)}: see docs/how-to/threestudio.md for the commit that is known to work"
        )


def _try(checkout: Path, python: str) -> str:
    """Register the guidances in a process of threestudio's environment; return why that could not be tried, or ""."""
    try:
        done = subprocess.run(
            [python, "-c", _TRY], cwd=checkout, capture_output=True, text=True, timeout=600, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{python} does not run ({error}): give --python the Python that runs launch.py") from None
    if done.returncode == 0:
        return ""
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    where, _, reason = last.partition(": ")
    if where == "carv3d":
        raise UserError(
            f"{python} has no carv3d ({reason}): install it there, or give --python the Python that runs launch.py"
        )
    if where == "threestudio":
        return reason
    raise UserError(f"the extension does not work with {checkout}: {reason or last}")


def _files() -> dict[Path, bytes]:
    files = {Path("__init__.py"): _LOADER.encode()}
    return files | {path.relative_to(_SOURCES): path.read_bytes() for path in sorted(_SOURCES.rglob("*.*"))}


def _check_ours(folder: Path) -> None:
    loader = folder / "__init__.py"
    ours = not folder.exists() or (loader.is_file() and "carv3d.integrations" in loader.read_text(encoding="utf-8"))
    if folder.is_symlink() or not (ours or (folder.is_dir() and not any(folder.glob("*.py")))):
        raise UserError(f"{folder} was not made by this command: move it away first")
