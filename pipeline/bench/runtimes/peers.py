"""Makes the programs of the peers: the systems that run the bundle's weights in other ways.

All peers except `pocketbert-monolithic` run the student as Hugging Face's module with its last head
(`pipeline.bench.runtimes.plain`), since a user without exits needs no exit heads. The cache folder keeps every program
under a digest of the weights and of the library versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.bench.runtimes.system import ProgramSource, System
from pipeline.bench.runtimes.table import CONVERTER_PACKAGES, PEERS
from pipeline.bench.runtimes.weights import EXPORT_PACKAGES, StudentWeights
from pipeline.bundle.manifest import Manifest
from pipeline.support.progress import OnStep, silent


def student_weights(folder: Path, manifest: Manifest) -> StudentWeights:
    """Returns a student whose cached programs depend on the versions of everything that makes one."""
    return StudentWeights(folder, manifest, (*EXPORT_PACKAGES, *CONVERTER_PACKAGES))


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
