"""Makes the programs of the peers: the systems that run the bundle's weights in other ways.

All peers except `pocketbert-monolithic` run the student as Hugging Face's module with its last head
(`pipeline.bench.runtimes.plain`), since a user without exits needs no exit heads. The cache folder keeps every program
under a digest of the weights and of the library versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.cache import cached_path, code_digest
from pipeline.bench.runtimes.plain import PlainModel
from pipeline.bench.runtimes.system import ProgramSource, System
from pipeline.bench.runtimes.table import CONVERTER_PACKAGES, PEERS
from pipeline.bundle.manifest import Manifest
from pipeline.model.checkpoint import load_model
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError
from pipeline.support.packages import installed_version
from pipeline.support.progress import OnStep, silent
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

    Raises:
        UserError: the folder has no weights, or those of a model with another shape.
    """

    folder: Path
    manifest: Manifest

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
            [installed_version(package) for package in (*EXPORT_PACKAGES, *CONVERTER_PACKAGES)],
            code_digest(),
        )
        return cached_path(f"peers-{digest[:16]}/{name}", build)


def peer_obstacles(peers: Sequence[System] = PEERS) -> dict[str, str]:
    """Returns the peers that this computer cannot measure: by name, why not and what to do about it, in one line."""
    obstacles = {peer.name: peer.obstacle() for peer in peers}
    return {name: obstacle for name, obstacle in obstacles.items() if obstacle is not None}


def peer_sources(
    weights: StudentWeights,
    lengths: Sequence[int],
    model: str,
    bundle_precision: str,
    on_step: OnStep = silent,
    peers: Sequence[System] = PEERS,
) -> Iterator[ProgramSource]:
    """Makes the programs of all peers that this computer can measure, or finds them in the cache.

    Args:
        weights: the bundle's float32 student.
        lengths: measured lengths in tokens.
        model: the `model` of the measurements.
        bundle_precision: the `precision` of a peer that is quantized as the bundle is.
        on_step: called before each program.
        peers: systems with variants.
    """
    obstacles, full_depth = peer_obstacles(peers), weights.manifest.segments
    programs = [
        (peer, variant, program_lengths)
        for peer in peers
        if peer.name not in obstacles
        for variant in peer.variants
        for program_lengths in ([(length,) for length in lengths] if variant.fixed_length else [tuple(lengths)])
    ]
    for done, (peer, variant, program_lengths) in enumerate(programs):
        on_step(f"making the peers, {peer.name} {variant.name}", done, len(programs))
        path = variant.make(weights, program_lengths[0] if variant.fixed_length else weights.manifest.max_length)
        yield ProgramSource(
            system=peer.name,
            path=path,
            model=model,
            precision=peer.precision or bundle_precision,
            file_bytes=(path / "model.safetensors" if path.is_dir() else path).stat().st_size,
            lengths=program_lengths,
            depths=(full_depth,),
            variant=variant.name,
            fastest_only=peer.fastest_only,
        )
    on_step("making the peers", len(programs), len(programs))
