"""A Stable Diffusion model in one .safetensors file, which is converted to a pipeline folder once."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from carv3d.errors import UserError
from carv3d.runs.storage import disk_errors
from carv3d.system.cache import cache_folder
from carv3d.teachers.weights.files import INDEX
from carv3d.teachers.weights.hub import first_line


@dataclass(frozen=True)
class SingleFile:
    """A model in one file.

    Attributes:
        file: the .safetensors file.
        folder: in the cache, of the converted pipeline.
        revision: a digest of its name, size and time.
        size: its bytes.
    """

    file: Path
    folder: Path
    revision: str
    size: int

    @classmethod
    def of(cls, file: Path) -> SingleFile:
        """The model of an existing file.

        Raises:
            UserError: it is pickled, or damaged.
        """
        if file.suffix != ".safetensors":
            raise UserError(f"{file}: one file must be .safetensors (.ckpt files are pickled, and can run any code)")
        stat = file.stat()
        name = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
        revision = hashlib.sha256(name.encode()).hexdigest()[:16]
        found = cls(file, cache_folder() / "converted" / f"{file.stem}-{revision}", revision, stat.st_size)
        if not found.converted:
            found._names()
        return found

    @property
    def converted(self) -> bool:
        """Whether the folder exists."""
        return (self.folder / INDEX).is_file()

    def convert(self) -> Path:
        """The converted folder, which is made if it does not exist. Configs and tokenizers, which such a file does
        not have, come from the hub, or from a folder of the same name beside the file.

        Raises:
            UserError: it is no such model, configs or tokenizers are missing, or the disk is full.
        """
        if self.converted:
            return self.folder
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        # Of the two text encoders of XL.
        is_xl = any("embedders.1." in name for name in self._names())
        kind = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
        beside = self.file.with_suffix("")
        options = {"config": str(beside)} if beside.is_dir() else {}
        try:
            pipeline = kind.from_single_file(str(self.file), **options)
        except Exception as error:
            raise UserError(
                f"{self.file} cannot be read as a {kind.__name__} ({first_line(error)}); without a hub, put a folder "
                f"of the pipeline's configs and tokenizers at {beside}"
            ) from error
        part = self.folder.with_name(f"{self.folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            with disk_errors(self.folder.parent):
                try:
                    pipeline.save_pretrained(part, safe_serialization=True)
                except SafetensorError as error:  # the library's error for a full disk
                    raise UserError(
                        f"{self.folder.parent} cannot be written ({first_line(error)}): free some space, or set "
                        "CARV3D_CACHE to another folder"
                    ) from error
                part.rename(self.folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return self.folder

    def _names(self) -> list[str]:
        try:
            with safe_open(self.file, framework="pt") as opened:
                return list(opened.keys())
        except SafetensorError as error:
            raise UserError(f"{self.file} is damaged: get it again ({first_line(error)})") from None
