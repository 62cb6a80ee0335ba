"""The float32 student that a bundle was made from, which the peers run too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.cache import cached_path, code_digest
from pipeline.bench.runtimes.plain import PlainModel
from pipeline.bundle.manifest import Manifest
from pipeline.model.checkpoint import load_model
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError
from pipeline.support.packages import installed_version
from pipeline.support.workspace import digest_of
from quantize.schemes import quantize_programs

MODEL_FILES = ("model.safetensors", "model.json")
EXPORT_PACKAGES = ("torch", "executorch", "torchao", "transformers")


@dataclass(frozen=True)
class StudentWeights:
    """The float32 student that a bundle was made from.

    Attributes:
        folder: written by `save_model`; OUT/exits of a run.
        manifest: the bundle's manifest.
        packages: the packages whose versions tell one cached program from another.

    Raises:
        UserError: the folder has no weights, or those of a model with another shape.
    """

    folder: Path
    manifest: Manifest
    packages: tuple[str, ...] = EXPORT_PACKAGES

    def __post_init__(self) -> None:
        missing = [name for name in MODEL_FILES if not (self.folder / name).is_file()]
        if missing:
            raise UserError(
                f"has no {missing[0]}; the peers need the weights that the bundle was made from: give the folder "
                "OUT/exits of its run",
                file=self.folder,
                field="--weights",
            )
        config, shape = self.model().config, self.manifest.model
        for name in ("layers", "hidden_size", "heads", "intermediate_size", "vocab_size"):
            if getattr(config, name) != getattr(shape, name):
                raise UserError(
                    f"{name} is {getattr(config, name)}, the bundle has {getattr(shape, name)}; give the weights that "
                    "the bundle was made from",
                    file=self.folder,
                    field="--weights",
                )

    def model(self) -> ExitModel:
        """Loads the student."""
        return load_model(self.folder)

    def plain_model(self, attention: str = "sdpa") -> PlainModel:
        """Loads the student as Hugging Face's module; `attention` is Hugging Face's name of an implementation."""
        return PlainModel.load(self.folder, attention)

    def quantized_programs(self) -> Programs:
        """Returns the student's programs, quantized as the bundle is."""
        manifest = self.manifest
        programs = Programs.of(self.model())
        return quantize_programs(programs, manifest.scheme, manifest.embeddings_scheme, manifest.matrix_schemes)

    def cached(self, name: str, build: Callable[[Path], None]) -> Path:
        """Calls `cached_path` in a folder for these weights, the bundle's scheme and the installed libraries."""
        manifest = self.manifest
        digest = digest_of(
            [sha256_of(self.folder / file) for file in MODEL_FILES],
            [manifest.scheme, manifest.embeddings_scheme, manifest.matrix_schemes],
            [manifest.max_length, manifest.exits.model_dump()],
            [installed_version(package) for package in self.packages],
            code_digest(),
        )
        return cached_path(f"peers-{digest[:16]}/{name}", build)
